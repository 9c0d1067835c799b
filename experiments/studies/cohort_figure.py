"""The figure of `cohort`: what is measured as marks with 95% bars, what is predicted as lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from attacks.pictures import EXACT_DB
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, SKY, STYLE
from experiments.studies.base import Values, rows
from experiments.studies.cohort_membership import EXACT, PUBLIC
from experiments.studies.panels import below, marks

COLORS = (BLUE, GREEN, ORANGE, PURPLE, SKY, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(records: Sequence[Values], title: str, fpr: float) -> Figure:
    """Six panels over the cohort's size, and below them what the attacker makes of a sum of pictures."""
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(PAGE, 7.3), layout="constrained")
        top, strip = figure.subfigures(2, 1, squeeze=False, height_ratios=(5.75, 1.35)).flat
        known, attacks, settings, noise, few, pictures = top.subplots(2, 3).flat
        _known(known, records)
        _attacks(attacks, records)
        _settings(settings, records)
        _noise(noise, records, "auc", "d  Masks and noise in shares", "AUC")
        _noise(few, records, "tpr", "e  The same, few false alarms", f"TPR at {fpr:.3g} FPR")
        _pictures(pictures, records)
        for axes in (known, attacks, settings, noise, few, pictures):
            axes.set_xscale("log")
            axes.set_xlabel("clients in the sum")
        for axes in (known, attacks, settings, noise):
            axes.axhline(0.5, color="0.75", linewidth=0.8, zorder=0)
        few.axhline(fpr, color="0.75", linewidth=0.8, zorder=0)
        _strip(strip, [record for record in records if record["kind"] == "pictures"])
        figure.suptitle(f"{title}; marks: measured, 95% intervals; lines: predicted")
    return figure


def predicted(axes: Axes, found: Sequence[Values], color: str, **style: Any) -> None:
    """A line through what theory predicts, where it predicts something."""
    drawn = [row for row in found if row["theory"] is not None]
    axes.plot([row["cohort"] for row in drawn], [row["theory"] for row in drawn], color=color, linewidth=0.9, **style)


def _frame(axes: Axes, title: str, ylabel: str, low: float = 0.45) -> None:
    axes.set_title(title, loc="left")
    axes.set_ylabel(ylabel)
    axes.set_ylim(low, 1.03)


def _known(axes: Axes, records: Sequence[Values]) -> None:
    _frame(axes, "a  Known answer: Gaussian updates", "AUC")
    dimensions = list(dict.fromkeys(row["dimension"] for row in rows(records, kind="gaussian")))
    for number, dimension in enumerate(dimensions):
        for game, words, line, face in (("replaced", "replaced", "-", None), ("pair", "known pair", "--", "white")):
            found = rows(records, kind="gaussian", dimension=dimension, game=game, metric="auc")
            color, marker = COLORS[number], MARKERS[number]
            label = f"d = {dimension}, {words}"
            marks(axes, found, "cohort", color=color, marker=marker, label=label, markerfacecolor=face)
            predicted(axes, found, color, linestyle=line, gid=f"{label}, predicted")
    below(axes, 2)


def _attacks(axes: Axes, records: Sequence[Values]) -> None:
    _frame(axes, "b  Real updates, four attackers", "AUC")
    for (attack, knowledge, words), color, marker in zip(
        (
            ("matched filter", EXACT, "matched filter, exact mean"),
            ("matched filter", PUBLIC, "matched filter, public data"),
            ("inner product", "none", "inner product"),
            ("cosine", "none", "cosine"),
        ),
        COLORS,
        MARKERS,
        strict=False,
    ):
        about = {"kind": "membership", "model": "initial", "target": "client", "local_steps": 1, "metric": "auc"}
        found = rows(records, **about, attack=attack, knowledge=knowledge)
        face = "white" if attack == "cosine" else None
        marks(axes, found, "cohort", color=color, marker=marker, label=words, markerfacecolor=face)
        predicted(axes, found, color, gid=f"{words}, predicted")
    below(axes)


def _settings(axes: Axes, records: Sequence[Values]) -> None:
    _frame(axes, "c  Whose data, which model", "AUC")
    about = {"kind": "membership", "attack": "matched filter", "knowledge": EXACT, "metric": "auc"}
    every = rows(records, **about)
    settings = dict.fromkeys((row["model"], row["target"], row["local_steps"]) for row in every)
    for (model, target, steps), color, marker in zip(settings, COLORS, MARKERS, strict=False):
        found = [row for row in every if (row["model"], row["target"], row["local_steps"]) == (model, target, steps)]
        words = {"client": "a client", "example": "an example"}[target]
        more = f", {steps} steps" if steps > 1 else ""
        label = f"{words}, {model} model{more}"
        marks(axes, found, "cohort", color=color, marker=marker, label=label)
        predicted(axes, found, color, gid=f"{label}, predicted")
    below(axes)


