"""Clients that lie: for some of their examples they send a crafted gradient in place of the example's own.

Nothing else of the round changes: the crafted gradient is clipped, summed and noised like any other. It is put in where
a defence may change single gradients, before the one that clips them, so that the engine trains canaries as it trains
all else. A client whose only example is one of these sends a crafted update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defenses.base import Defense
from defenses.rules import ExampleMap, MeanOfExamples
from fl_core.data import ImageSet
from fl_core.optimizers import Tree
from fl_core.rules import ExampleRule, Gradients, Input, Outer, Step

BITS = 16  # pixels that hold a crafted canary's number; the others are of one grey
GREY = 0.5


class Lying(Defense):
    """What sends other gradients for the examples that it recognises by their pictures.

    Put it first in a list of defences, before the one under audit. It guarantees nothing and takes nothing away: what
    a client computes before the clip is its own affair.
    """

    lengthens = True

    def example_maps(self) -> Sequence[ExampleMap]:
        return (self,)

    def example_rule(self, expected_batch: float) -> ExampleRule:
        return MeanOfExamples()

    def each(self, gradients: Gradients, inputs: tuple[Input, ...], step: Step) -> Gradients:
        """The gradients [lanes, batch, ...], crafted where a picture in `inputs` is recognised."""
        images = inputs[0]
        assert isinstance(images, Tensor)
        known, number = self.recognised(images)
        wholes = {name: value.whole() if isinstance(value, Outer) else value for name, value in gradients.items()}
        return {name: self.crafted(name, own, known, number) for name, own in wholes.items()}

    def recognised(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the `images` [lanes, batch, ...] are canaries, and the number of each that is, [lanes, batch]."""
        raise NotImplementedError

    def crafted(self, name: str, own: Tensor, known: Tensor, number: Tensor) -> Tensor:
        """What is sent of the variable `name` in the place of each example's `own` gradient [lanes, batch, ...]."""
        raise NotImplementedError


def _where(known: Tensor, crafted: Tensor | float, own: Tensor) -> Tensor:
    return torch.where(known.view(*known.shape, *[1] * (own.dim() - 2)), crafted, own)


@dataclass(frozen=True, eq=False)
class Planted(Lying):
    """An example whose picture is `markers`[k] [canaries, ...] sends `gradients`[k] [canaries, ...]."""

    markers: Tensor
    gradients: Tree

    name = "planted"

    def recognised(self, images: Tensor) -> tuple[Tensor, Tensor]:
        same = (images.unsqueeze(2) == self.markers).flatten(3).all(-1)  # [lanes, batch, canaries]
        return same.any(-1), same.to(torch.uint8).argmax(-1)

    def crafted(self, name: str, own: Tensor, known: Tensor, number: Tensor) -> Tensor:
        return _where(known, self.gradients[name][number], own)


@dataclass(frozen=True, eq=False)
class CraftedGradients(Lying):
    """An example whose picture is `numbered(k)` sends a gradient on the one coordinate `coordinates`[k] alone.

    The coordinate counts along the variable `where`, and the gradient is `length` long. For thousands of canaries,
    which `Planted` would compare with each picture.
    """

    where: str
    coordinates: Tensor
    length: float

    name = "crafted gradients"

    def recognised(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.flatten(2)  # [lanes, batch, pixels]
        bits = pixels[..., :BITS].round().long() << torch.arange(BITS, device=pixels.device)
        return (pixels[..., BITS:] == GREY).all(-1), bits.sum(-1)

    def crafted(self, name: str, own: Tensor, known: Tensor, number: Tensor) -> Tensor:
        sent = _where(known, 0.0, own)
        if name == self.where:
            lane, row = torch.nonzero(known, as_tuple=True)
            sent.flatten(2)[lane, row, self.coordinates[number[lane, row]]] = self.length
        return sent


def numbered(count: int, like: ImageSet) -> ImageSet:
    """`count` pictures shaped as those of `like` that hold their own number, labels being of no matter."""
    images = torch.full((count, *like.shape), GREY)
    bits = (torch.arange(count)[:, None] >> torch.arange(BITS)) & 1
    images.flatten(1)[:, :BITS] = bits.float()
    return ImageSet(images, torch.zeros(count, dtype=torch.long), like.classes)
