"""The noise that the engine's loop makes, against matrices written out, brute force and known error values."""

from __future__ import annotations

import itertools
import math
from collections import deque

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import binom
from torch import Tensor

from defenses.bounds import epsilon_gaussian
from defenses.factorisation import BandedSquareRoot, Factorisation, Tree
from fl_core.errors import InputError
from fl_core.seeds import generator

Floats = npt.NDArray[np.float64]

SIZES = [1, 2, 3, 7, 8, 13, 32, 33]
BANDS = [1, 2, 5, 8, 33]


def all_of(rounds: int) -> list[Factorisation]:
    return [Tree(rounds=rounds), *(BandedSquareRoot(rounds=rounds, band=band) for band in BANDS if band <= rounds)]


EVERY = [made for rounds in SIZES for made in all_of(rounds)]


@st.composite
def factorisations(draw: st.DrawFn, most: int = 40) -> Factorisation:
    rounds = draw(st.integers(1, most))
    band = draw(st.integers(0, rounds))
    return BandedSquareRoot(rounds=rounds, band=band) if band else Tree(rounds=rounds)


def patterns_of(made: Factorisation, most: int = 40) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, made.rounds - 1), unique=True, max_size=most).map(tuple)


def increments(made: Factorisation) -> Floats:
    """W with w = W·z, [rounds, rounds], by the engine's loop on the rows of the identity."""
    normals, state = np.eye(made.rounds), deque[Floats](maxlen=max(made.memory, 1))
    rows = []
    for round in range(made.rounds):
        row = sum((c * normals[key] for key, c in made.fresh(round)), start=np.zeros(made.rounds))
        row = row + sum((c * state[k - 1] for k, c in made.past(round)), start=np.zeros(made.rounds))
        state.appendleft(row)
        rows.append(row)
    return np.array(rows)


def strategy(made: Factorisation) -> Floats:
    """C [rounds, rounds], by its columns."""
    return np.stack([made.encode((round,)) for round in range(made.rounds)], axis=1)


def prefixes(made: Factorisation) -> Floats:
    """B [rounds, rounds] as the papers define it, with nothing of the module: bits of n, or A·C⁻¹."""
    rounds, full = made.rounds, np.zeros((made.rounds, made.rounds))
    if isinstance(made, BandedSquareRoot):
        for k in range(made.band):
            full += binom(2 * k, k) / 4.0**k * np.eye(rounds, k=-k)
        return np.asarray(np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(full))
    for length in range(1, rounds + 1):
        end = 0
        for bit in reversed(range(length.bit_length())):
            if length >> bit & 1:
                end += 1 << bit
                full[length - 1, end - 1] = 1.0
    return full


def lower_bound(rounds: int, participations: int = 1) -> float:
    """√k·‖A‖_*/T, which no factorisation of the prefix sums can beat.

    ‖A‖_* ≤ ‖B‖_F ‖C‖_F, and over the T/k shifts of a pattern of k rounds a nonnegative CᵀC gives sens² at least
    k ‖C‖_F²/T in the mean. A's singular values are 1/(2 sin((2j − 1)π/(4T + 2))).
    """
    angles = (2 * np.arange(1, rounds + 1) - 1) * math.pi / (4 * rounds + 2)
    return math.sqrt(participations) * float((0.5 / np.sin(angles)).sum()) / rounds


