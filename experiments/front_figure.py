"""Privacy-utility fronts: what an attack finds against what the model is good for, a point a cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.collect import CellResult
from experiments.figures import COLUMN, LOOKS, PAGE, STYLE
from experiments.scoring import Row

# In points, 1/72 inch: half a mark, a letter, how far a name may lie from its mark and beyond the panel, and how near
# marks of one ε share a name.
MARK, LETTER, DISTANCES, ROOM, NEAR = 2.5, 4.0, (4.0, 10.0, 16.0, 24.0, 34.0), 8.0, 14.0
ANGLES = (45, 0, 90, 135, -45, 180, -90, -135)
Size = tuple[float, float]
"""About how wide and high a panel is, in points."""
WORDS = {"canary": "Canaries", "ordinary": "Ordinary examples"}


class Box(NamedTuple):
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether the two have a point inside both."""
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.top <= other.bottom or other.top <= self.bottom)


def undominated(utility: Sequence[float], leaked: Sequence[float]) -> list[int]:
    """The points that no other beats in both (Pareto): no less useful, no more leaked; by utility."""
    better = [
        not any(
            u >= utility[i] and v <= leaked[i] and (u > utility[i] or v < leaked[i])
            for u, v in zip(utility, leaked, strict=True)
        )
        for i in range(len(utility))
    ]
    return sorted((i for i, kept in enumerate(better) if kept), key=lambda i: (utility[i], leaked[i]))


def front(
    cells: Sequence[CellResult], title: str, *, attack: str, groups: Sequence[str] = ("canary", "ordinary"),
    metric: str = "auc",
) -> Figure | None:  # fmt: skip
    """Test accuracy against one attack's `metric`, with 95% intervals, a panel a group, and the front as a line.

    None for fewer than three cells in which both were measured: two points make no front.
    """
    panels = [(group, found) for group in groups if len(found := _points(cells, attack, group, metric)) > 2]
    if not panels:
        return None
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(COLUMN if len(panels) == 1 else PAGE, 2.5 + 0.1 * len(variants)),
            layout="constrained", squeeze=False,
        )  # fmt: skip
        for axis, (group, found) in zip(axes.flat, panels, strict=True):
            size = (72 * (figure.get_figwidth() / len(panels) - 0.6), 72 * 1.5)
            _panel(axis, found, variants, size)
            fpr = cells[0].facts["fpr"]
            words = "AUC" if metric == "auc" else f"TPR at {fpr:.3g} FPR" if metric == "tpr" else metric
            axis.set(xlabel="test accuracy", ylabel=f"{words} of {attack}")
            axis.set_title(WORDS.get(group, group), loc="left")
            chance = {"auc": 0.5, "balanced_accuracy": 0.5, "tpr": fpr}.get(metric)
            if chance is not None:
                axis.axhline(chance, color="0.7", linewidth=0.8, zorder=0)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=1 if len(panels) == 1 else 2)
        figure.suptitle(f"{title}\nnumbers are ε; better: to the right, and down")
    return figure


def _points(cells: Sequence[CellResult], attack: str, group: str, metric: str) -> list[tuple[CellResult, Row, Row]]:
    found = []
    for cell in cells:
        useful, leaked = cell.row("utility", "accuracy"), cell.row("membership", metric, attack, group)
        if useful is not None and leaked is not None and useful.value is not None and leaked.value is not None:
            found.append((cell, useful, leaked))
    return found


def _panel(axes: Axes, found: Sequence[tuple[CellResult, Row, Row]], variants: Sequence[str], size: Size) -> None:
    for number, variant in enumerate(variants):
        mine = [(useful, leaked) for cell, useful, leaked in found if cell.variant == variant]
        if not mine:
            continue
        (x, x_low, x_high), (y, y_low, y_high) = (
            np.array([[row.value, row.low, row.high] for row in rows], dtype=float).T
            for rows in zip(*mine, strict=True)
        )
        axes.errorbar(
            x, y, xerr=np.maximum([x - x_low, x_high - x], 0), yerr=np.maximum([y - y_low, y_high - y], 0),
            label=variant or "each ε", **LOOKS[number % len(LOOKS)] | {"linestyle": "none", "elinewidth": 0.7},
        )  # fmt: skip
    useful_, leaked_ = ([row.value or 0.0 for row in rows] for rows in zip(*((u, v) for _, u, v in found), strict=True))
    best = undominated(useful_, leaked_)
    axes.plot(
        [useful_[i] for i in best], [leaked_[i] for i in best], color="0.45", linewidth=0.9, linestyle=(0, (1, 1)),
        drawstyle="steps-pre", label="front", zorder=1,
    )  # fmt: skip
    _name(axes, found, best, size)


def _name(axes: Axes, found: Sequence[tuple[CellResult, Row, Row]], best: Sequence[int], size: Size) -> None:
    """Write its ε beside each point, where it covers no mark, line or name; a thin line leads from one further off.

    Points of the same ε that lie on one another have one name.
    """
    scale = [side / (high - low) for side, (low, high) in zip(size, (axes.get_xlim(), axes.get_ylim()), strict=True)]
    corner = np.array([axes.get_xlim()[0], axes.get_ylim()[0]])

    def place(x: float | None, y: float | None) -> NDArray[np.float64]:
        spot: NDArray[np.float64] = (np.array([x, y], dtype=float) - corner) * scale
        return spot

    spots = [place(useful.value, leaked.value) for _, useful, leaked in found]
    taken = [Box(*(spot - MARK), *(spot + MARK)) for spot in spots]
    for _, useful, leaked in found:
        across = place(useful.low, leaked.value), place(useful.high, leaked.value)
        upright = place(useful.value, leaked.low), place(useful.value, leaked.high)
        taken += [Box(*(low - 1), *(high + 1)) for low, high in (across, upright) if np.isfinite([low, high]).all()]
    steps = []  # of the front, up and to the right; a name covers them rather than to lie far off
    for here, there in itertools.pairwise(spots[i] for i in best):
        steps.append(Box(here[0] - 1, here[1], here[0] + 1, there[1]))
        steps.append(Box(here[0], there[1] - 1, there[0], there[1] + 1))
    named: list[tuple[str, NDArray[np.float64]]] = []
    for (cell, useful, leaked), spot in zip(found, spots, strict=True):
        text = cell.label()
        if any(text == other and np.linalg.norm(spot - at) < NEAR for other, at in named):
            continue
        named.append((text, spot))
        extent = np.array([LETTER * len(text), LETTER + 2.5])
        for away, avoided, angle in itertools.product(DISTANCES, (steps, []), ANGLES):
            middle = spot + (away + extent / 2) * [math.cos(math.radians(angle)), math.sin(math.radians(angle))]
            box = Box(*(middle - extent / 2), *(middle + extent / 2))
            inside = (middle - extent / 2 > 0).all() and (middle + extent / 2 < np.array(size) + ROOM).all()
            if inside and not any(box.meets(other) for other in (*taken, *avoided)):
                break
        taken.append(box)
        axes.annotate(
            text, (float(useful.value or 0), float(leaked.value or 0)), xytext=tuple(middle - spot),
            textcoords="offset points", ha="center", va="center", fontsize=6, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            if away > DISTANCES[0] else None,
        )  # fmt: skip
