"""Bets on error rates: no gain under the hypothesis, validity at any stop, and the same path either way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit

from attacks.audit.one_run import one_run_epsilon
from attacks.audit.sequential import (
    STAKES,
    SequentialAudit,
    _log_wealth,
    _outcomes,
    sequential_bound,
    sequential_ceiling,
    sequential_path,
)
from fl_core.errors import InputError

AUDITS = 2000
# A rate of exactly 5% exceeds this in 2,000 audits about once in 1,000 (3.1 standard errors of .0049).
NOMINAL_AND_NOISE = 0.05 + 3.1 * 0.0049


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_no_bettor_gains_on_average_under_the_hypothesis(epsilon: float, delta: float):
    # One pair, all four outcomes, at rates where (ε, δ) holds with equality for the one test or for the other.
    wealth = np.exp(_log_wealth(np.eye(4, dtype=np.int64)[:, None], np.full(4, epsilon), delta))
    for alarm in np.linspace(0, 1, 21):
        most = min(math.exp(epsilon) * alarm + delta, 1 - math.exp(-epsilon) * (1 - delta - alarm), 1.0)
        chances = np.array([(1 - most) * (1 - alarm), most * (1 - alarm), (1 - most) * alarm, most * alarm])
        assert chances @ wealth <= 1 + 1e-12


def test_wealth_falls_as_epsilon_grows_whatever_was_seen():
    draws = np.random.default_rng(0)
    counts = draws.integers(0, 200, (50, 3, 4))
    wealth = np.stack([_log_wealth(counts, np.array([epsilon]), 1e-2) for epsilon in np.linspace(0, 6, 40)])
    assert (np.diff(wealth, axis=0) <= 1e-12).all()


@pytest.mark.parametrize("pairs", [10, 100, 1000])
def test_the_ceiling_is_where_the_wealth_of_right_pairs_alone_is_twenty(pairs: int):
    ceiling = sequential_ceiling(pairs)
    gain = np.mean((1 + np.array(STAKES) * math.exp(-ceiling)) ** pairs)
    assert gain == pytest.approx(20, rel=0.01)
    assert ceiling < math.log(pairs / math.log(20))  # what a bettor who stakes all would reach


def test_a_path_is_what_the_audit_shows_pair_by_pair():
    draws = np.random.default_rng(1)
    inside, outside = draws.standard_normal(60) + 2, draws.standard_normal(60)
    path = sequential_path(inside, outside, (0.5, 1.5), delta=1e-3)
    audit = SequentialAudit(thresholds=(0.5, 1.5), delta=1e-3)
    shown = [audit.observe(float(a), float(b)) for a, b in zip(inside, outside, strict=True)]
    assert path == pytest.approx(np.array(shown), abs=3e-4)  # the halvings' grain
    assert (np.diff(path) >= 0).all()
    assert path[-1] > 0.5
    found = sequential_bound(inside, outside, (0.5, 1.5), delta=1e-3)
    assert found.epsilon == pytest.approx(path[-1], abs=3e-4)
    assert found == audit.bound() or abs(found.epsilon - audit.bound().epsilon) < 3e-4
    assert found.pairs == 60


def test_a_perfect_attack_reaches_the_ceiling():
    found = sequential_bound(np.ones(200), np.zeros(200), (0.5,))
    assert found.epsilon == pytest.approx(found.ceiling, abs=3e-4)
    assert found.kind == "two-world"


def rejected_ever(
    inside: np.ndarray, outside: np.ndarray, thresholds: tuple[float, ...], *, epsilon: float, delta: float = 0.0
) -> np.ndarray:
    """Whether the wealth of each audit [audits] against ε was ever enough, from scores [audits, pairs]."""
    outcomes = np.stack([_outcomes(a, b, thresholds) for a, b in zip(inside, outside, strict=True)])
    counts = outcomes.cumsum(1).reshape(-1, len(thresholds), 4)
    wealth = _log_wealth(counts, np.array([epsilon]), delta).reshape(inside.shape)
    return wealth.max(1) >= math.log(20)


def test_stopping_at_the_best_moment_makes_false_claims_at_most_nominally():
    # Randomised response meets ε with equality in both tests; the claim is the largest of the whole path.
    truthful = np.random.default_rng(2).random((2, AUDITS, 150)) < expit(1.0)
    inside, outside = truthful[0] * 1.0, ~truthful[1] * 1.0
    claimed = rejected_ever(inside, outside, (0.5,), epsilon=1.0)
    assert 0.005 < claimed.mean() <= NOMINAL_AND_NOISE
    for audit in (*np.flatnonzero(claimed)[:3], *np.flatnonzero(~claimed)[:3]):
        found = sequential_bound(inside[audit], outside[audit], (0.5,)).epsilon
        assert abs(found - 1) < 3e-4 or (found > 1) == claimed[audit]


def test_looking_again_and_again_at_a_fixed_size_bound_claims_too_much():
    # Why this file exists: the bound of a binomial count, at its best moment.
    right = (np.random.default_rng(3).random((1000, 150)) < expit(1.0)).cumsum(1)
    looks = range(10, 151, 10)
    wrong = [any(one_run_epsilon(n, n, int(counts[n - 1])) > 1 for n in looks) for counts in right]
    assert np.mean(wrong) > 0.1  # against 5%: five standard errors


def test_null_scores_make_false_claims_at_most_nominally():
    scores = np.random.default_rng(4).standard_normal((2, AUDITS, 100))
    assert rejected_ever(*scores, (0.0, 1.0), epsilon=0.0, delta=1e-5).mean() <= NOMINAL_AND_NOISE


def test_unusable_pairs_are_refused():
    with pytest.raises(InputError, match="no threshold"):
        SequentialAudit(thresholds=())
    with pytest.raises(InputError, match="do not pair"):
        sequential_path(np.ones(3), np.ones(4), (0.5,))
    with pytest.raises(InputError, match="score with the canary"):
        SequentialAudit(thresholds=(0.5,)).observe(math.nan, 0.0)
