"""PSNR and the matching of batches against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks.pictures import completed, failed, match, mse, psnr
from fl_core.errors import InputError


def test_psnr_of_a_constant_error_is_its_closed_form():
    truth = torch.full((3, 1, 4, 4), 0.5)
    recovered = truth + torch.tensor([0.1, 0.01, 0.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(psnr(recovered, truth)[:2], [20.0, 40.0], atol=1e-4)
    assert psnr(recovered, truth)[2] == np.inf
    np.testing.assert_array_equal(psnr(recovered.numpy(), truth.numpy()), psnr(recovered, truth))


def test_psnr_of_constant_grey_on_uniform_pixels_is_log_twelve():
    # E(u − ½)² = 1/12, so 10·log10(12) = 10.79 dB; the standard error over 200,000 pixels is .01 dB.
    truth = np.random.default_rng(9).random((1, 200_000))
    assert psnr(np.full_like(truth, 0.5), truth)[0] == pytest.approx(10 * np.log10(12), abs=0.04)


def test_psnr_refuses_normalised_pixels_and_failed_recoveries():
    truth = np.random.default_rng(10).random((2, 3, 4, 4))
    with pytest.raises(InputError, match="undo the normalisation"):
        psnr(truth, (truth - 0.5) / 0.25)
    with pytest.raises(InputError, match="not finite"):
        psnr(np.where(truth > 0.9, np.nan, truth), truth)
    with pytest.raises(InputError, match="differ"):
        psnr(truth[:1], truth)


def test_match_gives_the_recovered_index_of_each_true_image_on_a_three_cycle():
    # A swap is its own inverse and would hide the fault; a 3-cycle does not.
    truth = np.random.default_rng(11).random((4, 1, 5, 5))
    cycle = np.array([1, 2, 0, 3])
    recovered = truth[cycle] + 0.001  # recovered[0] is true image 1
    np.testing.assert_array_equal(match(recovered, truth), [2, 0, 1, 3])
    np.testing.assert_allclose(psnr(recovered[match(recovered, truth)], truth), 60.0, atol=1e-6)
    assert (psnr(recovered, truth[match(recovered, truth)])[:3] < 20).all()


def test_match_minimises_the_total_error_rather_than_each_image_greedily():
    truth = np.array([[0.5], [0.9]])
    recovered = np.array([[0.55], [0.0]])
    # Image 0 is nearest to both; giving it recovered[0] costs .0025 + .81, the other way .25 + .1225.
    np.testing.assert_array_equal(match(recovered, truth), [1, 0])


def test_match_leaves_spare_recoveries_out_and_refuses_too_few():
    truth = np.array([[0.1, 0.2], [0.8, 0.9]])
    recovered = np.array([[0.8, 0.9], [0.5, 0.5], [0.1, 0.2]])
    np.testing.assert_array_equal(match(recovered, truth), [2, 0])
    with pytest.raises(InputError, match="cannot be matched"):
        match(recovered[:1], truth)


def test_mse_of_a_constant_error_is_its_square():
    truth = np.full((2, 3, 4, 4), 0.5)
    np.testing.assert_allclose(mse(truth + [[[[0.1]]], [[[-0.3]]]], truth), [0.01, 0.09], atol=1e-12)


def test_failures_are_matched_last_and_only_where_no_answer_is_left():
    truth = np.random.default_rng(12).random((3, 1, 5, 5))
    nothing = np.full_like(truth[:1], np.nan)
    recovered = np.concatenate([nothing, truth[[2]] + 0.001, truth[[0]] + 0.001])
    np.testing.assert_array_equal(match(recovered, truth), [2, 0, 1])
    # With an answer to spare, even a bad one, no failure is taken.
    spare = np.concatenate([recovered, np.full_like(nothing, 0.5)])
    np.testing.assert_array_equal(match(spare, truth), [2, 3, 1])
    np.testing.assert_array_equal(np.sort(match(np.repeat(nothing, 3, 0), truth)), [0, 1, 2])


def test_a_picture_with_one_pixel_that_is_not_finite_is_a_failure_and_scored_as_grey():
    truth = np.random.default_rng(13).random((3, 1, 4, 4))
    recovered = truth.copy()
    recovered[1, 0, 2, 2] = np.inf
    np.testing.assert_array_equal(failed(recovered), [False, True, False])
    np.testing.assert_array_equal(completed(torch.tensor(recovered))[[0, 2]], truth[[0, 2]])
    assert (completed(recovered)[1] == 0.5).all()
    np.testing.assert_allclose(
        psnr(completed(recovered), truth)[1], -10 * np.log10(((truth[1] - 0.5) ** 2).mean()), atol=1e-12
    )
