"""Attacks on what training shows, without shadows: closed forms, naive readings of the formulas, nothing on nulls."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from attacks.base import MembershipKnowledge
from attacks.membership.cosine import StepCosine, SumCosine, UpdateCosine
from attacks.membership.fedmia import FedMIA
from attacks.membership.loss_series import ConfidenceTrend, LossSeries
from attacks.membership.observed import SecureServerSignals, ServerSignals
from attacks.membership.reading import narrow
from attacks.membership.signals import loss
from attacks.membership.threshold import LossThreshold
from attacks.metrics import auc
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.fedsgd import FedSGD
from fl_core.architectures import MLP
from fl_core.errors import InputError
from fl_core.sampling import Shuffled
from tests.training_signals import by_hand, last_of, noise, played, seen_by_server

ATTACKS: list[Any] = [
    LossSeries(),
    ConfidenceTrend(),
    StepCosine(),
    StepCosine(rounds="last"),
    SumCosine(),
    UpdateCosine(),
    UpdateCosine(rounds="last"),
    FedMIA(measurement="loss"),
    FedMIA(measurement="cosine"),
]
each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


def test_no_two_attacks_share_a_name():
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@each_attack
def test_a_null_target_gives_auc_one_half(attack: Any):
    # The mean of 20 targets of 1,000 examples has the standard error .0041; 4 of them: one false alarm in 15,000.
    signals, members, owners = by_hand(20, 1000, gain=0.0, seed=1, rounds=3)
    areas = []
    for target in range(20):
        scores = attack.run(signals.select([target]), MembershipKnowledge(owners=owners))
        areas.append(auc(scores, members[target]))
    assert np.mean(areas) == pytest.approx(0.5, abs=4 * 0.0041)


@each_attack
@pytest.mark.parametrize("known", [True, False], ids=["owners known", "owners unknown"])
def test_members_score_higher_where_they_stand_out(attack: Any, known: bool):
    signals, members, owners = by_hand(1, 1000, gain=2.0, seed=2)
    scores = attack.run(signals, MembershipKnowledge(owners=owners if known else None))
    assert scores.dtype == np.float64
    if attack != ConfidenceTrend():  # by hand nothing rises from round to round
        assert auc(scores, members[0]) > 0.6


@each_attack
def test_clients_that_take_part_seldom_leave_every_example_a_score(attack: Any):
    signals, _, owners = by_hand(1, 200, gain=1.0, seed=3, rate=0.3)
    for knowledge in (MembershipKnowledge(owners=owners), MembershipKnowledge()):
        assert np.isfinite(attack.run(signals, knowledge)).all()


def test_loss_series_is_the_mean_negated_loss_of_all_models_and_the_trend_a_fitted_line():
    signals, _, _ = by_hand(1, 30, gain=1.0, seed=4)
    confidence = np.concatenate([signals.round_confidence[0], signals.confidence[0, :1]])
    np.testing.assert_allclose(LossSeries().run(signals, MembershipKnowledge()), -loss(confidence).mean(0))
    slopes = [np.polyfit(np.arange(6), confidence[:, example], 1)[0] for example in range(30)]
    np.testing.assert_allclose(ConfidenceTrend().run(signals, MembershipKnowledge()), slopes, atol=1e-12)


# Cosines


def test_after_one_step_on_the_whole_client_its_members_are_told_apart_exactly():
    # Softmax regression on noise of 784 pixels around 0: gradients of two examples have a cosine of about 1/28, and the
    # update is the mean of about 15 members'. So a member's product is 1/15 of its length² and a non-member's
    # 1/(28 √15) of it, give or take: 7 standard deviations apart.
    data = noise(120, side=28, classes=10)
    members = torch.rand(1, 120, generator=torch.Generator().manual_seed(0)) < 0.5
    model = MLP((1, 28, 28), 10, hidden=())
    signals = seen_by_server(
        played(members, data, 4, model=model, algorithm=FedSGD(sampler=Shuffled(batch_size=None), lr=0.1), rounds=1)
    )
    owners = np.arange(120) % 4
    scores = UpdateCosine().run(signals, MembershipKnowledge(owners=owners))
    truth = members[0].numpy()
    assert auc(scores, truth) == 1.0
    # One round: the average is the last. Of all clients together the same, since other clients lean less.
    np.testing.assert_array_equal(UpdateCosine(rounds="last").run(signals, MembershipKnowledge(owners=owners)), scores)
    assert auc(UpdateCosine().run(signals, MembershipKnowledge()), truth) == 1.0


def test_the_cosine_of_a_client_with_one_member_is_one():
    data = noise(4)
    members = torch.tensor([[True, True, True, False]])
    signals = seen_by_server(
        played(members, data, 2, algorithm=FedSGD(sampler=Shuffled(batch_size=None), lr=0.1), rounds=1)
    )
    scores = UpdateCosine().run(signals, MembershipKnowledge(owners=np.array([0, 1, 0, 1])))
    assert scores[1] == pytest.approx(1.0, abs=1e-5)
    assert scores[3] < 0.999


def test_the_last_round_is_the_last_in_which_the_client_took_part():
    signals, _, owners = by_hand(1, 50, gain=1.0, seed=5, rate=0.5)
    scores = UpdateCosine(rounds="last").run(signals, MembershipKnowledge(owners=owners))
    for example, client in enumerate(owners):
        there = np.flatnonzero(signals.took_part[0, :, client])
        expected = signals.client_product[0, there[-1], client, example] / 2.0 if len(there) else 0.0
        assert scores[example] == pytest.approx(expected)


def test_a_model_that_does_not_move_leaves_cosines_of_zero():
    signals, _, _ = by_hand(1, 20, gain=1.0, seed=6)
    still = dataclasses.replace(signals, step_product=0 * signals.step_product, step_norm=0 * signals.step_norm)
    np.testing.assert_array_equal(StepCosine().run(still, MembershipKnowledge()), 0.0)


# FedMIA


def naive_fedmia(signals: ServerSignals, owners: np.ndarray, measurement: str) -> list[float]:
    """Zhu et al. 2025, one example, one round and one client at a time."""
    found = []
    for example, target in enumerate(owners):
        chances = []
        for round in range(signals.took_part.shape[1]):
            measured = {}
            for client in np.flatnonzero(signals.took_part[0, round]):
                at = 0, round, client
                if measurement == "loss":
                    measured[client] = -np.log1p(np.exp(-signals.client_confidence[(*at, example)]))
                else:
                    size = signals.client_norm[at] * signals.client_gradient_norm[(*at, example)]
                    measured[client] = signals.client_product[(*at, example)] / size
            others = [value for client, value in measured.items() if client != target]
            if target in measured and len(others) >= 2:
                spread = np.sqrt(np.var(others) + 1e-8)
                chances.append(norm.cdf(measured[target], np.mean(others), spread))
        found.append(np.mean(chances) if chances else 0.5)
    return found


@pytest.mark.parametrize("measurement", ["loss", "cosine"])
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_fedmia_agrees_with_a_naive_reading_of_its_formulas(measurement: Any, rate: float):
    signals, _, owners = by_hand(1, 60, gain=1.0, seed=7, rate=rate)
    scores = FedMIA(measurement=measurement).run(signals, MembershipKnowledge(owners=owners))
    np.testing.assert_allclose(scores, naive_fedmia(signals, owners, measurement), atol=1e-9)


def test_without_an_owner_fedmia_takes_the_most_suspicious_client():
    signals, _, owners = by_hand(1, 40, gain=1.0, seed=8)
    each = [naive_fedmia(signals, np.full(40, client), "cosine") for client in range(6)]
    known = owners.copy()
    known[:20] = -1
    scores = FedMIA().run(signals, MembershipKnowledge(owners=known))
    np.testing.assert_allclose(scores[:20], np.max(each, axis=0)[:20], atol=1e-9)
    np.testing.assert_allclose(scores[20:], [each[client][20 + at] for at, client in enumerate(owners[20:])], atol=1e-9)


def test_fedmia_needs_three_clients_in_a_round():
    signals, _, owners = by_hand(1, 40, gain=1.0, seed=9, clients=2)
    with pytest.raises(InputError, match="no recorded round had more than 2"):
        FedMIA().run(signals, MembershipKnowledge(owners=owners))


@pytest.mark.heavy
def test_before_models_learn_by_heart_updates_say_more_than_losses():
    # Seed 0; 5 clients of about 12 noise pictures each, 4 rounds of an epoch. Measured: the last
    # model's loss .65, loss series .61, FedMIA-I and II .73, average update cosine .79, average step cosine .85.
    data = noise(120)
    members = torch.rand(1, 120, generator=torch.Generator().manual_seed(0)) < 0.5
    algorithm = FedAvg(sampler=Shuffled(batch_size=6), lr=0.05)
    model = MLP((1, 8, 8), 3, hidden=(64,))
    signals = seen_by_server(played(members, data, 5, model=model, algorithm=algorithm, rounds=4))
    owners, truth = np.arange(120) % 5, members[0].numpy()
    area = {a.name: auc(a.run(signals, MembershipKnowledge(owners=owners)), truth) for a in ATTACKS}
    area["last"] = auc(LossThreshold().run(signals, MembershipKnowledge()), truth)
    for name in ("average update cosine", "FedMIA-I", "FedMIA-II"):
        assert area[name] > max(area["last"], area["loss series"]) + 0.05


# Who may ask


@pytest.mark.parametrize(
    "owners", [np.zeros(3, dtype=int), np.full(40, 6), np.full(40, -2)], ids=["too few", "too large", "negative"]
)
@pytest.mark.parametrize("attack", [UpdateCosine(), FedMIA()], ids=lambda attack: attack.name)
def test_owners_that_do_not_fit_are_refused(attack: Any, owners: np.ndarray):
    signals, _, _ = by_hand(1, 40, gain=1.0, seed=10)
    with pytest.raises(InputError, match="give one for each of 40 examples, from 0 to 5 or -1"):
        attack.run(signals, MembershipKnowledge(owners=owners))


@each_attack
def test_each_attack_refuses_every_view_that_is_narrower_than_it_needs(attack: Any):
    signals, members, owners = by_hand(3, 30, gain=1.0, seed=11)
    target, knowledge = last_of(signals, members, owners)
    wider = [kind for kind in ServerSignals.__mro__ if issubclass(attack.needs, kind) and kind is not attack.needs]
    for kind in (kind for kind in wider if kind is not object):
        with pytest.raises(InputError) as raised:
            attack.run(narrow(target, kind), knowledge)
        hidden = ": secure aggregation hides each client's update" if kind.__name__ == "SecureServerSignals" else ""
        assert str(raised.value) == (
            f"{attack.name} needs the view {attack.needs.view.view}; "
            f"it was given {kind.view.view}, which does not show that{hidden}"
        )
    assert np.isfinite(attack.run(narrow(target, attack.needs), knowledge)).all()


def test_fedmia_under_secure_aggregation_is_an_error_that_says_why():
    signals, _, owners = by_hand(1, 30, gain=1.0, seed=12)
    with pytest.raises(InputError, match="FedMIA-II needs the view server; it was given secure_server, which does not"):
        FedMIA().run(narrow(signals, SecureServerSignals), MembershipKnowledge(owners=owners))
