"""What becomes of the clients that are asked: devices, stragglers, losses, and a virtual clock.

A fleet decides by clocks and coins alone, before anybody trains. Its turns are a pure function of the run and the
replica, and nothing in them depends on an example: durations follow from public sizes.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fl_core.devices import Devices, Trips
from fl_core.devices import Workload as Workload
from fl_core.errors import InputError, check_choice, check_number
from fl_core.participation import Available, Cyclic, Participation, PoissonClients, Uniform
from fl_core.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One round of one replica.

    `clients` [n] are those whose updates the server uses: sorted when synchronous, in order of arrival otherwise, and
    none of them twice. `versions` [n] is the round whose global model each started from, `work` [n] the share of its
    local steps that each did, in (0, 1], and `factors` [n] what its weight is multiplied with. `asked` are the clients
    that were asked in this round; an asynchronous round names one twice that was lost and asked again. `lost` says
    who ceased in this round: `before` training, `after` it, or `late`: arrived past the deadline, or too stale.
    `oldest` is the oldest round whose model somebody still trains on afterwards, the next round's where nobody does.
    `began` and `ended` are seconds on the virtual clock. `attempt` counts the cohorts that were asked before this one,
    `aborted` those of them that were asked for this round and let go; see `attempts.reaching`.
    """

    round: int
    attempt: int
    clients: Tensor
    versions: Tensor
    work: Tensor
    factors: Tensor
    asked: Tensor
    lost: dict[str, list[int]]
    oldest: int
    began: float
    ended: float
    aborted: tuple[Turn, ...] = ()


class Fleet(Protocol):
    """Turns a participation into rounds."""

    @property
    def synchronous(self) -> bool:
        """Whether all who train in a round start from that round's model."""
        ...

    def check(self, participation: Participation, clients: int) -> None:
        """InputError where the two do not go together, or do not fit that many clients."""
        ...

    def turns(self, participation: Participation, work: Workload, run: int, replica: int) -> Iterator[Turn]:
        """Round 0, 1, 2, ... without end. A resumed run iterates again and skips."""
        ...


@dataclass(frozen=True)
class Ideal(Fleet):
    """Everybody asked takes part at once. There is no clock: every round takes 0 s."""

    synchronous: ClassVar[bool] = True

    def check(self, participation: Participation, clients: int) -> None:
        participation.check(clients)

    def turns(self, participation: Participation, work: Workload, run: int, replica: int) -> Iterator[Turn]:
        self.check(participation, work.clients)
        for round in itertools.count():
            asked = participation.draw(work.clients, run, replica, round)
            yield Turn(
                round=round,
                attempt=round,
                clients=asked,
                versions=torch.full_like(asked, round),
                work=torch.ones(len(asked), dtype=torch.float64),
                factors=torch.ones(len(asked), dtype=torch.float64),
                asked=asked,
                lost=_nobody(),
                oldest=round + 1,
                began=0.0,
                ended=0.0,
            )


