"""Leakage by variant: what changes when something other than ε does, such as what the attacker knows."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.collect import CellResult
from experiments.figure_data import DECORATION
from experiments.figures import COLUMN, PAGE, STYLE, looks_of
from experiments.scoring import Row
from experiments.views_figure import words_of

MOST_LINES = 60
"""More would make a figure of several pages: a sweep of 500 cells one of 9 m."""


def by_variant(cells: Sequence[CellResult], title: str) -> Figure | None:
    """AUC and TPR of every attack, a line a variant (and ε, where there are several).

    None for fewer than two variants, more than MOST_LINES lines, or no AUC.
    """
    if len({cell.variant for cell in cells}) < 2 or len(cells) > MOST_LINES:
        return None
    several = len({cell.epsilon for cell in cells}) > 1
    called = words_of(cells)
    looks = looks_of(list(called))
    groups = [
        group for group in ("canary", "ordinary") if any(cell.row("membership", "auc", None, group) for cell in cells)
    ]
    if not groups:
        return None
    panels = [(group, metric) for group in groups for metric in ("auc", "tpr")]
    fpr = cells[0].facts["fpr"]
    words = {"canary": "Canaries", "ordinary": "Ordinary examples"}
    height = 0.065 * len(looks) * len(cells) + 0.1 * len(cells) + 1.4
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(PAGE if len(panels) > 2 else COLUMN, height), layout="constrained", squeeze=False,
            sharey=True,
        )  # fmt: skip
        for axis, (group, metric) in zip(axes.flat, panels, strict=True):
            for number, (name, look) in enumerate(looks.items()):
                rows: list[tuple[int, Row]] = [
                    (place, row)
                    for place, cell in enumerate(cells)
                    if (row := cell.row("membership", metric, name, group)) is not None and row.value is not None
                ]
                if not rows:
                    continue
                value, low, high = (
                    np.array([getattr(row, f) for _, row in rows], float) for f in ("value", "low", "high")
                )
                at = np.array([place for place, _ in rows]) + 0.8 * ((number + 0.5) / len(looks) - 0.5)
                axis.errorbar(
                    value, at, xerr=np.maximum([value - low, high - value], 0), label=called[name], markersize=3,
                    **look | {"linestyle": "none"},
                )  # fmt: skip
            for place in range(1, len(cells)):
                axis.axhline(place - 0.5, color="0.9", linewidth=0.6, zorder=0, label=DECORATION)
            axis.axvline(0.5 if metric == "auc" else fpr, color="0.7", linewidth=0.8, zorder=0)
            axis.set_xlabel("AUC" if metric == "auc" else f"TPR at {fpr:.3g} FPR")
            axis.set_title(words[group], loc="left")
        first = axes[0, 0]
        first.set_yticks(
            range(len(cells)),
            [(cell.variant + (f", ε = {cell.label()}" if several else "")).replace(", ", ",\n") for cell in cells],
        )
        first.set_ylim(len(cells) - 0.5, -0.5)
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4 if len(panels) > 2 else 2)
        figure.suptitle(title)
    return figure
