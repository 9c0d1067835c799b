"""A federation, and a stack of replicas of it, round by round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fl_core.aggregation import weights
from fl_core.algorithms.fedavg import FedAvg
from fl_core.augmentation import Augmentation
from fl_core.checkpoint import all_finite
from fl_core.cohort import Cohort, Lane, Tile, joined, kept_by, lanes_of, seated, sent_to, tiles
from fl_core.data import ImageSet
from fl_core.devices import Workload
from fl_core.errors import InputError, check_choice, check_number
from fl_core.fleet import Fleet, Ideal, Turn
from fl_core.lanes import BACKENDS, Backend, ExampleRule
from fl_core.local import Job, Trainer, trainer
from fl_core.memory import Footprint, footprint, memory_budget
from fl_core.models import PRECISIONS, Precision, check_trainable, initial_parameters, statistics_of, variables_of
from fl_core.optimizers import Tree
from fl_core.participation import Everyone, Participation
from fl_core.partition import IID, NOBODY, Partition, draw_members, split
from fl_core.sampling import SamplingEvent
from fl_core.seeds import Generators, from_seed, seed
from fl_core.state import State
from fl_core.views import Recorder, SecureServer


class Defended(Protocol):
    """The three places of a round where a defence may act; `defenses.base.Defense` is its home."""

    public_sizes: bool

    def example_rule(self, expected_batch: float) -> ExampleRule | None: ...

    def on_update(self, updates: Tree, generators: Sequence[torch.Generator]) -> Tree: ...

    def on_sum(self, total: Tree, generators: Sequence[torch.Generator]) -> Tree: ...


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Everything that fixes a stack of replicas.

    `data` is the pool of candidates and `owners` [examples] their clients, NOBODY (-1) where no client holds one.
    `members` [replicas, examples] says which replica trains on which example; `replica_ids` are the replicas' numbers
    in the whole study, so that a shard of it draws the same randomness. `sizes` [clients] are public: what a client
    is expected to hold, whoever is a member. `participation` draws the clients of a round and `fleet` says what
    becomes of them. `augmentation` changes pictures each time they are trained on (None: never); `precision` is that of
    local training. `memory` bounds what the lanes of one process take, in bytes (None: `memory.memory_budget`).
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
    participation: Participation = field(default_factory=Everyone)
    fleet: Fleet = field(default_factory=Ideal)
    augmentation: Augmentation | None = None
    precision: Precision = "float32"
    backend: Backend = "auto"
    memory: int | None = None

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, minimum=1, integer=True)
        check_choice("backend", self.backend, BACKENDS)
        check_choice("precision", self.precision, PRECISIONS)
        check_trainable(self.model)
        self.fleet.check(self.participation, len(self.sizes))
        self.algorithm.check(list(variables_of(self.model)))
        if self.augmentation is not None:
            self.augmentation.check(self.data.shape)
        if self.memory is not None:
            check_number("memory", self.memory, minimum=1, integer=True)
        if not self.fleet.synchronous and self.algorithm.broadcast({}, {"": self.sizes}):
            raise InputError(
                "an asynchronous fleet mixes clients of different rounds, whose control variates do not go together; "
                "choose another algorithm, or a synchronous fleet"
            )

    def events(self) -> list[SamplingEvent]:
        """What an accountant composes, one event a client: its sampling over the most rounds it can be in."""
        rounds = self.participation.event(len(self.sizes), self.rounds).rounds
        return [self.algorithm.sampler.event(int(size), rounds) for size in self.sizes]

    @cached_property
    def _examples(self) -> Sequence[Tensor]:
        """Each client's rows of the pool, members or not."""
        order = torch.argsort(self.owners, stable=True)
        counts = torch.bincount(self.owners + 1, minlength=len(self.sizes) + 1)
        return list(torch.split(order, counts.tolist()))[1:]

    def held(self, row: int, client: int) -> Tensor:
        """The examples that a client trains on in the replica at `row`."""
        mine = self._examples[client]
        return mine[self.members[row, mine]]

    @cached_property
    def held_counts(self) -> Tensor:
        """How many they are [replicas, clients]."""
        counts = [torch.bincount(self.owners[mine] + 1, minlength=len(self.sizes) + 1) for mine in self.members]
        return torch.stack(counts)[:, 1:]

    @cached_property
    def footprint(self) -> Footprint:
        """About how much memory lanes take while they train."""
        batch = self.algorithm.sampler.batch(int(self.sizes.max()))
        rule = self.defense.example_rule(1.0)
        return footprint(self.model, self.data.shape, batch, self.algorithm, rule, self.backend)

    @cached_property
    def _turns(self) -> list[tuple[list[Turn], Iterator[Turn]]]:
        sampler = self.algorithm.sampler
        work = Workload(
            clients=len(self.sizes),
            steps=torch.tensor([sampler.steps(int(size)) for size in self.sizes]),
            step_examples=float(sampler.batch(int(self.sizes.max()))),
            model_bytes=sum(value.numel() * value.element_size() for value in variables_of(self.model).values()),
        )
        return [([], self.fleet.turns(self.participation, work, self.run, replica)) for replica in self.replica_ids]

    def turn(self, row: int, round: int) -> Turn:
        """Who was asked, took part, was late or lost in `round`, in the replica at `row`, and when on its clock."""
        known, coming = self._turns[row]
        while len(known) <= round:
            known.append(next(coming))
        return known[round]

    def cohort(self, round: int) -> Cohort:
        """The seats of a round, as many as the fullest replica needs."""
        turns = [self.turn(row, round) for row in range(len(self.replica_ids))]
        width = max(len(turn.clients) for turn in turns)

        def seats(values: list[Tensor], empty: float) -> Tensor:
            return torch.stack([nn.functional.pad(value, (0, width - len(value)), value=empty) for value in values])

        return Cohort(
            clients=seats([turn.clients for turn in turns], NOBODY),
            versions=seats([turn.versions for turn in turns], round),
            work=seats([turn.work for turn in turns], 1.0),
            factors=seats([turn.factors for turn in turns], 0.0).float(),
        )


