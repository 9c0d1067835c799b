"""Lines with intervals and small pictures, as the studies' figures draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from experiments.studies.base import Values


def line(
    axes: Axes, lines: Sequence[Values], x: str, *, color: str, linestyle: Any = "-", shift: float = 1.0, **style: Any
) -> None:
    """`value` against `x` of the rows that have one, with their intervals; `shift` moves all points by that factor."""
    shown = sorted((one for one in lines if one["value"] is not None), key=lambda one: float(one[x]))
    if not shown:
        return
    at = shift * np.array([one[x] for one in shown], dtype=float)
    value, low, high = (np.array([one[field] for one in shown], dtype=float) for field in ("value", "low", "high"))
    bars = np.maximum([value - low, high - value], 0)
    axes.errorbar(at, value, yerr=bars, color=color, linestyle="none", capsize=1.5, **style)
    axes.plot(at, value, color=color, linestyle=linestyle, linewidth=1)


def pictures(
    figure: Figure, place: SubplotSpec, columns: Sequence[tuple[str, Sequence[Any] | None]], title: str
) -> None:
    """Columns of small pictures under their headings, empty where there are none, and a panel's title above all."""
    around = figure.add_subplot(place)
    around.set_axis_off()
    around.set_title(title, loc="left", pad=18)
    most = max(len(shown) for _, shown in columns if shown is not None)
    grid = place.subgridspec(most, len(columns), wspace=0.06, hspace=0.06)
    for column, (heading, shown) in enumerate(columns):
        for line_number in range(most):
            axes = figure.add_subplot(grid[line_number, column])
            axes.set(xticks=[], yticks=[], box_aspect=1)
            for side in axes.spines.values():
                side.set(visible=True, linewidth=0.4, color="0.6")
            if shown is None:
                axes.set_facecolor("0.93")
            elif line_number < len(shown):
                pixels = np.asarray(shown[line_number], dtype=float)
                pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
                axes.imshow(pixels.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if line_number == 0:
                axes.set_title(heading, fontsize=5.5, fontweight="normal", pad=2)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    if value is None:
        return "—"
    if value and not 1e-3 <= abs(value) < 1e5:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10**exponent:.1f}·10^{exponent}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def entry(one: Values | None, digits: int = 3) -> str:
    """A row's value and interval for a table."""
    if one is None or one["value"] is None:
        return "—"
    return f"{number(one['value'], digits)} [{number(one['low'], digits)}, {number(one['high'], digits)}]"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(each) + " |" for each in [heads, ["---"] * len(heads), *lines])
