"""Federated optimisation: what a client does with the model, and what the server does with the sum."""

from __future__ import annotations

from dataclasses import dataclass

from fl_core.aggregation import WEIGHTINGS
from fl_core.errors import check_choice, check_number
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import Sampler


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Federated averaging (McMahan et al. 2017, Algorithm 1): local SGD, then the weighted mean of the updates.

    With one local step a round it is FedSGD. `server_lr` scales the mean update; 1 is the paper's.
    """

    sampler: Sampler
    lr: float
    momentum: float = 0.0
    weighting: str = "uniform"
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        check_number("algorithm.lr", self.lr, above=0)
        check_number("algorithm.momentum", self.momentum, minimum=0, below=1)
        check_number("algorithm.server_lr", self.server_lr, above=0)
        check_choice("algorithm.weighting", self.weighting, WEIGHTINGS)

    def local_optimizer(self) -> SGD:
        return SGD(lr=self.lr, momentum=self.momentum)

    def server_step(self, model: Tree, mean_update: Tree) -> Tree:
        """The next global model [replicas, ...]."""
        return {name: value + self.server_lr * mean_update[name] for name, value in model.items()}
