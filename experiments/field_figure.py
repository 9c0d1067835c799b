"""Leakage by a number of the configuration: rounds, cohort size, heterogeneity, clients, an attacker's shadows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from experiments.collect import CellResult, differing
from experiments.figures import BLUE, CEILING, GREY, LOOKS, PAGE, STYLE, looks_of
from experiments.scoring import Row
from experiments.tables import headline_attack
from experiments.views_figure import words_of
from fl_core.errors import InputError

WORDS = {
    "rounds": "rounds",
    "clients": "clients",
    "replicas": "replicas",
    "participation.cohort": "clients asked in a round",
    "partition.alpha": "Dirichlet's α (smaller: more uneven)",
    "attack.references": "shadows of the attacker",
    "sampler.local_epochs": "local epochs",
    "canaries": "share of canaries",
}
"""What a field is called along the axis; others by their own name."""
GROUPS = {"canary": "Canaries", "ordinary": "Ordinary examples"}


@dataclass(frozen=True)
class Along:
    """A field of the configuration, and each cell's value of it."""

    field: str
    values: tuple[float, ...]

    @property
    def logarithmic(self) -> bool:
        """Whether the axis is: all values above 0, the largest ten times the least or more."""
        return min(self.values) > 0 and max(self.values) >= 10 * min(self.values)

    def place(self, value: float) -> float:
        """Where on the axis a value stands: its decimal logarithm, if the axis is logarithmic."""
        return float(np.log10(value)) if self.logarithmic else value


def along(cells: Sequence[CellResult], field: str | None = None) -> Along | None:
    """The one numeric field in which cells differ besides ε, or the `field` that was asked for.

    None where they differ in none, in several or in another way; InputError for a `field` that is no such one.
    """
    names, configs = differing(cells)
    numeric = [
        name
        for name in names
        if all(isinstance(one.get(name), int | float) and not isinstance(one.get(name), bool) for one in configs)
    ]
    if field is not None:
        if field not in numeric:
            raise InputError(
                f"--field is {field!r}; in numbers these cells differ by {', '.join(numeric) or 'nothing'}"
            )
        if len(names) > 1:
            raise InputError(f"these cells differ by {', '.join(names)}, not by {field} alone; sweep one of them")
        numeric = [field]
    same_defence = len({cell.facts["defense"] for cell in cells}) == 1
    if len(names) != 1 or not numeric or not same_defence:
        return None
    return Along(numeric[0], tuple(float(one[numeric[0]]) for one in configs))


def by_field(cells: Sequence[CellResult], title: str, field: str | None = None) -> Figure | None:
    """AUC and TPR of every attack, the first audit and utility over a number.

    None where cells differ otherwise, or no attack has an AUC.

    Where ε varies as well, the lines are the headline attack's, one for each ε.
    """
    axis = along(cells, field)
    groups = [group for group in GROUPS if any(cell.row("membership", "auc", None, group) for cell in cells)]
    if axis is None or not groups:
        return None
    fpr = cells[0].facts["fpr"]
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            len(groups), 3, figsize=(PAGE, 1.95 * len(groups) + 1.0), layout="constrained", squeeze=False
        )
        letters = iter("abcdef")
        for number_, (row, group) in enumerate(zip(grid, groups, strict=True)):
            for axes, metric, words in ((row[0], "auc", "AUC"), (row[1], "tpr", f"TPR at {fpr:.3g} FPR")):
                _frame(axes, axis, words, f"{next(letters)}  {GROUPS[group]}")
                for number, (label, look, mine) in enumerate(_series(cells)):
                    pick = partial(_membership, metric=metric, group=group)
                    _line(axes, axis, cells, mine, pick, number=number, label=label, **look)
                axes.axhline(0.5 if metric == "auc" else fpr, color="0.7", linewidth=0.8, zorder=0)
            if number_ == 0:
                _utility(row[2], axis, cells, next(letters))
            else:
                _audit(row[2], axis, cells, next(letters))
        for column in grid.T:  # the lowest panel of each column names the axis
            [axes for axes in column if axes.get_visible()][-1].set_xlabel(WORDS.get(axis.field, axis.field))
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(title)
    return figure


