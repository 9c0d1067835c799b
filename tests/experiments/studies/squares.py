"""The smallest study: squares of whole numbers, each with noise that the seed decides."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from experiments.figures import COLUMN
from experiments.studies.base import Setting, Study, Values, rows
from experiments.table import Page, Table
from fl_core.errors import InputError, check_number
from fl_core.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Squares(Study):
    """`bases` to square; `fails_at` one of them that cannot be, `dies_at` one whose worker is killed once."""

    bases: Sequence[int]
    noise: float = 0.0
    fails_at: int | None = None
    dies_at: int | None = None

    reads: ClassVar[tuple[str, ...]] = ("data", "clients")
    grid: ClassVar[tuple[str, ...]] = ("bases", "fails_at", "dies_at")

    def __post_init__(self) -> None:
        check_number("study.noise", self.noise, minimum=0)
        for base in self.bases:
            check_number("study.bases", base, minimum=1, integer=True)

    def check(self, setting: Setting) -> None:
        if max(self.bases) > len(setting.pool):
            raise InputError(f"study.bases has {max(self.bases)}, more than the {len(setting.pool)} examples")

    def points(self) -> list[Values]:
        return [{"base": base} for base in self.bases]

    def measure(self, point: Values, setting: Setting) -> Values:
        base = point["base"]
        if base == self.fails_at:
            raise ArithmeticError(f"{base} has no square today")
        if base == self.dies_at and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with Path("measured").open("a") as log:
            log.write(f"{base}\n")
        draw = torch.randn(1, generator=generator(setting.seed, "squares", base)).item()
        value = base**2 + self.noise * draw
        return {
            "rows": [{"metric": "square", "value": value}, {"metric": "clients", "count": setting.config["clients"]}],
            "curve": [0.0, value],
        }

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        figure, axes = plt.subplots(figsize=(COLUMN, 2.5))
        squares = rows(records, metric="square")
        axes.plot([row["base"] for row in squares], [row["value"] for row in squares])
        axes.set_title(title)
        return figure

    def table(self, records: Sequence[Values]) -> Page:
        squares = rows(records, metric="square")
        return [Table(["base", "square"], [[str(row["base"]), f"{row['value']:g}"] for row in squares])]


@dataclass(frozen=True, kw_only=True)
class Endless(Squares):
    """Measures what JSON cannot say."""

    def measure(self, point: Values, setting: Setting) -> Values:
        return {"rows": [{"value": float("inf")}]}


def no_study(**_: Any) -> None:
    """Something that a configuration could name, and is no study."""
