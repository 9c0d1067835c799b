"""What a study is, and how a configuration makes one.

A study is a frozen dataclass in a module here, and an experiment's file names it:

```yaml
# conf/experiment/rounding.yaml
# @package _global_
name: rounding
title: What rounding costs
study:
  _target_: experiments.studies.rounding.Rounding
  steps: [1, 2, 4]
```

`python -m experiments.run experiment=rounding` then checks everything, measures the study's points side by side (see
`perform`) and writes results/rounding/ from what was measured (see `paper`).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from hydra.utils import get_class
from matplotlib.figure import Figure

from experiments import store
from experiments.configuration import make, read_data, resolve_device
from experiments.executor import Executor
from experiments.table import Page
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_list, check_number

Values = dict[str, Any]
"""Plain values by name: whatever JSON can say, and no NaN or infinity."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a study may use of the configuration around it; `config` holds the fields that it `reads`, and no more."""

    seed: int
    device: torch.device
    config: Values

    @property
    def pool(self) -> ImageSet:
        """The examples of the group `data`, on the CPU."""
        return read_data(self.config["data"])[0]

    @property
    def test(self) -> ImageSet:
        """Its test examples."""
        return read_data(self.config["data"])[1]

    @property
    def fingerprint(self) -> str:
        """The checksum of the data's content; empty where the study reads none."""
        return read_data(self.config["data"])[2] if "data" in self.config else ""

    def make(self, group: str, **more: Any) -> Any:
        """What a group of the configuration describes, such as `model`; `more` are arguments that it does not hold."""
        return make(self.config[group], **more)


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """One question. Its own fields come from `study:` in the configuration; bad ones are refused in `__post_init__`.

    `reads` names the fields of the configuration, besides `seed`, that it may use: nothing else can change its numbers.
    `grid` names those of its own fields that only say which points there are: a longer list then measures the new
    points alone, and `measure` must not look at them.
    """

    reads: ClassVar[tuple[str, ...]] = ("data",)
    grid: ClassVar[tuple[str, ...]] = ()

    def check(self, setting: Setting) -> None:  # noqa: B027
        """Raise InputError for what does not go together with the data or the model. Trains nothing."""

    @abstractmethod
    def points(self) -> list[Values]:
        """What is measured, each by itself, in the order in which it is shown. All different, and not empty."""

    @abstractmethod
    def measure(self, point: Values, setting: Setting) -> Values:
        """What came out at a point: a pure function of the two, its randomness from `setting.seed` alone.

        `rows` holds measured numbers, each as plain values by name; they become the lines of data.csv. Other names are
        for the figure (pictures, curves).
        """

    @abstractmethod
    def figure(self, records: Sequence[Values], title: str) -> Figure:
        """One figure over all points. A record is a point's own values and what was measured there, together."""

    @abstractmethod
    def table(self, records: Sequence[Values]) -> Page:
        """The same numbers as tables, with what a reader must know, without a heading of its own."""


def rows(records: Iterable[Mapping[str, Any]], **wanted: Any) -> list[Values]:
    """The measured rows of `records`, each with its point's values, that have all of the `wanted` ones."""
    flat = [
        {name: value for name, value in record.items() if not isinstance(value, list | dict)} | row
        for record in records
        for row in record["rows"]
    ]
    return [row for row in flat if all(row.get(name) == value for name, value in wanted.items())]


@dataclass(frozen=True, kw_only=True)
class Performance:
    """A study that is ready to be measured: its resolved configuration, its points, and the name of each stored run."""

    config: Values
    study: Study
    setting: Setting
    executor: Executor
    points: tuple[Values, ...]

    @cached_property
    def runs(self) -> dict[str, Values]:
        """The points by the names of their stored runs: hashes of all that they depend on."""
        own = {name: value for name, value in self.config["study"].items() if name not in self.study.grid}
        around = self.setting.config | {"seed": self.setting.seed, "device": self.setting.device.type, "study": own}
        fingerprint = self.setting.fingerprint
        return {store.run_hash(around | {"point": point}, fingerprint): point for point in self.points}


ALWAYS = ("experiment", "study", "name", "title", "seed", "device", "workers", "executor", "debug")
"""Fields that every study takes."""


def build(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> Performance:
    """Check a resolved configuration and make its study; InputError says what cannot be used. Measures nothing.

    A command line's `overrides` of fields that the study does not read are refused: they would do nothing.
    """
    study = make_study(config["study"])
    allowed = [*study.reads, *ALWAYS]
    for given in overrides:
        field = given.lstrip("+~").split("=")[0].split("@")[-1].split(".")[0]
        if field not in allowed:
            raise InputError(f"{config['name']} does not read {field}; it reads {', '.join(sorted(allowed))}")
    store.check_place(config["name"])
    check_number("seed", config["seed"], minimum=0, integer=True)
    if config["workers"] != "auto":
        check_number("workers (or auto)", config["workers"], minimum=1, integer=True)
    setting = Setting(
        seed=config["seed"],
        device=resolve_device(config["device"]),
        config={name: config[name] for name in study.reads},
    )
    made = Performance(
        config={name: config[name] for name in allowed if name in config},
        study=study,
        setting=setting,
        executor=make(config["executor"]),
        points=tuple(study.points()),
    )
    if not made.points or any(point in made.points[:at] for at, point in enumerate(made.points)):
        raise InputError(f"{config['name']} needs at least one point, and none twice; look at its lists in study")
    study.check(setting)
    return made


def make_study(config: Any) -> Study:
    """The study that `study:` describes; InputError where that is none, or has other fields."""
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise InputError(f"study is {config!r}; it must be null, or a _target_ with its fields, as in conf/experiment")
    target = str(config["_target_"])
    try:
        kind = get_class(target)
    except Exception as error:  # whatever the import of that module raises
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"study._target_ is {target!r}, which cannot be imported ({why}); name a study") from None
    if not issubclass(kind, Study):
        raise InputError(f"study._target_ is {target!r}, which is no study; it must be a subclass of {Study.__name__}")
    for field in dataclasses.fields(kind):
        if field.name not in config and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"study.{field.name} has no value; {target} needs one, as in study.{field.name}=...")
        if str(field.type).startswith("Sequence") and field.name in config:
            check_list(f"study.{field.name}", config[field.name], "with commas between its entries, as in [1,2]")
    study = make(config)
    assert isinstance(study, Study)
    return study
