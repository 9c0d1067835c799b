"""The f-DP one-run audit: against a linear program, closed forms, and false claims on Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom

from attacks.audit.gaussian import epsilon_of_mu
from attacks.audit.one_run import one_run_epsilon
from attacks.audit.one_run_fdp import (
    allowed_mass,
    approximate_inverse,
    audit_one_run_fdp,
    gaussian_inverse,
    one_run_fdp_epsilon,
)
from fl_core.errors import InputError

AUDITS = 2000
# A rate of exactly 5% exceeds this in 2,000 audits about once in 1,000 (3.1 standard errors of .0049).
NOMINAL_AND_NOISE = 0.05 + 3.1 * 0.0049


def least_mass(canaries: int, guesses: int, correct: int, error: float, epsilon: float, delta: float) -> float:
    """The least Σ p under (*) by linear programming: F of (ε, δ) is the lower of two lines, so (*) is linear."""
    size, counts = guesses + 1, np.arange(guesses + 1)
    rows, limits = [-(counts >= correct).astype(float)], [-error]
    for i in range(1, size):
        right = np.where(counts >= i, counts, 0) / canaries
        wrong = np.where(counts >= i - 1, guesses - counts, 0) / canaries
        rows += [right - math.exp(epsilon) * wrong, right - math.exp(-epsilon) * wrong]
        limits += [delta, 1 - math.exp(-epsilon) * (1 - delta)]
    found = linprog(np.ones(size), A_ub=np.array(rows), b_ub=np.array(limits))
    assert found.status == 0
    return float(found.fun)


@pytest.mark.parametrize(("canaries", "guesses", "correct"), [(40, 20, 16), (30, 30, 24), (60, 25, 25), (50, 20, 11)])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.05])
def test_the_recursion_finds_what_the_linear_program_finds(canaries: int, guesses: int, correct: int, delta: float):
    for epsilon in (0.0, 0.3, 1.0, 2.0):
        found = allowed_mass(canaries, guesses, correct, 0.05, approximate_inverse(epsilon, delta))
        least = least_mass(canaries, guesses, correct, 0.05, epsilon, delta)
        if found <= 1:
            assert found == pytest.approx(least, rel=1e-6)
        else:  # the recursion stops once it knows
            assert least > 1


def test_the_inverses_are_inverse():
    for power in (0.0, 1e-4, 0.3, 0.9, 1.0):
        x = approximate_inverse(1.0, 1e-3)(power)
        allowed = min(math.e * x + 1e-3, 1 - (1 - 1e-3 - x) / math.e, 1.0)
        assert allowed == pytest.approx(power, abs=1e-12) or (x == 0 and power <= allowed)
        assert gaussian_inverse(0.0)(power) == pytest.approx(power, abs=1e-12)
    assert gaussian_inverse(1.0)(0.0924) == pytest.approx(0.01, abs=1e-4)  # the table of the Gaussian mechanism


@pytest.mark.parametrize("guesses", [1, 100, 1000])
def test_all_guesses_right_at_delta_zero_gives_the_known_ceiling(guesses: int):
    # The chance of r right guesses of r is p^r at most, as for (ε, 0)-DP by the binomial: nothing is lost here.
    p = max(0.05 ** (1 / guesses), 0.5)
    found = one_run_fdp_epsilon(guesses, guesses, guesses, "approximate", 0.0)
    assert found == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


def test_it_shows_more_on_the_gaussian_curve_and_as_much_on_the_other():
    for correct in (150, 180):
        steinke = one_run_epsilon(1000, 200, correct, 1e-5)
        assert one_run_fdp_epsilon(1000, 200, correct, "approximate", 1e-5) == pytest.approx(steinke, rel=0.02)
        assert one_run_fdp_epsilon(1000, 200, correct, "gaussian", 1e-5) > 1.5 * steinke


def test_the_bound_grows_with_right_guesses_and_is_zero_for_half_of_them():
    for family in ("gaussian", "approximate"):
        bounds = [one_run_fdp_epsilon(500, 100, v, family, 1e-5) for v in range(0, 101, 10)]
        assert bounds == sorted(bounds)
        assert bounds[5] == 0.0
        assert bounds[-1] > 2


def test_the_test_of_a_binomial_count_is_valid_at_its_critical_value():
    # Independent canaries whose every guess is right with chance Φ(μ/2): the worst case with all guessed.
    mu, guesses = 1.0, 200
    law = binom(guesses, 0.6914624612740131)
    rejected = [v for v in range(guesses + 1) if one_run_fdp_epsilon(200, guesses, v) > epsilon_of_mu(mu, 1e-5)]
    assert law.sf(rejected[0] - 1) <= 0.05
    assert rejected == list(range(rejected[0], guesses + 1))


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_gaussian_scores_make_false_claims_at_most_nominally(mu: float, fraction: float):
    draws = np.random.default_rng(0)
    members = draws.random((AUDITS, 200)) < 0.5
    scores = draws.standard_normal((AUDITS, 200)) + mu * members
    found = [
        audit_one_run_fdp(s[None], m[None], fraction=fraction, delta=1e-5).epsilon
        for s, m in zip(scores, members, strict=True)
    ]
    assert np.mean(np.array(found) > epsilon_of_mu(mu, 1e-5)) <= NOMINAL_AND_NOISE
    assert mu < 1 or np.median(found) > 0.25 * epsilon_of_mu(mu, 1e-5)  # and it is far from idle


def test_a_perfect_attack_reaches_the_ceiling():
    members = np.random.default_rng(1).random((1, 400)) < 0.5
    found = audit_one_run_fdp(members.astype(float), members, delta=1e-5)
    assert found.epsilon == found.ceiling > 5
    assert (found.canaries, found.guesses, found.correct) == (400, 100, 100)
    assert (found.kind, found.assumes) == ("one-run", "a Gaussian trade-off")
    assert audit_one_run_fdp(members.astype(float), members, family="approximate", delta=0.0).assumes == ""


def test_unusable_requests_are_refused():
    with pytest.raises(InputError, match="family"):
        one_run_fdp_epsilon(10, 10, 5, "laplace")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="delta"):
        one_run_fdp_epsilon(10, 10, 5, "gaussian", 0.0)
    with pytest.raises(InputError, match="correct"):
        one_run_fdp_epsilon(10, 10, 11)
