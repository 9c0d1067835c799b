"""What a defence may change, and what it must say."""

from __future__ import annotations

import math
from typing import ClassVar

from defenses.accounting import Unit
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.defended import Senders, Summed
from fl_core.optimizers import Tree
from fl_core.plan import Plan
from fl_core.rules import BatchRule, ExampleRule


class Defense:
    """No defence at all, and the base of every other: each method is one place of the round where a defence may act.

    A subclass overrides the places where it acts and states, for a view and a unit, what it guarantees there. `prepare`
    comes first and hands out the defence that runs; `check` refuses a plan in which it would not do what it says.

    `public_sizes` is True where the clients' real sizes must stay private, so that weights come from public ones, and
    `public_shares` where the denominator of the sum must be public, too; a client's weight is then its size over
    `weight_cap`, at most 1. An update that `lengthens` may leave `on_update` longer than it came; one that is `sealed`
    must not be changed any more before it is summed.
    """

    name: str = "none"
    epsilon: float = math.inf
    delta: float | None = None
    noise_multiplier: float | None = None
    public_sizes: bool = False
    public_shares: bool = False
    weight_cap: float | None = None
    lengthens: ClassVar[bool] = False
    sealed: bool = False
    reduces_examples: bool = False

    @property
    def private(self) -> bool:
        """Whether it promises anything to anyone."""
        return self.noise_multiplier is not None or math.isfinite(self.epsilon)

    def check(self, plan: Plan) -> None:
        """Raise InputError where the plan is one that the defence does not cover."""

    def prepare(self, plan: Plan) -> Defense:
        """The defence ready for a run of this plan: calibrated, where there is noise."""
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

    def example_rule(self, expected_batch: float) -> ExampleRule | None:
        """Acts on per-example gradients inside a client's step; None leaves plain training."""
        return None

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        """Acts on each client's update [lanes, ...] before anyone sees it."""
        return updates

    def on_sum(self, total: Tree, summed: Summed) -> Tree:
        """Acts on the weighted sum [replicas, ...] at the server, before it uses it."""
        return total

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        """What is promised to `unit` ("example" or "client") against `view`."""
        return NoGuarantee(reason="the updates are sent as they are", unit=unit, view=view)
