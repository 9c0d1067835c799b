"""How well an attack did: ROC, AUC, TPR at a low FPR and balanced accuracy, with intervals.

Uncertainty lives between replicas, not between the examples of one model: the examples of a replica share
its training noise, so intervals here resample whole replicas. No threshold is tuned on the labels it is
judged by: that of a balanced accuracy comes from the other replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, stdtrit

from attacks.base import Bools, Floats
from fl_core.errors import InputError, check_number

Array = NDArray[np.float64]

LEVEL = 0.95
COUNT_SLACK = 1e-9  # 0.29 * 100 is 28.999…: without it a stated FPR loses a non-member to rounding


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class MembershipSummary:
    """Pooled AUC and TPR at `fpr` over replicas, and what they rest on. `tprs` are those at other rates asked for."""

    auc: Interval
    tpr: Interval
    fpr: float
    tprs: dict[float, Interval] = field(default_factory=dict)
    replicas: int
    members: int
    non_members: int


@dataclass(frozen=True, kw_only=True)
class RocBand:
    """Pooled ROC `tpr` at each `fpr` and its pointwise 95% band, all [points]."""

    fpr: Array
    tpr: Array
    low: Array
    high: Array


# ROC of one pool of scores


def roc(scores: Floats, members: Bools) -> tuple[Array, Array]:
    """(fpr, tpr), each [distinct scores + 1], from (0, 0) to (1, 1): one point a distinct score.

    The threshold falls along the curve. `scores` [examples], higher for likelier members; `members`
    [examples]. Tied scores enter together. Raises InputError for scores that are NaN or without both
    members and non-members.
    """
    _check_scores(scores, members)
    ranks = _ranks(scores)
    size = int(ranks.max()) + 1
    tpr = np.concatenate([[0], np.cumsum(np.bincount(ranks[members], minlength=size))]) / members.sum()
    fpr = np.concatenate([[0], np.cumsum(np.bincount(ranks[~members], minlength=size))]) / (~members).sum()
    return fpr, tpr


def auc(scores: Floats, members: Bools) -> float:
    """P[member's score > non-member's] + ½ P[equal], the area under `roc`. Raises as `roc`."""
    fpr, tpr = roc(scores, members)
    return float(np.trapezoid(tpr, fpr))


def supports(fpr: float, non_members: int) -> bool:
    """Whether `non_members` non-members can show this FPR: at least one of them may be a false positive."""
    return fpr * non_members + COUNT_SLACK >= 1


def tpr_at_fpr(scores: Floats, members: Bools, fpr: float) -> float:
    """Largest TPR of a threshold whose empirical FPR is at most `fpr`; nothing is interpolated.

    Raises as `roc`, and InputError for an `fpr` that the number of non-members cannot support.
    """
    check_number("fpr", fpr, above=0, maximum=1)
    rates, powers = roc(scores, members)
    _require_support(fpr, int((~members).sum()))
    allowed = rates * (~members).sum() <= fpr * (~members).sum() + COUNT_SLACK
    return float(powers[allowed].max())


# ROC over replicas


def bootstrap_over_replicas(
    scores: Floats,
    members: Bools,
    mask: Bools | None = None,
    *,
    fpr: float = 0.01,
    fprs: Sequence[float] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> MembershipSummary:
    """AUC and TPR at `fpr` (and `fprs`) of the ROC pooled over replicas, with 95% percentile intervals over replicas.

    `scores` and `members` are [replicas, examples]; `mask`, [replicas, examples] or [examples], says which
    count. One threshold serves all replicas. A resample that drew no member or no non-member at all is left
    out (possible only where single replicas lack one of them). The percentiles are widened for few replicas;
    where replicas differ most the interval covered 93% with 10 of them and 94% with 24. That of the TPR is at
    least as wide as Clopper and Pearson's for its count of members, since resampling a rate of 0 gives 0 again.
    Raises InputError with fewer than 2 replicas, and as `tpr_at_fpr` for the pool.
    """
    pool = _ReplicaRanks(scores, members, mask)
    for rate in (fpr, *fprs):
        check_number("fpr", rate, above=0, maximum=1)
        _require_support(rate, int(pool.non_members.sum()))
    weights = _resampled_weights(pool, resamples, seed)
    once = np.ones((1, pool.replicas))
    return MembershipSummary(
        auc=_percentiles(pool.auc(once), pool.auc(weights), pool.replicas),
        tpr=_tpr_interval(pool, weights, fpr),
        fpr=fpr,
        tprs={rate: _tpr_interval(pool, weights, rate) for rate in fprs},
        replicas=pool.replicas,
        members=int(pool.members.sum()),
        non_members=int(pool.non_members.sum()),
    )


def roc_band(
    scores: Floats,
    members: Bools,
    mask: Bools | None = None,
    *,
    points: int = 40,
    resamples: int = 300,
    seed: int = 0,
) -> RocBand:
    """ROC pooled over replicas with a pointwise 95% band.

    At `points` FPRs, log-spaced from one non-member of the pool up to 1. Shapes, resampling and errors as
    `bootstrap_over_replicas`.
    """
    check_number("points", points, minimum=2, integer=True)
    pool = _ReplicaRanks(scores, members, mask)
    weights = _resampled_weights(pool, resamples, seed)
    grid = np.geomspace(1 / pool.non_members.sum(), 1.0, points)
    intervals = [_tpr_interval(pool, weights, fpr) for fpr in grid]
    value, low, high = np.array([(i.value, i.low, i.high) for i in intervals]).T
    return RocBand(fpr=grid, tpr=value, low=low, high=high)


def balanced_accuracy(scores: Floats, members: Bools, mask: Bools | None = None) -> Array:
    """(TPR + TNR)/2 of each replica [replicas] that has both, at the threshold that does best on all the others.

    So no replica's own membership chooses the threshold that it is judged by. Shapes and errors as
    `bootstrap_over_replicas`; InputError where fewer than 2 replicas have members and non-members.
    """
    pool = _ReplicaRanks(scores, members, mask)
    inside, outside = pool.above()  # [replicas, thresholds + 1]: how many are let in as the threshold falls
    both = (pool.members > 0) & (pool.non_members > 0)
    if both.sum() < 2:
        raise InputError("a balanced accuracy needs 2 replicas that have members and non-members; run more replicas")
    found = []
    for replica in np.flatnonzero(both):
        others = np.arange(pool.replicas) != replica
        gain = inside[others].sum(0) / pool.members[others].sum() - outside[others].sum(0) / (
            pool.non_members[others].sum()
        )
        at = int(gain.argmax())
        power = inside[replica, at] / pool.members[replica]
        found.append((power + 1 - outside[replica, at] / pool.non_members[replica]) / 2)
    return np.array(found)


class _ReplicaRanks:
    """Scores of all replicas as ranks in one falling order, so that reweighting replicas needs no new sort.

    A resample is one weight a replica. Its AUC is a quadratic form in the weights, and its TPR at a FPR a
    binary search for the lowest threshold, counting each replica's non-members above it.
    """

    def __init__(self, scores: Floats, members: Bools, mask: Bools | None) -> None:
        scores, members = np.asarray(scores, dtype=np.float64), np.asarray(members)
        if scores.ndim != 2 or members.shape != scores.shape:
            raise InputError(
                f"scores {scores.shape} and members {members.shape} do not fit; give both as [replicas, examples]"
            )
        if len(scores) < 2:
            raise InputError("an interval over replicas needs at least 2 replicas, has 1; run more replicas")
        mask = np.ones(scores.shape, dtype=bool) if mask is None else np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape not in (scores.shape, scores.shape[1:]):
            raise InputError(
                f"mask {mask.shape} of type {mask.dtype} does not fit scores {scores.shape}; "
                "give booleans [replicas, examples] or [examples]"
            )
        mask = np.broadcast_to(mask, scores.shape)
        _check_scores(scores[mask], members[mask])
        ranks = _ranks(scores[mask])
        self.thresholds = int(ranks.max()) + 1
        self.replicas = len(scores)
        ends = np.cumsum(mask.sum(axis=1))[:-1]
        by_replica = list(zip(np.split(ranks, ends), np.split(members[mask], ends), strict=True))
        self._inside = [np.sort(own[inside]) for own, inside in by_replica]
        self._outside = [np.sort(own[~inside]) for own, inside in by_replica]
        self.members = np.array([len(r) for r in self._inside], dtype=np.float64)
        self.non_members = np.array([len(r) for r in self._outside], dtype=np.float64)

    def auc(self, weights: Array) -> Array:
        """AUC of each resample, from `weights` [resamples, replicas]."""
        wins = np.array(list(self._wins()))  # [non-members' replica, members' replica]
        total = ((weights @ wins) * weights).sum(axis=1)
        area: Array = total / ((weights @ self.non_members) * (weights @ self.members))
        return area

    def above(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Each replica's members and non-members at or above every threshold, both [replicas, thresholds + 1]."""
        steps = np.arange(self.thresholds + 1)
        inside, outside = (
            np.stack([np.searchsorted(own, steps) for own in side]).astype(np.int32)
            for side in (self._inside, self._outside)
        )
        return inside, outside

    def _wins(self) -> Iterator[Array]:
        """For each replica: its non-members beaten by the members of every replica, ties counting half."""
        members = np.concatenate(self._inside)
        ends = np.concatenate([[0], np.cumsum(self.members).astype(np.int64)])
        for outside in self._outside:
            at = np.bincount(outside, minlength=self.thresholds)
            beaten = len(outside) - np.cumsum(at) + 0.5 * at  # rank 0 is the highest score
            running = np.concatenate([[0.0], np.cumsum(beaten[members])])
            yield np.diff(running[ends])

    def tpr(self, weights: Array, fpr: float) -> Array:
        """TPR of each resample at the lowest threshold whose FPR is at most `fpr`."""
        allowed = fpr * (weights @ self.non_members) + COUNT_SLACK
        low = np.zeros(len(weights), dtype=np.int64)  # thresholds let in: always allowed
        high = np.full(len(weights), self.thresholds)
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = self._weighted_count(self._outside, weights, middle) <= allowed
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        power: Array = self._weighted_count(self._inside, weights, low) / (weights @ self.members)
        return power

    @staticmethod
    def _weighted_count(ranks: list[NDArray[np.int64]], weights: Array, below: NDArray[np.int64]) -> Array:
        counts = np.zeros(len(weights))
        for replica, own in enumerate(ranks):
            counts += weights[:, replica] * np.searchsorted(own, below)
        return counts


