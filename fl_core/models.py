"""Models that take pixels in [0, 1] and normalise inside, so that an attack's picture is a picture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.seeds import from_seed


class CNN(nn.Module):
    """Two 3x3 convolutions, each halving the picture, and a linear layer.

    `shape` is (channels, height, width), at least 4x4 pixels; `norm` is `none` or `group` (GroupNorm of 4 channels a
    group: no statistics shared between examples, so it goes with differential privacy). Halving is by `stride` or
    by max `pool`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        width: int = 16,
        norm: str = "none",
        halve: str = "pool",
    ) -> None:
        super().__init__()
        check_number("model.width", width, minimum=4, integer=True)
        check_choice("model.norm", norm, ("none", "group"))
        check_choice("model.halve", halve, ("pool", "stride"))
        if norm == "group" and width % 4:
            raise InputError(f"model.width is {width}; GroupNorm needs a multiple of 4")
        channels, height, wide = shape
        if min(height, wide) < 4:
            raise InputError(f"images are {height}x{wide}; the CNN needs at least 4x4 pixels")
        stride = 2 if halve == "stride" else 1
        self.halve = halve
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride, 1)
        self.norm1 = nn.GroupNorm(width // 4, width) if norm == "group" else nn.Identity()
        self.norm2 = nn.GroupNorm(width // 2, 2 * width) if norm == "group" else nn.Identity()
        if halve == "stride":
            height, wide = -(-height // 2), -(-wide // 2)
            height, wide = -(-height // 2), -(-wide // 2)
        else:
            height, wide = height // 4, wide // 4
        self.head = nn.Linear(2 * width * height * wide, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        hidden = (pixels - 0.5) * 2.0
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            hidden = F.relu(norm(conv(hidden)))
            if self.halve == "pool":
                hidden = F.max_pool2d(hidden, 2)
        scores: Tensor = self.head(hidden.flatten(1))
        return scores


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
