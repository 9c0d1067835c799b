"""SSIM against scikit-image, registered PSNR against made shifts, and identification in a fixed gallery."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from attacks.pictures import psnr
from attacks.similarity import identified, reach_of, registered_psnr, ssim, window_of
from fl_core.errors import InputError


def made(seed, *shape):
    return np.random.default_rng(seed).random(shape)


def smooth(seed, *shape):
    """Pictures whose neighbouring pixels are alike."""
    waves = np.cumsum(np.cumsum(made(seed, *shape) - 0.5, axis=-1), axis=-2)
    low, high = waves.min(axis=(1, 2, 3), keepdims=True), waves.max(axis=(1, 2, 3), keepdims=True)
    return (waves - low) / (high - low)


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (2, 1, 28, 28), (2, 3, 11, 17)])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.5])
def test_ssim_is_that_of_scikit_image_with_the_settings_of_wang_et_al(shape, noise):
    truth = smooth(1, *shape)
    recovered = np.clip(truth + noise * np.random.default_rng(2).normal(size=shape), 0, 1)
    expected = [
        structural_similarity(
            one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0
        )
        for one, other in zip(recovered, truth, strict=True)
    ]
    np.testing.assert_allclose(ssim(recovered, truth), expected, atol=1e-12)
    np.testing.assert_allclose(ssim(torch.tensor(recovered), torch.tensor(truth)), expected, atol=1e-12)


def test_ssim_of_constant_pictures_is_the_luminance_term_alone():
    dark, light = np.full((1, 1, 16, 16), 0.2), np.full((1, 1, 16, 16), 0.6)
    assert ssim(light, dark)[0] == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), abs=1e-12)


def test_ssim_of_a_picture_with_itself_is_one_and_of_its_negative_below_nothing():
    truth = smooth(3, 4, 3, 20, 20)
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-12)
    noise = made(4, 4, 3, 20, 20)
    assert (ssim(1 - noise, noise) < 0).all()


def test_a_picture_smaller_than_the_window_gets_the_largest_odd_one_that_fits():
    assert [window_of(side, 40) for side in (3, 4, 8, 9, 10, 11, 12, 32)] == [3, 3, 7, 9, 9, 11, 11, 11]
    first, second = made(5, 1, 1, 8, 8)[0, 0], made(6, 1, 1, 8, 8)[0, 0]
    bell = np.exp(-0.5 * ((np.arange(7) - 3) / 1.5) ** 2)
    weights = np.outer(bell, bell) / bell.sum() ** 2
    found = []
    for row in range(2):
        for column in range(2):  # the 2 x 2 places of a window of 7 in a picture of 8
            a, b = (one[row : row + 7, column : column + 7] for one in (first, second))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )  # fmt: skip
    assert ssim(first[None, None], second[None, None])[0] == pytest.approx(np.mean(found), abs=1e-12)
    with pytest.raises(InputError, match="at least 3x3 pixels, not 2x9"):
        ssim(made(7, 1, 1, 2, 9), made(8, 1, 1, 2, 9))


def test_a_shifted_picture_is_registered_exactly_within_reach_and_not_beyond():
    scene = made(9, 2, 3, 40, 40)
    truth = scene[..., 4:36, 4:36]
    for down, right in ((0, 0), (1, 0), (-2, 3), (4, -4)):
        moved = scene[..., 4 + down : 36 + down, 4 + right : 36 + right]
        assert (registered_psnr(moved, truth) == np.inf).all()
    assert reach_of(32, 32) == 4
    beyond = scene[..., 4:36, 8:40]
    assert (registered_psnr(beyond, truth, reach=3) < 15).all()
    assert (registered_psnr(beyond, truth, reach=4) == np.inf).all()


def test_a_mirrored_picture_is_registered_only_where_mirrors_are_allowed():
    truth = made(10, 2, 1, 16, 16)
    assert (registered_psnr(truth[..., ::-1], truth) < 15).all()
    assert (registered_psnr(truth[..., ::-1], truth, mirrored=True) == np.inf).all()


def test_registered_psnr_is_never_below_psnr_and_equals_it_without_reach():
    truth, recovered = smooth(11, 20, 3, 12, 12), smooth(12, 20, 3, 12, 12)
    plain = psnr(recovered, truth)
    assert (registered_psnr(recovered, truth) >= plain).all()
    np.testing.assert_array_equal(registered_psnr(recovered, truth, reach=0), plain)
    with pytest.raises(InputError, match="reach"):
        registered_psnr(recovered, truth, reach=12)


def test_pictures_of_a_permuted_gallery_are_identified_at_their_own_places_alone():
    gallery = made(13, 6, 1, 5, 5)
    order = np.array([1, 2, 0, 3, 5, 4])
    shown = gallery[order] + 0.01
    assert identified(shown, order, gallery).all()
    # The inverse of a 3-cycle is another one: taken for it, only what stays or swaps in place is found.
    assert identified(shown, np.argsort(order), gallery).tolist() == [False, False, False, True, True, True]


def test_a_picture_as_near_to_another_one_is_not_identified():
    gallery = np.stack([np.zeros((1, 4, 4)), np.ones((1, 4, 4)), np.zeros((1, 4, 4))])
    grey = np.full((1, 1, 4, 4), 0.5)
    assert not identified(grey, np.array([0]), gallery)[0]
    assert not identified(gallery[:1], np.array([0]), gallery)[0]  # it is there twice
    assert identified(gallery[1:2], np.array([1]), gallery)[0]


def test_pictures_picked_at_random_are_identified_once_in_as_many_times_as_the_gallery_has():
    """Of 4,000 guesses in a gallery of 20; beyond 3.3 deviations for fewer than 1 of 1,000 seeds."""
    gallery, rng = made(15, 20, 1, 3, 3), np.random.default_rng(16)
    guessed, own = rng.integers(20, size=(2, 4000))
    hits = identified(gallery[guessed], own, gallery)
    np.testing.assert_array_equal(hits, guessed == own)
    assert hits.mean() == pytest.approx(1 / 20, abs=3.3 * np.sqrt(0.05 * 0.95 / 4000))


def test_bad_galleries_and_shapes_are_refused():
    gallery = made(14, 3, 1, 4, 4)
    with pytest.raises(InputError, match="not all in a gallery of 3"):
        identified(gallery[:1], np.array([3]), gallery)
    with pytest.raises(InputError, match="at least 2"):
        identified(gallery[:1], np.array([0]), gallery[:1])
    with pytest.raises(InputError, match="channels, height, width"):
        ssim(gallery[:, 0], gallery[:, 0])
    with pytest.raises(InputError, match="differ"):
        registered_psnr(gallery[:2], gallery)
