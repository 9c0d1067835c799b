"""Where in a round a defence may act, and what it is told there. `defenses.base.Defense` is the home of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fl_core.cohort import Cohort
from fl_core.fleet import Turn
from fl_core.optimizers import Tree
from fl_core.plan import Plan
from fl_core.rules import BatchRule, ExampleRule
from fl_core.summing import Summing
from fl_core.weighing import Weighing


@dataclass(frozen=True)
class Senders:
    """Who sends some updates [lanes, ...]: what each was `sent` [lanes, ...], the defence's own broadcast with it, and
    its generator; `cohort` is the number of senders a round that the plan expects."""

    sent: Tree
    generators: Sequence[torch.Generator]
    cohort: float


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """A round whose updates are about to come, for a defence under which the server does not see them.

    `turns` says who was asked and who was lost, `cohort` and `weighing` who takes part and what its update counts;
    `sent` [replicas, ...] is what went out. `run` and `replica_ids` are what seeds are made of.
    """

    run: int
    replica_ids: Sequence[int]
    turns: Sequence[Turn]
    cohort: Cohort
    weighing: Weighing
    sent: Tree


@dataclass(frozen=True)
class Summed:
    """Where a sum [replicas, ...] was taken.

    `largest_share` is the most that one client's update counts in it. `draws(key)` gives generators for noise, one a
    replica: the same for the same key in every round, so that noise of an earlier round can be drawn again. `kept`
    [replicas, ...] is what the defence keeps at the server; it puts new tensors in place of the old.
    """

    round: int
    largest_share: float
    draws: Callable[[str], Sequence[torch.Generator]]
    kept: Tree


class Defended(Protocol):
    """A defence, as the engine sees it."""

    public_sizes: bool
    public_shares: bool
    weight_cap: float | None
    masks: bool

    def check(self, plan: Plan) -> None:
        """InputError where the defence does not cover such a run; asked before anything is trained."""
        ...

    def prepare(self, plan: Plan) -> Defended:
        """The defence with its noise calibrated to the plan: the one that runs."""
        ...

    def server_state(self, message: Tree) -> Tree:
        """What it keeps at the server before round 0 [...], for updates with the variables of `message`."""
        ...

    def broadcast(self, kept: Tree) -> Tree:
        """What the server sends beside the model, of what it has `kept` [replicas, ...]."""
        ...

    def client_state(self) -> Tree:
        """What its example rule keeps for each client from step to step and round to round, at first [...]."""
        ...

    def batch_rule(self) -> BatchRule | None:
        """What changes a client's batches; None leaves them."""
        ...

    def example_rule(self, expected_batch: float) -> ExampleRule | None:
        """What makes a step's gradient of single examples'; None trains on the batch's mean loss.

        `expected_batch` is that of the client with the largest public size, in examples.
        """
        ...

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        """The updates [lanes, ...] as they leave their clients, with what is sent beside them."""
        ...

    def lacks(self, turn: Turn) -> str | None:
        """Why this turn's cohort is too small for a sum, in words; None where it will do."""
        ...

    def summing(self, gathering: Gathering) -> Summing | None:
        """Who sums a round's updates in the server's place; None leaves them to the server."""
        ...

    def on_sum(self, total: Tree, summed: Summed) -> Tree:
        """The weighted sum [replicas, ...] as the server uses it; what is kept changes in `summed`."""
        ...
