"""What an audit returns: one small family, so that tables and alarms need not know who made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An ε shown by an audit at `delta`, both natural.

    `epsilon` exceeds the truth in at most a share 1 − `confidence` of audits where the outcome is a bound.
    `ceiling` is the most that a perfect attack could have shown with this sample, inf where the sample sets no limit.
    `assumes` names what the claim rests on beyond the design of the trials; empty where there is nothing.
    """

    kind: ClassVar[str]
    epsilon: float
    delta: float
    confidence: float
    ceiling: float
    assumes: str = ""


@dataclass(frozen=True, kw_only=True)
class TwoWorldBound(Outcome):
    """A lower bound on ε from independent runs with the canary (`members`) and without (`non_members`).

    Only the trials that prove are counted, not those that chose the `threshold`. Of the members `true_positives`
    scored at least the threshold, of the others `false_positives`. `mu` is the bound on μ-GDP where one was made.
    """

    kind: ClassVar[str] = "two-world"
    members: int
    non_members: int
    true_positives: int
    false_positives: int
    threshold: float
    mu: float | None = None


@dataclass(frozen=True, kw_only=True)
class SequentialBound(Outcome):
    """A lower bound on ε after `pairs` of runs, valid at whatever moment one stops."""

    kind: ClassVar[str] = "two-world"
    pairs: int


@dataclass(frozen=True, kw_only=True)
class OneRunBound(Outcome):
    """A lower bound on ε from one run: `correct` of `guesses` were right, on `canaries` included by fair coins."""

    kind: ClassVar[str] = "one-run"
    canaries: int
    guesses: int
    correct: int


@dataclass(frozen=True, kw_only=True)
class FrameBound(Outcome):
    """A lower bound on μ, and so on ε, of one Gaussian release in which `canaries` random directions took part.

    `controls` directions of the same frame took no part.
    """

    kind: ClassVar[str] = "one-run"
    canaries: int
    controls: int
    mu: float


@dataclass(frozen=True, kw_only=True)
class Estimate(Outcome):
    """An estimate of ε, not a bound: half of all estimates, or most of them, lie above the truth.

    `low` and `high` are ends of an approximate interval of the level `confidence`, from `canaries` in the run and
    `controls` out of it (0 where the null is known in closed form). An alarm must not rest on it.
    """

    kind: ClassVar[str] = "estimate"
    low: float
    high: float
    canaries: int
    controls: int
