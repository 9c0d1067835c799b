"""What a run promises, to whom, and how that was accounted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from defenses.accounting import AnyEvent, Event, Unit, epsilon_pld, event_of
from defenses.bounds import TradeOff, trade_off_pld
from fl_core.errors import InputError, check_choice, check_number


class Mechanism(Protocol):
    """What one unit's secret went through, as one view shows it."""

    @property
    def accountant(self) -> str:
        """How ε was computed, in a word: PLD, say."""
        ...

    def relation(self, unit: Unit) -> str:
        """What neighbours are, in words."""
        ...

    def sampler(self) -> str:
        """What was composed, in words."""
        ...

    def epsilon(self, delta: float) -> float:
        """The ε that holds at this δ."""
        ...

    def trade_off(self) -> TradeOff:
        """The ceiling on every ROC."""
        ...


@dataclass(frozen=True)
class Gaussians(Mechanism):
    """Gaussian steps with one noise multiplier: the noise's deviation over the clip."""

    noise_multiplier: float
    event: AnyEvent
    accountant: str = "PLD"

    def relation(self, unit: Unit) -> str:
        relation = event_of(self.event).relation
        if relation == "zero out":
            return f"zero out one {unit}'s part"
        return f"{relation} one {unit}"

    def sampler(self) -> str:
        event = event_of(self.event)
        if event.rate < 1 or not isinstance(self.event, Event):
            if event.relation == "replace":
                drawn = f"draws without replacement, rate {event.rate:.4g}" if event.rate < 1 else "shuffled batches"
            else:
                drawn = f"Poisson, rate {event.rate:.4g}"
            return f"{drawn}, {event.steps} {'visits' if drawn == 'shuffled batches' else 'steps'}"
        return f"{event.steps} step{'s' * (event.steps != 1)} without amplification"

    def epsilon(self, delta: float) -> float:
        return epsilon_pld(self.noise_multiplier, [self.event], delta)

    def trade_off(self) -> TradeOff:
        return trade_off_pld(self.noise_multiplier, [self.event])


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """What a run guarantees to one unit against one view; words are free text, fit to print.

    `relation` says what neighbours are ("add or remove one example"), `accountant` how ε was computed ("PLD"),
    `sampler` what was composed ("Poisson, rate 0.11, 260 steps"); `mechanism` is what they were read from, where it is
    at hand. Raises InputError for numbers that are no guarantee.
    """

    epsilon: float
    delta: float
    unit: Unit
    relation: str
    accountant: str
    sampler: str
    view: str
    mechanism: Mechanism | None = None

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, minimum=0)
        check_number("delta", self.delta, minimum=0, below=1)
        check_choice("unit", self.unit, ("client", "example"))

    @classmethod
    def of(cls, mechanism: Mechanism, *, delta: float, unit: Unit, view: str) -> PrivacyStatement:
        """The statement that a mechanism supports at `delta`."""
        return cls(
            epsilon=mechanism.epsilon(delta),
            delta=delta,
            unit=unit,
            relation=mechanism.relation(unit),
            accountant=mechanism.accountant,
            sampler=mechanism.sampler(),
            view=view,
            mechanism=mechanism,
        )

    def promise(self) -> str:
        """The sentence of a report, without the view."""
        return (
            f"one {self.unit} is protected with ε = {self.epsilon:.4g} at δ = {self.delta:.3g} ({self.relation}), as "
            f"accounted by {self.accountant} for {self.sampler}."
        )

    def in_words(self) -> str:
        """One sentence for a report."""
        return f"Against the view {self.view}, {self.promise()}"


@dataclass(frozen=True)
class NoGuarantee:
    """That a run guarantees nothing to this unit against this view, and why."""

    reason: str
    unit: Unit
    view: str

    @property
    def epsilon(self) -> float:
        """inf, so that statements with and without a guarantee sort and plot together."""
        return math.inf

    def promise(self) -> str:
        """The sentence of a report, without the view."""
        return f"one {self.unit} has no guarantee (ε = ∞): {self.reason}."

    def in_words(self) -> str:
        """One sentence for a report."""
        return f"Against the view {self.view}, {self.promise()}"


def require_guarantee(stated: PrivacyStatement | NoGuarantee, defense: str) -> None:
    """Raise InputError where a defence is asked to hold against a view to which it guarantees nothing."""
    if isinstance(stated, NoGuarantee):
        raise InputError(
            f"against={stated.view}, but defense={defense} guarantees one {stated.unit} nothing there: "
            f"{stated.reason}; choose another defence, or against=null"
        )
