"""Noise for trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fl_core.optimizers import Tree


def standard_normal(like: Tree, generators: Sequence[torch.Generator]) -> Tree:
    """Independent standard normals in the shapes of `like` [rows, ...], from one generator a row.

    A row is drawn for all its variables at once, in the order of the tree.
    """
    return drawn(like, generators, lambda row, draw: torch.randn(row.shape, generator=draw, out=row))


def drawn(like: Tree, generators: Sequence[torch.Generator], fill: Callable[[Tensor, torch.Generator], object]) -> Tree:
    """Numbers in the shapes of `like` [rows, ...], all of a row's from its own generator.

    `fill` fills the numbers of all of a row's variables [numbers] in place, in the order of the tree.
    """
    first = next(iter(like.values()))
    flat = first.new_empty(len(generators), sum(value.shape[1:].numel() for value in like.values()))
    for row, draw in zip(flat, generators, strict=True):
        fill(row, draw)
    return cut(flat, like)


def cut(flat: Tensor, like: Tree) -> Tree:
    """Rows [rows, numbers] as a tree in the shapes and the order of `like` [rows, ...]."""
    shapes = {name: value.shape[1:] for name, value in like.items()}
    parts = flat.split([shape.numel() for shape in shapes.values()], 1)
    return {
        name: part.unflatten(1, shape) if shape else part[:, 0]
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
