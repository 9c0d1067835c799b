"""What a defence may change, and what it must say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from defenses.accounting import Unit
from defenses.discrete_gaussian import NoisePlan
from defenses.rules import ExampleMap
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.defended import Gathering, Senders, Summed
from fl_core.fleet import Turn
from fl_core.optimizers import Tree
from fl_core.plan import Plan
from fl_core.rules import BatchRule, ExampleRule
from fl_core.summing import Summing


class Defense:
    """No defence at all, and the base of every other: each method is one place of the round where a defence may act.

    A subclass overrides the places where it acts and states, for a view and a unit, what it guarantees there.
    `for_model` and then `prepare` come first and hand out the defence that runs; `check` refuses a plan in which it
    would not do what it says.

    `public_sizes` is True where the clients' real sizes must stay private, so that weights come from public ones, and
    `public_shares` where the denominator of the sum must be public, too; a client's weight is then its size over
    `weight_cap`, at most 1. `protects` is the unit that its ε speaks of. A defence that `lengthens` may leave an update
    longer than it came; after one that is `sealed` it must not be changed any more before it is summed. One that
    `reduces_examples` makes a step's gradient of the examples'. Under one that `masks` the server sees no update, and
    one that has a `grid` sends multiples of its step.
    """

    name: str = "none"
    epsilon: float = math.inf
    delta: float | None = None
    noise_multiplier: float | None = None
    public_sizes: bool = False
    public_shares: bool = False
    weight_cap: float | None = None
    protects: Unit = "example"
    lengthens: ClassVar[bool] = False
    sealed: bool = False
    reduces_examples: bool = False
    masks: bool = False
    grid: NoisePlan | None = None

    @property
    def changes_updates(self) -> bool:
        """Whether it overrides `on_update`."""
        return type(self).on_update is not Defense.on_update

    @property
    def private(self) -> bool:
        """Whether it promises anything to anyone."""
        return self.noise_multiplier is not None or math.isfinite(self.epsilon)

    def for_model(self, model: nn.Module) -> Defense:
        """The defence for a federation that trains `model`; InputError where it does not fit the model."""
        return self

    def check(self, plan: Plan) -> None:
        """Raise InputError where the plan is one that the defence does not cover."""

    def prepare(self, plan: Plan) -> Defense:
        """The defence ready for a run of this plan: calibrated, where there is noise."""
        return self

    def under_masks(self) -> Defense:
        """The prepared defence in a list whose last one masks what it sends."""
        return self

    def behind(self, earlier: Sequence[Defense]) -> Defense:
        """The prepared defence in a list, after these prepared ones."""
        return self

    def server_state(self, message: Tree) -> Tree:
        """What the defence keeps at the server, at first [...], for updates like `message`; names have a `/`."""
        return {}

    def broadcast(self, kept: Tree) -> Tree:
        """What of it the server sends with every model."""
        return {}

    def client_state(self) -> Tree:
        """What the example rule keeps for each client, at first [...]; names have a `/` in them."""
        return {}

    def batch_rule(self) -> BatchRule | None:
        """Changes a client's batches before they are trained on; None leaves them."""
        return None

    def example_maps(self) -> Sequence[ExampleMap]:
        """What of the example rule changes single gradients, in order, for a composition to put before another rule."""
        return ()

    def example_rule(self, expected_batch: float) -> ExampleRule | None:
        """Acts on per-example gradients inside a client's step; None leaves plain training."""
        return None

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        """Acts on each client's update [lanes, ...] before anyone sees it."""
        return updates

    def lacks(self, turn: Turn) -> str | None:
        """What a round has too little of for a sum, in words; None where it has enough."""
        return None

    def summing(self, gathering: Gathering) -> Summing | None:
        """Takes the updates of a round in the server's place; None leaves them to the server."""
        return None

    def on_sum(self, total: Tree, summed: Summed) -> Tree:
        """Acts on the weighted sum [replicas, ...] at the server, before it uses it."""
        return total

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        """What is promised to `unit` ("example" or "client") against `view`."""
        return NoGuarantee(reason="the updates are sent as they are", unit=unit, view=view)

    def guarantee_of(self, part: Defense, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        """What an earlier part of a list guarantees, where this one is its last."""
        return part.guarantee(view, unit, plan)
