"""Membership from the models of many rounds: how well they fit an example, and how fast they came to.

The average over rounds is that of the loss series of Zhu et al. 2025 (FedMIA, Table 1), whose released code takes it
over the client's own models after local training; here it is over the global ones, which a participant sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import MembershipKnowledge
from attacks.membership.observed import ParticipantSignals, Signals, require_signals
from attacks.membership.series import confidence_series, loss_series


@dataclass(frozen=True, kw_only=True)
class LossSeries:
    """The negated loss, averaged over the models of the recorded rounds and the released one."""

    name: ClassVar[str] = "loss series"
    needs: ClassVar[type[Signals]] = ParticipantSignals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples], in nats. Raises InputError for a view that does not show the models of rounds."""
        require_signals(self.name, signals, self.needs)
        assert isinstance(signals, ParticipantSignals)
        scores: NDArray[np.float64] = loss_series(signals)[0].mean(axis=0)
        return scores


@dataclass(frozen=True, kw_only=True)
class ConfidenceTrend:
    """The slope of the scaled confidence over the recorded rounds, by least squares; the released model is the last.

    Members rise from the same start as non-members, and keep rising.
    """

    name: ClassVar[str] = "confidence trend"
    needs: ClassVar[type[Signals]] = ParticipantSignals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples], in nats a recorded round. Raises as `LossSeries`."""
        require_signals(self.name, signals, self.needs)
        assert isinstance(signals, ParticipantSignals)
        values = confidence_series(signals)[0]
        place = np.arange(len(values)) - (len(values) - 1) / 2
        scores: NDArray[np.float64] = place @ values / (place @ place)
        return scores
