"""Reconstruction ceilings and floors against published values, closed forms and attackers who know everything."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant
from scipy.stats import binom, norm

from defenses.accounting import Event, epsilon_pld
from defenses.bounds import auc_gaussian, tpr_gaussian, trade_off_pld
from defenses.reconstruction_bounds import (
    Relation,
    SampledCeiling,
    auc_of_random_pair,
    mse_floor_unbiased,
    mu_of_random_pair,
    renyi_order_two,
    rero_epsilon_delta,
    rero_monte_carlo,
    rero_pld,
    rero_rdp,
    rero_renyi,
    tpr_of_mean,
)
from fl_core.errors import InputError
from fl_core.sampling import SamplingEvent


def poisson(rate: float, steps: int) -> list[SamplingEvent]:
    return [SamplingEvent(sampler="poisson", rate=rate, steps=steps)]


KNOWN_RUN = poisson(0.1, 100)  # with a noise multiplier of 1


# Reconstruction robustness


def test_the_known_run_has_the_known_ceilings_from_tight_to_loose() -> None:
    sampled = rero_monte_carlo(0.1, 1.0, KNOWN_RUN, np.random.default_rng(0), samples=100_000)
    # Four standard errors around the published .468 and the PLD's value: a false alarm in 16,000 each.
    assert sampled.standard_error < 0.0022
    assert sampled.value == pytest.approx(0.468, abs=4 * sampled.standard_error)
    assert rero_pld(0.1, 1.0, KNOWN_RUN) == pytest.approx(0.469, abs=5e-4)
    assert sampled.value == pytest.approx(rero_pld(0.1, 1.0, KNOWN_RUN), abs=4 * sampled.standard_error)
    assert rero_rdp(0.1, 1.0, KNOWN_RUN) == pytest.approx(0.6795, abs=5e-5)
    assert rero_epsilon_delta(0.1, epsilon_pld(1.0, KNOWN_RUN, 1e-5), 1e-5) == 1.0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_published_renyi_ceiling_comes_from_a_looser_series_than_the_exact_divergence() -> None:
    # .738 is what dp-accounting's divergences give. Its series for fractional orders adds up the sizes of the
    # binomial coefficients, signs dropped: an upper bound. Quadrature of the definition agrees with .6795.
    orders = np.arange(16, 30) / 10
    loose = 100 * rdp_privacy_accountant._compute_rdp_poisson_subsampled_gaussian(0.1, 1.0, orders)
    assert rero_renyi(0.1, orders.tolist(), loose.tolist()) == pytest.approx(0.738, abs=5e-4)
    exact = [100 * renyi_by_quadrature(0.1, 1.0, order) for order in orders]
    assert np.all(exact <= loose + 1e-9)
    assert rero_renyi(0.1, orders.tolist(), exact) == pytest.approx(rero_rdp(0.1, 1.0, KNOWN_RUN), rel=1e-6)


def renyi_by_quadrature(rate: float, noise: float, order: float) -> float:
    """D_order((1 − q)N(0, σ²) + qN(1, σ²) ‖ N(0, σ²)) on a grid that leaves out less than 1e-12."""
    y = np.linspace(-20 * noise, 20 * noise + 2 * order, 200_001)
    ratio = 1 - rate + rate * np.exp((y - 0.5) / noise**2)
    return math.log(np.trapezoid(norm.pdf(y, scale=noise) * ratio**order, y)) / (order - 1)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "kappa"),
    [(0.01, 1.0, 100, 0.1), (0.3, 2.0, 30, 0.01), (1.0, 10.0, 100, 0.1), (0.5, 0.4, 3, 0.02), (0.1, 5.0, 40, 0.5)],
)
def test_sampling_agrees_with_the_privacy_loss_distribution(
    rate: float, noise: float, steps: int, kappa: float
) -> None:
    """4.5 standard errors either way: a false alarm in 30,000 over the five settings."""
    sampled = rero_monte_carlo(kappa, noise, poisson(rate, steps), np.random.default_rng(1), samples=40_000)
    # The curve may lie above by its grid's 1e-4, and because it bounds the opposite test as well.
    assert abs(sampled.value - rero_pld(kappa, noise, poisson(rate, steps))) <= 4.5 * sampled.standard_error + 1e-4


@pytest.mark.parametrize(("mu", "kappa"), [(0.5, 0.5), (1.0, 0.1), (2.0, 0.005), (3.5, 0.01), (5.0, 0.02)])
def test_a_sampled_interval_covers_the_gaussian_closed_form_as_often_as_it_says(mu: float, kappa: float) -> None:
    """One draw of a full batch, 200 times, at 95%; misses beyond a chance of 1e-5 a setting fail."""
    rng, truth, missed = np.random.default_rng(2), tpr_gaussian(kappa, mu), 0
    for _ in range(200):
        low, high = rero_monte_carlo(kappa, 1 / mu, poisson(1.0, 1), rng, samples=20_000).interval()
        missed += not low <= truth <= high
    assert missed <= binom.isf(1e-5, 200, 0.05)


def test_sampling_is_the_same_again_from_the_same_seed_and_across_chunks() -> None:
    first, second = (
        rero_monte_carlo(0.2, 1.0, poisson(0.5, 2), np.random.default_rng(3), samples=70_000) for _ in range(2)
    )
    assert first == second
    assert first.samples == 70_000
    assert first.value == pytest.approx(rero_pld(0.2, 1.0, poisson(0.5, 2)), abs=4 * first.standard_error + 1e-4)


def test_without_draws_sampling_finds_the_prior_chance_and_at_next_to_no_noise_certainty() -> None:
    rng = np.random.default_rng(4)
    assert rero_monte_carlo(0.1, 1.0, [], rng, samples=1000).value == pytest.approx(0.1, abs=1e-12)
    assert rero_monte_carlo(0.1, 1e-3, poisson(1.0, 5), rng, samples=1000).value == 1.0
    # Drawn once with chance .3: when it is, it shows, and when not, guessing is left.
    once = rero_monte_carlo(0.1, 1e-3, poisson(0.3, 1), rng, samples=1000)
    assert once.value == pytest.approx(0.3 + 0.7 * 0.1, abs=1e-9)


def test_an_interval_is_centred_and_stays_a_probability() -> None:
    assert SampledCeiling(value=0.5, standard_error=0.01, samples=1).interval() == pytest.approx(
        (0.5 - 0.0196, 0.5 + 0.0196), abs=1e-5
    )
    assert SampledCeiling(value=0.99, standard_error=0.1, samples=1).interval(0.99)[1] == 1.0
    assert SampledCeiling(value=0.01, standard_error=0.1, samples=1).interval(0.99)[0] == 0.0


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.01, 1.0, 1000), (0.1, 1.0, 100), (1.0, 10.0, 100)])
def test_looser_accounts_never_give_a_lower_ceiling(rate: float, noise: float, steps: int) -> None:
    events = poisson(rate, steps)
    curve, epsilon = trade_off_pld(noise, events), epsilon_pld(noise, events, 1e-5)
    for kappa in (1e-4, 0.01, 0.1, 0.5, 0.9):
        tight = curve.tpr_at(kappa)
        # The curve's own grid of ε can leave it up to 1e-4 above what a single one of them says.
        assert kappa <= tight <= rero_rdp(kappa, noise, events) + 1e-4
        assert tight <= rero_epsilon_delta(kappa, epsilon, 1e-5) + 1e-4


def test_the_renyi_ceiling_of_a_gaussian_is_its_closed_form() -> None:
    # ρ(α) = αμ²/2; by hand at α = 2, μ = 1, κ = .1: √(.1 e).
    assert rero_renyi(0.1, [2.0], [1.0]) == pytest.approx(math.sqrt(0.1 * math.e))
    assert rero_renyi(0.1, [2.0, 3.0], [1.0, math.inf]) == pytest.approx(math.sqrt(0.1 * math.e))
    assert rero_rdp(0.1, 1.0, poisson(1.0, 1)) == pytest.approx(
        min((0.1 * math.exp(order / 2)) ** ((order - 1) / order) for order in np.linspace(1.01, 60, 100_000)), rel=1e-3
    )


def test_ceilings_hold_at_their_ends() -> None:
    for ceiling in (rero_pld, rero_rdp):
        assert ceiling(0.1, 0.0, KNOWN_RUN) == 1.0
        assert ceiling(0.1, 1.0, []) == pytest.approx(0.1, abs=1e-6)
        assert ceiling(1.0, 1.0, KNOWN_RUN) == 1.0
        assert ceiling(0.0, 1.0, KNOWN_RUN) == pytest.approx(0.0, abs=1e-9)
        assert 0.1 <= ceiling(0.1, 1e9, KNOWN_RUN) <= 0.104
    assert rero_rdp(0.1, 0.01, KNOWN_RUN) == 1.0
    assert rero_epsilon_delta(0.1, 1.0, 0.01) == pytest.approx(0.1 * math.e + 0.01)
    assert rero_epsilon_delta(0.1, math.inf, 0.0) == 1.0
    assert rero_epsilon_delta(0.0, math.inf, 0.2) == pytest.approx(0.2)


# The error of unbiased attacks


def test_the_known_run_has_the_known_floor_on_its_error() -> None:
    assert renyi_order_two(10.0, poisson(1.0, 100), relation="add_or_remove") == pytest.approx(1.0)
    floor = mse_floor_unbiased(10.0, poisson(1.0, 100), relation="add_or_remove")
    assert floor == pytest.approx(0.25 / math.expm1(1.0))
    assert floor == pytest.approx(0.1455, abs=5e-5)
    assert mse_floor_unbiased(10.0, poisson(1.0, 100), relation="replace") == pytest.approx(0.25 / math.expm1(4.0))


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.1, 1.0), (0.5, 2.0), (1.0, 0.7), (0.3, 20.0)])
def test_order_two_is_the_integral_when_a_record_is_added(rate: float, noise: float) -> None:
    stated = renyi_order_two(noise, poisson(rate, 1), relation="add_or_remove")
    assert stated == pytest.approx(math.log1p(rate**2 * math.expm1(noise**-2)), rel=1e-9)
    assert stated == pytest.approx(renyi_by_quadrature(rate, noise, 2.0), rel=1e-6)


@pytest.mark.parametrize("rate", [1e-6, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0])
def test_order_two_bounds_the_integral_when_a_record_is_replaced(rate: float, noise: float) -> None:
    y = np.linspace(-20 * noise - 4, 20 * noise + 4, 40_001)
    near, far = (norm.pdf(y, loc=side, scale=noise) for side in (1.0, -1.0))
    nothing = norm.pdf(y, scale=noise)
    outside = (1 - rate) * nothing + rate * far
    # The squared difference and not the square, so that a small divergence keeps its digits.
    held = outside > 0
    excess = np.trapezoid((rate * (near - far))[held] ** 2 / outside[held], y[held])
    stated = renyi_order_two(noise, poisson(rate, 1), relation="replace")
    assert stated >= math.log1p(excess) * (1 - 1e-6)
    if rate in (1e-6, 1.0):
        assert stated == pytest.approx(math.log1p(excess), rel=1e-3)


def test_an_unbiased_attack_on_every_pixel_stays_above_both_floors() -> None:
    # The gradient of a one-pixel record is 2x − 1, clipped at 1; the mean of 100 noisy ones gives x back.
    rng, noise, steps, x = np.random.default_rng(5), 10.0, 100, 0.3
    seen = 2 * x - 1 + noise * rng.standard_normal((20_000, steps)).mean(axis=1)
    guesses = (seen + 1) / 2
    # The mean within 4.5 of its standard errors of .5/√20,000, a false alarm in 100,000.
    assert guesses.mean() == pytest.approx(x, abs=4.5 * 0.5 / math.sqrt(20_000))
    error = np.mean((guesses - x) ** 2)
    assert error == pytest.approx(0.25, rel=0.05)
    for relation in ("add_or_remove", "replace"):
        assert error >= mse_floor_unbiased(noise, poisson(1.0, steps), relation=relation)


def test_the_floor_of_add_or_remove_is_undercut_where_gradients_point_apart() -> None:
    """A pixel is 0, ½ or 1, and its gradient one of three points on the unit circle; σ = 10, 100 full batches.

    The unbiased estimator ½ + Σ c_i (L_i − 1), with L_i the likelihood ratio of value i to ½ and c = M⁻¹b, is
    right on average at all three values: E_i[L_j − 1] = M_ij. Its variance at ½ is bᵀM⁻¹b (Barankin 1949).
    """
    events, cosine = poisson(1.0, 100), -0.3
    sine = math.sqrt(1 - cosine**2)
    gradients = np.array([[cosine, sine], [cosine, -sine]]) - np.array([1.0, 0.0])
    matrix = np.expm1(gradients @ gradients.T * 100 / 10.0**2)
    offsets = np.array([-0.5, 0.5])
    error = offsets @ np.linalg.solve(matrix, offsets)
    assert error == pytest.approx(0.0443, abs=5e-5)
    assert mse_floor_unbiased(10.0, events, relation="replace") <= error
    assert error < mse_floor_unbiased(10.0, events, relation="add_or_remove")


@pytest.mark.parametrize("relation", ["add_or_remove", "replace"])
def test_floors_hold_at_their_ends(relation: Relation) -> None:
    for noise in (0.0, 1e-300, 1e-5, 0.01, 0.03):
        assert mse_floor_unbiased(noise, KNOWN_RUN, relation=relation) == 0.0
    assert mse_floor_unbiased(1.0, [], relation=relation) == math.inf
    assert mse_floor_unbiased(1e200, KNOWN_RUN, relation=relation) > 1e200
    floors = [mse_floor_unbiased(noise, KNOWN_RUN, relation=relation) for noise in np.logspace(-1, 4, 60).tolist()]
    assert floors == sorted(floors)
    parts = renyi_order_two(1.0, poisson(0.1, 60) + poisson(0.2, 40), relation=relation)
    assert parts == pytest.approx(
        sum(renyi_order_two(1.0, poisson(*part), relation=relation) for part in ((0.1, 60), (0.2, 40)))
    )


# An average without noise


@pytest.mark.parametrize(("dimension", "clients", "mu", "auc"), [(10, 21, 1.0, 0.760), (1000, 101, 20**0.5, 0.999)])
def test_a_mean_without_noise_gives_a_random_pair_away(dimension: int, clients: int, mu: float, auc: float) -> None:
    assert mu_of_random_pair(dimension, clients) == pytest.approx(mu)
    assert auc_gaussian(mu_of_random_pair(dimension, clients)) == pytest.approx(auc, abs=5e-4)
    assert auc_of_random_pair(dimension, clients) <= auc_gaussian(mu_of_random_pair(dimension, clients))


@pytest.mark.parametrize("equally_far", [True, False])
def test_the_likelihood_ratio_between_a_pair_wins_as_often_as_stated(equally_far: bool) -> None:
    """100,000 pairs, d = 10, n = 21; 4.5 standard errors of .0014 either way, a false alarm in 150,000 each.

    Pairs put exactly √(2d) apart have the AUC at the mean distance, .760; drawn ones average .752.
    """
    rng, pairs, dimension, clients = np.random.default_rng(6), 100_000, 10, 21
    first, second = rng.standard_normal((2, pairs, dimension))
    if equally_far:
        apart = first - second
        second = first - apart * (math.sqrt(2 * dimension) / np.linalg.norm(apart, axis=1, keepdims=True))

    def log_ratio(held: np.ndarray) -> np.ndarray:
        total = held.copy()
        for _ in range(clients - 1):
            total += rng.standard_normal((pairs, dimension))
        return ((total - second) ** 2 - (total - first) ** 2).sum(axis=1) / (2 * (clients - 1))

    won = np.mean(log_ratio(first) > log_ratio(second))
    at_mean_distance = auc_gaussian(mu_of_random_pair(dimension, clients))
    stated = at_mean_distance if equally_far else auc_of_random_pair(dimension, clients)
    assert at_mean_distance - auc_of_random_pair(dimension, clients) > 0.007
    assert won == pytest.approx(stated, abs=4.5 * math.sqrt(stated * (1 - stated) / pairs))


def test_the_best_test_on_a_mean_has_the_stated_power() -> None:
    """‖x‖ = √n, so μ = 1: TPR .0924 at 1% and .389 at 10%; 4.5 standard errors, a false alarm in 70,000 in all."""
    rng, runs, dimension, clients = np.random.default_rng(7), 40_000, 2, 50
    x = np.full(dimension, math.sqrt(clients / dimension))

    def score(member: bool) -> np.ndarray:
        total = np.tile(member * x, (runs, 1))
        for _ in range(clients):
            total += rng.standard_normal((runs, dimension))
        return total / clients @ x

    members, others = score(True), score(False)
    for fpr in (0.01, 0.1):
        stated = tpr_of_mean(fpr, float(np.linalg.norm(x)), clients)
        assert stated == pytest.approx(tpr_gaussian(fpr, 1.0))
        # The threshold is a sample quantile, so its own spread, times the curve's slope, is added.
        slope = norm.pdf(norm.ppf(fpr) + 1) / norm.pdf(norm.ppf(fpr))
        spread = math.sqrt((stated * (1 - stated) + slope**2 * fpr * (1 - fpr)) / runs)
        assert np.mean(members > np.quantile(others, 1 - fpr)) == pytest.approx(stated, abs=4.5 * spread)
    assert tpr_of_mean(np.array([0.01, 0.1]), 0.0, 3) == pytest.approx([0.01, 0.1])


# What cannot be used


def test_what_is_no_chance_no_noise_or_no_relation_is_refused() -> None:
    rng = np.random.default_rng(0)
    fixed = [Event(relation="replace", rate=0.1, steps=3)]
    for ceiling in (rero_pld, rero_rdp):
        with pytest.raises(InputError, match="kappa"):
            ceiling(1.1, 1.0, KNOWN_RUN)
        with pytest.raises(InputError, match="noise_multiplier"):
            ceiling(0.1, -1.0, KNOWN_RUN)
    for kappa in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="kappa"):
            rero_monte_carlo(kappa, 1.0, KNOWN_RUN, rng)
    with pytest.raises(InputError, match=r"noise_multiplier.*at least 0\.001"):
        rero_monte_carlo(0.1, 0.0, KNOWN_RUN, rng)
    with pytest.raises(InputError, match="without replacement"):
        rero_monte_carlo(0.1, 1.0, fixed, rng)
    with pytest.raises(InputError, match="without replacement"):
        rero_rdp(0.1, 1.0, fixed)
    with pytest.raises(InputError, match="use 100000 samples or more"):
        rero_monte_carlo(0.001, 1.0, KNOWN_RUN, rng, samples=50_000)
    with pytest.raises(InputError, match="confidence"):
        SampledCeiling(value=0.5, standard_error=0.1, samples=1).interval(1.0)
    with pytest.raises(InputError, match="one divergence for every order"):
        rero_renyi(0.1, [2.0], [])
    with pytest.raises(InputError, match="order"):
        rero_renyi(0.1, [1.0], [1.0])
    with pytest.raises(InputError, match="divergence"):
        rero_renyi(0.1, [2.0], [-1.0])
    with pytest.raises(InputError, match="delta"):
        rero_epsilon_delta(0.1, 1.0, 2.0)
    with pytest.raises(InputError, match="relation"):
        mse_floor_unbiased(1.0, KNOWN_RUN, relation="swap")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without replacement"):
        mse_floor_unbiased(1.0, fixed, relation="replace")
    with pytest.raises(InputError, match="clients"):
        mu_of_random_pair(10, 1)
    with pytest.raises(InputError, match="dimension"):
        auc_of_random_pair(0, 5)
    with pytest.raises(InputError, match="length"):
        tpr_of_mean(0.1, -1.0, 5)
