"""Privacy-utility fronts: what an attack finds against what the model is good for, a point a cell."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.collect import CellResult
from experiments.figures import COLUMN, LOOKS, PAGE, STYLE
from experiments.scoring import Row

APART = 0.11
"""Of a panel's width and height: nearer points share one name, so that names stay readable."""
WORDS = {"canary": "Canaries", "ordinary": "Ordinary examples"}


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
            _panel(axis, found, variants)
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


def _panel(axes: Axes, found: Sequence[tuple[CellResult, Row, Row]], variants: Sequence[str]) -> None:
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
    _name(axes, [cell.label() for cell, _, _ in found], useful_, leaked_, first=best)
    axes.plot(
        [useful_[i] for i in best], [leaked_[i] for i in best], color="0.45", linewidth=0.9, linestyle=(0, (1, 1)),
        drawstyle="steps-pre", label="front", zorder=1,
    )  # fmt: skip


def _name(axes: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float], *, first: Sequence[int]) -> None:
    """Write its ε beside each point, those on the front `first`, but for points near one that has a name."""
    width, height = (max(max(one) - min(one), 1e-9) for one in (x, y))
    done: list[int] = []
    for i in [*first, *(i for i in range(len(names)) if i not in first)]:
        if all(abs(x[i] - x[j]) > APART * width or abs(y[i] - y[j]) > APART * height for j in done):
            axes.annotate(names[i], (x[i], y[i]), xytext=(3, 3), textcoords="offset points", fontsize=6)
            done.append(i)
