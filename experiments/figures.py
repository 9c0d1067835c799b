"""Figures of a study, from stored runs alone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.collect import CellResult
from experiments.scoring import Row
from experiments.tables import headline_attack
from fl_core.checkpoint import write_bytes

STYLE = Path(__file__).parent / "mirage.mplstyle"
# Okabe and Ito's palette: told apart by colour-blind readers; line style and marker tell them apart in grey.
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#555555"
# With a tick at each cell, so that a study of one finite ε shows it too.
CEILING: dict[str, Any] = {"linestyle": (0, (1, 1)), "linewidth": 1, "marker": "_", "markersize": 5}
MEMBERSHIP_STYLES = ((BLUE, "o", "-"), (GREEN, "^", "-"), (PURPLE, "s", "-"), (GREY, "x", ":"))


def positions(cells: Sequence[CellResult]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Where each cell stands on the x axis: log10 ε, with ∞ one step past the last finite one."""
    finite = [math.log10(cell.epsilon) for cell in cells if math.isfinite(cell.epsilon)]
    last = (max(finite) + 0.9) if finite else 0.0
    x = np.array([math.log10(cell.epsilon) if math.isfinite(cell.epsilon) else last for cell in cells])
    return x, [cell.label() for cell in cells]


def mark_axis(axes: Axes, cells: Sequence[CellResult], ylabel: str, title: str) -> None:
    """The ε axis of a panel, with its heads."""
    x, labels = positions(cells)
    axes.set_xticks(x, labels)
    axes.set_xlim(x.min() - 0.3, x.max() + 0.3)
    if len(cells) > 1 and math.isinf(cells[-1].epsilon):
        axes.axvline((x[-2] + x[-1]) / 2, color="0.85", linewidth=4, zorder=0)
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left")


def line(axes: Axes, cells: Sequence[CellResult], pick: Callable[[CellResult], Row | None], **style: Any) -> None:
    """Points with 95% bars; the step to ∞ is not joined, because it is no step along the axis."""
    x, _ = positions(cells)
    rows = [pick(cell) for cell in cells]
    shown = [i for i, row in enumerate(rows) if row is not None and row.value is not None]
    if not shown:
        return
    value, low, high = (np.array([getattr(rows[i], f) for i in shown], dtype=float) for f in ("value", "low", "high"))
    linestyle = style.pop("linestyle", "-")
    shift = style.pop("shift", 0.0)
    axes.errorbar(
        x[shown] + shift,
        value,
        yerr=np.maximum([value - low, high - value], 0),
        linestyle="none",
        capsize=1.5,
        **style,
    )
    joined = [k for k, i in enumerate(shown) if math.isfinite(cells[i].epsilon)]
    axes.plot(x[shown][joined] + shift, value[joined], linestyle=linestyle, color=style["color"], linewidth=1)


def _membership(axes: Axes, cells: Sequence[CellResult], metric: str) -> None:
    """The headline attack on canaries and ordinary examples, the next three attacks on canaries, and the ceiling."""
    first = headline_attack(cells)
    names = cells[0].attacks()[: len(MEMBERSHIP_STYLES)]
    both = {row.group for row in cells[0].rows if row.question == "membership"}
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
        x, y = map(np.array, zip(*known, strict=True))
        axes.plot(x, y, color="black", **CEILING, label="ceiling that ε allows")
        axes.fill_between(x, y, 1.02, color="0.93", linewidth=0)


def leakage_vs_epsilon(cells: Sequence[CellResult], title: str) -> Figure:
    """Membership, audit, reconstruction, labels and utility over one ε axis."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(7.2, 4.5), layout="constrained")
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
        _audit_panel(audit, cells)
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
            if one.has_data():
                one.legend(loc="upper left")
        if cells[0].row("reconstruction", "psnr") is None:
            picture.set_visible(False)
            labels.set_visible(False)
        handles, words = auc.get_legend_handles_labels()
        figure.legend(handles, words, loc="outside lower center", ncols=3)
        figure.suptitle(title)
    return figure


def _audit_panel(axes: Axes, cells: Sequence[CellResult]) -> None:
    mark_axis(axes, cells, "ε", "c  Audited lower bound")
    x, _ = positions(cells)
    audits = [
        (at, cell.audit)
        for at, cell in zip(x, cells, strict=True)
        if cell.audit and cell.audit.get("epsilon") is not None
    ]
    finite = [(at, cell.accounted) for at, cell in zip(x, cells, strict=True) if math.isfinite(cell.accounted)]
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


def roc(cells: Sequence[CellResult], title: str) -> Figure:
    """ROC curves, log-log, a panel a group, with 95% bands over replicas.

    The headline attack over ε; of a single cell the headline attack and a blind one among those with the largest AUC.
    """
    attack = headline_attack(cells)
    if len(cells) == 1:
        drawn = [(name, cells[0].roc[name]) for name in _telling(cells[0])]
    else:
        drawn = [(f"ε = {cell.label()}", cell.roc[attack]) for cell in cells]
    groups = [group for group in ("canary", "ordinary") if all(group in curves for _, curves in drawn)]
    words = {"canary": "canaries (mislabelled)", "ordinary": "ordinary examples"}
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.88, len(drawn)))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1, len(groups), figsize=(3.6 * len(groups), 3.3), layout="constrained", squeeze=False, sharey=True
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
                style = ("-", "--", "-.", (0, (3, 1, 1, 1)))[number % 4]
                power = np.maximum(curve["tpr"], floor)
                one.plot(curve["fpr"], power, color=color, linewidth=1.2, linestyle=style, label=name)
            one.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(lowest, 1), xlabel="false-positive rate")
            one.set_title(words[group] if len(cells) == 1 else f"{attack}, {words[group]}", loc="left")
        axes[0, 0].set_ylabel("true-positive rate")
        axes[0, -1].legend(loc="lower right")
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


def picture(axes: Axes, pixels: np.ndarray[Any, Any], words: str) -> None:
    """One picture [channels, height, width] with words below it."""
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(words)


def encoded(figure: Figure, kind: str) -> bytes:
    """The figure as a PNG or PDF, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with plt.style.context(STYLE):
        figure.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {"Software": None})
    return buffer.getvalue()


KINDS = ("png", "pdf")


def save(figure: Figure, folder: Path, name: str) -> list[str]:
    """Write `figure` as folder/<name>.png and .pdf, close it, and return the names of the files."""
    for kind in KINDS:
        write_bytes(folder / f"{name}.{kind}", encoded(figure, kind))
    plt.close(figure)
    return [f"{name}.{kind}" for kind in KINDS]


def remove(folder: Path, name: str) -> None:
    """Take away what an earlier `save` wrote."""
    for kind in KINDS:
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
