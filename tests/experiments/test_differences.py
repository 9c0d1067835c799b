"""Differences from two intervals: known answers, and how often they are found where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from attacks.metrics import Interval, clopper_pearson, mean_interval
from experiments.differences import Measured, difference, holm

REACH = {units: float(stats.t.ppf(0.975, units - 1)) for units in (8, 20, 24)}


def wilson(successes: int, trials: int) -> Measured:
    found = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return Measured(value=successes / trials, low=found.low, high=found.high)


def student(values: np.ndarray) -> Measured:
    mean, reach = float(values.mean()), REACH[len(values)] * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Measured(value=mean, low=mean - reach, high=mean + reach, units=len(values))


def measured(interval: Interval, units: int) -> Measured:
    return Measured(value=interval.value, low=interval.low, high=interval.high, units=units)


def test_two_rates_have_newcombes_interval():
    # Newcombe 1998, table II, method 10: 56/70 − 48/80.
    found = difference(wilson(48, 80), wilson(56, 70))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    # and two rates of which one is 0: 10/10 − 0/20
    found = difference(wilson(0, 20), wilson(10, 10))
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.6791, 1.0), abs=5e-5)


def test_two_means_have_welchs_p():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=8), rng.normal(0.8, 3, size=20)
    found = difference(student(a), student(b))
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


@given(*[st.floats(0, 1)] * 6, st.sampled_from([2, 12, math.inf]))
def test_p_is_below_5_percent_exactly_where_the_interval_leaves_zero_out(a, b, c, d, e, f, units):
    (low, value, high), (its_low, its_value, its_high) = sorted([a, b, c]), sorted([d, e, f])
    one = Measured(value=value, low=low, high=high, units=units)
    other = Measured(value=its_value, low=its_low, high=its_high)
    found, back = difference(one, other), difference(other, one)
    assert found.low <= found.value <= found.high
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    if found.p is not None and abs(found.p - 0.05) > 1e-6:
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_without_a_width_there_is_no_p():
    assert difference(Measured(value=0.1, low=0.1, high=0.1), Measured(value=0.2, low=0.2, high=0.2)).p is None
    assert difference(Measured(value=0.1, low=0.1, high=0.1), Measured(value=0.1, low=0.1, high=0.1)).p == 1


def replicas_mean(rng: np.random.Generator) -> Measured:
    """As a balanced accuracy or an accuracy is measured: the mean over 24 replicas, by the bootstrap."""
    return measured(mean_interval(rng.normal(0.8, 0.02, size=24), seed=int(rng.integers(2**31)), resamples=500), 24)


def share_of_victims(rng: np.random.Generator) -> Measured:
    """As found labels are counted: 24 victims, by Clopper and Pearson."""
    return measured(clopper_pearson(int(rng.binomial(24, 0.3)), 24), 24)


@pytest.mark.parametrize("draw", [replicas_mean, share_of_victims])
def test_runs_that_do_not_differ_are_told_apart_no_more_often_than_at_the_nominal_rate(
    draw: Callable[[np.random.Generator], Measured],
):
    rng, pairs = np.random.default_rng(1), 1000
    p = [difference(draw(rng), draw(rng)).p for _ in range(pairs)]
    found = sum(one is not None and one < 0.05 for one in p)
    # A nominal test exceeds this once in a thousand runs of another seed; Clopper and Pearson's is rarer still.
    assert found <= stats.binom.isf(1e-3, pairs, 0.05)


def test_holm_finds_a_false_difference_in_no_more_than_5_percent_of_sweeps():
    rng, sweeps, rows = np.random.default_rng(0), 400, 50
    false = 0
    for _ in range(sweeps):
        p = [difference(student(rng.normal(size=24)), student(rng.normal(size=24))).p for _ in range(rows)]
        false += bool((holm(p) < 0.05).any())
    assert false <= stats.binom.isf(1e-3, sweeps, 0.05)  # false alarms of this test: once in a thousand seeds


def test_a_known_difference_is_found_among_rows_without_one():
    rng = np.random.default_rng(1)  # one seed in twenty shows a false one beside it
    p = [difference(student(rng.normal(size=24)), student(rng.normal(size=24))).p for _ in range(50)]
    shifted = difference(student(rng.normal(size=24)), student(rng.normal(2, 1, size=24)))
    assert shifted.low < 2 < shifted.high
    assert list(np.flatnonzero(holm([*p, shifted.p]) < 0.05)) == [50]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