def _resampled_weights(pool: _ReplicaRanks, resamples: int, seed: int) -> Array:
    """How often each replica was drawn [resamples, replicas], without the draws that have no ROC."""
    check_number("resamples", resamples, minimum=1, integer=True)
    even = np.full(pool.replicas, 1 / pool.replicas)
    weights = np.random.default_rng(seed).multinomial(pool.replicas, even, size=resamples).astype(np.float64)
    usable = weights[(weights @ pool.members > 0) & (weights @ pool.non_members > 0)]
    if len(usable) == 0:
        raise InputError("no resample of the replicas has both members and non-members; run more replicas")
    return usable


def _tpr_interval(pool: _ReplicaRanks, weights: Array, fpr: float) -> Interval:
    once = np.ones((1, pool.replicas))
    found = _percentiles(pool.tpr(once, fpr), pool.tpr(weights, fpr), pool.replicas)
    if fpr >= 1:  # everybody is called a member: a rate of 1, for certain
        return found
    members = int(pool.members.sum())
    exact = clopper_pearson(round(found.value * members), members)
    return Interval(found.value, min(found.low, exact.low), max(found.high, exact.high))


def _percentiles(estimate: Array, resampled: Array, units: int) -> Interval:
    """The 95% interval, its percentiles widened for `units` independent units as Student's t is (Hesterberg 2015)."""
    if units < 2:
        return Interval(float(estimate[0]), float(resampled.min()), float(resampled.max()))
    reach = stdtrit(units - 1, (1 + LEVEL) / 2) * math.sqrt(units / (units - 1))
    low, high = np.quantile(resampled, [ndtr(-reach), ndtr(reach)])
    return Interval(float(estimate[0]), float(low), float(high))


