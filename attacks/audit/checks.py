"""What every audit refuses, in one line each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.base import Floats
from fl_core.errors import InputError, check_number


def check_levels(delta: float, confidence: float) -> None:
    """Raise InputError unless 0 ≤ δ < 1 and ½ < confidence < 1."""
    check_number("delta", delta, minimum=0, below=1)
    check_number("confidence", confidence, above=0.5, below=1)


def check_gaussian_delta(delta: float) -> None:
    """Raise InputError for δ = 0, at which every Gaussian mechanism has an infinite ε."""
    check_number("delta", delta, above=0, below=1)


def trials(name: str, scores: Floats, least: int = 1) -> NDArray[np.float64]:
    """`scores` as float64 [trials]; raises InputError for fewer than `least`, other shapes and NaN."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size < least:
        raise InputError(f"{name} has shape {values.shape}; give at least {least} of them, as [trials]")
    if np.isnan(values).any():
        raise InputError(f"{int(np.isnan(values).sum())} of {values.size} {name} are NaN; every trial needs a score")
    return values
