"""A baseline that never looks at the target: what the shadows' design alone gives away.

If every example is IN exactly half of N models and the target is one of them, the other N − 1 hold the
example N/2 − 1 times if the target has it and N/2 times if not: membership is read off the design matrix
without querying the target (AUC 1). With membership drawn by independent coin flips the design says nothing
(AUC .5 in expectation), nor if the target leaves together with its complement. Every score table should
have this row: an attack is credited with what it does beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Floats, MembershipKnowledge
from attacks.membership.signals import require_shadows


@dataclass(frozen=True, kw_only=True)
class Blind:
    """Score an example by how seldom the shadows contain it."""

    name: ClassVar[str] = "blind (design only)"

    def run(self, outputs: Floats, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [0, 1]: the share of the shadows without the example. Ignores `outputs`.

        Raises InputError without shadows.
        """
        del outputs  # the point of this baseline
        members = require_shadows(self.name, knowledge).members
        share_out: NDArray[np.float64] = 1.0 - members.mean(axis=0, dtype=np.float64)
        return share_out
