"""Pictures beside the model: quantile regression on public ones, and the baselines that see pictures alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.blind_pictures import ImageStatistics, NearestPublic
from attacks.membership.observed import Signals
from attacks.membership.picture_features import check_images, shrunk, statistics
from attacks.membership.quantile_regression import QuantileRegression
from attacks.membership.threshold import LossThreshold
from attacks.metrics import auc
from fl_core.errors import InputError
from tests.oracles.membership import Problem, bernoulli, problem, with_confidence
from tests.signals import signals_of


def test_small_pictures_are_averages_over_cells_and_smaller_ones_stay():
    rng = np.random.default_rng(0)
    images = rng.random((3, 2, 8, 6))
    small = shrunk(images, 2).reshape(3, 2, 2, 2)
    np.testing.assert_allclose(small[1, 1, 0, 1], images[1, 1, :4, 3:].mean(), rtol=1e-6)
    np.testing.assert_allclose(shrunk(images, 8), images.reshape(3, -1), rtol=1e-6)
    assert shrunk(rng.random((2, 1, 7, 5)), 3).shape == (2, 9)


def test_statistics_are_brightness_contrast_extremes_and_steps():
    image = np.zeros((1, 1, 2, 2))
    image[0, 0] = [[0.0, 1.0], [0.0, 1.0]]
    np.testing.assert_allclose(statistics(image), [[0.5, 0.5, 0.0, 1.0, 0.0, 0.5]])
    assert statistics(np.random.default_rng(1).random((5, 3, 4, 4))).shape == (5, 10)


@pytest.mark.parametrize("images", [np.zeros((3, 4, 4)), np.zeros((0, 1, 4, 4)), np.full((1, 1, 2, 2), np.nan)])
def test_what_is_no_picture_is_refused(images: np.ndarray):
    with pytest.raises(InputError, match="images have"):
        check_images("images", images)


# Blind baselines


def with_pictures(images: np.ndarray, members: np.ndarray, public: np.ndarray | None = None) -> Problem:
    """Signals that say nothing; the last row of members is the target's."""
    one = problem(members=members, examples=members.shape[1], gain=0.0)
    return replace(one, knowledge=replace(one.knowledge, images=images, public_images=public))


def test_image_statistics_find_members_that_are_brighter_and_never_see_the_model():
    rng = np.random.default_rng(2)
    bright = rng.random(1000) < 0.5
    images = np.clip(rng.random((1000, 1, 5, 5)) + 0.2 * bright[:, None, None, None], 0, 1)
    members = rng.random((9, 1000)) < np.where(bright, 0.8, 0.2)
    one = with_pictures(images, members)
    scores = ImageStatistics().run(one.target, one.knowledge)
    assert auc(scores, one.truth) > 0.7
    other = Signals(labels=one.target.labels, logits=np.zeros_like(one.target.logits))
    np.testing.assert_array_equal(scores, ImageStatistics().run(other, one.knowledge))


def test_image_statistics_do_not_remember_an_example_s_own_column_of_the_design():
    members = bernoulli(9, 500, seed=3)
    members[:, 7] = True
    one = with_pictures(np.random.default_rng(3).random((500, 1, 5, 5)), members)
    before = ImageStatistics().run(one.target, one.knowledge)
    changed = members.copy()
    changed[:-1, 7] = False
    after = ImageStatistics().run(one.target, with_pictures(one.knowledge.images, changed).knowledge)  # type: ignore[arg-type]
    assert before[7] == after[7]
    assert (before != after).sum() > 300  # the other folds fitted to it


def test_the_nearest_public_picture_is_the_nearest_and_a_copy_is_at_no_distance():
    rng = np.random.default_rng(4)
    public = rng.random((60, 1, 6, 6))
    images = rng.random((40, 1, 6, 6))
    images[3] = public[11]
    one = with_pictures(images, bernoulli(3, 40, 4), public)
    scores = NearestPublic().run(one.target, one.knowledge)
    apart = np.sqrt(((images[:, None] - public[None]) ** 2).sum(axis=(2, 3, 4)))
    np.testing.assert_allclose(scores, apart.min(axis=1), atol=1e-5)
    assert scores[3] == 0


