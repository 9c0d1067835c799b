"""Leakage against ε: everything that a sweep measured at a glance, and any one attack under its view, on any group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.collect import CellResult
from experiments.figures import (
    BLUE,
    CEILING,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    PURPLE,
    SKY,
    STYLE,
    line,
    mark_axis,
    positions,
    shade_above,
)
from experiments.tables import headline_attack

Audit = dict[str, Any]
MEMBERSHIP_STYLES = ((BLUE, "o", "-"), (GREEN, "^", "-."), (PURPLE, "s", (0, (3, 1, 1, 1))), (GREY, "x", ":"))


def _membership(axes: Axes, cells: Sequence[CellResult], metric: str) -> None:
    """The headline attack on canaries and ordinary examples, the next three attacks on canaries, and the ceiling."""
    first = headline_attack(cells)
    names = shown_attacks(cells)
    both = {row.group for row in cells[0].rows if row.question == "membership"} & {"canary", "ordinary"}
    group = "canary" if "canary" in both else "ordinary"
    for number, name in enumerate(names):
        color, marker, linestyle = MEMBERSHIP_STYLES[-1 if name.startswith("blind") else number]
        words = {"canary": "canaries", "ordinary": "ordinary"}[group]
        line(
            axes, cells, partial(CellResult.row, question="membership", metric=metric, attack=name, group=group),
            color=color, marker=marker, linestyle=linestyle, label=f"{name}, {words}", shift=0.05 * (number - 1),
            markersize=4.5 if name == first else 3,
        )  # fmt: skip
    if len(both) > 1:
        line(
            axes, cells, lambda cell: cell.row("membership", metric, first, "ordinary"),
            color=ORANGE, marker="D", linestyle="--", label=f"{first}, ordinary", shift=0.1, markersize=3.5,
        )  # fmt: skip
    rows = [cell.row("membership", metric, first) for cell in cells]
    known = [
        (x, row.ceiling) for x, row in zip(positions(cells)[0], rows, strict=True) if row and row.ceiling is not None
    ]
    if known:
        shade_above(axes, known)


def shown_attacks(cells: Sequence[CellResult]) -> list[str]:
    """The first attack of each kind ("LiRA, offline" is another LiRA), three at most, and one blind guess."""
    kinds: dict[str, str] = {}
    for name in cells[0].attacks():
        kinds.setdefault("blind" if name.startswith("blind") else name.split(",")[0], name)
    blind = kinds.pop("blind", None)
    return list(kinds.values())[: len(MEMBERSHIP_STYLES) - 1] + ([] if blind is None else [blind])


def leakage_vs_epsilon(cells: Sequence[CellResult], title: str) -> Figure:
    """Membership, audit, reconstruction, labels and utility over one ε axis; what was not measured has no panel."""
    drawn = [(_auc, "Membership"), (_tpr, "Membership, few false alarms")]
    drawn += [(_audit, "Audited lower bound")] if any(cell.audit for cell in cells) else []
    if cells[0].row("reconstruction", "psnr") is not None:
        drawn += [(_pictures, "Reconstructed pictures"), (_labels, "Inferred labels")]
    drawn += [(_utility, "Utility")]
    across = 2 if len(drawn) == 4 else 3
    down = math.ceil(len(drawn) / across)
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            down, across, figsize=(PAGE, 0.5 + 2 * down), layout="constrained", squeeze=False
        )  # fmt: skip
        for axes, letter, (draw, words) in zip(grid.flat, "abcdef", drawn, strict=False):
            draw(axes, cells, f"{letter}  {words}")
        for axes in grid.flat[len(drawn) :]:
            axes.set_visible(False)
        for column in grid.T:
            [axes for axes in column if axes.get_visible()][-1].set_xlabel("ε (∞: no defence)")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(title)
    return figure


def _auc(axes: Axes, cells: Sequence[CellResult], title: str) -> None:
    mark_axis(axes, cells, "AUC", title)
    _membership(axes, cells, "auc")
    axes.axhline(0.5, color="0.7", linewidth=0.8, zorder=0)
    axes.set_ylim(0.4, 1.02)


def _tpr(axes: Axes, cells: Sequence[CellResult], title: str) -> None:
    fpr = cells[0].facts["fpr"]
    mark_axis(axes, cells, f"TPR at {fpr:.3g} FPR", title)
    _membership(axes, cells, "tpr")
    axes.axhline(fpr, color="0.7", linewidth=0.8, zorder=0)
    axes.set_ylim(-0.02, 1.02)


def _audit(axes: Axes, cells: Sequence[CellResult], title: str) -> None:
    audit_panel(axes, cells, title, [cell.audit for cell in cells])
    _legend(axes)


def _pictures(axes: Axes, cells: Sequence[CellResult], title: str) -> None:
    mark_axis(axes, cells, "PSNR (dB)", title)
    for words, metric, attack, style in (
        ("attacker's choice", "psnr", None, {"color": BLUE, "marker": "o"}),
        ("best in hindsight", "psnr_oracle", None, {"color": SKY, "marker": "v"}),
        ("blind: mean image", "psnr", "blind (mean image)", {"color": GREY, "marker": "x", "linestyle": ":"}),
        ("blind: nearest public", "psnr", "blind (nearest public image)",
         {"color": GREY, "marker": "+", "linestyle": "-."}),
    ):  # fmt: skip
        pick = partial(CellResult.row, question="reconstruction", metric=metric, attack=attack)
        line(axes, cells, pick, label=words, markersize=4, **style)
    axes.set_ylim(0, 1.6 * axes.get_ylim()[1])  # room for the legend
    _legend(axes)


def _labels(axes: Axes, cells: Sequence[CellResult], title: str) -> None:
    mark_axis(axes, cells, "share of labels found", title)
    pick = partial(CellResult.row, question="reconstruction", metric="label_recall")
    line(axes, cells, pick, color=BLUE, marker="o", markersize=4, label="from the update")
    guess = 1 / len(cells[0].facts["classes"])
    axes.axhline(guess, color=GREY, linestyle=":", linewidth=1, label="blind: uniform guess")
    axes.set_ylim(-0.02, 1.5)
    axes.set_yticks(np.linspace(0, 1, 6))
    _legend(axes)


def _utility(axes: Axes, cells: Sequence[CellResult], title: str) -> None:
    mark_axis(axes, cells, "test accuracy", title)
    line(axes, cells, lambda cell: cell.row("utility", "accuracy"), color=BLUE, marker="o", markersize=4)
    axes.set_ylim(0, 1.02)


def _legend(axes: Axes) -> None:
    """The names of the panel's own lines, if there are any."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left")


