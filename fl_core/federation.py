"""A federation, and a stack of replicas of it, round by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fl_core.aggregation import weighted_sum, weights
from fl_core.algorithms import FedAvg
from fl_core.checkpoint import all_finite
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice, check_number
from fl_core.lanes import BACKENDS, Backend, ExampleRule, descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import Tree
from fl_core.sampling import ExampleFeed, SamplingEvent
from fl_core.seeds import generator, seed
from fl_core.views import Recorder


class Defended(Protocol):
    """The three places of a round where a defence may act; `defenses.base.Defense` is its home."""

    public_sizes: bool

    def example_rule(self, expected_batch: float) -> ExampleRule | None: ...

    def on_update(self, updates: Tree, generators: Sequence[Sequence[torch.Generator]]) -> Tree: ...

    def on_sum(self, total: Tree, generators: Sequence[torch.Generator]) -> Tree: ...


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Everything that fixes a stack of replicas.

    `data` is the pool of candidates and `owners` [examples] their clients. `members` [replicas, examples] says which
    replica trains on which example; `replica_ids` are the replicas' numbers in the whole study, so that a shard of
    it draws the same randomness. `sizes` [clients] are public: what a client is expected to hold, whoever is a
    member. `cohort` clients take part in a round, drawn uniformly; None means all.
    """

    model: nn.Module
    data: ImageSet
    owners: Tensor
    members: Tensor
    sizes: Tensor
    algorithm: FedAvg
    defense: Defended
    rounds: int
    run: int
    replica_ids: Sequence[int]
    cohort: int | None = None
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, minimum=1, integer=True)
        check_choice("backend", self.backend, BACKENDS)
        if self.cohort is not None:
            check_number("cohort", self.cohort, minimum=1, maximum=len(self.sizes), integer=True)

    def events(self) -> list[SamplingEvent]:
        """What an accountant composes, one event a client; a client is accounted as if in every cohort."""
        return [self.algorithm.sampler.event(int(size), self.rounds) for size in self.sizes]


def public_sizes(owners: Tensor, clients: int, rate: float) -> Tensor:
    """The number of examples each client is expected to hold [clients], at least 1, from public facts alone."""
    return (torch.bincount(owners, minlength=clients) * rate).round().long().clamp(min=1)


def initial_model(federation: Federation) -> Tree:
    """Each replica's first global model [replicas, ...]: its clients all start from these same weights."""
    each = [initial_parameters(federation.model, seed(federation.run, "model", r)) for r in federation.replica_ids]
    device = federation.data.images.device
    return {name: torch.stack([one[name] for one in each]).to(device) for name in each[0]}


def run(
    federation: Federation,
    recorder: Recorder,
    *,
    model: Tree | None = None,
    first_round: int = 0,
    after_round: Callable[[int, Tree], object] | None = None,
) -> Tree:
    """Play the rounds from `first_round` on and return the final global models [replicas, ...].

    `model` is what `after_round` was given before an interruption; the result is the uninterrupted run's, in
    bits under a fixed backend on a CPU.
    """
    model = initial_model(federation) if model is None else model
    for round in range(first_round, federation.rounds):
        model = play_round(federation, round, model, recorder)
        if not all_finite(model):
            raise InputError(
                f"training diverged in round {round + 1}: lower algorithm.lr (now {federation.algorithm.lr})"
            )
        if after_round is not None:
            after_round(round, model)
    recorder.finished(model)
    return model


def play_round(federation: Federation, round: int, model: Tree, recorder: Recorder) -> Tree:
    """One round of federated averaging: broadcast, local training, tap, aggregate, tap, server step."""
    algorithm, defense = federation.algorithm, federation.defense

    cohort = draw_cohort(federation, round)
    recorder.broadcast(round, model)

    updates = local_training(federation, round, model, cohort)
    updates = defense.on_update(updates, _generators(federation, "update noise", round, cohort))
    shares = weights(algorithm.weighting, _weighing_sizes(federation, cohort))
    recorder.received(round, cohort, shares, updates)

    total = weighted_sum(updates, shares)
    server = torch.zeros(len(cohort), 1, dtype=torch.long)
    total = defense.on_sum(total, [row[0] for row in _generators(federation, "sum noise", round, server)])
    recorder.summed(round, total)

    return algorithm.server_step(model, total)


def draw_cohort(federation: Federation, round: int) -> Tensor:
    """The clients that take part [replicas, cohort], uniformly without replacement."""
    clients = len(federation.sizes)
    if federation.cohort is None or federation.cohort == clients:
        return torch.arange(clients).repeat(len(federation.replica_ids), 1)
    draws = [
        torch.randperm(clients, generator=generator(federation.run, "cohort", replica, round))[: federation.cohort]
        for replica in federation.replica_ids
    ]
    return torch.stack(draws).sort(1).values


def local_training(federation: Federation, round: int, model: Tree, cohort: Tensor) -> Tree:
    """Every client of every replica trains on its own examples, as lanes; returns updates [replicas, cohort, ...]."""
    algorithm, sampler = federation.algorithm, federation.algorithm.sampler
    plan = []
    for row, replica in enumerate(federation.replica_ids):
        for client in cohort[row].tolist():
            mine = torch.nonzero(federation.members[row] & (federation.owners == client)).flatten()
            draw = generator(federation.run, "batches", replica, round, client)
            plan.append(sampler.draw(mine, int(federation.sizes[client]), draw))
    width = cohort.shape[1]
    start = {name: value.repeat_interleave(width, 0) for name, value in model.items()}
    noise = [one for row in _generators(federation, "example noise", round, cohort) for one in row]
    trained = descend(
        start,
        ClassificationLosses(federation.model),
        ExampleFeed(federation.data.images, federation.data.labels, plan),
        algorithm.local_optimizer(),
        rule=federation.defense.example_rule(sampler.batch_size),
        generators=noise,
        backend=federation.backend,
    )
    return {name: (trained[name] - start[name]).unflatten(0, cohort.shape) for name in start}


def _weighing_sizes(federation: Federation, cohort: Tensor) -> Tensor:
    """Sizes that the weights may use [replicas, cohort]: the real ones, or the public ones under a guarantee."""
    if federation.defense.public_sizes:
        return federation.sizes[cohort]
    held = torch.stack(
        [torch.bincount(federation.owners[mine], minlength=len(federation.sizes)) for mine in federation.members]
    )
    return held.gather(1, cohort)


def _generators(federation: Federation, purpose: str, round: int, cohort: Tensor) -> list[list[torch.Generator]]:
    device = federation.data.images.device
    return [
        [generator(federation.run, purpose, replica, round, client, device) for client in cohort[row].tolist()]
        for row, replica in enumerate(federation.replica_ids)
    ]
