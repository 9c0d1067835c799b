"""Noise in shares through the engine: what is on the grid, what the sum carries, and what it promises to whom."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scipy.stats import chi2, norm

from defenses.base import Defense
from defenses.discrete_gaussian import concentrated, epsilon_concentrated, rounded_norm
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.statements import PrivacyStatement
from fl_core.aggregation import Median
from fl_core.algorithms.fedavg import FedAvg
from fl_core.defended import Senders
from fl_core.devices import Devices
from fl_core.errors import InputError
from fl_core.federation import run
from fl_core.fleet import Synchronous
from fl_core.participation import Available, Fixed, ParticipationEvent, PoissonClients, Uniform
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.state import State
from tests.federations import black, federation, flat, play, prepared
from tests.plans import plan

CLIP, SIGMA = 0.3, 1.7
VIEWS = ("released_model", "participant", "secure_server", "server")
PLAIN = FedAvg(sampler=Shuffled(batch_size=2), lr=0.5)


def defense(**changes) -> DPFedAvgShares:
    return DPFedAvgShares(**({"delta": 1e-5, "clip_norm": CLIP, "noise_multiplier": SIGMA} | changes))


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_messages_lie_on_the_grid_and_their_sum_fits_its_bits(clipping):
    whole = prepared(defense=defense(clipping=clipping, bits=16), rounds=2, replica_ids=range(2))
    grid = whole.defense.grid
    _, seen = play(whole)
    for updates in seen.updates.values():
        steps = flat(updates, 2) / grid.granularity
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=2e-3)  # float32, up to 2^15 steps
        assert steps.round().sum(1).abs().max() < 2**15
    assert grid.overflow < 1e-9


def test_the_sum_s_noise_has_the_stated_variance_and_each_share_its_part():
    # Zero updates: a coordinate's sum is six independent shares. Beside them, float32.
    _, seen = play(prepared(defense=defense(), data=black(), rounds=3, replica_ids=range(2)))
    shares = torch.stack([flat(updates, 2) for updates in seen.updates.values()])
    for values, deviation in ((shares, SIGMA * CLIP / math.sqrt(6)), (shares.sum(2), SIGMA * CLIP)):
        size, squares = values.numel(), float((values / deviation).square().sum())
        assert 2 * min(chi2.cdf(squares, size), chi2.sf(squares, size)) > 1e-6  # false alarm
        assert 2 * norm.sf(abs(float(values.sum())) / deviation / math.sqrt(size)) > 1e-6
    # Two clients' shares are independent: their products have mean 0; false alarm 1e-6.
    products = (shares[:, :, 0] * shares[:, :, 1]).flatten() * 6 / (SIGMA * CLIP) ** 2
    assert 2 * norm.sf(abs(float(products.sum())) / math.sqrt(len(products))) > 1e-6
    torch.testing.assert_close(flat(seen.sums[0], 1), shares[0].sum(1) / 6, rtol=0, atol=1e-6)


def test_a_rounded_update_is_no_longer_than_the_sensitivity():
    ready = prepared(defense=defense(bits=14)).defense
    grid = ready.grid
    assert grid.sensitivity == rounded_norm(CLIP, grid.granularity, 48) / grid.granularity
    updates = {"1.weight": 100 * torch.randn(40, 3, 16)}
    draws = [generator(0, "shares", lane) for lane in range(40)]
    noiseless = dataclasses.replace(ready, grid=dataclasses.replace(grid, sigma=0.01))  # next to nothing
    sent = noiseless.on_update(updates, Senders({}, draws, 6.0))["1.weight"].flatten(1).double()
    lengths = sent.norm(dim=1) / grid.granularity
    assert (lengths <= grid.sensitivity + 1e-3).all()
    assert (lengths >= 0.9 * CLIP / grid.granularity).all()


@pytest.mark.parametrize("unit", ["client", "example"])
def test_each_view_is_promised_what_the_shares_that_hide_a_client_from_it_give(unit):
    here = plan(rounds=4, patterns=frozenset([(0, 2, 3)]))
    ready = defense().prepare(here)
    grid = ready.grid
    clips = 1 if unit == "client" else 2
    for view, shares in (("released_model", 10), ("secure_server", 10), ("participant", 9), ("server", 1)):
        found = ready.guarantee(view, unit, here)
        assert isinstance(found, PrivacyStatement)
        rho = concentrated(clips * grid.sensitivity, grid.sigma, shares, 50)
        assert found.epsilon == epsilon_concentrated(3 * rho, 1e-5)
        # A Gaussian's zCDP, and a little for the grid.
        gaussian = clips**2 * 10 / shares / (2 * SIGMA**2)
        assert gaussian <= rho <= 1.001 * gaussian
        assert found.relation == ("zero out one client's part" if unit == "client" else "replace one example")
        assert found.sampler == "3 rounds without amplification"
        assert (found.accountant, found.view) == ("zCDP", view)
    epsilons = [ready.guarantee(view, unit, here).epsilon for view in VIEWS]
    assert epsilons[0] == epsilons[2] < epsilons[1] < epsilons[3]


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0, 8.0, 100.0, 500.0])
@pytest.mark.parametrize("cohort", [2.0, 10.0, 100.0])
def test_the_epsilon_that_was_asked_is_reached_from_below_against_a_participant(epsilon, cohort):
    here = plan(cohort=cohort, clients=int(cohort), message=10_000)
    ready = defense(noise_multiplier=None, epsilon=epsilon, bits=24).prepare(here)
    reached = ready.guarantee("participant", "client", here).epsilon
    assert 0.998 * epsilon <= reached <= epsilon
    assert ready.guarantee("secure_server", "client", here).epsilon < reached


def test_given_noise_is_used_and_an_infinite_epsilon_is_no_defence():
    assert defense().prepare(plan()).noise_multiplier == SIGMA
    assert type(defense(noise_multiplier=None).prepare(plan())) is Defense


def test_the_trade_off_bounds_what_the_epsilons_bound():
    ready = defense().prepare(plan())
    mechanism = ready.guarantee("secure_server", "client", plan()).mechanism
    ceiling = mechanism.trade_off()
    for rate in (1e-3, 0.01, 0.1, 0.5):
        # zCDP of a Gaussian is never tighter than the Gaussian itself.
        exact = norm.cdf(norm.ppf(rate) + math.sqrt(20) / SIGMA)
        assert exact - 1e-9 <= ceiling.tpr_at(rate) <= 1


def test_lanes_in_other_groups_and_a_resumed_run_give_the_same_bits():
    whole = prepared(defense=defense(), rounds=3, replica_ids=range(2), backend="loop")
    states: list[State] = []
    done, seen = play(whole, after_round=lambda state: states.append(State.from_tensors(state.tensors())))
    _, grouped = play(dataclasses.replace(whole, memory=1))
    for round in range(3):
        assert torch.equal(seen.updates[round]["1.weight"], grouped.updates[round]["1.weight"])
    again = run(whole, state=states[0])
    assert all(torch.equal(value, again.model[name]) for name, value in done.model.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"participation": PoissonClients(0.5)},
        {"participation": Available(cohort=3, period=4, share=0.5)},
        {"participation": Fixed(cohort=1)},
        {"fleet": Synchronous(devices=Devices(example_seconds=1.0, dropout_after=0.1))},
        {"algorithm": dataclasses.replace(PLAIN, weighting="by_examples"), "sizes": torch.arange(1, 7)},
        {"algorithm": dataclasses.replace(PLAIN, aggregator=Median())},
    ],
    ids=["poisson", "available", "alone", "dropouts", "uneven", "median"],
)
def test_a_federation_that_may_lack_somebody_s_share_is_refused(changes):
    whole = federation(defense=defense(), **changes)
    with pytest.raises(InputError, match=r"set aggregator=mean|needs every client's share") as refused:
        whole.defense.prepare(whole.plan)
    assert "\n" not in str(refused.value)
    ready = defense().prepare(plan(cohort=6.0, message=48))
    with pytest.raises(InputError, match=r"set aggregator=mean|needs every client's share"):
        run(dataclasses.replace(whole, defense=ready))


def test_draws_without_replacement_are_taken_and_not_amplified():
    whole = prepared(defense=defense(), participation=Uniform(cohort=3), rounds=5)
    found = whole.defense.guarantee("released_model", "client", whole.plan)
    assert found.sampler == f"{whole.plan.turns} rounds without amplification"


def test_noise_made_for_another_cohort_or_model_is_refused():
    ready = defense().prepare(plan(cohort=6.0, message=48))
    assert run(federation(defense=ready)).round == 1
    for made in (plan(cohort=5.0, message=48), plan(cohort=6.0, message=49)):
        with pytest.raises(InputError, match="another cohort or model"):
            run(federation(defense=defense().prepare(made)))
    assert ready.prepare(plan(cohort=4.0)).grid.clients == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"clipping": "adaptive"},
        {"bits": 1},
        {"bits": 63},
        {"clip_norm": 0.0},
        {"delta": 0.0},
        {"noise_multiplier": 0.0},
        {"epsilon": 0.0, "noise_multiplier": None},
        {"participation": ParticipationEvent("poisson", 0.1, 20)},
    ],
)
def test_numbers_that_protect_nothing_are_refused_in_one_line(wrong):
    if "participation" in wrong:
        with pytest.raises(InputError, match="needs every client's share"):
            defense().prepare(plan(**wrong, exact=False))
        return
    with pytest.raises(InputError, match=rf"defense\.{next(iter(wrong))}") as refused:
        defense(**wrong)
    assert "\n" not in str(refused.value)


def test_bits_too_few_for_the_noise_are_refused():
    with pytest.raises(InputError, match="bits"):
        defense(bits=4).prepare(plan())
