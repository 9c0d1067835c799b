"""Residual networks for small pictures: ResNets and Wide ResNets, without dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_core.architectures import Shape, centred, check_size, norm_layer
from fl_core.errors import InputError, check_number


class HeConv2d(nn.Conv2d):
    """A convolution whose weights start normal with variance `gain`^2 * 2 / fan-out (He et al. 2015), biases at 0."""

    def __init__(
        self, channels_in: int, channels_out: int, size: int, stride: int = 1, *, bias: bool, gain: float = 1.0
    ) -> None:
        self.gain = gain  # before torch's own __init__, which initialises
        super().__init__(channels_in, channels_out, size, stride, padding=size // 2, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weights anew from torch's global generator and put the biases to 0; a new layer has done so."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        with torch.no_grad():
            self.weight.mul_(self.gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class BasicBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm, and the sum with the input, then ReLU (He et al. 2016, figure 5).

    Where the size changes, the input passes a 1x1 convolution and a norm (their option B). Without a norm the
    convolutions have biases, and the second starts smaller by `gain`.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str, gain: float) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = HeConv2d(channels_in, channels_out, 3, stride, bias=bias)
        self.norm1 = norm_layer(norm, channels_out)
        self.conv2 = HeConv2d(channels_out, channels_out, 3, bias=bias, gain=gain)
        self.norm2 = norm_layer(norm, channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = HeConv2d(channels_in, channels_out, 1, stride, bias=bias)
            self.shortcut = nn.Sequential(projection, norm_layer(norm, channels_out))

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, channels_out, ⌈height/stride⌉, ⌈width/stride⌉] of `hidden` [batch, channels_in, height, width]."""
        branch = F.relu(self.norm1(self.conv1(hidden)))
        return F.relu(self.norm2(self.conv2(branch)) + self.shortcut(hidden))


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, norm, ReLU, convolution, and the sum with the input (Zagoruyko & Komodakis 2016).

    Where the size changes, the input's place in the sum is taken by a 1x1 convolution of it after the first ReLU.
    Without a norm the convolutions have biases, and the second starts smaller by `gain`.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str, gain: float) -> None:
        super().__init__()
        bias = norm == "none"
        self.norm1 = norm_layer(norm, channels_in)
        self.conv1 = HeConv2d(channels_in, channels_out, 3, stride, bias=bias)
        self.norm2 = norm_layer(norm, channels_out)
        self.conv2 = HeConv2d(channels_out, channels_out, 3, bias=bias, gain=gain)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = HeConv2d(channels_in, channels_out, 1, stride, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, channels_out, ⌈height/stride⌉, ⌈width/stride⌉] of `hidden` [batch, channels_in, height, width]."""
        active = F.relu(self.norm1(hidden))
        branch: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return branch + (hidden if self.shortcut is None else self.shortcut(active))


def _stages(
    block: type[BasicBlock] | type[PreActivationBlock], channels_in: int, widths: list[int], blocks: int, norm: str
) -> nn.Sequential:
    """One stage of `blocks` blocks a width; each stage but the first halves the picture.

    A branch adds up to twice the mean square of what enters its block. A norm takes that back; without one the
    branches of L blocks start smaller by 1/sqrt(L), which bounds the growth at any depth (Hayou et al. 2021).
    """
    gain = (len(widths) * blocks) ** -0.5 if norm == "none" else 1.0
    layers = []
    for stage, width in enumerate(widths):
        for place in range(blocks):
            stride = 2 if stage and not place else 1
            layers.append(block(channels_in, width, stride, norm, gain))
            channels_in = width
    return nn.Sequential(*layers)


class ResNet(nn.Module):
    """The residual networks of He et al. (2016) for small pictures: a 3x3 stem, stages of blocks, mean, linear layer.

    A `depth` of 6n+2 is n blocks in each of three stages of w, 2w and 4w channels (their section 4.2): ResNet-8 and
    ResNet-20 at w = 16, and the ResNet20-4 of Geiping et al. (2020) at w = 64. A depth of 18 is two blocks in each of
    four stages of w to 8w, ResNet-18 at w = 64. Parameters with a norm, on 3 channels and 10 classes: ResNet-8 78,042,
    ResNet-20 272,474 (2,752 more than with their parameter-free shortcuts), ResNet20-4 4,327,754, ResNet-18
    11,173,962. `norm` is `group`, `batch` (the papers') or `none`. At least 5x5 pixels, for depth 18 9x9, so that the
    last stage sees 2x2.
    """

    def __init__(self, shape: Shape, classes: int, depth: int = 20, width: int = 16, norm: str = "group") -> None:
        super().__init__()
        check_number("model.depth", depth, minimum=8, integer=True)
        check_number("model.width", width, minimum=4, integer=True)
        if depth != 18 and depth % 6 != 2:
            raise InputError(f"model.depth is {depth}; it must be 18, or 6n+2 as in 8, 14, 20, 26, 32")
        stages, blocks = (4, 2) if depth == 18 else (3, (depth - 2) // 6)
        check_size(shape, 2 ** (stages - 1) + 1, f"a ResNet-{depth}")
        widths = [width * 2**stage for stage in range(stages)]
        self.stem = HeConv2d(shape[0], width, 3, bias=norm == "none")
        self.norm = norm_layer(norm, width)
        self.blocks = _stages(BasicBlock, width, widths, blocks, norm)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        hidden = self.blocks(F.relu(self.norm(self.stem(centred(pixels)))))
        scores: Tensor = self.head(hidden.mean((2, 3)))
        return scores


class WideResNet(nn.Module):
    """Wide residual networks (Zagoruyko & Komodakis 2016, table 1): WRN-`depth`-`widen`, pre-activation, no dropout.

    A 3x3 stem of 16 channels, (depth - 4) / 6 blocks in each of three stages of 16, 32 and 64 times `widen` channels,
    norm, ReLU, mean, linear layer. Parameters with a norm, on 3 channels and 10 classes: WRN-16-4 2,748,890, WRN-28-2
    1,467,610. `norm` is `group`, `batch` (the paper's) or `none`. At least 5x5 pixels.
    """

    def __init__(self, shape: Shape, classes: int, depth: int = 16, widen: int = 4, norm: str = "group") -> None:
        super().__init__()
        check_number("model.depth", depth, minimum=10, integer=True)
        check_number("model.widen", widen, minimum=1, integer=True)
        if depth % 6 != 4:
            raise InputError(f"model.depth is {depth}; it must be 6n+4, as in 10, 16, 22, 28, 40")
        check_size(shape, 5, f"a WRN-{depth}-{widen}")
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.stem = HeConv2d(shape[0], 16, 3, bias=norm == "none")
        self.blocks = _stages(PreActivationBlock, 16, widths, (depth - 4) // 6, norm)
        self.norm = norm_layer(norm, widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        hidden = F.relu(self.norm(self.blocks(self.stem(centred(pixels)))))
        scores: Tensor = self.head(hidden.mean((2, 3)))
        return scores
