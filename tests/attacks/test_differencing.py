"""Sums of many rounds solved for single updates: exact where the cohorts tell clients apart, and never beyond."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from attacks.aggregation.differencing import Differencing, participation
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import InputError
from fl_core.participation import Batches, Cyclic, Participation, Swapping, Uniform
from fl_core.sampling import Shuffled
from fl_core.views import Participant, SecureServer
from tests.federations import CLIENTS, federation, flat, play

PARAMETERS = 30


def updates(clients: int, replicas: int = 2, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 3 + torch.randn(replicas, clients, PARAMETERS, generator=draw, dtype=torch.float64)


def observed(sent: Tensor, scheme: Participation, rounds: int, noise: float = 0.0) -> SecureServer:
    """Sums of constant updates `sent` [replicas, clients, parameters], or of one set a round [rounds, ...]."""
    each = sent if sent.dim() == 4 else sent.expand(rounds, *sent.shape)
    replicas, clients = each.shape[1:3]
    draw = torch.Generator().manual_seed(9)
    sums, cohorts = {}, {}
    for round in range(rounds):
        asked = torch.stack([scheme.draw(clients, 0, replica, round) for replica in range(replicas)])
        mean = torch.stack([own[seats].mean(0) for own, seats in zip(each[round], asked, strict=True)])
        mean = mean + noise * torch.randn(mean.shape, generator=draw, dtype=torch.float64)
        sums[round] = {"weight": mean[:, :24].reshape(replicas, 4, 6), "bias": mean[:, 24:]}
        cohorts[round] = asked
    return SecureServer(model={}, models={}, sums=sums, cohorts=cohorts, divisors={}, dropped={})


def recovered(observation: SecureServer, clients: int, attack: Differencing | None = None) -> Tensor:
    return flat((attack or Differencing()).run(observation, clients).updates, 2)


def error(found: Tensor, truth: Tensor) -> float:
    """Relative to how far clients are from their mean: 1 is no better than the mean."""
    apart = (truth - truth.mean(1, keepdim=True)).square().sum(2).mean()
    return float(((found - truth).square().sum(2).mean() / apart).sqrt())


@pytest.mark.parametrize(("scheme", "rounds"), [(Uniform(5), 24), (Swapping(5), 90), (Batches(1, 5), 24)])
def test_constant_updates_are_recovered_to_float_precision_once_the_cohorts_have_full_rank(scheme, rounds):
    truth = updates(12)
    seen = observed(truth, scheme, rounds)
    matrix = participation(seen, 12, range(rounds))
    assert torch.linalg.matrix_rank(matrix).tolist() == [12, 12]
    assert error(recovered(seen, 12, Differencing(ridge=0, trend=0)), truth) < 1e-11
    assert error(recovered(seen, 12), truth) < 1e-6  # with the smallest ridge that is tried
    assert Differencing().run(seen, 12).resolution.numpy() == pytest.approx(1, abs=1e-6)


def test_in_batches_no_number_of_rounds_gives_more_than_the_batches_means():
    scheme, truth = Batches(3, 6), updates(12)
    seen = observed(truth, scheme, 400)
    found = Differencing(ridge=0, trend=0).run(seen, 12)
    # Rank argument: a cohort is a union of batches, so it is constant on each, and so is every combination of cohorts.
    assert torch.linalg.matrix_rank(participation(seen, 12, range(400))).tolist() == [4, 4]
    assert found.resolution.numpy() == pytest.approx(1 / 3, abs=1e-9)
    for replica, estimates in enumerate(flat(found.updates, 2)):
        for batch in scheme.members(12, 0, replica):
            assert torch.allclose(estimates[batch], truth[replica, batch].mean(0).expand(3, -1), atol=1e-10)
    assert error(flat(found.updates, 2), truth) > 0.5


def test_two_rounds_that_differ_by_one_client_give_that_client_s_update_away():
    truth = updates(4, replicas=1)
    cohorts = {0: torch.tensor([[0, 1, 2, 3]]), 1: torch.tensor([[0, 1, 3, -1]])}
    sums = {0: {"w": truth.mean(1)}, 1: {"w": truth[:, [0, 1, 3]].mean(1)}}
    found = Differencing(ridge=0, trend=0).run(
        SecureServer(model={}, models={}, sums=sums, cohorts=cohorts, divisors={}, dropped={}), 4
    )
    assert torch.allclose(found.updates["w"][0, 2], truth[0, 2])
    assert found.resolution[0].numpy() == pytest.approx([1 / 3, 1 / 3, 1, 1 / 3])


@pytest.mark.parametrize(("clients", "groups"), [(12, 3), (12, 4)])
def test_turns_in_blocks_tell_no_two_clients_of_a_block_apart(clients: int, groups: int):
    seen = observed(updates(clients), Cyclic(None, groups=groups), 30)
    found = Differencing(ridge=0, trend=0).run(seen, clients)
    assert found.resolution.numpy() == pytest.approx(groups / clients)


def test_a_client_that_was_never_asked_gets_the_mean_of_the_sums():
    truth = updates(6, replicas=1)
    asked = [torch.tensor([list(pair)]) for pair in itertools.combinations(range(5), 2)]
    sums = {round: {"w": truth[:, pair[0]].mean(1)} for round, pair in enumerate(asked)}
    seen = SecureServer(model={}, models={}, sums=sums, cohorts=dict(enumerate(asked)), divisors={}, dropped={})
    found = Differencing(ridge=0, trend=0).run(seen, 6)
    assert found.resolution[0, 5] == 0
    assert torch.allclose(found.updates["w"][0, 5], torch.stack([one["w"][0] for one in sums.values()]).mean(0))


def test_a_ridge_picked_without_the_truth_beats_plain_least_squares_in_noise():
    truth = updates(12, replicas=6)
    seen = observed(truth, Uniform(5), 14, noise=0.3)
    plain = error(recovered(seen, 12, Differencing(ridge=0, trend=0)), truth)
    picked = error(recovered(seen, 12), truth)
    best = min(
        error(recovered(seen, 12, Differencing(ridge=10.0**-power, trend=0)), truth) for power in range(6)
    )  # in hindsight
    assert picked < plain / 2
    assert picked < 1
    assert picked < 1.3 * best


def test_amplification_is_the_variance_that_an_error_in_every_sum_becomes():
    truth = updates(8, replicas=1) * 0
    attack = Differencing(ridge=1e-3, trend=0)
    seen = observed(truth, Uniform(3), 30, noise=1.0)
    found = attack.run(seen, 8)
    # 30 parameters are as many draws for each of 8 clients: relative deviation √(2/240); false alarm below 1e-4.
    assert (flat(found.updates, 2) - flat(found.updates, 2).mean()).square().mean() == pytest.approx(
        float(found.amplification.mean()), rel=0.5
    )


def test_what_all_updates_share_as_they_drift_is_told_apart_from_what_is_a_client_s_own():
    own, rounds = updates(10, replicas=3), 60
    time = torch.linspace(0, 1, rounds, dtype=torch.float64)
    shared = torch.randn(PARAMETERS, dtype=torch.float64)
    sent = own + 4 * (-2 * time).exp().view(-1, 1, 1, 1) * shared
    seen = observed(sent, Uniform(4), rounds)
    truth = sent.mean(0)
    still = error(recovered(seen, 10, Differencing(trend=0)), truth)
    free = Differencing().run(seen, 10)
    assert (free.trend > 0).all()
    assert error(flat(free.updates, 2), truth) < still / 20


def test_only_the_rounds_that_are_named_are_used():
    truth = updates(12)
    seen = observed(truth, Uniform(5), 40)
    spoilt = dataclasses.replace(
        seen, sums=seen.sums | {0: {name: value + 100 for name, value in seen.sums[0].items()}}
    )
    attack = Differencing(ridge=0, trend=0)
    assert error(flat(attack.run(spoilt, 12, rounds=range(1, 40)).updates, 2), truth) < 1e-11
    assert error(flat(attack.run(spoilt, 12).updates, 2), truth) > 1


def test_the_engine_s_own_masked_sums_give_the_clients_updates_away():
    made = federation(
        algorithm=FedAvg(sampler=Shuffled(batch_size=None, local_steps=1), lr=0.5, server_lr=1e-9),
        participation=Uniform(2),
        rounds=30,
        defense=Defense(),
    )
    _, server = play(made)
    seen = SecureServer(
        model=server.model, models=server.models, sums=server.sums, cohorts=server.cohorts, divisors={}, dropped={}
    )
    truth = torch.zeros(1, CLIENTS, 48, dtype=torch.float64)
    for round, cohort in server.cohorts.items():
        truth[0, cohort[0]] = flat(server.updates[round], 2)[0]
    assert error(recovered(seen, CLIENTS, Differencing(ridge=0, trend=0)), truth) < 1e-4  # sums are single precision


def test_it_refuses_a_view_without_sums_and_no_rounds():
    with pytest.raises(InputError, match="needs the view secure_server; it was given participant"):
        Differencing().run(Participant(model={}, models={}), 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one round"):
        Differencing().run(SecureServer(model={}, models={}, sums={}, cohorts={}, divisors={}, dropped={}), 3)
    with pytest.raises(InputError, match="ridge is -1"):
        Differencing(ridge=-1)
