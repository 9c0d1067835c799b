"""How close recovered pictures are to the true ones, pixel by pixel: MSE, PSNR and the matching of a batch.

What looks at more than single pixels is in `attacks/similarity.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from attacks.base import Floats
from fl_core.errors import InputError

Array = NDArray[np.float64]
Pictures = Floats | torch.Tensor


EXACT_DB = 100.0
"""A recovery at or above this many dB is exact for 8-bit pixels; it enters a mean as this number, and is counted."""

RECOGNISED_DB, RECOVERED_DB = 20.0, 40.0
"""At the first a picture shows the true one to the eye, as the mean of two alike may, too; at the second none does."""

BLIND = 0.5
"""The grey of all pixels that stands in for a picture that was not recovered: what a guess without any knowledge is."""


def mse(recovered: Pictures, truth: Pictures) -> Array:
    """Mean squared error of each image [images], for pixels in [0, 1]. Shapes and errors as `psnr`."""
    first, second = check_pairs(recovered, truth)
    error: Array = ((first - second) ** 2).mean(axis=1)
    return error


def psnr(recovered: Pictures, truth: Pictures) -> Array:
    """Peak signal-to-noise ratio of each image [images] in dB, 10·log10(1/MSE), for pixels in [0, 1].

    Both are [images, ...]. An exact recovery is inf: count those apart, a mean over them says nothing.
    Raises InputError for unequal shapes, entries that are not finite, or a truth outside [0, 1] (normalised
    pixels).
    """
    return decibels(mse(recovered, truth))


def decibels(error: Array) -> Array:
    """The PSNR in dB that a mean squared error comes to, data range 1; inf for none."""
    with np.errstate(divide="ignore"):
        found: Array = -10 * np.log10(error)
    return found


def failed(recovered: Pictures) -> NDArray[np.bool_]:
    """Which images [images] of `recovered` [images, ...] are no answer: those with any pixel that is not finite."""
    array = on_host(recovered)
    return np.array([not np.isfinite(one).all() for one in array], dtype=np.bool_)


def completed(recovered: Pictures) -> Array:
    """`recovered` [images, ...] in float64, with constant grey (`BLIND`) for the images that are no answer."""
    array = on_host(recovered)
    away = failed(array).reshape(-1, *[1] * (array.ndim - 1))
    filled: Array = np.where(away, BLIND, array)
    return filled


def match(recovered: Pictures, truth: Pictures) -> NDArray[np.int64]:
    """For each true image the index of its recovered one, by the least total squared error.

    `recovered` [at least images, ...] and `truth` [images, ...]; returns [images], so that
    `recovered[match(recovered, truth)]` lines up with `truth`. (Indexing `truth` with it is the inverse,
    and wrong.) Recovered images that are no answer (see `failed`) are matched last, with true images that
    nothing else is left for. Raises InputError for fewer recovered than true images, or for a truth as
    `psnr` does.
    """
    originals = _flat_truth(truth)
    guesses = _flat("recovered", recovered)
    if guesses.shape[1:] != originals.shape[1:] or len(guesses) < len(originals):
        raise InputError(
            f"recovered images {guesses.shape} and true ones {originals.shape}, both [images, pixels], "
            "cannot be matched; fill the missing ones with a blind guess such as constant grey"
        )
    missing = failed(guesses)
    answers, failures = np.flatnonzero(~missing), np.flatnonzero(missing)
    # ‖a − b‖² through the products would lose the digits that tell near-exact recoveries apart.
    cost = np.stack([((guesses[answers] - original) ** 2).sum(axis=1) for original in originals])
    rows, columns = linear_sum_assignment(cost)
    assignment = np.full(len(originals), -1, dtype=np.int64)
    assignment[rows] = answers[columns]
    left = assignment < 0
    assignment[left] = failures[: left.sum()]
    return assignment


def on_host(images: Pictures) -> Array:
    """The images as float64 in the host's memory."""
    array = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else images
    return np.asarray(array, dtype=np.float64)


def check_pairs(recovered: Pictures, truth: Pictures) -> tuple[Array, Array]:
    """Both as float64 [images, pixels]; raises InputError unless they can be compared one by one (see `psnr`)."""
    second = _flat_truth(truth)
    first = _flat("recovered", recovered)
    if not np.isfinite(first).all():
        raise InputError("recovered images have pixels that are not finite; count that recovery as failed")
    if first.shape != second.shape:
        raise InputError(f"recovered images {first.shape} and true ones {second.shape} differ; match them first")
    return first, second


def _flat_truth(truth: Pictures) -> Array:
    flat = _flat("true", truth)
    if not np.isfinite(flat).all():
        raise InputError("true images have pixels that are not finite; give pixels in [0, 1]")
    if flat.min() < -1e-6 or flat.max() > 1 + 1e-6:
        raise InputError(
            f"true images have pixels from {flat.min():.3g} to {flat.max():.3g}; "
            "undo the normalisation, pixels are in [0, 1]"
        )
    return flat


def _flat(name: str, images: Pictures) -> Array:
    """As float64 [images, pixels]."""
    array = on_host(images)
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"{name} images have shape {array.shape}; give [images, ...] with at least one image")
    return array.reshape(len(array), -1)
