"""Signals made by hand, for attacks that read them."""

from __future__ import annotations

from typing import Any

import numpy as np

from attacks.membership.observed import Signals


def signals_of(logits: Any, labels: Any, **more: Any) -> Signals:
    """Of replicas' logits [replicas, examples, classes], one query each."""
    return Signals(labels=np.asarray(labels), logits=np.asarray(logits)[:, None], **more)
