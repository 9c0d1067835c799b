"""Fishing for one example in a large batch, or in a sum over clients, by what the output layer lets through.

Wen et al. 2022, "Fishing for User Data in Large-Batch Federated Learning via Gradient Magnification". Of the output
layer only one class's row w is kept, and the other rows are zero. With p the chance of that class, an example of it
passes the gradient (p − 1)·w down to its features, and any other one p·w.

- Class fishing: the class's bias is so low that p is 0 for all. Only the class's own examples pass anything.
- Feature fishing: w is steep and the bias puts the cutoff t on w·h, so that p is 1 above it and 0 below. The output
  layer's own gradient tells how many examples pass, and what their mean feature is, which is the next cutoff; it leaves
  fewer each time, and in the end the one of the largest w·h.

Below the cutoff the class's own examples pass as well, and no output layer can tell class and feature apart at once
(the features' gradient is E_p[W] − W_y, whatever the rows). Here the class round, with the same steep row, is
subtracted from each feature round: what is left is Σ p·w over all examples, of whatever class. That takes clients that
compute their gradients on the same batch every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.seeds import generator
from fl_core.views import MaliciousServer

Play = Callable[[Tree], Tree]
"""A round: maps the model that is sent to all [...] to the mean gradient over all examples [...]."""


@dataclass(frozen=True, kw_only=True)
class Catch:
    """What was isolated: a `gradient` [...] of `passing` examples, in a number of `rounds`.

    It is the gradient of their sum over how many examples the mean is. Of the output layer's variables it holds what
    the subtraction leaves.
    """

    gradient: Tree
    passing: float
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Fishing:
    """Fish with the row of class `target` of the output layer, called `weight` and `bias`.

    `steepness` is what a unit of w·h makes in the logit, `depth` how far down a bias puts a class that is to have no
    chance; `rounds` is the most that are played.
    """

    target: int
    weight: str = "head.weight"
    bias: str = "head.bias"
    steepness: float = 3e3
    depth: float = 1e6
    rounds: int = 24

    name: ClassVar[str] = "fishing"
    needs: ClassVar[type[MaliciousServer]] = MaliciousServer
    letter: ClassVar[str] = "F"
    """An active manipulator (Carletti et al. 2025): it changes the model, and needs no data."""

    def __post_init__(self) -> None:
        check_number("attack.target", self.target, minimum=0, integer=True)
        check_number("attack.rounds", self.rounds, minimum=2, integer=True)
        for name in ("steepness", "depth"):
            check_number(f"attack.{name}", getattr(self, name), above=0)

    def direction(self, model: Tree, run: int = 0) -> Tensor:
        """A random direction [features] of unit length; the larger an example is along it, the sooner it is caught."""
        drawn = torch.randn(self._shape(model)[1], generator=generator(run, "direction of features"))
        found: Tensor = drawn / drawn.norm()
        return found

    def cast(self, model: Tree, direction: Tensor, cutoff: float | None = None) -> Tree:
        """The model that is sent: `model` [...] with an output layer for the class, or for features above a cutoff.

        Above a cutoff of −inf are all.
        """
        classes, _ = self._shape(model)
        weight = torch.zeros_like(model[self.weight])
        weight[self.target] = self.steepness * direction.to(weight)
        # The other classes' biases carry the cutoff: an update of a large number is rounded, and those are not read.
        raised = self.depth if cutoff is None else self.steepness * cutoff
        others = min(max(raised, -self.depth), self.depth) - math.log(classes - 1)  # p is 1/2 at the cutoff
        bias = torch.full_like(model[self.bias], others)
        bias[self.target] = 0.0
        return model | {self.weight: weight, self.bias: bias}

    def run(self, play: Play, model: Tree, examples: int, direction: Tensor) -> Catch:
        """Play rounds until one example is left, or the class has but one.

        `examples` is the number behind the mean gradient, `direction` [features] is what features are measured along. A
        catch of more than one is what is left after the last round, or examples that agree in their features. Raises
        InputError for a gradient that is not finite.
        """
        base = self._played(play, self.cast(model, direction))
        count = -float(base[self.bias][self.target]) * examples  # of the class, as p is 0
        if abs(count - 1) < 0.01:
            return Catch(gradient=base, passing=count, rounds=1)
        found, passing, cutoff, used = base, 0.0, -torch.inf, 1
        while used < self.rounds:
            used += 1
            played = self._played(play, self.cast(model, direction, cutoff))
            left = {name: value - base[name] for name, value in played.items()}
            count = float(left[self.bias][self.target]) * examples
            if count < 0.5 or (passing and count > 0.99 * passing):
                break  # those that passed before agree: none is above their mean, or all are halfway through
            found, passing = left, count
            if count < 1.05:  # a lone example halfway through is alone, too
                break
            # Some example lies above the mean of those that pass, and some does not.
            mean = left[self.weight][self.target].double() / left[self.bias][self.target].double()
            cutoff = float(mean @ direction.double())
        return Catch(gradient=found, passing=passing, rounds=used)

    def single(self, catch: Catch, model: Tree, direction: Tensor) -> tuple[Tree, Tree, int]:
        """A catch of one example as its own gradient, for attacks that invert those: a model, the gradient, a label.

        In the model [...] every example takes the target for certain. With any other label, and the one returned is
        one, its gradient [...] is what was caught.
        """
        classes, _ = self._shape(model)
        label = (self.target + 1) % classes
        part = catch.gradient[self.bias][self.target]  # of the mean: plus or minus one over the number of examples
        gradient = {name: value / part for name, value in catch.gradient.items()}
        feature, ones = gradient[self.weight][self.target], torch.zeros_like(gradient[self.bias])
        ones[self.target], ones[label] = 1.0, -1.0
        gradient |= {self.weight: ones[:, None] * feature, self.bias: ones}
        return self.cast(model, direction, -torch.inf), gradient, label

    def _played(self, play: Play, sent: Tree) -> Tree:
        gradient = play(sent)
        if not all(bool(torch.isfinite(value).all()) for value in gradient.values()):
            raise InputError("the gradient holds NaN or infinite values; nothing can be fished for")
        return gradient

    def _shape(self, model: Tree) -> tuple[int, int]:
        shape = tuple(model[self.weight].shape) if self.weight in model else ()
        if len(shape) != 2 or self.target >= shape[0]:
            raise InputError(
                f"{self.weight} is {shape or 'missing'}; it must be the output layer's, and have class {self.target}"
            )
        return shape[0], shape[1]
