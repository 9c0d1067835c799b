"""What no attack may answer with a number that means nothing: it refuses, or does what its docstring says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attacks.base import MembershipAttack, MembershipKnowledge, Shadows
from attacks.membership.blind_pictures import ImageStatistics
from attacks.membership.calibration import AttackR, DifficultyCalibration
from attacks.membership.label_only import AugmentationRobustness
from attacks.membership.observed import Signals
from attacks.membership.quantile_regression import QuantileRegression
from attacks.membership.rmia import RMIA
from attacks.membership.shadow_classifier import ShadowClassifier
from attacks.membership.threshold import Threshold
from attacks.membership.tuned import Tuned
from fl_core.errors import InputError
from tests.oracles.attacks import (
    BLIND,
    DESIGN,
    EVERY,
    NEEDING_PICTURES,
    NEEDING_PUBLIC,
    NEEDING_SHADOWS,
    OFFLINE,
    ONLINE,
    WITHOUT_SHADOWS,
)
from tests.oracles.membership import Problem, bernoulli, problem

EXAMPLES = 120


def each(attacks: tuple[MembershipAttack, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("attack", attacks, ids=lambda one: one.name)


def some(**options: Any) -> Problem:
    return problem(examples=EXAMPLES, **options)


def known(one: Problem, **changes: Any) -> MembershipKnowledge:
    return replace(one.knowledge, **changes)


def finite(attack: Any, signals: Signals, knowledge: MembershipKnowledge) -> np.ndarray:
    scores: np.ndarray = attack.run(signals, knowledge)
    assert scores.shape == (EXAMPLES,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    return scores


def refused(attack: Any, signals: Signals, knowledge: MembershipKnowledge, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        attack.run(signals, knowledge)
    assert "\n" not in str(caught.value)


def shadows_of(one: Problem) -> Shadows:
    assert one.knowledge.shadows is not None
    return one.knowledge.shadows


def test_every_attack_has_a_name_of_its_own_and_reads_the_released_model():
    names = [attack.name for attack in EVERY]
    assert len(set(names)) == len(names)
    assert all(attack.needs is Signals for attack in EVERY)
    assert len(EVERY) == len(WITHOUT_SHADOWS) + len(NEEDING_SHADOWS)


@each(EVERY)
def test_good_input_is_scored(attack: Any):
    one = some()
    scores = finite(attack, one.target, one.knowledge)
    assert len(np.unique(scores)) > 1


@each(EVERY)
def test_several_targets_at_once_are_refused(attack: Any):
    one = some()
    refused(attack, one.signals.select([-1, 0]), one.knowledge, r"one target|\[1, queries, examples, classes\]")


@each(EVERY)
def test_a_target_whose_logits_are_not_finite_is_refused(attack: Any):
    one = some()
    logits = one.target.logits.copy()
    logits[0, :, 7, 1] = np.nan
    broken = replace(one.target, logits=logits)
    if attack in BLIND:  # which never look at it
        np.testing.assert_array_equal(finite(attack, broken, one.knowledge), finite(attack, one.target, one.knowledge))
    else:
        refused(attack, broken, one.knowledge, "not finite")


@each(NEEDING_SHADOWS)
def test_a_shadow_whose_logits_are_not_finite_is_refused(attack: Any):
    one = some()
    shadows = shadows_of(one)
    logits = shadows.signals.logits.copy()
    logits[1, :, :, 1] = np.inf
    broken = known(one, shadows=Shadows(signals=replace(shadows.signals, logits=logits), members=shadows.members))
    if attack in BLIND:
        finite(attack, one.target, broken)
    else:
        refused(attack, one.target, broken, "not finite")


@each(tuple(one for one in NEEDING_PUBLIC if isinstance(one, RMIA | QuantileRegression)))
def test_public_logits_that_are_not_finite_are_refused(attack: Any):
    one = some()
    assert one.target.public_logits is not None
    logits = one.target.public_logits.copy()
    logits[0, 3, 0] = np.nan
    refused(attack, replace(one.target, public_logits=logits), one.knowledge, "not finite")


@each(NEEDING_SHADOWS)
def test_an_attack_without_its_shadows_says_so(attack: Any):
    one = some()
    refused(attack, one.target, known(one, shadows=None), "needs .*shadows")
    none = Shadows(signals=one.signals.select([]), members=one.members[:0])
    refused(attack, one.target, known(one, shadows=none), "needs .*shadows")


@each(WITHOUT_SHADOWS)
def test_an_attack_without_shadows_does_not_read_them(attack: Any):
    one = some()
    np.testing.assert_array_equal(
        finite(attack, one.target, one.knowledge), finite(attack, one.target, known(one, shadows=None))
    )


@each(NEEDING_PUBLIC)
def test_an_attack_without_its_public_examples_says_so(attack: Any):
    one = some()
    shadows = shadows_of(one)
    bare = replace(shadows.signals, public_logits=None, public_labels=None)
    less = known(one, shadows=Shadows(signals=bare, members=shadows.members), public_images=None, public_labels=None)
    refused(attack, replace(one.target, public_logits=None, public_labels=None), less, r"public .*set attack\.public")


@each(NEEDING_PICTURES)
def test_an_attack_without_the_candidates_pictures_says_so(attack: Any):
    one = some()
    refused(attack, one.target, known(one, images=None), "picture")
    assert one.knowledge.images is not None
    refused(attack, one.target, known(one, images=one.knowledge.images[:-1]), "picture")


@each(NEEDING_PICTURES)
def test_pixels_that_are_not_finite_are_refused(attack: Any):
    one = some()
    assert one.knowledge.images is not None
    images = one.knowledge.images.copy()
    images[5, 0, 2, 2] = np.nan
    refused(attack, one.target, known(one, images=images), "not finite")


@each(EVERY)
def test_only_robustness_needs_more_than_one_query(attack: Any):
    one = some(queries=1)
    if isinstance(attack, AugmentationRobustness):
        refused(attack, one.target, one.knowledge, "needs augmented queries")
    else:
        finite(attack, one.target, one.knowledge)


ONE_IS_ENOUGH = (AttackR, DifficultyCalibration, ShadowClassifier, Threshold, ImageStatistics, *map(type, DESIGN))
"""With a single shadow these have less to go by, and say in their docstrings what they then do."""


@each(NEEDING_SHADOWS)
def test_a_single_shadow_is_too_few_for_what_needs_both_sides_of_an_example(attack: Any):
    one = some(members=bernoulli(2, EXAMPLES, 1))
    enough = isinstance(attack, ONE_IS_ENOUGH) or (isinstance(attack, RMIA) and not attack.online)
    if enough:
        finite(attack, one.target, one.knowledge)
    else:
        refused(attack, one.target, one.knowledge, "needs|3 shadows")


def all_alike(member: bool) -> Problem:
    members = np.full((7, EXAMPLES), member)
    members[-1] = bernoulli(1, EXAMPLES, 2)
    return some(members=members)


@each(NEEDING_SHADOWS)
def test_shadows_that_trained_on_everything_are_refused(attack: Any):
    one = all_alike(True)
    if attack in DESIGN:  # a design that says nothing gives all one score
        assert np.ptp(finite(attack, one.target, one.knowledge)) == 0
    else:
        refused(attack, one.target, one.knowledge, "needs .*with")


@each(NEEDING_SHADOWS)
def test_shadows_that_trained_on_nothing_serve_offline_attacks_alone(attack: Any):
    one = all_alike(False)
    if attack in DESIGN:
        assert np.ptp(finite(attack, one.target, one.knowledge)) == 0
    elif attack in OFFLINE:
        finite(attack, one.target, one.knowledge)
    else:
        assert attack in ONLINE
        refused(attack, one.target, one.knowledge, "needs .*with")


@each(NEEDING_SHADOWS)
@pytest.mark.parametrize("member", [True, False])
def test_examples_that_the_shadows_show_on_one_side_only_are_scored_by_what_the_others_show(attack: Any, member: bool):
    members = bernoulli(9, EXAMPLES, 3)
    members[:-1, :10] = member
    one = some(members=members)
    finite(attack, one.target, one.knowledge)


@each(EVERY)
@pytest.mark.parametrize("member", [True, False])
def test_a_class_that_the_shadows_show_on_one_side_only_is_scored_by_the_others(attack: Any, member: bool):
    labels = some().signals.labels
    members = bernoulli(9, EXAMPLES, 4)
    members[:-1, labels == 2] = member
    one = some(members=members)
    np.testing.assert_array_equal(one.signals.labels, labels)
    finite(attack, one.target, one.knowledge)


@each(EVERY)
def test_the_same_input_gives_the_same_scores(attack: Any):
    one = some()
    again = some()
    np.testing.assert_array_equal(attack.run(one.target, one.knowledge), attack.run(again.target, again.knowledge))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Threshold(statistic="los"), "did you mean 'loss'"),  # type: ignore[arg-type]
        (lambda: RMIA(gamma=0), "gamma is 0"),
        (lambda: RMIA(offline_a=1.5), "at most 1"),
        (lambda: RMIA(references=0), "references is 0"),
        (lambda: ShadowClassifier(classifier="forest"), "random forest"),
        (lambda: QuantileRegression(level=1.0), "below 1"),
        (lambda: Tuned(attack=RMIA(), grid={"gama": [1.0]}), "did you mean 'gamma'"),
        (lambda: Tuned(attack=RMIA(), grid={"gamma": []}), "at least one value"),
        (lambda: Tuned(attack=RMIA(), grid={"gamma": [0.0]}), "gamma is 0"),
    ],
)
def test_options_that_mean_nothing_are_refused_at_once(make: Any, words: str):
    with pytest.raises(InputError, match=words):
        make()
