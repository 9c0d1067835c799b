"""Models that take pixels in [0, 1] and normalise inside, so that an attack's picture is a picture.

Each takes `shape` (channels, height, width) and the number of classes first. Pixels enter the first layer as
2x - 1, whatever normalisation the paper used. The residual networks are in `residual`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_core.errors import InputError, check_choice, check_number

Shape = tuple[int, int, int]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
NORMS = ("group", "batch", "none")


def centred(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] moved to [-1, 1]."""
    return (pixels - 0.5) * 2.0


def check_size(shape: Shape, least: int, who: str) -> None:
    """Raise InputError where a picture is under `least` pixels high or wide."""
    _, height, width = shape
    if min(height, width) < least:
        raise InputError(f"images are {height}x{width}; {who} needs at least {least}x{least} pixels")


def norm_layer(norm: str, channels: int) -> nn.Module:
    """The normalisation of a layer of at least 4 channels.

    `group` is GroupNorm (Wu & He 2018) in the largest number of equal groups that is at most 32 and leaves 4 channels
    a group: c/4 groups for c = 4, 8, ..., 128 channels, and their default of 32 for 256 and 512. It shares nothing
    between examples, so it goes with differential privacy. `batch` is BatchNorm: an example's output depends on its
    batch, and the model keeps running statistics. `none` is the identity.
    """
    check_choice("model.norm", norm, NORMS)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    groups = max(count for count in range(1, 33) if channels % count == 0 and channels // count >= 4)
    return nn.GroupNorm(groups, channels)


# Stacked convolutions are one grouped convolution over all lanes' channels. On a CPU it is up to twice as fast with its
# channels last, so these two rules for `vmap` keep every lane's channels side by side, innermost in memory. torch's own
# rules move the lanes in front of the batch, which copies the activations. GroupNorm cannot take such a layout.


class _OnlyStacked(torch.autograd.Function):
    """An operation with a rule of its own under `vmap`, and called nowhere else."""

    keeps_examples_apart = True  # see `per_example`

    @staticmethod
    def forward(*_: Any) -> Tensor:
        raise AssertionError("only called on stacked lanes")

    @staticmethod
    def setup_context(*_: Any) -> None:
        raise AssertionError("only called on stacked lanes")


class _SideBySide(_OnlyStacked):
    @staticmethod
    def vmap(_: Any, in_dims: tuple[int], stacked: Tensor) -> tuple[Tensor, int]:
        lanes = stacked.movedim(in_dims[0], 0)
        return lanes.permute(1, 3, 4, 0, 2).contiguous().permute(0, 3, 4, 1, 2), 1


class _MaxPool(_OnlyStacked):
    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], stacked: Tensor, size: int) -> tuple[Tensor, int]:
        pooled = F.max_pool2d(stacked.movedim(in_dims[0], 1).flatten(1, 2), size)
        return pooled.unflatten(1, (info.batch_size, -1)), 1


def _stacked_on_cpu(value: Tensor) -> bool:
    if value.device.type != "cpu" or not torch._C._functorch.is_batchedtensor(value):
        return False
    innermost = torch._C._functorch.peek_interpreter_stack()
    return innermost is not None and innermost.key() == torch._C._functorch.TransformType.Vmap


def side_by_side(pixels: Tensor) -> Tensor:
    """The same pixels [batch, channels, height, width], laid out for stacked convolutions where lanes are stacked."""
    if not _stacked_on_cpu(pixels):
        return pixels
    beside: Tensor = _SideBySide.apply(pixels)  # type: ignore[no-untyped-call]
    return beside


def max_pool(hidden: Tensor, size: int) -> Tensor:
    """`F.max_pool2d` [batch, channels, height, width], which keeps that layout."""
    if not _stacked_on_cpu(hidden):
        return F.max_pool2d(hidden, size)
    pooled: Tensor = _MaxPool.apply(hidden, size)  # type: ignore[no-untyped-call]
    return pooled