@dataclass(frozen=True)
class Synchronous(Fleet):
    """Rounds that begin together, with over-selection and deadlines (Bonawitz et al. 2019, sections 2.2 and 9).

    A round closes when `target` updates have arrived (None waits for all who are not lost), or `deadline` seconds
    after it began (None: no limit), whichever is first. To over-select, let the participation ask for more than
    `target`; where chance asks fewer, all of them are waited for. Whoever has not arrived by then stops and is late.
    Arrivals at the same instant count by client number.

    With `partial`, a client that would miss the deadline does the whole steps it has time for instead, at least one
    (Li et al. 2020, FedProx); the deadline can still come before its first.

    A loss is silent: a target that losses put out of reach keeps the server waiting until the deadline, and without
    one until the last arrival. A round in which nobody arrives lasts until the deadline, and without one until the
    slowest would have been heard of: 0 s where nobody was asked.
    """

    devices: Devices
    target: int | None = None
    deadline: float | None = None
    partial: bool = False

    synchronous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_devices(self.devices)
        if self.target is not None:
            check_number("fleet.target", self.target, minimum=1, integer=True)
        if self.deadline is not None:
            check_number("fleet.deadline", self.deadline, above=0)
        if not isinstance(self.partial, bool):
            raise InputError(f"fleet.partial is {self.partial!r}; it must be true or false")
        if self.partial and self.deadline is None:
            raise InputError("fleet.partial is true, but there is no deadline to stop for; set fleet.deadline")

    def check(self, participation: Participation, clients: int) -> None:
        participation.check(clients)
        drawn = participation.event(clients, 1).kind in ("fixed", "uniform", "cyclic")
        most = len(participation.draw(clients, 0, 0, 0)) if drawn else clients
        if self.target is not None and self.target > most:
            raise InputError(
                f"fleet.target is {self.target}, but a round asks {most} clients at most; lower it, or ask more"
            )

    def turns(self, participation: Participation, work: Workload, run: int, replica: int) -> Iterator[Turn]:
        self.check(participation, work.clients)
        hardware = self.devices.hardware(work.clients, run, replica)
        now = 0.0
        for round in itertools.count():
            asked = participation.draw(work.clients, run, replica, round)
            trips = self.devices.trips(hardware, work, asked, generator(run, "device turns", replica, round))
            turn = self._close(round, now, asked, work.steps[asked].double(), trips)
            yield turn
            now = turn.ended

    def _close(self, round: int, began: float, asked: Tensor, steps: Tensor, trips: Trips) -> Turn:
        deadline = math.inf if self.deadline is None else self.deadline
        heard, done = trips.heard(steps), steps
        if self.partial:
            # The small term keeps a step that fits exactly; rounding must not make it miss the deadline either.
            fit = ((deadline - trips.download - trips.upload) / trips.step + 1e-9).floor().clamp(max=steps)
            stops = (heard > deadline) & (fit >= 1)
            done = torch.where(stops, fit, steps)
            heard = torch.where(stops, trips.heard(done).clamp(max=deadline), heard)
        kept = ~(trips.before | trips.after)
        came = torch.nonzero(kept & (heard <= deadline)).flatten()
        came = came[heard[came].argsort(stable=True)]
        wanted = int(kept.sum()) if self.target is None else min(self.target, len(asked))
        if len(came) >= wanted > 0:
            came = came[:wanted]
            seconds = float(heard[came[-1]])
        elif self.deadline is not None:
            seconds = self.deadline
        else:
            last = heard if not len(came) else heard[came]
            seconds = float(last.max()) if len(last) else 0.0
        used = came.sort().values
        late = kept.clone()
        late[used] = False
        return Turn(
            round=round,
            attempt=round,
            clients=asked[used],
            versions=torch.full_like(used, round),
            work=done[used] / steps[used],
            factors=torch.ones(len(used), dtype=torch.float64),
            asked=asked,
            lost={
                "before": asked[trips.before].tolist(),
                "after": asked[trips.after].tolist(),
                "late": asked[late].tolist(),
            },
            oldest=round + 1,
            began=began,
            ended=began + seconds,
        )


