"""Local layers: part of the model never leaves its client.

Li et al. 2021 (FedBN), Algorithm 1, and Arivazhagan et al. 2019 (FedPer), for each round:
    each client k of the cohort:   trains (shared w, own u_k);  sends the change of w, keeps u_k
    the server:                    w ← w + Σ_k p_k (w_k − w)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor

from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import InputError, check_list
from fl_core.optimizers import SGD, Tree


@dataclass(frozen=True, kw_only=True)
class FedBN(FedAvg):
    """FedAvg in which every variable whose name matches one of the `local_layers` stays with its client.

    Patterns are the shell's (`*norm*`, `head.*`). All clients start from the same values. The server never sees a
    local layer, so that its global model keeps their first values; the model that a client uses is `personal`.
    """

    local_layers: Sequence[str] = ("*norm*", "*bn*")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_list("algorithm.local_layers", self.local_layers, "of patterns of variables' names, as in [*norm*]")

    def is_local(self, name: str) -> bool:
        """Whether the variable `name` matches one of the patterns, and so never leaves its client."""
        return any(fnmatch(name, pattern) for pattern in self.local_layers)

    def check(self, names: list[str]) -> None:
        kept = [name for name in names if self.is_local(name)]
        if not kept or len(kept) == len(names):
            raise InputError(
                f"algorithm.local_layers {list(self.local_layers)} matches {'all' if kept else 'none'} of the model's "
                f"variables; name some of {', '.join(names[:12])} (or give the model norm=group)"
            )

    def client_state(self, model: Tree, clients: int) -> Tree:
        return {
            name: value.unsqueeze(1).repeat(1, clients, *[1] * (value.dim() - 1))
            for name, value in model.items()
            if self.is_local(name)
        }

    def broadcast(self, model: Tree, server: Tree) -> Tree:
        return {name: value for name, value in model.items() if not self.is_local(name)}

    def local(self, lr: float, sent: Tree, mine: Tree) -> tuple[Tree, SGD]:
        return super().local(lr, sent | mine, mine)

    def message(self, lr: float, sent: Tree, trained: Tree, mine: Tree, steps: Tensor) -> tuple[Tree, Tree]:
        update = {name: trained[name] - value for name, value in sent.items()}
        return update, {name: trained[name] for name in mine}

    def server_step(self, lr: float, model: Tree, server: Tree, update: Tree, share: Tensor) -> tuple[Tree, Tree]:
        shared, server = super().server_step(lr, {name: model[name] for name in update}, server, update, share)
        return {name: shared.get(name, value) for name, value in model.items()}, server

    def personal(self, model: Tree, clients: Tree) -> Tree:
        count = next(iter(clients.values())).shape[1]
        return {
            name: clients[name] if name in clients else value.unsqueeze(1).expand(-1, count, *value.shape[1:])
            for name, value in model.items()
        }
