"""Lines with intervals and small pictures, as the studies' figures draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from experiments.studies.base import Values
from experiments.table import Entry, Number


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
    axes.errorbar(at, value, yerr=bars, **{"color": color, "linestyle": linestyle, "linewidth": 1} | style)


def pictures(axes: Axes, columns: Sequence[tuple[str, Sequence[Any] | None]]) -> None:
    """Columns of small pictures [channels, height, width] under their headings; grey where there are none."""
    most = max(len(shown) for _, shown in columns if shown is not None)
    channels, height, width = np.shape(next(shown for _, shown in columns if shown)[0])
    gap = max(1, height // 14)
    sheet = np.ones((most * (height + gap) - gap, len(columns) * (width + gap) - gap, 3))
    for column, (heading, shown) in enumerate(columns):
        left = column * (width + gap)
        for line_number in range(most):
            pixels = np.full((channels, height, width), 0.9)
            if shown is not None and line_number < len(shown):
                pixels = np.asarray(shown[line_number], dtype=float).clip(0, 1)
            top = line_number * (height + gap)
            sheet[top : top + height, left : left + width] = pixels.transpose(1, 2, 0)
        axes.text(left + width / 2, -gap, heading, ha="center", va="bottom", fontsize=6, linespacing=1.1)
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("N")


LEAKS, HOLDS = "#F6D5C3", "#D5EBDF"


def cells(
    axes: Axes, heads: Sequence[str], widths: Sequence[float], lines: Sequence[Sequence[tuple[str, bool | None]]]
) -> None:
    """A table in a figure. A cell's second entry says whether it leaks, or holds, which its colour tells; None: plain.

    `widths` are shares of the axes and add up to 1.
    """
    left = np.concatenate([[0.0], np.cumsum(widths)])
    height = 1 / (len(lines) + 1)
    for column, head in enumerate(heads):
        axes.text(left[column] + 0.01, 1 - height / 2, head, fontweight="bold", va="center", fontsize=6)
    for number_, line_ in enumerate(lines, start=1):
        bottom = 1 - (number_ + 1) * height
        for column, (text, leaks) in enumerate(line_):
            if leaks is not None:
                color = LEAKS if leaks else HOLDS
                size = widths[column] - 0.01, 0.92 * height
                axes.add_patch(Rectangle((left[column], bottom), *size, color=color, linewidth=0))
            axes.text(left[column] + 0.01, bottom + 0.46 * height, text, va="center", fontsize=6)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_axis_off()


def number(value: float | None, digits: int = 3) -> Entry:
    """A number for a table; a dash where there is none."""
    return "—" if value is None else Number(value=value, digits=digits, significant=True)


def entry(one: Values | None, digits: int = 3) -> Entry:
    """A row's value and interval for a table."""
    if one is None or one["value"] is None:
        return "—"
    return Number(value=one["value"], low=one.get("low"), high=one.get("high"), digits=digits, significant=True)
