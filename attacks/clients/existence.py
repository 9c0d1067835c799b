"""Does it exist at all? One record, in a federation that holds it at one client or not, from the updates alone.

The record's gradient at each model that was sent is known, so the question is one of a known signal in noise: the other
examples, and what a defence adds. Scores of rounds add up; where updates are seen one by one and nobody knows which
client would hold the record, the largest of the clients' scores counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.clients.evidence import NEEDS, Reads, Scores, by_client, descents, evidence, flat, recorded_rounds
from attacks.membership.population import Population, estimate
from fl_core.errors import InputError, check_choice, check_number
from fl_core.models import ClassificationLosses
from fl_core.optimizers import Tree
from fl_core.per_example import stacked_example_gradients
from fl_core.rules import Outer
from fl_core.views import Participant, ReleasedModel, SecureServer, require_view

AT_ONCE = 10_000_000
"""Numbers that public examples' gradients may take in memory."""


@dataclass(frozen=True, kw_only=True)
class RecordKnowledge:
    """What the attacker has besides its observation.

    `images` [replicas, channels, height, width] in [0, 1] and `labels` [replicas] are the record in question, one a
    replica. `public_images` [public, ...] and `public_labels` [public] are examples like those of the clients. What is
    read is a sum of `weight` times minus the gradients of `others` such examples, and of the record where it exists,
    and of noise with the standard deviation `noise` in each coordinate. `clip_norm` is what gradients were clipped to.
    `clients` is how many there are.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    clients: int
    weight: float = 1.0
    others: float = 0.0
    noise: float = 0.0
    clip_norm: float | None = None
    public_images: Tensor | None = None
    public_labels: Tensor | None = None

    def __post_init__(self) -> None:
        check_number("clients", self.clients, minimum=1, integer=True)
        check_number("weight", self.weight, above=0)
        check_number("others", self.others, minimum=0)
        check_number("noise", self.noise, minimum=0)
        if self.images.dim() != 4 or self.labels.shape != self.images.shape[:1]:
            raise InputError(
                f"images {tuple(self.images.shape)} and labels {tuple(self.labels.shape)} do not fit; give one record "
                "a replica, [replicas, channels, height, width] and [replicas]"
            )


@dataclass(frozen=True, kw_only=True)
class RecordProduct:
    """⟨v, d⟩ over rounds, with v what `reads` names and d the record's descent direction, over the length of all d.

    The matched filter in white noise around nothing; it needs no public data.
    """

    reads: Reads

    def __post_init__(self) -> None:
        check_choice("reads", self.reads, NEEDS)

    @property
    def name(self) -> str:
        """What tables call it: with what it reads."""
        return f"record product, {self.reads}"

    @property
    def needs(self) -> type[ReleasedModel]:
        """The narrowest view that shows what it reads."""
        return NEEDS[self.reads]

    def run(self, observation: ReleasedModel, knowledge: RecordKnowledge) -> Scores:
        """Scores [replicas]. Raises InputError for a view that does not show what it reads."""
        return _over_rounds(self.name, self.reads, observation, knowledge, filtered=False)


@dataclass(frozen=True, kw_only=True)
class RecordFilter:
    """The matched filter over rounds, Σ ⟨C⁻¹u, v − m⟩ / √(Σ ⟨C⁻¹u, u⟩), for a record that adds u to what is read.

    u is `weight` times the record's descent direction, m the mean and C the covariance of what the `others` and the
    noise add, by public examples' gradients at each round's model. Where those are Gaussian and independent between
    rounds it is the linear part of the Neyman–Pearson test: standard normal without the record and
    μ = √(Σ ⟨C⁻¹u, u⟩) higher with it, so that its AUC is Φ(μ/√2). Clients that train on the same examples in every
    round break the independence.
    """

    reads: Reads

    def __post_init__(self) -> None:
        check_choice("reads", self.reads, NEEDS)

    @property
    def name(self) -> str:
        """What tables call it: with what it reads."""
        return f"record filter, {self.reads}"

    @property
    def needs(self) -> type[ReleasedModel]:
        """The narrowest view that shows what it reads."""
        return NEEDS[self.reads]

    def run(self, observation: ReleasedModel, knowledge: RecordKnowledge) -> Scores:
        """Scores [replicas]. Raises InputError without 8 public examples, or for a view without what it reads."""
        return _over_rounds(self.name, self.reads, observation, knowledge, filtered=True)


@dataclass(frozen=True, kw_only=True)
class BlindExistence:
    """Minus the distance to the nearest public picture: a usual record is likelier. It never looks at the target."""

    name: ClassVar[str] = "blind (nearest public)"
    needs: ClassVar[type[ReleasedModel]] = ReleasedModel

    def run(self, observation: ReleasedModel, knowledge: RecordKnowledge) -> Scores:
        """Scores [replicas], in pixels' Euclidean length. Raises InputError without public examples."""
        require_view(self.name, observation, self.needs)
        public, _ = _public(self.name, knowledge, 1)
        apart = torch.cdist(knowledge.images.flatten(1).double(), public.flatten(1).double())
        nearest: Scores = -apart.amin(1).cpu().numpy()
        return nearest


