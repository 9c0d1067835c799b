"""What a sum of updates leaks by itself, without noise: the closed forms for Gaussian updates.

n clients send independent updates N(m, Σ) in d dimensions and the server learns their mean, and nothing else. The
attacker knows m, Σ and the target's update. Secure aggregation alone is this mechanism, and n is its only protection:
it guarantees no ε for any n, since a target may lie anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from fl_core.errors import check_number

Floats = NDArray[np.float64]


def expected_square_mu_of_pair(dimension: int, cohort: int) -> float:
    """E[μ²] = 2d/(n−1) between two random clients of whom one is in the sum, as a Gaussian mechanism's μ.

    The two sums differ by u − u′ ~ N(0, 2Σ), and the others are noise N(0, (n−1)Σ). Raises InputError below 2 clients.
    """
    _check(dimension, cohort, least=2)
    return 2 * dimension / (cohort - 1)


def auc_of_pair(dimension: int, cohort: int) -> float:
    """The AUC of the likelihood-ratio test between two known random clients, pooled over pairs: T₂d(√(d/(n−1))).

    A pair μ apart scores N(±μ²/2, μ²), and a member of one pair beats a non-member of another with the chance
    Φ(√(μ₁² + μ₂²)/2). As μ₁² + μ₂² ~ 2χ²(2d)/(n−1), that is the chance that a standard normal over √(χ²(2d)/2d) stays
    below √(d/(n−1)): Student's t with 2d degrees of freedom.
    """
    _check(dimension, cohort, least=2)
    return float(t.cdf(math.sqrt(dimension / (cohort - 1)), 2 * dimension))


def auc_of_mean(dimension: int, cohort: int) -> float:
    """The AUC of the matched filter for a random client that is in the sum or redrawn: T_d(√(d/(2n−1))).

    For a target ‖w‖ from the mean in whitened units the filter's score is N(0, n) without it and N(‖w‖, n−1) with it,
    so its AUC is Φ(‖w‖/√(2n−1)), and ‖w‖² ~ χ²(d). Cf. Carlini et al. 2022 on the mean of n Gaussians.
    """
    _check(dimension, cohort, least=1)
    return float(t.cdf(math.sqrt(dimension / (2 * cohort - 1)), dimension))


@dataclass(frozen=True, kw_only=True)
class GaussianScores:
    """Gaussian scores of many targets: means and variances with the target in the sum and without, all [targets]."""

    inside: Floats
    inside_variance: Floats
    outside: Floats
    outside_variance: Floats

    def auc(self) -> float:
        """Pooled over targets: the mean over pairs (i, j) of Φ((inside_i − outside_j)/√(the sum of their variances)).

        Where both are certain it is which is larger, and ½ for a draw.
        """
        gap = np.subtract.outer(self.inside, self.outside)
        spread = np.sqrt(np.add.outer(self.inside_variance, self.outside_variance))
        return float(norm.cdf(_ratio(gap, spread)).mean())

    def tpr_at(self, fpr: float) -> float:
        """The true-positive rate of the one threshold at which `fpr` of all targets' scores without them lie above."""
        check_number("fpr", fpr, above=0, below=1)
        spread = 10 * np.sqrt(self.outside_variance.max())
        low, high = self.outside.min() - spread - 1e-9, self.outside.max() + spread + 1e-9
        threshold = brentq(lambda at: _above(at, self.outside, self.outside_variance) - fpr, low, high, xtol=1e-12)
        return _above(threshold, self.inside, self.inside_variance)


def _above(threshold: float, means: Floats, variances: Floats) -> float:
    return float(norm.sf(_ratio(threshold - means, np.sqrt(variances))).mean())


def _ratio(gap: Floats, spread: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(spread > 0, gap / spread, np.where(gap == 0, 0.0, np.copysign(np.inf, gap)))
    return found


def _check(dimension: int, cohort: int, least: int) -> None:
    check_number("the dimension", dimension, minimum=1, integer=True)
    check_number("the cohort", cohort, minimum=least, integer=True)