def _membership(cell: CellResult, name: str, metric: str, group: str) -> Row | None:
    return cell.row("membership", metric, name, group)


def _always(_: CellResult, name: str) -> str:
    return name


Series = tuple[str, dict[str, Any], Callable[[CellResult], str | None]]


def _series(cells: Sequence[CellResult]) -> list[Series]:
    """The lines of a panel: a name, a look, and which attack of a cell it shows, or None for none."""
    epsilons = sorted({cell.epsilon for cell in cells})
    if len(epsilons) > 1:
        first = headline_attack(cells)
        labels = {cell.epsilon: f"{first}, ε = {cell.label()}" for cell in cells}
        return [
            (labels[one], LOOKS[number % len(LOOKS)], lambda cell, e=one: first if cell.epsilon == e else None)  # type: ignore[misc]
            for number, one in enumerate(epsilons)
        ]
    words = words_of(cells)
    return [(words[name], look, partial(_always, name=name)) for name, look in looks_of(list(words)).items()]


def _line(
    axes: Axes, axis: Along, cells: Sequence[CellResult], mine: Callable[[CellResult], str | None],
    pick: Callable[[CellResult, str], Row | None], *, number: int = 0, **style: Any,
) -> None:  # fmt: skip
    found: list[tuple[float, Any, Any, Any]] = []
    for cell, value in zip(cells, axis.values, strict=True):
        name = mine(cell)
        row = None if name is None else pick(cell, name)
        if row is not None and row.value is not None:
            found.append((axis.place(value), row.value, row.low, row.high))
    if not found:
        return
    places, values, low, high = map(np.array, zip(*sorted(found), strict=True))
    spread = 0.008 * (max(map(axis.place, axis.values)) - min(map(axis.place, axis.values)))
    look = {"markersize": 3, "linewidth": 1, "elinewidth": 0.7} | style
    bars = np.maximum([values - low, high - values], 0)
    axes.errorbar(places + spread * (number - 3), values, yerr=bars, **look)


def _frame(axes: Axes, axis: Along, ylabel: str, title: str) -> None:
    values = sorted(set(axis.values))
    if axis.logarithmic or len(values) <= 6:
        axes.set_xticks([axis.place(one) for one in values], [f"{one:g}" for one in values])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left")


def _utility(axes: Axes, axis: Along, cells: Sequence[CellResult], letter: str) -> None:
    _frame(axes, axis, "test accuracy", f"{letter}  Utility")
    for label, look, mine in (
        _series(cells) if len({cell.epsilon for cell in cells}) > 1 else [("", LOOKS[0], lambda _: "")]
    ):
        _line(axes, axis, cells, mine, lambda cell, _: cell.row("utility", "accuracy"), number=3, label=label, **look)
    axes.set_ylim(0, 1.02)


def _audit(axes: Axes, axis: Along, cells: Sequence[CellResult], letter: str) -> None:
    """The bound that the first audit shows, and the most that it could have shown."""
    told = sorted(
        (axis.place(value), cell.audit["epsilon"], cell.audit["ceiling"])
        for cell, value in zip(cells, axis.values, strict=True)
        if cell.audit and cell.audit.get("epsilon") is not None
    )
    if not told:
        axes.set_visible(False)
        return
    _frame(axes, axis, "ε", f"{letter}  Audited lower bound")
    x, bound, most = map(np.array, zip(*told, strict=True))
    axes.plot(x, most, **CEILING | {"color": GREY}, label="most this audit can show")
    axes.plot(x, bound, color=BLUE, marker="o", linestyle="none", label="shown, 95%")
    axes.set_ylim(-0.1, 1.5 * max(most))
    axes.legend(loc="upper left")
