"""The numbers of a figure as CSV, read off its own artists, so that what is drawn and what is listed cannot differ.

A line a point: the panel, its axes' labels, the series, and x and y with the ends of their bars or bands. Where an axis
has names in the place of numbers (categories, or ε on a scale of its own), the nearest name stands beside the number.
A map of colours gives a line a cell, with its `value`. A panel of pictures has no numbers: its captions are listed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FuncFormatter
from numpy.typing import NDArray

HEADS = (
    "panel", "x axis", "y axis", "series", "x", "x name", "x low", "x high", "y", "y name", "y low", "y high", "value",
)  # fmt: skip

DECORATION = "_decoration"
"""The label of an area or a line that is drawn for the eye, and is not listed."""

Point = dict[str, Any]


def as_csv(figure: Figure) -> str:
    """All points of a figure, to 12 digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, HEADS, lineterminator="\n")
    writer.writeheader()
    for point in points(figure):
        writer.writerow({head: _printed(value) for head, value in point.items()})
    return out.getvalue()


def _printed(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def points(figure: Figure) -> list[Point]:
    """The points of a figure's panels, with the HEADS that they have."""
    names = _names(figure)
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]
    found = []
    for number, axes in enumerate(panels):
        about = _about(axes, panels, number)
        here = [about | point for point in _panel(axes, names)]
        found += here or [about | {"series": text} for text in _captions(axes)]
    return found


def _about(axes: Axes, panels: Sequence[Axes], number: int) -> Point:
    """What a panel is called, and its axes: in a grid the words of the first panel of the column, or of the row."""
    spec = axes.get_subplotspec()
    beside: list[Axes] = []
    above: list[Axes] = []
    if spec is not None:
        for other in panels:
            its = other.get_subplotspec()
            if its is None or its.get_gridspec() is not spec.get_gridspec():
                continue
            above += [other] if its.colspan == spec.colspan else []
            beside += [other] if its.rowspan == spec.rowspan else []

    def first(pick: Any, *groups: Sequence[Axes]) -> str:
        words = [pick(one) for group in ([axes], *groups) for one in group]
        return " ".join(next((one for one in words if one), "").split())

    return {
        "panel": first(_title, above, beside) or f"panel {number + 1}",
        "x axis": first(lambda one: one.get_xlabel(), above[::-1]),
        "y axis": first(lambda one: one.get_ylabel(), beside),
    }


def _title(axes: Axes) -> str:
    return next((words for place in ("left", "center", "right") if (words := axes.get_title(loc=place))), "")


def _captions(axes: Axes) -> list[str]:
    """The words in and under a panel without numbers."""
    words = [axes.get_ylabel(), axes.get_xlabel(), *(text.get_text() for text in axes.texts)]
    return [" ".join(one.split()) for one in words if one.strip()]


# Series


def _panel(axes: Axes, names: dict[Any, str]) -> Iterator[Point]:
    for series, points_ in series_of(axes, names):
        for point in points_:
            yield {"series": series} | point | _ticks(axes, point)


def series_of(axes: Axes, names: dict[Any, str] | None = None) -> list[tuple[str, list[Point]]]:
    """What a panel shows, by name: bars, points with bars, lines, bands, scattered points and maps of colours.

    A line that only joins points which are listed already, or a band around a line, makes no series of its own.
    """
    names = names or {}
    found: list[tuple[str, list[Point]]] = []
    parts: set[Any] = set()
    marked: set[tuple[str, float, float]] = set()
    for container in axes.containers:
        parts |= set(container.get_children())
        if isinstance(container, ErrorbarContainer):
            listed = _bars(container)
            color = to_hex(container.lines[0].get_color())
            marked |= {(color, one["x"], one["y"]) for one in listed}
            found.append((_name(container, container.lines[0], names), listed))
        elif isinstance(container, BarContainer):
            found.append((_name(container, None, names), _columns(container)))
    fills = [one for one in axes.collections if isinstance(one, PolyCollection) and one not in parts]
    bands = [_band(one) for one in fills if one.get_label() != DECORATION]
    # A band that fills bars which are listed already says nothing more.
    barred = {_ends(point) for _, listed in found for point in listed}
    bands = [band for band in bands if not all(_ends(point) in barred for point in band)]
    for line in axes.lines:
        if line in parts or line.get_label() == DECORATION or not len(_data(line)):
            continue
        listed = _line(line, axes)
        color = to_hex(line.get_color())
        if len(listed) > 1 and all((color, one.get("x"), one.get("y")) in marked for one in listed):
            continue
        for band in [one for one in bands if [at["x"] for at in one] == [at.get("x") for at in listed]]:
            inside = all(low["y low"] <= at["y"] <= low["y high"] for low, at in zip(band, listed, strict=True))
            if inside and "y low" not in listed[0]:
                listed = [at | around for at, around in zip(listed, band, strict=True)]
                bands.remove(band)
        spans = bool(listed) and not {"x", "y"} <= set(listed[0])
        found.append((_name(line, line, names) or "level" * spans, listed))
    found += [("shaded", band) for band in bands]
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            at = np.ma.getdata(collection.get_offsets())
            found.append((_name(collection, None, names), [{"x": float(x), "y": float(y)} for x, y in at]))
    for image in axes.images:
        array: NDArray[np.float64] = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if array.ndim == 2 and image.get_cmap().name not in ("gray", "grey"):
            cells = [{"x": float(x), "y": float(y), "value": float(one)} for (y, x), one in np.ndenumerate(array)]
            found.append(("", [cell for cell in cells if not np.isnan(cell["value"])]))
    return found


