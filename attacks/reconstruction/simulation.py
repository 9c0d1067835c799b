"""What a client would have sent, had it trained on guessed pictures: the attacker's own copy of local training."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from fl_core.models import cross_entropy, statistics_of
from fl_core.optimizers import Tree

Moments = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance [channels] of what entered each normalisation layer, by its name."""


def batch_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The model's layers of batch normalisation that keep running statistics, by name."""
    kinds = nn.modules.batchnorm._BatchNorm
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


@dataclass(frozen=True)
class Simulation:
    """Local training on guessed pictures, differentiable in them.

    `steps` an epoch, each on the next pictures in line, for `epochs`; `lr` is needed where that is more than one step.
    With `own_pictures` each epoch has pictures of its own, as many again, so that no order has to be guessed.
    """

    model: nn.Module
    steps: int = 1
    epochs: int = 1
    lr: float | None = None
    own_pictures: bool = False

    @staticmethod
    def of(
        model: nn.Module,
        steps: int = 1,
        epochs: int = 1,
        lr: float | None = None,
        *,
        own: bool = False,
        device: torch.device | str = "cpu",
    ) -> Simulation:
        """With a copy of the model that trains as the client's does, but keeps no running statistics."""
        mine = copy.deepcopy(model).to(device).train().requires_grad_(False)
        for layer in batch_norms(mine).values():
            layer.track_running_stats = False
        return Simulation(mine, steps, epochs, lr, own)

    @property
    def gradients(self) -> int:
        """How many gradients of a victim's pictures one evaluation takes."""
        return self.epochs

    def __call__(self, parameters: Tree, pixels: Tensor, labels: Tensor) -> tuple[Tree, Moments]:
        """The sum of the gradients of all steps, for one model [...], and the moments in the first step's forward pass.

        `pixels` are [examples, ...], with `own_pictures` [epochs · examples, ...]; `labels` [examples] are numbers or
        chances [examples, classes]. The sum is minus the update over the learning rate.
        """
        whole = len(pixels) // self.epochs if self.own_pictures else len(pixels)
        batch = whole // self.steps
        now, total, moments = parameters, None, None
        for step in range(self.steps * self.epochs):
            epoch, place = divmod(step, self.steps)
            start = epoch * whole * self.own_pictures + place * batch
            mine = labels[place * batch : (place + 1) * batch]
            gradient, seen = self._gradient(now, pixels[start : start + batch], mine)
            moments = seen if moments is None else moments
            total = gradient if total is None else {name: total[name] + value for name, value in gradient.items()}
            if step + 1 < self.steps * self.epochs:
                assert self.lr is not None
                now = {name: now[name] - self.lr * value for name, value in gradient.items()}
        assert total is not None
        assert moments is not None
        return total, moments

    def _gradient(self, parameters: Tree, pixels: Tensor, labels: Tensor) -> tuple[Tree, Moments]:
        def task(parameters: Tree) -> tuple[Tensor, Moments]:
            moments: Moments = {}

            def note(name: str, value: Tensor) -> None:
                axes = [0, *range(2, value.dim())]
                moments[name] = value.mean(axes), value.var(axes, unbiased=False)

            handles = [
                layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
                for name, layer in batch_norms(self.model).items()
            ]
            try:
                scores = functional_call(self.model, parameters, (pixels,))
            finally:
                for handle in handles:
                    handle.remove()
            return cross_entropy(scores, labels).mean(), moments

        found: tuple[Tree, Moments] = grad(task, has_aux=True)(parameters)
        return found


def parameters_among(model: nn.Module, tree: Tree) -> list[str]:
    """The names of the model's parameters that are in `tree`, in the model's order; running statistics are none."""
    return [name for name, _ in model.named_parameters() if name in tree]


def observed_moments(model: nn.Module, sent: Tree, moved: Tree) -> dict[str, tuple[Tensor, Tensor]]:
    """What the attacker knows of the moments [victims, channels] that entered each layer of batch normalisation.

    Where a client returns running statistics, they moved by momentum · (batch − running), which gives the batch's own
    exactly (after one step; the variance is torch's unbiased one). Where it does not, the running ones have to do, as
    in Yin et al. 2021 (GradInversion).
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    kept = statistics_of(model)
    for name, layer in batch_norms(model).items():
        mean, variance = f"{name}.running_mean", f"{name}.running_var"
        if mean not in kept or mean not in sent:
            continue
        rate = layer.momentum if mean in moved and layer.momentum else None
        seen = [sent[one] if rate is None else sent[one] + moved[one] / rate for one in (mean, variance)]
        found[name] = seen[0], seen[1]
    return found
