"""What every attack declares: the view it needs and what else it was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from attacks.membership.observed import Signals

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """Replicas that the attacker trained, so whose membership it knows.

    `signals` are theirs, read through the same view as the target's; `members` [shadows, examples] says who was trained
    on.
    """

    signals: Signals
    members: Bools


@dataclass(frozen=True, kw_only=True)
class MembershipKnowledge:
    """What a membership attacker has besides the target's signals.

    `shadows` is None for an attacker without any. `owners` [examples] is the client that each candidate would belong
    to, None for an attacker that does not know. `images` [examples, channels, height, width] are the candidates,
    `public_images` [public, ...] and `public_labels` [public] the attacker's own examples; pixels in [0, 1].
    """

    shadows: Shadows | None = None
    owners: Ints | None = None
    images: Floats | None = None
    public_images: Floats | None = None
    public_labels: Ints | None = None
