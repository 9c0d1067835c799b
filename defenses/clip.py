"""Clipping alone, as a defence: what it guarantees is nothing, and it says so."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from defenses.accounting import Unit
from defenses.base import Defense
from defenses.clipping import Clipping, How, scaled
from defenses.rules import CLIP, ClipExamples
from defenses.statements import NoGuarantee
from fl_core.defended import Senders, Summed
from fl_core.errors import InputError, check_choice
from fl_core.optimizers import Tree
from fl_core.plan import Plan

SHORT = "short/updates"
UPDATE_CLIP = "clip/updates"


@dataclass(frozen=True, kw_only=True)
class Clip(Defense):
    """Clip what one `unit` adds to `clip_norm`: an example's gradient in each local step, or a client's whole update.

    It bounds what one unit can do, and no more: what is left is sent as it is. An adaptive clip is followed by each
    client (examples), or by the server, which is sent who was short enough beside each update (clients).
    """

    unit: Unit = "client"
    clip_norm: float
    clipping: How = "flat"
    quantile: float = 0.5
    quantile_rate: float = 0.2

    name = "clip"

    def __post_init__(self) -> None:
        check_choice("defense.unit", self.unit, ("client", "example"))
        _ = self.clip  # it checks its own numbers

    @property
    def clip(self) -> Clipping:
        """How long the gradient or the update of one unit may be."""
        return Clipping(norm=self.clip_norm, how=self.clipping, quantile=self.quantile, rate=self.quantile_rate)

    @property
    def reduces_examples(self) -> bool:  # type: ignore[override]
        """Whether it clips examples."""
        return self.unit == "example"

    def check(self, plan: Plan) -> None:
        if self.unit == "client" and self.clip.adaptive:
            check_adaptive(plan)

    def client_state(self) -> Tree:
        adapts = self.unit == "example" and self.clip.adaptive
        return {CLIP: torch.tensor(float(self.clip_norm))} if adapts else {}

    def server_state(self, message: Tree) -> Tree:
        adapts = self.unit == "client" and self.clip.adaptive
        return {UPDATE_CLIP: torch.tensor(float(self.clip_norm))} if adapts else {}

    def example_rule(self, expected_batch: float) -> ClipExamples | None:
        return ClipExamples(self.clip) if self.unit == "example" else None

    def broadcast(self, kept: Tree) -> Tree:
        return {name: value for name, value in kept.items() if name == UPDATE_CLIP}

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        return clipped(self.clip, updates, senders) if self.unit == "client" else updates

    def on_sum(self, total: Tree, summed: Summed) -> Tree:
        if SHORT not in total:
            return total
        summed.kept[UPDATE_CLIP] = self.clip.follow(summed.kept[UPDATE_CLIP], total[SHORT] + 0.5)
        return {name: value for name, value in total.items() if name != SHORT}

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(
            reason="clipping bounds what one can add, but there is no noise to hide it in", unit=unit, view=view
        )


def clipped(clip: Clipping, updates: Tree, senders: Senders) -> Tree:
    """Updates [lanes, ...] no longer than the clip; an adaptive one's go with ±½ for who was short enough [lanes]."""
    factors, short = clip.factors(updates, 1, senders.sent[UPDATE_CLIP] if clip.adaptive else None)
    found = scaled(updates, factors)
    if clip.adaptive:
        found[SHORT] = short.to(next(iter(updates.values()))) - 0.5
    return found


def check_adaptive(plan: Plan) -> None:
    """Raise InputError where the server cannot follow the lengths of the updates it gets."""
    if not plan.streams or not plan.synchronous or not plan.even:
        raise InputError(
            "defense.clipping is adaptive; the server follows an equal-weighted mean in rounds of its own, so set "
            "aggregator=mean, algorithm.weighting=uniform and a synchronous fleet, or clipping=flat"
        )
