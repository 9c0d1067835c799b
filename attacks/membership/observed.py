"""The signals that one view of several replicas gives an attacker: computed once, kept, and shared by all attacks.

A class for every view, each with all that the narrower ones show, so that an attack which needs more than its view
shows is refused by type. Arrays lead with replicas; `select` takes some of them, with all that was computed already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from attacks.base import Floats, Ints, MembershipKnowledge, Shadows
from attacks.membership.comparing import cosine, standardised
from attacks.membership.entropy import entropy, is_right, modified_entropy
from attacks.membership.signals import loss, scaled_confidence
from fl_core.errors import InputError
from fl_core.views import VIEWS, MaliciousServer, Participant, ReleasedModel, SecureServer, Server

Derived = NDArray[np.float64]

SHARED = ("labels", "public_labels", "rounds")
"""Fields that are the same for all replicas."""


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What the released models say of the candidates, and of public examples that no replica trained on.

    `logits` [replicas, queries, examples, classes]; query 0 is the example as it is, the others are augmented copies,
    the same ones for every replica. `labels` [examples]. `public_logits` [replicas, public, classes] and
    `public_labels` [public] are those of the attacker's own examples; none where it has none.
    """

    view: ClassVar[type[ReleasedModel]] = ReleasedModel

    labels: Ints
    logits: Floats
    public_labels: Ints | None = None
    public_logits: Floats | None = None

    @property
    def replicas(self) -> int:
        """How many models these are the signals of."""
        return len(self.logits)

    @cached_property
    def confidence(self) -> Derived:
        """Scaled confidence of the true label [replicas, queries, examples], in nats."""
        # One replica at a time: float64 copies of all logits at once would take several times their memory.
        return np.stack([scaled_confidence(own, self.labels) for own in self.logits])

    @cached_property
    def probability(self) -> Derived:
        """The true label's probability [replicas, queries, examples]."""
        return np.stack([expit(own) for own in self.confidence])

    @cached_property
    def loss(self) -> Derived:
        """The true label's cross-entropy [replicas, queries, examples], in nats."""
        return np.stack([loss(own) for own in self.confidence])

    @cached_property
    def entropy(self) -> Derived:
        """Entropy of the prediction [replicas, queries, examples], in nats."""
        return np.stack([entropy(own, self.labels) for own in self.logits])

    @cached_property
    def modified_entropy(self) -> Derived:
        """Modified entropy of Song and Mittal 2021 [replicas, queries, examples], in nats."""
        return np.stack([modified_entropy(own, self.labels) for own in self.logits])

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether the model predicts the true label [replicas, queries, examples]."""
        return np.stack([is_right(own, self.labels) for own in self.logits])

    @cached_property
    def public_confidence(self) -> Derived:
        """That of the public examples [replicas, public]. Raises InputError where there are none."""
        if self.public_logits is None or self.public_labels is None:
            raise InputError("this attack needs public examples and the attacker has none; set attack.public")
        return np.stack([scaled_confidence(own, self.public_labels) for own in self.public_logits])

    def select(self, replicas: Sequence[int] | Ints | slice) -> Self:
        """The signals of some replicas; what was derived comes along."""
        taken = {
            name: value if name in SHARED or value is None else value[replicas] for name, value in vars(self).items()
        }
        chosen = replace(self, **{field.name: taken.pop(field.name) for field in fields(self)})
        vars(chosen).update(taken)
        return chosen


@dataclass(frozen=True, kw_only=True)
class ParticipantSignals(Signals):
    """Also what the global models of the recorded rounds say of each candidate: [replicas, rounds, examples].

    `round_confidence` is the scaled confidence under the model that a round sent out, in nats, and `gradient_norm` the
    length of the loss's gradient there. `step_product` is the inner product of the step from that model to the next one
    with minus that gradient, and `step_norm` [replicas, rounds] the length of the step. `layer_norm` and
    `layer_product` are the same with all but the last linear layer left out. `rounds` [rounds] are their numbers.
    """

    view: ClassVar[type[ReleasedModel]] = Participant

    rounds: Ints
    round_confidence: Floats
    gradient_norm: Floats
    step_product: Floats
    step_norm: Floats
    layer_norm: Floats
    layer_product: Floats

    @cached_property
    def step_cosine(self) -> Derived:
        """Of the step from each model to the next with minus the example's gradient [replicas, rounds, examples]."""
        return cosine(self.step_product, self.gradient_norm, self.step_norm[..., None])


