"""What a client changes about a picture each time it trains on it, so that a model learns less of it by heart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fl_core.errors import InputError, check_number


class Augmentation(Protocol):
    """Draws how pictures will be looked at; `looked_at` then shows them so."""

    def check(self, shape: tuple[int, int, int]) -> None:
        """InputError where pictures of this (channels, height, width) do not allow it."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Looks [count, 3], int8: 1 where mirrored, pixels moved down, pixels moved right."""
        ...


def none() -> None:
    """Pictures as they are."""


@dataclass(frozen=True, kw_only=True)
class FlipAndShift(Augmentation):
    """Mirror a picture by a fair coin, and move it by up to `shift` pixels along each axis.

    What enters at a border is the picture's own reflection, in the place of the zeros of He et al. (2016, section 4.2),
    whose random crops of padded CIFAR pictures these moves are at a shift of 4.
    """

    flip: bool = True
    shift: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.flip, bool):
            raise InputError(f"augmentation.flip is {self.flip!r}; it must be true or false")
        check_number("augmentation.shift", self.shift, minimum=0, maximum=100, integer=True)

    def check(self, shape: tuple[int, int, int]) -> None:
        least = min(shape[1:])
        if self.shift >= least:
            raise InputError(
                f"augmentation.shift is {self.shift}, but pictures are {shape[1]}x{shape[2]} and can be moved by "
                f"{least - 1} pixels at most; lower it"
            )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        looks = torch.empty(count, 3, dtype=torch.int8)
        looks[:, 0] = torch.randint(1 + self.flip, (count,), generator=generator)
        looks[:, 1:] = torch.randint(-self.shift, self.shift + 1, (count, 2), generator=generator)
        return looks


def looked_at(images: Tensor, rows: Tensor, looks: Tensor) -> Tensor:
    """Pictures [..., channels, height, width] at `rows` [...] of `images`, as `looks` [..., 3] say."""
    height, width = images.shape[2:]
    mirrored, down, right = looks.long().unbind(-1)
    y = _reflected(torch.arange(height, device=rows.device) - down[..., None], height)
    x = _reflected(torch.arange(width, device=rows.device) - right[..., None], width)
    x = torch.where(mirrored[..., None] > 0, width - 1 - x, x)
    # One gather, and the channels come last.
    found = images[rows[..., None, None], :, y[..., :, None], x[..., None, :]]
    return found.movedim(-1, -3)


def _reflected(place: Tensor, size: int) -> Tensor:
    """Places in [0, size) for places up to size - 1 outside on either side; the border itself is not repeated."""
    place = place.abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place)
