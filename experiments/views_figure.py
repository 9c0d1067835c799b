"""Leakage by view: each attack under what its observer sees, for each defence, over ε; from stored runs alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.collect import CellResult
from experiments.figures import CEILING, GREY, PAGE, STYLE, line, looks_of, mark_axis, positions
from experiments.scoring import Row
from fl_core.views import VIEWS

LETTERS = 72
"""Of a heading, beside one another over all columns."""
SPREAD = 0.56
"""Between the first and the last attack at one ε at most, in decades."""

WORDS = {
    "released_model": "released model",
    "participant": "participant",
    "secure_server": "sums",
    "server": "server",
    "malicious_server": "malicious server",
}


MOST_COLUMNS = 8
"""More variants would leave their panels no width on a page."""


def views_of(cells: Sequence[CellResult]) -> list[str]:
    """The views of the membership attacks, from the narrowest on."""
    found = {row.view for cell in cells for row in cell.rows if row.question == "membership"}
    return [view for view in VIEWS if view in found]


def words_of(cells: Sequence[CellResult]) -> dict[str, str]:
    """What to call each membership attack: where there are several views, with its own; a blind guess has none."""
    views = {row.attack: row.view for cell in cells for row in cell.rows if row.question == "membership"}
    several = len(views_of(cells)) > 1
    return {
        name: name + (f" ({WORDS[view]})" if several and not name.startswith("blind") else "")
        for name, view in views.items()
    }


def by_view(cells: Sequence[CellResult], title: str, group: str, metric: str = "auc") -> Figure | None:
    """A column a defence, a row a view: `metric` of its attacks on `group` over ε, with what ε allows.

    None where all attacks have one view, the group has no examples, or there are more than MOST_COLUMNS variants.
    """
    views, variants = views_of(cells), list(dict.fromkeys(cell.variant for cell in cells))
    rows = [row for cell in cells for row in cell.rows if row.question == "membership" and row.metric == metric]
    if len(views) < 2 or len(variants) > MOST_COLUMNS or not any(row.group == group for row in rows):
        return None
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(views), len(variants), figsize=(PAGE, 1.6 * len(views) + 0.7), layout="constrained", squeeze=False,
            sharey=True,
        )  # fmt: skip
        for down, view in enumerate(views):
            names = list(dict.fromkeys(row.attack for row in rows if row.view == view))
            for across, variant in enumerate(variants):
                panel = axes[down, across]
                mine = [cell for cell in cells if cell.variant == variant]
                mark_axis(
                    panel,
                    mine,
                    WORDS[view] if across == 0 else "",
                    title_of(variant, len(variants)) if down == 0 else "",
                )
                _panel(panel, mine, view, names, group, metric)
                at = positions(mine)[0]
                panel.set_xlim(at.min() - 0.4, at.max() + 0.4)
                if down == len(views) - 1:
                    panel.set_xlabel("ε (∞: no noise)")
            # The last column that has lines tells their names, beside it.
            handles, words = next(
                (
                    (h, w)
                    for panel in axes[down, ::-1]
                    if (both := panel.get_legend_handles_labels())[0]
                    for h, w in [both]
                ),
                ([], []),
            )
            axes[down, -1].legend(handles, words, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axes[0, 0].set_ylim((0.4, 1.02) if metric == "auc" else (-0.02, 1.02))
        whom = {"canary": "canaries", "ordinary": "ordinary examples"}.get(group, group)
        figure.suptitle(f"{title}: {metric.upper()} on {whom}")
    return figure


def title_of(variant: str, columns: int) -> str:
    """A variant as the head of one of several columns, a line or more for each thing that it changes."""
    return ",\n".join(fill(part, LETTERS // columns) for part in variant.split(", "))


def _panel(panel: Axes, cells: Sequence[CellResult], view: str, names: Sequence[str], group: str, metric: str) -> None:
    found = [_row(cell, name, group, metric) for cell in cells for name in names]
    if not any(row is not None and row.value is not None for row in found):
        words = "refused:\nmasks hide\neach update"
        panel.text(0.5, 0.5, words, ha="center", va="center", transform=panel.transAxes, color=GREY)
        panel.set_facecolor("0.96")
        for bar in list(panel.lines):
            bar.remove()
        return
    for number, (name, look) in enumerate(looks_of(names).items()):
        apart = min(SPREAD / max(len(names) - 1, 1), 0.12)
        shift = apart * (number - (len(names) - 1) / 2)
        line(
            panel, cells, lambda cell, name=name: _row(cell, name, group, metric),  # type: ignore[misc]
            markersize=3, label=name, shift=shift, **look,
        )  # fmt: skip
    panel.axhline(0.5 if metric == "auc" else cells[0].facts["fpr"], color="0.7", linewidth=0.8, zorder=0)
    allowed = [
        (x, row.ceiling)
        for x, cell in zip(positions(cells)[0], cells, strict=True)
        if math.isfinite(cell.accounted_against(view))
        and (row := next((r for n in names if (r := _row(cell, n, group, metric))), None)) is not None
        and row.ceiling is not None
    ]
    if allowed:
        x, y = map(np.array, zip(*allowed, strict=True))
        panel.plot(x, y, color="black", **CEILING, label="ceiling that ε allows")


def _row(cell: CellResult, name: str, group: str, metric: str) -> Row | None:
    return cell.row("membership", metric, name, group)
