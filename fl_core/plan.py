"""What is public of a federation before its first round: all that an accountant may build on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fl_core.participation import ParticipationEvent
from fl_core.sampling import SamplingEvent

Pattern = tuple[int, ...]
"""The rounds in which one client takes part, ascending."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers that clocks, coins and public sizes decide, and no example's value.

    `sampling` holds one event a client: how one of its examples is drawn over all rounds in which the client takes
    part, the most of any replica. `participation` says how a client is drawn. `patterns` are the different sets of
    rounds in which some client of some replica takes part; whoever is asked counts, be its update late or lost.

    `cohort` is the expected number of updates a round, and `asked` the most clients that one asks. `ideal` says
    that nothing but the draw decides whose updates they are, and `exact` that every round has just so many, too.
    `streams` says that the server takes a weighted sum, `synchronous` that a client has one update a round at most,
    `even` that all weights are equal, of which `largest_weight` is the most that there can be, and `stateless` that
    clients keep nothing between their turns. `message` is how many numbers a client sends.
    """

    rounds: int
    clients: int
    sampling: Sequence[SamplingEvent]
    participation: ParticipationEvent
    patterns: frozenset[Pattern]
    cohort: float
    asked: int
    ideal: bool
    exact: bool
    streams: bool
    synchronous: bool
    largest_weight: int
    even: bool
    stateless: bool
    message: int

    @property
    def turns(self) -> int:
        """The most rounds in which one client takes part."""
        return max(map(len, self.patterns), default=0)

    def in_the_open(self) -> Plan:
        """The same rounds for somebody who learns who takes part in them: nothing is drawn that he does not know."""
        return replace(self, participation=replace(self.participation, kind="fixed", rate=1.0))


def patterns(asked: Iterable[Sequence[Iterable[int]]]) -> tuple[frozenset[Pattern], dict[int, int]]:
    """The different patterns in `asked` [replicas][rounds][clients], and each client's most rounds in any replica.

    A client that is asked twice in one round trains twice, and so counts twice in its number of rounds.
    """
    found: set[Pattern] = set()
    most: dict[int, int] = {}
    for rounds in asked:
        mine: dict[int, list[int]] = {}
        for round, clients in enumerate(rounds):
            for client in clients:
                mine.setdefault(int(client), []).append(round)
        for client, turns in mine.items():
            most[client] = max(most.get(client, 0), len(turns))
            found.add(tuple(sorted(set(turns))))
    return frozenset(found), most
