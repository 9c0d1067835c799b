"""The examples that an attack finds best: pictures, from stored runs alone."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.collect import CellResult
from experiments.figures import STYLE, picture
from experiments.tables import headline_attack
from fl_core.checkpoint import load_tensors

MOST = 8


def vulnerable(cells: Sequence[CellResult], title: str) -> Figure | None:
    """The headline attack's most vulnerable examples, a line a cell; None where nothing was ranked.

    Below a picture: its label in the run (a canary's is wrong), and its gap in units of the scores' spread.
    """
    attack = headline_attack(cells)
    shown = [(cell, cell.vulnerable[attack][:MOST]) for cell in cells if cell.vulnerable.get(attack)]
    if not shown:
        return None
    names = cells[0].facts["classes"]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(shown), MOST, figsize=(0.85 * MOST + 0.6, 1.02 * len(shown) + 0.5), layout="constrained", squeeze=False
        )
        for line, (cell, ranked) in enumerate(shown):
            truth, _ = load_tensors(cell.folder / "truth" / "truth.safetensors")
            images, labels = truth["vulnerable_images"].numpy(), truth["vulnerable_labels"]
            for column in range(MOST):
                if column >= len(ranked):
                    axes[line, column].set_visible(False)
                    continue
                one = ranked[column]
                planted = ", canary" if truth["canary"][one["example"]] else ""
                words = f"“{names[int(labels[column])]}”{planted}\n{one['gap']:.1f}"
                picture(axes[line, column], images[column], words)
            axes[line, 0].set_ylabel(f"ε = {cell.label()}")
        figure.suptitle(
            f"{title}\nthe examples that {attack} finds best; below each, the label that it was trained with, and\n"
            "how far its scores as a member lie above those as a non-member, in units of their spread"
        )
    return figure