@dataclass(frozen=True)
class Buffered(Fleet):
    """FedBuff: `concurrency` clients train at any time, and every `buffer` updates make a round (Nguyen et al. 2022).

    A client starts from the model that is current when it is asked. Its update is tau rounds stale when it arrives,
    and weighs (1 + tau)^-exponent (`polynomial`, theirs with exponent 0.5) or 1 (`constant`); an update with tau above
    `max_staleness` (None: no limit) is thrown away, and not even trained here: no view shows it, although a real server
    would have seen it. A free slot asks a client uniformly among those that the
    participation holds eligible in the current round, neither busy nor already in the buffer. So a client is in a
    round once at most, and in no more rounds than its ParticipationEvent says: a sum's sensitivity and an accountant
    rely on it. Only with few clients does it leave a slot empty that the paper would fill.

    A device lost before training frees its slot after the download, one lost after it when its update would have
    arrived. Arrivals at the same instant come one by one, by client number. When nobody is busy and nobody can be
    asked, the server takes its step with what the buffer holds.
    """

    devices: Devices
    concurrency: int
    buffer: int
    staleness: Literal["polynomial", "constant"] = "polynomial"
    exponent: float = 0.5
    max_staleness: int | None = None

    synchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_devices(self.devices)
        check_number("fleet.concurrency", self.concurrency, minimum=1, integer=True)
        check_number("fleet.buffer", self.buffer, minimum=1, integer=True)
        check_choice("fleet.staleness", self.staleness, ("polynomial", "constant"))
        check_number("fleet.exponent", self.exponent, minimum=0)
        if self.max_staleness is not None:
            check_number("fleet.max_staleness", self.max_staleness, minimum=0, integer=True)

    def check(self, participation: Participation, clients: int) -> None:
        participation.check(clients)
        fixed = participation.event(clients, 1).kind == "fixed"
        most = len(participation.eligible(clients, 0, 0, 0)) if fixed else clients
        for name, value in (("concurrency", self.concurrency), ("buffer", self.buffer)):
            if value > most:
                raise InputError(f"fleet.{name} is {value}, but only {most} clients can be asked; lower it or add some")
        if isinstance(participation, Uniform | PoissonClients):
            raise InputError(
                "an asynchronous fleet asks clients one by one and draws no cohorts; set participation=everyone"
            )
        if isinstance(participation, Available | Cyclic) and participation.cohort is not None:
            raise InputError(
                f"participation.cohort is {participation.cohort}, but an asynchronous fleet asks clients one by one "
                "and draws no cohorts; set participation.cohort=null"
            )

    def turns(self, participation: Participation, work: Workload, run: int, replica: int) -> Iterator[Turn]:
        self.check(participation, work.clients)
        hardware = self.devices.hardware(work.clients, run, replica)
        # When the server hears of a busy client, the client, the round it started in, and how it is lost, if it is.
        busy: list[tuple[float, int, int, str | None]] = []
        now, asks = 0.0, itertools.count()
        for round in itertools.count():
            began, asked, lost = now, list[int](), _nobody()
            clients, versions = list[int](), list[int]()
            eligible = torch.zeros(work.clients, dtype=torch.bool)
            eligible[participation.eligible(work.clients, run, replica, round)] = True
            free = eligible.clone()
            free[[client for _, client, _, _ in busy]] = False
            while len(clients) < self.buffer:
                while len(busy) < self.concurrency and bool(free.any()):
                    ask = next(asks)
                    client = _one(torch.nonzero(free).flatten(), generator(run, "free slots", replica, ask))
                    who, coins = torch.tensor([client]), generator(run, "device turns", replica, ask)
                    trips = self.devices.trips(hardware, work, who, coins)
                    loss = "before" if trips.before else "after" if trips.after else None
                    heapq.heappush(busy, (now + float(trips.heard(work.steps[who])), client, round, loss))
                    asked.append(client)
                    free[client] = False
                if not busy:
                    break
                now, client, version, loss = heapq.heappop(busy)
                if loss is None and self.max_staleness is not None and round - version > self.max_staleness:
                    loss = "late"
                if loss is None:
                    clients.append(client)
                    versions.append(version)
                else:
                    lost[loss].append(client)
                    free[client] = eligible[client]
            tau = round - torch.tensor(versions, dtype=torch.float64)
            yield Turn(
                round=round,
                attempt=round,
                clients=torch.tensor(clients, dtype=torch.int64),
                versions=torch.tensor(versions, dtype=torch.int64),
                work=torch.ones(len(clients), dtype=torch.float64),
                factors=(1 + tau) ** -self.exponent if self.staleness == "polynomial" else torch.ones_like(tau),
                asked=torch.tensor(asked, dtype=torch.int64),
                lost=lost,
                oldest=min((version for _, _, version, _ in busy), default=round + 1),
                began=began,
                ended=now,
            )


def lost_in(turn: Turn) -> list[int]:
    """Who was asked and lost, in whatever way, by client number."""
    return sorted(client for lost in turn.lost.values() for client in lost)


def time_to(accuracy: Sequence[float], ended: Sequence[float], target: float) -> float | None:
    """The virtual second at which the accuracy first reached `target`; None if it never did.

    `accuracy` [rounds] is that of the model after each round, NaN where it was not measured, and `ended` [rounds] the
    clock then.
    """
    rounds = zip(accuracy, ended, strict=True)
    return next((float(second) for reached, second in rounds if reached >= target), None)


def times_to(
    accuracy: Sequence[Sequence[float]], ended: Sequence[Sequence[float]], target: float
) -> list[float | None]:
    """`time_to` of each replica, from [replicas, rounds]."""
    return [time_to(one, clock, target) for one, clock in zip(accuracy, ended, strict=True)]


def log_line(turn: Turn) -> dict[str, object]:
    """A round in plain JSON values: who took part and how, who was lost, and the seconds on the virtual clock.

    Attempts that were let go stand under `aborted`, where there are any.
    """
    line: dict[str, object] = {
        "round": turn.round,
        "asked": turn.asked.tolist(),
        "clients": turn.clients.tolist(),
        "staleness": (turn.round - turn.versions).tolist(),
        "factors": turn.factors.tolist(),
        "work": turn.work.tolist(),
        "lost": {name: list(clients) for name, clients in turn.lost.items()},
        "began": turn.began,
        "ended": turn.ended,
    }
    return line | {"aborted": [log_line(one) for one in turn.aborted]} if turn.aborted else line


def _nobody() -> dict[str, list[int]]:
    return {"before": [], "after": [], "late": []}


def _one(candidates: Tensor, draw: torch.Generator) -> int:
    return int(candidates[torch.randint(len(candidates), (), generator=draw)])


def _check_devices(devices: object) -> None:
    if not isinstance(devices, Devices):
        raise InputError(f"fleet.devices is {devices!r}; give it _target_: fl_core.devices.Devices and its numbers")
