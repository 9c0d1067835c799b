"""What a guarantee leaves an attacker: ceilings on its true-positive rate, its AUC and its advantage.

A membership test on one unit has a false-positive rate F (it says "member" of a non-member) and a
true-positive rate T. A guarantee bounds T at every F, and so the whole ROC. The same curve read at F = κ is
the ceiling on reconstructing what could be guessed with chance κ (Hayes, Mahloujifar & Balle 2023; Kaissis et
al. 2023).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from defenses.accounting import AnyEvent, loss_distribution
from fl_core.errors import InputError, check_number

Floats = npt.NDArray[np.float64]

# A rate, or an array of them; what comes back has the same shape.
Rates = TypeVar("Rates", float, Floats)
"""One rate, or an array of rates; what comes back is of the same kind."""

# A line of slope e^ε reaches 1 by F = e^−ε, so these cover every F that 10^10 non-members could resolve.
_LARGEST_EPSILON = math.log(1e10)
_LINES = 400


def tpr_gaussian(fpr: Rates, mu: float) -> Rates:
    """The best true-positive rate at `fpr` against μ-GDP: Φ(Φ⁻¹(F) + μ), reached by the Gaussian mechanism.

    Raises InputError for a rate outside [0, 1] or a negative `mu`. Source: Dong, Roth & Su 2022 (GDP).
    """
    _check_rates(fpr)
    check_number("mu", mu, minimum=0)
    tpr: Rates = norm.cdf(norm.ppf(fpr) + mu)
    return tpr


def auc_gaussian(mu: float) -> float:
    """The area under `tpr_gaussian`: Φ(μ/√2)."""
    check_number("mu", mu, minimum=0)
    return float(norm.cdf(mu / math.sqrt(2)))


def advantage_gaussian(mu: float) -> float:
    """The largest T − F against μ-GDP: 2Φ(μ/2) − 1, the total variation of two Gaussians μ apart."""
    check_number("mu", mu, minimum=0)
    return math.erf(mu / math.sqrt(8))


def delta_gaussian(epsilon: float, mu: float) -> float:
    """The smallest δ at `epsilon` for μ-GDP: Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2).

    Source: Balle & Wang 2018 (analytic Gaussian mechanism); Dong, Roth & Su 2022.
    """
    check_number("epsilon", epsilon, minimum=0)
    check_number("mu", mu, minimum=0)
    if mu == 0:
        return 0.0
    # e^ε overflows on its own long before its product with the tail does, hence the logarithm.
    lost = math.exp(epsilon + float(norm.logcdf(-epsilon / mu - mu / 2)))
    return max(float(norm.cdf(-epsilon / mu + mu / 2)) - lost, 0.0)


def epsilon_gaussian(mu: float, delta: float) -> float:
    """The smallest ε at `delta` for μ-GDP, by inverting `delta_gaussian`; 0 where δ alone covers it."""
    check_number("mu", mu, minimum=0)
    check_number("delta", delta, above=0, below=1)
    if delta_gaussian(0.0, mu) <= delta:
        return 0.0
    # At this ε the first term of δ alone is already down to `delta`.
    high = max(mu * mu / 2 + mu * float(norm.isf(delta)), 0.0) + 1e-9
    return float(brentq(lambda epsilon: delta_gaussian(epsilon, mu) - delta, 0.0, high, xtol=1e-12))


def tpr_epsilon_delta(fpr: Rates, epsilon: float, delta: float) -> Rates:
    """The ceiling on the true-positive rate at `fpr` under (ε, δ): min(e^ε F + δ, 1 − e^−ε (1 − δ − F), 1).

    Raises InputError for a rate outside [0, 1], a negative ε or a δ outside [0, 1]. ε may be inf.
    Source: Kairouz, Oh & Viswanath 2015 (the privacy region of a test).
    """
    _check_rates(fpr)
    check_number("epsilon", epsilon, minimum=0, infinite=True)
    check_number("delta", delta, minimum=0, maximum=1)
    # e^ε overflows past 709; no F above 0 tells a slope of e^700 from a steeper one.
    slope = math.exp(min(epsilon, 700.0))
    tpr: Rates = np.clip(np.minimum(slope * fpr + delta, 1 - (1 - delta - fpr) / slope), 0.0, 1.0)
    return tpr


def advantage_epsilon_delta(epsilon: float, delta: float) -> float:
    """The largest T − F that (ε, δ) allows: (e^ε − 1 + 2δ) / (e^ε + 1).

    Source: Kairouz, Oh & Viswanath 2015; Humphries et al. 2023.
    """
    check_number("epsilon", epsilon, minimum=0, infinite=True)
    check_number("delta", delta, minimum=0, maximum=1)
    # tanh(ε/2) = (e^ε − 1)/(e^ε + 1), which does not overflow; 2/(e^ε + 1) = 1 − tanh(ε/2).
    ratio = math.tanh(epsilon / 2)
    return ratio + delta * (1 - ratio)


def trade_off_pld(noise_multiplier: float, events: Sequence[AnyEvent]) -> TradeOff:
    """The ceiling that the composed `events` put on the ROC: at each F the least e^ε F + δ_PLD(ε) over all ε.

    It bounds both tests, for the unit added and for the unit removed, so it is symmetric; it is within 1e-4 of the
    exact curve of DP-SGD. The line of −ε is that of ε seen from the other test, 1 − e^−ε (1 − δ(ε) − F), so only ε ≥ 0
    is kept. Without noise nothing is guaranteed. Raises InputError for a negative noise multiplier. Source: Dong, Roth
    & Su 2022 (primal–dual form), with δ from the privacy loss distribution.
    """
    distribution = loss_distribution(noise_multiplier, events)
    if distribution is None:
        return trade_off_none()
    last = min(float(distribution.get_epsilon_for_delta(1e-12)), _LARGEST_EPSILON)
    # Dense at 0, where the curve bends most, and at even ratios after that.
    epsilons = max(last, 1e-6) * np.sinh(np.linspace(0.0, 5.0, _LINES)) / math.sinh(5.0)
    deltas = np.clip(distribution.get_delta_for_epsilon(epsilons), 0.0, 1.0)
    return TradeOff(epsilons=tuple(epsilons.tolist()), deltas=tuple(deltas.tolist()))


def trade_off_none() -> TradeOff:
    """The ceiling without a guarantee: a true-positive rate of 1 at every false-positive rate, 0 included."""
    return TradeOff(epsilons=(0.0,), deltas=(1.0,))


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """A ceiling on every ROC: (`epsilons`[k], `deltas`[k]) is a guarantee, and all hold at once.

    Each pair is two straight lines over the ROC, so their minimum is concave and what is read off it is a
    ceiling exactly, at any F and not only at the knots. Raises InputError for pairs that are no guarantee.
    """

    epsilons: tuple[float, ...]
    deltas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.epsilons or len(self.epsilons) != len(self.deltas):
            raise InputError(
                f"a trade-off has {len(self.epsilons)} epsilons and {len(self.deltas)} deltas; "
                "it must have one δ for every ε, and at least one"
            )
        for epsilon, delta in zip(self.epsilons, self.deltas, strict=True):
            check_number("a trade-off's epsilon", epsilon, minimum=0, maximum=700)
            check_number("a trade-off's delta", delta, minimum=0, maximum=1)

    @property
    def fpr(self) -> Floats:
        """False-positive rates [knots] from 0 to 1, where the ceiling bends; it is straight between them."""
        return self._knots[0]

    @property
    def tpr(self) -> Floats:
        """The ceiling on the true-positive rate [knots] at `fpr`."""
        return self._knots[1]

    def tpr_at(self, fpr: Rates) -> Rates:
        """The most that the true-positive rate can be at `fpr`, one rate or an array of them."""
        least = tpr_epsilon_delta(fpr, self.epsilons[0], self.deltas[0])
        for epsilon, delta in zip(self.epsilons[1:], self.deltas[1:], strict=True):
            least = np.minimum(least, tpr_epsilon_delta(fpr, epsilon, delta))
        return least

    def auc(self) -> float:
        """The most that the area under the ROC can be; exact by trapezoids, as the knots are the bends."""
        return float(np.trapezoid(self.tpr, self.fpr))

    def advantage(self) -> float:
        """The most that T − F can be; a concave piecewise straight curve has its largest gap at a knot."""
        return float(np.max(self.tpr - self.fpr))

    def as_dict(self) -> dict[str, list[float]]:
        """Plain lists, for JSON."""
        return {"epsilons": list(self.epsilons), "deltas": list(self.deltas)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> TradeOff:
        """The trade-off that `as_dict` wrote; raises InputError if a list is missing or is no guarantee."""
        missing = sorted({"epsilons", "deltas"} - set(stored))
        if missing:
            raise InputError(f"a stored trade-off lacks {' and '.join(missing)}; it must have epsilons and deltas")
        return cls(epsilons=tuple(stored["epsilons"]), deltas=tuple(stored["deltas"]))

    @functools.cached_property
    def _knots(self) -> tuple[Floats, Floats]:
        epsilons, deltas = np.array(self.epsilons), np.array(self.deltas)
        slopes = np.concatenate([np.exp(epsilons), np.exp(-epsilons), [0.0]])
        heights = np.concatenate([deltas, 1 - np.exp(-epsilons) * (1 - deltas), [1.0]])
        bends = _bends_of_least(slopes, heights)
        fpr = np.unique(np.concatenate([[0.0], bends[(bends > 0) & (bends < 1)], [1.0]]))
        return fpr, self.tpr_at(fpr)


def _check_rates(fpr: float | Floats) -> None:
    rates = np.asarray(fpr)
    if not np.all((rates >= 0) & (rates <= 1)):
        raise InputError("a false-positive rate lies outside [0, 1]; it must be a share of the non-members")


def _bends_of_least(slopes: Floats, heights: Floats) -> Floats:
    """Where the minimum of the lines height + slope·x passes from one line to the next, ascending."""
    order = np.lexsort((heights, -slopes))
    kept: list[tuple[float, float]] = []
    bends: list[float] = []
    for slope, height in zip(slopes[order].tolist(), heights[order].tolist(), strict=True):
        if kept and slope == kept[-1][0]:
            continue  # a parallel line further up
        while kept:
            bend = (height - kept[-1][1]) / (kept[-1][0] - slope)
            if not bends or bend > bends[-1]:
                bends.append(bend)
                break
            # The last line is undercut before it ever becomes the least one.
            kept.pop()
            bends.pop()
        kept.append((slope, height))
    return np.array(bends)
