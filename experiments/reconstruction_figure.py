"""Recovered pictures under the true ones, in a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attacks.pictures import EXACT_DB, failed
from experiments.collect import CellResult
from experiments.figures import COLUMN, PAGE, STYLE, picture
from fl_core.errors import InputError

Pictures = np.ndarray[Any, Any]
NARROW = 4
"""Up to so many pictures beside each other fit into a column."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a grid: what it shows, its `pictures` [pictures, channels, height, width], and the words below each.

    A picture that is not finite is one that was not recovered.
    """

    title: str
    pictures: Pictures
    captions: Sequence[str]

    def __post_init__(self) -> None:
        if self.pictures.ndim != 4 or len(self.pictures) != len(self.captions):
            raise InputError(
                f"{self.title}: pictures of shape {self.pictures.shape} with {len(self.captions)} captions; give "
                "[pictures, channels, height, width] and one caption each"
            )


def grid(lines: Sequence[Line], title: str, most: int = 8) -> Figure:
    """The first `most` pictures of each line, one line below the other; by custom the first line is the truth.

    Pixels are cut to [0, 1]. In the place of a picture that was not recovered stands a hatched and crossed square.
    """
    if not lines:
        raise InputError("a grid of pictures needs at least one line")
    count = min(most, max(len(line.pictures) for line in lines))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(lines), count, figsize=(COLUMN if count <= NARROW else PAGE, 1.02 * len(lines) + 0.4),
            layout="constrained", squeeze=False,
        )  # fmt: skip
        for row, line in zip(axes, lines, strict=True):
            lost = failed(line.pictures)
            for column, axis in enumerate(row):
                if column >= len(line.pictures):
                    axis.set_visible(False)
                elif lost[column]:
                    _nothing(axis, line.pictures.shape[-2:], line.captions[column])
                else:
                    picture(axis, line.pictures[column].clip(0, 1), line.captions[column])
            row[0].set_ylabel(fill(line.title, 16))
        figure.suptitle(title)
    return figure


def _nothing(axes: Axes, size: tuple[int, ...], words: str) -> None:
    """The place of a picture [height, width] that was not recovered."""
    height, width = size
    left, right, top, bottom = -0.5, width - 0.5, -0.5, height - 0.5
    axes.add_patch(Rectangle((left, top), width, height, facecolor="0.95", edgecolor="0.75", hatch="////", linewidth=0))
    axes.plot([left, right, np.nan, left, right], [top, bottom, np.nan, bottom, top], color="0.3", linewidth=0.8)
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    axes.set_xlabel(words)


def caption(decibels: float | None) -> str:
    """What to write below a recovered picture: its PSNR, or that it is exact, or (None) that the attack failed."""
    return "failed" if decibels is None else "exact" if decibels >= EXACT_DB else f"{decibels:.0f} dB"


def reconstructions(cells: Sequence[CellResult], title: str, most: int = 8) -> Figure | None:
    """The true pictures, and below them what each cell's attack recovered; None where nothing was attacked."""
    names = cells[0].facts["classes"]
    lines: list[Line] = []
    for cell in cells:
        shown = cell.probed
        if shown is None:
            continue
        if not lines:
            lines.append(
                Line(title="true", pictures=shown.true, captions=[names[label] for label in shown.true_labels])
            )
        answers = zip(shown.psnr, shown.found_labels, shown.true_labels, strict=True)
        words = [f"{caption(size)}\n{names[mine]} {'✓' if mine == own else '✗'}" for size, mine, own in answers]
        lost = np.array([size is None for size in shown.psnr]).reshape(-1, 1, 1, 1)
        pictures = np.where(lost, np.nan, shown.found)
        lines.append(Line(title=f"ε = {cell.label()}", pictures=pictures, captions=words))
    if not lines:
        return None
    below = "true pictures, and what one step's update gives away; below each, the PSNR and the inferred label"
    return grid(lines, f"{title}\n{below}", most)
