"""Fixed point: what rounding costs at most, that no sum overflows, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from defenses.discrete_gaussian import discrete_gaussian
from defenses.discrete_gaussian import plan as noise_plan
from defenses.secagg.encoding import FixedPoint, OnGrid, shortened, signed, wrapped
from fl_core.errors import InputError
from fl_core.seeds import generator


def draws(count: int, purpose: str = "fixed point") -> list[torch.Generator]:
    return [generator(0, purpose, lane) for lane in range(count)]


@given(
    clients=st.integers(2, 50),
    bits=st.integers(8, 48),
    clip=st.floats(1e-3, 1e3),
    width=st.floats(0.01, 3),
    seed=st.integers(0, 10**6),
)
def test_the_decoded_sum_is_within_its_bound_of_the_clipped_vectors_sum(clients, bits, clip, width, seed):
    found = FixedPoint(clients=clients, bits=bits, clip=clip)
    values = width * clip * torch.randn(clients, 40, generator=generator(seed, "values"), dtype=torch.float64)
    words = wrapped(found.encode(values, draws(clients, f"coins {seed}")), bits)
    total = torch.zeros_like(words[0])
    for row in words:
        total += row  # which wraps around
    decoded = found.decode(signed(total, bits))
    off = (decoded - values.clamp(-clip, clip).sum(0)).abs()
    assert off.max() <= found.worst_error(clients) + 1e-12 * clip * clients
    assert found.worst_error(clients) == pytest.approx(clients * clip / ((2 ** (bits - 1) - 1) // clients))


def test_rounding_is_unbiased_and_its_root_mean_square_reaches_its_bound():
    # Half-way between two steps the error's deviation is the largest: √n γ/2. Mean and variance, false alarm 1e-6 each.
    found = FixedPoint(clients=10, bits=12, clip=1.0)
    values = torch.full((10, 20_000), 5.5 * found.step, dtype=torch.float64)
    off = found.decode(found.encode(values, draws(10)).sum(0)) - values.sum(0)
    rms = found.rms_error(10)
    assert rms == pytest.approx(math.sqrt(10) * found.step / 2)
    assert 2 * norm.sf(abs(float(off.mean())) / rms * math.sqrt(20_000)) > 1e-6
    # The variance of a square of a binomial's deviation is below that of a normal one's, 2.
    assert abs(float((off / rms).square().mean()) - 1) < 4.9 * math.sqrt(2 / 20_000)
    elsewhere = torch.full((10, 20_000), 5.1 * found.step, dtype=torch.float64)
    off = found.decode(found.encode(elsewhere, draws(10)).sum(0)) - elsewhere.sum(0)
    assert 2 * norm.sf(abs(float(off.mean())) / (0.6 * rms) * math.sqrt(20_000)) > 1e-6
    assert float(off.square().mean().sqrt()) == pytest.approx(0.6 * rms, rel=0.03)


@pytest.mark.parametrize("bits", [4, 16, 31, 32, 33, 48])
def test_a_sum_of_all_that_is_clipped_does_not_overflow(bits):
    found = FixedPoint(clients=5, bits=bits, clip=0.3)
    for sign in (-1, 1):
        values = torch.full((5, 1000), sign * 1e9)
        steps = found.encode(values, draws(5))
        assert (steps == sign * found.levels).all(), "at the clip there is nothing to round"
        total = wrapped(steps, bits).sum(0).to(wrapped(steps, bits).dtype)
        assert torch.equal(signed(total, bits), steps.sum(0))
        assert float(found.decode(signed(total, bits))[0]) == pytest.approx(sign * 5 * 0.3, rel=1e-12)


def test_the_clip_itself_is_never_rounded_beyond():
    # A coin that is added to a number of 47 bits rounds up to 1 once in 2^6 times; compared, it never does.
    found = FixedPoint(clients=2, bits=48, clip=1.0)
    assert found.encode(torch.ones(1, 100_000), draws(1)).max() == found.levels


@given(bits=st.integers(1, 62), seed=st.integers(0, 10**6))
def test_words_and_signed_integers_are_two_ways_to_write_one_residue(bits, seed):
    half = 1 << (bits - 1)
    steps = torch.randint(-half, half, (200,), generator=generator(seed, "steps"))
    words = wrapped(steps, bits)
    assert words.dtype == (torch.int32 if bits <= 32 else torch.int64)
    assert torch.equal(signed(words, bits), steps)
    assert torch.equal(words.long() & ((1 << bits) - 1), steps & ((1 << bits) - 1))
    assert torch.equal(wrapped(steps + 2 * half, bits), words), "the same residue"


def test_each_lane_is_rounded_by_its_own_draws():
    found = FixedPoint(clients=4, bits=10, clip=1.0)
    values = torch.rand(4, 50, generator=generator(0, "values"))
    together = found.encode(values, draws(4))
    alone = torch.cat([found.encode(values[lane : lane + 1], draws(4)[lane : lane + 1]) for lane in (3, 2, 1, 0)])
    assert torch.equal(together, alone.flip(0))


def test_noise_on_a_grid_comes_through_exactly():
    for bits in (16, 24, 32, 48):
        grid = noise_plan(noise_multiplier=1.0, clip_norm=0.3, clients=10, dimension=64, bits=bits)
        found = OnGrid(grid=grid)
        most = int((1 << (bits - 1)) // 10)
        whole = torch.randint(-most, most, (10, 64), generator=generator(bits, "whole"))
        whole += discrete_gaussian((10, 64), grid.sigma, generator(bits, "noise"))
        sent = whole.double() * grid.granularity
        assert torch.equal(found.encode(sent, draws(10)), whole)
        assert (found.bits, found.worst_error(10), found.rms_error(10)) == (bits, 0.0, 0.0)
        decoded = found.decode(signed(wrapped(whole.sum(0), bits), bits))
        assert torch.equal(decoded, whole.sum(0).double() * grid.granularity)


def test_what_is_off_the_noise_s_grid_is_a_fault_and_not_rounded():
    grid = noise_plan(noise_multiplier=1.0, clip_norm=0.3, clients=10, dimension=64, bits=32)
    with pytest.raises(RuntimeError, match="off its noise's grid"):
        OnGrid(grid=grid).encode(torch.full((1, 64), 1.5 * grid.granularity, dtype=torch.float64), draws(1))
    # In floats a number of 30 bits is not what it was: hence `DPFedAvgShares.under_masks`.
    whole = torch.full((1, 64), 2**30 + 7)
    with pytest.raises(RuntimeError, match="off its noise's grid"):
        OnGrid(grid=grid).encode((whole.double() * grid.granularity).float(), draws(1))


@given(step=st.floats(1e-6, 1), seed=st.integers(0, 10**6))
def test_a_shortened_vector_is_no_longer_than_before_wherever_it_is_rounded_to(step, seed):
    values = torch.randn(3, 17, generator=generator(seed, "values"), dtype=torch.float64)
    short = shortened(values, step)
    corners = torch.where(short >= 0, (short / step).ceil(), (short / step).floor()) * step  # the longest
    assert (corners.norm(dim=1) <= values.norm(dim=1) * (1 + 1e-12)).all()
    moved = (short - values).norm(dim=1)
    assert (moved <= step * math.sqrt(17) * (1 + 1e-9)).all()
    assert torch.equal(shortened(torch.zeros(1, 4), step), torch.zeros(1, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": 1}, "defense.bits is 1"),
        ({"bits": 49}, "defense.bits is 49"),
        ({"bits": 3.5}, "defense.bits is 3.5"),
        ({"clip": 0}, "defense.clip is 0"),
        ({"clip": float("nan")}, "defense.clip is nan"),
        ({"bits": 3}, "defense.bits is 3, too few for a sum over 20 clients; it must be at least 6"),
        ({"bits": 10, "largest_weight": 100}, "over 20 clients with weights up to 100; it must be at least 11"),
    ],
)
def test_what_cannot_hold_the_sum_is_refused_in_one_line(changes, says):
    with pytest.raises(InputError, match=says) as refused:
        FixedPoint(**({"clients": 20, "bits": 16, "clip": 1.0} | changes))
    assert "\n" not in str(refused.value)


def test_the_fewest_bits_that_a_refusal_names_will_do():
    for clients in range(2, 70):
        for weight in (1, 2, 7, 100):
            for bits in range(2, 20):
                try:
                    found = FixedPoint(clients=clients, bits=bits, clip=1.0, largest_weight=weight)
                except InputError as refused:
                    named = int(str(refused).rsplit(" ", 1)[1])
                    assert named > bits
                    FixedPoint(clients=clients, bits=named, clip=1.0, largest_weight=weight)
                    continue
                assert clients * found.levels < 2 ** (bits - 1)
                assert clients * weight < 2**bits


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_no_number_is_refused(wrong):
    grid = noise_plan(noise_multiplier=1.0, clip_norm=0.3, clients=10, dimension=64, bits=20)
    for found in (FixedPoint(clients=2, bits=16, clip=1.0), OnGrid(grid=grid)):
        with pytest.raises(InputError, match=r"nan or inf.*lower algorithm\.lr"):
            found.encode(torch.tensor([[0.0, wrong]]), draws(1))
