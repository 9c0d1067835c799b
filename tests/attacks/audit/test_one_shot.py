"""One-shot canaries: laws in closed form, an estimate that is none too sure, and a bound that is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from attacks.audit.gaussian import epsilon_of_mu
from attacks.audit.one_shot import (
    cosines,
    epsilon_of_normals,
    estimate_all_iterates,
    estimate_final,
    frame_bound,
    largest_centre,
)
from experiments.benchmarks.audit_mechanisms import canary_cosines, frame_products
from fl_core.errors import InputError

AUDITS = 700
# A rate of exactly 5% exceeds this in 700 audits about once in 1,000 (3.1 standard errors of .0082).
NOMINAL_AND_NOISE = 0.05 + 3.1 * 0.0082


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0, 30.0])
def test_normals_of_equal_deviations_have_the_epsilon_of_mu(mu: float):
    for sign in (1, -1):
        assert epsilon_of_normals(sign * mu, 1.0, 1e-5) == pytest.approx(epsilon_of_mu(mu, 1e-5), abs=1e-7)
        assert epsilon_of_normals(sign * mu, 1 + 1e-9, 1e-5) == pytest.approx(epsilon_of_mu(mu, 1e-5), abs=1e-5)


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 1.3), (1.0, 0.7), (0.0, 1.5), (-2.0, 0.5)])
def test_epsilon_of_two_normals_is_that_of_their_densities(mean: float, deviation: float):
    x = np.linspace(-40, 40, 800_001)
    first, second = norm.pdf(x, mean, deviation), norm.pdf(x)
    epsilon = epsilon_of_normals(mean, deviation, 1e-3)
    gaps = [np.trapezoid(np.maximum(a - math.exp(epsilon) * b, 0), x) for a, b in ((first, second), (second, first))]
    assert max(gaps) == pytest.approx(1e-3, rel=1e-4)


def test_cosines_of_canaries_that_took_no_part_have_the_null_law():
    draws = np.random.default_rng(0)
    canaries = draws.standard_normal((4000, 50))
    found = cosines(canaries, draws.standard_normal(50))
    # A variance of 1/d, within 5 standard errors of 4,000 values: fails once in two million seeds.
    assert abs(found.var() * 50 - 1) < 5 * math.sqrt(2 / 4000)
    assert cosines(np.array([[3.0, 4.0]]), np.array([6.0, 8.0])) == pytest.approx([1.0])


def test_the_drawn_cosines_are_those_of_drawn_vectors():
    # The benchmark's shortcut through the Gram matrix against vectors written out: the same mean and deviation.
    draws = np.random.default_rng(1)
    short = np.stack([canary_cosines(draws, 2.0, 10, 40) for _ in range(3000)])
    long = []
    for _ in range(3000):
        vectors = draws.standard_normal((10, 40))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        long.append(cosines(vectors, vectors.sum(0) + draws.standard_normal(40) / 2))
    # 4.5 standard errors of means over 3,000 releases.
    for one, other in ((short.mean(1), np.mean(long, 1)), (short.std(1), np.std(long, 1))):
        assert abs(one.mean() - other.mean()) < 4.5 * math.hypot(one.std(), other.std()) / math.sqrt(3000)


def test_the_estimate_tends_to_the_truth_as_canaries_and_dimension_grow():
    draws = np.random.default_rng(2)
    truth = epsilon_of_mu(1.0, 1e-5)
    apart = []
    for canaries, dimension in ((30, 3000), (1000, 10**6)):
        found = [
            estimate_final(canary_cosines(draws, 1.0, canaries, dimension), dimension, delta=1e-5) for _ in range(5)
        ]
        apart.append(abs(np.median([one.epsilon for one in found]) - truth))
    assert apart[1] < 0.5 < apart[0]


def test_an_estimate_is_no_bound_and_says_so():
    draws = np.random.default_rng(3)
    found = [estimate_final(canary_cosines(draws, 1.0, 100, 10**5), 10**5, delta=1e-5) for _ in range(200)]
    assert {one.kind for one in found} == {"estimate"}
    assert np.mean([one.epsilon > epsilon_of_mu(1.0, 1e-5) for one in found]) > 0.4
    # Its interval is approximate; it covers the truth in most runs.
    assert np.mean([one.low <= epsilon_of_mu(1.0, 1e-5) <= one.high for one in found]) > 0.85


def test_canaries_that_took_no_part_are_estimated_near_zero():
    draws = np.random.default_rng(4)
    cosine = draws.standard_normal(2000) / 100
    assert estimate_final(cosine, 10_000, delta=1e-2).epsilon < 0.15
    rounds = draws.standard_normal((5, 4000)) / 100
    assert estimate_all_iterates(rounds[:, :2000], rounds[:, 2000:], delta=1e-2).epsilon < 0.3


def test_all_iterates_see_a_canary_that_the_final_model_forgot():
    draws = np.random.default_rng(5)
    seen, unseen = draws.standard_normal((2, 6, 300)) / 100
    seen[2] += 0.05  # in the third of six rounds alone
    found = estimate_all_iterates(seen, unseen, delta=1e-5)
    assert found.epsilon > 5 * estimate_final(seen[-1], 10_000, delta=1e-5).epsilon
    assert (found.canaries, found.controls) == (300, 300)


# The frame


def test_the_centre_of_a_noncentral_t_is_found():
    from scipy.stats import nct

    centre = largest_centre(7.0, 30, 0.95)
    assert nct.sf(7.0, 30, centre) == pytest.approx(0.05, abs=1e-6)
    assert largest_centre(1.0, 30, 0.95) == 0.0


@pytest.mark.parametrize("others", [0.0, 20.0])
@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_frames_make_false_claims_at_most_nominally(mu: float, others: float):
    draws = np.random.default_rng(6)
    found = [frame_bound(*frame_products(draws, mu, 20, 10, 200, others), delta=1e-5) for _ in range(AUDITS)]
    rate = np.mean([one.epsilon > epsilon_of_mu(mu, 1e-5) for one in found])
    assert rate <= NOMINAL_AND_NOISE
    assert others > 0 or rate > 0.025  # exact where nothing else was released: 3 standard errors below


def test_a_frame_s_products_and_cosines_give_the_same_bound():
    draws = np.random.default_rng(7)
    frame = np.linalg.qr(draws.standard_normal((300, 60)))[0].T
    released = frame[:40].sum(0) + draws.standard_normal(300) * 0.5 + np.full(300, 0.1)
    angles = cosines(frame, released)
    found = frame_bound(frame[:40] @ released, frame[40:] @ released, delta=1e-5)
    assert found.mu == pytest.approx(frame_bound(angles[:40], angles[40:], delta=1e-5).mu, rel=1e-6)
    assert (found.kind, found.canaries, found.controls, found.ceiling) == ("one-run", 40, 20, math.inf)


def test_a_frame_with_half_the_noise_is_caught():
    draws = np.random.default_rng(8)
    found = [frame_bound(*frame_products(draws, 2.0, 100, 100, 1000, 5.0), delta=1e-5) for _ in range(100)]
    assert np.mean([one.epsilon > epsilon_of_mu(1.0, 1e-5) for one in found]) > 0.95


def test_unusable_canaries_are_refused():
    with pytest.raises(InputError, match="divide by both lengths"):
        estimate_final(np.array([0.1, 3.0]), 100, delta=1e-5)
    with pytest.raises(InputError, match="all cosines of one side are equal"):
        estimate_final(np.full(5, 0.1), 100, delta=1e-5)
    with pytest.raises(InputError, match="length 0"):
        cosines(np.zeros((2, 3)), np.ones(3))
    with pytest.raises(InputError, match="do not fit"):
        estimate_all_iterates(np.zeros((2, 3)), np.zeros((3, 3)), delta=1e-5)
    with pytest.raises(InputError, match="there is no noise"):
        frame_bound(np.ones(3), np.zeros(2), delta=1e-5)
    with pytest.raises(InputError, match="delta"):
        frame_bound(np.arange(3.0), np.ones(2), delta=0.0)
