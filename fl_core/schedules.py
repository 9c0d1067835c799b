"""How a learning rate changes with the round: factors that multiply it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from fl_core.errors import InputError, check_number


class Schedule(Protocol):
    """How the learning rate changes over a run.

    Asked for round 0 before anything is trained, so that it can raise InputError for a run that it does not suit.
    """

    def factor(self, round: int, rounds: int) -> float:
        """What the rate is multiplied with in `round` (0 is the first) of `rounds`, above 0."""
        ...


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate in every round."""

    def factor(self, round: int, rounds: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """Multiplied by `decay` after every `every` rounds; with a large `every`, a staircase."""

    decay: float
    every: int = 1

    def __post_init__(self) -> None:
        check_number("schedule.decay", self.decay, above=0, maximum=1)
        check_number("schedule.every", self.every, minimum=1, integer=True)

    def factor(self, round: int, rounds: int) -> float:
        return float(self.decay ** (round // self.every))


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Down half a cosine over the run, from 1 to `floor` (Loshchilov & Hutter 2017, eq. 5), after a linear `warmup`."""

    floor: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        check_number("schedule.floor", self.floor, minimum=0, maximum=1)
        check_number("schedule.warmup", self.warmup, minimum=0, integer=True)

    def factor(self, round: int, rounds: int) -> float:
        if self.warmup >= rounds:
            raise InputError(
                f"schedule.warmup is {self.warmup}, but there are {rounds} rounds: the rate would never be reached; "
                "lower it, or raise rounds"
            )
        if round < self.warmup:
            return (round + 1) / (self.warmup + 1)
        # The last round still moves: the cosine would reach the floor one round after it.
        done = (round - self.warmup) / (rounds - self.warmup)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