@pytest.mark.parametrize("made", EVERY, ids=str)
def test_the_noise_that_is_added_and_the_matrix_that_is_accounted_factor_the_prefix_sums(made: Factorisation) -> None:
    ones = np.tril(np.ones((made.rounds, made.rounds)))
    noise = ones @ increments(made)
    np.testing.assert_allclose(noise @ strategy(made), ones, atol=1e-10)
    np.testing.assert_allclose(noise, prefixes(made), atol=1e-10)
    np.testing.assert_allclose(made.prefix_variances(), (prefixes(made) ** 2).sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize("made", EVERY, ids=str)
def test_a_round_draws_one_new_normal_and_otherwise_looks_back(made: Factorisation) -> None:
    for round in range(made.rounds):
        keys = [key for key, _ in made.fresh(round)]
        assert made.fresh(round)[0] == (round, 1.0)
        assert len(set(keys)) == len(keys)
        assert all(0 <= key <= round for key in keys)
        assert all(1 <= k <= min(made.memory, round) for k, _ in made.past(round))


@pytest.mark.parametrize("rounds", [1, 8, 100, 1000])
def test_the_tree_draws_fewer_than_two_normals_a_round_and_holds_no_state(rounds: int) -> None:
    tree = Tree(rounds=rounds)
    draws = [len(tree.fresh(round)) for round in range(rounds)]
    assert sum(draws) == 2 * rounds - rounds.bit_count()
    assert max(draws) <= math.floor(math.log2(rounds)) + 1
    assert tree.memory == 0
    assert not any(tree.past(round) for round in range(rounds))


def test_the_tree_of_eight_rounds_is_the_drawn_one() -> None:
    tree = Tree(rounds=8)
    assert tree.fresh(3) == [(3, 1.0), (2, -1.0), (1, -1.0)]
    assert tree.fresh(4) == [(4, 1.0)]
    # Rounds 0 to 7 lie in these many blocks of [0], [0,1], [2], [0..3], [4], [4,5], [6] and [0..7].
    inside = [tree.sensitivity((round,)) ** 2 for round in range(8)]
    assert inside == pytest.approx([4, 3, 3, 2, 3, 2, 2, 1])
    # [0..7] holds two of the rounds 0 and 4, five other blocks one of them.
    assert tree.sensitivity((0, 4)) == pytest.approx(math.sqrt(2**2 + 5))


def test_the_square_root_begins_with_the_known_coefficients() -> None:
    root = BandedSquareRoot(rounds=6, band=4)
    assert root.encode((0,)).tolist() == pytest.approx([1, 1 / 2, 3 / 8, 5 / 16, 0, 0])
    assert root.past(5) == [(1, -1 / 2), (2, -3 / 8), (3, -5 / 16)]
    assert root.past(1) == [(1, -1 / 2)]
    assert root.past(0) == []


@pytest.mark.parametrize("made", [made for rounds in (1, 4, 6) for made in all_of(rounds)], ids=str)
def test_no_choice_of_signs_moves_the_sums_further_than_the_sensitivity(made: Factorisation) -> None:
    matrix = strategy(made)
    for count in range(1, made.rounds + 1):
        for pattern in itertools.combinations(range(made.rounds), count):
            signs = np.array(list(itertools.product([-1.0, 1.0], repeat=count)))
            reached = np.linalg.norm(matrix[:, list(pattern)] @ signs.T, axis=0).max()
            assert made.sensitivity(pattern) == pytest.approx(reached, rel=1e-12)


@given(data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_no_vectors_of_norm_at_most_one_move_the_sums_further_than_the_sensitivity(data, seed: int) -> None:
    made = data.draw(factorisations(12))
    pattern = data.draw(patterns_of(made))
    columns = strategy(made)[:, list(pattern)]
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((200, len(pattern), 3))
    vectors += draw.uniform(0, 20, (200, 1, 1))  # from independent to almost equal directions
    vectors /= np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-12)
    vectors *= draw.uniform(0, 1, (200, len(pattern), 1)) ** draw.uniform(0, 1, (200, 1, 1))
    moved = np.linalg.norm(columns @ vectors, axis=(1, 2))
    assert moved.max() <= made.sensitivity(pattern) * (1 + 1e-12)
    same = np.broadcast_to([[0.6, 0.0, 0.8]], (len(pattern), 3))
    assert np.linalg.norm(columns @ same) == pytest.approx(made.sensitivity(pattern), rel=1e-12)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_an_observer_of_the_released_sums_tells_a_client_apart_no_better_than_a_gaussian_of_noise_z(data) -> None:
    """By the covariance of what is released, W·Wᵀ, and with no use of C beyond the scale."""
    made = data.draw(factorisations(24))
    pattern = data.draw(patterns_of(made))
    assume(pattern)
    z, clip_norm = 0.8, 3.0
    scale = z * made.worst([pattern]) * clip_norm
    released = scale**2 * increments(made) @ increments(made).T
    moved = np.zeros(made.rounds)
    moved[list(pattern)] = clip_norm
    mu = math.sqrt(moved @ np.linalg.solve(released, moved))
    assert mu == pytest.approx(1 / z, rel=1e-9)
    assert epsilon_gaussian(mu, 1e-5) == pytest.approx(epsilon_gaussian(1 / z, 1e-5), rel=1e-6)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_client_that_stays_away_is_covered_by_its_pattern(data) -> None:
    made = data.draw(factorisations())
    pattern = data.draw(patterns_of(made))
    fewer = tuple(round for round in pattern if data.draw(st.booleans()))
    assert made.sensitivity(fewer) <= made.sensitivity(pattern) * (1 + 1e-12)
    assert made.worst([fewer, pattern, fewer]) == made.sensitivity(pattern)


@given(
    band=st.integers(1, 12),
    start=st.integers(0, 5),
    gaps=st.lists(st.integers(0, 6), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_rounds_a_band_apart_add_up_like_independent_ones(band: int, start: int, gaps: list[int]) -> None:
    pattern = tuple(itertools.accumulate((band + gap for gap in gaps), initial=start))
    root = BandedSquareRoot(rounds=pattern[-1] + band, band=band)
    column = max(root.sensitivity((round,)) for round in range(root.rounds))
    assert root.sensitivity(pattern) == pytest.approx(math.sqrt(len(pattern)) * column, rel=1e-12)
    # Where the run ends inside a column, part of that column is never released.
    shorter = BandedSquareRoot(rounds=pattern[-1] + 1, band=min(band, pattern[-1] + 1))
    assert shorter.sensitivity(pattern) <= root.sensitivity(pattern) * (1 + 1e-12)


def test_a_client_in_every_round_that_a_band_overlaps_pays_for_the_overlap() -> None:
    root = BandedSquareRoot(rounds=8, band=2)
    assert root.sensitivity((2, 3)) == pytest.approx(math.sqrt(1 + 1.5**2 + 0.5**2))
    assert root.sensitivity((2, 3)) > math.sqrt(2) * root.sensitivity((2,))


@pytest.mark.parametrize("rounds", [1, 2, 10, 64, 1000])
def test_independent_noise_has_the_error_of_a_random_walk(rounds: int) -> None:
    independent = BandedSquareRoot(rounds=rounds, band=1)
    assert independent.rms_error() == pytest.approx(math.sqrt((rounds + 1) / 2))
    every = [range(rounds)]
    assert independent.rms_error(every) == pytest.approx(math.sqrt(rounds * (rounds + 1) / 2))


@pytest.mark.parametrize("levels", [0, 1, 3, 6, 10])
def test_a_full_tree_has_the_known_error(levels: int) -> None:
    """Half of the bits below 2^m are set, so m·2^(m−1) nodes in all prefixes but the last, which is one."""
    tree = Tree(rounds=2**levels)
    assert tree.rms_error() == pytest.approx(math.sqrt(levels / 2 + 2.0**-levels))
    assert tree.worst([(round,) for round in range(tree.rounds)]) == pytest.approx(math.sqrt(levels + 1))


@pytest.mark.parametrize("rounds", [16, 64, 200])
def test_the_square_root_beats_the_tree_and_comes_close_to_what_is_possible(rounds: int) -> None:
    once = [(round,) for round in range(rounds)]
    root = BandedSquareRoot(rounds=rounds, band=rounds).rms_error(once)
    tree, independent = Tree(rounds=rounds).rms_error(once), BandedSquareRoot(rounds=rounds, band=1).rms_error(once)
    assert lower_bound(rounds) < root < 1.11 * lower_bound(rounds)
    assert root < tree
    assert (tree < independent) == (rounds > 16)
    # B = C there, so no row of B is longer than C's first column; c_k² < 1/(πk) bounds that (Wallis).
    assert root <= 1 + (1 + math.log(rounds)) / math.pi


@given(band=st.integers(1, 30), participations=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_the_banded_error_is_sandwiched_as_the_theory_says(band: int, participations: int) -> None:
    """Below: any factorisation. Above: the two terms of Kalinin & Lampert, √(k·T log p/p) and √k·log p, constants too.

    B's coefficients are C's before the band ends and never more than 2·c_p after it, where 2·c_p ≤ 2/√(πp).
    """
    rounds = band * participations
    root = BandedSquareRoot(rounds=rounds, band=band)
    spread = [range(shift, rounds, band) for shift in range(band)]
    coefficients = np.sqrt(np.diff(root.prefix_variances(), prepend=0.0))
    whole = np.array([binom(2 * k, k) / 4.0**k for k in range(min(rounds, 500))])
    assert (coefficients[:500] >= whole * (1 - 1e-9)).all()
    assert (coefficients[band:] <= 2 / math.sqrt(math.pi * band)).all()
    column = 1 + (1 + math.log(band)) / math.pi
    above = math.sqrt(participations * column * (column + 2 * rounds / (math.pi * band)))
    assert lower_bound(rounds, participations) * (1 - 1e-9) <= root.rms_error(spread) <= above


def test_bands_help_a_client_that_returns_more_than_the_full_root_or_none() -> None:
    spread = [range(shift, 128, 16) for shift in range(16)]
    error = {band: BandedSquareRoot(rounds=128, band=band).rms_error(spread) for band in (1, 16, 128)}
    assert error[16] < error[128] < error[1]
    assert error[16] < Tree(rounds=128).rms_error(spread)


def test_a_client_in_every_round_is_best_served_by_independent_noise() -> None:
    every = [range(64)]
    independent = BandedSquareRoot(rounds=64, band=1).rms_error(every)
    assert independent < BandedSquareRoot(rounds=64, band=2).rms_error(every)
    assert 2.9 * independent < Tree(rounds=64).rms_error(every)


def run(made: Factorisation, replicas: int, size: int) -> Tensor:
    """The prefix noise [rounds, replicas, size] of a loop as an engine has it: seeds, state and nothing else."""

    def normal(key: int) -> Tensor:
        draws = [generator(7, "server noise", replica, key) for replica in range(replicas)]
        return torch.stack([torch.randn(size, generator=draw) for draw in draws])

    held = torch.zeros(made.memory, replicas, size)  # w of one round ago first
    total, seen = torch.zeros(replicas, size), []
    for round in range(made.rounds):
        noise = torch.zeros(replicas, size)
        for key, coefficient in made.fresh(round):
            noise += coefficient * normal(key)
        for k, coefficient in made.past(round):
            noise += coefficient * held[k - 1]
        held = torch.cat([noise[None], held])[: made.memory]
        total = total + noise
        seen.append(total)
    return torch.stack(seen)


@pytest.mark.parametrize(
    "made",
    [Tree(rounds=24), BandedSquareRoot(rounds=24, band=5), BandedSquareRoot(rounds=24, band=24)],
    ids=["tree", "banded", "full"],
)
def test_the_noise_of_a_run_has_the_covariance_that_the_papers_give_it(made: Factorisation) -> None:
    """Each of 300 entries within 6 standard deviations, √((Σ_ii Σ_jj + Σ_ij²)/n): false alarm below 1e-6 a case."""
    noise = run(made, 4, 5000).flatten(1).double().numpy()
    count = noise.shape[1]
    wanted = prefixes(made) @ prefixes(made).T
    spread = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / count)
    misses = np.abs(noise @ noise.T / count - wanted) / spread
    assert misses.max() < 6
    # The test can tell: independent noise of the same strength in each prefix is far outside.
    assert (np.abs(np.diag(np.diag(wanted)) - wanted) / spread).max() > 20


def test_a_round_needs_no_matrix_however_long_the_run() -> None:
    tree, root = Tree(rounds=10**6), BandedSquareRoot(rounds=10**6, band=20)
    assert tree.fresh(10**6 - 1)[0] == (10**6 - 1, 1.0)
    assert len(root.past(10**6 - 1)) == root.memory == 19
    far = (0, 500_000, 999_000)
    assert root.sensitivity(far) == pytest.approx(math.sqrt(3) * root.sensitivity((0,)))
    assert tree.sensitivity((0,)) == pytest.approx(math.sqrt(20))


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: Tree(rounds=0), "rounds is 0; it must be a whole number at least 1"),
        (lambda: Tree(rounds=2.5), "rounds is 2.5"),  # type: ignore[arg-type]
        (lambda: BandedSquareRoot(rounds=8, band=0), "band is 0; it must be a whole number at least 1 and at most 8"),
        (lambda: BandedSquareRoot(rounds=8, band=9), "band is 9"),
        (lambda: Tree(rounds=8).fresh(8), "round is 8; it must be a whole number at least 0 and at most 7"),
        (lambda: Tree(rounds=8).past(-1), "round is -1"),
        (lambda: BandedSquareRoot(rounds=8, band=2).fresh(8), "round is 8"),
        (lambda: BandedSquareRoot(rounds=8, band=2).past(8), "round is 8"),
        (lambda: Tree(rounds=8).sensitivity((1, 9)), "a participation pattern's round is 9"),
        (lambda: Tree(rounds=8).sensitivity((-1,)), "a participation pattern's round is -1"),
        (lambda: Tree(rounds=8).sensitivity((1, 2, 1)), r"the participation pattern \(1, 2, 1\) names a round twice"),
        (lambda: Tree(rounds=8).worst([]), "no participation pattern was given"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(act, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_client_that_never_takes_part_has_nothing_to_hide() -> None:
    for made in all_of(8):
        assert made.sensitivity(()) == 0.0
