"""The small CNN on which DP-SGD libraries show their numbers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fl_core.architectures import Shape, centred, check_size


class TutorialCNN(nn.Module):
    """The MNIST CNN of Opacus's example (Yousefpour et al. 2021): 26,010 parameters on 28x28 grey with 10 classes.

    An 8x8 convolution of 16 channels with stride 2 and padding 3, a 4x4 one of 32 with stride 2, each with ReLU and 2x2
    max pooling of stride 1; linear layers of 32 units and of the classes. At least 14x14 pixels.
    """

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        check_size(shape, 14, "the tutorial's CNN")
        channels, height, wide = shape
        self.conv1 = nn.Conv2d(channels, 16, 8, stride=2, padding=3)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2)
        left = [((side // 2 - 1) - 4) // 2 for side in (height, wide)]
        self.hidden = nn.Linear(32 * left[0] * left[1], 32)
        self.head = nn.Linear(32, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        hidden = centred(pixels)
        for conv in (self.conv1, self.conv2):
            hidden = F.relu(F.max_pool2d(conv(hidden), 2, 1))  # the same as pooling last, on a few entries less
        scores: Tensor = self.head(F.relu(self.hidden(hidden.flatten(1))))
        return scores
