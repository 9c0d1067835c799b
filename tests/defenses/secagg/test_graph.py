"""The sparse graph: its chances by exact fractions, its shape by counting, and what the window of survivors buys."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2

from defenses.secagg import graph
from defenses.secagg.graph import Graph, Sparse, arrange, sparse
from fl_core.errors import InputError


def exact_tail(at_least: int, drawn: int, marked: int, population: int) -> Fraction:
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, drawn - x)
        for x in range(max(0, at_least), min(drawn, marked) + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


def log2(chance: Fraction) -> float:
    return math.log2(chance.numerator) - math.log2(chance.denominator) if chance else -math.inf


@pytest.mark.parametrize(
    ("at_least", "drawn", "marked", "population"),
    [(3, 10, 5, 40), (0, 10, 5, 40), (6, 10, 5, 40), (40, 60, 100, 1000), (9, 10, 12, 14), (30, 50, 3000, 60_000)],
)
def test_tails_are_the_exact_hypergeometric_ones(at_least, drawn, marked, population):
    found = graph.tail(at_least, drawn, marked, population, graph.log_factorials(population))
    assert found == pytest.approx(log2(exact_tail(at_least, drawn, marked, population)), rel=1e-9, abs=1e-9)


def lost(n: int, k: int, t: int, window: int, bad: int, gone: int, malicious: bool) -> tuple[Fraction, Fraction]:
    """The union bounds on losing privacy and on losing the sum, as the module's docstring puts them."""
    half, left = k // 2, n - gone
    both_secrets = n * exact_tail(t, k, bad, left - 1)
    too_few = n * exact_tail(k - t + 1, k, gone, n - 1)
    if malicious:
        return both_secrets + n * exact_tail(window, half, bad, left), too_few + n * exact_tail(
            half - window + 1, half, gone, n
        )
    return both_secrets + n * exact_tail(half, half, bad + gone, n), too_few


@pytest.mark.parametrize("malicious", [False, True])
@pytest.mark.parametrize(("n", "corrupt", "dropout"), [(100, 0.1, 0.1), (300, 0.05, 0.1), (1000, 0.1, 0.05)])
def test_the_designed_graph_keeps_its_promises_and_no_sparser_one_does(n, corrupt, dropout, malicious):
    made = sparse(n, corrupt=corrupt, dropout=dropout, malicious=malicious, grinding_bits=30)
    bad, gone, k = int(corrupt * n), int(dropout * n), made.neighbours
    least = 40 + (30 if malicious else 0)
    assert made.quorum == n - gone
    privacy, total = lost(n, k, made.threshold, made.window, bad, gone, malicious)
    assert log2(privacy) <= -least
    assert log2(total) <= -20
    assert made.insecurity == pytest.approx(log2(privacy) + (30 if malicious else 0))
    assert made.failure == pytest.approx(log2(total))
    sparser = [
        lost(n, k - 2, t, window, bad, gone, malicious)
        for t in range(1, k - 1)
        for window in (range(1, k // 2) if malicious else [0])
    ]
    # Not by one bit less: half of the chance is set aside for the window.
    assert not any(log2(privacy) <= -least - 1 and log2(total) <= -20 for privacy, total in sparser)


def test_more_trials_at_the_graph_cost_a_malicious_server_s_clients_more_neighbours():
    degrees = [
        sparse(1000, corrupt=0.1, dropout=0.05, malicious=True, grinding_bits=bits).neighbours for bits in (0, 40, 80)
    ]
    assert degrees == sorted(set(degrees))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"clients": 10, "corrupt": 0.4}, "no graph of 10 clients is sparser"),
        ({"corrupt": 0.34, "malicious": True}, "below 0.333"),
        ({"dropout": 0.4, "malicious": True}, "below 0.333"),
        ({"clients": 1 << 17}, "at most 65536"),
        ({"corrupt": -0.1}, "corrupt is -0.1"),
    ],
)
def test_a_graph_that_cannot_be_is_an_input_error(fields, said):
    with pytest.raises(InputError, match=said):
        sparse(**{"clients": 200, "corrupt": 0.1, "dropout": 0.1} | fields)


def test_everyone_has_k_neighbours_and_is_theirs():
    members = [client for client in range(40) if client % 7]
    made = arrange(b"s" * 32, members, 6)
    assert sorted(made.ring) == members
    near = {client: made.neighbours(client) for client in members}
    for client, others in near.items():
        assert list(others) == sorted(set(others))
        assert len(others) == 6
        assert client not in others
        assert all(client in near[other] for other in others)


