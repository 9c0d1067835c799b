"""Whose is it? An example is known to be a member, and the attacker asks which client holds it (Hu et al. 2021).

All scores are [replicas, records, clients], higher for likelier owners, −inf for a client that took part in no recorded
round; `verdicts` names the likeliest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor, nn

from attacks.base import Floats
from attacks.clients.evidence import (
    Scores,
    by_client,
    confidences,
    descents,
    evidence,
    flat,
    own_models,
    recorded_rounds,
)
from attacks.membership.signals import loss
from fl_core.errors import InputError, check_number
from fl_core.views import ReleasedModel, SecureServer, Server, require_view

SHIFTS = np.linspace(0, 6, 61)
"""How far an owner may stand out, in standard deviations of public examples."""


@dataclass(frozen=True, kw_only=True)
class SourceKnowledge:
    """What the attacker has besides its observation.

    `images` [replicas, records, channels, height, width] in [0, 1] and `labels` [replicas, records] are the records,
    each of one of `clients`. `label_shares` [replicas, clients, classes] say what labels each client holds, where that
    is known. `public_images` [public, channels, height, width] and `public_labels` [public] are nobody's.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    clients: int
    label_shares: Floats | None = None
    public_images: Tensor | None = None
    public_labels: Tensor | None = None

    def __post_init__(self) -> None:
        check_number("clients", self.clients, minimum=1, integer=True)
        if self.images.dim() != 5 or self.labels.shape != self.images.shape[:2]:
            raise InputError(
                f"images {tuple(self.images.shape)} and labels {tuple(self.labels.shape)} do not fit; give [replicas, "
                "records, channels, height, width] and [replicas, records]"
            )


@dataclass(frozen=True, kw_only=True)
class SmallestLoss:
    """The client whose own model, after its local training, has the smallest loss on the record (Hu et al. 2021).

    The score is how much local training lowered the record's loss, in nats, averaged over the client's rounds. Where
    all clients take part in a round that order is the loss's own; against the loss before, rounds can be compared.
    """

    name: ClassVar[str] = "smallest loss"
    needs: ClassVar[type[Server]] = Server

    def run(self, observation: ReleasedModel, knowledge: SourceKnowledge) -> Scores:
        """Scores [replicas, records, clients] in nats. Raises InputError for a view without single updates."""
        rounds = recorded_rounds(self.name, observation, self.needs)
        assert isinstance(observation, Server)
        total, turns = _nothing(knowledge)
        for round in rounds:
            models, cohort = own_models(observation, round), observation.cohorts[round]
            lowered = []
            for row, (pictures, labels) in enumerate(zip(knowledge.images, knowledge.labels, strict=True)):
                before = {name: observation.models[round][name][row : row + 1] for name in observation.model}
                after = {name: value[row] for name, value in models.items()}
                each = [loss(confidences(knowledge.model, one, pictures, labels)) for one in (before, after)]
                lowered.append(torch.from_numpy(each[0] - each[1]))
            total += by_client(torch.stack(lowered), cohort, knowledge.clients)
            turns += by_client(torch.ones(*cohort.shape, 1, dtype=torch.float64), cohort, knowledge.clients)
        return _mean(total, turns)


@dataclass(frozen=True, kw_only=True)
class UpdateCosine:
    """The client whose update points most along the record's descent direction, averaged over the client's rounds.

    The gradient's counterpart of the smallest loss; exact where a client sends the gradient of one record.
    """

    name: ClassVar[str] = "update cosine"
    needs: ClassVar[type[Server]] = Server

    def run(self, observation: ReleasedModel, knowledge: SourceKnowledge) -> Scores:
        """Scores [replicas, records, clients] in [−1, 1]. Raises InputError for a view without single updates."""
        rounds = recorded_rounds(self.name, observation, self.needs)
        assert isinstance(observation, Server)
        total, turns = _nothing(knowledge)
        for round in rounds:
            cohort = observation.cohorts[round]
            updates = flat(evidence(observation, "update", round), 2)
            toward = directions(observation, knowledge, round)
            each = torch.einsum("rsp,rep->rse", updates, toward) / updates.norm(dim=2).clamp(min=1e-30).unsqueeze(2)
            total += by_client(each, cohort, knowledge.clients)
            turns += by_client(torch.ones(*cohort.shape, 1, dtype=torch.float64), cohort, knowledge.clients)
        return _mean(total, turns)