def _noise(axes: Axes, records: Sequence[Values], metric: str, title: str, ylabel: str) -> None:
    _frame(axes, title, ylabel, low=0.45 if metric == "auc" else -0.02)
    plain = rows(records, kind="noise", epsilon=None, metric=metric)
    marks(axes, plain, "cohort", color="black", marker="x", gid="masks alone")
    predicted(axes, plain, "black", gid="masks alone, predicted")
    epsilons = sorted({row["epsilon"] for row in rows(records, kind="noise") if row["epsilon"] is not None})
    for number, (epsilon, color, marker) in enumerate(zip(epsilons, (BLUE, GREEN, ORANGE), MARKERS, strict=False)):
        for view, line, face in (("server", "--", "white"), ("secure_server", "-", None)):
            found = rows(records, kind="noise", epsilon=epsilon, view=view, metric=metric)
            words = f"ε = {epsilon:g}, {view.replace('_', ' ')}"
            marks(axes, found, "cohort", color=color, marker=marker, markerfacecolor=face, gid=words)
            predicted(axes, found, color, linestyle=line, gid=f"{words}, predicted")
        axes.plot(
            [found[0]["cohort"], found[-1]["cohort"]], [found[0]["ceiling"]] * 2,
            color=color, linestyle=(0, (1, 1 + number)), linewidth=0.9, gid=f"ceiling of ε = {epsilon:g}",
        )  # fmt: skip
    handles = [Line2D([], [], color="black", marker="x", markersize=3.2, linewidth=0.9, label="masks alone")]
    handles += [
        Line2D([], [], color=GREY, linestyle="--", marker="o", markerfacecolor="white", markersize=3.2, linewidth=0.9,
               label="noise alone"),
        Line2D([], [], color=GREY, marker="o", markersize=3.2, linewidth=0.9, label="masks and noise"),
        Line2D([], [], color=GREY, linestyle=(0, (1, 1.5)), linewidth=0.9, label="… ceiling that ε allows"),
    ]  # fmt: skip
    colors = [
        Line2D([], [], color=color, marker=marker, linestyle="none", markersize=3.2, label=f"ε = {epsilon:g}")
        for epsilon, color, marker in zip(epsilons, (BLUE, GREEN, ORANGE), MARKERS, strict=False)
    ]
    below(axes, handles=handles if metric == "auc" else colors)


def _pictures(axes: Axes, records: Sequence[Values]) -> None:
    axes.set_title("f  Pictures from the sum", loc="left")
    axes.set_ylabel("PSNR (dB)")
    about = {"kind": "pictures", "metric": "psnr"}
    epsilons = {row["noise_epsilon"] for row in rows(records, **about)} - {None}
    wanted: list[tuple[dict[str, Any], str, str, str, str]] = [
        (
            {"attack": "rows", "question": "somebody", "noise_epsilon": None},
            "somebody's, attacker's pick",
            BLUE,
            "o",
            "-",
        ),
        ({"attack": "rows", "question": "victim", "noise_epsilon": None}, "the victim's, best row", GREEN, "s", "-"),
        ({"attack": "inverting sums", "question": "victim"}, "the victim's, fitted", PURPLE, "D", "-"),
    ]
    for epsilon in epsilons:
        noisy = {"attack": "rows", "question": "somebody", "noise_epsilon": epsilon, "view": "secure_server"}
        wanted.append((noisy, f"somebody's, noise of ε = {epsilon:g}", ORANGE, "^", "-"))
    mean = {"attack": "blind: mean picture"}
    wanted.append((mean | {"question": "somebody"}, "blind: mean, somebody's", GREY, "x", ":"))
    wanted.append((mean | {"question": "victim"}, "blind: mean, the victim's", GREY, "+", ":"))
    for fields, words, color, marker, line in wanted:
        found = rows(records, **about, **fields)
        marks(axes, found, "cohort", color=color, marker=marker, label=words, linestyle=line)
    axes.axhline(EXACT_DB, color="0.75", linewidth=0.8, zorder=0)
    axes.text(1, EXACT_DB + 2, "exact", fontsize=6, color="0.4")
    axes.set_ylim(0, 112)
    below(axes)


def _strip(figure: SubFigure, records: Sequence[Values]) -> None:
    """For the sum of the median PSNR of each size: the attacker's choice, and the client's picture nearest to it."""
    grid = figure.subplots(2, len(records), squeeze=False)
    for column, record in enumerate(records):
        first = record["shown"]
        for line, name in enumerate(("recovered", "nearest")):
            axes: Axes = grid[line, column]
            axes.imshow(_pixels(first[name]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[["left", "bottom"]].set_visible(False)
        decibels = first["psnr"]
        words = "exact" if decibels >= EXACT_DB else f"{decibels:.0f} dB"
        grid[0, column].set_title(f"n = {record['cohort']}", fontsize=6.5, fontweight="normal", pad=2)
        grid[1, column].set_xlabel(words, fontsize=6, labelpad=2)
    for line, words in enumerate(("attacker's\npick", "nearest\nclient")):
        grid[line, 0].set_ylabel(words, fontsize=6)


def _pixels(picture: Iterable[Any]) -> np.ndarray[Any, Any]:
    array = np.array(picture)
    return array[0] if len(array) == 1 else array.transpose(1, 2, 0)