@dataclass(frozen=True, kw_only=True)
class SecureServerSignals(ParticipantSignals):
    """Also those of the sums: `sum_product` [replicas, rounds, examples] with minus the gradient at the model that was
    sent, `sum_norm` [replicas, rounds], and `sum_layer_product`, that of the last linear layer alone.
    """

    view: ClassVar[type[ReleasedModel]] = SecureServer

    sum_product: Floats
    sum_norm: Floats
    sum_layer_product: Floats

    @cached_property
    def sum_cosine(self) -> Derived:
        """Of each round's sum with minus the example's gradient [replicas, rounds, examples]."""
        return cosine(self.sum_product, self.gradient_norm, self.sum_norm[..., None])


@dataclass(frozen=True, kw_only=True)
class ServerSignals(SecureServerSignals):
    """Also those of each client's own update: [replicas, rounds, clients, examples].

    `client_product` is its inner product with minus the example's gradient at the model that the client had,
    `client_norm` [replicas, rounds, clients] its length, `client_gradient_norm` that gradient's, and
    `client_layer_product` the product in the last linear layer. `client_confidence` is the scaled confidence under that
    client's own model. `took_part` [replicas, rounds, clients] says who sent one; the signals of the others are NaN.
    """

    view: ClassVar[type[ReleasedModel]] = Server

    client_product: Floats
    client_norm: Floats
    client_gradient_norm: Floats
    client_layer_product: Floats
    client_confidence: Floats
    took_part: NDArray[np.bool_]

    @cached_property
    def client_cosine(self) -> Derived:
        """Of each client's update with minus the example's gradient [replicas, rounds, clients, examples]."""
        return cosine(self.client_product, self.client_gradient_norm, self.client_norm[..., None])

    @cached_property
    def client_cosine_apart(self) -> Derived:
        """By how many standard deviations it is above that of the round's other clients, in the same shape."""
        return standardised(self.client_cosine)

    @cached_property
    def client_confidence_apart(self) -> Derived:
        """The same of the confidence under a client's own model."""
        return standardised(self.client_confidence)


@dataclass(frozen=True, kw_only=True)
class MaliciousServerSignals(SecureServerSignals):
    """Also those of what came back: [replicas, rounds, examples].

    `returned_confidence` is the scaled confidence under the model that was sent plus the round's sum, which is the
    average of the clients' own models, and `returned_norm` the length of the gradient there. `round_confidence` and
    the others are those of the model that was sent, tampered with as it was.
    """

    view: ClassVar[type[ReleasedModel]] = MaliciousServer

    returned_confidence: Floats
    returned_norm: Floats


def require_signals(attack: str, signals: Signals, needs: type[Signals]) -> None:
    """Raise InputError where the signals come from a view that does not show what the attack needs."""
    if not isinstance(signals, needs):
        raise InputError(refusal(attack, type(signals), needs))


def refusal(attack: str, shown: type[Signals], needs: type[Signals]) -> str:
    """Why an attack cannot use signals of the kind `shown`, in words."""
    hidden = ": secure aggregation hides each client's update" if shown.view is SecureServer else ""
    return (
        f"{attack} needs the view {needs.view.view}; it was given {shown.view.view}, which does not show that{hidden}"
    )


def require_shadows(attack: str, signals: Signals, knowledge: MembershipKnowledge) -> Shadows:
    """Return the attacker's shadows; raise InputError if it has none, they do not fit, or there are several targets."""
    shadows = knowledge.shadows
    if shadows is None:
        raise InputError(
            f"the {attack} attack needs shadows and the attacker has none; train some, or use 'loss threshold'"
        )
    if shadows.members.dtype != np.bool_:
        raise InputError(f"the shadows' members are of type {shadows.members.dtype}; give booleans [shadows, examples]")
    theirs, ours = shadows.signals.logits.shape, signals.logits.shape
    if not theirs[0]:
        raise InputError(f"the {attack} attack needs shadows and the attacker has 0; train some")
    if theirs[1:] != ours[1:] or ours[0] != 1 or shadows.members.shape != (theirs[0], ours[2]):
        raise InputError(
            f"shadow logits {theirs}, their members {shadows.members.shape} and the target's logits {ours} do not fit; "
            "give [shadows, queries, examples, classes], [shadows, examples] and [1, queries, examples, classes]"
        )
    return shadows


KINDS: dict[str, type[Signals]] = {
    kind.view.view: kind
    for kind in (Signals, ParticipantSignals, SecureServerSignals, ServerSignals, MaliciousServerSignals)
}
"""By the name of their view."""
assert KINDS.keys() == VIEWS.keys()
