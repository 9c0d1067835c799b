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


@dataclass(frozen=True, eq=False)
class Planted(Defense):
    """The gradient of an example whose picture is `markers`[k] [canaries, ...] becomes `gradients`[k] [canaries, ...].

    Put it first in a list of defences, before the one under audit. It guarantees nothing and takes nothing away: what
    a client computes before the clip is its own affair.
    """

    markers: Tensor
    gradients: Tree

    name = "planted"
    lengthens = True

    def example_maps(self) -> Sequence[ExampleMap]:
        return (self,)

    def example_rule(self, expected_batch: float) -> ExampleRule:
        return MeanOfExamples()

    def each(self, gradients: Gradients, inputs: tuple[Input, ...], step: Step) -> Gradients:
        """The gradients [lanes, batch, ...], crafted where `inputs` have a marker as their picture."""
        images = inputs[0]
        assert isinstance(images, Tensor)
        same = (images.unsqueeze(2) == self.markers).flatten(3).all(-1)  # [lanes, batch, canaries]
        planted, which = same.any(-1), same.to(torch.uint8).argmax(-1)
        return {name: self._put(value, planted, self.gradients[name][which]) for name, value in gradients.items()}

    @staticmethod
    def _put(value: Tensor | Outer, planted: Tensor, crafted: Tensor) -> Tensor:
        own = value.whole() if isinstance(value, Outer) else value
        return torch.where(planted.view(*planted.shape, *[1] * (own.dim() - 2)), crafted, own)


@dataclass(frozen=True, eq=False)
class CraftedGradients(Defense):
    """An example whose picture is `numbered(k)` sends a gradient on the one coordinate `coordinates`[k] alone.

    The coordinate counts along the variable `where`, and the gradient is `length` long. For an audit: put it first in a
    list of defences, before the clip. As `Planted`, for thousands of canaries: it tells them apart by their numbers.
    """

    where: str
    coordinates: Tensor
    length: float

    name = "crafted gradients"
    lengthens = True

    def example_maps(self) -> Sequence[ExampleMap]:
        return (self,)

    def example_rule(self, expected_batch: float) -> ExampleRule:
        return MeanOfExamples()

    def each(self, gradients: Gradients, inputs: tuple[Input, ...], step: Step) -> Gradients:
        """The gradients [lanes, batch, ...], crafted where the picture in `inputs` bears a number."""
        images = inputs[0]
        assert isinstance(images, Tensor)
        pixels = images.flatten(2)  # [lanes, batch, pixels]
        crafted = (pixels[..., BITS:] == GREY).all(-1)
        number = (pixels[..., :BITS].round().long() << torch.arange(BITS, device=pixels.device)).sum(-1)
        found: dict[str, Tensor | Outer] = {}
        for name, value in gradients.items():
            own = value.whole() if isinstance(value, Outer) else value
            kept = torch.where(crafted.view(*crafted.shape, *[1] * (own.dim() - 2)), 0.0, own)
            if name == self.where:
                lane, row = torch.nonzero(crafted, as_tuple=True)
                kept.flatten(2)[lane, row, self.coordinates[number[lane, row]]] = self.length
            found[name] = kept
        return found


def numbered(count: int, like: ImageSet) -> ImageSet:
    """`count` pictures shaped as those of `like` that hold their own number, labels being of no matter."""
    images = torch.full((count, *like.shape), GREY)
    bits = (torch.arange(count)[:, None] >> torch.arange(BITS)) & 1
    images.flatten(1)[:, :BITS] = bits.float()
    return ImageSet(images, torch.zeros(count, dtype=torch.long), like.classes)
