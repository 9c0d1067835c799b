"""The loss threshold of Yeom et al. 2018: an example that the model fits well was probably trained on.

The attack that needs nothing but the target's outputs and the labels, so the floor for every other one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import MembershipKnowledge
from attacks.membership.observed import Signals
from attacks.membership.signals import loss


@dataclass(frozen=True, kw_only=True)
class LossThreshold:
    """Yeom et al. 2018, "Privacy Risk in Machine Learning": the target's own loss, negated.

    The paper compares it with the average training loss; here the threshold is left to the ROC.
    """

    name: ClassVar[str] = "loss threshold"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples], in nats, higher for likelier members. Raises InputError as `scaled_confidence` does."""
        return -loss(signals.confidence[0, 0])
