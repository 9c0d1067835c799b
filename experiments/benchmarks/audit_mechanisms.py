"""Mechanisms whose ε is known, for auditors to be audited on.

Each gives scores as an attack would: with the canary and without, or for many canaries of one run at once. They are the
best ones there are (the likelihood ratio, or what grows with it), so that what an auditor misses of ε is its own loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from attacks.audit.gaussian import epsilon_of_mu
from defenses.accounting import Event, epsilon_pld

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Pairs = Callable[[np.random.Generator, int, int], tuple[Array, Array]]
"""(draws, audits, trials) → scores with the canary and without, both [audits, trials]."""
Runs = Callable[[np.random.Generator, int, int], tuple[Array, Bools]]
"""(draws, audits, canaries) → scores and who was a member, both [audits, canaries]."""

GRID_OF_BITS = (-0.5, 0.0, 0.5, 1.0, 1.5)
SAMPLED = Event(relation="add or remove", rate=0.2, steps=10)
SAMPLED_NOISE = 1.0


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """`epsilon` is the smallest ε at `delta`, inf where there is none; `mu` where the trade-off is Gaussian.

    `threshold` is the one to register beforehand, `grid` the few to correct for. `pairs` is None where the canary of a
    two-world game means nothing; `runs` draws each canary's coin and score.
    """

    name: str
    epsilon: float
    delta: float
    threshold: float
    grid: tuple[float, ...]
    pairs: Pairs | None
    runs: Runs
    mu: float | None = None


def independent(pairs: Pairs) -> Runs:
    """One run in which every canary goes through `pairs` on its own."""

    def runs(draws: np.random.Generator, audits: int, canaries: int) -> tuple[Array, Bools]:
        members = draws.random((audits, canaries)) < 0.5
        inside, outside = pairs(draws, audits, canaries)
        return np.where(members, inside, outside), members

    return runs


def gaussian_pairs(mu: float) -> Pairs:
    """The score of the canary is `mu` plus a standard normal number; without it, the number alone."""

    def pairs(draws: np.random.Generator, audits: int, trials: int) -> tuple[Array, Array]:
        return draws.standard_normal((audits, trials)) + mu, draws.standard_normal((audits, trials))

    return pairs


def laplace_pairs(epsilon: float) -> Pairs:
    """A bit under Laplace noise of scale 1/ε."""

    def pairs(draws: np.random.Generator, audits: int, trials: int) -> tuple[Array, Array]:
        noise = draws.laplace(scale=1 / epsilon, size=(2, audits, trials))
        return noise[0] + 1, noise[1]

    return pairs


def response_pairs(epsilon: float) -> Pairs:
    """Randomised response: the bit itself with the chance e^ε/(1 + e^ε), its opposite otherwise (Warner 1965)."""

    def pairs(draws: np.random.Generator, audits: int, trials: int) -> tuple[Array, Array]:
        truthful = draws.random((2, audits, trials)) < expit(epsilon)
        return truthful[0].astype(np.float64), (~truthful[1]).astype(np.float64)

    return pairs


def sampled_pairs(draws: np.random.Generator, audits: int, trials: int) -> tuple[Array, Array]:
    """Poisson-subsampled Gaussian steps; the score is the log-likelihood ratio over the steps."""
    inside, outside = np.zeros((audits, trials)), np.zeros((audits, trials))
    for _ in range(SAMPLED.steps):
        for scores, rate in ((inside, SAMPLED.rate), (outside, 0.0)):
            drawn = draws.random(scores.shape) < rate
            released = drawn + SAMPLED_NOISE * draws.standard_normal(scores.shape)
            scores += np.log1p(SAMPLED.rate * np.expm1((released - 0.5) / SAMPLED_NOISE**2))
    return inside, outside


def xor_pairs(_: np.random.Generator, audits: int, trials: int) -> tuple[Array, Array]:
    """Of a pair of canaries whose other half is known, the parity gives the canary away."""
    return np.ones((audits, trials)), np.zeros((audits, trials))


def xor_runs(draws: np.random.Generator, audits: int, canaries: int) -> tuple[Array, Bools]:
    """The parity of each pair of canaries is published, exactly; none of the coins follows from it alone."""
    members = draws.random((audits, canaries)) < 0.5
    parity = members[:, ::2] ^ members[:, 1::2]
    return np.repeat(parity, 2, axis=1).astype(np.float64), members


def name_and_shame_runs(draws: np.random.Generator, audits: int, canaries: int) -> tuple[Array, Bools]:
    """One canary, drawn at random, is published with its coin; of the others nothing is."""
    members = draws.random((audits, canaries)) < 0.5
    scores, rows = np.zeros((audits, canaries)), np.arange(audits)
    shamed = draws.integers(canaries, size=audits)
    scores[rows, shamed] = np.where(members[rows, shamed], 1.0, -1.0)
    return scores, members


def _known(
    name: str, epsilon: float, delta: float, threshold: float, pairs: Pairs, mu: float | None = None
) -> Mechanism:
    grid = tuple(threshold + shift for shift in (-1.0, -0.5, 0.0, 0.5, 1.0))
    return Mechanism(
        name=name, epsilon=epsilon, delta=delta, threshold=threshold, grid=grid, pairs=pairs, runs=independent(pairs),
        mu=mu,
    )  # fmt: skip


def _gaussian(mu: float, delta: float) -> Mechanism:
    return _known(
        f"Gaussian, μ = {mu:g}, δ = {delta:g}", epsilon_of_mu(mu, delta), delta, mu + 0.5, gaussian_pairs(mu), mu
    )


def _sampled(delta: float) -> Mechanism:
    name = f"subsampled Gaussian, q = {SAMPLED.rate:g}, σ = {SAMPLED_NOISE:g}, T = {SAMPLED.steps}, δ = {delta:g}"
    return _known(name, epsilon_pld(SAMPLED_NOISE, [SAMPLED], delta), delta, 1.5, sampled_pairs)


def mechanisms() -> tuple[Mechanism, ...]:
    """All of them; ε of the subsampled Gaussian is the accountant's, by its privacy loss distribution."""
    return (
        _known("null, δ = 1e-05", 0.0, 1e-5, 1.0, gaussian_pairs(0.0), 0.0),
        _known("randomised response, ε = 1", 1.0, 0.0, 0.5, response_pairs(1.0)),
        _known("Laplace, ε = 1", 1.0, 0.0, 1.0, laplace_pairs(1.0)),
        _known("Laplace, ε = 2", 2.0, 0.0, 1.0, laplace_pairs(2.0)),
        *(_gaussian(mu, delta) for delta in (1e-5, 0.1) for mu in (0.5, 1.0, 2.0)),
        *(_sampled(delta) for delta in (1e-5, 0.1)),
        Mechanism(
            name="XOR of pairs", epsilon=math.inf, delta=1e-5, threshold=0.5, grid=GRID_OF_BITS, pairs=xor_pairs,
            runs=xor_runs,
        ),
        Mechanism(
            name="name and shame", epsilon=math.inf, delta=1e-5, threshold=0.5, grid=GRID_OF_BITS, pairs=None,
            runs=name_and_shame_runs,
        ),
    )  # fmt: skip


