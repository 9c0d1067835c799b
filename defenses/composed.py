"""Several defences, one after another, that know together what they guarantee."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from defenses.accounting import Unit
from defenses.base import Defense
from defenses.rules import After, ExampleMap, MeanOfExamples
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.defended import Gathering, Senders, Summed
from fl_core.errors import InputError
from fl_core.fleet import Turn
from fl_core.optimizers import Tree
from fl_core.plan import Plan
from fl_core.rules import BatchRule, ExampleRule
from fl_core.summing import Summing


@dataclass(frozen=True)
class Composed(Defense):
    """`defenses` in their order, at every place where they act.

    Formal guarantee: to each unit and view the best of what its parts state, each as it stands alone. What comes before
    a part is a part of what a client computes, and what comes after it works on what it already released
    (post-processing), so that the order makes no difference to ε. Two mechanisms that both hide the same unit could be
    accounted more tightly together; that is not done. Refused is what would make a part's statement false: an update
    that may get longer after it was clipped for noise that the server adds, or that changes after the client put its
    noise in; what the server learns of clients beside a sum that is noised; and two parts at a place that has room for
    one. Masks come last; under them a server is promised what one is that sees sums alone (see `secagg`).
    """

    parts: tuple[Defense, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("defense.defenses is empty; name at least one, or set defense=none")
        reducing = [part.name for part in self.parts if part.reduces_examples]
        summing = [part.name for part in self.parts if part.public_shares]
        batching = [part.name for part in self.parts if part.batch_rule() is not None]
        for names, place in (
            (reducing, "clip an example's gradient"),
            (summing, "noise a sum"),
            (batching, "change a batch"),
        ):
            if len(names) > 1:
                raise InputError(
                    f"defense.defenses has {' and '.join(names)}; only one may {place}, so drop the others"
                )
        private = [part.name for part in self.parts if part.private and part.protects == "example"]
        if private and batching:
            raise InputError(
                f"defense.defenses has {batching[0]} with {private[0]}; mixed batches let one example into several "
                f"clipped gradients, and {private[0]} is accounted for one: drop either"
            )
        telling = [part.name for part in self.parts if not part.public_shares and part.server_state({})]
        if telling and summing:
            raise InputError(
                f"defense.defenses has an adaptive {telling[0]} with {summing[0]}; the server follows a count of "
                f"clients to which no noise is accounted: make {summing[0]}'s own clipping adaptive, or {telling[0]}'s "
                "flat"
            )
        for part, later in itertools.pairwise(self.parts):
            if part.masks:
                raise InputError(
                    f"defense.defenses has {later.name} after {part.name}; what is masked can only be summed, so put "
                    f"{part.name} last, and only once"
                )
        for number, part in enumerate(self.parts):
            for later in self.parts[number + 1 :]:
                if part.sealed and later.changes_updates:
                    raise InputError(
                        f"defense.defenses has {later.name} after {part.name}, whose noise is in the updates already; "
                        f"put {later.name} before it"
                    )
                if part.public_shares and later.lengthens:
                    raise InputError(
                        f"defense.defenses has {later.name} after {part.name}; it can make an update longer than the "
                        f"clip that the noise is made for, so put {later.name} before it"
                    )

    @property
    def name(self) -> str:  # type: ignore[override]
        """The parts' names, in order."""
        return " + ".join(part.name for part in self.parts)

    @property
    def _promising(self) -> Defense:
        """The part whose ε a plot is drawn against: the first that promises anything."""
        return next((part for part in self.parts if part.private), self.parts[0])

    @property
    def epsilon(self) -> float:  # type: ignore[override]
        """That of the first part that promises anything; inf where none does."""
        return self._promising.epsilon

    @property
    def delta(self) -> float | None:  # type: ignore[override]
        """That of the same part."""
        return self._promising.delta

    @property
    def noise_multiplier(self) -> float | None:  # type: ignore[override]
        """That of the same part."""
        return self._promising.noise_multiplier

    @property
    def protects(self) -> Unit:  # type: ignore[override]
        """That of the same part."""
        return self._promising.protects

    @property
    def public_sizes(self) -> bool:  # type: ignore[override]
        """Whether any part keeps the clients' sizes private."""
        return any(part.public_sizes for part in self.parts)

    @property
    def public_shares(self) -> bool:  # type: ignore[override]
        """Whether any part needs the sum's denominator to be public."""
        return any(part.public_shares for part in self.parts)

    @property
    def weight_cap(self) -> float | None:  # type: ignore[override]
        """The first that a part sets; None where none does."""
        return next((part.weight_cap for part in self.parts if part.weight_cap is not None), None)

    @property
    def reduces_examples(self) -> bool:  # type: ignore[override]
        """Whether a part makes a step's gradient of the examples'."""
        return any(part.reduces_examples for part in self.parts)

    @property
    def masks(self) -> bool:  # type: ignore[override]
        """Whether a part, which is then the last one, hides the updates from the server."""
        return self.parts[-1].masks

    def _each(self, change: Callable[[Defense], Defense]) -> Composed:
        return replace(self, parts=tuple(change(part) for part in self.parts))

    def check(self, plan: Plan) -> None:
        for part in self.parts:
            part.check(plan)

    def prepare(self, plan: Plan) -> Defense:
        # Who takes part under masks learns who else does: noise is calibrated to what it is told then.
        plan = plan.in_the_open() if self.masks else plan
        parts = [part.prepare(plan) for part in self.parts]
        if self.masks:
            parts = [part.under_masks() for part in parts]
        return replace(self, parts=(*parts[:-1], parts[-1].behind(parts[:-1])))

    def server_state(self, message: Tree) -> Tree:
        return _joined(part.server_state(message) for part in self.parts)

    def broadcast(self, kept: Tree) -> Tree:
        return _joined(part.broadcast(kept) for part in self.parts)

    def client_state(self) -> Tree:
        return _joined(part.client_state() for part in self.parts)

    def batch_rule(self) -> BatchRule | None:
        return next((rule for part in self.parts if (rule := part.batch_rule()) is not None), None)

    def for_model(self, model: nn.Module) -> Defense:
        return self._each(lambda part: part.for_model(model))

    def example_maps(self) -> Sequence[ExampleMap]:
        return [change for part in self.parts for change in part.example_maps()]

    def example_rule(self, expected_batch: float) -> ExampleRule | None:
        """The one rule that makes a step's gradient, after what the parts change in single examples' gradients."""
        reducing = [part for part in self.parts if not part.example_maps()]
        rule = next((rule for part in reducing if (rule := part.example_rule(expected_batch)) is not None), None)
        maps = self.example_maps()
        return After(maps, rule or MeanOfExamples()) if maps else rule

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        for part in self.parts:
            updates = part.on_update(updates, senders)
        return updates

    def lacks(self, turn: Turn) -> str | None:
        return self.parts[-1].lacks(turn)

    def summing(self, gathering: Gathering) -> Summing | None:
        return self.parts[-1].summing(gathering)

    def on_sum(self, total: Tree, summed: Summed) -> Tree:
        for part in self.parts:
            total = part.on_sum(total, summed)
        return total

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        stated = [self.parts[-1].guarantee_of(part, view, unit, plan) for part in self.parts]
        best = min(stated, key=lambda one: one.epsilon)
        if math.isfinite(best.epsilon):
            return best
        reasons = dict.fromkeys(
            f"{part.name}: {one.reason}"
            for part, one in zip(self.parts, stated, strict=True)
            if isinstance(one, NoGuarantee)
        )
        return NoGuarantee(reason="; ".join(reasons), unit=unit, view=view)


def composed(defenses: Sequence[Defense | None] | Mapping[str, Defense | None]) -> Defense:
    """The composition of a list, or of named parts in their order (so that a sweep can reach into one).

    A part that is None is none, so that a sweep can leave it out.
    """
    if not isinstance(defenses, Mapping | Sequence) or isinstance(defenses, str):
        raise InputError(f"defense.defenses is {defenses!r}; give defences by name, as conf/defense/composed.yaml does")
    given = defenses.values() if isinstance(defenses, Mapping) else defenses
    parts = tuple(part for part in given if part is not None)
    for part in parts:
        if not isinstance(part, Defense):
            raise InputError(
                f"defense.defenses has {part!r}; each must have a _target_ and options, as in conf/defense"
            )
    return parts[0] if len(parts) == 1 else Composed(parts)


def _joined(trees: Iterable[Tree]) -> Tree:
    found: Tree = {}
    for tree in trees:
        twice = sorted(found.keys() & tree.keys())
        if twice:
            raise InputError(f"defense.defenses has two parts that keep {twice[0]}; let only one of them be adaptive")
        found |= tree
    return found
