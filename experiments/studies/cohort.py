"""What a sum over n clients leaks, n from 1 to 1000, beside the theory of an average without noise.

- `gaussian`: the known answer, standard normal updates in d dimensions, whose AUC has a closed form (defenses/sums.py).
- `membership`: real updates under secure aggregation alone. Half of the sums hold the target, in the others a fresh
  draw has its place, and everybody else is drawn anew in every sum. The target is a whole client, or one example among
  a client's.
- `noise`: the same with client-level noise in shares, and a server that sees each update with its share.
- `pictures`: every client takes one step on one picture, and the server inverts the sum.

Nothing is fitted to what is reported: the attacker's covariance and clip come from public clients, its rank from public
clients that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from attacks.metrics import supports
from experiments.studies import cohort_figure, cohort_table
from experiments.studies.base import Setting, Study, Values
from experiments.studies.cohort_membership import gaussian, membership, noisy
from experiments.studies.cohort_pictures import pictures
from experiments.table import Page
from fl_core.errors import InputError, check_number


@dataclass(frozen=True, kw_only=True)
class Cohort(Study):
    """`cohorts` are the sizes n; each of `targets` is in `sums` sums and out of as many.

    `bank` clients are the population and `public` ones the attacker's, each with `examples` examples, training at
    `lr`. A `trained` model has seen the public examples `pretraining` times. `local_steps` is the larger of the two
    numbers of local steps tried. `epsilons` are for one round at `delta`, where another client's data may stand in
    the place of one's. `fpr` is that of the table's TPR, `resamples` are behind each interval.

    Pictures: `picture_cohorts` are the sizes, with `victims` sums each; up to `inverted_up_to` clients, pictures are
    also fitted to the sum, in `iterations` steps.
    """

    cohorts: Sequence[int]
    targets: int
    sums: int
    bank: int
    public: int
    examples: int
    lr: float
    pretraining: int
    local_steps: int
    dimensions: Sequence[int]
    epsilons: Sequence[float]
    delta: float
    fpr: float
    resamples: int
    picture_cohorts: Sequence[int]
    victims: int
    inverted_up_to: int
    iterations: int

    reads: ClassVar[tuple[str, ...]] = ("data", "model")
    grid: ClassVar[tuple[str, ...]] = ("dimensions", "epsilons", "picture_cohorts")

    def __post_init__(self) -> None:
        for name in ("targets", "examples", "pretraining", "victims", "iterations"):
            check_number(f"study.{name}", getattr(self, name), minimum=2 if name == "targets" else 1, integer=True)
        check_number("study.sums", self.sums, minimum=1, integer=True)
        check_number("study.bank", self.bank, minimum=2, integer=True)
        check_number("study.public", self.public, minimum=8, integer=True)
        check_number("study.local_steps", self.local_steps, minimum=2, integer=True)
        check_number("study.inverted_up_to", self.inverted_up_to, minimum=0, integer=True)
        check_number("study.resamples", self.resamples, minimum=100, integer=True)
        check_number("study.lr", self.lr, above=0)
        check_number("study.delta", self.delta, above=0, below=1)
        check_number("study.fpr", self.fpr, above=0, below=1)
        for name in ("cohorts", "dimensions", "picture_cohorts"):
            for size in getattr(self, name):
                check_number(f"an entry of study.{name}", size, minimum=1, integer=True)
        for epsilon in self.epsilons:
            check_number("an entry of study.epsilons", epsilon, minimum=0.05, maximum=500)
        if not self.cohorts:
            raise InputError("study.cohorts is empty; name at least one cohort size")
        if not supports(self.fpr, self.targets * self.sums):
            raise InputError(
                f"study.fpr is {self.fpr:g}, which {self.targets} targets x {self.sums} sums without the target cannot "
                "show; raise it, or study.sums"
            )

    def check(self, setting: Setting) -> None:
        if len(setting.test) < self.examples:
            raise InputError(
                f"study.examples is {self.examples}, but a target is made of test examples, and there are only "
                f"{len(setting.test)}; lower it or raise data.test_limit"
            )
        most = max(self.picture_cohorts, default=0)
        if len(setting.pool) < max(most, 16):
            raise InputError(
                f"the pool has only {len(setting.pool)} examples; raise data.limit to at least {max(most, 16)}"
            )
        setting.make("model", shape=setting.pool.shape, classes=len(setting.pool.classes))

    def points(self) -> list[Values]:
        settings = [
            {"model": model, "target": target, "local_steps": 1}
            for model in ("initial", "trained")
            for target in ("client", "example")
        ]
        settings.append({"model": "trained", "target": "client", "local_steps": self.local_steps})
        return [
            *({"kind": "gaussian", "dimension": one} for one in self.dimensions),
            *({"kind": "membership", **one} for one in settings),
            *({"kind": "noise", "model": "initial", "epsilon": one} for one in (None, *self.epsilons)),
            *({"kind": "pictures", "cohort": one} for one in self.picture_cohorts),
        ]

    def measure(self, point: Values, setting: Setting) -> Values:
        kinds: dict[str, Callable[[Cohort, Setting, Values], Values]] = {
            "gaussian": gaussian,
            "membership": membership,
            "noise": noisy,
            "pictures": pictures,
        }
        return kinds[point["kind"]](self, setting, point)

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return cohort_figure.draw(records, title, self.fpr)

    def table(self, records: Sequence[Values]) -> Page:
        return cohort_table.table(records, self.fpr)
