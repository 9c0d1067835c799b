"""Models that take pixels in [0, 1] and normalise inside, so that an attack's picture is a picture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fl_core.errors import InputError, check_choice, check_number


class CNN(nn.Module):
    """Two 3x3 convolutions, each halving the picture, and a linear layer.

    `shape` is (channels, height, width), at least 4x4 pixels; `norm` is `none` or `group` (GroupNorm of 4 channels a
    group: no statistics shared between examples, so it goes with differential privacy). Halving is by `stride` or
    by max `pool`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
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
        channels, height, wide = shape
        if min(height, wide) < 4:
            raise InputError(f"images are {height}x{wide}; the CNN needs at least 4x4 pixels")
        stride = 2 if halve == "stride" else 1
        self.halve = halve
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride, 1)
        self.norm1 = nn.GroupNorm(width // 4, width) if norm == "group" else nn.Identity()
        self.norm2 = nn.GroupNorm(width // 2, 2 * width) if norm == "group" else nn.Identity()
        if halve == "stride":
            height, wide = -(-height // 2), -(-wide // 2)
            height, wide = -(-height // 2), -(-wide // 2)
        else:
            height, wide = height // 4, wide // 4
        self.head = nn.Linear(2 * width * height * wide, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        hidden = (pixels - 0.5) * 2.0
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            hidden = F.relu(norm(conv(hidden)))
            if self.halve == "pool":
                hidden = F.max_pool2d(hidden, 2)
        scores: Tensor = self.head(hidden.flatten(1))
        return scores
