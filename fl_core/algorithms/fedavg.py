"""Federated averaging, and the shape that every other algorithm fills.

McMahan et al. 2017, Algorithm 1, for each round:
    each client k of the cohort:   w_k ← w;  for its batches b:  w_k ← w_k − η ∇ℓ(w_k; b)
    the server:                    w ← w + η_s Σ_k p_k (w_k − w)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fl_core.aggregation import WEIGHTINGS, Aggregator, Mean
from fl_core.errors import check_choice, check_number
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import Sampler
from fl_core.schedules import Constant, Schedule


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """Local SGD, then the weighted mean of the updates.

    The clients descend at `lr` times its schedule's factor, with `momentum` and `weight_decay`, on the batches that
    `sampler` draws. `weighting` (`uniform` or `by_examples`) and `aggregator` make one update of the cohort's, which
    the server follows at `server_lr` times its own schedule's factor; 1 is the paper's.

    Each method below is one place where an algorithm may differ. A tree of a *lane* has a leading [lanes]: one entry
    a client that trains; the server's has [replicas].
    """

    sampler: Sampler
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Constant)
    weighting: str = "uniform"
    aggregator: Aggregator = field(default_factory=Mean)
    server_lr: float = 1.0
    server_schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        check_number("algorithm.lr", self.lr, above=0)
        check_number("algorithm.momentum", self.momentum, minimum=0, below=1)
        check_number("algorithm.weight_decay", self.weight_decay, minimum=0)
        check_number("algorithm.server_lr", self.server_lr, above=0)
        check_choice("algorithm.weighting", self.weighting, WEIGHTINGS)

    def check(self, names: list[str]) -> None:
        """Raise InputError where the algorithm does not fit a model with variables of these names."""

    def server_state(self, model: Tree) -> Tree:
        """What the server keeps beside the model [replicas, ...], at the start."""
        return {}

    def client_state(self, model: Tree, clients: int) -> Tree:
        """What each client keeps between its turns [replicas, clients, ...], at the start."""
        return {}

    def broadcast(self, model: Tree, server: Tree) -> Tree:
        """What a client of the cohort is sent [replicas, ...]; extras beside the model have a `/` in their names."""
        return model

    def local(self, lr: float, sent: Tree, mine: Tree) -> tuple[Tree, SGD]:
        """A lane's first variables and its optimiser, from what it was sent and what it keeps."""
        return sent, SGD(lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def message(self, lr: float, sent: Tree, trained: Tree, mine: Tree, steps: Tensor) -> tuple[Tree, Tree]:
        """What a lane sends to the server after its `steps` [lanes], and what it keeps from now on."""
        return {name: value - sent[name] for name, value in trained.items()}, mine

    def server_step(self, lr: float, model: Tree, server: Tree, update: Tree, share: Tensor) -> tuple[Tree, Tree]:
        """The next global model and server state, from the cohort's one `update` [replicas, ...].

        `share` [replicas] is the part of all clients whose updates are in it.
        """
        return {name: value + lr * update[name] for name, value in model.items()}, server

    def personal(self, model: Tree, clients: Tree) -> Tree | None:
        """Each client's own model [replicas, clients, ...]; None where all use the global one."""
        return None
