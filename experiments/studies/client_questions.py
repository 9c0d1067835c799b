"""What a federation tells of its clients, beyond who its examples are: four questions, each by view and by defence.

- `participation`: did this client take part? Each client is enrolled in a replica by its own fair coin. The attacker
  has the client's own records, or as many others of its distribution, and shadow federations of the same clients.
- `source`: a record is one of the clients'; whose? Cohorts are drawn anew in every round.
- `properties`: what share of each class does a client, or the cohort, hold? Shadow clients hold other data.
- `existence`: does one record exist anywhere in the federation? It is the only one of its class, or an ordinary one.

Each over the number of clients without a defence, and over ε at one number of clients. ε is for one example in the
clients' own steps (DP-SGD), or for one client: noise by the server where it is asked who took part, and by each client
where it is asked what clients hold. Every number is over independent replicas, with a baseline that never sees a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from experiments.studies import client_questions_figure, client_questions_table
from experiments.studies.base import Setting, Study, Values
from experiments.studies.client_questions_answers import existence, participation, properties, source
from experiments.table import Page
from fl_core.errors import InputError, check_choice, check_number

Measure = Callable[["ClientQuestions", Setting, Values], Values]

QUESTIONS: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "participation": (participation, ("client",)),
    "source": (source, ("example",)),
    "properties": (properties, ("example", "client")),
    "existence": (existence, ("example",)),
}
"""How each question is measured, and the units that ε is tried for."""


@dataclass(frozen=True, kw_only=True)
class ClientQuestions(Study):
    """`questions` are asked with each of `clients` and no defence, and with `at` clients at each of `epsilons`.

    A client holds `examples` records, whose labels it draws from a Dirichlet(`alpha`) distribution of its own, and
    trains in `rounds` rounds at `lr`, for `local_epochs` in Poisson batches of `batch_size`. The attacker has `shadows`
    replicas of its own and `public` examples; `replicas` are attacked, and `worlds` where one record exists or not.
    `rare` is the class whose one record is asked for. `clip_norm` is that of an example's gradient under DP-SGD,
    `update_clip` that of a client's update under DP-FedAvg, both at `delta`.
    """

    questions: Sequence[str]
    clients: Sequence[int]
    epsilons: Sequence[float]
    at: int
    examples: int
    alpha: float
    rounds: int
    lr: float
    local_epochs: int
    batch_size: int
    shadows: int
    replicas: int
    worlds: int
    public: int
    rare: int
    clip_norm: float
    update_clip: float
    delta: float
    resamples: int

    reads: ClassVar[tuple[str, ...]] = ("data", "model")
    grid: ClassVar[tuple[str, ...]] = ("questions", "clients", "epsilons", "at")

    def __post_init__(self) -> None:
        for question in self.questions:
            check_choice("an entry of study.questions", question, QUESTIONS)
        for count in (*self.clients, self.at):
            check_number("an entry of study.clients (or study.at)", count, minimum=2, integer=True)
        for epsilon in self.epsilons:
            check_number("an entry of study.epsilons", epsilon, minimum=0.05, maximum=500)
        for name in ("questions", "clients", "epsilons"):
            if not getattr(self, name):
                raise InputError(f"study.{name} is empty; name at least one")
        for name, minimum in (
            ("examples", 1), ("rounds", 1), ("local_epochs", 1), ("batch_size", 1), ("shadows", 8), ("replicas", 8),
            ("worlds", 8), ("public", 8), ("rare", 0), ("resamples", 100),
        ):  # fmt: skip
            check_number(f"study.{name}", getattr(self, name), minimum=minimum, integer=True)
        for name in ("alpha", "lr", "clip_norm", "update_clip"):
            check_number(f"study.{name}", getattr(self, name), above=0)
        check_number("study.delta", self.delta, above=0, below=1)
        if self.batch_size > self.examples:
            raise InputError(
                f"study.batch_size is {self.batch_size}, but a client holds {self.examples} examples; lower it"
            )

    def check(self, setting: Setting) -> None:
        pool, test = setting.pool, setting.test
        most = max(*self.clients, self.at)
        if 2 * most * self.examples > len(pool):
            raise InputError(
                f"{most} clients with study.examples = {self.examples} records, and as many fresh ones of each, are "
                f"{2 * most * self.examples}, and the pool has {len(pool)}; lower them or raise data.limit"
            )
        if len(test) < self.public:
            raise InputError(f"study.public is {self.public}, and there are {len(test)} test examples; lower it")
        if self.rare >= len(pool.classes):
            raise InputError(f"study.rare is {self.rare}; the data have classes 0 to {len(pool.classes) - 1}")
        if len(test.labels[: self.public].unique()) < len(pool.classes):
            raise InputError(f"study.public is {self.public}, too few to have every class among them; raise it")
        usual = int((pool.labels != self.rare).sum())
        if most * self.examples > usual:
            raise InputError(
                f"{most} clients hold {most * self.examples} records, and the pool has {usual} without the class "
                f"{self.rare}; lower study.examples or raise data.limit"
            )
        setting.make("model", shape=pool.shape, classes=len(pool.classes))

    def points(self) -> list[Values]:
        return [
            {"question": question, "clients": count, "epsilon": epsilon, "unit": unit}
            for question in self.questions
            for count, epsilon, unit in (
                *((count, None, None) for count in dict.fromkeys((*self.clients, self.at))),
                *((self.at, float(epsilon), unit) for unit in QUESTIONS[question][1] for epsilon in self.epsilons),
            )
        ]

    def measure(self, point: Values, setting: Setting) -> Values:
        return QUESTIONS[point["question"]][0](self, setting, point)

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return client_questions_figure.draw(records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return client_questions_table.table(records)
