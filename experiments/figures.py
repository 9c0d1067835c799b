"""What all figures share: widths, colours and looks, the ε axis, lines with intervals, and how a figure is saved."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox, BboxBase
from numpy.typing import NDArray

from experiments import figure_data
from experiments.collect import CellResult
from experiments.figure_data import DECORATION
from experiments.scoring import Row
from fl_core.checkpoint import write_bytes

STYLE = Path(__file__).parent / "mirage.mplstyle"
COLUMN, PAGE = 3.35, 7.0
"""Inches: a figure is as wide as a column of a two-column paper, or as its page."""

# Okabe and Ito's palette: told apart by colour-blind readers; line style and marker tell them apart in grey.
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#555555"
AMBER = "#E69F00"
_STROKES: tuple[Any, ...] = ("-", "--", "-.", (0, (3, 1, 1, 1)), (0, (5, 1)), (0, (4, 1, 1, 1, 1, 1)))
LOOKS: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "marker": marker, "linestyle": _STROKES[number % len(_STROKES)]}
    for number, (color, marker) in enumerate(
        zip((BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, "black") * 2, "oD^sv*PXph<>d8", strict=True)
    )
)
"""Of the lines of a panel, in turn: no two have one marker."""
BLIND_LOOKS: tuple[dict[str, Any], ...] = tuple(
    {"color": GREY, "marker": marker, "markerfacecolor": "white", "markeredgewidth": 0.8, "linestyle": ":"}
    for marker in "xs^Dvo"
)
"""Of what is told without looking."""
# With a tick at each cell, so that a study of one finite ε shows it too.
CEILING: dict[str, Any] = {"linestyle": (0, (1, 1)), "linewidth": 1, "marker": "_", "markersize": 5}


def positions(cells: Sequence[CellResult]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Where each cell stands on the x axis: log10 ε, with ∞ one step past the last finite one."""
    finite = [math.log10(cell.epsilon) for cell in cells if math.isfinite(cell.epsilon)]
    last = (max(finite) + 0.9) if finite else 0.0
    x = np.array([math.log10(cell.epsilon) if math.isfinite(cell.epsilon) else last for cell in cells])
    return x, [cell.label() for cell in cells]


def mark_axis(axes: Axes, cells: Sequence[CellResult], ylabel: str, title: str) -> None:
    """The ε axis of a panel, with its heads."""
    named = dict(sorted(zip(*positions(cells), strict=True)))  # once, where variants share an ε
    x = list(named)
    axes.set_xticks(x, list(named.values()))
    axes.set_xlim(x[0] - 0.3, x[-1] + 0.3)
    if len(x) > 1 and any(math.isinf(cell.epsilon) for cell in cells):
        axes.axvline((x[-2] + x[-1]) / 2, color="0.85", linewidth=4, zorder=0, label=DECORATION)
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left")


def line(axes: Axes, cells: Sequence[CellResult], pick: Callable[[CellResult], Row | None], **style: Any) -> None:
    """Points with 95% bars; the step to ∞ is not joined, because it is no step along the axis."""
    x, _ = positions(cells)
    rows = [pick(cell) for cell in cells]
    shown = [i for i, row in enumerate(rows) if row is not None and row.value is not None]
    if not shown:
        return
    apart = [k for k, i in enumerate(shown) if math.isinf(cells[i].epsilon)]
    value, low, high = (np.array([getattr(rows[i], f) for i in shown], dtype=float) for f in ("value", "low", "high"))
    at = x[shown] + style.pop("shift", 0.0)
    at, value, low, high = (np.insert(one, apart, np.nan) for one in (at, value, low, high))  # a gap in the line
    look: dict[str, Any] = {"linestyle": "-", "linewidth": 1, "elinewidth": 0.8} | style
    axes.errorbar(at, value, yerr=np.maximum([value - low, high - value], 0), **look)


def looks_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each attack's line looks, the blind ones apart."""
    blind = [name for name in names if name.startswith("blind")]
    seeing = [name for name in names if name not in blind]
    return {name: LOOKS[number % len(LOOKS)] for number, name in enumerate(seeing)} | {
        name: BLIND_LOOKS[number % len(BLIND_LOOKS)] for number, name in enumerate(blind)
    }


def shade_above(axes: Axes, ceilings: Sequence[tuple[float, float]], top: float = 1.02) -> None:
    """Ceilings (x, y) as a line, and grey for what lies beyond it."""
    x, y = map(np.array, zip(*ceilings, strict=True))
    axes.plot(x, y, color="black", **CEILING, label="ceiling that ε allows")
    axes.fill_between(x, y, top, color="0.93", linewidth=0, zorder=0, label=DECORATION)


def picture(axes: Axes, pixels: np.ndarray[Any, Any], words: str) -> None:
    """One picture [channels, height, width] with words below it."""
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(words)


def encoded(figure: Figure, kind: str) -> bytes:
    """The figure as a PNG or PDF, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with plt.style.context(STYLE):
        _settle(figure)
        figure.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {"Software": None})
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the figure out for good, with its parts at rounded places.

    The solver behind the layout sums in the order of its memory, so that a place differs in its last digits from one
    run to the next.
    """
    figure.set_dpi(plt.rcParams["savefig.dpi"])  # letters are as wide as the PNG's
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    parts = list(figure.subfigs)
    while parts:
        part = parts.pop()
        part.bbox_relative.set_points(_rounded(part.bbox_relative))
        parts += part.subfigs
    for axes in figure.axes:
        axes.set_position(Bbox(_rounded(axes.get_position(original=True))), which="original")


def _rounded(box: BboxBase) -> NDArray[np.float64]:
    return np.round(box.get_points(), 6) + 0.0  # no -0


KINDS = ("png", "pdf", "csv")


def save(figure: Figure, folder: Path, name: str, listed: str | None = None) -> list[str]:
    """Write `figure` as folder/<name>.png and .pdf, and what it shows as .csv; close it, return the names of the files.

    The numbers are read off the figure, unless they are `listed`, as where an area or a colour says them. Raises
    ValueError for a figure that is neither a COLUMN nor a PAGE wide.
    """
    if figure.get_figwidth() not in (COLUMN, PAGE):
        raise ValueError(f"{name} is {figure.get_figwidth():.2f} in wide; a figure is {COLUMN} or {PAGE} in wide")
    files = {kind: encoded(figure, kind) for kind in ("png", "pdf")}
    files["csv"] = (figure_data.as_csv(figure) if listed is None else listed).encode()
    plt.close(figure)
    for kind in KINDS:
        write_bytes(folder / f"{name}.{kind}", files[kind])
    return [f"{name}.{kind}" for kind in KINDS]


def remove(folder: Path, name: str) -> None:
    """Take away what an earlier `save` wrote."""
    for kind in KINDS:
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
