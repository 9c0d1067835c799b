"""Did this client take part? Membership of all that a client holds, not of one example.

The attacker has examples of the client: its own, or others from the client's distribution (Kandpal et al. 2024, "user
inference"; Suri et al. 2022 for the subjects of data in a federation). Each attack makes one number of what its view
shows of them, and asks under which of two Gaussians it is likelier: that of shadow federations with the client, or of
those without (LiRA, Carlini et al. 2022, with a client in the place of an example).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from attacks.base import Bools
from attacks.clients.evidence import NEEDS, Reads, Scores, confidences, descents, evidence, flat, recorded_rounds
from attacks.membership.lira import lira_scores
from fl_core.errors import InputError, check_choice
from fl_core.views import Participant, ReleasedModel, require_view


@dataclass(frozen=True, kw_only=True)
class ClientKnowledge:
    """What the attacker has besides its observation.

    `images` [examples, channels, height, width] in [0, 1] and `labels` [examples] are the client's, or like them.
    `shadows` are replicas that the attacker trained, seen through the same view, and `took_part` [shadows] says which
    of them the client was in.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    shadows: ReleasedModel | None = None
    took_part: Bools | None = None


class Statistic(Protocol):
    """One number for each replica, before shadows turn it into a likelihood ratio."""

    @property
    def name(self) -> str:
        """What tables call the attack."""
        ...

    def statistic(self, observation: ReleasedModel, knowledge: ClientKnowledge) -> Scores:
        """The number [replicas]. Raises InputError for a view that shows too little."""
        ...


@dataclass(frozen=True, kw_only=True)
class MeanConfidence:
    """The mean scaled confidence of the client's examples under the released model.

    The mean over examples is Kandpal et al.'s test statistic (2024); shadows take the place of their reference model.
    """

    name: ClassVar[str] = "mean confidence"
    needs: ClassVar[type[ReleasedModel]] = ReleasedModel

    def statistic(self, observation: ReleasedModel, knowledge: ClientKnowledge) -> Scores:
        """Nats [replicas]. Raises InputError as `scaled_confidence` does."""
        require_view(self.name, observation, self.needs)
        found: Scores = confidences(knowledge.model, observation.model, knowledge.images, knowledge.labels).mean(1)
        return found

    def run(self, observation: ReleasedModel, knowledge: ClientKnowledge) -> Scores:
        """Log-likelihood ratios [replicas] in nats. Raises InputError without shadows of both kinds."""
        return calibrated(self, observation, knowledge)


@dataclass(frozen=True, kw_only=True)
class ExpectedUpdate:
    """How far each round leans towards what the client would have sent: ⟨v, d⟩/‖d‖, summed over rounds.

    d is the descent direction of the client's examples at the model that the round sent out, and v the `step` to the
    next model (a participant's view) or the `sum` (a secure server's, which has no noise of the server's in it). It is
    the inner product of Andrew et al. 2024 for a client's update, with a first-order guess in its place.
    """

    reads: Reads

    def __post_init__(self) -> None:
        # A server that sees updates sees who sent them: nothing is left to infer.
        check_choice("reads", self.reads, ("step", "sum"))

    @property
    def name(self) -> str:
        """What tables call it: with what it reads."""
        return f"expected update, {self.reads}"

    @property
    def needs(self) -> type[ReleasedModel]:
        """The narrowest view that shows what it reads."""
        return NEEDS[self.reads]

    def statistic(self, observation: ReleasedModel, knowledge: ClientKnowledge) -> Scores:
        """In units of an update's length [replicas]. Raises InputError for a view that does not show a round."""
        rounds = recorded_rounds(self.name, observation, NEEDS[self.reads])
        assert isinstance(observation, Participant)
        total: Tensor | float = 0.0
        for round in rounds:
            sent = {name: observation.models[round][name] for name in observation.model}
            replicas = len(next(iter(sent.values())))
            images = knowledge.images.expand(replicas, *knowledge.images.shape)
            toward = descents(knowledge.model, sent, images, knowledge.labels.expand(replicas, -1))
            moved = flat(evidence(observation, self.reads, round), 2)[:, 0]
            total = total + (moved * toward).sum(1) / toward.norm(dim=1).clamp(min=1e-30)
        assert isinstance(total, Tensor)
        found: Scores = total.numpy()
        return found

    def run(self, observation: ReleasedModel, knowledge: ClientKnowledge) -> Scores:
        """Log-likelihood ratios [replicas] in nats. Raises InputError without shadows of both kinds."""
        return calibrated(self, observation, knowledge)


@dataclass(frozen=True, kw_only=True)
class BlindParticipation:
    """The share of the shadows that the client is in; it never looks at the target."""

    name: ClassVar[str] = "blind (design only)"
    needs: ClassVar[type[ReleasedModel]] = ReleasedModel

    def run(self, observation: ReleasedModel, knowledge: ClientKnowledge) -> Scores:
        """The same score in [0, 1] for each of [replicas]. Raises InputError without shadows."""
        require_view(self.name, observation, self.needs)
        _, took_part = _shadows(self.name, knowledge)
        return np.full(len(next(iter(observation.model.values()))), took_part.mean())


def calibrated(attack: Statistic, observation: ReleasedModel, knowledge: ClientKnowledge) -> Scores:
    """log N(s; with) − log N(s; without) [replicas] of an attack's statistic, in nats; Gaussians from the shadows."""
    target = attack.statistic(observation, knowledge)
    shadows, took_part = _shadows(attack.name, knowledge)
    theirs = attack.statistic(shadows, knowledge)
    if len(theirs) != len(took_part):
        raise InputError(f"{attack.name} has {len(theirs)} shadows, but took_part speaks of {len(took_part)}")
    if min(took_part.sum(), (~took_part).sum()) < 2:
        raise InputError(
            f"{attack.name} needs 2 shadows with the client and 2 without, has {took_part.sum()} and "
            f"{(~took_part).sum()}; train more"
        )
    # One "example", the client, whose Gaussians are the same for every target.
    shape = len(theirs), len(target)
    return lira_scores(
        target,
        np.broadcast_to(theirs[:, None], shape),
        np.broadcast_to(took_part[:, None], shape),
        fixed_variance=False,
    )


def _shadows(attack: str, knowledge: ClientKnowledge) -> tuple[ReleasedModel, Bools]:
    if knowledge.shadows is None or knowledge.took_part is None:
        raise InputError(f"{attack} needs shadows and who took part in them, and the attacker has none; train some")
    return knowledge.shadows, np.asarray(knowledge.took_part, dtype=bool)
