"""A lower bound on ε that may be looked at after every pair of runs, and the trials stopped whenever it suffices.

Each pair is a run with the canary and an independent one without; a test fixed beforehand says "member" of the first
(X = 1) or not, and of the second (Y = 1) or not. (ε, δ)-DP allows E[X] ≤ e^ε E[Y] + δ, and for the converse test
E[1 − Y] ≤ e^ε E[1 − X] + δ. So whoever bets on X − e^ε Y − δ, or on its converse, and never stakes more than they have,
cannot expect to gain: their wealth is a nonnegative supermartingale, and reaches 1/α at some time, ever, with a chance
of at most α (Ville 1939). ε is rejected once it does.

Betters with several stakes, for both tests, and at several thresholds share the initial wealth: a mean of
supermartingales is one, so nothing has to be chosen or corrected.

Source: Ramdas and Wang 2025, "Hypothesis Testing with E-values", for e-processes; Waudby-Smith and Ramdas 2024 for
betting on bounded means; González, Dulce-Rubio, Ramdas and Ribero 2025, "Sequentially Auditing Differential Privacy",
for audits by betting (they bet with a kernel's witness function, here the bets are on error rates).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from attacks.audit.checks import check_levels, trials
from attacks.audit.outcomes import SequentialBound
from attacks.base import Floats
from fl_core.errors import InputError, check_number

Array = NDArray[np.float64]

_HALVINGS = 17  # of an ε of at most some ten: to 1e-4, from below

STAKES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99)
"""What each bettor stakes, as a share of the most that can be lost in one pair."""


@dataclass(kw_only=True)
class SequentialAudit:
    """An audit under way. `observe` a pair of scores at a time; `epsilon` never falls.

    A score that reaches a threshold says "member". `thresholds` must be fixed before the first pair; each gets an equal
    part of the initial wealth, so that k of them cost at most log k in evidence.

    Formal guarantee: if the pairs are independent of the past and the mechanism is (ε, δ)-DP in its canary, the chance
    that `epsilon` ever exceeds ε is at most 1 − `confidence`, however the moment to stop is chosen. Raises InputError
    without a threshold, and for a δ or confidence out of range.
    """

    thresholds: Sequence[float]
    delta: float = 0.0
    confidence: float = 0.95
    pairs: int = 0
    epsilon: float = 0.0
    _counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        check_levels(self.delta, self.confidence)
        if not len(self.thresholds):
            raise InputError("a sequential audit has no threshold; give at least one, fixed before the first pair")
        for threshold in self.thresholds:
            check_number("a threshold", threshold)
        self._counts = np.zeros((len(self.thresholds), 4), dtype=np.int64)

    def observe(self, inside: float, outside: float) -> float:
        """Count a pair of runs, with the canary and without, and return the lower bound on ε so far."""
        check_number("the score with the canary", inside)
        check_number("the score without the canary", outside)
        self._counts += _outcomes(np.array([inside]), np.array([outside]), self.thresholds)[0]
        self.pairs += 1
        self.epsilon = max(self.epsilon, float(_rejected(self._counts[None], self.delta, self.confidence)[0]))
        return self.epsilon

    def bound(self) -> SequentialBound:
        """What is shown so far."""
        return SequentialBound(
            epsilon=self.epsilon,
            delta=self.delta,
            confidence=self.confidence,
            ceiling=sequential_ceiling(self.pairs, len(self.thresholds), self.delta, self.confidence),
            pairs=self.pairs,
        )


def sequential_bound(
    inside: Floats, outside: Floats, thresholds: Sequence[float], *, delta: float = 0.0, confidence: float = 0.95
) -> SequentialBound:
    """What `SequentialAudit` shows after all pairs of scores `inside` and `outside`, both [pairs] in their order.

    Raises InputError as it does, and for scores that do not pair.
    """
    audit, counts = _observed(inside, outside, thresholds, delta, confidence)
    # Wealth grows after a right outcome only, so these are the times at which it can be at its largest.
    rights = counts[..., 1].sum(1)
    counts = counts[np.flatnonzero(np.diff(rights, prepend=0))]

    def rejecting(epsilon: float) -> NDArray[np.int64]:
        """The counts at the times that reject this ε; those that do not reject no larger one."""
        return counts[_log_wealth(counts, np.array([epsilon]), delta) >= _enough(confidence)]

    counts = rejecting(0.0)
    least, most = 0.0, _limit(audit.pairs)
    for _ in range(_HALVINGS if len(counts) else 0):
        middle = (least + most) / 2
        still = rejecting(middle)
        least, most, counts = (middle, most, still) if len(still) else (least, middle, counts)
    audit.epsilon = least
    return audit.bound()


def sequential_path(
    inside: Floats, outside: Floats, thresholds: Sequence[float], *, delta: float = 0.0, confidence: float = 0.95
) -> Array:
    """The lower bound on ε after each pair, [pairs]; arguments and errors as `sequential_bound`, its last entry."""
    _, counts = _observed(inside, outside, thresholds, delta, confidence)
    path: Array = np.maximum.accumulate(_rejected(counts, delta, confidence))
    return path


def sequential_ceiling(pairs: int, thresholds: int = 1, delta: float = 0.0, confidence: float = 0.95) -> float:
    """The most that so many pairs can show: at every threshold each with the canary detected and no other."""
    check_number("pairs", pairs, minimum=0, integer=True)
    check_number("thresholds", thresholds, minimum=1, integer=True)
    counts = np.zeros((1, thresholds, 4), dtype=np.int64)
    counts[..., 1] = pairs
    return float(_rejected(counts, delta, confidence)[0])


def _observed(
    inside: Floats, outside: Floats, thresholds: Sequence[float], delta: float, confidence: float
) -> tuple[SequentialAudit, NDArray[np.int64]]:
    """The audit that has seen all pairs, but for its bound; the counts of outcomes so far [pairs, thresholds, 4]."""
    audit = SequentialAudit(thresholds=thresholds, delta=delta, confidence=confidence)
    members, others = trials("scores with the canary", inside), trials("scores without the canary", outside)
    if len(members) != len(others):
        raise InputError(
            f"{len(members)} runs with the canary and {len(others)} without do not pair; give as many of each"
        )
    counts = _outcomes(members, others, thresholds).cumsum(0)
    audit.pairs = len(members)
    return audit, counts


# The four outcomes of a pair, in this order: neither run was called a member's, the right one, the wrong one, both.


def _outcomes(inside: Array, outside: Array, thresholds: Sequence[float]) -> NDArray[np.int64]:
    """Which of the four outcomes each pair had at each threshold, one-hot [pairs, thresholds, 4]."""
    limits = np.asarray(thresholds, dtype=np.float64)
    hit, alarm = inside[:, None] >= limits, outside[:, None] >= limits
    return np.stack([~hit & ~alarm, hit & ~alarm, ~hit & alarm, hit & alarm], -1).astype(np.int64)


def _log_wealth(counts: NDArray[np.int64], epsilons: Array, delta: float) -> Array:
    """log of the bettors' mean wealth [times] after `counts` [times, thresholds, 4], at `epsilons` [times] or [1]."""
    stakes = np.array(STAKES)
    share = 1 / (np.exp(epsilons)[:, None] + delta)  # a unit of payoff, as a share of the most that can be lost
    # The pair with no member called loses a little at any ε: the most of it, that at ε = 0, is charged throughout. It
    # makes wealth fall as ε grows, so that what is rejected is an interval from 0.
    neither = np.log1p(-stakes * delta / (1 + delta)) + 0 * share
    right = np.log1p(stakes * (1 - delta) * share)
    wrong = np.log1p(-stakes) + 0 * share
    both = np.log1p(-stakes + stakes * share)
    # The converse test swaps the pair's roles: "neither" and "both" change places.
    bettors = [np.stack([neither, right, wrong, both], 1), np.stack([both, right, wrong, neither], 1)]
    wealth = counts.astype(np.float64) @ np.concatenate(bettors, -1)  # [times, thresholds, bettors]
    peak = wealth.max((1, 2))
    mean: Array = peak + np.log(np.exp(wealth - peak[:, None, None]).mean((1, 2)))
    return mean


def _enough(confidence: float) -> float:
    """log of the wealth that rejects."""
    return -math.log(1 - confidence)


def _limit(pairs: int) -> float:
    """An ε that so many pairs cannot reject at a confidence of ½ or more: wealth is below e^(pairs·e^−ε)."""
    return math.log(pairs) + 1


def _rejected(counts: NDArray[np.int64], delta: float, confidence: float) -> Array:
    """The largest ε rejected by the wealth at each time alone, [times], from below; 0 where none is."""
    low = np.zeros(len(counts))
    started = np.flatnonzero(_log_wealth(counts, np.zeros(1), delta) >= _enough(confidence))
    if not started.size:
        return low
    counts = counts[started]
    least, most = np.zeros(len(started)), np.full(len(started), _limit(int(counts[:, 0].sum(-1).max())))
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        rejected = _log_wealth(counts, middle, delta) >= _enough(confidence)
        least, most = np.where(rejected, middle, least), np.where(rejected, most, middle)
    low[started] = least
    return low
