"""Client canaries of random direction, all in one run: an estimate of ε, and a bound for one Gaussian release.

A canary is a unit vector c of random direction, sent as a client's clipped update. Its cosine with what was released
tells how much of it is left. For a canary that was not in the run that cosine has a known law: it is that of a fixed
direction with a random one, in d dimensions about N(0, 1/d).

Source: Andrew, Kairouz, Oh, Oprea, McMahan and Suriyakumar 2024, "One-shot Empirical Privacy Estimation for Federated
Learning" (posted 2023), for `estimate_final` and `estimate_all_iterates`; `frame_bound` is our own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit
from scipy.stats import nct

from attacks.audit.checks import check_gaussian_delta, check_levels, trials
from attacks.audit.gaussian import epsilon_of_mu
from attacks.audit.outcomes import Estimate, FrameBound
from attacks.base import Floats
from fl_core.errors import InputError, check_number

Array = NDArray[np.float64]


def cosines(canaries: Floats, released: Floats) -> Array:
    """Cosine of each of `canaries` [canaries, d] with a `released` difference of models [d]; returns [canaries].

    Raises InputError for shapes that do not fit and vectors of length 0, whose direction is unknown.
    """
    directions, moved = np.asarray(canaries, dtype=np.float64), np.asarray(released, dtype=np.float64)
    if directions.ndim != 2 or moved.shape != directions.shape[1:]:
        raise InputError(
            f"canaries {directions.shape} and released {moved.shape} do not fit; give [canaries, d] and [d]"
        )
    lengths = np.linalg.norm(directions, axis=1) * np.linalg.norm(moved)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InputError("a canary or the released difference has length 0 or is not finite; no cosine can be taken")
    found: Array = directions @ moved / lengths
    return found


def estimate_final(observed: Floats, dimension: int, *, delta: float, confidence: float = 0.95) -> Estimate:
    """ε at `delta` estimated from the cosines of the canaries with the final model's difference from the first.

    `observed` [canaries] are the cosines of canaries that took part, `dimension` is the model's d. Their law is taken
    for N(m, s²) with their own mean and deviation, and that of canaries that took no part for N(0, 1/d); ε is that of
    this pair of laws (`epsilon_of_normals`).

    An estimate, not a bound. Source: Andrew et al., Algorithms 1 and 2: for one Gaussian release it tends to the true ε
    as d grows, with k canaries and k/d → 0. For several rounds it is the ε that these canaries show on the final model;
    nothing says that others could not show more. Raises InputError for fewer than 2 canaries, cosines outside [−1, 1],
    d < 2 and δ = 0.
    """
    check_levels(delta, confidence)
    check_gaussian_delta(delta)
    check_number("dimension", dimension, minimum=2, integer=True)
    return _estimate(_cosines("observed cosines", observed), None, 1 / math.sqrt(dimension), delta, confidence)


def estimate_all_iterates(observed: Floats, unobserved: Floats, *, delta: float, confidence: float = 0.95) -> Estimate:
    """ε at `delta` estimated from each canary's largest cosine with any round's difference of models.

    `observed` [rounds, canaries] are cosines of canaries that took part, `unobserved` [rounds, controls] of as random
    directions that did not. The largest over rounds has no simple law without the canary either, so both sides are
    taken for normal with their own means and deviations.

    An estimate, not a bound. Source: Andrew et al., Algorithm 3. Raises InputError as `estimate_final`, and for sides
    that differ in their rounds.
    """
    check_levels(delta, confidence)
    check_gaussian_delta(delta)
    inside, outside = np.asarray(observed, dtype=np.float64), np.asarray(unobserved, dtype=np.float64)
    if inside.ndim != 2 or outside.ndim != 2 or len(inside) != len(outside) or not len(inside):
        raise InputError(
            f"cosines {inside.shape} and {outside.shape} do not fit; give [rounds, canaries] and [rounds, controls]"
        )
    peaks, others = inside.max(0), outside.max(0)
    peaks, others = _cosines("observed cosines", peaks), _cosines("unobserved cosines", others)
    return _estimate(peaks, others, 0.0, delta, confidence)


def _cosines(name: str, values: Floats) -> Array:
    found = trials(name, values, least=2)
    if np.abs(found).max() > 1 + 1e-9:
        raise InputError(f"{name} reach {np.abs(found).max():.3g}; a cosine lies in [-1, 1], so divide by both lengths")
    return found


def _estimate(inside: Array, outside: Array | None, null: float, delta: float, confidence: float) -> Estimate:
    """From the statistics of canaries that took part and of controls; without controls the null is N(0, `null`²)."""
    if min(side.std() for side in (inside, outside) if side is not None) == 0:
        raise InputError("all cosines of one side are equal: there is no noise to compare with, so ε has no estimate")
    sides = [inside] if outside is None else [inside, outside]
    fitted = np.concatenate([(side.mean(), math.log(side.std(ddof=1))) for side in sides])

    def epsilon(parameters: Array) -> float:
        mean, deviation = parameters[0], math.exp(parameters[1])
        other, spread = (parameters[2], math.exp(parameters[3])) if outside is not None else (0.0, null)
        return epsilon_of_normals((mean - other) / spread, deviation / spread, delta)

    # Means vary by s²/k and log s by 1/(2(k − 1)), independently: the delta method, ends kept at 0 or above.
    value, variance = epsilon(fitted), 0.0
    errors = [(side.std(ddof=1) / math.sqrt(len(side)), math.sqrt(0.5 / (len(side) - 1))) for side in sides]
    for step in np.diag(np.concatenate(errors)):
        variance += (epsilon(fitted + step / 2) - epsilon(fitted - step / 2)) ** 2
    reach = float(ndtri((1 + confidence) / 2)) * math.sqrt(variance)
    return Estimate(
        epsilon=value,
        delta=delta,
        confidence=confidence,
        ceiling=math.inf,
        assumes="normal statistics",
        low=max(value - reach, 0.0),
        high=value + reach,
        canaries=len(inside),
        controls=0 if outside is None else len(outside),
    )


def epsilon_of_normals(mean: float, deviation: float, delta: float) -> float:
    """The smallest ε at which N(0, 1) and N(`mean`, `deviation`²) are (ε, `delta`)-indistinguishable, both ways.

    For equal deviations that is `epsilon_of_mu` of |mean|. Raises InputError for a deviation that is not positive and δ
    outside (0, 1).
    """
    check_number("the mean", mean)
    check_number("the deviation", deviation, above=0)
    check_gaussian_delta(delta)

    def excess(epsilon: float) -> float:
        return max(_hockey_stick(epsilon, mean, deviation)) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9))


def _hockey_stick(epsilon: float, mean: float, deviation: float) -> tuple[float, float]:
    """(P[A] − e^ε Q[A], Q[B] − e^ε P[B]), each at its best event, for P = N(mean, deviation²) and Q = N(0, 1).

    log dP/dQ at x is x²/2 − (x − mean)²/(2·deviation²) − log deviation, a parabola a·x² + b·x + c, so that A, where it
    exceeds ε, and B, where it is below −ε, are each an interval or what lies outside one.
    """
    a, b = (1 - deviation**-2) / 2, mean / deviation**2
    c = -(mean**2) / (2 * deviation**2) - math.log(deviation)
    gains = []
    for sign in (1.0, -1.0):
        # sign·(ax² + bx + c) > ε
        square, slope, level = sign * a, sign * b, sign * c - epsilon
        by_p, by_q = (_above(square, slope, level, *law) for law in ((mean, deviation), (0.0, 1.0)))
        gained, lost = (by_p, by_q) if sign > 0 else (by_q, by_p)
        # e^ε overflows on its own long before its product with the tail does, hence the logarithm.
        gains.append(gained - math.exp(min(epsilon + math.log(lost), 0.0)) if lost > 0 else gained)
    return gains[0], gains[1]


def _above(square: float, slope: float, level: float, mean: float, deviation: float) -> float:
    """P[square·x² + slope·x + level > 0] for x ~ N(mean, deviation²)."""

    def below(x: float) -> float:
        return float(ndtr((x - mean) / deviation))

    def beyond(x: float) -> float:
        return float(ndtr((mean - x) / deviation))

    if abs(square) < 1e-12 * max(1.0, abs(slope)):
        if slope == 0:
            return 1.0 if level > 0 else 0.0
        root = -level / slope
        return beyond(root) if slope > 0 else below(root)
    inner = slope**2 - 4 * square * level
    if inner <= 0:
        return 1.0 if square > 0 else 0.0
    # The root of the larger size first, the other from their product: no digits are lost where the parabola is flat.
    far = -(slope + math.copysign(math.sqrt(inner), slope)) / (2 * square)
    left, right = sorted((far, level / (square * far))) if far else (0.0, 0.0)
    if square > 0:
        return below(left) + beyond(right)
    # Of the two ways to take a difference the one of small numbers.
    if mean > right:
        return below(right) - below(left)
    return beyond(left) - beyond(right)


def frame_bound(observed: Floats, controls: Floats, *, delta: float, confidence: float = 0.95) -> FrameBound:
    """Lower bound on μ = 1/σ of one Gaussian release, and on its ε at `delta`, from a random orthonormal frame.

    The canaries c₁, …, cₖ and the controls are orthonormal vectors of uniformly random directions (the columns of a
    Gaussian matrix's Q factor), all scaled to the clip. The canaries took part, the controls did not. `observed` [k]
    and `controls` [l] are inner products, or cosines, of each with the release: only their ratios count.

    Formal guarantee: let the release be x + Σ cᵢ + noise of deviation σ clips in every direction, x anything that is
    independent of the frame. Then `mu` exceeds 1/σ with a chance of at most 1 − `confidence`, and `epsilon` the ε at
    `delta` that follows. It needs no large d. It holds for one release: over several rounds x depends on what the
    canaries did before. A deviation below σ in the frame's span, or canaries that count more than once, show as a
    larger μ, which is what an audit looks for.

    Proof. In clips, observation i is 1 + wᵢ, a control's wᵢ, with w the noise plus x, both in the frame's coordinates.
    w is spherically symmetric: the noise is, and x is seen from a random frame. So w = R·u, u uniform on a sphere and R
    independent of it. With ū the mean of u over the canaries, and S(u) their sum of squares about it and the controls'
    about 0 together, the statistic t = √k·(1 + R·ū) / (R·√(S(u)/(k − 1 + l))) falls as R grows. R is stochastically
    smallest at x = 0 (a noncentral χ² grows with its centre), where t is noncentral t with k − 1 + l degrees of freedom
    and centre √k/σ. The bound is the centre at which what was observed, or more, has the chance 1 − `confidence`.

    Raises InputError for fewer than 2 canaries, no control, products that are all 0 and δ = 0.
    """
    check_levels(delta, confidence)
    check_gaussian_delta(delta)
    inside, outside = trials("products of canaries", observed, least=2), trials("products of controls", controls)
    degrees = len(inside) - 1 + len(outside)
    squares = float(((inside - inside.mean()) ** 2).sum() + (outside**2).sum())
    if squares == 0:
        raise InputError("no product differs from what was expected of it: there is no noise, so μ has no bound")
    statistic = float(inside.mean()) * math.sqrt(len(inside) * degrees / squares)
    mu = largest_centre(statistic, degrees, confidence) / math.sqrt(len(inside))
    return FrameBound(
        epsilon=epsilon_of_mu(mu, delta),
        delta=delta,
        confidence=confidence,
        ceiling=math.inf,
        assumes="one isotropic Gaussian release",
        canaries=len(inside),
        controls=len(outside),
        mu=mu,
    )


def largest_centre(statistic: float, degrees: int, confidence: float) -> float:
    """The centre at which a noncentral t of so many degrees reaches `statistic` with chance 1 − `confidence`, or 0."""
    if statistic <= stdtrit(degrees, confidence):
        return 0.0
    # P[t ≥ statistic] grows with the centre, and is about ½ at the statistic itself.
    return float(
        brentq(lambda centre: nct.sf(statistic, degrees, centre) - (1 - confidence), 0.0, statistic, xtol=1e-9)
    )
