"""A federation small enough to try defences on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.federation import Federation, run
from fl_core.participation import PoissonClients
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.state import State
from fl_core.views import Recorder, Server

CLIENTS, EACH = 6, 4


def pictures(side: int = 4, seed: int = 0) -> ImageSet:
    """Four pictures for each of six clients, of three classes."""
    draw = generator(seed, "small pictures")
    images = torch.rand(CLIENTS * EACH, 1, side, side, generator=draw)
    return ImageSet(images, torch.randint(0, 3, (len(images),), generator=draw), ("a", "b", "c"))


def linear(side: int = 4, bias: bool = False) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 3, bias=bias))


@dataclass(frozen=True)
class AllBut(PoissonClients):
    """All clients but some, who might have come as well."""

    absent: tuple[int, ...] = ()

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return torch.tensor([client for client in range(clients) if client not in self.absent], dtype=torch.long)


def federation(**changes: Any) -> Federation:
    """One replica, six clients with four pictures each, a linear model, two local steps; the defence as it is given."""
    data = changes.get("data", pictures())
    owners = changes.get("owners", torch.arange(len(data)) % CLIENTS)
    settings: dict[str, Any] = {
        "model": linear(data.shape[-1]),
        "data": data,
        "owners": owners,
        "members": torch.ones(len(changes.get("replica_ids", [0])), len(data), dtype=torch.bool),
        "sizes": torch.full((CLIENTS,), EACH),
        "algorithm": FedAvg(sampler=Shuffled(batch_size=2), lr=0.5),
        "rounds": 1,
        "run": 0,
        "replica_ids": [0],
        "backend": "vmap",
    }
    return Federation(**(settings | changes))


def prepared(**changes: Any) -> Federation:
    """The same with its defence prepared for it."""
    whole = federation(**changes)
    return dataclasses.replace(whole, defense=whole.defense.prepare(whole.plan))


def black(side: int = 16) -> ImageSet:
    """Pictures without a light pixel: a linear model learns nothing from them, so that updates are zero."""
    data = pictures(side)
    return dataclasses.replace(data, images=torch.zeros_like(data.images))


def play(federation: Federation, **options: Any) -> tuple[State, Server]:
    recorder = Recorder(view=Server)
    state = run(federation, recorder, **options)
    seen = recorder.observation()
    assert isinstance(seen, Server)
    return state, seen


def flat(tree: dict[str, Tensor], lead: int) -> Tensor:
    """All variables in one row, after the first `lead` axes, in double precision."""
    rows = [value.reshape(*value.shape[:lead], -1).double() for value in tree.values()]
    return torch.cat(rows, lead)
