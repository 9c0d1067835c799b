"""Clipping: no one example, and no one client, moves the model further than a stated length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fl_core.optimizers import Tree


def norms(tree: Tree, lead: int) -> Tensor:
    """Euclidean norms over all leaves together, keeping the first `lead` axes."""
    # A reshape, since a parameter may be a single number, without an axis of its own to flatten.
    rows = [value.reshape(*value.shape[:lead], math.prod(value.shape[lead:])) for value in tree.values()]
    each = torch.stack([torch.linalg.vector_norm(row, dim=-1) for row in rows])
    whole: Tensor = torch.linalg.vector_norm(each, dim=0)
    return whole


def clip_factors(lengths: Tensor, clip_norm: float) -> Tensor:
    """What to multiply each gradient by so that its norm is at most `clip_norm`; a zero gradient stays zero."""
    return clip_norm / lengths.clamp(min=clip_norm)
