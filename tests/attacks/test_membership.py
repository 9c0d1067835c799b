"""Signals and membership attacks against closed forms: the optimum on Gaussian means, nothing on nulls."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.blind import Blind
from attacks.membership.lira import LiRA, lira_scores
from attacks.membership.observed import ServerSignals
from attacks.membership.shadow_classifier import ShadowClassifier, prediction_features
from attacks.membership.signals import loss, scaled_confidence
from attacks.membership.threshold import LossThreshold
from attacks.metrics import auc, tpr_at_fpr
from fl_core.errors import InputError
from tests.oracles.membership import exactly_half, gaussian_means
from tests.signals import signals_of

ATTACKS = [LossThreshold(), LiRA(), LiRA(fixed_variance=False), ShadowClassifier(), Blind()]
NEEDING_SHADOWS = ATTACKS[1:]


def replicas(
    number: int, examples: int, gain: float, seed: int, classes: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [number, examples, classes], Bernoulli members, labels: each example has its own difficulty."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    members = rng.random((number, examples)) < 0.5
    logits = rng.standard_normal((number, examples, classes))
    logits[:, np.arange(examples), labels] += 3 + 2 * rng.standard_normal(examples) + gain * members
    return logits, members, labels


def run_on_last(attack: Any, logits: np.ndarray, members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    signals = signals_of(logits, labels)
    shadows = Shadows(signals=signals.select(slice(-1)), members=members[:-1])
    scores: np.ndarray = attack.run(signals.select([-1]), MembershipKnowledge(shadows=shadows))
    return scores


# Signals


def test_signals_agree_with_the_probabilities_where_those_are_exact():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((3, 7, 4)), rng.integers(0, 4, 7)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    own = p[:, np.arange(7), labels]
    np.testing.assert_allclose(loss(scaled_confidence(logits, labels)), -np.log(own), rtol=1e-12)
    np.testing.assert_allclose(scaled_confidence(logits, labels), np.log(own) - np.log1p(-own), atol=1e-12)


def test_signals_keep_the_order_of_models_too_sure_for_probabilities():
    logits = np.array([[50.0, 0.0], [60.0, 0.0], [800.0, 0.0], [0.0, 800.0]])
    labels = np.zeros(4, dtype=int)
    confidence = scaled_confidence(logits, labels)
    np.testing.assert_array_equal(confidence, [50.0, 60.0, 800.0, -800.0])
    np.testing.assert_allclose(loss(confidence)[:2], np.exp([-50.0, -60.0]), rtol=1e-12)
    assert loss(confidence)[3] == 800.0


def test_signals_do_not_change_when_all_logits_shift():
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((5, 3)), rng.integers(0, 3, 5)
    np.testing.assert_allclose(scaled_confidence(logits + 1e4, labels), scaled_confidence(logits, labels), atol=1e-10)


def test_signals_leave_the_logits_as_they_were():
    logits, labels = np.random.default_rng(2).standard_normal((4, 3)), np.zeros(4, dtype=int)
    before = logits.copy()
    scaled_confidence(logits, labels)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_by_their_index(bad: float):
    logits = np.zeros((2, 4, 3))
    logits[1, 2, 0] = bad
    with pytest.raises(InputError, match=r"logits\[1, 2, 0\] is .*(nan|inf), and 1 of 24 entries"):
        scaled_confidence(logits, np.zeros(4, dtype=int))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((4, 3)), np.array([0, 1, 3, 0]), r"labels\[2\] is 3; the logits have classes 0 to 2"),
        (np.zeros((4, 3)), np.array([0, 1, -1, 0]), r"labels\[2\] is -1"),
        (np.zeros((4, 3)), np.array([0, 1]), "one row a label"),
        (np.zeros((4, 1)), np.zeros(4, dtype=int), "at least 2 classes"),
        (np.zeros((4, 3)), np.zeros(4), "whole numbers"),
        (np.zeros((0, 3)), np.zeros(0, dtype=int), "at least one"),
    ],
)
def test_labels_that_do_not_fit_are_refused(logits: np.ndarray, labels: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        scaled_confidence(logits, labels)


def test_signals_of_some_replicas_are_those_of_all_with_what_was_computed():
    logits, _, labels = replicas(5, 20, gain=0.0, seed=22)
    signals = signals_of(logits, labels, public_logits=logits[:, :7], public_labels=labels[:7])
    some = signals.select([3, 1])
    np.testing.assert_array_equal(some.confidence[:, 0], scaled_confidence(logits[[3, 1]], labels))
    whole = signals.confidence
    again = signals.select([3, 1])
    np.testing.assert_array_equal(vars(again)["confidence"], whole[[3, 1]])
    np.testing.assert_array_equal(again.public_confidence, some.confidence[:, 0, :7])
    assert again.labels is signals.labels


# Every attack


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_a_null_target_gives_auc_one_half(attack: Any):
    # Replicas alike IN and OUT. The standard error is (12·2000)^-½·2 ≈ .0129 for one target, so .0029 for
    # the mean of 20 independent ones; 4 of them: a false alarm in 15,000, five attacks.
    areas = []
    for seed in range(20):
        logits, members, labels = replicas(9, 2000, gain=0.0, seed=seed)
        areas.append(auc(run_on_last(attack, logits, members, labels), members[-1]))
    assert np.mean(areas) == pytest.approx(0.5, abs=4 * 0.0029)


def test_attacks_with_shadows_beat_the_loss_threshold_and_blind_stays_at_chance():
    logits, members, labels = replicas(33, 4000, gain=1.5, seed=3)
    area = {a.name: auc(run_on_last(a, logits, members, labels), members[-1]) for a in ATTACKS if a != ATTACKS[2]}
    assert area["LiRA"] > area["loss threshold"] + 0.1
    assert area["shadow classifier"] > 0.55
    assert abs(area["blind (design only)"] - 0.5) < 4 * 0.0091  # standard error with 2,000 a side


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_scores_cannot_depend_on_the_target_s_own_membership(attack: Any):
    # No argument carries it: signals, which have no such field, and what the attacker has of its own.
    assert list(inspect.signature(attack.run).parameters) == ["signals", "knowledge"]
    assert "members" not in {f.name for kind in (ServerSignals, MembershipKnowledge) for f in dataclasses.fields(kind)}
    logits, members, labels = replicas(9, 300, gain=1.0, seed=4)
    flipped = members.copy()
    flipped[-1] = ~flipped[-1]
    np.testing.assert_array_equal(
        run_on_last(attack, logits, members, labels), run_on_last(attack, logits, flipped, labels)
    )


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_one_example_s_score_does_not_depend_on_how_the_target_treats_the_others(attack: Any):
    logits, members, labels = replicas(9, 300, gain=1.0, seed=5)
    other = logits.copy()
    other[-1, 1:] += np.random.default_rng(6).standard_normal(other[-1, 1:].shape)
    one, two = (run_on_last(attack, x, members, labels)[0] for x in (logits, other))
    assert one == two


@pytest.mark.parametrize("attack", NEEDING_SHADOWS, ids=lambda a: a.name)
def test_an_attack_without_the_shadows_it_needs_says_so(attack: Any):
    logits, members, labels = replicas(3, 20, gain=1.0, seed=7)
    signals = signals_of(logits, labels)
    with pytest.raises(InputError, match="needs shadows"):
        attack.run(signals.select([-1]), MembershipKnowledge())
    with pytest.raises(InputError, match="do not fit"):
        attack.run(signals.select([-1]), MembershipKnowledge(shadows=Shadows(signals=signals, members=members[:2])))


@pytest.mark.parametrize("attack", [LiRA(), ShadowClassifier()], ids=lambda a: a.name)
def test_shadows_that_all_trained_on_everything_are_refused(attack: Any):
    logits, members, labels = replicas(5, 20, gain=1.0, seed=8)
    with pytest.raises(InputError, match="with and without"):
        run_on_last(attack, logits, np.ones_like(members), labels)


def test_the_loss_threshold_is_the_negative_loss_and_needs_no_shadows():
    logits, _, labels = replicas(1, 20, gain=0.0, seed=9)
    scores = LossThreshold().run(signals_of(logits, labels), MembershipKnowledge())
    np.testing.assert_array_equal(scores, -loss(scaled_confidence(logits[0], labels)))


# LiRA


@pytest.mark.parametrize(("fixed_variance", "expected"), [(True, 0.084), (False, 0.076)])
def test_lira_on_gaussian_means_approaches_the_optimum_and_never_beats_it(fixed_variance: bool, expected: float):
    # μ = 1: AUC Φ(1/√2) = .7602, TPR at 1% .0924. With 15,000 a side the standard errors are .0027 and
    # .0056 (the latter with the threshold's own), the bounds 4 of them: a false alarm in 30,000 each.
    # 128 shadows still cost some power at 1%, to .084 and, with each example's own variances, .076 (means of
    # six such draws).
    areas, powers = [], []
    for shadows in (8, 32, 128):
        signals, members = gaussian_means(1.0, shadows, 30_000, seed=10)
        scores = lira_scores(signals[-1], signals[:-1], members[:-1], fixed_variance=fixed_variance)
        areas.append(auc(scores, members[-1]))
        powers.append(tpr_at_fpr(scores, members[-1], 0.01))
    assert max(areas) <= 0.7602 + 4 * 0.0027
    assert max(powers) <= 0.0924 + 4 * 0.0056
    assert areas[0] < areas[1] < areas[2]
    assert areas[2] == pytest.approx(0.7602, abs=0.01)
    assert powers[0] < powers[2]
    assert powers[2] == pytest.approx(expected, abs=4 * 0.0056)


def test_lira_with_the_true_means_is_the_likelihood_ratio():
    # Shadows placed symmetrically around known means with a known spread, so every estimate is exact.
    spread = np.array([-1.0, 0.0, 1.0])  # variance 1 with one degree of freedom spent
    shadows = np.concatenate([2.0 + spread, 0.0 + 2 * spread])[:, None].repeat(2, axis=1)
    members = np.array([True] * 3 + [False] * 3)[:, None].repeat(2, axis=1)
    target = np.array([1.5, -0.5])
    expected = norm.logpdf(target, 2, 1) - norm.logpdf(target, 0, 2)
    for fixed_variance in (True, False):
        scores = lira_scores(target, shadows, members, fixed_variance=fixed_variance)
        np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_the_fixed_variance_spends_one_degree_of_freedom_an_example():
    # With 4 shadows an example's residuals around its own mean shrink the naive variance by half; the
    # score's slope in the target's signal, (μ_in − μ_out)/σ², shows whether that was corrected. 20,000
    # examples: the standard error is .7%, the bound 4.
    rng = np.random.default_rng(11)
    members = np.array([True, True, False, False])[:, None].repeat(20_000, axis=1)
    shadows = rng.standard_normal(members.shape) * 3 + members + 10 * rng.standard_normal(20_000)
    means = [shadows[members[:, 0] == side].mean(axis=0) for side in (True, False)]
    slope = lira_scores(means[0], shadows, members) - lira_scores(means[1], shadows, members)
    # log ratio at μ_in minus at μ_out is ½ gap² (1/σ²_in + 1/σ²_out) = gap²/9.
    gap = (means[0] - means[1]) ** 2
    assert gap.sum() / slope.sum() == pytest.approx(9.0, rel=0.03)


def test_an_example_without_in_shadows_borrows_the_average_gap():
    spread = np.array([-1.0, 1.0, -1.0, 1.0])[:, None]
    members = np.array([[True, True, False, False], [False] * 4, [True] * 4]).T
    # Example 0: means 5 and 3; example 1 is only OUT at 10, so its IN mean is 12; example 2 only IN at 7:
    # OUT mean 5.
    shadows = spread + np.array([[5.0, 5.0, 3.0, 3.0], [10.0] * 4, [7.0] * 4]).T
    middle = lira_scores(np.array([4.0, 11.0, 6.0]), shadows, members)
    # Halfway between the means the two squared distances agree, and what is left is the same for every
    # example.
    np.testing.assert_allclose(middle, middle[0])
    higher = lira_scores(np.array([4.5, 11.5, 6.5]), shadows, members)
    np.testing.assert_allclose(higher, higher[0])
    assert higher[0] > middle[0]


def test_two_complementary_shadows_are_enough_for_a_finite_score():
    shadows = np.array([[2.0, 0.5, 3.0], [1.0, 2.5, 0.0]])
    members = np.array([[True, False, True], [False, True, False]])
    for fixed_variance in (True, False):
        scores = lira_scores(np.array([2.0, 2.5, 3.0]), shadows, members, fixed_variance=fixed_variance)
        assert np.isfinite(scores).all()
        assert (scores > lira_scores(np.array([1.0, 0.5, 0.0]), shadows, members)).all()


def test_constant_signals_give_finite_scores_without_preference():
    members = np.random.default_rng(12).random((6, 50)) < 0.5
    scores = lira_scores(np.full(50, 3.0), np.full((6, 50), 3.0), members)
    np.testing.assert_array_equal(scores, 0.0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (np.ones((3, 4), dtype=bool), "none of 4 examples has both among 3 shadows"),
        (np.zeros((3, 4), dtype=bool), "none of 4 examples has both"),
        (np.ones((3, 5), dtype=bool), "do not fit"),
    ],
)
def test_lira_refuses_shadows_of_one_kind(members: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        lira_scores(np.zeros(4), np.zeros((3, 4)), members)


def test_lira_refuses_a_single_shadow_and_signals_that_are_not_finite():
    with pytest.raises(InputError, match="train at least 2"):
        lira_scores(np.zeros(4), np.zeros((1, 4)), np.array([[True, False, True, False]]))
    members = np.array([[True, False], [False, True]])
    with pytest.raises(InputError, match="1 shadow signals are not finite"):
        lira_scores(np.zeros(2), np.array([[0.0, np.inf], [1.0, 2.0]]), members)


# The design's own leak


def blind_auc(shadow_members: np.ndarray, target: np.ndarray) -> float:
    signals = signals_of(np.zeros((len(shadow_members), target.size, 2)), np.zeros(target.size, dtype=int))
    shadows = Shadows(signals=signals, members=shadow_members)
    return auc(Blind().run(signals.select([0]), MembershipKnowledge(shadows=shadows)), target)


@pytest.mark.parametrize("models", [4, 8, 16])
def test_a_target_taken_from_an_exactly_half_design_is_known_without_a_query(models: int):
    # The models left hold an example N/2 − 1 times if the target has it and N/2 times if not.
    members = exactly_half(models, 2000, seed=13)
    assert blind_auc(members[1:], members[0]) == 1.0


@pytest.mark.parametrize("models", [4, 8, 16])
def test_taking_complementary_pairs_out_closes_the_design_s_leak(models: int):
    half = np.random.default_rng(14).random((models // 2, 2000)) < 0.5
    members = np.concatenate([half, ~half])
    left = np.delete(members, [0, models // 2], axis=0)
    assert blind_auc(left, members[0]) == 0.5


@pytest.mark.parametrize("models", [4, 8, 16])
def test_a_bernoulli_design_tells_nothing(models: int):
    # Standard error .0041 with 10,000 a side; 4 of them: a false alarm in 15,000.
    members = np.random.default_rng(15).random((models, 20_000)) < 0.5
    assert blind_auc(members[1:], members[0]) == pytest.approx(0.5, abs=4 * 0.0041)


@pytest.mark.parametrize(("models", "area"), [(4, 0.413), (8, 0.476), (16, 0.4916)])
def test_an_exactly_half_design_biases_lira_on_null_signals_and_bernoulli_does_not(models: int, area: float):
    # A member has one IN shadow fewer, so its IN mean is noisier and its score lower: below one half, not
    # above. The three areas were measured once with this estimator on other draws. 50,000 a side: standard
    # error .0018, 4 of them.
    rng = np.random.default_rng(16)
    signals = rng.standard_normal((models, 100_000))
    members = exactly_half(models, 100_000, seed=17)
    assert auc(lira_scores(signals[0], signals[1:], members[1:]), members[0]) == pytest.approx(area, abs=0.0073)
    members = rng.random((models, 100_000)) < 0.5
    assert auc(lira_scores(signals[0], signals[1:], members[1:]), members[0]) == pytest.approx(0.5, abs=0.0073)


# Shadow classifier


def test_features_are_sorted_log_probabilities_the_label_s_and_its_confidence():
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]]))
    features = prediction_features(logits, np.array([1]))
    expected = [np.log(0.4), np.log(0.3), np.log(0.2), np.log(0.2), np.log(0.2 / 0.8)]
    np.testing.assert_allclose(features, [expected], atol=1e-12)


def test_the_shadow_classifier_is_deterministic_and_subsampling_costs_little():
    logits, members, labels = replicas(25, 1437, gain=2.0, seed=18)
    some = run_on_last(ShadowClassifier(max_rows=8000), logits, members, labels)
    np.testing.assert_array_equal(some, run_on_last(ShadowClassifier(max_rows=8000), logits, members, labels))
    every = run_on_last(ShadowClassifier(max_rows=10**9), logits, members, labels)
    assert auc(some, members[-1]) == pytest.approx(auc(every, members[-1]), abs=0.01)


def test_a_class_with_too_few_rows_is_scored_by_the_pooled_classifier():
    logits, members, labels = replicas(9, 400, gain=2.0, seed=19, classes=4)
    labels = np.where(labels == 3, 2, labels)
    labels[0] = 3  # one example, 8 rows
    scores = run_on_last(ShadowClassifier(), logits, members, labels)
    assert np.isfinite(scores).all()
    pooled = run_on_last(ShadowClassifier(min_rows=10**6), logits, members, labels)
    assert scores[0] == pooled[0]
    assert (scores[labels == 2] != pooled[labels == 2]).all()


def test_a_class_whose_rows_are_all_in_is_scored_by_the_pooled_classifier():
    logits, members, labels = replicas(9, 400, gain=2.0, seed=20, classes=4)
    members[:, labels == 0] = True
    pooled = run_on_last(ShadowClassifier(min_rows=10**6), logits, members, labels)
    scores = run_on_last(ShadowClassifier(), logits, members, labels)
    np.testing.assert_array_equal(scores[labels == 0], pooled[labels == 0])


def test_the_shadow_classifier_works_with_two_classes():
    logits, members, labels = replicas(17, 1000, gain=2.0, seed=21, classes=2)
    assert auc(run_on_last(ShadowClassifier(), logits, members, labels), members[-1]) > 0.55


def test_the_optimum_of_the_gaussian_oracle_is_the_table_s():
    assert float(ndtr(1 / np.sqrt(2))) == pytest.approx(0.7602, abs=5e-5)
    assert float(ndtr(norm.ppf(0.01) + 1)) == pytest.approx(0.0924, abs=5e-5)
