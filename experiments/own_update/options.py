"""The options of `experiments.attack_update`: conf/attack_update.yaml, the command line on top of it, and its checks.

Hydra's grammar is read, but nothing is composed: `model=` and `attack=` name groups there, and here a callable and an
attack.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.store import RESULTS, check_place
from experiments.terminal import choose
from fl_core.errors import InputError, check_choice, check_number

OPEN = ("attack", "options")
"""Options that have fields of their own."""

KINDS = ("difference", "model", "gradient")


@dataclass(frozen=True, kw_only=True)
class Options:
    """conf/attack_update.yaml says what each is; `changes` are those to the attack, by dotted name."""

    update: str
    update_is: str
    global_: str
    partial: bool
    model: str
    options: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int | None
    mean: list[float] | None
    std: list[float] | None
    batch_size: int
    lr: float | None
    steps: int
    epochs: int
    labels: list[int] | None
    clip_norm: float | None
    noise: float
    public: str | None
    attack: str | list[str]
    changes: dict[str, Any]
    truth: str | None
    name: str
    out: str | None
    seed: int
    device: str
    backend: str
    debug: bool

    def __post_init__(self) -> None:
        check_choice("update_is", self.update_is, KINDS)
        check_number("batch_size", self.batch_size, minimum=1, integer=True)
        for name in ("steps", "epochs"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        if self.batch_size % self.steps:
            raise InputError(
                f"batch_size is {self.batch_size}, which cannot be split over {self.steps} steps; make it a multiple"
            )
        for name in ("lr", "clip_norm"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        check_number("noise", self.noise, minimum=0)
        check_number("seed", self.seed, minimum=0, integer=True)
        check_choice("backend", self.backend, ("vmap", "loop", "auto"))
        for name in ("partial", "debug"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; allowed: true, false")
        if self.classes is not None:
            check_number("classes", self.classes, minimum=2, integer=True)
        if self.update_is == "gradient" and (self.steps * self.epochs > 1 or self.lr is not None):
            raise InputError("update_is=gradient is of one step, and has no rate; leave steps, epochs and lr out")
        if self.steps * self.epochs > 1 and self.lr is None:
            raise InputError("several local steps can only be simulated with their learning rate; give lr=")
        if self.out is None:
            check_place(self.name)
        elif not isinstance(self.out, str) or (Path(self.out).exists() and not Path(self.out).is_dir()):
            raise InputError(f"out is {self.out!r}; it must be a folder, new or not, or null")
        self._check_labels()

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        whole = isinstance(self.labels, list) and all(type(one) is int for one in self.labels)
        if not whole or min(self.labels, default=0) < 0:
            raise InputError(f"labels is {self.labels!r}; it must be a list of whole numbers from 0, or null")
        if len(self.labels) != self.batch_size:
            raise InputError(
                f"labels has {len(self.labels)} entries for batch_size={self.batch_size} pictures; give one each"
            )

    @property
    def folder(self) -> Path:
        """Where the answer is written: `out`, or results/ and the name."""
        return Path(self.out) if self.out is not None else RESULTS / self.name

    def fingerprint(self) -> str:
        """Of what decides the answer, the files' content with it: what an interrupted run may go on with."""
        about = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("out", "name", "debug", "truth"):
            del about[name]
        digest = hashlib.blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=8)
        for path in (self.update, self.global_):
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()


def read(overrides: Sequence[str]) -> Options:
    """The options of a command line; InputError for one that is unknown, missing, or cannot be read."""
    values: dict[str, Any] = OmegaConf.to_container(  # type: ignore[assignment]
        OmegaConf.create((files("conf") / "attack_update.yaml").read_text(encoding="utf-8"))
    )
    changes: dict[str, Any] = {}
    for one in overrides:
        name, value = _parsed(one)
        head, _, inner = name.partition(".")
        if head not in values:
            raise InputError(choose(f"there is no option {name}", head, list(values)))
        if inner and head not in OPEN:
            raise InputError(f"there is no option {name}: {head} has no fields")
        if head == "attack" and inner:
            changes[inner] = value
        elif inner:
            values[head][inner] = value
        else:
            values[name] = value
    for name, value in values.items():
        if value == "???":
            raise InputError(f"{name} has no value; give it on the command line, as in {name}=...")
    if not isinstance(values["options"], dict):
        raise InputError(f"options is {values['options']!r}; it must be arguments by name, as in options.width=64")
    for name in ("update", "global", "model", "name"):
        if not isinstance(values[name], str):
            raise InputError(f"{name} is {values[name]!r}; it must be text")
    values["shape"] = _shape(values["shape"])
    values["global_"] = values.pop("global")
    return Options(**values, changes=changes)


def _parsed(one: str) -> tuple[str, Any]:
    if "=" not in one:
        raise InputError(f"{one!r} is not of the form option=value")
    name, given = one.split("=", 1)
    try:
        parsed: Override = OverridesParser.create().parse_override(one)
    except HydraException:
        raise InputError(
            f"the value of {name} cannot be read: {given!r}; quote it if it holds special characters"
        ) from None
    if parsed.is_sweep_override():
        raise InputError(f"{name} has several values; one update is attacked at a time")
    if parsed.type != OverrideType.CHANGE:
        raise InputError(f"{one!r} is not of the form option=value")
    return name, parsed.value()


def _shape(given: object) -> tuple[int, int, int]:
    if not isinstance(given, list) or len(given) != 3 or not all(type(one) is int and one > 0 for one in given):
        raise InputError(f"shape is {given!r}; it must be [channels,height,width], as in [3,32,32]")
    if given[0] not in (1, 3):
        raise InputError(f"shape is {given!r}; pictures have 1 or 3 channels, which come first")
    return given[0], given[1], given[2]
