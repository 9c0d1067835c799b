"""Which clients are asked in which round, and what an accountant may compose for one of them.

What decides the cohort also names its event, so that what is accounted is what was done. Every choice is a pure
function of the run, the replica and the round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fl_core.errors import InputError, check_number
from fl_core.seeds import generator, seed


@dataclass(frozen=True)
class ParticipationEvent:
    """How one client is drawn over a whole run; all numbers are public.

    `rate` is the chance that a round which could include the client does, and 1 where there is no amplification to
    claim. `rounds` is the most rounds in which a client can take part. What `rate` is depends on `kind`:

    - `fixed`, `availability`: 1. Nothing is drawn anew, or by a chance that nobody can vouch for or that depends on
      the rounds before.
    - `uniform`: cohort / clients, drawn without replacement. The cohort's size is fixed, so neighbours replace one
      client (Balle, Barthe & Gaboardi 2018, Theorem 9); it is not a Poisson rate and must not be composed as one.
    - `cyclic`: the same inside a block.
    - `poisson`: the Poisson rate; neighbours add or remove one client.

    A rate amplifies only against those who never learn who took part: whoever sees the models alone. A server that
    knows the cohort grants none, whatever its members are told. It speaks of who is asked. A synchronous fleet may
    lose some of them afterwards, by clocks and coins that know no data; an asynchronous one asks in its own way, and
    then only `rounds` holds.
    """

    kind: Literal["fixed", "uniform", "poisson", "availability", "cyclic"]
    rate: float
    rounds: int


class Participation(Protocol):
    """Draws the clients of a round, as sorted numbers (int64)."""

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        """The clients that could be asked [n]."""
        ...

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        """The clients that are asked [n]; none only where chance decides how many they are."""
        ...

    def expected(self, clients: int) -> float:
        """How many are asked in a round, on average; public."""
        ...

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        """What an accountant may compose for one client over so many rounds."""
        ...

    def check(self, clients: int) -> None:
        """InputError where it does not fit that many clients."""
        ...


def _some(candidates: Tensor, cohort: int | None, draw: torch.Generator) -> Tensor:
    """`cohort` of the candidates, uniformly without replacement; all of them where they are fewer, or for None."""
    return candidates[torch.randperm(len(candidates), generator=draw)[:cohort]].sort().values


def _check_cohort(cohort: int, most: int, of: str) -> None:
    if cohort > most:
        raise InputError(f"participation.cohort is {cohort}, but there are only {most} {of}; lower it or add clients")


@dataclass(frozen=True)
class Everyone(Participation):
    """All clients, in every round. No amplification for anyone."""

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return torch.arange(clients)

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return torch.arange(clients)

    def expected(self, clients: int) -> float:
        return clients

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        return ParticipationEvent("fixed", 1.0, rounds)

    def check(self, clients: int) -> None: ...


@dataclass(frozen=True)
class Fixed(Participation):
    """The same `cohort` clients in every round, drawn once a replica: cross-silo. No amplification for anyone."""

    cohort: int

    def __post_init__(self) -> None:
        check_number("participation.cohort", self.cohort, minimum=1, integer=True)

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return _some(torch.arange(clients), self.cohort, generator(run, "fixed cohort", replica))

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return self.eligible(clients, run, replica, round)

    def expected(self, clients: int) -> float:
        return self.cohort

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        return ParticipationEvent("fixed", 1.0, rounds)

    def check(self, clients: int) -> None:
        _check_cohort(self.cohort, clients, "clients")


@dataclass(frozen=True)
class Uniform(Participation):
    """A new cohort in every round, uniformly without replacement (McMahan et al. 2017, Algorithm 1).

    Amplifies under replace-one neighbours, for those who see models alone.
    """

    cohort: int

    def __post_init__(self) -> None:
        check_number("participation.cohort", self.cohort, minimum=1, integer=True)

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return torch.arange(clients)

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return _some(torch.arange(clients), self.cohort, generator(run, "cohort", replica, round))

    def expected(self, clients: int) -> float:
        return self.cohort

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        return ParticipationEvent("uniform", self.cohort / clients, rounds)

    def check(self, clients: int) -> None:
        _check_cohort(self.cohort, clients, "clients")


@dataclass(frozen=True)
class PoissonClients(Participation):
    """Every client by its own coin, in every round (McMahan et al. 2018, Algorithm 1); a round may have nobody.

    Amplifies under add-or-remove-one neighbours, for those who see models alone. The expected cohort, rate x clients,
    is public; the real one is not, and must divide no sum.
    """

    rate: float

    def __post_init__(self) -> None:
        check_number("participation.rate", self.rate, above=0, maximum=1)

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return torch.arange(clients)

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        coins = torch.rand(clients, dtype=torch.float64, generator=generator(run, "cohort coins", replica, round))
        return torch.nonzero(coins < self.rate).flatten()

    def expected(self, clients: int) -> float:
        return self.rate * clients

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        return ParticipationEvent("poisson", float(self.rate), rounds)

    def check(self, clients: int) -> None: ...


@dataclass(frozen=True)
class Available(Participation):
    """Clients that come and go, as phones that charge at night (Eichner et al. 2019; Yang et al. 2021).

    A client is available for a `share` of every `period` of rounds, in one stretch that begins at its own time of
    day, drawn once a replica. The cohort is drawn uniformly among those available: all of them where they are fewer
    than `cohort`, or where it is None. A round may have nobody.

    No amplification for anyone: how many are available is neither fixed nor known, and when a client is at hand may
    be known to all. For the same reason `rounds` counts on nobody's absence.
    """

    cohort: int | None
    period: int
    share: float

    def __post_init__(self) -> None:
        if self.cohort is not None:
            check_number("participation.cohort", self.cohort, minimum=1, integer=True)
        check_number("participation.period", self.period, minimum=1, integer=True)
        check_number("participation.share", self.share, above=0, maximum=1)

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        # A phase between rounds makes every client available with chance `share`, whole rounds or not.
        phases = torch.rand(clients, dtype=torch.float64, generator=generator(run, "time of day", replica))
        return torch.nonzero((phases + round / self.period) % 1 < self.share).flatten()

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        available = self.eligible(clients, run, replica, round)
        return _some(available, self.cohort, generator(run, "cohort", replica, round))

    def expected(self, clients: int) -> float:
        return self.share * clients if self.cohort is None else self.cohort

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        return ParticipationEvent("availability", 1.0, rounds)

    def check(self, clients: int) -> None:
        if self.cohort is not None:
            _check_cohort(self.cohort, clients, "clients")


@dataclass(frozen=True)
class Cyclic(Participation):
    """`groups` blocks of clients that take turns (block-cyclic, Eichner et al. 2019).

    Neighbours in number share a block, and blocks differ by one client at most. Block `round mod groups` is asked:
    `cohort` of it, uniformly without replacement, or all of it where `cohort` is None.

    A client can take part in one of `groups` rounds only, whoever looks on. Inside a block a cohort amplifies under
    replace-one neighbours, for those who see models alone; `rate` is that of the smallest block.
    """

    cohort: int | None
    groups: int

    def __post_init__(self) -> None:
        if self.cohort is not None:
            check_number("participation.cohort", self.cohort, minimum=1, integer=True)
        check_number("participation.groups", self.groups, minimum=1, integer=True)

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return torch.arange(clients).tensor_split(self.groups)[round % self.groups]

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        block = self.eligible(clients, run, replica, round)
        return _some(block, self.cohort, generator(run, "cohort", replica, round))

    def expected(self, clients: int) -> float:
        return clients / self.groups if self.cohort is None else self.cohort

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        rate = 1.0 if self.cohort is None else self.cohort / (clients // self.groups)
        return ParticipationEvent("cyclic", rate, math.ceil(rounds / self.groups))

    def check(self, clients: int) -> None:
        if self.groups > clients:
            raise InputError(
                f"participation.groups is {self.groups}, but there are only {clients} clients; lower it or add clients"
            )
        if self.cohort is not None:
            _check_cohort(self.cohort, clients // self.groups, f"clients in the smallest of {self.groups} blocks")


@dataclass(frozen=True)
class Swapping(Participation):
    """A random cohort of which, from round to round, one random client leaves and one from outside joins.

    So cohorts change as slowly as they can, as where devices come and go one by one. No amplification for anyone.
    """

    cohort: int

    def __post_init__(self) -> None:
        check_number("participation.cohort", self.cohort, minimum=1, integer=True)

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return torch.arange(clients)

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        order = torch.randperm(clients, generator=generator(run, "first cohort", replica)).tolist()
        inside, outside = order[: self.cohort], order[self.cohort :]
        for turn in range(1, round + 1):
            chance = seed(run, "swap", replica, turn)
            leaves, joins = chance % len(inside), chance // len(inside) % len(outside)
            inside[leaves], outside[joins] = outside[joins], inside[leaves]
        return torch.tensor(sorted(inside))

    def expected(self, clients: int) -> float:
        return self.cohort

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        return ParticipationEvent("fixed", 1.0, rounds)

    def check(self, clients: int) -> None:
        _check_cohort(self.cohort, clients - 1, "clients beside the one that is to join")


@dataclass(frozen=True)
class Batches(Participation):
    """Whole batches only (So et al. 2021, section 4): clients are dealt into batches of `batch` once a replica.

    A round asks cohort / batch random batches, whole. So whatever is computed from the sums of any number of rounds has
    added up all clients of a batch alike: under secure aggregation no less than `batch` of them can be told apart from
    the others. With a batch of 1 it is `Uniform`. No amplification for anyone is claimed.
    """

    batch: int
    cohort: int

    def __post_init__(self) -> None:
        check_number("participation.batch", self.batch, minimum=1, integer=True)
        check_number("participation.cohort", self.cohort, minimum=1, integer=True)
        if self.cohort % self.batch:
            raise InputError(
                f"participation.cohort is {self.cohort}, no multiple of participation.batch, {self.batch}; a round "
                "asks whole batches"
            )

    def members(self, clients: int, run: int, replica: int) -> Tensor:
        """The clients of each batch [batches, batch]."""
        return torch.randperm(clients, generator=generator(run, "batches", replica)).view(-1, self.batch)

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return torch.arange(clients)

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        batches = self.members(clients, run, replica)
        asked = torch.randperm(len(batches), generator=generator(run, "cohort", replica, round))
        return batches[asked[: self.cohort // self.batch]].flatten().sort().values

    def expected(self, clients: int) -> float:
        return self.cohort

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        return ParticipationEvent("fixed", 1.0, rounds)

    def check(self, clients: int) -> None:
        _check_cohort(self.cohort, clients, "clients")
        if clients % self.batch:
            raise InputError(
                f"clients is {clients}, no multiple of participation.batch, {self.batch}; nobody may be left over"
            )
