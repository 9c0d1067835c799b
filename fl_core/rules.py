"""What a defence does with per-example gradients inside a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from fl_core.optimizers import Tree

Input = Tensor | Tree
"""One of a batch's inputs: a tensor, or a tree of them."""


@dataclass(frozen=True)
class Outer:
    """Single examples' gradients [..., out, in] of a linear layer's weight, as products of two vectors each.

    `slope` [..., out] is the loss's gradient at the layer's output, `seen` [..., in] the layer's input. Lengths and
    weighted sums follow from the two, so that nobody has to hold a weight's size for each example.
    """

    slope: Tensor
    seen: Tensor

    def whole(self) -> Tensor:
        """The gradients themselves [..., out, in]."""
        return self.slope.unsqueeze(-1) * self.seen.unsqueeze(-2)


register_pytree_node(Outer, lambda one: ([one.slope, one.seen], None), lambda parts, _: Outer(*parts))

Gradients = Mapping[str, Tensor | Outer]
"""Per-example gradients [lanes, batch, ...] by variable."""


@dataclass(frozen=True)
class Step:
    """What a rule is told of a step.

    `variables` are the lanes' [lanes, ...], `generators` are for noise, one a lane, and `kept` [lanes, ...] is what the
    rule keeps from one step to the next; it changes it in place.
    """

    variables: Tree
    generators: Sequence[torch.Generator]
    kept: Tree


class ExampleRule(Protocol):
    """Turns per-example gradients [lanes, batch, ...] into the step's gradient [lanes, ...], in two moves.

    `sum` is called on the batch, or on one part of it after another where memory is short, and its trees [lanes, ...]
    are added; names of its own have a `/` in them. `finish` makes the step's gradient of them, once, and may draw
    noise. Rows whose mask is 0 are padding and must count for nothing; they hold some other example's gradient, so they
    are finite as long as the model is.
    """

    def sum(self, gradients: Gradients, mask: Tensor, inputs: tuple[Input, ...], step: Step) -> Tree:
        """What a part of the batch adds: its gradients [lanes, part, ...] reduced to [lanes, ...]."""
        ...

    def finish(self, sums: Tree, step: Step) -> Tree:
        """The step's gradient [lanes, ...] of all parts' sums; it may change `sums` and what `step` keeps."""
        ...


class BatchRule(Protocol):
    """Changes a lane's batches before they are trained on."""

    def feed(self, feed: Any, seeds: Sequence[int], classes: int) -> Any:
        """The feed that serves the changed batches of `feed`; `seeds` are one a lane."""
        ...


Examples = Callable[[Tensor, tuple[Input, ...]], Gradients]
"""`examples(mask, inputs)` gives per-example gradients [lanes, batch, ...]; those of an empty batch [lanes, 0, ...]."""


def apply(
    rule: ExampleRule, examples: Examples, mask: Tensor, inputs: tuple[Input, ...], step: Step, at_once: int | None
) -> Tree:
    """The step's gradient [lanes, ...], with `at_once` examples' gradients a lane in memory (None: the whole batch's).

    `mask` and `inputs` are the batch's [lanes, batch, ...].
    """
    width = mask.shape[1]
    at_once = max(1, min(at_once or width, width))
    sums: Tree = {}
    for start in range(0, max(width, 1), at_once):  # an empty batch is a part, too
        part, cut = mask[:, start : start + at_once], part_of(inputs, start, start + at_once)
        gradients = examples(part, cut)
        with torch.no_grad():
            found = rule.sum(gradients, part, cut, step)
            sums = {name: sums[name] + value for name, value in found.items()} if sums else found
    with torch.no_grad():
        return rule.finish(sums, step)


def part_of(inputs: tuple[Input, ...], start: int, stop: int) -> tuple[Input, ...]:
    """The examples [start, stop) of inputs [lanes, batch, ...]."""
    return tuple(
        value[:, start:stop]
        if isinstance(value, Tensor)
        else {name: leaf[:, start:stop] for name, leaf in value.items()}
        for value in inputs
    )
