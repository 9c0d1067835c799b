"""Single updates out of the sums of many rounds, and what a partition into batches repairs (So et al. 2021).

A federation plays its rounds under secure aggregation, and the server solves the sums of the last ones for each
client's update. How much an update changes from one of its client's rounds to the next is measured, not assumed. The
cohorts are drawn anew in every round, or change by one client a round, or are made of whole batches of clients, with
and without noise in shares. What single updates are good for is shown by a membership attack on them, beside the same
attack on the sums, and on the updates themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from matplotlib.figure import Figure

from attacks.metrics import supports
from experiments.studies import differencing_figure, differencing_table
from experiments.studies.base import Setting, Study, Values
from experiments.studies.differencing_rounds import SCHEMES, measure, participation_of
from experiments.table import Page
from fl_core.errors import InputError, check_choice, check_number

REGIME = ("model", "server_lr", "batch_size", "schemes", "epsilons")


@dataclass(frozen=True, kw_only=True)
class Differences(Study):
    """`rounds` are how many of the last rounds the server solves; as many as the largest are played.

    `regimes` names what is tried: the `model` that the rounds start from (`initial`, or `trained` on public examples),
    the `server_lr`, the `batch_size` of the clients' one local step (null: all examples), the `schemes` that draw
    cohorts, and `epsilons` of the noise in shares over all rounds (null: none).

    Each of `clients` has 2·`examples` candidates, of which it holds each by a fair coin; `cohort` of them are asked in
    a round, in whole batches of `batch` where the scheme says so. `public` clients are the attacker's. `replicas` are
    independent.
    """

    rounds: Sequence[int]
    regimes: Mapping[str, Mapping[str, Any]]
    clients: int
    cohort: int
    batch: int
    examples: int
    public: int
    lr: float
    pretraining: int
    delta: float
    bits: int
    replicas: int
    fpr: float
    resamples: int

    reads: ClassVar[tuple[str, ...]] = ("data", "model")
    grid: ClassVar[tuple[str, ...]] = ("regimes",)

    @property
    def last(self) -> int:
        """How many rounds are played."""
        return max(self.rounds)

    def __post_init__(self) -> None:
        for name in ("clients", "cohort", "batch", "examples", "pretraining"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        check_number("study.public", self.public, minimum=8, integer=True)
        check_number("study.replicas", self.replicas, minimum=2, integer=True)
        check_number("study.bits", self.bits, minimum=2, maximum=62, integer=True)
        check_number("study.resamples", self.resamples, minimum=100, integer=True)
        check_number("study.lr", self.lr, above=0)
        check_number("study.delta", self.delta, above=0, below=1)
        check_number("study.fpr", self.fpr, above=0, below=1)
        if not self.rounds:
            raise InputError("study.rounds is empty; name at least one number of rounds")
        for length in self.rounds:
            check_number("an entry of study.rounds", length, minimum=4, integer=True)
        for name, regime in self.regimes.items():
            _check_regime(f"study.regimes.{name}", regime)
            for scheme in regime["schemes"]:
                participation_of(self, scheme).check(self.clients)
        if not supports(self.fpr, self.replicas * self.clients * self.examples // 2):
            raise InputError(f"study.fpr is {self.fpr:g}, too small for so few non-members; raise it or study.replicas")

    def check(self, setting: Setting) -> None:
        needed, have = 2 * self.clients * self.examples, len(setting.pool) // 2
        if needed > have:
            raise InputError(
                f"study.clients x 2 x study.examples is {needed}, but half of the pool (the other half is public) has "
                f"{have}; lower them or raise data.limit"
            )
        setting.make("model", shape=setting.pool.shape, classes=len(setting.pool.classes))

    def points(self) -> list[Values]:
        return [
            {name: regime[name] for name in ("model", "server_lr", "batch_size")}
            | {"regime": regime_name, "scheme": scheme, "epsilon": epsilon}
            for regime_name, regime in self.regimes.items()
            for epsilon in regime["epsilons"]
            for scheme in regime["schemes"]
        ]

    def measure(self, point: Values, setting: Setting) -> Values:
        return measure(self, setting, point)

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return differencing_figure.draw(records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return differencing_table.table(records, self.fpr)


def _check_regime(name: str, regime: Any) -> None:
    if not isinstance(regime, Mapping) or set(regime) != set(REGIME):
        raise InputError(f"{name} is {regime!r}; it must have {', '.join(REGIME)}, and no more")
    check_choice(f"{name}.model", regime["model"], ("initial", "trained"))
    check_number(f"{name}.server_lr", regime["server_lr"], above=0)
    if regime["batch_size"] is not None:
        check_number(f"{name}.batch_size", regime["batch_size"], minimum=1, integer=True)
    for scheme in regime["schemes"]:
        check_choice(f"an entry of {name}.schemes", scheme, SCHEMES)
    for epsilon in regime["epsilons"]:
        if epsilon is not None:
            check_number(f"an entry of {name}.epsilons (or null)", epsilon, minimum=0.05, maximum=500)
            if regime["batch_size"] is not None:
                raise InputError(f"{name} has noise and a batch_size; set one of them to null")
