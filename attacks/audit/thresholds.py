"""Honest ways to choose the threshold of a two-world audit, and the rates that each of them proves.

A threshold that maximises the claim on the very trials that prove it breaks the confidence. Here it is fixed
beforehand, chosen on other trials, or covered by bounds that hold at all thresholds together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from attacks.audit.bands import local_level, lower_bounds, upper_bounds
from attacks.audit.checks import trials
from attacks.base import Floats
from fl_core.errors import InputError, check_number

Array = NDArray[np.float64]
Worth = Callable[[Array, Array], Array]
"""What a lower bound on the TPR and an upper one on the FPR are worth together, all [thresholds]."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Lower bounds `tpr` and upper bounds `fpr`, at `thresholds`, that all hold together; all [thresholds].

    They rest on the counts `true_positives` and `false_positives`, [thresholds], of `members` and `non_members`.
    `best` is the pair of bounds (tpr, fpr) at which a perfect attack would stand.
    """

    thresholds: Array
    tpr: Array
    fpr: Array
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    members: int
    non_members: int
    best: tuple[float, float]


class Choice(Protocol):
    """How a threshold comes about. `error` is the chance that any of the rates' bounds fails."""

    def rates(self, inside: Array, outside: Array, error: float, worth: Worth) -> Rates:
        """The rates proven by scores `inside` and `outside`, each [trials], of runs with the canary and without."""


@dataclass(frozen=True, kw_only=True)
class PreRegistered(Choice):
    """One `threshold`, fixed before any of the trials was seen: a score that reaches it says "member"."""

    threshold: float

    def __post_init__(self) -> None:
        check_number("the threshold", self.threshold)

    def rates(self, inside: Array, outside: Array, error: float, worth: Worth) -> Rates:
        return rates_at(np.array([self.threshold]), inside, outside, error / 2, error / 2)


@dataclass(frozen=True, kw_only=True)
class Split(Choice):
    """The first `share` of the trials of each world choose the threshold that claims most; the others prove it."""

    share: float = 0.5

    def __post_init__(self) -> None:
        check_number("the share that chooses", self.share, above=0, below=1)

    def rates(self, inside: Array, outside: Array, error: float, worth: Worth) -> Rates:
        (choosers, provers), (other_choosers, other_provers) = (self._cut(side) for side in (inside, outside))
        candidates = np.unique(np.concatenate([choosers, other_choosers]))
        tried = rates_at(candidates, choosers, other_choosers, error / 2, error / 2)
        chosen = candidates[np.argmax(worth(tried.tpr, tried.fpr))]
        return rates_at(np.array([chosen]), provers, other_provers, error / 2, error / 2)

    def _cut(self, scores: Array) -> tuple[Array, Array]:
        first = int(self.share * len(scores))
        if first == 0 or first == len(scores):
            raise InputError(
                f"{len(scores)} trials cannot be split at {self.share:g}; both parts need one, so run more of them"
            )
        return scores[:first], scores[first:]


@dataclass(frozen=True, kw_only=True)
class Everywhere(Choice):
    """Whichever threshold claims most, under bounds that hold at all thresholds together (`bands.local_level`)."""

    def rates(self, inside: Array, outside: Array, error: float, worth: Worth) -> Rates:
        levels = (local_level(len(side), error / 2) for side in (inside, outside))
        return rates_at(np.unique(np.concatenate([inside, outside])), inside, outside, *levels)


@dataclass(frozen=True, kw_only=True)
class Grid(Choice):
    """Whichever of `thresholds`, fixed beforehand, claims most: each at its share of the error (Bonferroni).

    Beyond some forty thresholds the band of `Everywhere` is the stronger, and takes the place of the share.
    """

    thresholds: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self.thresholds):
            raise InputError("the grid has no threshold; give at least one, fixed before the trials were seen")
        for threshold in self.thresholds:
            check_number("a threshold of the grid", threshold)

    def rates(self, inside: Array, outside: Array, error: float, worth: Worth) -> Rates:
        share = error / (2 * len(self.thresholds))
        # Which of the two is stronger follows from the sizes alone, so that picking it costs nothing.
        levels = (max(share, local_level(len(side), error / 2)) for side in (inside, outside))
        return rates_at(np.array(self.thresholds, dtype=np.float64), inside, outside, *levels)


def rates_at(thresholds: Array, inside: Array, outside: Array, error_inside: float, error_outside: float) -> Rates:
    """Bounds on both rates at each of `thresholds`, each failing with the chance given for its world."""
    members, others = len(inside), len(outside)
    hits = members - np.searchsorted(np.sort(inside), thresholds, side="left")
    alarms = others - np.searchsorted(np.sort(outside), thresholds, side="left")
    low, high = lower_bounds(members, error_inside), upper_bounds(others, error_outside)
    return Rates(
        thresholds=thresholds, tpr=low[hits], fpr=high[alarms], true_positives=hits, false_positives=alarms,
        members=members, non_members=others, best=(float(low[-1]), float(high[0])),
    )  # fmt: skip


def prove(inside: Floats, outside: Floats, choice: Choice, confidence: float, worth: Worth) -> tuple[Rates, int]:
    """The rates that `choice` proves, and which of them is worth most. Raises InputError for unusable scores."""
    members, others = trials("scores with the canary", inside), trials("scores without the canary", outside)
    rates = choice.rates(members, others, 1 - confidence, worth)
    return rates, int(np.argmax(worth(rates.tpr, rates.fpr)))