def public_sizes(owners: Tensor, clients: int, rate: float) -> Tensor:
    """The number of examples each client is expected to hold [clients], at least 1, from public facts alone."""
    return (torch.bincount(owners[owners != NOBODY], minlength=clients) * rate).round().long().clamp(min=1)


def initial_state(federation: Federation) -> State:
    """Before the first round: each replica's clients all start from the same newly drawn weights."""
    each = [initial_parameters(federation.model, seed(federation.run, "model", r)) for r in federation.replica_ids]
    device = federation.data.images.device
    model = {name: torch.stack([one[name] for one in each]).to(device) for name in each[0]}
    algorithm = federation.algorithm
    return State(
        round=0,
        model=model,
        server=algorithm.server_state(model),
        clients=algorithm.client_state(model, len(federation.sizes)),
    )


def federate(
    model: nn.Module,
    data: ImageSet,
    *,
    clients: int,
    rounds: int,
    algorithm: FedAvg,
    defense: Defended,
    partition: Partition | None = None,
    replicas: int = 1,
    membership: float = 1.0,
    run: int = 0,
    **more: Any,
) -> Federation:
    """A federation over `data`, dealt out to the clients by `partition` (None: evenly), as `replicas` of it.

    Each example joins each replica with the chance `membership`. `more` are further fields of `Federation`.
    """
    owners = split(partition or IID(), data, clients, run)
    return Federation(
        model=model,
        data=data,
        owners=owners,
        members=draw_members(replicas, len(data), membership, run, owners),
        sizes=public_sizes(owners, clients, membership),
        algorithm=algorithm,
        defense=defense,
        rounds=rounds,
        run=run,
        replica_ids=range(replicas),
        **more,
    )


