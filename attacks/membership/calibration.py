"""The loss against the same example's loss under reference models that were not trained on it.

An easy example has a low loss under every model; only a loss lower than its usual one tells of membership.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.observed import Signals, require_shadows
from fl_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class AttackR:
    """The share of an example's OUT shadows with a higher loss than the target's: one minus a p-value.

    The p-value is (1 + shadows with a loss as low)/(1 + shadows), which counts the target among them, so that an
    example with few shadows cannot look certain; one with none scores 0. The paper interpolates the shadows' losses
    where this counts them. Source: Ye et al. 2022, "Enhanced Membership Inference Attacks against Machine Learning
    Models", section 4.4 (Attack R).
    """

    name: ClassVar[str] = "attack R"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [0, 1). Raises InputError without OUT shadows, or for logits that are not finite."""
        shadows = _with_outside(self.name, signals, knowledge)
        # As scaled confidences: a loss is lower where they are higher, and no two of them round to one loss.
        as_low = shadows.signals.confidence[:, 0] >= signals.confidence[0, 0]
        as_low &= ~shadows.members
        p_value = (1 + as_low.sum(axis=0)) / (1 + shadows.confidence.outside.count)
        scores: NDArray[np.float64] = 1 - p_value
        return scores


@dataclass(frozen=True, kw_only=True)
class DifficultyCalibration:
    """How far the target's loss lies below the mean loss of the example's OUT shadows.

    An example without any takes its IN mean and the average gap between the two. Source: Watson et al. 2022, "On the
    Importance of Difficulty Calibration in Membership Inference Attacks", section 3.
    """

    name: ClassVar[str] = "difficulty calibration"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples], in nats. Raises InputError without OUT shadows, or for logits that are not finite."""
        _, usual = _with_outside(self.name, signals, knowledge).loss.means()
        scores: NDArray[np.float64] = usual[0] - signals.loss[0, 0]
        return scores


def _with_outside(attack: str, signals: Signals, knowledge: MembershipKnowledge) -> Shadows:
    shadows = require_shadows(attack, signals, knowledge)
    if shadows.members.all():
        raise InputError(f"{attack} needs shadows without the examples; all {len(shadows.members)} trained on all")
    return shadows