class CNN(nn.Module):
    """Two 3x3 convolutions, each halving the picture, and a linear layer; at least 4x4 pixels.

    `norm` is `none` or `group` (GroupNorm of 4 channels a group, see `norm_layer`). Halving is by `stride` or by max
    `pool`.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        width: int = 16,
        norm: str = "none",
        halve: str = "pool",
    ) -> None:
        super().__init__()
        check_number("model.width", width, minimum=4, integer=True)
        check_choice("model.norm", norm, ("none", "group"))
        check_choice("model.halve", halve, ("pool", "stride"))
        if norm == "group" and width % 4:
            raise InputError(f"model.width is {width}; GroupNorm needs a multiple of 4")
        check_size(shape, 4, "the CNN")
        channels, height, wide = shape
        stride = 2 if halve == "stride" else 1
        self.halve = halve
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride, 1)
        self.norm1 = norm_layer(norm, width)
        self.norm2 = norm_layer(norm, 2 * width)
        if halve == "stride":
            height, wide = -(-height // 2), -(-wide // 2)
            height, wide = -(-height // 2), -(-wide // 2)
        else:
            height, wide = height // 4, wide // 4
        self.head = nn.Linear(2 * width * height * wide, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        plain = isinstance(self.norm1, nn.Identity)
        hidden = centred(side_by_side(pixels) if plain else pixels)
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            hidden = norm(conv(hidden))
            if self.halve == "pool":
                hidden = max_pool(hidden, 2) if plain else F.max_pool2d(hidden, 2)
            hidden = F.relu(hidden)  # the same before the pooling, on four times as many entries
        scores: Tensor = self.head(hidden.flatten(1))
        return scores


class MLP(nn.Module):
    """Linear layers of `hidden` units; none at all is softmax regression.

    The default is the 2NN of McMahan et al. (2017, section 3): 199,210 parameters on 28x28 grey with 10 classes.
    """

    def __init__(
        self, shape: Shape, classes: int, hidden: Sequence[int] = (200, 200), activation: str = "relu"
    ) -> None:
        super().__init__()
        check_choice("model.activation", activation, ACTIVATIONS)
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise InputError(f"model.hidden is {hidden!r}; it must be a list of layer widths, as in [200,200]")
        for width in hidden:
            check_number("a width in model.hidden", width, minimum=1, integer=True)
        self.activation = activation
        channels, height, wide = shape
        widths = [channels * height * wide, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        activation = ACTIVATIONS[self.activation]
        units = centred(pixels).flatten(1)
        for layer in self.hidden:
            units = activation(layer(units))
        scores: Tensor = self.head(units)
        return scores


class McMahanCNN(nn.Module):
    """The MNIST CNN of McMahan et al. (2017, section 3): 1,663,370 parameters on 28x28 grey with 10 classes.

    Two 5x5 convolutions of `width` and 2*`width` channels, each with ReLU and 2x2 max pooling, a linear layer to
    16*`width` and one to the classes. The paper's width is 32. At least 4x4 pixels.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 32) -> None:
        super().__init__()
        check_number("model.width", width, minimum=1, integer=True)
        check_size(shape, 4, "McMahan's CNN")
        channels, height, wide = shape
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.hidden = nn.Linear(2 * width * (height // 4) * (wide // 4), 16 * width)
        self.head = nn.Linear(16 * width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        hidden = centred(side_by_side(pixels))
        for conv in (self.conv1, self.conv2):
            hidden = F.relu(max_pool(conv(hidden), 2))  # the same as pooling last, on a quarter of the entries
        scores: Tensor = self.head(F.relu(self.hidden(hidden.flatten(1))))
        return scores


def _uniform(layer: nn.Module) -> None:
    for value in layer.parameters(recurse=False):
        nn.init.uniform_(value, -0.5, 0.5)


# The engine initialises a replica layer by layer, with `reset_parameters`, so an initialisation belongs to a layer.
class UniformConv2d(nn.Conv2d):
    """A convolution whose weights and biases start uniform in [-0.5, 0.5]."""

    def reset_parameters(self) -> None:
        """Draw weights and biases anew from torch's global generator; a new layer has done so."""
        _uniform(self)


class UniformLinear(nn.Linear):
    """A linear layer whose weights and biases start uniform in [-0.5, 0.5]."""

    def reset_parameters(self) -> None:
        """Draw weights and biases anew from torch's global generator; a new layer has done so."""
        _uniform(self)


class LeNet(nn.Module):
    """The LeNet of deep leakage from gradients (Zhu et al. 2019, as in their released code).

    Three 5x5 convolutions of 12 channels with strides 2, 2 and 1 and a linear layer: 768 inputs to it on 32x32
    pixels, and 85,036 parameters there with 3 channels and 100 classes. Nothing is pooled and a sigmoid is smooth, so
    that an attack can follow the gradient's gradient. `init` is `uniform` in [-0.5, 0.5], which is theirs, or
    `default`, torch's own, under which hardly any gradient passes three sigmoids.
    """

    def __init__(self, shape: Shape, classes: int, activation: str = "sigmoid", init: str = "uniform") -> None:
        super().__init__()
        check_choice("model.activation", activation, ACTIVATIONS)
        check_choice("model.init", init, ("uniform", "default"))
        self.activation = activation
        channels, height, wide = shape
        conv, linear = (UniformConv2d, UniformLinear) if init == "uniform" else (nn.Conv2d, nn.Linear)
        self.conv1 = conv(channels, 12, 5, stride=2, padding=2)
        self.conv2 = conv(12, 12, 5, stride=2, padding=2)
        self.conv3 = conv(12, 12, 5, stride=1, padding=2)
        self.head = linear(12 * -(-height // 4) * -(-wide // 4), classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        activation = ACTIVATIONS[self.activation]
        hidden = centred(pixels)
        for conv in (self.conv1, self.conv2, self.conv3):
            hidden = activation(conv(hidden))
        scores: Tensor = self.head(hidden.flatten(1))
        return scores


class ConvNet(nn.Module):
    """The ConvNet of inverting gradients (Geiping et al. 2020), as their released code builds it.

    Eight 3x3 convolutions of w, 2w, 2w and five times 4w channels, each with a norm and ReLU; 3x3 max pooling after
    the sixth and the eighth; a linear layer. 2,904,970 parameters at the width of 64 on 32x32 colour with 10 classes.
    Their code names nine convolutions, two of them by the same key, of which one remains. Its norm is `batch`. At
    least 9x9 pixels.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 64, norm: str = "group") -> None:
        super().__init__()
        check_number("model.width", width, minimum=4, integer=True)
        check_size(shape, 9, "the ConvNet")
        channels, height, wide = shape
        widths = [channels, *(factor * width for factor in (1, 2, 2, 4, 4, 4, 4, 4))]
        pairs = pairwise(widths)
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairs)
        self.norms = nn.ModuleList(norm_layer(norm, after) for after in widths[1:])
        self.head = nn.Linear(4 * width * (height // 9) * (wide // 9), classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        hidden = centred(pixels)
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            hidden = F.relu(norm(conv(hidden)))
            if place in (5, 7):
                hidden = F.max_pool2d(hidden, 3)
        scores: Tensor = self.head(hidden.flatten(1))
        return scores
