"""What is seen in a picture without any model: its pixels at a low resolution, and a few statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.base import Floats
from fl_core.errors import InputError

Array32 = NDArray[np.float32]

BLOCK = 4096
"""Pictures taken at once."""


def shrunk(images: Floats, side: int) -> Array32:
    """Pixels [images, channels · at most side²] of `images` [images, channels, height, width], averaged over cells.

    A picture of at most `side` pixels a way stays as it is. Raises InputError as `check_images`.
    """
    check_images("images", images)
    count = len(images)
    rows, columns = (_cells(images.shape[axis], side) for axis in (2, 3))
    small = np.empty((count, images.shape[1] * len(rows) * len(columns)), dtype=np.float32)
    for start in range(0, count, BLOCK):
        block = np.asarray(images[start : start + BLOCK], dtype=np.float32)
        small[start : start + BLOCK] = np.einsum("nchw,rh,kw->ncrk", block, rows, columns, optimize=True).reshape(
            len(block), -1
        )
    return small


def statistics(images: Floats) -> Array32:
    """For each picture: each channel's mean and deviation, and over all channels the extremes and the mean step
    between neighbours, down and across: [images, 2 · channels + 4]. Raises InputError as `check_images`.
    """
    check_images("images", images)
    parts = []
    for start in range(0, len(images), BLOCK):
        block = np.asarray(images[start : start + BLOCK], dtype=np.float32)
        flat = block.reshape(len(block), -1)
        down, across = (np.abs(np.diff(block, axis=axis)).sum(axis=(1, 2, 3)) / flat.shape[1] for axis in (2, 3))
        means, deviations = block.mean(axis=(2, 3)), block.std(axis=(2, 3))
        parts.append(np.column_stack([means, deviations, flat.min(axis=1), flat.max(axis=1), down, across]))
    return np.concatenate(parts)


def check_images(name: str, images: Floats) -> None:
    """Raise InputError unless they are finite [images, channels, height, width], at least one."""
    if images.ndim != 4 or not images.size:
        raise InputError(f"{name} have shape {images.shape}; give [images, channels, height, width], at least one")
    for start in range(0, len(images), BLOCK):
        if not np.isfinite(images[start : start + BLOCK]).all():
            raise InputError(f"{name} have pixels that are not finite, among {start} to {start + BLOCK}")


def _cells(length: int, side: int) -> Array32:
    """Weights [cells, length] that average `length` pixels into at most `side` cells."""
    cell = np.arange(length) * min(side, length) // length
    weights = (np.arange(min(side, length))[:, None] == cell).astype(np.float32)
    averages: Array32 = weights / weights.sum(axis=1, keepdims=True)
    return averages
