"""FedMIA: the other clients of a round show what an update looks like that has not seen the example.

Zhu et al. 2025, "FedMIA: An Effective Membership Inference Attack Exploiting the All for One Principle in Federated
Learning" (CVPR). An example is in one client's data at most, so that all the others are its non-members: shadows that
cost nothing. It takes one client to attack, and at least two others in a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from attacks.base import MembershipKnowledge
from attacks.membership.comparing import standardised
from attacks.membership.observed import ServerSignals, Signals, require_signals
from attacks.membership.series import mean_over_rounds, of_owner
from attacks.membership.signals import loss
from fl_core.errors import InputError, check_choice

Measurement = Literal["loss", "cosine"]


@dataclass(frozen=True, kw_only=True)
class FedMIA:
    """FedMIA-I measures the negated loss under a client's own model, FedMIA-II its update's cosine with −gradient.

    In each round the score is Φ((m − μ)/√(σ² + 10⁻⁸)): m is the client's own measurement, μ and σ² are the mean and the
    variance (over their number) of those of the other clients of the round. It is averaged over the rounds in which the
    client took part beside two others or more; without one it is ½, which says nothing. The client is the one that the
    attacker knows (`owners`); for an example whose owner it does not, the score is the largest of any client's.
    """

    measurement: Measurement = "cosine"

    needs: ClassVar[type[Signals]] = ServerSignals

    def __post_init__(self) -> None:
        check_choice("FedMIA measurement", self.measurement, ("loss", "cosine"))

    @property
    def name(self) -> str:
        """FedMIA-I for the loss, FedMIA-II for the cosine."""
        return "FedMIA-I" if self.measurement == "loss" else "FedMIA-II"

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [0, 1].

        Raises InputError for a view that does not show each update, and where no round had three clients.
        """
        require_signals(self.name, signals, self.needs)
        assert isinstance(signals, ServerSignals)
        most = int(signals.took_part[0].sum(axis=1).max(initial=0))
        if most < 3:
            raise InputError(
                f"{self.name} compares a client with two others or more, and no recorded round had more than {most}; "
                "let more clients take part"
            )
        if self.measurement == "cosine":
            apart = signals.client_cosine_apart[0]
        else:
            with np.errstate(invalid="ignore"):  # of clients that did not take part
                apart = standardised(-loss(signals.client_confidence[0]))
        chances = ndtr(apart).swapaxes(0, 1)
        scores = mean_over_rounds(chances, nothing=np.nan)  # [clients, examples]
        return np.nan_to_num(of_owner(self.name, scores, knowledge.owners), nan=0.5)