def rounds(
    federation: Federation, recorder: Recorder | None = None, *, state: State | None = None, workers: int = 1
) -> Iterator[State]:
    """Play the rounds that are left, one at a time, and hand out the state after each.

    `state` is one that was handed out before an interruption; the rest is then the uninterrupted run's, in bits under
    a fixed backend on a CPU. `workers` processes share the lanes of a round; no number depends on how many they are
    under `loop`, and only last digits under `vmap`. A script that asks for several needs no `__main__` guard. Raises
    InputError where training diverges.
    """
    recorder = recorder or Recorder()
    if not federation.algorithm.aggregator.streams and recorder.view is SecureServer:
        raise InputError("secure_server sees nothing but sums, and this aggregator is no sum; set aggregator=mean")
    state = state or initial_state(federation)
    with trainer(federation.data, workers) as train:
        while state.round < federation.rounds:
            state = play_round(federation, state, recorder, train, workers)
            if not all_finite(state.model):
                raise InputError(
                    f"training diverged in round {state.round}: lower algorithm.lr (now {federation.algorithm.lr})"
                )
            yield state
    recorder.finished(state.model)


def run(
    federation: Federation,
    recorder: Recorder | None = None,
    *,
    state: State | None = None,
    after_round: Callable[[State], object] | None = None,
    workers: int = 1,
) -> State:
    """All of `rounds` at once: call `after_round` with each state, and return the last one."""
    last = state or initial_state(federation)
    for played in rounds(federation, recorder, state=last, workers=workers):
        last = played
        if after_round is not None:
            after_round(last)
    return last


def play_round(federation: Federation, state: State, recorder: Recorder, train: Trainer, workers: int = 1) -> State:
    """One round: broadcast, local training, tap, aggregate, tap, server step."""
    algorithm, defense, round = federation.algorithm, federation.defense, state.round

    cohort = federation.cohort(round)
    sent = algorithm.broadcast(state.model, state.server)
    recorder.broadcast(round, sent)
    past = {**state.past, round: sent}

    shares = weights(algorithm.weighting, _weighing_sizes(federation, cohort), cohort.present) * cohort.factors
    recorder.asked(round, cohort.clients, cohort.versions, shares)

    parts: list[tuple[Tile, Tree]] = []
    total: Tree = {}
    for tile, updates in _local_training(federation, state, past, cohort, train, workers):
        recorder.received(round, tile, updates)
        if algorithm.aggregator.streams:
            part = algorithm.aggregator(updates, shares[tile], cohort.present[tile])
            for name, value in part.items():
                total.setdefault(name, value.new_zeros(len(shares), *value.shape[1:]))[tile[0]] += value
        else:
            parts.append((tile, updates))
    if parts:
        total = algorithm.aggregator(joined(parts, cohort), shares, cohort.present)
    if total:
        total = defense.on_sum(total, _generators(federation, _noise_seeds(federation, round)))
    recorder.summed(round, total)

    model, server = _server_step(federation, state, total, cohort)
    needed = min(federation.turn(row, round).oldest for row in range(len(shares)))
    return State(
        round=round + 1,
        model=model,
        server=server,
        clients=state.clients,
        past={version: tree for version, tree in past.items() if version >= needed},
    )


def _local_training(
    federation: Federation, state: State, past: Mapping[int, Tree], cohort: Cohort, train: Trainer, workers: int
) -> Iterator[tuple[Tile, Tree]]:
    """Every client of every replica trains on its own examples, as lanes, a tile of the cohort at a time.

    Hands out each tile's updates [rows, seats, ...], after the defence; an empty seat's is zero. What the clients keep
    changes in `state.clients`.
    """
    algorithm, sampler, round = federation.algorithm, federation.algorithm.sampler, state.round
    lr = algorithm.lr * algorithm.schedule.factor(round, federation.rounds)
    rule = federation.defense.example_rule(sampler.batch(int(federation.sizes.max())))
    cut = tiles(len(cohort.clients), cohort.clients.shape[1], _most_lanes(federation, cohort, workers))
    places = [(tile, lanes) for tile in cut if (lanes := lanes_of(cohort, tile))]
    begun: list[tuple[Tree, Tree, Tensor]] = []

    def jobs() -> Iterator[Job]:
        for _, lanes in places:
            plan = [_batches(federation, round, lane) for lane in lanes]
            sent, mine = sent_to(past, lanes), kept_by(state.clients, lanes)
            start, optimizer = algorithm.local(lr, sent, mine)
            begun.append((sent, mine, torch.tensor([len(batches) for batches in plan])))
            rows = [batch for batches in plan for batch in batches]
            yield Job(
                model=federation.model,
                start=start,
                optimizer=optimizer,
                rows=torch.cat(rows) if rows else torch.empty(0, dtype=torch.long),
                sizes=[[len(batch) for batch in batches] for batches in plan],
                rule=rule,
                noise=[_lane_seed(federation, "example noise", round, lane) for lane in lanes],
                backend=federation.backend,
                looks=_looks(federation, round, lanes, plan),
                precision=federation.precision,
            )

    for (tile, lanes), trained in zip(places, train(jobs()), strict=True):
        sent, mine, steps = begun.pop(0)
        trained = {name: value.to(federation.data.images.device) for name, value in trained.items()}
        updates, keep = algorithm.message(lr, sent, trained, mine, steps)
        for name, value in keep.items():
            state.clients[name][[lane.row for lane in lanes], [lane.client for lane in lanes]] = value
        seeds = [_lane_seed(federation, "update noise", round, lane) for lane in lanes]
        updates = federation.defense.on_update(updates, _generators(federation, seeds))
        yield tile, seated(updates, cohort.present[tile])


