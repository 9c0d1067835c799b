"""What defences do with per-example gradients inside a client's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from defenses.clipping import Clipping
from defenses.noise import standard_normal
from fl_core.optimizers import Tree
from fl_core.rules import ExampleRule, Gradients, Input, Outer, Step

CLIP = "clip/examples"  # where an adaptive clip stands, kept for each client
_SHORT = "short/examples"
_COUNT = "count/examples"


@dataclass(frozen=True)
class ClipAndNoise(ExampleRule):
    """Clip each example's gradient, sum, add Gaussian noise, divide by a public number.

    `noise` is the deviation of the sum's, in clips. An adaptive clip also counts the gradients that were short enough,
    with noise of deviation `count_noise`, and follows their share of the public number.
    """

    clip: Clipping
    noise: float
    expected_batch: float
    count_noise: float = 0.0

    def sum(self, gradients: Gradients, mask: Tensor, inputs: tuple[Input, ...], step: Step) -> Tree:
        """The clipped sum [lanes, ...] of per-example gradients [lanes, batch, ...]; padded rows count for nothing."""
        factors, short = self.clip.factors(gradients, 2, step.kept[CLIP][:, None] if self.clip.adaptive else None)
        found = _weighted_sum(gradients, factors, mask)
        if self.clip.adaptive:
            found[_SHORT] = ((short.to(mask) - 0.5) * mask).sum(1)
        return found

    def finish(self, sums: Tree, step: Step) -> Tree:
        """The step's gradient [lanes, ...]; each lane draws its noise from its own generator, a count's last."""
        noise = standard_normal(sums, step.generators)
        clip: Tensor | float = self.clip.norm
        if self.clip.adaptive:
            clip = step.kept[CLIP].clone()
            share = (sums.pop(_SHORT) + self.count_noise * noise.pop(_SHORT)) / self.expected_batch + 0.5
            step.kept[CLIP].copy_(self.clip.follow(clip, share))
        return {
            name: (value + noise[name] * _over(self.noise * clip, value)) / self.expected_batch
            for name, value in sums.items()
        }


@dataclass(frozen=True)
class ClipExamples(ExampleRule):
    """Clip each example's gradient and take the mean over the real batch: no noise, and no guarantee."""

    clip: Clipping

    def sum(self, gradients: Gradients, mask: Tensor, inputs: tuple[Input, ...], step: Step) -> Tree:
        factors, short = self.clip.factors(gradients, 2, step.kept[CLIP][:, None] if self.clip.adaptive else None)
        short = (short.to(mask) * mask).sum(1)
        return _weighted_sum(gradients, factors, mask) | {_COUNT: mask.sum(1), _SHORT: short}

    def finish(self, sums: Tree, step: Step) -> Tree:
        count, short = sums.pop(_COUNT), sums.pop(_SHORT)
        if self.clip.adaptive:
            clip = step.kept[CLIP].clone()
            step.kept[CLIP].copy_(torch.where(count > 0, self.clip.follow(clip, short / count.clamp(min=1)), clip))
        return {name: value / _over(count.clamp(min=1), value) for name, value in sums.items()}


@dataclass(frozen=True)
class MeanOfExamples(ExampleRule):
    """The plain mean of per-example gradients, for changes of single gradients that no other rule follows."""

    def sum(self, gradients: Gradients, mask: Tensor, inputs: tuple[Input, ...], step: Step) -> Tree:
        return _weighted_sum(gradients, dict.fromkeys(gradients, mask), mask) | {_COUNT: mask.sum(1)}

    def finish(self, sums: Tree, step: Step) -> Tree:
        count = sums.pop(_COUNT).clamp(min=1)
        return {name: value / _over(count, value) for name, value in sums.items()}


class ExampleMap(Protocol):
    """Changes per-example gradients [lanes, batch, ...] one by one."""

    def each(self, gradients: Gradients, inputs: tuple[Input, ...], step: Step) -> Gradients:
        """The changed gradients, in their shapes; `inputs` are the batch's [lanes, batch, ...]."""
        ...


@dataclass(frozen=True)
class After(ExampleRule):
    """Changes of single gradients, in order, and then a rule that makes the step's of them."""

    maps: Sequence[ExampleMap]
    rule: ExampleRule

    def sum(self, gradients: Gradients, mask: Tensor, inputs: tuple[Input, ...], step: Step) -> Tree:
        for change in self.maps:
            gradients = change.each(gradients, inputs, step)
        return self.rule.sum(gradients, mask, inputs, step)

    def finish(self, sums: Tree, step: Step) -> Tree:
        return self.rule.finish(sums, step)


def _weighted_sum(gradients: Gradients, factors: Tree, mask: Tensor) -> Tree:
    weights = {id(factor): factor * mask for factor in factors.values()}

    def summed(value: Tensor | Outer, weight: Tensor) -> Tensor:
        if isinstance(value, Outer):
            return (weight.unsqueeze(-1) * value.slope).mT @ value.seen
        return torch.einsum("lb,lb...->l...", weight, value)

    return {name: summed(value, weights[id(factors[name])]) for name, value in gradients.items()}


def _over(value: Tensor | float, like: Tensor) -> Tensor | float:
    """Something of each row [rows], to be broadcast over `like` [rows, ...]; a number is one already."""
    return value.view(-1, *[1] * (like.dim() - 1)) if isinstance(value, Tensor) else value
