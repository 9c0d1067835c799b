"""Signals of the whole prediction, beside those of the true label alone: its entropy, and whether it is right.

Computed from logits. A probability close to 1 is never subtracted from 1: the others are summed instead, so that the
most certain predictions keep their order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.base import Floats, Ints
from attacks.membership.signals import check_logits

Array = NDArray[np.float64]


def entropy(logits: Floats, labels: Ints) -> Array:
    """Shannon entropy of the prediction, in nats, [..., examples] from `logits` [..., examples, classes].

    `labels` [examples] are only checked. Raises InputError as `check_logits`.
    """
    below, _, odds = _around_the_top(check_logits("logits", logits, labels))
    rest = odds.sum(axis=-1)
    spread: Array = np.log1p(rest) - (odds * below).sum(axis=-1) / (1 + rest)
    return spread


def modified_entropy(logits: Floats, labels: Ints) -> Array:
    """−(1 − p_y) log p_y − Σ_{i≠y} pᵢ log(1 − pᵢ), in nats, [..., examples]: 0 if surely right, large if surely wrong.

    `logits` [..., examples, classes], `labels` [examples]. Raises InputError as `check_logits`. Source: Song and
    Mittal 2021, "Systematic Evaluation of Privacy Risks of Machine Learning Models", eq. 8.
    """
    below, top, odds = _around_the_top(check_logits("logits", logits, labels))
    rest = odds.sum(axis=-1, keepdims=True)
    p = odds / (1 + rest)
    log_other = np.log1p(-p)  # log(1 − p); that of the top one is the others' sum, relative to the second
    others = below.copy()
    np.put_along_axis(others, top, -np.inf, axis=-1)
    second = others.max(axis=-1, keepdims=True)
    log_rest = second + np.log(np.exp(others - second).sum(axis=-1, keepdims=True))
    np.put_along_axis(log_other, top, log_rest - np.log1p(rest), axis=-1)
    np.put_along_axis(p, top, 1 / (1 + rest), axis=-1)
    terms = p * log_other
    index = np.broadcast_to(labels.reshape(-1, 1), top.shape)
    log_p = np.take_along_axis(below, index, axis=-1) - np.log1p(rest)
    np.put_along_axis(terms, index, np.exp(np.take_along_axis(log_other, index, axis=-1)) * log_p, axis=-1)
    nats: Array = -terms.sum(axis=-1)
    return nats


def is_right(logits: Floats, labels: Ints) -> NDArray[np.bool_]:
    """Whether the label has the largest logit, [..., examples]; of equal ones the model predicts the first.

    Raises InputError as `check_logits`.
    """
    right: NDArray[np.bool_] = check_logits("logits", logits, labels).argmax(axis=-1) == labels
    return right


def _around_the_top(logits: Array) -> tuple[Array, NDArray[np.int64], Array]:
    """Logits relative to the largest, which one that is [..., 1], and the odds against it, 0 for itself."""
    top = logits.argmax(axis=-1)[..., None]
    below = logits - np.take_along_axis(logits, top, axis=-1)
    odds = np.exp(below)
    np.put_along_axis(odds, top, 0.0, axis=-1)
    return below, top, odds
