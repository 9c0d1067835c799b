"""An easy problem to try defences on: which quarter of a picture is bright."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import MLP
from fl_core.data import ImageSet
from fl_core.federation import Federation, federate, run
from fl_core.models import accuracy
from fl_core.optimizers import Tree
from fl_core.sampling import Shuffled
from fl_core.seeds import generator

SHAPE = (1, 4, 4)


def quarters(count: int, purpose: str = "train") -> ImageSet:
    """Noisy 4x4 pictures, as many of each of four classes, in turn."""
    labels = torch.arange(count) % 4
    images = 0.5 * torch.rand(count, *SHAPE, generator=generator(0, purpose))
    for place in range(4):
        down, right = 2 * (place // 2), 2 * (place % 2)
        images[labels == place, :, down : down + 2, right : right + 2] += 0.5
    return ImageSet(images, labels, ("a", "b", "c", "d"))


def toy(defense: Defense, model: nn.Module | None = None, **changes: Any) -> Federation:
    """Three clients with 40 examples each and six rounds, unless told otherwise; `defense` is told the model."""
    model = model or MLP(SHAPE, 4, hidden=(12,))
    settings: dict[str, Any] = {
        "clients": 3,
        "rounds": 6,
        "algorithm": FedAvg(sampler=Shuffled(local_epochs=2, batch_size=9), lr=0.3, momentum=0.5),
        "backend": "vmap",
    }
    return federate(model, quarters(120), defense=defense.for_model(model), **(settings | changes))


def trained(federation: Federation) -> Tree:
    return run(federation).model


def toy_accuracy(federation: Federation) -> float:
    """The final model's on fresh pictures, the mean over replicas."""
    return float(accuracy(federation.model, trained(federation), quarters(400, "test")).mean())
