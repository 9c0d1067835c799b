"""RMIA, the relative attack (Zarifzadeh, Liu and Shokri 2024, "Low-Cost High-Power Membership Inference Attacks").

An example x is a member if the target makes it likelier, relative to reference models, than it makes most public
examples z: LR(x, z) = (Pr(x|θ)/Pr(x)) / (Pr(z|θ)/Pr(z)), and the score is the share of z with LR(x, z) ≥ γ. That is the
rank of x's own ratio among those of the public examples, so no table of pairs is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.moments import Moments, first, moments
from attacks.membership.observed import Signals, require_shadows
from fl_core.errors import InputError, check_number

Array = NDArray[np.float64]

LEAST = float(np.finfo(np.float64).tiny)
"""Probabilities below it are taken as it, so that no ratio is 0/0."""


@dataclass(frozen=True, kw_only=True)
class RMIA:
    """RMIA on query 0, the example as it is.

    Online, Pr(x) is the mean of the mean probabilities IN and OUT, and Pr(z) that of all shadows.
    Offline there is only the mean OUT, p, and Pr = ½((1 + a)p + (1 − a)), for x and z alike: a line in place of the
    unknown mean IN, a·p + (1 − a). `offline_a` is a in [0, 1]; γ is `gamma`. `references` is how many shadows stand
    for each side: an example's first so many OUT shadows and, online, IN shadows, which in a design of complementary
    pairs are those of the first so many pairs; Pr(z) is then over the first 2 · `references` shadows, none of which saw
    z. None takes all. An example with none on a side takes the other side's mean and the average gap, within [0, 1].
    """

    online: bool = True
    gamma: float = 2.0
    offline_a: float = 0.3
    references: int | None = None
    needs: ClassVar[type[Signals]] = Signals

    def __post_init__(self) -> None:
        check_number("RMIA's gamma", self.gamma, above=0)
        check_number("RMIA's offline_a", self.offline_a, minimum=0, maximum=1)
        if self.references is not None:
            check_number("RMIA's references", self.references, minimum=1, integer=True)

    @property
    def name(self) -> str:
        """What tables call it: whether it is offline, and with how many references where they are limited."""
        few = "" if self.references is None else f", {self.references} reference{'s' * (self.references > 1)}"
        return f"RMIA{', offline' * (not self.online)}{few}"

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Scores [examples] in [0, 1].

        Raises InputError without public examples, without shadows, without OUT shadows (online: without both), or for
        logits that are not finite.
        """
        shadows = require_shadows(self.name, signals, knowledge)
        target_z = expit(signals.public_confidence[0])
        # Few examples and many shadows: the public ones need no moments.
        few = slice(None if self.references is None else 2 * self.references)
        mean_z = expit(shadows.signals.public_confidence[few]).mean(axis=0)
        if not self.online:
            mean_z = self._line(mean_z)
        ratio_z = np.maximum(target_z, LEAST) / np.maximum(mean_z, LEAST)
        ratio_x = np.maximum(signals.probability[0, 0], LEAST) / np.maximum(self._mean_x(shadows), LEAST)
        below = np.searchsorted(np.sort(self.gamma * ratio_z), ratio_x, side="right")
        scores: Array = below / len(ratio_z)
        return scores

    def _mean_x(self, shadows: Shadows) -> Array:
        seen = shadows.probability if self.references is None else self._few(shadows, self.references)
        number = len(shadows.members)
        if self.online and not seen.has_both.any():
            raise InputError(
                f"{self.name} needs shadows with and without an example; none of {seen.inside.count.size} examples has "
                f"both among {number}; train at least 2, each on its own random half, or take RMIA offline"
            )
        if not seen.outside.count.any():
            raise InputError(f"{self.name} needs shadows without the examples; all {number} trained on all")
        mean_in, mean_out = (np.clip(mean[0], 0, 1) for mean in seen.means())
        return (mean_in + mean_out) / 2 if self.online else self._line(mean_out)

    def _few(self, shadows: Shadows, references: int) -> Moments:
        inside, outside = first(shadows.members, references), first(~shadows.members, references)
        # The shadows that nobody's first few need are most of them.
        last = int(np.flatnonzero((inside | outside).any(axis=1)).max()) + 1
        return moments(shadows.signals.probability[:last, :1], inside[:last], outside[:last])

    def _line(self, mean_out: Array) -> Array:
        return ((1 + self.offline_a) * mean_out + (1 - self.offline_a)) / 2
