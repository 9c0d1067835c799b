"""ROC curves with bands over replicas."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.collect import CellResult
from experiments.figures import COLUMN, LOOKS, PAGE, STYLE
from experiments.tables import headline_attack


def roc(cells: Sequence[CellResult], title: str, attack: str | None = None) -> Figure | None:
    """ROC curves, log-log, a panel a group, with 95% bands over replicas.

    The `attack`, or else the headline attack, over ε; of a single cell, without an `attack`, the headline attack and a
    blind one among those with the largest AUC. None where no group has curves in all cells.
    """
    single = len(cells) == 1 and attack is None
    attack = attack or headline_attack(cells)
    if single:
        drawn = [(name, cells[0].roc[name]) for name in _telling(cells[0])]
    else:
        drawn = [
            (", ".join(filter(None, (cell.variant, f"ε = {cell.label()}"))), cell.roc[attack])
            for cell in cells
            if attack in cell.roc
        ]
    groups = [group for group in ("canary", "ordinary") if all(group in curves for _, curves in drawn)]
    words = {"canary": "canaries (mislabelled)", "ordinary": "ordinary examples"}
    if not drawn or not groups:
        return None
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.88, len(drawn)))
    width = COLUMN if len(groups) == 1 else PAGE
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1, len(groups), figsize=(width, 3.2), layout="constrained", squeeze=False, sharey=True
        )
        lowest = min(curves[group]["fpr"][0] for _, curves in drawn for group in groups)
        floor = lowest / 2  # a rate of 0 leaves the picture at the bottom
        for one, group in zip(axes.flat, groups, strict=True):
            least = min(curves[group]["fpr"][0] for _, curves in drawn)
            one.plot([least, 1], [least, 1], color="0.6", linewidth=0.8, linestyle=":")
            for number, ((name, curves), color) in enumerate(zip(drawn, colors, strict=True)):
                curve = {field: np.array(values) for field, values in curves[group].items()}
                low, high = (np.maximum(curve[end], floor) for end in ("low", "high"))
                one.fill_between(curve["fpr"], low, high, color=color, alpha=0.15, linewidth=0)
                look = LOOKS[number % len(LOOKS)] | {"color": color, "markersize": 3}
                power = np.maximum(curve["tpr"], floor)
                # A few markers, each curve's at places of its own.
                every = (0.03 * number, 0.25)
                one.plot(curve["fpr"], power, linewidth=1, markevery=every, label=name, **look)
            one.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(lowest, 1), xlabel="false-positive rate")
            one.set_title(words[group] if single else f"{attack}, {words[group]}", loc="left")
        axes[0, 0].set_ylabel("true-positive rate")
        if len(groups) > 1:
            axes[0, -1].legend(loc="lower right")
        else:  # a column has no room beside its curves
            figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle(title)
    return figure


MOST_CURVES = 7


def _telling(cell: CellResult) -> list[str]:
    """The attacks whose curves are drawn of a single cell, in the configuration's order."""
    names = [name for name in cell.attacks() if name in cell.roc]
    if len(names) <= MOST_CURVES:
        return names

    def area(name: str) -> float:
        row = cell.row("membership", "auc", name)
        return 0.0 if row is None or row.value is None else row.value

    blind = [name for name in names if name.startswith("blind")]
    families: dict[str, str] = {names[0].split(",")[0]: names[0]}  # the best variant of each attack, "LiRA, offline"
    for name in sorted((name for name in names if name not in blind), key=area, reverse=True):
        families.setdefault(name.split(",")[0], name)
    chosen = [*list(families.values())[: MOST_CURVES - 1], *blind[:1]]
    return [name for name in names if name in chosen]
