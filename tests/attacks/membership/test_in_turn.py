"""Every replica in turn as the target."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.in_turn import scores_in_turn
from attacks.membership.lira import LiRA, lira_scores
from attacks.membership.observed import ServerSignals, Signals
from fl_core.errors import InputError


def signals(replicas: int = 6, examples: int = 20) -> Signals:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=examples)
    return Signals(labels=labels, logits=rng.normal(size=(replicas, 1, examples, 3)))


def test_each_is_scored_with_the_others_as_shadows_and_its_own_membership_enters_nowhere():
    seen, members = signals(), np.random.default_rng(1).random((6, 20)) < 0.5
    scores = scores_in_turn(LiRA(), seen, members)
    for target in range(6):
        others = [other for other in range(6) if other != target]
        alone = lira_scores(seen.confidence[target, 0], seen.confidence[others, 0], members[others])
        assert scores[target] == pytest.approx(alone)
    flipped = members.copy()
    flipped[2] ^= True
    assert (scores_in_turn(LiRA(), seen, flipped)[2] == scores[2]).all()
    assert (scores_in_turn(LiRA(), seen, flipped)[3] != scores[3]).any()


def test_what_else_is_known_comes_along():
    class Curious:
        name, needs = "curious", Signals

        def run(self, signals: Signals, knowledge: MembershipKnowledge) -> np.ndarray:
            assert isinstance(knowledge.shadows, Shadows)
            assert knowledge.shadows.signals.replicas == 5
            return knowledge.owners.astype(float)

    known = MembershipKnowledge(owners=np.arange(20))
    assert (scores_in_turn(Curious(), signals(), np.ones((6, 20), bool), known) == np.arange(20)).all()


def test_signals_of_another_view_are_refused():
    class Wide:
        name, needs = "wide", ServerSignals

        def run(self, signals: Signals, knowledge: MembershipKnowledge) -> np.ndarray:
            raise AssertionError

    with pytest.raises(InputError, match="does not show all that server does"):
        scores_in_turn(Wide(), signals(), np.ones((6, 20), bool))
