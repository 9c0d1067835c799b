"""LPIPS, where what it needs is on this machine already: nothing is fetched."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models import AlexNet_Weights

from attacks.pictures import Array, Pictures, check_pairs
from fl_core.errors import InputError


def missing() -> str:
    """Why LPIPS cannot be computed here, in words for a table; empty where it can."""
    if find_spec("lpips") is None:
        return "LPIPS is absent: the package lpips is not installed"
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    if not weights.is_file():
        return f"LPIPS is absent: AlexNet's weights ({weights.name}) are not in torch's cache, and nothing is fetched"
    return ""


def lpips(recovered: Pictures, truth: Pictures) -> Array:
    """Learned perceptual distance of each image [images], the less the nearer (Zhang et al. 2018; AlexNet, v0.1).

    Both are [images, channels, height, width] in [0, 1]; one channel is shown as three. Images with a side
    shorter than 32 pixels, of which AlexNet's layers leave nothing, are enlarged to that by bilinear interpolation.
    Raises InputError where it is `missing`, and as `psnr`.
    """
    why = missing()
    if why:
        raise InputError(f"{why}; install both, or go without")
    check_pairs(recovered, truth)
    first, second = (_prepared(images) for images in (recovered, truth))
    with torch.no_grad():
        found: Any = [_network()(one[None], other[None]) for one, other in zip(first, second, strict=True)]
    distances: Array = np.array([float(one) for one in found])
    return distances


@functools.cache
def _network() -> Any:
    import lpips as package

    return package.LPIPS(net="alex", verbose=False).eval()


SIDE = 32


def _prepared(images: Pictures) -> torch.Tensor:
    """As LPIPS takes them: float32, three channels, pixels in [−1, 1], no side shorter than `SIDE`."""
    pixels = torch.as_tensor(images).detach().cpu().float()
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise InputError(f"images have shape {list(pixels.shape)}; LPIPS takes [images, 1 or 3, height, width]")
    pixels = 2 * pixels.expand(-1, 3, -1, -1) - 1
    height, width = pixels.shape[-2:]
    if min(height, width) >= SIDE:
        return pixels
    factor = SIDE / min(height, width)
    return torch.nn.functional.interpolate(
        pixels, size=(round(height * factor), round(width * factor)), mode="bilinear"
    )
