"""Scores in closed form equal the papers' formulas read one example at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attacks.base import MembershipKnowledge
from attacks.membership.bavaria import BaVarIA, log_student_tail
from attacks.membership.calibration import AttackR, DifficultyCalibration
from attacks.membership.lira import LiRA
from attacks.membership.moments import first, moments
from attacks.membership.rmia import RMIA
from tests.oracles.membership import (
    Problem,
    bernoulli,
    complementary_pairs,
    naive_attack_r,
    naive_bavaria,
    naive_difficulty,
    naive_lira,
    naive_rmia,
    problem,
)


def with_two_of_each(replicas: int, examples: int, seed: int) -> np.ndarray:
    """Coins, but for two shadows that have every example and two that have none."""
    members = bernoulli(replicas, examples, seed)
    members[:4] = np.array([True, True, False, False])[:, None]
    return members


@pytest.fixture(params=[0, 1])
def some(request: Any) -> Problem:
    return problem(members=with_two_of_each(12, 40, request.param), examples=40, seed=request.param, public=30)


def scores(attack: Any, one: Problem) -> np.ndarray:
    found: np.ndarray = attack.run(one.target, one.knowledge)
    assert found.dtype == np.float64
    return found


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_lira(some: Problem, online: bool, fixed: bool):
    found = scores(LiRA(online=online, fixed_variance=fixed), some)
    np.testing.assert_allclose(found, naive_lira(some, online=online, fixed=fixed), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("online", [True, False])
def test_lira_over_every_query_is_the_mean_of_each_one_s_own(some: Problem, online: bool):
    found = scores(LiRA(online=online, every_query=True), some)
    each = [naive_lira(some, online=online, fixed=True, query=query) for query in (0, 1)]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(("gamma", "a", "references"), [(1.0, 0.3, None), (2.0, 0.0, None), (1.3, 1.0, 1), (1, 0.5, 2)])
def test_rmia(some: Problem, online: bool, gamma: float, a: float, references: int | None):
    found = scores(RMIA(online=online, gamma=gamma, offline_a=a, references=references), some)
    expected = naive_rmia(some, online=online, gamma=gamma, a=a, references=references)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < expected.mean() < 1


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("strength", [1.0, 8.0])
def test_bavaria(some: Problem, online: bool, gaussian: bool, strength: float):
    found = scores(BaVarIA(online=online, gaussian=gaussian, variance_strength=strength), some)
    expected = naive_bavaria(some, online=online, gaussian=gaussian, strength=strength)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_calibrated_losses(some: Problem):
    np.testing.assert_allclose(scores(AttackR(), some), naive_attack_r(some), atol=1e-12)
    np.testing.assert_allclose(scores(DifficultyCalibration(), some), naive_difficulty(some), atol=1e-9)


# What the formulas do at their ends


def test_bavaria_goes_over_from_the_pooled_variance_to_the_example_s_own():
    one = problem(members=with_two_of_each(201, 300, 2), examples=300, seed=2)
    lira = {fixed: scores(LiRA(fixed_variance=fixed), one) for fixed in (True, False)}
    for strength, near, far in ((1e9, True, False), (1e-9, False, True)):
        posterior = scores(BaVarIA(gaussian=True, variance_strength=strength), one)
        distance = {fixed: np.abs(posterior - lira[fixed]).mean() for fixed in (True, False)}
        assert distance[near] < distance[far] / 4


def test_the_student_tail_is_finite_where_its_value_underflows():
    z, freedom = np.array([0.0, 3.0, 50.0, 1e3, 1e6, 1e200]), np.full(6, 130.0)
    logs = log_student_tail(z, freedom)
    assert np.isfinite(logs).all()
    assert (np.diff(logs) < 0).all()
    np.testing.assert_allclose(np.exp(logs[0]), 0.5)
    # Far out the tail falls as a power: by ν·log 1000 between 10³ and 10⁶.
    assert logs[3] - logs[4] == pytest.approx(130 * np.log(1e3), rel=1e-4)


def test_the_student_tail_s_series_meets_the_closed_form_with_one_degree_of_freedom():
    # Cauchy: ½ − arctan(z)/π = arctan(1/z)/π. Where the series takes over, at a tail of 1e-280.
    z = np.array([1e278, 1e281, 1e290])
    np.testing.assert_allclose(log_student_tail(z, np.ones(3)), -np.log(z) - np.log(np.pi), rtol=1e-12)


def test_offline_lira_ranks_members_of_whom_the_survival_underflows():
    one = problem(gain=2000.0, seed=3)
    found = scores(LiRA(online=False), one)[one.truth]
    assert np.isfinite(found).all()
    assert found.min() > 750  # −log of the least double
    assert len(np.unique(found)) == len(found)


def test_offline_lira_is_one_sided():
    # Twice as likely OUT means nothing: a signal far below the OUT mean is the surest non-member.
    low, high = problem(gain=-30.0, seed=4), problem(gain=30.0, seed=4)
    attack = LiRA(online=False)
    assert scores(attack, low)[low.truth].max() < scores(attack, high)[high.truth].min()
    assert scores(attack, low)[low.truth].max() < 1e-3


def test_offline_attacks_do_not_read_the_shadows_that_have_an_example():
    one = problem(members=with_two_of_each(12, 200, 5), examples=200, seed=5)
    shadows = one.knowledge.shadows
    assert shadows is not None
    logits = shadows.signals.logits.copy()
    logits.swapaxes(1, 2)[shadows.members] += np.random.default_rng(6).standard_normal(logits.shape[-1]) * 5
    changed = MembershipKnowledge(
        shadows=type(shadows)(signals=type(shadows.signals)(**{**_given(shadows.signals), "logits": logits}),
                              members=shadows.members)
    )  # fmt: skip
    for attack in (LiRA(online=False), RMIA(online=False), BaVarIA(online=False), AttackR(), DifficultyCalibration()):
        np.testing.assert_allclose(attack.run(one.target, one.knowledge), attack.run(one.target, changed), rtol=1e-10)
    online: Any = LiRA()
    assert (online.run(one.target, one.knowledge) != online.run(one.target, changed)).any()


def _given(signals: Any) -> dict[str, Any]:
    return {name: getattr(signals, name) for name in ("labels", "public_labels", "public_logits")}


def test_rmia_s_references_are_the_first_of_each_kind_and_in_pairs_the_first_pairs():
    pairs = complementary_pairs(8, 50, seed=7)
    np.testing.assert_array_equal(first(pairs, 2) | first(~pairs, 2), np.arange(8)[:, None].repeat(50, 1) < 4)
    few, many = (
        problem(members=np.concatenate([pairs[:count], bernoulli(1, 50, 8)]), examples=50, seed=7) for count in (4, 8)
    )
    # The first four shadows alone, against the first two pairs of eight.
    known, all_of_them = few.knowledge.shadows, many.knowledge.shadows
    assert known is not None
    assert all_of_them is not None
    subset = type(known)(signals=all_of_them.signals.select(slice(0, 4)), members=all_of_them.members[:4])
    for online in (True, False):
        alone = RMIA(online=online, gamma=1.0).run(many.target, MembershipKnowledge(shadows=subset))
        asked = RMIA(online=online, gamma=1.0, references=2).run(many.target, many.knowledge)
        np.testing.assert_allclose(alone, asked, atol=1e-12)


def test_moments_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(9)
    signals, members = 1e6 + rng.standard_normal((9, 2, 101)), rng.random((9, 101)) < 0.5
    whole = moments(signals, members)
    monkeypatch.setattr("attacks.membership.moments.BLOCK", 9 * 2 * 7)
    blocks = moments(signals, members)
    for side in ("inside", "outside"):
        np.testing.assert_allclose(getattr(blocks, side).squares, getattr(whole, side).squares, rtol=1e-12)
        np.testing.assert_array_equal(getattr(blocks, side).mean, getattr(whole, side).mean)
    # A common shift of 10⁶ costs no digits of the spread.
    chosen = members[:, 0]
    expected = ((signals[chosen, 0, 0] - signals[chosen, 0, 0].mean()) ** 2).sum()
    assert whole.inside.squares[0, 0] == pytest.approx(expected, rel=1e-9)
