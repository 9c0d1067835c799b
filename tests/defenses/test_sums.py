"""What a sum leaks without noise, against simulation and the numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from attacks.metrics import auc, tpr_at_fpr
from defenses.bounds import auc_gaussian
from defenses.sums import GaussianScores, auc_of_mean, auc_of_pair, expected_square_mu_of_pair
from fl_core.errors import InputError


@pytest.mark.parametrize(("dimension", "cohort", "area"), [(10, 21, "0.760"), (1000, 101, "0.999")])
def test_the_auc_at_the_mean_square_mu_of_a_random_pair(dimension: int, cohort: int, area: str):
    assert f"{auc_gaussian(expected_square_mu_of_pair(dimension, cohort) ** 0.5):.3f}" == area


def test_the_expected_square_mu_of_a_pair_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 100_000, 6))
    squares = ((first - second) ** 2).sum(1) / (9 - 1)
    error = squares.std() / len(squares) ** 0.5
    assert abs(squares.mean() - expected_square_mu_of_pair(6, 9)) < 4 * error  # false alarm: 6e-5


@pytest.mark.parametrize(("dimension", "cohort"), [(1, 2), (3, 5), (10, 21), (40, 21)])
def test_the_auc_of_a_pair_is_what_exact_likelihood_ratios_of_simulated_sums_reach(dimension: int, cohort: int):
    rng = np.random.default_rng(dimension)
    pairs = 40_000
    first, second = rng.standard_normal((2, pairs, dimension))
    scores = []
    for held in (first, second):
        total = held + np.sqrt(cohort - 1) * rng.standard_normal((pairs, dimension))
        ratio = norm.logpdf(total, first, np.sqrt(cohort - 1)) - norm.logpdf(total, second, np.sqrt(cohort - 1))
        scores.append(ratio.sum(1))
    area = auc(np.concatenate(scores), np.repeat([True, False], pairs))
    # The error of an AUC of so many independent scores is at most .5/√pairs; false alarm: 6e-5.
    assert abs(area - auc_of_pair(dimension, cohort)) < 4 * 0.5 / pairs**0.5


@pytest.mark.parametrize(("dimension", "cohort"), [(1, 1), (3, 5), (10, 21), (40, 21)])
def test_the_auc_of_a_mean_is_what_the_filter_reaches_on_simulated_sums(dimension: int, cohort: int):
    rng = np.random.default_rng(dimension)
    trials = 40_000
    target, fresh = rng.standard_normal((2, trials, dimension))
    others = np.sqrt(cohort - 1) * rng.standard_normal((2, trials, dimension))
    direction = target / np.linalg.norm(target, axis=1, keepdims=True)
    scores = [((held + noise) * direction).sum(1) for held, noise in zip((target, fresh), others, strict=True)]
    area = auc(np.concatenate(scores), np.repeat([True, False], trials))
    assert abs(area - auc_of_mean(dimension, cohort)) < 4 * 0.5 / trials**0.5  # false alarm: 6e-5


def test_gaussian_scores_of_one_target_have_the_gaussian_mechanism_s_roc():
    one = GaussianScores(
        inside=np.array([1.5]), inside_variance=np.ones(1), outside=np.zeros(1), outside_variance=np.ones(1)
    )
    assert one.auc() == pytest.approx(auc_gaussian(1.5), abs=1e-12)
    assert one.tpr_at(0.01) == pytest.approx(norm.cdf(norm.ppf(0.01) + 1.5), abs=1e-9)


def test_pooled_gaussian_scores_are_what_a_sample_of_them_shows():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(2, 1, 30), rng.normal(0, 1, 30)
    spread = rng.uniform(0.5, 2, (2, 30))
    made = GaussianScores(
        inside=inside, inside_variance=spread[0] ** 2, outside=outside, outside_variance=spread[1] ** 2
    )
    count = 4000
    scores = np.concatenate(
        [
            rng.normal(mean, deviation, (count, 30)).ravel()
            for mean, deviation in ((inside, spread[0]), (outside, spread[1]))
        ]
    )
    members = np.repeat([True, False], 30 * count)
    assert made.auc() == pytest.approx(auc(scores, members), abs=4 * 0.5 / (30 * count) ** 0.5)  # false alarm: 6e-5
    assert made.tpr_at(0.05) == pytest.approx(tpr_at_fpr(scores, members, 0.05), abs=0.01)


def test_scores_that_are_certain_compare_as_numbers():
    none = np.zeros(2)
    certain = GaussianScores(
        inside=np.array([1.0, 2.0]), inside_variance=none, outside=np.array([1.0, 0.0]), outside_variance=none
    )
    assert certain.auc() == pytest.approx((0.5 + 1 + 1 + 1) / 4)


def test_a_cohort_of_one_has_no_pair():
    with pytest.raises(InputError, match="the cohort is 1; it must be a whole number at least 2"):
        auc_of_pair(3, 1)
    assert auc_of_mean(3, 1) > 0.9