def _over_rounds(
    attack: str, reads: Reads, observation: ReleasedModel, knowledge: RecordKnowledge, *, filtered: bool
) -> Scores:
    """The standardised sum over rounds [replicas], of the likeliest client where there is a choice."""
    rounds = recorded_rounds(attack, observation, NEEDS[reads])
    assert isinstance(observation, Participant)
    products: Tensor | float = 0.0
    lengths: Tensor | float = 0.0
    for round in rounds:
        sent = {name: observation.models[round][name] for name in observation.model}
        seen = flat(evidence(observation, reads, round), 2)
        added = clipped(
            descents(knowledge.model, sent, knowledge.images.unsqueeze(1), knowledge.labels.unsqueeze(1)),
            knowledge.clip_norm,
        )
        added = knowledge.weight * added
        weights, means = added, torch.zeros_like(added)
        if filtered:
            weights, means = _whitened(attack, knowledge, sent, added)
        product = torch.einsum("rup,rp->ru", seen - means.unsqueeze(1), weights)
        length = (weights * added).sum(1, keepdim=True).expand_as(product)
        if reads == "update":
            assert isinstance(observation, SecureServer)
            cohort = observation.cohorts[round]
            product, length = (
                by_client(one.unsqueeze(2), cohort, knowledge.clients)[..., 0] for one in (product, length)
            )
        products, lengths = products + product, lengths + length
    assert isinstance(products, Tensor)
    assert isinstance(lengths, Tensor)
    standard = products / lengths.clamp(min=1e-300).sqrt()
    best: Scores = torch.where(lengths > 0, standard, -torch.inf).amax(1).numpy()
    return best


def _whitened(attack: str, knowledge: RecordKnowledge, sent: Tree, added: Tensor) -> tuple[Tensor, Tensor]:
    """C⁻¹u and the mean m of what others add, both [replicas, parameters]; each replica's model has its own."""
    images, labels = _public(attack, knowledge, 8)
    weights, means = [], []
    at_once = max(1, AT_ONCE // (len(images) * added.shape[1]))
    for start in range(0, len(added), at_once):
        part = slice(start, start + at_once)
        crowds = gradients(knowledge.model, {name: value[part] for name, value in sent.items()}, images, labels)
        for mine, crowd in zip(added[part], crowds, strict=True):
            each = -knowledge.weight * clipped(crowd, knowledge.clip_norm)
            split = len(each) * 3 // 4
            population: Population = estimate(each[:split], each[split:])
            means.append(knowledge.others * population.mean)
            weights.append(population.solve(mine.unsqueeze(0), max(knowledge.others, 1e-12), knowledge.noise)[0])
    return torch.stack(weights), torch.stack(means)


def gradients(model: nn.Module, models: Tree, images: Tensor, labels: Tensor) -> Tensor:
    """Each example's gradient [models, examples, parameters] at each of the `models` [models, ...], float64."""
    count = len(next(iter(models.values())))
    stacked = images.expand(count, *images.shape), labels.expand(count, -1)
    found = stacked_example_gradients(ClassificationLosses(model), models, stacked)
    whole = {name: value.whole() if isinstance(value, Outer) else value for name, value in found.items()}
    return flat(whole, 2).detach()


def clipped(rows: Tensor, norm: float | None) -> Tensor:
    """Rows [rows, parameters] no longer than `norm`; None leaves them as they are."""
    return rows if norm is None else rows * (norm / rows.norm(dim=1, keepdim=True).clamp(min=norm))


def _public(attack: str, knowledge: RecordKnowledge, least: int) -> tuple[Tensor, Tensor]:
    images, labels = knowledge.public_images, knowledge.public_labels
    if images is None or labels is None or len(images) < least:
        raise InputError(f"{attack} needs {least} public examples or more, with labels; give public_images and labels")
    return images, labels
