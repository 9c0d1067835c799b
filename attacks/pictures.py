"""How close recovered pictures are to the true ones: PSNR and the matching of a batch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from attacks.base import Floats
from fl_core.errors import InputError

Array = NDArray[np.float64]
Pictures = Floats | torch.Tensor


def psnr(recovered: Pictures, truth: Pictures) -> Array:
    """Peak signal-to-noise ratio of each image [images] in dB, 10·log10(1/MSE), for pixels in [0, 1].

    Both are [images, ...]. An exact recovery is inf: count those apart, a mean over them says nothing.
    Raises InputError for unequal shapes, entries that are not finite, or a truth outside [0, 1] (normalised
    pixels).
    """
    first, second = _check_pictures(recovered, truth)
    if first.shape != second.shape:
        raise InputError(f"recovered images {first.shape} and true ones {second.shape} differ; match them first")
    error = ((first - second) ** 2).mean(axis=1)
    with np.errstate(divide="ignore"):
        decibels: Array = -10 * np.log10(error)
    return decibels


def match(recovered: Pictures, truth: Pictures) -> NDArray[np.int64]:
    """For each true image the index of its recovered one, by the least total squared error.

    `recovered` [at least images, ...] and `truth` [images, ...]; returns [images], so that
    `recovered[match(recovered, truth)]` lines up with `truth`. (Indexing `truth` with it is the inverse,
    and wrong.) Raises InputError for fewer recovered than true images, or as `psnr`.
    """
    guesses, originals = _check_pictures(recovered, truth)
    if guesses.shape[1:] != originals.shape[1:] or len(guesses) < len(originals):
        raise InputError(
            f"recovered images {guesses.shape} and true ones {originals.shape}, both [images, pixels], "
            "cannot be matched; fill the missing ones with a blind guess such as constant grey"
        )
    # ‖a − b‖² through the products would lose the digits that tell near-exact recoveries apart.
    cost = np.stack([((guesses - original) ** 2).sum(axis=1) for original in originals])
    rows, columns = linear_sum_assignment(cost)
    assignment = np.empty(len(originals), dtype=np.int64)
    assignment[rows] = columns
    return assignment


def _check_pictures(recovered: Pictures, truth: Pictures) -> tuple[Array, Array]:
    """Both as float64 [images, pixels]."""
    flat = []
    for name, images in (("recovered", recovered), ("true", truth)):
        on_host = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else images
        array = np.asarray(on_host, dtype=np.float64)
        if array.ndim < 2 or array.size == 0:
            raise InputError(f"{name} images have shape {array.shape}; give [images, ...] with at least one image")
        if not np.isfinite(array).all():
            raise InputError(f"{name} images have pixels that are not finite; count that recovery as failed")
        flat.append(array.reshape(len(array), -1))
    if flat[1].min() < -1e-6 or flat[1].max() > 1 + 1e-6:
        raise InputError(
            f"true images have pixels from {flat[1].min():.3g} to {flat[1].max():.3g}; "
            "undo the normalisation, pixels are in [0, 1]"
        )
    return flat[0], flat[1]
