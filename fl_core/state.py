"""What a stack of replicas carries from one round to the next: all that a resumed run needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_core.optimizers import Tree


@dataclass(frozen=True, kw_only=True)
class State:
    """The state after `round` rounds.

    `model`, `server` and what the `defense` keeps there are [replicas, ...]; `clients` is what each client keeps
    [replicas, clients, ...], changed in place from round to round; `past` holds what was sent out in earlier rounds
    while somebody still trains on it.
    """

    round: int
    model: Tree
    server: Tree = field(default_factory=dict)
    defense: Tree = field(default_factory=dict)
    clients: Tree = field(default_factory=dict)
    past: Mapping[int, Tree] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All of it under one name each, for a file; `from_tensors` reads it back."""
        parts = {"model": self.model, "server": self.server, "defense": self.defense, "clients": self.clients}
        parts |= {f"past:{version}": tree for version, tree in self.past.items()}
        named = {f"{part}:{name}": value for part, tree in parts.items() for name, value in tree.items()}
        return {"round": torch.tensor(self.round)} | named

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> State:
        """The state that once gave these `tensors`, on `device`."""
        trees: dict[str, Tree] = {"model": {}, "server": {}, "defense": {}, "clients": {}}
        past: dict[int, Tree] = {}
        for key, value in tensors.items():
            part, _, name = key.partition(":")
            if part == "past":
                version, _, name = name.partition(":")
                past.setdefault(int(version), {})[name] = value.to(device)
            elif part in trees:
                trees[part][name] = value.to(device)
        return State(round=int(tensors["round"]), past=past, **trees)
