"""The one-run audit of a whole trade-off curve, tighter than that of one (ε, δ) where the curve is known in kind.

One run, its canaries each included by an independent fair coin, `guesses` guesses on `canaries` of them. Let pₗ be the
chance that exactly l guesses are right. A mechanism whose trade-off curve is f (symmetric, so for adding a canary and
for removing it) has, with F = 1 − f and m canaries, c guesses,

    Σ_{l≥i} l·pₗ / m  ≤  F( Σ_{l≥i−1} (c − l)·pₗ / m )    for i = 1, …, c.                                  (*)

Proof. Fix all coins but that of canary j, a value b, and let A be the set of outputs on which the attacker guesses b
for j and exactly l − 1 of its other guesses are right, for some l ≥ i. With the coin of j at b, the output lies in A
when the guess on j is right and l guesses are right in all; at 1 − b, when it is wrong and l − 1 are right in all.
f-DP says P_b(A) ≤ F(P_{1−b}(A)). Average both sides over j, b and the other coins; F is concave, so it may be taken
out of the average (Jensen). Of l right guesses, a random canary is one with the chance l/m; of c − l wrong ones with
the chance (c − l)/m.

A claim f is rejected at `correct` right guesses if no numbers pₗ ≥ 0 with sum 1, (*) and P[at least `correct` right] ≥
error exist. Then the chance of so many right guesses is below the error under f. So is the chance of any rejection:
all of them are at or above the least number that is rejected. The recursion of `allowed_mass` decides it.

Source: Mahloujifar, Melis and Chaudhuri 2025, "Auditing f-Differential Privacy in One Run" (Algorithm 3 and its
theorem, for two values a canary); the proofs here are our own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

from scipy.special import ndtr, ndtri

from attacks.audit.checks import check_gaussian_delta, check_levels
from attacks.audit.gaussian import GAUSSIAN, epsilon_of_mu
from attacks.audit.one_run import guess
from attacks.audit.outcomes import OneRunBound
from attacks.base import Bools, Floats
from fl_core.errors import check_choice, check_number

Family = Literal["gaussian", "approximate"]
Inverse = Callable[[float], float]
"""F⁻¹: the least error of one kind at which a power of y is allowed."""


def audit_one_run_fdp(
    scores: Floats,
    members: Bools,
    *,
    family: Family = "gaussian",
    fraction: float = 0.25,
    delta: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> OneRunBound:
    """Lower bound on the ε at `delta` of one training run, by the curves of a `family`.

    `gaussian`: the largest μ for which μ-GDP is rejected, as the ε at `delta` that follows from it. Formal guarantee:
    if each target is μ-GDP in its canaries, `epsilon` exceeds the ε of μ-GDP with a chance of at most 1 − `confidence`.
    For a mechanism whose trade-off is not Gaussian that is a statement about the claim of μ-GDP, not about its own ε
    (see `gaussian.gaussian_bound`).

    `approximate`: the largest ε for which (ε, δ)-DP is rejected; holds for every mechanism, as `audit_one_run` does.

    The guesses, and the conditions on members, scores and `fraction`, are those of `one_run.audit_one_run`, which see
    for the errors; a Gaussian needs δ above 0.
    """
    check_levels(delta, confidence)
    found = guess(scores, members, fraction=fraction, seed=seed)
    sizes = (found.canaries, found.guesses)
    return OneRunBound(
        epsilon=one_run_fdp_epsilon(*sizes, found.correct, family, delta, confidence),
        delta=delta,
        confidence=confidence,
        ceiling=one_run_fdp_epsilon(*sizes, found.guesses, family, delta, confidence),
        assumes=GAUSSIAN if family == "gaussian" else "",
        canaries=found.canaries,
        guesses=found.guesses,
        correct=found.correct,
    )


@functools.lru_cache(maxsize=4096)  # audits of one size differ in one count
def one_run_fdp_epsilon(
    canaries: int,
    guesses: int,
    correct: int,
    family: Family = "gaussian",
    delta: float = 1e-5,
    confidence: float = 0.95,
) -> float:
    """Largest ε at `delta` of the curves of `family` that `correct` of `guesses` right guesses reject, or 0.

    Raises InputError unless 0 ≤ correct ≤ guesses ≤ canaries and 1 ≤ guesses, for an unknown family, and for δ = 0 with
    the Gaussian one.
    """
    check_choice("family", family, ("gaussian", "approximate"))
    check_levels(delta, confidence)
    check_number("canaries", canaries, minimum=1, integer=True)
    check_number("guesses", guesses, minimum=1, maximum=canaries, integer=True)
    check_number("correct", correct, minimum=0, maximum=guesses, integer=True)

    def rejects(inverse: Inverse) -> bool:
        return allowed_mass(canaries, guesses, correct, 1 - confidence, inverse) > 1

    if family == "gaussian":
        check_gaussian_delta(delta)
        return epsilon_of_mu(_largest(lambda mu: rejects(gaussian_inverse(mu))), delta)
    return _largest(lambda epsilon: rejects(approximate_inverse(epsilon, delta)))


def allowed_mass(canaries: int, guesses: int, correct: int, error: float, inverse: Inverse) -> float:
    """The least Σ pₗ over l of all pₗ ≥ 0 with (*) and Σ_{l≥correct} pₗ ≥ `error`; above 1 no such chances exist.

    Write rᵢ = Σ_{l≥i} l·pₗ/m and hᵢ = Σ_{l≥i} (c − l)·pₗ/m, so that (*) reads hᵢ₋₁ ≥ F⁻¹(rᵢ), and rᵢ + hᵢ is c/m
    times the mass from i on. The recursion puts the mass `error` on `correct` alone, and going down adds at each i the
    least pᵢ with which (*) holds: hᵢ = max(hᵢ₊₁, F⁻¹(rᵢ₊₁)), and rᵢ grows by sᵢ = i/(c − i) times what hᵢ grew by.

    No other chances r*, h* need less. By induction from `correct` down, (1) rᵢ* ≥ rᵢ and (2) rᵢ* − sᵢhᵢ* ≥ rᵢ − sᵢhᵢ.
    At the start (1) holds as l ≥ correct, and (2) as its right side is 0 and its left side is not negative (where
    correct = c, and s has no value, both h are 0, so that (1) gives (2) for whatever s comes next). Going down,
    (2) at i + 1 together with (1) gives (2) with sᵢ < sᵢ₊₁ in place of sᵢ₊₁, which adding mass at i leaves as it is.
    Where the recursion added nothing, (1) holds because rᵢ* ≥ rᵢ₊₁*. Where it did, hᵢ* ≥ F⁻¹(rᵢ₊₁*) ≥ F⁻¹(rᵢ₊₁) = hᵢ,
    so (2) gives (1). At the lowest such i also rᵢ* + hᵢ* ≥ rᵢ + hᵢ = r₀ + h₀: the mass is at least the recursion's.

    The set of curves that are rejected is therefore closed downward: chances that a smaller F allows, a larger allows.
    """
    rights = error * correct / canaries
    wrongs = error * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        least = inverse(rights)
        if least <= wrongs:
            # Nothing is added here, so that rights and wrongs, and all that follows, stay as they are.
            break
        rights += i / (guesses - i) * (least - wrongs)
        wrongs = least
        if (rights + wrongs) * canaries > guesses:
            break
    return (rights + wrongs) * canaries / guesses


def gaussian_inverse(mu: float) -> Inverse:
    """F⁻¹ of μ-GDP: Φ(Φ⁻¹(y) − μ)."""

    def inverse(power: float) -> float:
        return float(ndtr(ndtri(power) - mu))

    return inverse


def approximate_inverse(epsilon: float, delta: float) -> Inverse:
    """F⁻¹ of (ε, δ)-DP: the inverse of min(e^ε x + δ, 1 − e^−ε(1 − δ − x)) on [0, 1]."""
    factor = math.exp(epsilon)

    def inverse(power: float) -> float:
        return max(0.0, (power - delta) / factor, 1 - delta - factor * (1 - power))

    return inverse


def _largest(rejected: Callable[[float], bool]) -> float:
    """The largest parameter that is rejected, from below, given that all smaller ones are too; 0 if none is."""
    if not rejected(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejected(high):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low
