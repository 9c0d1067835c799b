"""What gradient inversion gets out of undefended updates, case by case, beside the numbers that were published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import nn

from attacks.reconstruction.presets import prior_alone
from experiments.reconstruction_scores import Public, Truth, score
from experiments.studies import reconstruction_figure
from experiments.studies.base import Setting, Study, Values
from experiments.studies.clients import initial, trained
from experiments.studies.reconstructions import ATTACKS
from experiments.studies.tampering import as_plain
from experiments.studies.victims import Victims, drawn
from experiments.table import Page
from fl_core.errors import InputError, check_choice, check_number
from fl_core.models import accuracy

SHOWN = 6  # victims in the figure, or pictures of the first victims


@dataclass(frozen=True, kw_only=True)
class Case:
    """An attack on `victims` clients with `examples` pictures each, which take `steps` steps an epoch for `epochs`.

    `model` names one of the study's; it is trained on public pictures first, or new. `labels` says whether the attacker
    was told them; `lr` is another rate than the study's. `settings` are the attack's own. `goal` is a mean PSNR in dB
    to reach, or with `of` = median a median one, and `source` whose it is.
    """

    model: str
    trained: bool = False
    attack: str
    victims: int
    examples: int = 1
    steps: int = 1
    epochs: int = 1
    labels: bool = False
    lr: float | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    goal: float | None = None
    of: str = "mean"
    source: str = ""

    def __post_init__(self) -> None:
        check_choice("attack of an entry of study.cases", self.attack, ATTACKS)
        check_choice("of in an entry of study.cases", self.of, ("mean", "median"))
        for name in ("victims", "examples", "steps", "epochs"):
            check_number(f"{name} of an entry of study.cases", getattr(self, name), minimum=1, integer=True)


@dataclass(frozen=True, kw_only=True)
class ReconstructionCases(Study):
    """The `cases` by name, on the study's `models`, each made of a picture's shape and the number of classes.

    A client's steps are at `lr`; a trained model has had `training_epochs` of SGD at `training_lr` on the test set's
    pictures, which are the attacker's public ones as well. A gallery has `gallery` pictures.
    """

    cases: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Callable[..., nn.Module]]
    lr: float
    training_epochs: int
    training_lr: float
    gallery: int

    reads: ClassVar[tuple[str, ...]] = ("data",)
    grid: ClassVar[tuple[str, ...]] = ("cases", "models")

    def __post_init__(self) -> None:
        for name in ("lr", "training_lr"):
            check_number(f"study.{name}", getattr(self, name), above=0)
        check_number("study.training_epochs", self.training_epochs, minimum=1, integer=True)
        check_number("study.gallery", self.gallery, minimum=2, integer=True)
        for name in self.cases:
            case = self.case(name)
            check_choice(f"study.cases.{name}.model", case.model, list(self.models))
            ATTACKS[case.attack](**case.settings)

    def case(self, name: str) -> Case:
        """The case of that name; InputError for a field that no case has."""
        fields = {field.name for field in dataclasses.fields(Case)}
        unknown = sorted(set(self.cases[name]) - fields)
        if unknown:
            raise InputError(f"study.cases.{name} has {unknown[0]}; a case has {', '.join(sorted(fields))}")
        return Case(**self.cases[name])

    def check(self, setting: Setting) -> None:
        pool = setting.pool
        needed = max([self.gallery, *(self.case(name).victims * self.case(name).examples for name in self.cases)])
        if needed > len(pool):
            raise InputError(f"a case or the gallery needs {needed} pictures, and there are {len(pool)}; lower it")
        for build in self.models.values():
            build(shape=pool.shape, classes=len(pool.classes))

    def points(self) -> list[Values]:
        return [{"case": name, "about": dict(self.cases[name]), "model": self._described(name)} for name in self.cases]

    def _described(self, name: str) -> Values:
        """The model of a case in plain values, on which its stored run depends."""
        build: Any = self.models[self.case(name).model]
        return {"factory": getattr(build, "func", build).__qualname__} | dict(getattr(build, "keywords", {}))

    def measure(self, point: Values, setting: Setting) -> Values:
        case = Case(**point["about"])
        pool, public = setting.pool, setting.test
        model = self.models[case.model](shape=pool.shape, classes=len(pool.classes))
        if case.trained:
            start = trained(model, public, self.training_epochs, self.training_lr, setting.seed)
        else:
            start = initial(model, setting.seed, torch.device("cpu"))
        rows = drawn(pool, case.victims, 1, case.examples, setting.seed)
        victims = Victims(
            model=model, start=start, pool=pool, rows=rows, lr=case.lr or self.lr, steps=case.steps, epochs=case.epochs,
            run=setting.seed,
        )  # fmt: skip
        attack = ATTACKS[case.attack](**case.settings)
        updates, knowledge = victims.updates(attack.name), victims.knowledge(labels=case.labels, public=public)
        found = attack.run(updates, knowledge, run=setting.seed, device=setting.device)
        prior = prior_alone(restarts=1, iterations=200).run(updates, knowledge, run=setting.seed)
        others = [row for row in range(len(pool)) if row not in set(rows.flatten().tolist())]
        others = others[: max(self.gallery - rows.numel(), 0)]
        scored = score(
            found,
            Truth(images=victims.images, labels=victims.labels, others=pool.images[others] if others else None),
            Public(images=public.images, labels=public.labels),
            attack=attack.name,
            view=updates.view,
            knowledge=f"{attack.letter}: {knowledge.told()}",
            prior=prior,
        )
        truth, answer = (
            victims.images.flatten(0, 1)[:SHOWN],
            reconstruction_figure.aligned(found, victims.images)[:SHOWN],
        )
        return {
            "rows": [{"by" if name == "attack" else name: value for name, value in row.items()} for row in scored],
            "accuracy": float(accuracy(model, start, pool)[0]),
            "shown": {"truth": as_plain(truth), "found": as_plain(answer.nan_to_num(0.5))},
        }

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return reconstruction_figure.draw(records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return reconstruction_figure.table(records)