# One Gaussian release of many random directions, for the one-shot audits


def frame_products(
    draws: np.random.Generator, mu: float, canaries: int, controls: int, dimension: int, others: float
) -> tuple[Array, Array]:
    """Inner products, [canaries] and [controls], of a random orthonormal frame with a release of the canaries' sum.

    `others` is the length of what else was released, in clips; the noise has the deviation 1/`mu` in every direction.
    """
    count = canaries + controls
    direction = draws.standard_normal(count)
    # A fixed vector in a random frame: its coordinates are those of a random direction, whose other d − count
    # coordinates matter through their length alone.
    rest = draws.chisquare(dimension - count)
    known = others * direction / math.sqrt(float(direction @ direction) + rest)
    found = known + draws.standard_normal(count) / mu
    found[:canaries] += 1.0
    return found[:canaries], found[canaries:]


def canary_cosines(draws: np.random.Generator, mu: float, canaries: int, dimension: int) -> Array:
    """Cosines [canaries] of independent unit canaries with their sum plus noise of deviation 1/`mu`; exact at any d.

    Their Gram matrix is drawn by Bartlett's decomposition, so that no vector of d numbers is ever made.
    """
    factor = np.tril(draws.standard_normal((canaries, canaries)), -1)
    factor[np.diag_indices(canaries)] = np.sqrt(draws.chisquare(dimension - np.arange(canaries)))
    factor /= np.linalg.norm(factor, axis=1, keepdims=True)
    noise = draws.standard_normal(canaries) / mu  # in an orthonormal basis of the canaries' span
    released = factor.sum(0) + noise
    outside = draws.chisquare(dimension - canaries) / mu**2
    cosines: Array = factor @ released / math.sqrt(float(released @ released) + outside)
    return cosines
