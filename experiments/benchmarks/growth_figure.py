"""The figure of `growth`: seconds and memory over clients, cohort, replicas and parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from experiments.benchmarks.growth import PANELS, Panel, memory_of, seconds_of, x_of
from experiments.figures import BLUE, GREY, ORANGE, PAGE, STYLE

SECONDS: dict[str, Any] = {"color": BLUE}
MEMORY: dict[str, Any] = {"color": ORANGE, "linestyle": "--"}
GUIDE: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": ":"}
# A line's marker says which it is, also in grey; its colour and stroke say what is measured.
MARKERS: tuple[dict[str, Any], ...] = (
    {"marker": "o", "markersize": 4},
    {"marker": "s", "markersize": 4, "markerfacecolor": "white"},
)


def draw(record: dict[str, Any]) -> Figure:
    """Four panels, both axes logarithmic: seconds on the left, memory on the right."""
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(PAGE, 4.8), layout="constrained")
        for letter, axes, (panel, words) in zip("abcd", grid.flat, PANELS.items(), strict=True):
            axes.set_title(f"{letter}  {words.title}", loc="left")
            _panel(axes, words, [line for line in record["lines"] if line["panel"] == panel])
        kinds = (
            Line2D([], [], **SECONDS, label="seconds (left axis): median, lowest and highest"),
            Line2D([], [], **MEMORY, label="peak memory (right axis)"),
            Line2D([], [], **GUIDE, label="expected growth of seconds"),
        )
        figure.legend(handles=kinds, loc="outside lower center", ncols=3)
    return figure


def _panel(left: Axes, words: Panel, lines: Sequence[dict[str, Any]]) -> None:
    right = left.twinx()
    right.spines["right"].set_visible(True)
    every_second: list[float] = []
    every_byte: list[float] = []
    for line, marker in zip(lines, MARKERS, strict=False):
        points = line["points"]
        x, seconds = [x_of(point) for point in points], [seconds_of(point) for point in points]
        middle = [median(one) for one in seconds]
        bars = (
            [median(one) - min(one) for one in seconds],
            [max(one) - median(one) for one in seconds],
        )
        left.errorbar(x, middle, bars, **SECONDS, **marker)
        if line["expected"]["seconds"] is not None:
            left.plot(x, [middle[-1] * (one / x[-1]) ** line["expected"]["seconds"] for one in x], **GUIDE, zorder=0)
        seen = [(at, memory) for at, point in zip(x, points, strict=True) if (memory := memory_of(point)) > 0]
        right.plot([at for at, _ in seen], [memory for _, memory in seen], **MEMORY, **marker)
        every_second += [one for each in seconds for one in each]
        every_byte += [memory for _, memory in seen]
    _decades(left, every_second)
    _decades(right, every_byte)
    left.set_xlabel(words.unit)
    left.set_ylabel(words.seconds, color=BLUE)
    right.set_ylabel(f"{words.memory} (MiB)", color=ORANGE)
    if len(lines) > 1:
        named = [
            Line2D([], [], color=GREY, linestyle="none", label=line["label"], **marker)
            for line, marker in zip(lines, MARKERS, strict=False)
        ]
        right.legend(handles=named, loc="upper left")


def _decades(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic, and whole decades, so that every axis has plain ticks; a little more above, for the marks there."""
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if values:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        axes.set_ylim(10.0**low, 1.25 * 10.0 ** max(high, low + 1))
