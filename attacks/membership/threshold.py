"""Thresholds on one number of the target's output: what the model fits well, or is sure of, was probably trained on.

The attacks that need nothing but the target's outputs and the labels, so the floor for every other one. With shadows,
each class may have a threshold of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from attacks.base import Bools, Floats, MembershipKnowledge, require_target
from attacks.membership.observed import Signals, require_shadows
from fl_core.errors import InputError, check_choice, check_number

Statistic = Literal["loss", "confidence", "entropy", "modified entropy"]

STATISTICS: dict[str, tuple[str, int]] = {
    "loss": ("loss", -1),
    "confidence": ("confidence", 1),
    "entropy": ("entropy", -1),
    "modified entropy": ("modified_entropy", -1),
}
"""By its name in the papers: the field of `Signals`, and 1 where members have more of it, −1 where they have less."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The target's own loss, scaled confidence, entropy or modified entropy, signed so that members score higher.

    The papers fix a threshold; here it is left to the ROC. Without `per_class`, loss and confidence rank alike. With
    it, the score is what lies above the class's threshold, the one that parts the shadows' members and non-members of
    that class best (the largest TPR − FPR), so that 0 is the papers' verdict. It is sought on the first shadows, as
    many as have `max_rows` examples together. A class that they do not show on both sides takes the threshold of all
    classes together.

    Source: Yeom et al. 2018, "Privacy Risk in Machine Learning" (loss); Salem et al. 2019, "ML-Leaks" (entropy); Song
    and Mittal 2021, "Systematic Evaluation of Privacy Risks of Machine Learning Models" (the rest, and the classes).
    """

    statistic: Statistic = "modified entropy"
    per_class: bool = False
    max_rows: int = 1_000_000
    needs: ClassVar[type[Signals]] = Signals

    def __post_init__(self) -> None:
        check_choice("the threshold's statistic", self.statistic, STATISTICS)
        check_number("the threshold's max_rows", self.max_rows, minimum=1, integer=True)

    @property
    def name(self) -> str:
        """What tables call it: with its statistic, and whether each class has its own threshold."""
        return f"{self.statistic} threshold{', per class' * self.per_class}"

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples], in nats.

        Raises InputError for several targets, for logits that are not finite and, with `per_class`, without shadows or
        if those are all of one kind.
        """
        require_target(self.name, signals)
        field, sign = STATISTICS[self.statistic]
        target: NDArray[np.float64] = sign * getattr(signals, field)[0, 0]
        if not self.per_class:
            return target
        shadows = require_shadows(self.name, signals, knowledge)
        few = slice(-(-self.max_rows // signals.labels.size))
        every_member = shadows.members[few]
        if every_member.all() or not every_member.any():
            raise InputError(f"{self.name} needs shadows with and without the examples; all are of one kind")
        seen: Floats = sign * getattr(shadows.signals.select(few), field)[:, 0]
        pooled = None
        for label in np.unique(signals.labels):
            ours = signals.labels == label
            members = every_member[:, ours]
            if members.any() and not members.all():
                target[ours] -= best_threshold(seen[:, ours], members)
            else:
                pooled = best_threshold(seen, every_member) if pooled is None else pooled
                target[ours] -= pooled
        return target


@dataclass(frozen=True, kw_only=True)
class LossThreshold(Threshold):
    """Yeom et al. 2018, "Privacy Risk in Machine Learning": the target's own loss, negated.

    The paper compares it with the average training loss.
    """

    statistic: Statistic = "loss"


def best_threshold(signals: Floats, members: Bools) -> float:
    """Where TPR − FPR is largest if whatever lies at or above is called a member; midway between two values.

    `signals` and `members` have one shape, with members and non-members. Source: Song and Mittal 2021, section 3.
    """
    order = np.argsort(signals, axis=None)[::-1]
    values, inside = signals.reshape(-1)[order], members.reshape(-1)[order]
    gain = np.cumsum(np.where(inside, 1 / inside.sum(), -1 / (~inside).sum()))
    last = np.append(values[1:] != values[:-1], True)  # equal values enter together
    best = int(np.argmax(np.where(last, gain, -np.inf)))
    return float(values[best] + values[min(best + 1, len(values) - 1)]) / 2
