"""Hyperparameters chosen on shadows: the target has no say, and a bad choice is not made."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.lira import LiRA
from attacks.membership.observed import Signals
from attacks.membership.rmia import RMIA
from attacks.membership.tuned import Tuned, without
from attacks.metrics import auc
from fl_core.errors import InputError
from tests.oracles.membership import complementary_pairs, problem


@dataclass(frozen=True, kw_only=True)
class Signed:
    """The scaled confidence times `sign`; counts the models that it was run on."""

    sign: float = 1.0
    seen: ClassVar[list[Signals]] = []
    name: ClassVar[str] = "signed"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> np.ndarray:
        self.seen.append(signals)
        scores: np.ndarray = self.sign * signals.confidence[0, 0]
        return scores


@pytest.mark.parametrize("metric", ["auc", "tpr"])
def test_the_better_value_is_chosen_and_run_on_the_target(metric: Any):
    one = problem(gain=3.0, seed=0)
    tuned = Tuned(attack=Signed(), grid={"sign": [-1.0, 1.0]}, metric=metric, fpr=0.1)
    assert tuned.choose(one.knowledge) == Signed(sign=1.0)
    np.testing.assert_array_equal(tuned.run(one.target, one.knowledge), one.target.confidence[0, 0])
    assert tuned.name == "signed, tuned"


def test_it_is_chosen_on_shadows_though_the_target_would_choose_otherwise():
    # Members of the target are less confident, those of the shadows more: the choice follows the shadows.
    one = problem(gain=3.0, seed=1)
    backwards = type(one.target)(labels=one.target.labels, logits=-one.target.logits)
    tuned = Tuned(attack=Signed(), grid={"sign": [-1.0, 1.0]})
    scores = tuned.run(backwards, one.knowledge)
    np.testing.assert_array_equal(scores, backwards.confidence[0, 0])
    assert auc(scores, one.truth) < 0.5
    assert list(inspect.signature(tuned.choose).parameters) == ["knowledge"]


def test_each_shadow_plays_the_target_with_the_others_as_references():
    one = problem(seed=2, shadows=5)
    shadows = one.knowledge.shadows
    assert shadows is not None
    Signed.seen.clear()
    Tuned(attack=Signed(), grid={"sign": [1.0]}).choose(one.knowledge)
    played = [np.flatnonzero((shadows.signals.logits == s.logits).all(axis=(1, 2, 3)))[0] for s in Signed.seen]
    assert played == [0, 1, 2, 3, 4]
    for number in range(5):
        references = without(shadows, number, 64)
        np.testing.assert_array_equal(references.members, np.delete(shadows.members, number, axis=0))
    assert len(without(shadows, 0, 3).members) == 3


def test_the_complement_of_the_shadow_that_plays_the_target_sits_out():
    members = complementary_pairs(6, 300, seed=3)
    shadows = Shadows(signals=problem(members=members).signals, members=members)
    left = without(shadows, 2, 64)
    np.testing.assert_array_equal(left.members, np.delete(members, [2, 3], axis=0))
    np.testing.assert_array_equal(left.signals.logits, np.delete(shadows.signals.logits, [2, 3], axis=0))


def test_all_combinations_are_tried_and_the_first_of_equals_taken():
    tuned = Tuned(attack=RMIA(online=False), grid={"gamma": [1.0, 2.0], "offline_a": [0.0, 0.5]})
    tried = [(one.gamma, one.offline_a) for one in tuned.candidates() if isinstance(one, RMIA)]
    assert tried == [(1.0, 0.0), (1.0, 0.5), (2.0, 0.0), (2.0, 0.5)]
    one = problem(seed=4)
    same = Tuned(attack=LiRA(), grid={"every_query": [False, False]})
    assert same.choose(one.knowledge) == LiRA()


def test_tuning_helps_where_a_value_matters():
    # γ = 10⁶ is reached by nobody.
    one = problem(gain=3.0, seed=5, examples=500, shadows=6)
    tuned = Tuned(attack=RMIA(gamma=1e6), grid={"gamma": [1e6, 1.0]}, targets=3)
    assert auc(RMIA(gamma=1e6).run(one.target, one.knowledge), one.truth) == 0.5
    assert auc(tuned.run(one.target, one.knowledge), one.truth) > 0.6


def test_two_shadows_are_too_few():
    one = problem(seed=6, shadows=2)
    with pytest.raises(InputError, match=r"needs 3 shadows, .*has 2; train more"):
        Tuned(attack=LiRA(), grid={"fixed_variance": [True]}).run(one.target, one.knowledge)
