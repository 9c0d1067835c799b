"""How directions and clients compare: cosines, and a client against the others of its round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.base import Floats

Array = NDArray[np.float64]

SMALLEST_VARIANCE = 1e-8
"""Added to the variance of the other clients, as by Zhu et al. (2025)."""


def cosine(products: Floats, lengths: Floats, others: Floats) -> Array:
    """Products over both lengths, 0 where one is 0; NaN stays."""
    size = lengths.astype(np.float64) * others
    none = np.zeros(np.broadcast_shapes(products.shape, size.shape))
    found: Array = np.divide(products, size, out=none, where=size != 0)
    return found


def against_others(values: Floats, least: int = 2) -> tuple[Array, Array]:
    """For each client's value [..., clients, examples], the mean and the variance of the other clients'.

    NaN where fewer than `least` others are there. The variance divides by their number.
    """
    seen = ~np.isnan(values)
    apart = np.where(seen, values, 0.0).astype(np.float64)
    there = seen.sum(axis=-2, keepdims=True)
    # Around a value near all of them, so that little is lost to rounding when squares are subtracted.
    middle = apart.sum(axis=-2, keepdims=True) / np.maximum(there, 1)
    apart -= middle
    apart *= seen
    count = (there - seen).astype(np.float64)
    count[count < least] = np.nan
    mean = (apart.sum(axis=-2, keepdims=True) - apart) / count
    np.square(apart, out=apart)
    variance = (apart.sum(axis=-2, keepdims=True) - apart) / count
    variance -= mean**2
    return mean + middle, np.maximum(variance, 0.0)


def standardised(values: Floats) -> Array:
    """By how many standard deviations each client's value [..., clients, examples] is above the other clients' mean.

    NaN where fewer than two others are there.
    """
    mean, variance = against_others(values)
    found: Array = (values - mean) / np.sqrt(variance + SMALLEST_VARIANCE)
    return found
