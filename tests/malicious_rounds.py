"""Rounds of a malicious server that a test plays: what clients answer, and what the server sees of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fl_core.lanes import descend
from fl_core.models import ClassificationLosses
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import ExampleFeed
from fl_core.views import MaliciousServer
from tests.observations import observation

SHAPE, CLASSES = (1, 8, 8), 10


def updates(
    model: nn.Module, sent: Tree, pictures: Tensor, labels: Tensor, plan: Sequence[Sequence[Tensor]], lr: float = 1.0
) -> Tree:
    """The updates [clients, ...] of plain descent from `sent` [clients, ...] on the rows `plan[client][step]`."""
    start = {name: value.contiguous() for name, value in sent.items()}
    feed = ExampleFeed(pictures, labels, plan)
    moved = descend(start, ClassificationLosses(model), feed, SGD(lr=lr), backend="loop")
    return {name: moved[name] - start[name] for name in start}


def seen(*rounds: tuple[Tree, Tree]) -> MaliciousServer:
    """One replica's rounds, each the updates [clients, ...] and what had been sent [clients, ...]."""
    clients = len(next(iter(rounds[0][0].values())))
    return observation(
        MaliciousServer,
        sums={
            at: {name: value.sum(0, keepdim=True) for name, value in moved.items()}
            for at, (moved, _) in enumerate(rounds)
        },
        sent={at: {name: value[None] for name, value in sent.items()} for at, (_, sent) in enumerate(rounds)},
        cohorts={at: torch.arange(clients)[None] for at in range(len(rounds))},
    )


def spread(model: Tree, clients: int) -> Tree:
    """One model for all [clients, ...]."""
    return {name: value.expand(clients, *value.shape) for name, value in model.items()}
