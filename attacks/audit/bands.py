"""Clopper–Pearson bounds on a rate: for one threshold, and for all thresholds at once.

A bound for one threshold that was fixed beforehand errs with the chance `error`. Thresholds picked from the data need
bounds that hold for all of them together. These are again Clopper–Pearson bounds, each at a smaller error, the local
level, chosen so that the chance that any of them fails is `error`. It depends on the number of trials alone and is
computed, not simulated.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaln, xlogy

from fl_core.errors import check_number

Array = NDArray[np.float64]

_MOST = 10_000  # trials; the recursion's time grows as their number to the power 1.5


@functools.lru_cache(maxsize=256)
def upper_bounds(trials: int, error: float) -> Array:
    """Upper bound on a rate for each count 0, 1, …, `trials` of successes: [trials + 1], read-only.

    Each is exceeded by the truth with a chance of at most `error`. Source: Clopper and Pearson 1934.
    """
    counts = np.arange(trials)
    bounds = np.append(betaincinv(counts + 1, trials - counts, 1 - error), 1.0)
    bounds.setflags(write=False)
    return bounds


@functools.lru_cache(maxsize=256)
def lower_bounds(trials: int, error: float) -> Array:
    """Lower bound on a rate for each count of successes, [trials + 1]: one minus the upper bound on failures."""
    bounds = 1 - upper_bounds(trials, error)[::-1]
    bounds.setflags(write=False)
    return bounds


@functools.lru_cache(maxsize=64)
def local_level(trials: int, error: float) -> float:
    """The error of each bound such that the bounds at all thresholds fail together with a chance of at most `error`.

    Of `trials` scores let V₍₁₎ ≤ V₍₂₎ ≤ … be the sorted values of P[score > own]: for a continuous score the order
    statistics of uniform numbers, and stochastically smaller ones for any other. If k scores reach a threshold,
    its rate is at most V₍ₖ₊₁₎, whatever the threshold. So upper bounds b₁ ≤ b₂ ≤ … hold for all thresholds once V₍ₖ₎ ≤
    bₖ for all k, and bₖ = `upper_bounds(trials, η)`[k − 1] makes each of these fail with the chance η. The chance that
    none fails falls as η grows; this is the largest η, from below, at which it is 1 − `error`. Lower bounds follow by
    mirroring the uniform numbers. At 1 trial η is `error`; at 500 and .025 a fortieth of it.

    Raises InputError unless 1 ≤ trials ≤ 10,000 and 0 < error < ½. Source: Berk and Jones 1979 and Owen 1995 for the
    band; Moscovich and Nadler 2017 for computing it through a Poisson process.
    """
    check_number("the trials of a simultaneous band", trials, minimum=1, maximum=_MOST, integer=True)
    check_number("the error of a simultaneous band", error, above=0, below=0.5)
    low, high = error / trials, error  # the union bound holds, and one bound alone already spends the whole error
    if never_crossed(trials, high) >= 1 - error:
        return high
    for _ in range(20):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if never_crossed(trials, middle) >= 1 - error else (low, middle)
    return low


def never_crossed(trials: int, level: float) -> float:
    """P[U₍ₖ₎ ≤ bₖ for all k], `trials` uniform numbers and bₖ their upper bounds at `level`; never above the truth.

    The count of uniform numbers up to x is a Poisson process of rate `trials` on [0, 1], given that it ends at
    `trials`. Between two bounds the process gains a Poisson number; at bₖ it must have reached k. Counts too far above
    k to matter (their chance is below 1e-15) are dropped, which lowers the result.
    """
    bounds = np.append(upper_bounds(trials, level)[:-1], 1.0)
    reach = math.ceil(9 * math.sqrt(trials)) + 60
    chances, base = np.ones(1), 0  # of the counts base, base + 1, …
    for index, gain in enumerate(trials * np.diff(bounds, prepend=0.0)):
        most = math.ceil(gain + 10 * math.sqrt(gain)) + 30
        steps = np.arange(most + 1)
        chances = np.convolve(chances, np.exp(xlogy(steps, gain) - gain - gammaln(steps + 1)))
        least = min(index + 1, trials)
        chances = chances[least - base :][: min(reach, trials - least) + 1]
        base = least
        if not chances.size:
            return 0.0
    ends = math.exp(trials * math.log(trials) - trials - float(gammaln(trials + 1)))
    return float(chances[0]) / ends
