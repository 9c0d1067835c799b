"""FedProx: local training on a leash.

Li et al. 2020 ("Federated Optimization in Heterogeneous Networks"), Algorithm 2:
    each client k of the cohort:   minimise  ℓ_k(w_k) + μ/2 ‖w_k − w‖²,  perhaps in part only
    the server:                    w ← w + Σ_k p_k (w_k − w)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import check_number
from fl_core.optimizers import SGD, Tree


@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """FedAvg whose clients descend on their loss plus `mu`/2 times the squared distance to the model they were sent.

    The proximal term belongs to the step, not to the examples: under DP-SGD it is neither clipped nor noised. A
    fleet's partial work (`fleet.partial`) is the paper's varying γ.
    """

    mu: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("algorithm.mu", self.mu, minimum=0)

    def local(self, lr: float, sent: Tree, mine: Tree) -> tuple[Tree, SGD]:
        return sent, ProximalSGD(lr=lr, momentum=self.momentum, weight_decay=self.weight_decay, mu=self.mu)


@dataclass(frozen=True, kw_only=True)
class ProximalSGD(SGD):
    """SGD on loss + μ/2 ‖w − w₀‖², where w₀ is where it started."""

    mu: float

    def slots(self, variables: Tree) -> Tree:
        return super().slots(variables) | {f"start/{name}": value.clone() for name, value in variables.items()}

    def direction(self, variables: Tree, gradients: Tree, slots: Tree) -> list[Tensor]:
        away = torch._foreach_sub(list(variables.values()), [slots[f"start/{name}"] for name in variables])
        return list(torch._foreach_add(super().direction(variables, gradients, slots), away, alpha=self.mu))
