"""A federation, and a stack of replicas of it, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fl_core.aggregation import public_weights
from fl_core.algorithms.fedavg import FedAvg
from fl_core.attempts import reaching
from fl_core.augmentation import Augmentation
from fl_core.checkpoint import all_finite
from fl_core.cohort import Cohort
from fl_core.data import ImageSet
from fl_core.defended import Defended, Gathering, Senders, Summed
from fl_core.devices import Workload
from fl_core.errors import InputError, check_choice, check_number
from fl_core.fleet import Fleet, Ideal, Turn, lost_in
from fl_core.lanes import BACKENDS, Backend
from fl_core.local import Trainer, trainer
from fl_core.local_training import local_training
from fl_core.memory import Footprint, footprint
from fl_core.models import PRECISIONS, Precision, check_trainable, initial_parameters, statistics_of, variables_of
from fl_core.optimizers import Tree
from fl_core.participation import Everyone, Participation
from fl_core.partition import IID, NOBODY, Partition, draw_members, split
from fl_core.plan import Plan
from fl_core.planning import no_updates, plan_of
from fl_core.seeds import Generators, seed
from fl_core.state import State
from fl_core.summing import Summing, in_the_clear
from fl_core.tampering import Tampering, tampered
from fl_core.views import MaliciousServer, Recorder, SecureServer
from fl_core.weighing import Weighing, weigh


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Everything that fixes a stack of replicas.

    `data` is the pool of candidates and `owners` [examples] their clients, NOBODY (-1) where no client holds one.
    `members` [replicas, examples] says which replica trains on which example; `replica_ids` are the replicas' numbers
    in the whole study, so that a shard of it draws the same randomness. `sizes` [clients] are public: what a client
    is expected to hold, whoever is a member. `participation` draws the clients of a round and `fleet` says what
    becomes of them. `augmentation` changes pictures each time they are trained on (None: never); `precision` is that of
    local training. `memory` bounds what the lanes of one process take, in bytes (None: `memory.memory_budget`).
    `tamper` is what a malicious server changes about the model it sends (None: the server is honest).
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
    tamper: Tampering | None = None

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, minimum=1, integer=True)
        check_choice("backend", self.backend, BACKENDS)
        check_choice("precision", self.precision, PRECISIONS)
        check_trainable(self.model)
        self.fleet.check(self.participation, len(self.sizes))
        self.algorithm.check(list(variables_of(self.model)))
        for schedule in (self.algorithm.schedule, self.algorithm.server_schedule):
            schedule.factor(0, self.rounds)
        if self.augmentation is not None:
            self.augmentation.check(self.data.shape)
        if self.memory is not None:
            check_number("memory", self.memory, minimum=1, integer=True)
        if not self.fleet.synchronous and self.algorithm.broadcast({}, {"": self.sizes}):
            raise InputError(
                "an asynchronous fleet mixes clients of different rounds, whose control variates do not go together; "
                "choose another algorithm, or a synchronous fleet"
            )
        if not self.fleet.synchronous and self.tamper is not None:
            raise InputError("a tampered model goes out to a whole round at once; choose a synchronous fleet")

    @cached_property
    def plan(self) -> Plan:
        """What is public of these replicas' rounds; a shard's plan speaks of its own replicas alone."""
        return plan_of(self)

    def calibrated(self) -> Federation:
        """The same federation with its defence ready: noise calibrated to what its own samplers draw."""
        return replace(self, defense=self.defense.prepare(self.plan))

    @cached_property
    def expected_cohort(self) -> float:
        """How many clients a round asks, on average; public."""
        return self.participation.expected(len(self.sizes))

    @cached_property
    def public_weights(self) -> Tensor:
        """Each client's weight [clients] under a defence that wants public ones, float64."""
        return public_weights(self.algorithm.weighting, self.sizes, self.defense.weight_cap)

    @cached_property
    def public_divisor(self) -> float:
        """What a sum is divided by then, whoever comes: the weight of a cohort of the expected size."""
        return self.expected_cohort * float(self.public_weights.mean())

    @cached_property
    def public_shares(self) -> Tensor:
        """What each client's update counts [clients] then, float64."""
        return self.public_weights / self.public_divisor

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
    def most_examples(self) -> int:
        """The most that any client can hold, whoever is a member; public."""
        return max(map(len, self._examples))

    @cached_property
    def footprint(self) -> Footprint:
        """About how much memory lanes take while they train."""
        batch = self.algorithm.sampler.batch(int(self.sizes.max()))
        rule = self.defense.example_rule(float(batch))
        kept = self.defense.client_state()
        return footprint(self.model, self.data.shape, batch, self.algorithm, rule, self.backend, kept)

    @cached_property
    def _turns(self) -> list[tuple[list[Turn], Iterator[Turn]]]:
        sampler = self.algorithm.sampler
        work = Workload(
            clients=len(self.sizes),
            steps=torch.tensor([sampler.steps(int(size)) for size in self.sizes]),
            step_examples=float(sampler.batch(int(self.sizes.max()))),
            model_bytes=sum(value.numel() * value.element_size() for value in variables_of(self.model).values()),
        )

        def turns(replica: int) -> Iterator[Turn]:
            each = self.fleet.turns(self.participation, work, self.run, replica)
            return reaching(each, self.defense.lacks) if self.fleet.synchronous else each

        return [([], turns(replica)) for replica in self.replica_ids]

    def turn(self, row: int, round: int) -> Turn:
        """Who was asked, took part, was late or lost in `round`, in the replica at `row`, and when on its clock."""
        known, coming = self._turns[row]
        while len(known) <= round:
            known.append(next(coming))
        return known[round]

    def turns(self, round: int) -> list[Turn]:
        """Those of all replicas."""
        return [self.turn(row, round) for row in range(len(self.replica_ids))]

    def cohort(self, round: int) -> Cohort:
        """The seats of a round, as many as the fullest replica needs."""
        turns = self.turns(round)

        def seats(values: list[Tensor], empty: float) -> Tensor:
            width = max(map(len, values))
            return torch.stack([nn.functional.pad(value, (0, width - len(value)), value=empty) for value in values])

        return Cohort(
            clients=seats([turn.clients for turn in turns], NOBODY),
            versions=seats([turn.versions for turn in turns], round),
            work=seats([turn.work for turn in turns], 1.0),
            factors=seats([turn.factors for turn in turns], 0.0).float(),
            dropped=seats([torch.tensor(lost_in(turn), dtype=torch.long) for turn in turns], NOBODY),
        )


