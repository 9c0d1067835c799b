"""LiRA, the likelihood-ratio attack (Carlini et al. 2022, "Membership Inference Attacks From First Principles").

For each example: fit one Gaussian to the signal of the shadows that trained on it and one to the signal of
those that did not, then ask under which the target's signal is likelier (Algorithm 1, online); or, with the second
Gaussian alone, how far above it the target's signal lies (eq. 4, offline). The target's membership enters nowhere:
means and variances come from the shadows alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from attacks.base import Bools, Floats, MembershipKnowledge
from attacks.membership.moments import Moments, Side, moments
from attacks.membership.observed import Signals, require_shadows
from fl_core.errors import InputError, check_choice

# Nats². Shadows that agree to the last bit (a saturated or constant model) must give a finite score.
SMALLEST_VARIANCE = 1e-12

ENOUGH = 32
"""With "auto", an example has its own variance from this many shadows on a side: 64 in all, as in the paper's text."""

Array = NDArray[np.float64]
FixedVariance = bool | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class LiRA:
    """LiRA on the logit-scaled confidence.

    `online` needs shadows that trained on the example; offline it is the one-sided test against those that did not.
    `fixed_variance` pools one variance for IN and one for OUT over all examples, which serves better while shadows are
    few; otherwise each example has its own two; "auto" gives an example its own once it has 32 shadows on that side.
    With `every_query` the score is the mean over the queries of each one's own, as if they were independent: no
    covariance of queries is estimated, which few shadows would leave singular.
    """

    online: bool = True
    fixed_variance: FixedVariance = True
    every_query: bool = False
    needs: ClassVar[type[Signals]] = Signals

    def __post_init__(self) -> None:
        if not isinstance(self.fixed_variance, bool):
            check_choice("LiRA's fixed_variance", self.fixed_variance, ("auto",))

    @property
    def name(self) -> str:
        """What tables call it: whether it is offline, whose variances it takes, and whether it uses every query."""
        variance = {True: "", False: ", own variances", "auto": ", own variances from 32 shadows"}
        offline, queries = ", offline" * (not self.online), ", every query" * self.every_query
        return f"LiRA{offline}{variance[self.fixed_variance]}{queries}"

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Log-likelihood ratios [examples] in nats; offline, minus the log of the chance of so high a signal if OUT.

        Raises InputError without shadows, or as `lira_scores` and `scaled_confidence` do.
        """
        shadows = require_shadows(self.name, signals, knowledge)
        test = likelihood_ratios if self.online else one_sided
        scores = test(signals.confidence[0], shadows.confidence, self.fixed_variance)
        first: Array = scores[0]
        return np.mean(scores, axis=0, dtype=np.float64) if self.every_query else first


def lira_scores(target: Floats, shadows: Floats, members: Bools, *, fixed_variance: FixedVariance = True) -> Array:
    """Online scores of one query: `target` [examples], `shadows` and boolean `members` [shadows, examples].

    Returns log-likelihood ratios [examples] in nats. Raises InputError for signals that are not finite or do not fit,
    and as `likelihood_ratios`.
    """
    wide: Array = np.asarray(target, dtype=np.float64)
    shadows = np.asarray(shadows)
    if shadows.ndim != 2 or members.shape != shadows.shape or wide.shape != shadows.shape[1:]:
        raise InputError(
            f"target {wide.shape}, shadows {shadows.shape} and members {members.shape} do not fit; "
            "give [examples], [shadows, examples] and [shadows, examples]"
        )
    if not np.isfinite(wide).all():
        raise InputError(f"{int((~np.isfinite(wide)).sum())} target signals are not finite; retrain that model")
    scores: Array = likelihood_ratios(wide[None], moments(shadows[:, None], members), fixed_variance)[0]
    return scores


def likelihood_ratios(target: Array, shadows: Moments, fixed_variance: FixedVariance) -> Array:
    """Log N(signal; μ_in, σ²_in) − log N(signal; μ_out, σ²_out), in nats, [queries, examples] as `target`.

    An example that no shadow trained on has no IN mean: it takes its OUT mean plus the average gap between
    IN and OUT means over the examples that have both (and the other way round). Its own variance needs two
    shadows on that side; with fewer it takes the pooled one. The pooled variance divides the squared
    residuals around the examples' own means by shadows − 1 summed over examples; if no example has two
    shadows on a side, it takes the other side's, and if neither side has any, the residuals around the
    side's overall mean. Raises InputError unless some example has both an IN and an OUT shadow.

    Source: Carlini et al. 2022, Algorithm 1.
    """
    if not shadows.has_both.any():
        raise InputError(
            f"LiRA needs shadows with and without an example; none of {target.shape[-1]} examples has both among "
            f"{_number(shadows)} shadows; train at least 2, each on its own random half"
        )
    mean_in, mean_out = shadows.means()
    variance_in = _variance(shadows.inside, shadows.outside, fixed_variance)
    variance_out = _variance(shadows.outside, shadows.inside, fixed_variance)
    return _log_normal(target, mean_in, variance_in) - _log_normal(target, mean_out, variance_out)


def one_sided(target: Array, shadows: Moments, fixed_variance: FixedVariance) -> Array:
    """−log P[Z > signal] for Z ~ N(μ_out, σ²_out), in nats, [queries, examples] as `target`.

    The order is that of the paper's Λ = 1 − P[Z > signal] (Carlini et al. 2022, eq. 4), whose values all round to 1
    where members are surest. What an example lacks it takes as for `likelihood_ratios`, if other shadows trained on
    examples. Raises InputError unless some example has an OUT shadow and some example has two of a side.
    """
    if not shadows.outside.count.any():
        raise InputError(
            f"offline LiRA needs shadows without the examples; all {_number(shadows)} trained on all; train others"
        )
    if max(shadows.inside.count.max(), shadows.outside.count.max()) < 2:
        raise InputError(
            f"offline LiRA needs 2 shadows with an example, or 2 without; no example has either among "
            f"{_number(shadows)}; train more"
        )
    _, mean = shadows.means()
    variance = np.maximum(_variance(shadows.outside, shadows.inside, fixed_variance), SMALLEST_VARIANCE)
    surprise: Array = -log_ndtr((mean - target) / np.sqrt(variance))
    return surprise


def _number(shadows: Moments) -> int:
    return int((shadows.inside.count + shadows.outside.count)[0])


def _variance(side: Side, other: Side, fixed: FixedVariance) -> Array:
    pooled = side.pooled_variance()
    if pooled is None:
        pooled = other.pooled_variance()
    if pooled is None:  # two shadows that share no side of any example
        pooled = side.variance_around_all()
    if fixed is True:
        return pooled
    enough = side.count >= (ENOUGH if fixed == "auto" else 2)
    return np.where(enough, side.squares / np.maximum(side.count - 1, 1), pooled)


def _log_normal(x: Array, mean: Array, variance: Array) -> Array:
    variance = np.maximum(variance, SMALLEST_VARIANCE)
    density: Array = -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)
    return density
