"""What every attack declares: the view it needs and what else it was told."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attacks.membership.moments import Moments, moments
from fl_core.errors import InputError

if TYPE_CHECKING:
    from attacks.membership.observed import Signals

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """Replicas that the attacker trained, so whose membership it knows.

    `signals` are theirs, read through the same view as the target's; `members` [shadows, examples] says who was trained
    on. What several attacks ask of them is computed once: the moments on both sides [queries, examples] of the scaled
    confidence, of the true label's probability and of the loss.
    """

    signals: Signals
    members: Bools

    @cached_property
    def confidence(self) -> Moments:
        """Of the scaled confidence, in nats."""
        return moments(self.signals.confidence, self.members)

    @cached_property
    def probability(self) -> Moments:
        """Of the true label's probability."""
        return moments(self.signals.probability, self.members)

    @cached_property
    def loss(self) -> Moments:
        """Of the true label's cross-entropy, in nats."""
        return moments(self.signals.loss, self.members)


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


class MembershipAttack(Protocol):
    """A membership attack: a score for every candidate, from the signals of one target."""

    @property
    def name(self) -> str:
        """What tables call it: the attack, and which of its options are not the usual ones."""
        ...

    @property
    def needs(self) -> type[Signals]:
        """The signals of the narrowest view that will do."""
        ...

    # Any: an attack on a wider view takes that view's signals only, and is refused others when it runs.
    def run(self, signals: Any, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples] in float64, higher for likelier members.

        The `signals` are of the class `needs`, or of a wider view's. Raises InputError for those of several targets,
        and where they or the knowledge say too little.
        """
        ...


def require_target(attack: str, signals: Signals) -> None:
    """Raise InputError unless the signals are those of one target: a score is of one model."""
    if signals.replicas != 1:
        raise InputError(f"{attack} scores one target, and was given {signals.replicas}; select one of them")
