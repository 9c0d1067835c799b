"""Lower bounds on ε from one run: published ceilings, and false claims on mechanisms whose ε is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import betainc, expit
from scipy.stats import binom

from attacks.audit.one_run import audit_one_run, one_run_ceiling, one_run_epsilon
from fl_core.errors import InputError

TRIALS = 2000
# A rate of exactly 5% exceeds this in 2,000 trials about once in 1,000 (3.1 standard errors of .0049).
NOMINAL_AND_NOISE = 0.05 + 3.1 * 0.0049


@pytest.mark.parametrize(("guesses", "epsilon"), [(100, 3.49), (1000, 5.81), (10_000, 8.11)])
def test_all_guesses_right_gives_the_known_ceiling(guesses: int, epsilon: float):
    assert one_run_ceiling(guesses, guesses) == pytest.approx(epsilon, abs=0.005)
    p = 0.05 ** (1 / guesses)
    assert one_run_ceiling(guesses, guesses) == pytest.approx(np.log(p / (1 - p)), abs=1e-9)


@pytest.mark.parametrize(("correct", "epsilon"), [(150, 0.82), (180, 1.796)])
def test_one_run_bound_at_delta_1e_5_is_the_reference_value(correct: int, epsilon: float):
    assert one_run_epsilon(1000, 200, correct, delta=1e-5) == pytest.approx(epsilon, abs=0.0005)


def test_one_run_bound_is_where_the_theorem_s_p_value_crosses_five_percent():
    # The theorem term by term, i running over all m canaries, against what the implementation shortens.
    m, r, v, delta = 300, 60, 50, 1e-4

    def p_value(epsilon: float) -> float:
        law = binom(r, expit(epsilon))
        window = max((law.sf(v - i - 1) - law.sf(v - 1)) / i for i in range(1, m + 1))
        return law.sf(v - 1) + 2 * m * delta * window

    bound = one_run_epsilon(m, r, v, delta)
    assert p_value(bound - 1e-6) < 0.05 < p_value(bound + 1e-6)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3, 0.02])
def test_rejected_epsilons_form_an_interval_from_zero(delta: float):
    # The bisection's premise, also at 2mδ above 1: nothing below the bound is accepted.
    m, r, v = 200, 100, 80
    bound = one_run_epsilon(m, r, v, delta)
    steps = np.arange(1, v + 1)
    rejected = []
    for epsilon in np.linspace(0, bound + 1, 200):
        p = expit(epsilon)
        tail = betainc(v, r - v + 1, p)
        at_least = np.where(v > steps, betainc(np.maximum(v - steps, 1), r - np.maximum(v - steps, 1) + 1, p), 1.0)
        rejected.append(tail + 2 * m * delta * ((at_least - tail) / steps).max() <= 0.05)
    assert np.count_nonzero(np.diff(np.array(rejected).astype(int))) <= 1
    assert rejected[0] == (bound > 0)


def test_the_bound_grows_with_right_guesses_and_shrinks_with_delta_and_confidence():
    bounds = [one_run_epsilon(500, 100, v, 1e-5) for v in range(0, 101, 10)]
    assert bounds == sorted(bounds)
    assert bounds[5] == 0.0  # half right proves nothing
    assert one_run_epsilon(500, 100, 90, 1e-3) < one_run_epsilon(500, 100, 90, 1e-5)
    assert one_run_epsilon(500, 100, 90, confidence=0.99) < one_run_epsilon(500, 100, 90)


def claims(scores: np.ndarray, members: np.ndarray, epsilon: float, delta: float = 0.0) -> float:
    """Share of runs, `scores` [runs, canaries], whose audit claims more than `epsilon`."""
    audits = [audit_one_run(s[None], m[None], delta=delta) for s, m in zip(scores, members, strict=True)]
    return float(np.mean([a.epsilon > epsilon for a in audits]))


def test_null_scores_make_false_claims_at_most_nominally():
    rng = np.random.default_rng(0)
    members = rng.random((TRIALS, 400)) < 0.5
    assert claims(rng.standard_normal((TRIALS, 400)), members, epsilon=0.0, delta=1e-5) <= NOMINAL_AND_NOISE


def test_constant_scores_make_false_claims_at_most_nominally():
    # All ties: the guesses are the tie-breaker's.
    members = np.random.default_rng(1).random((TRIALS, 400)) < 0.5
    assert claims(np.zeros((TRIALS, 400)), members, epsilon=0.0) <= NOMINAL_AND_NOISE


def test_randomised_response_at_epsilon_one_makes_false_claims_at_most_nominally():
    # The mechanism that meets the theorem with equality, with two distinct scores and so ties everywhere.
    rng = np.random.default_rng(2)
    members = rng.random((TRIALS, 400)) < 0.5
    reported = members ^ (rng.random((TRIALS, 400)) > expit(1.0))
    rate = claims(reported.astype(float), members, epsilon=1.0)
    assert 0.01 < rate <= NOMINAL_AND_NOISE  # and it is not merely timid: the law of 100 guesses gives 4.4%


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
def test_laplace_scores_make_false_claims_at_most_nominally(epsilon: float):
    rng = np.random.default_rng(3)
    members = rng.random((TRIALS, 400)) < 0.5
    scores = members + rng.laplace(scale=1 / epsilon, size=(TRIALS, 400))
    assert claims(scores, members, epsilon) <= NOMINAL_AND_NOISE


@pytest.mark.parametrize(("mu", "epsilon"), [(1.0, 4.377), (2.0, 10.0)])
def test_gaussian_scores_stay_under_the_mechanism_s_epsilon(mu: float, epsilon: float):
    rng = np.random.default_rng(4)
    members = rng.random((300, 400)) < 0.5
    scores = rng.standard_normal((300, 400)) + mu * members
    assert claims(scores, members, epsilon, delta=1e-5) == 0.0  # the bound is far from tight here: never


def test_name_and_shame_is_out_of_a_one_run_audit_s_reach():
    # Publishes one canary's membership outright: ε = ∞, and a single right guess of 100 (Keinan et al. 2025).
    rng = np.random.default_rng(5)
    members = rng.random((TRIALS, 400)) < 0.5
    scores = np.zeros((TRIALS, 400))
    scores[:, 17] = np.where(members[:, 17], 1.0, -1.0)
    # The sure guess lifts the law of 100 fair guesses from 4.4% to 5.4%.
    assert claims(scores, members, epsilon=0.0) <= NOMINAL_AND_NOISE + 0.01
    assert claims(scores, members, epsilon=0.3) <= 0.005  # .06% by that law


def test_xor_is_out_of_a_one_run_audit_s_reach():
    # Publishes the parity of each pair of canaries: ε = ∞, yet no single canary can be guessed (Keinan et
    # al. 2025).
    rng = np.random.default_rng(6)
    members = rng.random((TRIALS, 400)) < 0.5
    parity = members[:, ::2] ^ members[:, 1::2]
    scores = np.repeat(parity, 2, axis=1).astype(float)
    assert claims(scores, members, epsilon=0.0) <= NOMINAL_AND_NOISE
    assert claims(scores, members, epsilon=0.3) <= 0.005


def test_a_perfect_attack_reaches_the_ceiling_and_a_pool_of_targets_raises_it():
    members = np.random.default_rng(7).random((8, 400)) < 0.5
    one = audit_one_run(members[:1].astype(float), members[:1], delta=1e-5)
    pool = audit_one_run(members.astype(float), members, delta=1e-5)
    assert one.epsilon == one.ceiling == one_run_ceiling(400, 100, 1e-5)
    assert (one.canaries, one.guesses, one.correct) == (400, 100, 100)
    assert (pool.canaries, pool.guesses, pool.correct) == (3200, 800, 800)
    assert pool.epsilon > one.epsilon


def test_ties_are_broken_without_looking_at_membership():
    # Members listed first: broken by position, constant scores would be guessed all wrong or all right.
    members = (np.arange(2000) < 1000)[None]
    audit = audit_one_run(np.zeros((1, 2000)), members)
    flipped = audit_one_run(np.zeros((1, 2000)), ~members)
    assert 180 <= audit.correct <= 320  # 500 guesses, 250 ± 11
    assert audit.correct + flipped.correct == audit.guesses  # the very same guesses


def test_the_number_of_guesses_depends_on_the_size_alone():
    rng = np.random.default_rng(8)
    for scores in (
        np.zeros((3, 41)),
        rng.standard_normal((3, 41)),
        rng.integers(0, 2, (3, 41)).astype(float),
    ):
        assert audit_one_run(scores, rng.random((3, 41)) < 0.5, fraction=0.3).guesses == 36


def test_unusable_audits_are_refused():
    members = np.array([[True, False, True]])
    with pytest.raises(InputError, match="leaves no guess"):
        audit_one_run(np.zeros((1, 3)), members, fraction=0.5)
    with pytest.raises(InputError, match="1 of 3 audit scores are NaN"):
        audit_one_run(np.array([[0.0, np.nan, 1.0]]), members)
    with pytest.raises(InputError, match="do not fit"):
        audit_one_run(np.zeros(3), members)
    with pytest.raises(InputError, match="guesses"):
        one_run_epsilon(10, 11, 5)
    with pytest.raises(InputError, match="delta"):
        one_run_epsilon(10, 10, 5, delta=1.0)