def audit_panel(axes: Axes, cells: Sequence[CellResult], title: str, audited: Sequence[Audit | None]) -> None:
    """What the audits of the cells show, at most could show, and what is accounted against the view that they have."""
    mark_axis(axes, cells, "ε", title)
    x, _ = positions(cells)
    audits = [(at, one) for at, one in zip(x, audited, strict=True) if one and one.get("epsilon") is not None]
    view = next((one["view"] for one in audited if one), "released_model")
    accounted = [(at, cell.accounted_against(view)) for at, cell in zip(x, cells, strict=True)]
    finite = [(at, one) for at, one in accounted if math.isfinite(one)]
    if finite:
        axes.plot(*zip(*finite, strict=True), color="black", **CEILING, label="accounted")
    if audits:
        at = [one for one, _ in audits]
        axes.plot(
            at,
            [audit["ceiling"] for _, audit in audits],
            color=GREY,
            linestyle="--",
            linewidth=1,
            label="most this audit can show",
        )
        axes.plot(
            at,
            [audit["epsilon"] for _, audit in audits],
            color=BLUE,
            marker="o",
            markersize=4,
            linestyle="none",
            label="shown, 95%",
        )
    axes.set_yscale("symlog", linthresh=0.5)
    axes.set_yticks([0, 0.5, 2, 8, 32, 128, 512], ["0", "0.5", "2", "8", "32", "128", "512"])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.05, 20 * max([10.0, *(value for _, value in finite)]))
