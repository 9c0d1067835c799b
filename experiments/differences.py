"""Whether two measured numbers differ, from their 95% intervals alone.

No scale is chosen and nothing is transformed. The interval of a difference is put together from the two of its parts,
each side from the two sides that could have made it (MOVER; Zou and Donner 2008, of which Newcombe's 1998 tenth method
for two rates is a case). That keeps what is lopsided in an interval of a rate, works for a rate of 0 or 1, where a
logit is infinite, and is the same for an AUC and for decibels. What is assumed: the two numbers are independent, and
each side of an interval is as wide as Student's t makes it for the replicas or victims that it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number with its 95% interval, and how many independent `units` that rests on; inf where it is not told.

    One unit has no interval: `difference` needs two of them.
    """

    value: float
    low: float
    high: float
    units: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Difference:
    """b − a with its 95% interval, and the two-sided `p` of no difference.

    `p` is None where the intervals have no width although the numbers differ: that says nothing of chance.
    """

    value: float
    low: float
    high: float
    p: float | None


def difference(a: Measured, b: Measured) -> Difference:
    """b − a. `p` is below 0.05 exactly where the interval leaves 0 out."""
    value = b.value - a.value
    errors = [_standard_errors(one) for one in (a, b)]
    (a_below, a_above), (b_below, b_above) = errors
    below, its_below = _together(b_below, a_above, b.units, a.units)
    above, its_above = _together(b_above, a_below, b.units, a.units)
    error, freedom = (below, its_below) if value > 0 else (above, its_above)
    if value == 0:
        p: float | None = 1.0
    else:
        p = None if error == 0 else float(2 * _upper_tail(abs(value) / error, freedom))
    return Difference(
        value=value, low=value - _quantile(its_below) * below, high=value + _quantile(its_above) * above, p=p
    )


def _standard_errors(one: Measured) -> tuple[float, float]:
    """Below and above the value."""
    reach = _quantile(_freedom(one.units))
    return (one.value - one.low) / reach, (one.high - one.value) / reach


def _together(one: float, other: float, units: float, others: float) -> tuple[float, float]:
    """The standard error of a difference and its degrees of freedom (Welch 1947)."""
    error = math.hypot(one, other)
    if error == 0:
        return 0.0, math.inf
    spread = (one / error) ** 4 / _freedom(units) + (other / error) ** 4 / _freedom(others)
    return error, 1 / spread if spread else math.inf


def _freedom(units: float) -> float:
    return units - 1


def _quantile(freedom: float) -> float:
    return float(stdtrit(min(freedom, 1e9), (1 + LEVEL) / 2))


def _upper_tail(statistic: float, freedom: float) -> float:
    return float(stdtr(min(freedom, 1e9), -statistic))


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """The p-values corrected so that any false one among them is as rare as a single one was, whatever goes together.

    Source: Holm 1979.
    """
    given = np.asarray(p, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    raised = np.maximum.accumulate(given[order] * (len(given) - np.arange(len(given))))
    found = np.empty_like(given)
    found[order] = np.minimum(raised, 1.0)
    return found
