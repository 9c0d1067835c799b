"""The examples that an attack finds best: pictures, from stored runs alone."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.collect import CellResult
from experiments.figures import PAGE, STYLE, picture
from experiments.tables import headline_attack

MOST = 8


def vulnerable(cells: Sequence[CellResult], title: str) -> Figure | None:
    """The headline attack's most vulnerable examples, a line a cell; None where nothing was ranked.

    Below a picture: its label in the run (a canary's is wrong), and its gap in units of the scores' spread.
    """
    attack = headline_attack(cells)
    shown = [(cell, cell.exposed) for cell in cells if cell.exposed is not None and cell.first_ranked() == attack]
    if not shown:
        return None
    names = cells[0].facts["classes"]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(shown), MOST, figsize=(PAGE, 1.1 * len(shown) + 1.0), layout="constrained", squeeze=False
        )
        for line, (cell, exposed) in enumerate(shown):
            ranked = cell.vulnerable[attack]
            for column in range(MOST):
                if column >= len(ranked):
                    axes[line, column].set_visible(False)
                    continue
                planted = "canary, " if exposed.planted[column] else ""
                words = f"“{names[exposed.labels[column]]}”\n{planted}{ranked[column]['gap']:.1f}"
                picture(axes[line, column], exposed.images[column], words)
            axes[line, 0].set_ylabel(f"ε = {cell.label()}")
        figure.suptitle(
            f"{title}\nthe examples that {attack} finds best; below each, the label that it was trained with, and\n"
            "how far its scores as a member lie above those as a non-member, in units of their spread;\n"
            f"of {cells[0].facts['examples']:,} examples some stand out by chance alone"
        )
    return figure
