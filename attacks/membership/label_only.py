"""Attacks that see only the predicted label: is it right, and does it stay right when the picture changes a little?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import MembershipKnowledge, require_target
from attacks.membership.observed import Signals
from fl_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Whoever is classified right is called a member, so that the advantage is the gap of accuracies.

    Source: Yeom et al. 2018, "Privacy Risk in Machine Learning".
    """

    name: ClassVar[str] = "gap (label only)"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples], 0 or 1. Raises InputError for several targets, or logits that are not finite."""
        require_target(self.name, signals)
        right: NDArray[np.float64] = signals.right[0, 0].astype(np.float64)
        return right


@dataclass(frozen=True, kw_only=True)
class AugmentationRobustness:
    """The share of the queries, the example and its augmented copies, that are classified right.

    The paper trains a classifier on which of them are right; this score needs no shadows. Source: Choquette-Choo et al.
    2021, "Label-Only Membership Inference Attacks".
    """

    name: ClassVar[str] = "augmentation robustness (label only)"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in [0, 1].

        Raises InputError for a single query, several targets, or logits that are not finite.
        """
        require_target(self.name, signals)
        right = signals.right[0]
        if len(right) < 2:
            raise InputError(f"{self.name} needs augmented queries and has the examples alone; ask for more queries")
        share: NDArray[np.float64] = right.mean(axis=0, dtype=np.float64)
        return share
