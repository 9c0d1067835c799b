"""How many pictures are behind an update: the rank of a fully connected layer's gradient.

The gradient is Σ_i δ_i x_iᵀ over the batch, so its rank is the batch size while that is under the layer's width and its
inputs, and no two pictures are the same to the layer (Dimitrov et al. 2024, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.reconstruction.base import Knowledge, Updates
from attacks.reconstruction.first_layer import fully_connected_layers
from fl_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PictureCount:
    """At least how many pictures are behind each update [victims], by the rank of the gradient of `weight`.

    A count that has reached `limit` says nothing: noise, pruning or a larger batch fill the gradient up.
    """

    at_least: Tensor
    weight: str
    limit: int

    @property
    def told(self) -> Tensor:
        """Whether the rank says anything [victims]."""
        return self.at_least < self.limit


def gradient_rank(moved: Tensor, sent: Tensor, noise: float = 0.0) -> Tensor:
    """The rank [victims] of a layer's update `moved` [victims, outputs, inputs], float64 or float32.

    Counted are the singular values above max(outputs, inputs)·ε of the largest, plus what the subtraction of the
    `sent` weights may have rounded off and `noise` (a standard deviation) may have added: a random matrix of that
    deviation has a spectral norm of about (√outputs + √inputs) times it. In float32 pictures that hardly move the
    layer drown in rounding, so that the rank is at most the batch size, and may be less.
    """
    outputs, inputs = moved.shape[1:]
    eps = torch.finfo(moved.dtype).eps
    values = torch.linalg.svdvals(moved.double())
    spread = eps * sent.abs().flatten(1).amax(1).double() + 1.2 * noise
    floor = max(outputs, inputs) * eps * values[:, 0] + spread * (outputs**0.5 + inputs**0.5)
    return (values > floor[:, None]).sum(1)


def count_pictures(updates: Updates, knowledge: Knowledge) -> PictureCount:
    """By the fully connected layer that can tell most. Raises InputError for a model without one."""
    shapes = {name: tuple(value.shape[1:]) for name, value in updates.moved.items()}
    names = [f"{name}.weight" for name in fully_connected_layers(knowledge.model, knowledge.shape)]
    names = [name for name in names if name in shapes]
    if not names:
        raise InputError("the batch size cannot be told: the model has no fully connected layer that moved")
    # The rows of the last layer's gradient add up to zero, so one rank is lost there.
    limits = {name: min(shapes[name]) - (shapes[name][0] == knowledge.classes) for name in names}
    best = max(names, key=lambda name: limits[name])
    found = gradient_rank(updates.moved[best], updates.sent[best], knowledge.noise)
    return PictureCount(at_least=found, weight=best, limit=limits[best])


def check_examples(updates: Updates, knowledge: Knowledge) -> PictureCount | None:
    """The counts, or None where no layer tells. Raises InputError where an update of one step holds more than told."""
    if knowledge.steps * knowledge.epochs != 1:
        return None
    try:
        counted = count_pictures(updates, knowledge)
    except InputError:
        return None
    wrong = counted.told & (counted.at_least > knowledge.examples)
    if wrong.any():
        least = int(counted.at_least[wrong].max())
        raise InputError(
            f"the update holds {least} pictures at least, not {knowledge.examples}: the gradient of {counted.weight} "
            f"has rank {least}; give that batch size"
        )
    return counted
