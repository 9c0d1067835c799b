"""Audits of Gaussian mechanisms: closed forms, exact coverage, and what they claim off their assumption."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import norm

from attacks.audit.gaussian import delta_of_mu, epsilon_of_mu, gaussian_bound, mu_of_rates
from attacks.audit.thresholds import Choice, Everywhere, PreRegistered, Split
from attacks.metrics import clopper_pearson
from fl_core.errors import InputError

AUDITS = 2000
# A rate of exactly 5% exceeds this in 2,000 audits about once in 1,000 (3.1 standard errors of .0049).
NOMINAL_AND_NOISE = 0.05 + 3.1 * 0.0049


@pytest.mark.parametrize(("mu", "epsilon"), [(1.0, 4.377), (2.0, 10.00), (3.0, 16.7)])
def test_epsilon_of_mu_is_the_reference_value(mu: float, epsilon: float):
    assert epsilon_of_mu(mu, 1e-5) == pytest.approx(epsilon, abs=0.05 if mu == 3 else 0.005)
    assert delta_of_mu(epsilon_of_mu(mu, 1e-5), mu) == pytest.approx(1e-5, rel=1e-6)


def test_delta_of_mu_is_the_hockey_stick_divergence_of_two_gaussians():
    x = np.linspace(-30, 30, 600_001)
    for epsilon, mu in ((0.0, 1.0), (1.0, 0.5), (3.0, 2.0)):
        gap = np.maximum(norm.pdf(x - mu) - np.exp(epsilon) * norm.pdf(x), 0)
        assert delta_of_mu(epsilon, mu) == pytest.approx(np.trapezoid(gap, x), abs=1e-8)
    assert epsilon_of_mu(0.0, 1e-5) == 0.0
    assert epsilon_of_mu(0.1, 0.5) == 0.0  # δ alone covers it


def test_mu_of_exact_rates_is_mu_at_every_threshold():
    thresholds = np.linspace(-3, 4, 20)
    mu = mu_of_rates(ndtr(1.3 - thresholds), ndtr(-thresholds))
    assert mu == pytest.approx(np.full(20, 1.3), abs=1e-9)
    assert mu_of_rates(np.array([0.0, 0.3, 1.0]), np.array([0.0, 0.4, 1.0])).tolist() == [0, 0, 0]


def test_the_bound_is_that_of_the_two_intervals():
    draws = np.random.default_rng(0)
    inside, outside = draws.standard_normal(1000) + 1, draws.standard_normal(1000)
    found = gaussian_bound(inside, outside, PreRegistered(threshold=0.5), delta=1e-5)
    low = clopper_pearson(found.true_positives, 1000).low
    high = clopper_pearson(found.false_positives, 1000).high
    assert found.mu == pytest.approx(norm.ppf(1 - high) - norm.ppf(1 - low), abs=1e-12)
    assert found.epsilon == epsilon_of_mu(found.mu, 1e-5)
    assert found.assumes == "a Gaussian trade-off"
    # No threshold of 1,000 trials shows an ε of 4.377 at δ = 1e-5 by itself; the Gaussian curve does from its middle.
    assert 3.0 < found.epsilon < 4.377


def test_a_perfect_attack_reaches_the_ceiling_in_closed_form():
    found = gaussian_bound(np.ones(200), np.zeros(200), PreRegistered(threshold=0.5), delta=1e-5)
    assert found.mu == pytest.approx(2 * norm.ppf(0.025 ** (1 / 200)), abs=1e-9)
    assert found.epsilon == found.ceiling


@pytest.mark.parametrize("choice", [PreRegistered(threshold=1.0), Split(), Everywhere()])
@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_gaussian_scores_make_false_claims_at_most_nominally(mu: float, choice: Choice):
    scores = np.random.default_rng(1).standard_normal((2, AUDITS, 100))
    found = [gaussian_bound(a + mu, b, choice, delta=1e-5).epsilon for a, b in zip(*scores, strict=True)]
    assert np.mean(np.array(found) > epsilon_of_mu(mu, 1e-5)) <= NOMINAL_AND_NOISE


def test_on_laplace_noise_the_extrapolation_claims_too_much():
    # ε is 1 at any δ, while μ from the middle of the curve extrapolates to more than 2: why `assumes` is there.
    noise = np.random.default_rng(2).laplace(size=(2, 1000))
    found = gaussian_bound(noise[0] + 1, noise[1], PreRegistered(threshold=0.5), delta=1e-5)
    assert found.epsilon > 2


def test_delta_of_zero_is_refused():
    with pytest.raises(InputError, match="delta"):
        gaussian_bound(np.ones(3), np.zeros(3), PreRegistered(threshold=0.5), delta=0.0)
    with pytest.raises(InputError, match="mu"):
        epsilon_of_mu(-1.0, 1e-5)