def test_the_nearest_public_picture_exposes_members_that_come_from_elsewhere():
    rng = np.random.default_rng(5)
    members = bernoulli(3, 400, 5)
    images = rng.random((400, 1, 6, 6))
    images[members[-1]] = images[members[-1]].round()  # members' pictures are black and white, the public ones grey
    one = with_pictures(images, members, rng.random((200, 1, 6, 6)))
    assert auc(NearestPublic().run(one.target, one.knowledge), one.truth) > 0.9


def test_public_pictures_of_another_size_are_refused():
    one = with_pictures(np.zeros((40, 1, 6, 6)), bernoulli(3, 40, 6), np.zeros((10, 1, 5, 5)))
    with pytest.raises(InputError, match="differ in size"):
        NearestPublic().run(one.target, one.knowledge)


# Quantile regression


def brightness_problem(gain: float, seed: int, examples: int = 2000, public: int = 2000) -> Problem:
    """Confidence is N(10·brightness, spread²) and `gain` spreads more for members; darker pictures spread less."""
    rng = np.random.default_rng(seed)
    bright = rng.random(examples + public)
    images = np.broadcast_to(bright[:, None, None, None], (examples + public, 1, 4, 4)).copy()
    members = rng.random((1, examples)) < 0.5
    spread = 0.5 + 1.5 * bright
    noise = rng.standard_normal(examples + public)
    noise[:examples] += gain * members[0]
    confidence = 10 * bright + spread * noise
    signals = signals_of(
        with_confidence(confidence[None, :examples]), np.zeros(examples, dtype=int),
        public_logits=with_confidence(confidence[None, examples:]), public_labels=np.zeros(public, dtype=int),
    )  # fmt: skip
    known = MembershipKnowledge(images=images[:examples], public_images=images[examples:])
    return Problem(signals=signals, members=members, knowledge=known)


@pytest.mark.parametrize(("method", "share"), [("gaussian", 0.9), ("quantile", 0.75)])
def test_quantile_regression_takes_the_difficulty_off_and_nearly_reaches_the_optimum(method: Any, share: float):
    # With mean and spread known the AUC is Φ(1/√2) = .760: what of it beyond chance the regression keeps.
    one = brightness_problem(gain=1.0, seed=7)
    scores = QuantileRegression(method=method, iterations=30).run(one.target, one.knowledge)
    best = norm.cdf(1 / np.sqrt(2)) - 0.5
    assert best + 4 * 0.011 >= auc(scores, one.truth) - 0.5 >= share * best
    assert auc(LossThreshold().run(one.target, one.knowledge), one.truth) < 0.5 + best / 2


def test_the_gaussian_score_is_a_z_value_and_the_quantile_one_calls_its_level():
    one = brightness_problem(gain=0.0, seed=8)
    z = QuantileRegression(iterations=30).run(one.target, one.knowledge)
    assert z.mean() == pytest.approx(0, abs=0.15)
    assert z.std() == pytest.approx(1, abs=0.15)
    called = QuantileRegression(method="quantile", level=0.9, iterations=30).run(one.target, one.knowledge) >= 1
    # Standard error .0067, and the trees' own error on 2000 public examples.
    assert called.mean() == pytest.approx(0.1, abs=0.04)


def test_quantile_regression_reads_no_shadow_and_refuses_too_few_public_examples():
    one = brightness_problem(gain=1.0, seed=9, examples=60, public=80)
    shadows = Shadows(signals=one.signals, members=one.members)
    attack = QuantileRegression(iterations=5)
    np.testing.assert_array_equal(
        attack.run(one.target, one.knowledge), attack.run(one.target, replace(one.knowledge, shadows=shadows))
    )
    with pytest.raises(InputError, match="at least 100 public examples, has 80"):
        QuantileRegression(min_rows=100).run(one.target, one.knowledge)
    short = replace(one.knowledge, public_images=np.zeros((79, 1, 4, 4)))
    with pytest.raises(InputError, match="do not fit"):
        attack.run(one.target, short)