def public_sizes(owners: Tensor, clients: int, rate: float) -> Tensor:
    """The number of examples each client is expected to hold [clients], at least 1, from public facts alone."""
    return (torch.bincount(owners[owners != NOBODY], minlength=clients) * rate).round().long().clamp(min=1)


def initial_state(federation: Federation) -> State:
    """Before the first round: each replica's clients all start from the same newly drawn weights."""
    each = [initial_parameters(federation.model, seed(federation.run, "model", r)) for r in federation.replica_ids]
    device = federation.data.images.device
    model = {name: torch.stack([one[name] for one in each]).to(device) for name in each[0]}
    algorithm, defense, rows, clients = federation.algorithm, federation.defense, len(each), len(federation.sizes)
    message = {name: value.new_zeros(value.shape[1:]) for name, value in no_updates(algorithm, model).items()}
    server, client = defense.server_state(message), defense.client_state()
    return State(
        round=0,
        model=model,
        server=algorithm.server_state(model),
        defense={name: value.to(device).repeat(rows, *[1] * value.dim()) for name, value in server.items()},
        clients=algorithm.client_state(model, clients)
        | {name: value.to(device).repeat(rows, clients, *[1] * value.dim()) for name, value in client.items()},
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
    a fixed backend on a CPU. `workers` processes share the lanes of a round, and the memory; no number depends on how
    many they are under `loop`, and only last digits under `vmap`. A script that asks for several needs no `__main__`
    guard. Raises InputError where training diverges, and for a federation that the defence does not cover.
    """
    recorder = recorder or Recorder()
    if not federation.algorithm.aggregator.streams and recorder.view in (SecureServer, MaliciousServer):
        raise InputError(
            f"{recorder.view.view} sees nothing but sums, and this aggregator is no sum; set aggregator=mean"
        )
    if not federation.fleet.synchronous and recorder.view is MaliciousServer:
        raise InputError("malicious_server sends to a whole round at once; choose a synchronous fleet")
    federation.defense.check(federation.plan)
    if federation.defense.masks:
        recorder.mask()
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
    """One round: broadcast, local training, tap, aggregate, tap, the defence on the sum, server step."""
    algorithm, defense, round = federation.algorithm, federation.defense, state.round

    cohort = federation.cohort(round)
    sent = algorithm.broadcast(state.model, state.server) | defense.broadcast(state.defense)
    changed = tampered(federation.tamper, round, state.model, sent) if federation.tamper else {}
    sent |= changed
    recorder.broadcast(round, sent)
    past = {**state.past, round: sent}

    weighing = weigh(federation, cohort)
    recorder.asked(round, cohort, weighing.shares)

    summing = _summing(federation, round, cohort, weighing, sent)
    for tile, updates in local_training(federation, state, past, cohort, train, workers):
        recorder.received(round, tile, updates)
        summing.add(tile, updates)
    total = summing.total()
    if not total and defense.public_shares:  # whether anybody took part is private: noise alone must do
        total = _sum_over_nobody(federation, state, sent)
    recorder.summed(round, total, weighing.divisors)

    kept = dict(state.defense)
    if total:
        total = defense.on_sum(total, Summed(round, weighing.largest_share, _draws(federation), kept))
    from_sent = replace(state, model=state.model | changed) if total else state
    model, server = _server_step(federation, from_sent, total, cohort)
    if not (defense.public_shares or cohort.present.any(1).all()):  # a replica that received nothing stays as it is
        moved = cohort.present.any(1)
        model, server = _where(moved, model, state.model), _where(moved, server, state.server)
        kept = _where(moved, kept, state.defense)
    needed = min(turn.oldest for turn in federation.turns(round))
    return State(
        round=round + 1,
        model=model,
        server=server,
        defense=kept,
        clients=state.clients,
        past={version: tree for version, tree in past.items() if version >= needed},
    )


def _summing(federation: Federation, round: int, cohort: Cohort, weighing: Weighing, sent: Tree) -> Summing:
    """Who takes the updates and sums them: the server, or the defence in its place."""
    gathering = Gathering(
        run=federation.run,
        replica_ids=federation.replica_ids,
        turns=federation.turns(round),
        cohort=cohort,
        weighing=weighing,
        sent=sent,
    )
    masked = federation.defense.summing(gathering)
    return masked or in_the_clear(federation.algorithm.aggregator, cohort, weighing.shares)


def _sum_over_nobody(federation: Federation, state: State, sent: Tree) -> Tree:
    """Zeros like a cohort's sum [replicas, ...], with all that the defence sends beside an update."""
    nobody = Senders({name: value[:0] for name, value in sent.items()}, (), federation.expected_cohort)
    message = federation.defense.on_update(no_updates(federation.algorithm, state.model), nobody)
    return {name: value.new_zeros(len(federation.replica_ids), *value.shape[1:]) for name, value in message.items()}


def _draws(federation: Federation) -> Callable[[str], Generators]:
    """Generators of the replicas for the noise in a sum, by its key."""

    def draws(key: str) -> Generators:
        seeds = [seed(federation.run, f"sum noise {key}", replica) for replica in federation.replica_ids]
        return Generators(seeds, federation.data.images.device)

    return draws


def _server_step(federation: Federation, state: State, update: Tree, cohort: Cohort) -> tuple[Tree, Tree]:
    """The algorithm's own step; statistics are just averaged."""
    if not update:
        return state.model, state.server
    algorithm = federation.algorithm
    lr = algorithm.server_lr * algorithm.server_schedule.factor(state.round, federation.rounds)
    share = federation.expected_cohort if federation.defense.public_shares else cohort.present.sum(1)
    share = torch.as_tensor(share, dtype=torch.float32).expand(len(cohort.clients)) / len(federation.sizes)
    model, server = algorithm.server_step(lr, state.model, state.server, update, share)
    for name in statistics_of(federation.model) & update.keys():
        model[name] = state.model[name] + update[name]
    return model, server


def _where(moved: Tensor, new: Tree, old: Tree) -> Tree:
    """The new values [replicas, ...] of the replicas that `moved`, and the old ones of the others."""
    return {
        name: torch.where(moved.to(value.device).view(-1, *[1] * (value.dim() - 1)), value, old[name])
        for name, value in new.items()
    }