@dataclass(frozen=True, kw_only=True)
class CalibratedCosine:
    """The label prior, and on top of it how far the record's cosine stands out among public examples of its label.

    The score is log π + δz − δ²/2, the log posterior for Gaussians of unit variance: π is the label's share at the
    client (the same for all where shares are not known), and z the update's cosine with the record, standardised by its
    mean over public examples of the label and its standard deviation around these means. That a client holds the label
    makes all cosines of the label large, so what z says is about the record. How far owners stand out, δ, is the
    replica's own likeliest one, given that each record is somebody's; where z says nothing it is near 0, and the prior
    is left.
    """

    name: ClassVar[str] = "calibrated cosine"
    needs: ClassVar[type[Server]] = Server

    def run(self, observation: ReleasedModel, knowledge: SourceKnowledge) -> Scores:
        """Scores [replicas, records, clients] in nats. Raises InputError without public examples of every label."""
        require_view(self.name, observation, self.needs)
        images, labels = knowledge.public_images, knowledge.public_labels
        missing = set(knowledge.labels.unique().tolist()) - set([] if labels is None else labels.unique().tolist())
        if images is None or labels is None or missing:
            raise InputError(
                f"{self.name} needs public examples of every label, and has none of {sorted(missing)}; give more"
            )
        replicas = len(knowledge.labels)
        crowd = replace(
            knowledge, images=images.expand(replicas, *images.shape), labels=labels.expand(replicas, -1).contiguous()
        )
        own, others = (UpdateCosine().run(observation, told) for told in (knowledge, crowd))
        kinds = labels.cpu().numpy()
        asked = np.isfinite(own)  # a client that was never asked tells nothing of anybody
        others = np.where(np.isfinite(others), others, 0.0)
        means = np.stack([others[:, kinds == kind].mean(1) if (kinds == kind).any() else others[:, 0] * 0
                          for kind in range(int(kinds.max()) + 1)], 1)  # fmt: skip
        freedom = max(len(kinds) - len(np.unique(kinds)), 1)
        spread = np.sqrt(((others - means[:, kinds]) ** 2).sum(1, keepdims=True) / freedom)
        usual = np.take_along_axis(means, knowledge.labels.cpu().numpy()[:, :, None], 1)
        z = np.where(asked, (np.where(asked, own, 0.0) - usual) / np.maximum(spread, 1e-12), 0.0)
        with np.errstate(divide="ignore"):
            prior = np.log(np.ones_like(z) / knowledge.clients if knowledge.label_shares is None else _prior(knowledge))
        ratios = SHIFTS[:, None, None, None] * z - np.where(asked, SHIFTS[:, None, None, None] ** 2 / 2, 0.0)
        posteriors = prior + ratios
        best = logsumexp(posteriors, axis=3).sum(2).argmax(0)
        scores: Scores = posteriors[best, np.arange(replicas)]
        return scores


