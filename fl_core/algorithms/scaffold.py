"""SCAFFOLD: control variates against client drift.

Karimireddy et al. 2020, Algorithm 1 with Option II, for each round:
    each client i of the cohort S:   y ← x;  K times:  y ← y − η_l (∇ℓ(y) − c_i + c)
                                     c_i⁺ ← c_i − c + (x − y)/(K η_l)
                                     sends  y − x  and  c_i⁺ − c_i
    the server:                      x ← x + η_g mean(y − x);   c ← c + |S|/N mean(c_i⁺ − c_i)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_core.aggregation import Mean
from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import InputError
from fl_core.optimizers import SGD, Tree

CONTROL = "control/"


@dataclass(frozen=True, kw_only=True)
class SCAFFOLD(FedAvg):
    """FedAvg whose local steps are corrected by the difference of the server's and the client's control variates.

    All controls start at zero. The server sends its own control beside the model, and a client sends its control's
    change beside its update, both under names that start with `control/`: an observer sees them too.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("momentum", self.momentum), ("weight_decay", self.weight_decay)):
            if value:
                raise InputError(
                    f"algorithm.{name} is {value}; SCAFFOLD's controls are means of plain gradients, so set it to 0"
                )
        if not isinstance(self.aggregator, Mean):
            raise InputError("SCAFFOLD needs the mean of its controls; set aggregator=mean")

    def server_state(self, model: Tree) -> Tree:
        return {CONTROL + name: torch.zeros_like(value) for name, value in model.items()}

    def client_state(self, model: Tree, clients: int) -> Tree:
        return {
            CONTROL + name: value.new_zeros(value.shape[0], clients, *value.shape[1:]) for name, value in model.items()
        }

    def broadcast(self, model: Tree, server: Tree) -> Tree:
        return model | server

    def local(self, lr: float, sent: Tree, mine: Tree) -> tuple[Tree, SGD]:
        start = {name: value for name, value in sent.items() if not name.startswith(CONTROL)}
        return start, CorrectedSGD(
            lr=lr, correction={name: sent[CONTROL + name] - mine[CONTROL + name] for name in start}
        )

    def message(self, lr: float, sent: Tree, trained: Tree, mine: Tree, steps: Tensor) -> tuple[Tree, Tree]:
        update = {name: value - sent[name] for name, value in trained.items()}
        changes = {}
        for name, moved in update.items():
            each = steps.to(moved).view(-1, *[1] * (moved.dim() - 1))
            # A client that took no step has learned nothing about its gradient, and keeps its control.
            changes[CONTROL + name] = (each > 0) * (-sent[CONTROL + name] - moved / (each.clamp(min=1) * lr))
        return update | changes, {name: mine[name] + change for name, change in changes.items()}

    def server_step(self, lr: float, model: Tree, server: Tree, update: Tree, share: Tensor) -> tuple[Tree, Tree]:
        model, _ = super().server_step(lr, model, server, update, share)
        return model, {
            name: value + share.to(value).view(-1, *[1] * (value.dim() - 1)) * update[name]
            for name, value in server.items()
        }


@dataclass(frozen=True, kw_only=True)
class CorrectedSGD(SGD):
    """SGD along the gradient plus a constant `correction` [lanes, ...] of each lane's own."""

    correction: Tree = field(default_factory=dict, repr=False)

    def slots(self, variables: Tree) -> Tree:
        return super().slots(variables) | {f"correction/{name}": self.correction[name] for name in variables}

    def direction(self, variables: Tree, gradients: Tree, slots: Tree) -> list[Tensor]:
        found = super().direction(variables, gradients, slots)
        return list(torch._foreach_add(found, [slots[f"correction/{name}"] for name in variables]))
