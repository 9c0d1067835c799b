"""Labels read off an update, before any picture is rebuilt."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_core.errors import InputError
from fl_core.optimizers import Tree


def output_bias(parameters: Tree, classes: int) -> str:
    """The name of the last layer's bias: the last vector with one entry a class. InputError where there is none."""
    names = [name for name, value in parameters.items() if value.shape[1:] == (classes,)]
    if not names:
        raise InputError("the label cannot be inferred: the model has no output bias with one entry a class")
    return names[-1]


def infer_label_from_weights(gradient: Tree, weight: str) -> Tensor:
    """The label [lanes] behind each lane's gradient of one example, where the output bias says nothing of its own.

    Of the output layer's `weight` [lanes, classes, units] each class's row is (softmax − one-hot) times the units'
    values; where no unit is negative, as after a ReLU, the label's row is the only one with a negative sum (Zhao et al.
    2020, iDLG). Noise may tip the verdict; the smallest sum stays the guess.
    """
    return torch.argmin(gradient[weight].sum(2), dim=1)


def infer_single_label(gradient: Tree, classes: int) -> Tensor:
    """The label [lanes] behind each lane's gradient [lanes, ...] of one example's cross-entropy.

    The gradient of the output bias is softmax minus one-hot, so the only negative entry is the label's (Zhao et al.
    2020, iDLG, in the bias form of Geiping et al. 2020). Noise may tip the verdict; the smallest entry stays the guess.
    """
    return torch.argmin(gradient[output_bias(gradient, classes)], dim=1)


def infer_label_counts(gradient: Tree, chances: Tensor, examples: int) -> Tensor:
    """How often each label is behind a mean gradient over `examples` of them: [lanes, classes] whole numbers.

    The output bias's gradient is the mean softmax minus the share of each label, so `examples` times the mean chance
    minus it is the count. `chances` [classes] are the model's mean ones, which an untrained model gives any pictures.
    Rounded so that counts add up, the largest remainders up. Source: the bias form of Wainakh et al. 2022 (LLG).
    """
    shares = chances - gradient[output_bias(gradient, len(chances))]
    real = (examples * shares).clamp(min=0)
    real = real * (examples / real.sum(1, keepdim=True).clamp(min=1e-12))
    whole = real.floor()
    missing = (examples - whole.sum(1)).round().long()
    rank = (real - whole).argsort(1, descending=True).argsort(1)
    return (whole + (rank < missing[:, None])).long()
