"""Updates of one local step, made in plain PyTorch, for attacks whose answer is known."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.reconstruction.base import Knowledge, Updates
from fl_core.data import digits
from fl_core.models import initial_parameters

SHAPE, CLASSES = (1, 8, 8), 10


def one_step(
    model: nn.Module, images: Tensor, labels: Tensor, *, lr: float = 1.0, seed: int = 0, subtract: bool = False
) -> Updates:
    """Each victim's update [victims, ...] of one step on its `images` [victims, examples, ...], from its own model.

    `subtract` takes the difference of the models, as a server does, with the rounding that comes of it.
    """
    sent, moved = [], []
    for victim in range(len(images)):
        net = copy.deepcopy(model).to(images.dtype)
        start = {n: v.to(images.dtype) for n, v in initial_parameters(model, seed + victim).items()}
        net.load_state_dict(start, strict=False)
        loss = F.cross_entropy(net(images[victim]), labels[victim])
        leaves = dict(net.named_parameters())
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        start = {name: start[name] for name in grads}
        sent.append(start)
        moved.append({n: (start[n] - lr * g) - start[n] if subtract else -lr * g for n, g in grads.items()})
    stacked = [{name: torch.stack([one[name] for one in each]) for name in each[0]} for each in (sent, moved)]
    return Updates(view="server", sent=stacked[0], moved=stacked[1])


def batches(victims: int, examples: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Digits [victims, examples, ...] and their labels [victims, examples]."""
    data, _ = digits(limit=victims * examples, seed=seed)
    images = data.images.to(dtype).unflatten(0, (victims, examples))
    return images, data.labels.unflatten(0, (victims, examples))


def knows(model: nn.Module, examples: int, lr: float | None = 1.0, **more: object) -> Knowledge:
    told = {"shape": SHAPE, "classes": CLASSES} | more
    return Knowledge(model=model, examples=examples, lr=lr, **told)  # type: ignore[arg-type]
