"""Thresholds on the target's output: entropies, thresholds of classes, the predicted label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.entropy import entropy, is_right, modified_entropy
from attacks.membership.label_only import AugmentationRobustness, Gap
from attacks.membership.shadow_classifier import CLASSIFIERS, ShadowClassifier
from attacks.membership.threshold import STATISTICS, LossThreshold, Threshold, best_threshold
from attacks.metrics import auc
from tests.oracles.membership import naive_modified_entropy, probabilities, problem
from tests.signals import signals_of


def test_entropies_are_the_papers_where_probabilities_are_exact():
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.standard_normal((2, 40, 5)), rng.integers(0, 5, 40)
    p = np.array([[probabilities(row) for row in own] for own in logits])
    np.testing.assert_allclose(entropy(logits, labels), -(p * np.log(p)).sum(axis=-1), rtol=1e-9)
    expected = [[naive_modified_entropy(row, label) for row, label in zip(own, labels, strict=True)] for own in logits]
    np.testing.assert_allclose(modified_entropy(logits, labels), expected, rtol=1e-9)
    np.testing.assert_array_equal(is_right(logits, labels), p.argmax(axis=-1) == labels)


def test_entropies_keep_the_order_of_models_too_sure_for_probabilities():
    # The label ahead by 40 to 300 nats: every probability rounds to 0 or 1.
    ahead = np.array([40.0, 60.0, 100.0, 300.0])
    logits = np.stack([ahead, np.zeros(4), np.zeros(4)], axis=-1)
    for found in (entropy(logits, np.zeros(4, dtype=int)), modified_entropy(logits, np.zeros(4, dtype=int))):
        assert (np.diff(found) < 0).all()
        assert (found > 0).all()
    # Surely wrong: −(1 − p_y) log p_y − log(1 − p) of the other one, each the lead.
    np.testing.assert_allclose(modified_entropy(logits[:, :2], np.ones(4, dtype=int)), 2 * ahead, rtol=1e-12)


def test_extreme_and_equal_logits_have_finite_entropies():
    logits = np.array([[0.0, 0.0, 0.0], [800.0, 0.0, -800.0], [-800.0, 800.0, 800.0]])
    labels = np.array([0, 2, 0])
    assert entropy(logits, labels)[0] == pytest.approx(np.log(3))
    assert np.isfinite(entropy(logits, labels)).all()
    assert np.isfinite(modified_entropy(logits, labels)).all()
    np.testing.assert_array_equal(is_right(logits, labels), [True, False, False])  # of equal ones the first


def test_without_classes_loss_and_confidence_rank_alike():
    one = problem(seed=1)
    by_loss, by_confidence = (
        attack.run(one.target, one.knowledge) for attack in (LossThreshold(), Threshold(statistic="confidence"))
    )
    np.testing.assert_array_equal(np.argsort(by_loss), np.argsort(by_confidence))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_best_of_all(seed: int):
    rng = np.random.default_rng(seed)
    signals, members = rng.integers(0, 12, 60).astype(float), rng.random(60) < 0.5  # with ties

    def gain(threshold: float) -> float:
        called = signals >= threshold
        return float(called[members].mean() - called[~members].mean())

    assert gain(best_threshold(signals, members)) == pytest.approx(max(map(gain, np.unique(signals))), abs=1e-12)


def test_a_threshold_for_each_class_is_the_papers_verdict_and_cures_shifted_classes():
    # Class 1 scores 10 nats more by itself: one threshold for both classes calls its members and non-members alike.
    rng = np.random.default_rng(2)
    labels, members = rng.integers(0, 2, 2000), rng.random((9, 2000)) < 0.5
    confidence = rng.standard_normal((9, 2000)) + 2 * members + 10 * (labels == 1)
    logits = np.zeros((9, 2000, 2))
    np.put_along_axis(logits, labels[None, :, None].repeat(9, 0), confidence[..., None], axis=-1)
    signals = signals_of(logits, labels)
    known = MembershipKnowledge(shadows=Shadows(signals=signals.select(slice(-1)), members=members[:-1]))
    pooled, own = (
        Threshold(statistic="confidence", per_class=choice).run(signals.select([-1]), known) for choice in (False, True)
    )
    assert auc(pooled, members[-1]) < 0.75
    assert auc(own, members[-1]) > 0.9
    # Midway between the classes' members and non-members, at 1 and 11: Φ(1) of either are called rightly.
    assert ((own > 0) == members[-1]).mean() == pytest.approx(0.841, abs=0.03)
    few = Threshold(statistic="confidence", per_class=True, max_rows=2000).run(signals.select([-1]), known)
    np.testing.assert_allclose(few, own, atol=1.0)


def test_a_class_that_the_shadows_do_not_show_on_both_sides_has_the_pooled_threshold():
    one = problem(seed=3, examples=400)
    shadows = one.knowledge.shadows
    assert shadows is not None
    members = shadows.members.copy()
    members[:, one.target.labels == 0] = True
    scores = LossThreshold(per_class=True).run(
        one.target, MembershipKnowledge(shadows=Shadows(signals=shadows.signals, members=members))
    )
    pooled = best_threshold(-shadows.signals.loss[:, 0], members)
    expected = -one.target.loss[0, 0] - pooled
    np.testing.assert_array_equal(scores[one.target.labels == 0], expected[one.target.labels == 0])
    assert (scores[one.target.labels == 1] != expected[one.target.labels == 1]).all()


def test_every_statistic_is_a_field_of_the_signals():
    one = problem(seed=4)
    for name, (field, sign) in STATISTICS.items():
        scores = Threshold(statistic=name).run(one.target, one.knowledge)  # type: ignore[arg-type]
        np.testing.assert_array_equal(scores, sign * getattr(one.target, field)[0, 0])


# Labels alone


def test_label_only_attacks_see_nothing_but_who_is_classified_right():
    one = problem(seed=5, queries=4)
    logits = one.target.logits
    sharper = one.target.select([0])
    sharper = type(sharper)(labels=sharper.labels, logits=np.where(logits == logits.max(-1, keepdims=True), 9.0, 0.0))
    for attack in (Gap(), AugmentationRobustness()):
        before, after = attack.run(one.target, one.knowledge), attack.run(sharper, one.knowledge)
        np.testing.assert_array_equal(before, after)
    right = logits[0].argmax(axis=-1) == one.target.labels
    np.testing.assert_array_equal(Gap().run(one.target, one.knowledge), right[0])
    np.testing.assert_allclose(AugmentationRobustness().run(one.target, one.knowledge), right.mean(axis=0))


def test_the_gap_attack_s_advantage_is_the_gap_of_accuracies():
    one = problem(seed=6, examples=2000, gain=2.0)
    scores = Gap().run(one.target, one.knowledge)
    gap = scores[one.truth].mean() - scores[~one.truth].mean()
    assert gap > 0.1
    assert auc(scores, one.truth) == pytest.approx((1 + gap) / 2, abs=1e-12)


# Shadow classifiers


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_every_shadow_classifier_learns_how_members_look_and_repeats_itself(classifier: str):
    one = problem(seed=7, examples=600, gain=4.0, shadows=5)
    attack: Any = ShadowClassifier(classifier=classifier, max_rows=1500, min_rows=10_000)
    scores = attack.run(one.target, one.knowledge)
    assert auc(scores, one.truth) > 0.65
    np.testing.assert_array_equal(scores, attack.run(one.target, one.knowledge))
