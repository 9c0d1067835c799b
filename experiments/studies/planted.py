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
from fl_core.optimizers import Tree
from fl_core.rules import ExampleRule, Gradients, Input, Outer, Step


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
        images = inputs[0]
        assert isinstance(images, Tensor)
        same = (images.unsqueeze(2) == self.markers).flatten(3).all(-1)  # [lanes, batch, canaries]
        planted, which = same.any(-1), same.to(torch.uint8).argmax(-1)
        return {name: self._put(value, planted, self.gradients[name][which]) for name, value in gradients.items()}

    @staticmethod
    def _put(value: Tensor | Outer, planted: Tensor, crafted: Tensor) -> Tensor:
        own = value.whole() if isinstance(value, Outer) else value
        return torch.where(planted.view(*planted.shape, *[1] * (own.dim() - 2)), crafted, own)