def _bars(container: ErrorbarContainer) -> list[Point]:
    """The points of an error bar, with the ends of its bars along x and y."""
    data, _, stems = container.lines
    listed: list[Point] = [{"x": float(x), "y": float(y)} for x, y in _data(data)]
    for stem, axis in zip(stems, _directions(container, stems), strict=True):
        for point, path in zip(listed, stem.get_paths(), strict=True):
            ends = np.asarray(path.vertices)
            low, high = ends[:, axis] if len(ends) else (np.nan, np.nan)
            point |= {f"{'xy'[axis]} low": float(low), f"{'xy'[axis]} high": float(high)}
    return [one for one in listed if not np.isnan([one["x"], one["y"]]).any()]  # a gap in a line is no point


def _directions(container: ErrorbarContainer, stems: Sequence[LineCollection]) -> list[int]:
    """0 for a bar along x, 1 along y: matplotlib lists those along x first."""
    return [axis for axis, has in ((0, container.has_xerr), (1, container.has_yerr)) if has][: len(stems)]


def _columns(container: BarContainer) -> list[Point]:
    listed = []
    for bar in container.patches:
        (x, y), width, height = bar.get_xy(), bar.get_width(), bar.get_height()
        middle = (x + width / 2, height) if container.orientation == "vertical" else (width, y + height / 2)
        listed.append({"x": float(middle[0]), "y": float(middle[1])})
    return listed


def _line(line: Line2D, axes: Axes) -> list[Point]:
    """The points of a line; of one that spans the panel, its one number."""
    x_counts, y_counts = line.get_transform().contains_branch_seperately(axes.transData)
    data = _data(line)
    if x_counts and y_counts:
        return [{"x": float(x), "y": float(y)} for x, y in data if not (np.isnan(x) or np.isnan(y))]
    return [{"y": float(data[0][1])}] if y_counts else [{"x": float(data[0][0])}] if x_counts else []


def _data(line: Line2D) -> Any:
    return np.column_stack([np.asarray(line.get_xdata(orig=False)), np.asarray(line.get_ydata(orig=False))])


def _ends(point: Point) -> tuple[float, ...]:
    return tuple(round(float(point.get(name, np.nan)), 9) for name in ("x", "y low", "y high"))


def _band(collection: PolyCollection) -> list[Point]:
    """What `fill_between` fills: at each x its lower and upper end."""
    ends: dict[float, list[float]] = {}
    for path in collection.get_paths():
        for x, y in np.asarray(path.vertices):
            ends.setdefault(float(x), []).append(float(y))
    return [{"x": x, "y low": min(ys), "y high": max(ys)} for x, ys in ends.items()]


# Names


def style_of(line: Line2D) -> tuple[str, str, str]:
    """Colour, marker and stroke, by which a line is known in a legend."""
    return to_hex(line.get_color()), str(line.get_marker()), str(line.get_linestyle())


def _names(figure: Figure) -> dict[Any, str]:
    """The names in a figure's legends by the colour, marker and stroke beside them, where that is one."""
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    legends += [legend for part in figure.subfigs for legend in part.legends]
    found: dict[Any, set[str]] = {}
    for legend in legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            line = handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
            if isinstance(line, Line2D):
                found.setdefault(style_of(line), set()).add(text.get_text())
    return {look: next(iter(words)) for look, words in found.items() if len(words) == 1}


def _name(artist: Any, line: Line2D | None, names: dict[Any, str]) -> str:
    """What a series is called: its `gid`, its label, or a legend's word for its look."""
    label = str((line.get_gid() if line is not None else None) or artist.get_label() or "")
    if label and not label.startswith("_"):
        return label
    return names.get(style_of(line), "") if line is not None else ""


# Ticks


def _ticks(axes: Axes, point: Point) -> Point:
    """The names nearest to a point on axes whose ticks have names that are not their numbers."""
    found = {}
    for letter, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        formatter = axis.get_major_formatter()
        if letter not in point or not isinstance(formatter, FixedFormatter | FuncFormatter):
            continue
        places = np.asarray(axis.get_majorticklocs(), dtype=float)
        words = [formatter(place, number) for number, place in enumerate(places)]
        if any(map(_renamed, places, words)):
            found[f"{letter} name"] = " ".join(words[int(np.abs(places - point[letter]).argmin())].split())
    return found


def _renamed(place: float, word: str) -> bool:
    try:
        return not np.isclose(float(word), place)
    except ValueError:
        return bool(word)
