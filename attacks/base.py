"""What every attack declares: the view it needs and what else it was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """Replicas that the attacker trained, so whose membership it knows.

    `outputs` are logits [shadows, examples, classes]; `members` [shadows, examples] says who was trained on.
    """

    outputs: Floats
    members: Bools


@dataclass(frozen=True, kw_only=True)
class MembershipKnowledge:
    """What a membership attacker has besides its observation.

    `labels` [examples] belong to the candidates in question; `shadows` is None for an attacker without any.
    """

    labels: Ints
    shadows: Shadows | None = None
