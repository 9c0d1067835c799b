"""What a defence may change, and what it must say."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from defenses.accounting import NoGuarantee, PrivacyStatement, Unit
from fl_core.lanes import ExampleRule
from fl_core.optimizers import Tree
from fl_core.sampling import SamplingEvent


class Defense:
    """No defence at all, and the base of every other: each method is one place of the round where a defence may act.

    A subclass overrides the places where it acts and states, for a view and a unit, what it guarantees there.
    """

    name = "none"
    needs_poisson = False
    public_sizes = False
    """True where the clients' real sizes must stay private, so that weights come from public ones."""

    def prepare(self, events: Sequence[SamplingEvent]) -> Defense:
        """The defence ready for a run whose clients are sampled by `events`: calibrated, where there is noise."""
        return self

    def example_rule(self, expected_batch: float) -> ExampleRule | None:
        """Acts on per-example gradients inside a client's step (`on_examples`); None leaves plain training."""
        return None

    def on_update(self, updates: Tree, generators: Sequence[torch.Generator]) -> Tree:
        """Acts on each client's update [lanes, ...] before anyone sees it; one generator a lane."""
        return updates

    def on_sum(self, total: Tree, generators: Sequence[torch.Generator]) -> Tree:
        """Acts on the weighted sum [replicas, ...] before the server uses it."""
        return total

    def guarantee(self, view: str, unit: Unit, events: Sequence[SamplingEvent]) -> PrivacyStatement | NoGuarantee:
        """What is promised to `unit` ("example" or "client") against `view`; `events` holds one event a client."""
        return NoGuarantee(reason="the updates are sent as they are", unit=unit, view=view)
