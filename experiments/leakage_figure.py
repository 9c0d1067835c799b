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
    names = cells[0].attacks()[: len(MEMBERSHIP_STYLES)]
    both = {row.group for row in cells[0].rows if row.question == "membership"} & {"canary", "ordinary"}
    group = "canary" if "canary" in both else "ordinary"
    for number, name in enumerate(names):
        color, marker, linestyle = MEMBERSHIP_STYLES[number]
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


def leakage_vs_epsilon(cells: Sequence[CellResult], title: str) -> Figure:
    """Membership, audit, reconstruction, labels and utility over one ε axis."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(PAGE, 4.5), layout="constrained")
        auc, tpr, audit, picture, labels, utility = axes.flat
        mark_axis(auc, cells, "AUC", "a  Membership")
        _membership(auc, cells, "auc")
        auc.axhline(0.5, color="0.7", linewidth=0.8, zorder=0)
        auc.set_ylim(0.4, 1.02)
        fpr = cells[0].facts["fpr"]
        mark_axis(tpr, cells, f"TPR at {fpr:.3g} FPR", "b  Membership, few false alarms")
        _membership(tpr, cells, "tpr")
        tpr.axhline(fpr, color="0.7", linewidth=0.8, zorder=0)
        tpr.set_ylim(-0.02, 1.02)
        audit_panel(audit, cells, "c  Audited lower bound", [cell.audit for cell in cells])
        mark_axis(picture, cells, "PSNR (dB)", "d  Reconstructed pictures")
        for name, pick, style in (
            (
                "attacker's choice",
                lambda cell: cell.row("reconstruction", "psnr"),
                {"color": BLUE, "marker": "o"},
            ),
            (
                "best in hindsight",
                lambda cell: cell.row("reconstruction", "psnr_oracle"),
                {"color": SKY, "marker": "v"},
            ),
            (
                "blind: mean image",
                lambda cell: cell.row("reconstruction", "psnr", "blind (mean image)"),
                {"color": GREY, "marker": "x", "linestyle": ":"},
            ),
            (
                "blind: nearest public",
                lambda cell: cell.row("reconstruction", "psnr", "blind (nearest public image)"),
                {"color": GREY, "marker": "+", "linestyle": "-."},
            ),
        ):
            line(picture, cells, pick, label=name, markersize=4, **style)
        mark_axis(labels, cells, "share of labels found", "e  Inferred labels")
        line(
            labels,
            cells,
            lambda cell: cell.row("reconstruction", "label_recall"),
            color=BLUE,
            marker="o",
            markersize=4,
            label="from the update",
        )
        labels.axhline(
            1 / len(cells[0].facts["classes"]),
            color=GREY,
            linestyle=":",
            linewidth=1,
            label="blind: uniform guess",
        )
        labels.set_ylim(-0.02, 1.5)
        labels.set_yticks(np.linspace(0, 1, 6))
        mark_axis(utility, cells, "test accuracy", "f  Utility")
        line(utility, cells, lambda cell: cell.row("utility", "accuracy"), color=BLUE, marker="o", markersize=4)
        utility.set_ylim(0, 1.02)
        for one in axes[1]:
            one.set_xlabel("ε (∞: no defence)")
        picture.set_ylim(0, 1.6 * picture.get_ylim()[1])  # room for the legend
        for one in (picture, labels, audit):
            if one.get_legend_handles_labels()[0]:
                one.legend(loc="upper left")
        if cells[0].row("reconstruction", "psnr") is None:
            picture.set_visible(False)
            labels.set_visible(False)
        audit.set_visible(any(cell.audit for cell in cells))
        handles, words = auc.get_legend_handles_labels()
        figure.legend(handles, words, loc="outside lower center", ncols=4)
        figure.suptitle(title)
    return figure


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