@pytest.mark.parametrize("degree", [None, 4, 6, 100])
def test_few_clients_are_all_linked(degree):
    made = arrange(b"s" * 32, [3, 5, 8, 9, 11], degree)
    assert made.neighbours(8) == (3, 5, 9, 11)
    assert arrange(b"s" * 32, [4], degree).neighbours(4) == ()


def test_the_graph_follows_from_the_session_and_is_another_in_each():
    assert arrange(b"s" * 32, range(50), 6) == arrange(b"s" * 32, range(50), 6)
    assert len({arrange(bytes([session]) * 32, range(50), 6).ring for session in range(100)}) == 100


def test_neighbours_are_drawn_evenly():
    # Chi-square over who is whose neighbour in 4000 sessions of 12 clients; false alarm 1e-6, with fixed sessions. Each
    # session's links are not independent, but every client has 4, so the counts spread less than if they were.
    counts = np.zeros((12, 12))
    for session in range(4000):
        made = arrange(session.to_bytes(32, "little"), range(12), 4)
        for client in range(12):
            counts[client, list(made.neighbours(client))] += 1
    pairs = counts[np.triu_indices(12, 1)]
    assert pairs.sum() == 4000 * 12 * 4 / 2
    assert ((pairs - pairs.mean()) ** 2 / pairs.mean()).sum() < chi2.isf(1e-6, len(pairs) - 1)


def in_a_row(ring: tuple[int, ...], half: int, chosen: set[int]) -> int:
    return min(len(chosen & {ring[(at + step) % len(ring)] for step in range(half)}) for at in range(len(ring)))


@pytest.mark.parametrize("degree", [2, 6, 10, 38, 40])
def test_the_fewest_in_a_row_are_counted_round_the_ring(degree):
    rng = random.Random(degree)
    made = arrange(b"r" * 32, range(41), degree)
    for _ in range(50):
        chosen = set(rng.sample(range(41), rng.randrange(42)))
        # Among all, where all are linked.
        assert made.fewest_in_a_row(chosen) == in_a_row(made.ring, 41 if degree == 40 else degree // 2, chosen)


def pieces(made: Graph, kept: set[int]) -> int:
    """Into how many parts those who are kept fall."""
    names = sorted(kept)
    places = {client: at for at, client in enumerate(names)}
    edges = [(places[one], places[other]) for one in names for other in made.neighbours(one) if other in kept]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    matrix = coo_array((np.ones(len(edges)), (np.array(rows, int), np.array(columns, int))), shape=(len(names),) * 2)
    return int(connected_components(matrix, directed=False)[0])


def test_whoever_is_dropped_the_honest_survivors_stay_linked_if_every_window_holds_more_than_can_collude():
    # A server that drops as many as the window lets it: a run of clients in a row, or the neighbours of one.
    rng = random.Random(0)
    made = arrange(b"w" * 32, range(60), 12)
    tried = 0
    for _ in range(400):
        corrupt = set(rng.sample(range(60), rng.randrange(1, 12)))
        window = 1 + max(len(corrupt & {made.ring[(at + step) % 60] for step in range(6)}) for at in range(60))
        survivors = set(range(60))
        order = list(made.ring) if rng.random() < 0.5 else [*made.neighbours(made.ring[0]), *made.ring]
        for client in order:
            if client in survivors - corrupt and made.fewest_in_a_row(survivors - {client}) >= window:
                survivors.remove(client)
        assert pieces(made, survivors - corrupt) == 1
        tried += len(survivors) < 50
    assert tried > 100


def test_without_the_window_a_server_cuts_one_client_off_by_dropping_its_neighbours():
    made = arrange(b"w" * 32, range(60), 12)
    survivors = set(range(60)) - set(made.neighbours(7))
    assert pieces(made, survivors) == 2
    assert made.fewest_in_a_row(survivors) == 0


def test_a_share_of_the_clients_is_not_rounded_down_by_floating_point():
    assert 0.29 * 100 < 29
    assert sparse(100, corrupt=0.1, dropout=0.29).quorum == 71


def test_the_design_says_what_it_is_for():
    made = sparse(200, corrupt=0.05, dropout=0.05)
    assert isinstance(made, Sparse)
    assert (made.clients, made.corrupt, made.dropout, made.window) == (200, 0.05, 0.05, 0)
