"""The sampler against the exact distribution, rounding against its norm bound, and every ρ and ε from above.

Each statistical test is seeded, so it gives the same answer every time; on a fresh seed a correct implementation
would fail it with the chance that FALSE_ALARM states, once for each parameter.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import binom, binomtest, chi2, chisquare, norm

from defenses.bounds import epsilon_gaussian
from defenses.discrete_gaussian import (
    BETA,
    concentrated,
    discrete_gaussian,
    epsilon_concentrated,
    granularity_for,
    overflow_bound,
    plan,
    rho_for,
    round_to_grid,
    rounded_norm,
    sum_divergence,
)
from fl_core.errors import InputError
from fl_core.seeds import from_seed

FALSE_ALARM = 1e-4
DRAWS = 200_000


def log_pmf(sigma: float, reach: int) -> np.ndarray:
    """log P of −reach to reach, summed up in full; `reach` has to be many sigma."""
    exponents = -(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2)
    return exponents - logsumexp(exponents)


def log_pmf_of_sum(sigma: float, clients: int, reach: int) -> np.ndarray:
    """log P of −reach to reach for a sum of shares, by convolving one by one in logarithms."""
    share = log_pmf(sigma, 2 * reach)  # at least as far as any difference of two points
    total = share[reach : 3 * reach + 1]
    for _ in range(clients - 1):
        points = np.arange(2 * reach + 1)
        total = np.array([logsumexp(total + share[2 * reach + point - points]) for point in points])
    return total


# --- the sampler ---


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.99, 1.0, 1.7, 3.7, 20.0])
def test_draws_fit_the_exact_probability_of_every_integer(sigma: float) -> None:
    reach = math.ceil(12 * sigma) + 3
    drawn = discrete_gaussian((DRAWS,), sigma, from_seed(11)).numpy()
    assert abs(drawn).max() <= reach
    expected = DRAWS * np.exp(log_pmf(sigma, reach))
    last = int(np.flatnonzero(expected >= 10).max()) - reach  # all that lies further out is counted with it
    values, counts = np.unique(np.clip(drawn, -last, last), return_counts=True)
    assert values.tolist() == list(range(-last, last + 1))
    pooled = np.bincount(np.clip(np.arange(-reach, reach + 1), -last, last) + last, weights=expected)
    assert chisquare(counts, pooled).pvalue > FALSE_ALARM


@pytest.mark.parametrize("sigma", [300.0, 1e4, 1e6, 1e9])
def test_wide_draws_fit_in_bins_and_in_their_low_digits(sigma: float) -> None:
    drawn = discrete_gaussian((DRAWS,), sigma, from_seed(12)).numpy()
    # From here on a sum over integers and the normal integral between half-integers agree to 1e-6 and better.
    edges = np.round(norm.ppf(np.linspace(0, 1, 41)[1:-1]) * sigma) + 0.5
    chances = np.diff(norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]]) / sigma))
    counts = np.bincount(np.searchsorted(edges, drawn), minlength=40)
    assert chisquare(counts, DRAWS * chances).pvalue > FALSE_ALARM
    assert chisquare(np.bincount(drawn % 7, minlength=7)).pvalue > FALSE_ALARM


def test_noise_far_below_a_step_is_none() -> None:
    assert not discrete_gaussian((DRAWS,), 0.1, from_seed(13)).any()  # P[x ≠ 0] = 4e-22


@pytest.mark.parametrize("sigma", [0.7, 5.0, 4e5])
def test_shares_of_n_clients_sum_to_n_times_the_variance(sigma: float) -> None:
    clients, draws = 8, 40_000
    shares = discrete_gaussian((clients, draws), sigma, from_seed(14)).double()
    total = shares.sum(dim=0).numpy()
    reach = math.ceil(12 * sigma) + 3
    variance = sigma**2
    if sigma < 100:  # beyond, the variance is σ² to many more digits than a test could see
        variance = float(np.exp(log_pmf(sigma, reach)) @ np.arange(-reach, reach + 1) ** 2)
        assert variance <= sigma**2 * (1 + 1e-12)
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], draws) / draws
    assert low < np.mean(total**2) / (clients * variance) < high


def test_the_same_generator_state_gives_the_same_noise_and_another_seed_does_not() -> None:
    first, again, other = (discrete_gaussian((50, 7), 30.0, from_seed(seed)) for seed in (15, 15, 16))
    assert first.dtype == torch.int64
    assert first.shape == (50, 7)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_noise_is_drawn_for_an_empty_shape() -> None:
    assert discrete_gaussian((0, 5), 2.0, from_seed(1)).shape == (0, 5)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 1e15])
def test_a_sigma_without_a_sampler_is_refused(sigma: float) -> None:
    with pytest.raises(InputError, match=r"sigma is .* at least 0\.01"):
        discrete_gaussian((3,), sigma, from_seed(1))


# --- rounding ---


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lanes=st.integers(1, 4),
    dimension=st.integers(1, 300),
    granularity=st.floats(1e-4, 5.0),
    clip_norm=st.floats(1e-2, 10.0),
    length=st.floats(0.0, 20.0),
    beta=st.sampled_from([0.0, 1e-6, BETA, 0.95]),
)
def test_a_rounded_lane_is_a_neighbour_within_the_norm_bound_whatever_came_in(
    lanes: int, dimension: int, granularity: float, clip_norm: float, length: float, beta: float
) -> None:
    values = torch.randn(lanes, dimension, generator=from_seed(21))
    values *= length / torch.linalg.vector_norm(values, dim=1, keepdim=True)
    rounded = round_to_grid(values, granularity, clip_norm, beta, [from_seed(lane) for lane in range(lanes)])
    assert rounded.dtype == torch.int64
    lengths = torch.linalg.vector_norm(rounded.double(), dim=1) * granularity
    assert bool((lengths <= rounded_norm(clip_norm, granularity, dimension, beta) * (1 + 1e-12)).all())
    clipped = values.double() * min(1.0, clip_norm / max(length, 1e-300))
    assert bool(((rounded * granularity - clipped).abs() <= granularity * (1 + 1e-6) + 1e-6 * clip_norm).all())


def test_rounding_is_unbiased_and_its_variance_that_of_a_coin() -> None:
    tries = 4000
    values = torch.linspace(-1.3, 1.3, 23, dtype=torch.float64).expand(tries, 23)
    generator = from_seed(22)
    rounded = round_to_grid(values, 0.5, 10.0, 1e-9, [generator] * tries).double()
    up = values[0] / 0.5 - (values[0] / 0.5).floor()
    counts = (rounded - (values[0] / 0.5).floor()).sum(dim=0)
    pvalues = [binomtest(int(count), tries, float(chance)).pvalue for count, chance in zip(counts, up, strict=True)]
    assert min(pvalues) > FALSE_ALARM / len(pvalues)


def halves(lanes: int) -> tuple[torch.Tensor, float]:
    """Lanes of 30 halves and their norm: the vectors whose rounded lengths scatter most about the bound."""
    return torch.full((lanes, 30), 0.5), math.sqrt(30) / 2


def test_lanes_that_come_out_too_long_are_rounded_afresh() -> None:
    values, length = halves(200)
    bound = rounded_norm(length, 1.0, 30, 0.95)
    rounded = round_to_grid(values, 1.0, length, 0.95, [from_seed(lane) for lane in range(200)])
    lengths = torch.linalg.vector_norm(rounded.double(), dim=1)
    free = [torch.rand(30, generator=from_seed(lane), dtype=torch.float64) < 0.5 for lane in range(200)]
    passes = [math.sqrt(int(lane.sum())) <= bound for lane in free]
    assert 100 < sum(passes) < 190
    assert float(lengths.max()) <= bound
    assert all(torch.equal(rounded[lane], free[lane].long()) for lane in range(200) if passes[lane])


def test_a_rounded_lane_passes_at_least_as_often_as_beta_promises() -> None:
    for beta in (0.1, BETA, 0.95):
        length = math.sqrt(30) / 2
        ups = binom(30, 0.5)  # of the halves, this many are rounded up
        assert ups.cdf(rounded_norm(length, 1.0, 30, beta) ** 2) >= 1 - beta


def test_a_lane_does_not_depend_on_the_lanes_beside_it() -> None:
    values, length = halves(20)
    together = round_to_grid(values, 1.0, length, 0.95, [from_seed(lane) for lane in range(20)])
    for group in (list(range(11)), [3], [19, 4, 7, 11]):
        apart = round_to_grid(values[group], 1.0, length, 0.95, [from_seed(lane) for lane in group])
        assert torch.equal(apart, together[group])


def test_values_already_on_the_grid_stay() -> None:
    values = torch.tensor([[0.25, -0.75, 0.0, 2.0]])
    assert round_to_grid(values, 0.25, 8.0, BETA, [from_seed(1)]).tolist() == [[1, -3, 0, 8]]


def test_the_norm_bound_is_the_papers() -> None:
    # C = 3, γ = 1, d = 16, √(2 log 1/β) = 1: 9 + 4 + 1·(3 + 2) = 18, against (3 + 4)² = 49.
    assert rounded_norm(3.0, 1.0, 16, BETA) == pytest.approx(math.sqrt(18.0))
    assert rounded_norm(3.0, 1.0, 16, 0.0) == pytest.approx(7.0)
    assert rounded_norm(3.0, 1.0, 16, 1e-300) == pytest.approx(7.0)


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="nan or inf"):
        round_to_grid(torch.tensor([[1.0, math.nan]]), 0.1, 1.0, BETA, [from_seed(1)])
    with pytest.raises(ValueError, match="generators"):
        round_to_grid(torch.zeros(2, 3), 0.1, 1.0, BETA, [from_seed(1)])


# --- what a sum guarantees ---


@pytest.mark.parametrize(("clients", "sigma"), [(2, 0.5), (2, 0.8), (2, 1.2), (3, 0.5), (3, 1.0), (6, 0.6)])
def test_a_sum_stays_within_half_its_stated_divergence_of_one_discrete_gaussian(clients: int, sigma: float) -> None:
    total = math.sqrt(clients) * sigma
    reach = math.ceil(14 * total) + 2
    gap = log_pmf_of_sum(sigma, clients, reach) - log_pmf(total, reach)
    near = abs(np.arange(-reach, reach + 1)) <= 5 * total  # further out the window cuts the sum
    assert abs(gap[near]).max() <= sum_divergence(sigma, clients) / 2 + 1e-12


@pytest.mark.parametrize("sigma", [0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_the_renyi_divergence_of_two_shares_summed_never_exceeds_the_stated_rho(sigma: float, shift: int) -> None:
    reach = math.ceil(60 * sigma) + 40
    log_p = log_pmf_of_sum(sigma, 2, reach)
    p, q = log_p[shift:], log_p[: len(log_p) - shift]
    rho = concentrated(float(shift), sigma, 2, 1)
    alphas = (1.001, 1.1, 1.5, 2.0, 3.0, 5.0, 8.0)
    reached = [float(logsumexp(alpha * p + (1 - alpha) * q)) / (alpha - 1) / alpha for alpha in alphas]
    assert max(reached) <= rho * (1 + 1e-9) + 1e-12
    if sigma >= 1:  # and by then nothing much is given away either
        assert min(reached) >= rho * 0.99


def test_the_divergence_of_a_sum_has_known_values() -> None:
    assert sum_divergence(0.5, 1) == 0.0
    assert sum_divergence(0.5, 2) == pytest.approx(10 * math.exp(-(math.pi**2) / 4))
    terms = math.exp(-(math.pi**2)) + math.exp(-4 / 3 * math.pi**2) + math.exp(-1.5 * math.pi**2)
    assert sum_divergence(1.0, 4) == pytest.approx(10 * terms)


def test_the_divergence_of_millions_of_shares_is_bounded_from_above() -> None:
    few, many = sum_divergence(0.5, 1_000_001), sum_divergence(0.5, 3_000_001)
    limit = 10 * math.exp(-(math.pi**2) / 2)  # that of each further share
    assert few + 2_000_000 * limit <= many <= (few + 2_000_000 * limit) * (1 + 1e-5)


def test_a_sum_is_gaussian_once_shares_are_wide_and_never_better() -> None:
    mu = 40.0 / (math.sqrt(100) * 6.0)
    assert concentrated(40.0, 6.0, 100, 10_000) == pytest.approx(mu**2 / 2, rel=1e-12)
    for sigma in (0.5, 0.7, 1.0, 1.5):
        assert concentrated(40.0, sigma, 100, 10_000) >= (4.0 / sigma) ** 2 / 2


def test_both_forms_of_the_bound_are_used() -> None:
    tau = sum_divergence(0.5, 100)
    mu = 300.0 / 5.0
    assert concentrated(300.0, 0.5, 100, 100) == pytest.approx(mu**2 / 2 + 100 * tau)
    tau, mu = sum_divergence(1.0, 100), 2.0 / 10.0
    assert concentrated(2.0, 1.0, 100, 100) == pytest.approx((mu**2 + 2 * tau * 4.0 / 10.0 + 100 * tau**2) / 2)


@pytest.mark.parametrize("sigma", [0.49, 0.0, -1.0, math.nan])
def test_shares_below_half_a_step_are_given_no_guarantee(sigma: float) -> None:
    with pytest.raises(InputError, match=r"sigma is .* at least 0\.5"):
        concentrated(1.0, sigma, 2, 1)


# --- ρ and ε ---


@settings(max_examples=60, deadline=None, derandomize=True)
@given(log_rho=st.floats(-6.0, 3.0), log_delta=st.floats(-12.0, -1.0))
def test_epsilon_is_the_least_over_all_orders(log_rho: float, log_delta: float) -> None:
    rho, delta = 10.0**log_rho, 10.0**log_delta
    excess = np.logspace(-4, 13, 20_001)  # α − 1
    every = (1 + excess) * rho - np.log1p(1 / excess) + (math.log(1 / delta) - np.log1p(excess)) / excess
    epsilon = epsilon_concentrated(rho, delta)
    assert epsilon <= max(every.min(), 0.0) + 1e-12
    assert epsilon == pytest.approx(max(every.min(), 0.0), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("rho", [1e-3, 0.05, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_epsilon_agrees_with_the_renyi_accountant(rho: float, delta: float) -> None:
    orders = list(1 + np.logspace(-2, 4, 3001))
    accountant = RdpAccountant(orders)
    accountant.compose(dp_event.ZCDpEvent(rho=rho))
    by_orders = accountant.get_epsilon(delta)
    epsilon = epsilon_concentrated(rho, delta)
    assert epsilon <= by_orders * (1 + 1e-9) + 1e-12
    assert epsilon == pytest.approx(by_orders, rel=1e-4)


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5])
def test_epsilon_lies_above_the_exact_gaussian_by_at_most_an_eighth(mu: float, delta: float) -> None:
    exact = epsilon_gaussian(mu, delta)
    assert exact <= epsilon_concentrated(mu**2 / 2, delta) <= 1.125 * exact


@settings(max_examples=200, deadline=None, derandomize=True)
@given(epsilon=st.floats(0.05, 500.0), log_delta=st.floats(-12.0, -0.05))
def test_rho_for_an_epsilon_is_safe_and_a_millionth_more_is_not(epsilon: float, log_delta: float) -> None:
    rho = rho_for(epsilon, 10.0**log_delta)
    assert epsilon_concentrated(rho, 10.0**log_delta) <= epsilon
    assert epsilon_concentrated(rho * (1 + 1e-6), 10.0**log_delta) > epsilon


def test_a_rho_of_nothing_costs_nothing_and_more_rho_or_less_delta_costs_more() -> None:
    assert epsilon_concentrated(0.0, 1e-5) == 0.0
    assert epsilon_concentrated(1e-9, 0.5) == 0.0
    by_rho = [epsilon_concentrated(10.0**power, 1e-5) for power in range(-12, 5)]
    assert by_rho == sorted(by_rho)
    by_delta = [epsilon_concentrated(0.3, 10.0**-power) for power in range(1, 301, 10)]
    assert by_delta == sorted(by_delta)


@pytest.mark.parametrize("epsilon", [0.049, 501.0, math.inf, math.nan])
def test_an_epsilon_outside_the_range_is_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match=r"epsilon.*at least 0\.05 and at most 500"):
        rho_for(epsilon, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    for convert in (epsilon_concentrated, rho_for):
        with pytest.raises(InputError, match="delta"):
            convert(1.0, delta)


# --- planning ---

SETTING = {"noise_multiplier": 1.0, "clip_norm": 0.5, "clients": 20, "dimension": 1000}


def test_the_worst_updates_and_their_noise_fit_and_a_tenth_finer_grid_would_not() -> None:
    bits, clients, clip_norm, total = 12, 30, 0.4, 0.7
    granularity = granularity_for(bits, clients, clip_norm, total, spread=6.0)
    most = clients * (clip_norm / granularity + 1) + 6.0 * total / granularity
    assert most == pytest.approx(2**11 - 1)
    finer = 0.9 * granularity
    assert clients * clip_norm / finer + 6.0 * total / finer > 2**11 - 1


def test_overflow_is_bounded_and_happens_no_more_often_than_that() -> None:
    # Little room, so that overflows happen: all clients hold the same coordinate at the clip norm.
    bits, clients, clip_norm, tries = 10, 4, 1.0, 100_000
    granularity = granularity_for(bits, clients, clip_norm, 4.0, spread=2.5)
    sigma = 4.0 / granularity / math.sqrt(clients)
    bound = overflow_bound(
        bits=bits, granularity=granularity, sigma=sigma, clients=clients, clip_norm=clip_norm, dimension=1
    )
    assert bound == pytest.approx(2 * math.exp(-(2.5**2) / 2))
    noise = discrete_gaussian((clients, tries), sigma, from_seed(31)).sum(dim=0)
    total = clients * math.ceil(clip_norm / granularity) + noise
    share = float((total.abs() > 2 ** (bits - 1) - 1).double().mean())
    assert 0 < share <= bound  # the bound is loose enough for chance to play no part


def test_a_plan_with_many_bits_is_as_good_as_the_gaussian_mechanism() -> None:
    made = plan(**SETTING, bits=32)
    assert 0.5 <= made.rho <= 0.5 * (1 + 1e-6)
    assert made.sigma * made.granularity * math.sqrt(20) == pytest.approx(0.5)
    assert made.overflow < 1e-15
    assert made.epsilon(10, 1e-5) == epsilon_concentrated(10 * made.rho, 1e-5)


def test_fewer_bits_never_lower_rho() -> None:
    rhos = [plan(**SETTING, bits=bits).rho for bits in range(8, 33)]
    assert rhos == sorted(rhos, reverse=True)


def test_clients_who_drop_out_take_their_noise_with_them() -> None:
    made = plan(**SETTING, bits=24)
    assert made.rho_with(20) == made.rho
    assert made.rho_with(10) == pytest.approx(2 * made.rho)
    for shares in (0, 21):
        with pytest.raises(InputError, match=r"shares is .* at least 1 and at most 20"):
            made.rho_with(shares)


@pytest.mark.parametrize("clients", [1, 2, 20, 1000])
@pytest.mark.parametrize("noise_multiplier", [0.05, 1.0, 20.0])
def test_a_plan_asks_for_the_fewest_bits_that_do(clients: int, noise_multiplier: float) -> None:
    setting = {**SETTING, "clients": clients, "noise_multiplier": noise_multiplier}
    fewest = 2
    while True:
        try:
            made = plan(**setting, bits=fewest)
        except InputError as refused:
            told = str(refused)
            assert "\n" not in told
            assert f"{fewest} bits" in told
            fewest += 1
        else:
            break
    assert f"at least {fewest} bits" in told
    assert made.sigma >= 0.5
    assert made.overflow < 1e-18


def test_noise_too_small_for_any_number_of_bits_is_said_to_be() -> None:
    with pytest.raises(InputError, match="raise noise_multiplier"):
        plan(**{**SETTING, "noise_multiplier": 1e-13}, bits=32)


@pytest.mark.parametrize(
    ("name", "value"),
    [("noise_multiplier", 0.0), ("clip_norm", -1.0), ("clients", 0), ("dimension", 0), ("bits", 49), ("beta", 1.0)],
)
def test_a_plan_of_impossible_numbers_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        plan(**{**SETTING, "bits": 16, name: value})


def test_planned_rounds_come_back_as_the_sum_of_updates_with_the_stated_noise() -> None:
    made = plan(noise_multiplier=0.3, clip_norm=1.0, clients=6, dimension=4000, bits=20)
    updates = torch.randn(6, 4000, generator=from_seed(41))
    updates /= torch.linalg.vector_norm(updates, dim=1, keepdim=True)
    rounded = round_to_grid(
        updates, made.granularity, made.clip_norm, made.beta, [from_seed(lane) for lane in range(6)]
    )
    shares = torch.stack([discrete_gaussian((4000,), made.sigma, from_seed(100 + lane)) for lane in range(6)])
    total = (rounded + shares).sum(dim=0)
    assert int(total.abs().max()) < 2**19
    missed = (total * made.granularity - updates.sum(dim=0).double()).numpy()
    # Rounding adds at most n·γ²/4 to the variance, here a hundred-thousandth of it.
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], 4000) / 4000
    assert low < np.mean(missed**2) / 0.3**2 < high * 1.001


def test_a_plan_cannot_be_changed_by_accident() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan(**SETTING, bits=16).sigma = 0.0  # type: ignore[misc]
