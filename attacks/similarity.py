"""How much recovered pictures look like the true ones, where single pixels say too little.

`ssim` compares structure and not brightness alone; `registered_psnr` forgives a shift; `identified` asks whether the
picture tells its original from others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from attacks.pictures import Array, Pictures, check_pairs, decibels, mse, on_host
from fl_core.errors import InputError, check_number

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
"""Of `ssim`: the side and the deviation of the Gaussian window in pixels, and the two constants, for a data range 1."""


def ssim(recovered: Pictures, truth: Pictures) -> Array:
    """Structural similarity of each image [images], at most 1, for pixels in [0, 1] (Wang et al. 2004, eq. 13).

    Both are [images, channels, height, width]. Statistics are those of an 11x11 Gaussian window of deviation 1.5, not
    corrected for the sample's size; the index is the mean over all windows that lie inside the image, and over the
    channels. Where a side has fewer than 11 pixels, the window's is the largest odd number that fits (7 for digits of
    8x8), with the same deviation: compare such numbers with each other only. Raises InputError as `psnr`, and for
    images of fewer than 3 pixels a side, in which there is no structure to compare.
    """
    first, second = _as_images(recovered, truth)
    window = window_of(*first.shape[-2:])
    reach = np.arange(window) - window // 2
    weights = np.exp(-0.5 * (reach / SIGMA) ** 2)
    weights /= weights.sum()

    def local(images: Array) -> Array:
        """The window's weighted mean wherever it lies inside."""
        for axis in (-2, -1):
            images = correlate1d(images, weights, axis=axis)
        edge = window // 2
        inside: Array = images[..., edge : images.shape[-2] - edge, edge : images.shape[-1] - edge]
        return inside

    mean_first, mean_second = local(first), local(second)
    spread = local(first**2) - mean_first**2 + local(second**2) - mean_second**2
    together = local(first * second) - mean_first * mean_second
    luminance = (2 * mean_first * mean_second + K1**2) / (mean_first**2 + mean_second**2 + K1**2)
    structure = (2 * together + K2**2) / (spread + K2**2)
    index: Array = (luminance * structure).mean(axis=(1, 2, 3))
    return index


def window_of(height: int, width: int) -> int:
    """The side in pixels of the window that `ssim` uses on such images."""
    shortest = min(height, width)
    if shortest < 3:
        raise InputError(f"SSIM needs images of at least 3x3 pixels, not {height}x{width}; score them by PSNR alone")
    return min(WINDOW, shortest - 1 + shortest % 2)


def registered_psnr(recovered: Pictures, truth: Pictures, reach: int | None = None, mirrored: bool = False) -> Array:
    """The best PSNR of each image [images] in dB over shifts by whole pixels, each on the overlap alone.

    Shifts are up to `reach` pixels either way along both sides (see `reach_of`), and with `mirrored` also those of the
    image turned left to right. No shift is one of them, so this is never below `psnr`; and it is a maximum, so even a
    blind guess gains: compare it with a baseline that was registered too. Where others register by rotation and scale
    (the R-PSNR of the `breaching` library), this does not. Both are [images, channels, height, width]; raises
    InputError as `psnr`, and for a `reach` that leaves no overlap.
    """
    first, second = _as_images(recovered, truth)
    height, width = first.shape[-2:]
    reach = reach_of(height, width) if reach is None else reach
    check_number("reach", reach, minimum=0, maximum=min(height, width) - 1, integer=True)
    least = mse(first, second)  # to the last digit what `psnr` sees
    for turned in [first, first[..., ::-1]] if mirrored else [first]:
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                apart = _overlap(turned, down, right) - _overlap(second, -down, -right)
                least = np.minimum(least, (apart**2).mean(axis=(1, 2, 3)))
    return decibels(least)


def reach_of(height: int, width: int) -> int:
    """An eighth of the shorter side, at least one pixel, over which `registered_psnr` shifts unless told otherwise."""
    return min(max(1, min(height, width) // 8), min(height, width) - 1)


def _overlap(images: Array, down: int, right: int) -> Array:
    """The part of `images` [..., height, width] that stays inside when they are moved by (down, right)."""
    height, width = images.shape[-2:]
    rows = slice(max(0, -down), height - max(0, down))
    part: Array = images[..., rows, max(0, -right) : width - max(0, right)]
    return part


def identified(recovered: Pictures, own: NDArray[np.int64], gallery: Pictures) -> NDArray[np.bool_]:
    """Whether each recovered image [images] is nearer to its original than to any other picture of the gallery.

    `gallery` [pictures, ...] is fixed and holds the originals; `own` [images] are their places in it. Nearness is
    squared error. By chance it happens once in as many times as the gallery has pictures. A tie is no
    identification, so of a picture that is in the gallery twice neither copy can be identified. Raises InputError
    for images that are not finite, shapes that do not fit, or a place outside of the gallery.
    """
    known, own = on_host(gallery), np.asarray(own)
    if known.ndim < 2 or len(known) < 2:
        raise InputError(
            f"a gallery of shape {known.shape} cannot tell pictures apart; give at least 2, [pictures, ...]"
        )
    if own.ndim != 1 or len(own) == 0 or own.min() < 0 or own.max() >= len(known):
        raise InputError(f"places {own.tolist()} are not all in a gallery of {len(known)} pictures")
    guesses, _ = check_pairs(recovered, known[own])
    pictures, hits = known.reshape(len(known), -1), []
    for guess, place in zip(guesses, own, strict=True):
        far = ((pictures - guess) ** 2).sum(axis=1)
        mine, far[place] = far[place], np.inf
        hits.append(bool(mine < far.min()))
    return np.array(hits)


def _as_images(recovered: Pictures, truth: Pictures) -> tuple[Array, Array]:
    """Both as float64 [images, channels, height, width]."""
    shape = tuple(truth.shape)
    if len(shape) != 4:
        raise InputError(f"true images have shape {shape}; give [images, channels, height, width]")
    first, second = check_pairs(recovered, truth)
    return first.reshape(shape), second.reshape(shape)
