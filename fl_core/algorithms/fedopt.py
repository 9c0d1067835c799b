"""Adaptive and momentum server optimisers: the cohort's mean update taken as a gradient.

Reddi et al. 2021 ("Adaptive Federated Optimization"), Algorithm 2, with Δ the cohort's mean update:
    m ← β₁ m + (1 − β₁) Δ
    v ← β₂ v + (1 − β₂) Δ²                    FedAdam
    v ← v − (1 − β₂) Δ² sign(v − Δ²)          FedYogi
    x ← x + η m / (√v + τ)
Hsu et al. 2019, section 4.3, FedAvgM:
    m ← β m + Δ,   x ← x + η m
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import check_number
from fl_core.optimizers import Tree


@dataclass(frozen=True, kw_only=True)
class FedAvgM(FedAvg):
    """FedAvg with heavy-ball momentum on the server (Hsu et al. 2019)."""

    server_momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("algorithm.server_momentum", self.server_momentum, minimum=0, below=1)

    def server_state(self, model: Tree) -> Tree:
        return {f"momentum/{name}": torch.zeros_like(value) for name, value in model.items()}

    def server_step(self, lr: float, model: Tree, server: Tree, update: Tree, share: Tensor) -> tuple[Tree, Tree]:
        moved = {name: self.server_momentum * server[f"momentum/{name}"] + update[name] for name in model}
        model = {name: value + lr * moved[name] for name, value in model.items()}
        return model, {f"momentum/{name}": value for name, value in moved.items()}


@dataclass(frozen=True, kw_only=True)
class FedAdam(FedAvg):
    """FedAvg with Adam on the server, without bias correction, as in the paper; v starts at τ².

    `tau` bounds the step where updates are small: the paper's degree of adaptivity.
    """

    server_lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("algorithm.beta1", self.beta1, minimum=0, below=1)
        check_number("algorithm.beta2", self.beta2, minimum=0, below=1)
        check_number("algorithm.tau", self.tau, above=0)

    def server_state(self, model: Tree) -> Tree:
        first = {f"first/{name}": torch.zeros_like(value) for name, value in model.items()}
        return first | {f"second/{name}": torch.full_like(value, self.tau**2) for name, value in model.items()}

    def second(self, old: Tensor, square: Tensor) -> Tensor:
        """The next second moment from the last one and Δ²."""
        return self.beta2 * old + (1 - self.beta2) * square

    def server_step(self, lr: float, model: Tree, server: Tree, update: Tree, share: Tensor) -> tuple[Tree, Tree]:
        moments: Tree = {}
        moved: Tree = {}
        for name, value in model.items():
            first = self.beta1 * server[f"first/{name}"] + (1 - self.beta1) * update[name]
            second = self.second(server[f"second/{name}"], update[name].square())
            moments |= {f"first/{name}": first, f"second/{name}": second}
            moved[name] = value + lr * first / (second.sqrt() + self.tau)
        return moved, moments


@dataclass(frozen=True, kw_only=True)
class FedYogi(FedAdam):
    """FedAdam with Yogi's second moment, which forgets large updates more slowly (Zaheer et al. 2018)."""

    def second(self, old: Tensor, square: Tensor) -> Tensor:
        return old - (1 - self.beta2) * square * (old - square).sign()
