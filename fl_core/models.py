"""What the engine needs of a model: its parameters by name, its losses for one lane, its outputs for many."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice
from fl_core.optimizers import Tree
from fl_core.seeds import from_seed

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def statistics_of(model: nn.Module) -> frozenset[str]:
    """The names of what the model itself keeps of the examples it has seen: BatchNorm's running means and variances."""
    return frozenset(
        name for name, value in model.named_buffers() if value.is_floating_point() and name in model.state_dict()
    )


def check_trainable(model: nn.Module) -> None:
    """Raise InputError for a model that draws randomness which no seed here governs, or that has no parameters."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats and layer.momentum is None:
            raise InputError(f"{type(model).__name__}: {name} averages over all batches ever seen; give it a momentum")
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise InputError(
                f"{type(model).__name__} has dropout ({name}), whose draws no seed here governs; set its p to 0"
            )
    if next(model.parameters(), None) is None:
        raise InputError(f"{type(model).__name__} has no parameters to train")


def takes_channels_last(model: nn.Module) -> bool:
    """Whether a CPU can train the model on pictures whose channels lie last, as most train faster.

    oneDNN's gradient of the kernel of a strided 1x1 convolution writes outside its memory there where the channels do
    not come in eights (torch 2.13 on AVX2: the process dies, or worse, does not).
    """
    return not any(
        isinstance(layer, nn.Conv2d)
        and max(layer.kernel_size) == 1
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups % 8
        for layer in model.modules()
    )


def variables_of(model: nn.Module) -> Tree:
    """What a federation trains and averages, by name, detached: the parameters, then the statistics."""
    statistics = statistics_of(model)
    held = {name: value for name, value in model.named_buffers() if name in statistics}
    return {name: value.detach().clone() for name, value in (dict(model.named_parameters()) | held).items()}


def initial_parameters(model: nn.Module, seed: int) -> Tree:
    """The same architecture's variables, newly initialised from `seed` on the CPU by the layers' own rules."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(from_seed(seed).get_state())
        for layer in model.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    return {name: value.cpu() for name, value in variables_of(model).items()}


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss [batch] in nats of logits [batch, classes] for labels [batch], or their chances [batch, classes].

    torch's own has no batching rule; under vmap it takes a detour that loads a compiler, seconds in each process.
    """
    if labels.is_floating_point():
        return -(F.log_softmax(scores, -1) * labels).sum(-1)
    return -F.log_softmax(scores, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


class ClassificationLosses:
    """`losses(variables, images [batch, ...], labels [batch]) -> [batch]`, cross-entropy in nats.

    The variables are lent to the module for one forward pass in training mode, as `functional_call` does, but without
    its bookkeeping, which costs a tenth of a tiny model's whole step. With a `precision` of `bfloat16` convolutions and
    matrix products run in it, as `torch.autocast` decides; variables, gradients and the loss stay as they are.
    """

    def __init__(self, model: nn.Module, precision: Precision = "float32") -> None:
        check_choice("precision", precision, PRECISIONS)
        self.model, self.lower = model.train(), precision == "bfloat16"
        statistics = statistics_of(model)
        names = {id(value): name for name, value in model.named_parameters()}
        names |= {id(value): name for name, value in model.named_buffers() if name in statistics}
        self._places: list[tuple[dict[str, Any], str, Tensor, str]] = [
            (slots, own, value, names[id(value)])  # layers that share a parameter share its name
            for layer in model.modules()
            for slots in (layer._parameters, layer._buffers)
            for own, value in slots.items()
            if value is not None and id(value) in names
        ]

    def __call__(self, variables: Tree, images: Tensor, labels: Tensor) -> Tensor:
        lent: dict[str, Any] = variables  # autograd takes any tensor where a module keeps an nn.Parameter
        try:
            for slots, own, _, name in self._places:
                slots[own] = lent[name]
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.lower):
                return cross_entropy(self.model(images), labels)
        finally:
            for slots, own, value, _ in self._places:
                slots[own] = value


def accuracy(model: nn.Module, stacked: Tree, data: ImageSet) -> Tensor:
    """The share of `data` that each of the stacked models gets right [lanes], float64, on the CPU."""
    return (logits(model, stacked, data.images).argmax(-1) == data.labels.cpu()).double().mean(1)


@torch.no_grad()
def logits(model: nn.Module, stacked: Tree, images: Tensor, chunk: int = 1024) -> Tensor:
    """Outputs [lanes, examples, classes] of stacked variables [lanes, ...] on images [examples, ...], on the CPU.

    The model is asked in evaluation mode: BatchNorm uses its running statistics, never those of the queries.
    """
    lanes = next(iter(stacked.values())).shape[0]
    model.eval()
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