@dataclass(frozen=True, kw_only=True)
class WithAndWithout:
    """Under secure aggregation: whose presence makes the sums lean towards the record?

    A round's sum times its divisor, along the record's descent direction, is the sum of what each of its cohort adds:
    z = P a, where P [rounds, clients] says who took part. a is solved for by ridge regression after taking off the
    means; `ridge` is how much a round's z varies for other reasons over how much clients do (cf. Kerkouche et al. 2023,
    who infer client-specific properties from sums over changing cohorts). Cohorts that never change tell nothing.
    """

    ridge: float = 1.0
    name: ClassVar[str] = "with and without"
    needs: ClassVar[type[SecureServer]] = SecureServer

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge, above=0)

    def run(self, observation: ReleasedModel, knowledge: SourceKnowledge) -> Scores:
        """Scores [replicas, records, clients]. Raises InputError for a view without sums."""
        rounds = recorded_rounds(self.name, observation, self.needs)
        assert isinstance(observation, SecureServer)
        leans, there = [], []
        for round in rounds:
            cohort = observation.cohorts[round]
            total = flat(evidence(observation, "sum", round), 2)[:, 0] * observation.divisors[round].double()[:, None]
            leans.append(torch.einsum("rp,rep->re", total, directions(observation, knowledge, round)))
            ones = torch.ones(*cohort.shape, dtype=torch.float64)
            there.append(by_client(ones, cohort, knowledge.clients))
        z, presence = torch.stack(leans, 1), torch.stack(there, 1)  # [replicas, rounds, records], [.., rounds, clients]
        z = z - z.mean(1, keepdim=True)
        presence = presence - presence.mean(1, keepdim=True)
        gram = presence @ presence.transpose(1, 2) + self.ridge * torch.eye(len(rounds), dtype=torch.float64)
        found = presence.transpose(1, 2) @ torch.linalg.solve(gram, z)
        scores: Scores = found.transpose(1, 2).numpy()
        return scores


@dataclass(frozen=True, kw_only=True)
class BlindSource:
    """The client that holds the largest share of the record's label; it never looks at the target.

    By Bayes' rule the best that can be done with labels alone where all clients hold as much. Where clients differ in
    their labels, only what an attack does beyond it is source inference.
    """

    name: ClassVar[str] = "blind (label prior)"
    needs: ClassVar[type[ReleasedModel]] = ReleasedModel

    def run(self, observation: ReleasedModel, knowledge: SourceKnowledge) -> Scores:
        """The label's share at each client [replicas, records, clients]. Raises InputError without label shares."""
        require_view(self.name, observation, self.needs)
        if knowledge.label_shares is None:
            raise InputError(
                f"{self.name} needs each client's label shares, and the attacker has none; give label_shares"
            )
        return _prior(knowledge)


def _prior(knowledge: SourceKnowledge) -> Scores:
    """The share of each record's label at each client [replicas, records, clients]."""
    shares = np.asarray(knowledge.label_shares, dtype=np.float64)
    return np.stack([own[:, labels].T for own, labels in zip(shares, knowledge.labels.cpu().numpy(), strict=True)])


def verdicts(scores: Scores) -> NDArray[np.float64]:
    """The chance [replicas, records, clients] with which each client is named: the best one's, ties shared evenly."""
    best = scores == scores.max(-1, keepdims=True)
    chances: NDArray[np.float64] = best / best.sum(-1, keepdims=True)
    return chances


def directions(observation: SecureServer, knowledge: SourceKnowledge, round: int) -> Tensor:
    """Each record's descent direction at the model that a round sent, of length one [replicas, records, parameters]."""
    sent = {name: observation.models[round][name] for name in observation.model}
    each = [
        descents(knowledge.model, sent, knowledge.images[:, [record]], knowledge.labels[:, [record]])
        for record in range(knowledge.labels.shape[1])
    ]
    found = torch.stack(each, 1)
    length: Tensor = found.norm(dim=2, keepdim=True)
    return found / length.clamp(min=1e-30)


def _nothing(knowledge: SourceKnowledge) -> tuple[Tensor, Tensor]:
    replicas, records = knowledge.labels.shape
    total = torch.zeros(replicas, knowledge.clients, records, dtype=torch.float64)
    return total, torch.zeros(replicas, knowledge.clients, 1, dtype=torch.float64)


def _mean(total: Tensor, turns: Tensor) -> Scores:
    """Means over turns [replicas, records, clients]; −inf for a client without any."""
    each = torch.where(turns > 0, total / turns.clamp(min=1), -torch.inf)
    found: Scores = each.transpose(1, 2).numpy()
    return found