def _looks(federation: Federation, round: int, lanes: Sequence[Lane], plan: list[list[Tensor]]) -> Tensor | None:
    """How the lanes look at the pictures of all their steps, in the order of the rows."""
    if federation.augmentation is None:
        return None
    seeds = [_lane_seed(federation, "augmentation", round, lane) for lane in lanes]
    counts = [sum(len(batch) for batch in batches) for batches in plan]
    each = [federation.augmentation.draw(count, from_seed(one)) for count, one in zip(counts, seeds, strict=True)]
    return torch.cat(each) if each else None


def _lane_seed(federation: Federation, purpose: str, round: int, lane: Lane) -> int:
    return seed(federation.run, purpose, federation.replica_ids[lane.row], round, lane.client)


def _noise_seeds(federation: Federation, round: int) -> list[int]:
    return [seed(federation.run, "sum noise", replica, round) for replica in federation.replica_ids]


def _generators(federation: Federation, seeds: Sequence[int]) -> Generators:
    return Generators(seeds, federation.data.images.device)


def _batches(federation: Federation, round: int, lane: Lane) -> list[Tensor]:
    """A client's batches; one that does only a share of its work does the first ones, at least one."""
    draw = from_seed(_lane_seed(federation, "batches", round, lane))
    size = int(federation.sizes[lane.client])
    batches = federation.algorithm.sampler.draw(federation.held(lane.row, lane.client), size, draw)
    return batches if lane.work >= 1 else batches[: max(1, math.floor(lane.work * len(batches) + 1e-9))]


def _server_step(federation: Federation, state: State, update: Tree, cohort: Cohort) -> tuple[Tree, Tree]:
    """The algorithm's own step; a replica that received nothing stays as it is, and statistics are just averaged."""
    if not update:
        return state.model, state.server
    algorithm = federation.algorithm
    lr = algorithm.server_lr * algorithm.server_schedule.factor(state.round, federation.rounds)
    share = cohort.present.sum(1) / len(federation.sizes)
    model, server = algorithm.server_step(lr, state.model, state.server, update, share)
    for name in statistics_of(federation.model) & update.keys():
        model[name] = state.model[name] + update[name]
    moved = cohort.present.any(1)
    if moved.all():
        return model, server

    def stay(new: Tree, old: Tree) -> Tree:
        return {
            name: torch.where(moved.to(value.device).view(-1, *[1] * (value.dim() - 1)), value, old[name])
            for name, value in new.items()
        }

    return stay(model, state.model), stay(server, state.server)


def _most_lanes(federation: Federation, cohort: Cohort, workers: int) -> int:
    """How many lanes train together: what memory allows, and no more than leave work for every worker."""
    budget = federation.memory or memory_budget(federation.data.images.device)
    share = -(-cohort.clients.numel() // workers)
    return share if share <= 1 else min(federation.footprint.lanes(budget / workers), share)


def _weighing_sizes(federation: Federation, cohort: Cohort) -> Tensor:
    """Sizes that the weights may use [replicas, seats]: the real ones, or the public ones under a guarantee."""
    clients = cohort.clients.clamp(min=0)
    if federation.defense.public_sizes:
        return federation.sizes[clients]
    return federation.held_counts.gather(1, clients)
