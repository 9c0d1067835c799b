"""Descent steps as pure elementwise functions, so that one definition serves one lane and a stack of lanes alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fl_core.errors import check_number

Tree = dict[str, Tensor]


class Optimizer(Protocol):
    """How variables follow their gradients, without autograd. Its state is its `slots`."""

    def slots(self, variables: Tree) -> Tree:
        """The state at the start [lanes, ...], for variables [lanes, ...]."""
        ...

    def step(self, variables: Tree, gradients: Tree, slots: Tree, step: int) -> None:
        """Move `variables` and `slots` in place, all lanes' [lanes, ...] or one's [...]; `step` counts from 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with heavy-ball momentum and L2 weight decay, in torch.optim.SGD's convention.

    A subclass that bends the gradient first overrides `direction`.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, minimum=0, below=1)
        check_number("weight_decay", self.weight_decay, minimum=0)

    def slots(self, variables: Tree) -> Tree:
        if not self.momentum:
            return {}
        return {name: torch.zeros_like(value) for name, value in variables.items()}

    def direction(self, variables: Tree, gradients: Tree, slots: Tree) -> list[Tensor]:
        """What a step follows, in the variables' order: the gradient plus the decay's pull."""
        found = [gradients[name] for name in variables]
        if self.weight_decay:
            found = list(torch._foreach_add(found, list(variables.values()), alpha=self.weight_decay))
        return found

    def step(self, variables: Tree, gradients: Tree, slots: Tree, step: int) -> None:
        moving = list(variables.values())
        directions = self.direction(variables, gradients, slots)
        if self.momentum:
            velocity = [slots[name] for name in variables]
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, directions)
            directions = velocity
        torch._foreach_add_(moving, directions, alpha=-self.lr)


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, its rate divided by ten at 3/8, 5/8 and 7/8 of the way; `signed`, on the gradient's sign.

    Both the schedule and the sign are Geiping et al.'s (2020). `box` keeps every variable inside [low, high] after each
    step, but for those named in `free`.
    """

    lr: float
    steps: int
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    signed: bool = True
    box: tuple[float, float] | None = (0.0, 1.0)
    free: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("steps", self.steps, minimum=1, integer=True)

    def slots(self, variables: Tree) -> Tree:
        return {
            f"{moment}.{name}": torch.zeros_like(value)
            for name, value in variables.items()
            for moment in ("first", "second")
        }

    def step(self, variables: Tree, gradients: Tree, slots: Tree, step: int) -> None:
        passed = sum(8 * step >= eighths * self.steps for eighths in (3, 5, 7))
        lr = self.lr * 0.1**passed
        for name, value in variables.items():
            direction = gradients[name].sign() if self.signed else gradients[name]
            first, second = slots[f"first.{name}"], slots[f"second.{name}"]
            first.lerp_(direction, 1 - self.beta1)
            second.lerp_(direction.square(), 1 - self.beta2)
            corrected = second.div(1 - self.beta2 ** (step + 1)).sqrt_().add_(self.eps)
            value.addcdiv_(first, corrected, value=-lr / (1 - self.beta1 ** (step + 1)))
            if self.box is not None and name not in self.free:
                value.clamp_(*self.box)
