"""The sum of a round in the clear: that of its aggregator, however the cohort is cut."""

from __future__ import annotations

import pytest
import torch

from fl_core.aggregation import Krum, Mean, Median, TrimmedMean
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.scaffold import SCAFFOLD
from fl_core.cohort import Cohort, tiles
from fl_core.participation import PoissonClients, Uniform
from fl_core.partition import NOBODY
from fl_core.sampling import Poisson, Shuffled
from fl_core.seeds import generator
from fl_core.summing import in_the_clear
from tests.fl_core.test_engine import FEDBUFF, PARTIAL, federation, play

BY_EXAMPLES = FedAvg(sampler=Poisson(batch_size=2), lr=0.2, weighting="by_examples")


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": BY_EXAMPLES},
        {"algorithm": BY_EXAMPLES, "participation": PoissonClients(rate=0.4)},
        {"algorithm": SCAFFOLD(sampler=Shuffled(batch_size=2), lr=0.1), "participation": Uniform(cohort=4)},
        {"fleet": PARTIAL},
        {"fleet": FEDBUFF},
    ],
    ids=["by examples", "ragged", "scaffold", "losses", "fedbuff"],
)
def test_a_recorded_sum_is_the_weighted_mean_of_the_recorded_updates_bit_for_bit(changes):
    for memory in (None, 40_000):
        whole = federation(**changes, memory=memory)
        _, seen = play(whole)
        for round, updates in seen.updates.items():
            expected = Mean()(updates, seen.weights[round], whole.cohort(round).present)
            assert updates
            for name, value in expected.items():
                assert torch.equal(seen.sums[round][name], value)


@pytest.mark.parametrize("aggregator", [Mean(), Median(), TrimmedMean(trim=0.2), Krum(byzantine=1)])
@pytest.mark.parametrize("lanes", [1, 4, 7, 100])
def test_tiles_add_up_to_the_aggregator_s_own_result_in_bits(aggregator, lanes):
    draw = generator(0, "updates")
    clients = torch.arange(7).repeat(3, 1)
    clients[1, 6] = NOBODY
    shares = torch.rand(3, 7, generator=draw) * (clients != NOBODY)
    cohort = Cohort(clients, clients, shares, shares, clients[:, :0])
    updates = {"w": torch.randn(3, 7, 4, 2, generator=draw), "b": torch.randn(3, 7, generator=draw)}
    updates["w"][1, 6] = updates["b"][1, 6] = 0
    summing = in_the_clear(aggregator, cohort, shares)
    for tile in tiles(3, 7, lanes):
        summing.add(tile, {name: value[tile] for name, value in updates.items()})
    total, expected = summing.total(), aggregator(updates, shares, cohort.present)
    assert total.keys() == expected.keys()
    assert all(torch.equal(total[name], value) for name, value in expected.items())


def test_nobody_s_updates_have_no_sum():
    nobody = torch.zeros(2, 0, dtype=torch.long)
    cohort = Cohort(nobody, nobody, nobody.double(), nobody.float(), nobody)
    for aggregator in (Mean(), Median()):
        assert in_the_clear(aggregator, cohort, torch.zeros(2, 0)).total() == {}


def test_the_view_of_sums_shows_what_they_were_divided_by_and_who_dropped_out():
    whole = federation(algorithm=BY_EXAMPLES, fleet=PARTIAL)
    _, seen = play(whole)
    lost = 0
    for round in range(whole.rounds):
        present = whole.cohort(round).present
        sizes = whole.held_counts.gather(1, seen.cohorts[round].clamp(min=0)) * present
        assert torch.equal(seen.divisors[round], sizes.sum(1).double())
        for row, dropped in enumerate(seen.dropped[round].tolist()):
            turn = whole.turn(row, round)
            assert [client for client in dropped if client != NOBODY] == sorted(
                set(turn.asked.tolist()) - set(turn.clients.tolist())
            )
            lost += sum(client != NOBODY for client in dropped)
    assert lost >= 5
