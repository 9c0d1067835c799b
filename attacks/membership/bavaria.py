"""BaVarIA, the Bayesian variance inference attack (Brännvall 2026, arXiv 2603.11799).

LiRA with few shadows must choose between a variance of one's own, which few numbers tell badly, and one for all
examples. Here each example's mean and variance on either side have a conjugate prior, learned from all examples, so
that one goes over into the other as shadows are added.

From the paper are the conjugate normal-inverse-gamma priors on each example's mean and variance, and the predictive
Student t (BaVarIA-t) or Gaussian (BaVarIA-n). How the prior is learned, and the one-sided form offline, are stated
below and are this module's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln, hyp2f1, log_ndtr, stdtr

from attacks.base import MembershipKnowledge
from attacks.membership.lira import SMALLEST_VARIANCE
from attacks.membership.moments import Side
from attacks.membership.observed import Signals, require_shadows
from fl_core.errors import InputError, check_number

Array = NDArray[np.float64]

LEAST_KAPPA, MOST_KAPPA = 1e-3, 1e3
"""Limits of how many shadows the prior mean is worth: both its parts are estimated and may come out as 0."""
LEAST_TAIL = 1e-280
"""A Student t's tail below it comes from the series of the incomplete beta function, whose log cannot underflow."""


@dataclass(frozen=True, kw_only=True)
class BaVarIA:
    """The log-ratio of an example's posterior predictive densities IN and OUT, of query 0's logit-scaled confidence.

    On each side σ² ~ InvGamma(ν₀/2, ν₀s₀²/2) and μ|σ² ~ N(μ₀, σ²/κ₀). μ₀ is the mean over examples of their means, s₀²
    the pooled variance within examples, and κ₀ = s₀² over the variance of the true means between examples. ν₀ is
    `variance_strength`: how many shadows the prior variance is worth. After n shadows with mean m and squared residuals
    S, the predictive is a Student t with νₙ = ν₀ + n degrees of freedom around (κ₀μ₀ + nm)/(κ₀ + n), with squared scale
    (ν₀s₀² + S + κ₀n(m − μ₀)²/(κ₀ + n))/νₙ · (1 + 1/(κ₀ + n)); with `gaussian` the normal of that location and scale.
    An example without shadows on a side has the other side's predictive there, moved by the average gap between IN and
    OUT means. Offline the score is one-sided, as LiRA's.
    """

    online: bool = True
    gaussian: bool = False
    variance_strength: float = 8.0
    needs: ClassVar[type[Signals]] = Signals

    def __post_init__(self) -> None:
        check_number("BaVarIA's variance_strength", self.variance_strength, above=0)

    @property
    def name(self) -> str:
        """What tables call it: whether it is Gaussian, and whether offline."""
        return f"BaVarIA{', Gaussian' * self.gaussian}{', offline' * (not self.online)}"

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Log-likelihood ratios [examples] in nats; offline, minus the log of the chance of so high a signal if OUT.

        Raises InputError without shadows, unless on each side used some example has a shadow and on either side some
        example has two, and for logits that are not finite.
        """
        shadows = require_shadows(self.name, signals, knowledge)
        inside, outside = shadows.confidence.inside, shadows.confidence.outside
        if not outside.count.any() or (self.online and not inside.count.any()):
            need = "with and without" if self.online else "without"
            raise InputError(f"{self.name} needs shadows {need} the examples; all {len(shadows.members)} are of a kind")
        gap = float(shadows.confidence.gap()[0, 0])
        target = signals.confidence[0, 0]
        if not self.online:
            return -self._log_tail(target, *self._either(outside, inside, -gap))
        as_in, as_out = self._either(inside, outside, gap), self._either(outside, inside, -gap)
        return self._log_density(target, *as_in) - self._log_density(target, *as_out)

    def _either(self, side: Side, other: Side, gap: float) -> tuple[Array, Array, Array]:
        """The predictive on one side, or the other's moved by the gap where an example has no shadow on this one."""
        freedom, location, scale = self._predictive(side, other)
        without = side.count == 0
        if without.any():
            others = self._predictive(other, side)
            freedom, scale = np.where(without, others[0], freedom), np.where(without, others[2], scale)
            location = np.where(without, others[1] + gap, location)
        return freedom, location, scale

    def _predictive(self, side: Side, other: Side) -> tuple[Array, Array, Array]:
        """Degrees of freedom, location and scale of each example's predictive, each [examples]."""
        within = side.pooled_variance()
        if within is None:
            within = other.pooled_variance()
        if within is None:
            raise InputError(f"{self.name} needs 2 shadows on one side of an example; none has them; train more")
        prior_variance = max(float(within[0, 0]), SMALLEST_VARIANCE)
        n, mean, squares = side.count, side.mean[0], side.squares[0]
        seen = n > 0
        prior_mean = float(mean[seen].mean())
        # Means of few shadows differ by chance as well: by s₀²/n, which is not between the examples.
        between = float(mean[seen].var() - prior_variance * (1 / n[seen]).mean())
        strength = prior_variance / max(between, prior_variance / MOST_KAPPA)
        kappa = max(strength, LEAST_KAPPA)
        freedom: Array = self.variance_strength + n.astype(np.float64)
        location = (kappa * prior_mean + n * mean) / (kappa + n)
        shift = kappa * n * (mean - prior_mean) ** 2 / (kappa + n)
        spread = (self.variance_strength * prior_variance + squares + shift) / freedom
        return freedom, location, np.sqrt(spread * (1 + 1 / (kappa + n)))

    def _log_density(self, x: Array, freedom: Array, location: Array, scale: Array) -> Array:
        z = (x - location) / scale
        if self.gaussian:
            normal: Array = -0.5 * z**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
            return normal
        constant = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - 0.5 * np.log(freedom * np.pi)
        student: Array = constant - np.log(scale) - (freedom + 1) / 2 * np.log1p(z**2 / freedom)
        return student

    def _log_tail(self, x: Array, freedom: Array, location: Array, scale: Array) -> Array:
        """log P[Z > x]."""
        z = (x - location) / scale
        tail: Array = log_ndtr(-z) if self.gaussian else log_student_tail(z, freedom)
        return tail


def log_student_tail(z: Array, freedom: Array) -> Array:
    """log P[T > z] of a Student t with `freedom` degrees of freedom, finite for every finite z.

    Far out it is log ½Iₓ(ν/2, ½) with x = 1/(1 + z²/ν), by the series xᵃ(1 − x)ᵇ/(aB(a, b)) · ₂F₁(a + b, 1; a + 1; x)
    (Abramowitz and Stegun 26.5.4 and 26.7.1).
    """
    tail = stdtr(freedom, -z)
    logs: Array = np.log(np.maximum(tail, LEAST_TAIL))
    far = tail < LEAST_TAIL
    a, b = freedom[far] / 2, 0.5
    log_x = -2 * np.log(np.hypot(1.0, z[far] / np.sqrt(freedom[far])))
    x = np.exp(log_x)
    series = np.log(hyp2f1(a + b, 1.0, a + 1, x))
    logs[far] = a * log_x + b * np.log1p(-x) - np.log(a) - betaln(a, b) + series - np.log(2)
    return logs