def _check_scores(scores: Floats, members: Bools) -> None:
    if scores.ndim != 1 or members.shape != scores.shape or members.dtype != np.bool_:
        raise InputError(
            f"scores {scores.shape} and members {members.shape} of type {members.dtype} do not fit; "
            "give numbers and booleans, both [examples]"
        )
    if np.isnan(scores).any():
        raise InputError(
            f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN; an attack must score every example"
        )
    if not members.any() or members.all():
        raise InputError(f"a ROC needs members and non-members; {int(members.sum())} of {members.size} are members")


def _ranks(scores: Floats) -> NDArray[np.int64]:
    """0 for the highest score, 1 for the next distinct one, and so on; ties share a rank."""
    ranks: NDArray[np.int64] = np.unique(-scores, return_inverse=True)[1].reshape(-1)
    return ranks


def _require_support(fpr: float, non_members: int) -> None:
    if not supports(fpr, non_members):
        needed = int(np.ceil(1 / fpr - COUNT_SLACK))
        raise InputError(f"TPR at FPR {fpr:g} needs ≥ {needed} non-members, has {non_members}; ask for a larger FPR")


# Intervals over independent values and counts


def mean_interval(values: Floats, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean of independent `values` [values] with its 95% percentile bootstrap interval.

    The interval of a single value has no width. Raises InputError without values or for values that are not
    finite: a crashed trial is counted, not dropped.
    """
    return _bootstrap(values, np.mean, seed, resamples)


def median_interval(values: Floats, seed: int = 0, resamples: int = 2000) -> Interval:
    """Median of independent `values` [values], with interval and errors as `mean_interval`."""
    return _bootstrap(values, np.median, seed, resamples)


def _bootstrap(values: Floats, statistic: Callable[..., Any], seed: int, resamples: int) -> Interval:
    values = np.asarray(values, dtype=np.float64)
    check_number("resamples", resamples, minimum=1, integer=True)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"values have shape {values.shape}; give at least one, as [values]")
    if not np.isfinite(values).all():
        raise InputError(
            f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite; "
            "count exact recoveries and failures apart from the mean"
        )
    rng = np.random.default_rng(seed)
    block = max(1, 2**22 // values.size)  # resamples at once
    counts = [min(block, resamples - start) for start in range(0, resamples, block)]
    found = [statistic(values[rng.integers(values.size, size=(count, values.size))], axis=1) for count in counts]
    return _percentiles(np.array([statistic(values)]), np.concatenate(found), values.size)


def share_interval(shares: Floats) -> Interval:
    """Mean of independent `shares` [values] in [0, 1] with its 95% interval.

    Clopper and Pearson's where every value is 0 or 1, so that all of one kind have a width too; else the bootstrap.
    Errors as `mean_interval`, and InputError for a value outside [0, 1].
    """
    shares = np.asarray(shares, dtype=np.float64)
    if ((shares < 0) | (shares > 1)).any():
        raise InputError(f"shares go from {shares.min():.3g} to {shares.max():.3g}; give values in [0, 1]")
    if shares.ndim == 1 and shares.size and np.isin(shares, (0, 1)).all():
        return clopper_pearson(int(shares.sum()), shares.size)
    return mean_interval(shares)


def clopper_pearson(successes: int, trials: int, confidence: float = LEVEL) -> Interval:
    """Exact two-sided interval of a binomial rate, (1 − confidence)/2 on each side.

    Raises InputError unless 0 ≤ successes ≤ trials and 1 ≤ trials. Source: Clopper and Pearson 1934.
    """
    check_number("trials", trials, minimum=1, integer=True)
    check_number("successes", successes, minimum=0, maximum=trials, integer=True)
    check_number("confidence", confidence, above=0, below=1)
    side, failures = (1 - confidence) / 2, trials - successes
    low = betaincinv(successes, failures + 1, side) if successes else 0.0
    high = betaincinv(successes + 1, failures, 1 - side) if failures else 1.0
    return Interval(successes / trials, float(low), float(high))


# Labels


def label_recall(found: NDArray[np.int64], true: NDArray[np.int64]) -> Array:
    """The share [batches] of each batch's labels that were found, as multisets: the order says nothing.

    `found` [batches, any number] and `true` [batches, examples]; a label counts as often as both have it, and a
    negative one in `found` is none. Raises InputError for shapes that do not fit or a negative true label.
    """
    found, true = np.asarray(found), np.asarray(true)
    if found.ndim != 2 or true.ndim != 2 or len(found) != len(true) or true.size == 0:
        raise InputError(f"labels {found.shape} and true ones {true.shape} do not fit; give both as [batches, labels]")
    if true.min() < 0:
        raise InputError(f"a true label is {true.min()}; labels start at 0")
    classes = np.arange(true.max() + 1)
    counts = [(labels[:, :, None] == classes).sum(axis=1) for labels in (found, true)]
    recall: Array = np.minimum(*counts).sum(axis=1) / true.shape[1]
    return recall
