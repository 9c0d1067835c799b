"""Lower bounds on ε from two worlds: ceilings in closed form, and thresholds that are paid for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from attacks.audit.bands import local_level, lower_bounds, never_crossed, upper_bounds
from attacks.audit.thresholds import Choice, Everywhere, Grid, PreRegistered, Split, rates_at
from attacks.audit.two_world import clopper_pearson_epsilon, epsilon_of_rates, two_world_bound
from attacks.metrics import clopper_pearson
from fl_core.errors import InputError

AUDITS = 2000
# A rate of exactly 5% exceeds this in 2,000 audits about once in 1,000 (3.1 standard errors of .0049).
NOMINAL_AND_NOISE = 0.05 + 3.1 * 0.0049
CHOICES: list[Choice] = [
    PreRegistered(threshold=1.0),
    Split(),
    Everywhere(),
    Grid(thresholds=(0.0, 0.5, 1.0, 1.5)),
]


@pytest.mark.parametrize(("a_side", "epsilon"), [(100, 3.28), (1000, 5.60), (10_000, 7.90)])
def test_clopper_pearson_ceiling_with_both_sides_at_97_5_percent(a_side: int, epsilon: float):
    # All right: log(p/(1−p)) at p = .025^(1/n). One-sided 95% on each rate would give 3.49 and hold at 90%
    # only.
    assert clopper_pearson_epsilon(a_side, a_side, 0, a_side) == pytest.approx(epsilon, abs=0.005)


def test_clopper_pearson_uses_whichever_error_is_rarer():
    few_false_positives = clopper_pearson_epsilon(300, 1000, 10, 1000)
    few_misses = clopper_pearson_epsilon(990, 1000, 700, 1000)
    assert few_false_positives == pytest.approx(few_misses, abs=1e-9)
    assert few_false_positives > 2.5
    assert clopper_pearson_epsilon(500, 1000, 500, 1000) == 0.0
    assert clopper_pearson_epsilon(300, 1000, 10, 1000, delta=0.1) < few_false_positives


@pytest.mark.parametrize("choice", CHOICES)
def test_a_perfect_attack_reaches_the_ceiling(choice: Choice):
    found = two_world_bound(np.full(500, 9.0), np.full(500, -9.0), choice, delta=1e-5)
    assert found.epsilon == found.ceiling > 3
    assert (found.true_positives, found.false_positives) == (found.members, 0)
    assert found.kind == "two-world"


def test_the_pre_registered_bound_is_clopper_and_pearson_s():
    draws = np.random.default_rng(0)
    inside, outside = draws.standard_normal(300) + 2, draws.standard_normal(200)
    found = two_world_bound(inside, outside, PreRegistered(threshold=1.5), delta=1e-3)
    hits, alarms = int((inside >= 1.5).sum()), int((outside >= 1.5).sum())
    assert (found.true_positives, found.false_positives) == (hits, alarms)
    assert found.epsilon == clopper_pearson_epsilon(hits, 300, alarms, 200, delta=1e-3)
    low, high = clopper_pearson(hits, 300).low, clopper_pearson(alarms, 200).high
    assert found.epsilon == pytest.approx(math.log((low - 1e-3) / high), abs=1e-12)


def test_rates_are_bounded_as_by_clopper_and_pearson():
    for count in (0, 1, 17, 40):
        interval = clopper_pearson(count, 40)
        assert lower_bounds(40, 0.025)[count] == pytest.approx(interval.low, abs=1e-12)
        assert upper_bounds(40, 0.025)[count] == pytest.approx(interval.high, abs=1e-12)


def test_rates_that_prove_nothing_give_zero_and_delta_is_taken_off():
    tpr, fpr = np.array([0.5, 0.4, 0.0, 1.0, 0.5]), np.array([0.5, 0.6, 1.0, 1.0, 0.1])
    assert epsilon_of_rates(tpr, fpr, 0.0).tolist() == [0, 0, 0, 0, pytest.approx(math.log(5))]
    # Two ways to the same pair: .4/.1 and (1 − .1 − .1)/.5.
    assert epsilon_of_rates(tpr, fpr, 0.1)[4] == pytest.approx(math.log(4))


# The band


def test_local_levels_of_one_and_two_trials_are_those_of_the_closed_form():
    assert local_level(1, 0.025) == 0.025
    level = local_level(2, 0.025)
    first, second, _ = upper_bounds(2, level)
    # Both numbers below the second bound, and not both above the first.
    assert second**2 - (second - first) ** 2 == pytest.approx(0.975, abs=1e-6)


@pytest.mark.parametrize("trials", [3, 30, 300])
def test_the_band_s_chance_is_what_uniform_numbers_show(trials: int):
    level = 0.01
    draws = np.random.default_rng(trials)
    crossed = np.sort(draws.random((20_000, trials)), 1) > upper_bounds(trials, level)[:-1]
    chance = never_crossed(trials, level)
    # 4 standard errors: fails once in 16,000 seeds.
    assert abs((~crossed.any(1)).mean() - chance) <= 4 * math.sqrt(chance * (1 - chance) / 20_000)


def test_the_local_level_lies_between_the_union_bound_and_a_single_one():
    levels = [local_level(trials, 0.025) for trials in (2, 20, 200, 2000)]
    assert levels == sorted(levels, reverse=True)
    assert all(0.025 / trials < level < 0.025 for trials, level in zip((2, 20, 200, 2000), levels, strict=True))
    assert 30 < 0.025 / local_level(500, 0.025) < 45  # what the docstrings say: about forty thresholds


def test_a_short_grid_is_cheaper_than_the_band_and_a_long_one_is_not():
    draws = np.random.default_rng(1)
    inside, outside = draws.standard_normal(300) + 2, draws.standard_normal(300)
    everywhere = two_world_bound(inside, outside, Everywhere())
    short = two_world_bound(inside, outside, Grid(thresholds=np.linspace(0, 4, 5).tolist()))
    long = two_world_bound(inside, outside, Grid(thresholds=np.linspace(-4, 6, 500).tolist()))
    assert short.ceiling > everywhere.ceiling == long.ceiling
    assert long.epsilon <= everywhere.epsilon


# False claims


def claims(choice: Choice, inside: np.ndarray, outside: np.ndarray, epsilon: float) -> float:
    """Share of audits, rows of scores, that claim more than `epsilon`."""
    found = [two_world_bound(a, b, choice).epsilon for a, b in zip(inside, outside, strict=True)]
    return float(np.mean(np.array(found) > epsilon))


@pytest.mark.parametrize("choice", CHOICES)
def test_null_scores_make_false_claims_at_most_nominally(choice: Choice):
    scores = np.random.default_rng(2).standard_normal((2, AUDITS, 100))
    assert claims(choice, *scores, epsilon=0.0) <= NOMINAL_AND_NOISE


@pytest.mark.parametrize("choice", CHOICES)
def test_laplace_scores_make_false_claims_at_most_nominally(choice: Choice):
    # All thresholds above 1 meet the bound with equality: the worst case for whoever picks among them.
    noise = np.random.default_rng(3).laplace(size=(2, AUDITS, 100))
    assert claims(choice, noise[0] + 1, noise[1], epsilon=1.0) <= NOMINAL_AND_NOISE


@pytest.mark.parametrize("choice", CHOICES)
def test_randomised_response_makes_false_claims_at_most_nominally(choice: Choice):
    # Two distinct scores: ties everywhere.
    truthful = np.random.default_rng(4).random((2, AUDITS, 100)) < expit(1.0)
    assert claims(choice, truthful[0] * 1.0, ~truthful[1] * 1.0, epsilon=1.0) <= NOMINAL_AND_NOISE


def test_a_bound_is_not_merely_timid():
    # By the law of the counts the pre-registered test on randomised response claims too much in .7%: two bounds
    # that hold together with 95% seldom fail where the worse of them counts.
    law = binom(100, expit(1.0)), binom(100, expit(-1.0))
    counts = np.arange(101)
    joint = np.outer(law[0].pmf(counts), law[1].pmf(counts))
    bounds = np.array([[clopper_pearson_epsilon(int(a), 100, int(b), 100) for b in counts] for a in counts])
    assert 0.005 < joint[bounds > 1.0].sum() <= 0.05


def test_the_best_threshold_uncorrected_claims_too_much():
    noise = np.random.default_rng(5).laplace(size=(2, AUDITS, 100))
    wrong = []
    for inside, outside in zip(noise[0] + 1, noise[1], strict=True):
        rates = rates_at(np.unique([inside, outside]), inside, outside, 0.05, 0.05)
        wrong.append(epsilon_of_rates(rates.tpr, rates.fpr, 0.0).max() > 1.0)
    assert np.mean(wrong) > NOMINAL_AND_NOISE


def test_the_trials_that_choose_do_not_prove():
    inside, outside = np.arange(10.0) + 5, np.arange(10.0)
    found = two_world_bound(inside, outside, Split(share=0.3))
    assert (found.members, found.non_members) == (7, 7)
    # What the provers score has no say in the threshold.
    moved = two_world_bound(np.append(inside[:3], np.zeros(7)), outside, Split(share=0.3))
    assert moved.threshold == found.threshold


def test_unusable_trials_are_refused():
    good = np.arange(4.0)
    with pytest.raises(InputError, match="1 of 4 scores with the canary are NaN"):
        two_world_bound(np.array([0.0, np.nan, 1.0, 2.0]), good, Everywhere())
    with pytest.raises(InputError, match=r"scores without the canary has shape \(2, 2\)"):
        two_world_bound(good, good.reshape(2, 2), Everywhere())
    with pytest.raises(InputError, match="cannot be split"):
        two_world_bound(good[:1], good, Split())
    with pytest.raises(InputError, match="grid has no threshold"):
        Grid(thresholds=())
    with pytest.raises(InputError, match="confidence"):
        two_world_bound(good, good, Everywhere(), confidence=0.5)
    with pytest.raises(InputError, match="true_positives"):
        clopper_pearson_epsilon(11, 10, 0, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        two_world_bound(good, good, Everywhere()).epsilon = 9.0  # type: ignore[misc]
