"""Baselines that never look at the target: what its labels, or the shadows' design, give away by themselves.

If every example is IN exactly half of N models and the target is one of them, the other N − 1 hold the
example N/2 − 1 times if the target has it and N/2 times if not: membership is read off the design matrix
without querying the target (AUC 1). With membership drawn by independent coin flips the design says nothing
(AUC .5 in expectation), nor if the target leaves together with its complement. `Blind` reads exactly that:
run it on a new design before believing any score.

Every score table should have a blind row: an attack is credited with what it does beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import MembershipKnowledge
from attacks.membership.observed import Signals, require_shadows


@dataclass(frozen=True, kw_only=True)
class LabelOnly:
    """Score an example by how often the shadows contain the *other* examples with its label.

    The example's own column is left out, or targets that are each other's shadows would tie the score to the
    very coin in question.
    """

    name: ClassVar[str] = "blind (label only)"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [0, 1]; ½ for the only example of its label. Ignores what the model says.

        Raises InputError without shadows.
        """
        share = require_shadows(self.name, signals, knowledge).members.mean(axis=0, dtype=np.float64)
        _, kind = np.unique(signals.labels, return_inverse=True)
        total, count = np.bincount(kind, share)[kind] - share, np.bincount(kind)[kind] - 1
        return np.where(count > 0, total / np.maximum(count, 1), 0.5)


@dataclass(frozen=True, kw_only=True)
class Blind:
    """Score an example by how seldom the shadows contain it.

    Meant for one target. In a pool of targets that are each other's shadows, the scores of one example are tied
    across targets, and at a low FPR that alone looks like power.
    """

    name: ClassVar[str] = "blind (design only)"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [0, 1]: the share of the shadows without the example. Ignores what the model says.

        Raises InputError without shadows.
        """
        members = require_shadows(self.name, signals, knowledge).members
        share_out: NDArray[np.float64] = 1.0 - members.mean(axis=0, dtype=np.float64)
        return share_out
