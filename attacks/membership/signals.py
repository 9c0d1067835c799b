"""Signals: one number for one example, computed from a model's logits.

Everything is float64 and computed from logits, never from probabilities: a confident model's p rounds to 1
and its log(1 − p) to −inf, exactly where members and non-members differ most (Carlini et al. 2022).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.base import Floats, Ints
from fl_core.errors import InputError


def scaled_confidence(logits: Floats, labels: Ints) -> NDArray[np.float64]:
    """Logit-scaled confidence of the true label, log p_y − log(1 − p_y), in nats.

    Computed as logit_y minus the log-sum-exp of the other logits, so it is exact for p_y however close to 0
    or 1. `logits` [..., examples, classes], `labels` [examples]; returns [..., examples]. Raises InputError
    for logits that are not finite, fewer than 2 classes, or labels that do not fit. Source: Carlini et al.
    2022, "Membership Inference Attacks From First Principles".
    """
    logits = check_logits("logits", logits, labels)
    index = np.broadcast_to(labels.reshape(-1, 1), (*logits.shape[:-1], 1))
    own = np.take_along_axis(logits, index, axis=-1)[..., 0]
    others = logits.copy()
    np.put_along_axis(others, index, -np.inf, axis=-1)
    top = others.max(axis=-1)
    others -= top[..., None]
    np.exp(others, out=others)
    scaled: NDArray[np.float64] = own - top - np.log(others.sum(axis=-1))
    return scaled


def loss(confidence: Floats) -> NDArray[np.float64]:
    """Cross-entropy of the true label, −log p_y, in nats, from its scaled confidence, whatever the shape.

    As log(1 + e^(−s)): it keeps the order of losses far below 1e-16, which logsumexp(logits) − logit_y rounds to 0.
    """
    nats: NDArray[np.float64] = np.logaddexp(0.0, -confidence)
    return nats


def check_logits(name: str, logits: Floats, labels: Ints) -> NDArray[np.float64]:
    """Return the logits as float64; raise InputError naming the first entry not finite, or the misfit."""
    wide: NDArray[np.float64] = logits.astype(np.float64, copy=False)
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels have shape {labels.shape} and type {labels.dtype}; give whole numbers [examples]")
    if logits.ndim < 2 or logits.shape[-2] != labels.size or logits.shape[-1] < 2:
        raise InputError(
            f"{name} have shape {logits.shape}; give [..., {labels.size} examples, at least 2 classes], one row a label"
        )
    if labels.size == 0:
        raise InputError("there are no examples to score; give at least one")
    outside = (labels < 0) | (labels >= logits.shape[-1])
    if outside.any():
        first = int(np.argmax(outside))
        raise InputError(f"labels[{first}] is {labels[first]}; the {name} have classes 0 to {logits.shape[-1] - 1}")
    finite = np.isfinite(wide)
    if not finite.all():
        where = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), logits.shape))
        raise InputError(
            f"{name}{list(where)} is {logits[where]}, "
            f"and {int((~finite).sum())} of {logits.size} entries are not finite; "
            "did that model's training diverge?"
        )
    return wide
