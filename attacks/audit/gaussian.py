"""Audits of mechanisms whose trade-off is Gaussian: μ from error rates, and ε(δ) from μ.

What a threshold proves is a bound on μ: a μ-GDP mechanism allows no test more than TPR = Φ(Φ⁻¹(FPR) + μ). Turning it
into an ε at a small δ, at which no finite sample could see anything, extrapolates along the Gaussian curve.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from attacks.audit.checks import check_gaussian_delta, check_levels
from attacks.audit.outcomes import TwoWorldBound
from attacks.audit.thresholds import Choice, prove
from attacks.base import Floats
from fl_core.errors import check_number

Array = NDArray[np.float64]

GAUSSIAN = "a Gaussian trade-off"


def gaussian_bound(
    inside: Floats, outside: Floats, choice: Choice, *, delta: float, confidence: float = 0.95
) -> TwoWorldBound:
    """Lower bound on μ, and on the ε at `delta` that follows from it, from runs with the canary and without.

    Shapes as `two_world_bound`. μ = Φ⁻¹(1 − FPR) − Φ⁻¹(FNR) with upper bounds on both rates that hold together with
    `confidence`.

    Formal guarantee: `mu` exceeds the smallest μ at which the mechanism is μ-GDP with a chance of at most 1 −
    `confidence`, whatever the mechanism. `epsilon` is a bound in two cases only:

    - the mechanism's trade-off is Gaussian: then it bounds the true ε at `delta`;
    - it is dominated by a Gaussian one, and the claim under audit is that Gaussian's ε: then it bounds that claim,
      though the mechanism's own ε may be smaller than `epsilon`.

    For other mechanisms (Laplace noise, subsampled Gaussians) the extrapolation can claim too much. Raises InputError
    for δ = 0, and as `two_world_bound`. Source: Nasr et al. 2023, "Tight Auditing of Differentially Private Machine
    Learning", for the bound; Dong, Roth and Su 2022 for GDP.
    """
    check_levels(delta, confidence)
    check_gaussian_delta(delta)
    rates, best = prove(inside, outside, choice, confidence, mu_of_rates)
    mu = float(mu_of_rates(rates.tpr, rates.fpr)[best])
    perfect, flawless = (np.array([rate]) for rate in rates.best)
    return TwoWorldBound(
        epsilon=epsilon_of_mu(mu, delta),
        delta=delta,
        confidence=confidence,
        ceiling=epsilon_of_mu(float(mu_of_rates(perfect, flawless)[0]), delta),
        assumes=GAUSSIAN,
        members=rates.members,
        non_members=rates.non_members,
        true_positives=int(rates.true_positives[best]),
        false_positives=int(rates.false_positives[best]),
        threshold=float(rates.thresholds[best]),
        mu=mu,
    )


def mu_of_rates(tpr: Array, fpr: Array) -> Array:
    """The smallest μ that allows a TPR of at least `tpr` at a FPR of at most `fpr`, all [thresholds]; 0 or more."""
    proven = (tpr > fpr) & (tpr > 0) & (fpr < 1)
    mu: Array = ndtri(np.where(proven, tpr, 0.5)) - ndtri(np.where(proven, fpr, 0.5))
    return mu


def delta_of_mu(epsilon: float, mu: float) -> float:
    """The smallest δ at `epsilon` for μ-GDP: Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2).

    Source: Balle and Wang 2018, Theorem 8; Dong, Roth and Su 2022, Corollary 1.
    """
    if mu == 0:
        return 0.0
    # e^ε overflows on its own long before its product with the tail does, hence the logarithm.
    lost = math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))
    return max(float(ndtr(-epsilon / mu + mu / 2)) - lost, 0.0)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The smallest ε at `delta` for μ-GDP: `delta_of_mu` inverted, 0 where δ alone covers it, inf for an infinite μ.

    Raises InputError for a negative μ and δ outside (0, 1).
    """
    check_number("mu", mu, minimum=0, infinite=True)
    check_gaussian_delta(delta)
    if math.isinf(mu):
        return math.inf
    if delta_of_mu(0.0, mu) <= delta:
        return 0.0
    # At this ε the first term of δ alone is already down to `delta`.
    high = max(mu * mu / 2 - mu * float(ndtri(delta)), 0.0) + 1e-9
    return float(brentq(lambda epsilon: delta_of_mu(epsilon, mu) - delta, 0.0, high, xtol=1e-12))
