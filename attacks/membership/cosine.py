"""Membership from directions: does what was sent lean towards the step that the example would ask for?

One step of descent on a client's examples is the mean of minus their gradients. In many dimensions gradients of
different examples are nearly orthogonal, so that a member's own share in the mean shows (Li, Li & Ribeiro 2023,
"Effective passive membership inference attacks in federated learning against overparameterized models").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from attacks.base import MembershipKnowledge
from attacks.membership.observed import (
    ParticipantSignals,
    SecureServerSignals,
    ServerSignals,
    Signals,
    require_signals,
)
from attacks.membership.series import last_round, mean_over_rounds, of_owner
from fl_core.errors import check_choice

Rounds = Literal["all", "last"]


@dataclass(frozen=True, kw_only=True)
class _Cosine:
    """`rounds` is `all` for the average over the recorded rounds, or `last` for the last that shows something."""

    rounds: Rounds = "all"

    kind: ClassVar[str]
    needs: ClassVar[type[Signals]]

    def __post_init__(self) -> None:
        check_choice(f"{self.kind} rounds", self.rounds, ("all", "last"))

    @property
    def name(self) -> str:
        return f"average {self.kind}" if self.rounds == "all" else self.kind

    def over_rounds(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return mean_over_rounds(values) if self.rounds == "all" else last_round(values)


@dataclass(frozen=True, kw_only=True)
class StepCosine(_Cosine):
    """For a participant: the cosine between the step from one global model to the next and minus the gradient."""

    kind: ClassVar[str] = "step cosine"
    needs: ClassVar[type[Signals]] = ParticipantSignals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [−1, 1]. Raises InputError for a view that does not show the models of rounds."""
        require_signals(self.name, signals, self.needs)
        assert isinstance(signals, ParticipantSignals)
        return self.over_rounds(signals.step_cosine[0])


@dataclass(frozen=True, kw_only=True)
class SumCosine(_Cosine):
    """For a server under secure aggregation: the same of the sum of updates, whatever the server makes of it."""

    kind: ClassVar[str] = "sum cosine"
    needs: ClassVar[type[Signals]] = SecureServerSignals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [−1, 1]. Raises InputError for a view that does not show the sums."""
        require_signals(self.name, signals, self.needs)
        assert isinstance(signals, SecureServerSignals)
        return self.over_rounds(signals.sum_cosine[0])


@dataclass(frozen=True, kw_only=True)
class UpdateCosine(_Cosine):
    """For a server: the same of the update of the client that would hold the example.

    The client is the one that the attacker knows (`owners`); for an example whose owner it does not, the score is the
    largest of any client's. An example whose client never took part scores 0.
    """

    kind: ClassVar[str] = "update cosine"
    needs: ClassVar[type[Signals]] = ServerSignals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [−1, 1]. Raises InputError for a view that does not show each update."""
        require_signals(self.name, signals, self.needs)
        assert isinstance(signals, ServerSignals)
        each = signals.client_cosine[0].swapaxes(0, 1)  # [clients, rounds, examples]
        seen = ~np.isnan(each).all(axis=1)
        scores = np.where(seen, self.over_rounds(each), np.nan)
        return np.nan_to_num(of_owner(self.name, scores, knowledge.owners), nan=0.0)
