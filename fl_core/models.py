"""What the engine needs of a model: its parameters by name, its losses for one lane, its outputs for many."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fl_core.errors import InputError
from fl_core.optimizers import Tree
from fl_core.seeds import from_seed


def parameters_of(model: nn.Module) -> Tree:
    """The model's parameters by name, detached. A model with buffers (BatchNorm's statistics) is refused."""
    if next(model.buffers(), None) is not None:
        raise InputError(
            f"{type(model).__name__} keeps statistics over examples (BatchNorm, say), which leak between clients; "
            "use GroupNorm"
        )
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def initial_parameters(model: nn.Module, seed: int) -> Tree:
    """The same architecture's parameters, newly initialised from `seed` on the CPU by the layers' own rules."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(from_seed(seed).get_state())
        for layer in model.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    return {name: value.cpu() for name, value in parameters_of(model).items()}


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss [batch] in nats of logits [batch, classes] for labels [batch].

    torch's own has no batching rule; under vmap it takes a detour that loads a compiler, seconds in each process.
    """
    return -F.log_softmax(scores, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


class ClassificationLosses:
    """`losses(parameters, images [batch, ...], labels [batch]) -> [batch]`, cross-entropy in nats.

    The parameters are lent to the module for one forward pass, as `functional_call` does, but without its
    bookkeeping, which costs a tenth of a tiny model's whole step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        names = {id(value): name for name, value in model.named_parameters()}
        self._places = [
            (layer._parameters, own, value, names[id(value)])  # layers that share a parameter share its name
            for layer in model.modules()
            for own, value in layer._parameters.items()
            if value is not None
        ]

    def __call__(self, parameters: Tree, images: Tensor, labels: Tensor) -> Tensor:
        lent: dict[str, Any] = parameters  # autograd takes any tensor where a module keeps an nn.Parameter
        try:
            for slots, own, _, name in self._places:
                slots[own] = lent[name]
            return cross_entropy(self.model(images), labels)
        finally:
            for slots, own, value, _ in self._places:
                slots[own] = value


@torch.no_grad()
def logits(model: nn.Module, stacked: Tree, images: Tensor, chunk: int = 1024) -> Tensor:
    """Outputs [lanes, examples, classes] of stacked parameters [lanes, ...] on images [examples, ...], on the CPU."""
    lanes = next(iter(stacked.values())).shape[0]
    return torch.stack(
        [
            torch.cat(
                [
                    functional_call(model, {name: value[lane] for name, value in stacked.items()}, (part,)).cpu()
                    for part in images.split(chunk)
                ]
            )
            for lane in range(lanes)
        ]
    )
