"""The figure and the tables of `reconstruction`: each case's pictures, and its numbers beside those published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from torch import Tensor

from attacks.pictures import match
from attacks.reconstruction.base import Reconstruction
from experiments.figures import BLUE, GREY, ORANGE, PAGE, STYLE
from experiments.studies.base import Values
from experiments.studies.drawing import entry, number
from experiments.table import Page, Table


def aligned(found: Reconstruction, truth: Tensor) -> Tensor:
    """The attacker's answers [pictures, ...] in the order of the true ones [victims, examples, ...], one by one."""
    chosen = found.selected()
    order = [torch.from_numpy(match(own, true)) for own, true in zip(chosen, truth, strict=True)]
    return torch.cat([own[places] for own, places in zip(chosen, order, strict=True)])


def draw(records: Sequence[Values], title: str) -> Figure:
    """Each case's PSNR beside its pictures."""
    count = len(records)
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(PAGE, 1.1 + 0.4 * count), layout="constrained")
        numbers, shown = figure.subplots(1, 2, width_ratios=[1.3, 2.6])
        _numbers(numbers, records)
        _pictures(shown, records)
        handles = dict(zip(*reversed(numbers.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
        figure.suptitle(title)
    return figure


def _of(record: Values, metric: str, by: str | None = None) -> Values:
    """A case's row; its attack's unless another's is asked for."""
    wanted = by or record["rows"][0]["by"]
    return next(row for row in record["rows"] if row["metric"] == metric and row["by"] == wanted)


def _numbers(axes: Axes, records: Sequence[Values]) -> None:
    """PSNR by the attacker's choice with its interval, the best restart, the nearest public picture, and the goal."""
    for line, record in enumerate(records):
        own, best = _of(record, "psnr"), _of(record, "psnr_oracle")
        blind = _of(record, "psnr", "blind (nearest public image)")
        bars = [[own["value"] - own["low"]], [own["high"] - own["value"]]]
        axes.errorbar(
            [own["value"]], [line], xerr=bars, color=BLUE, marker="o", markersize=3.5, label="attacker's choice"
        )
        axes.plot([best["value"]], [line], color=ORANGE, marker="|", markersize=8, linestyle="", label="best restart")
        axes.plot([blind["value"]], [line], color=GREY, marker="x", markersize=4, linestyle="", label="nearest public")
        if record["about"].get("goal") is not None:
            goal = record["about"]["goal"]
            axes.plot([goal], [line], color="k", marker="d", markersize=4, mfc="none", linestyle="", label="goal")
    axes.set_yticks(range(len(records)), [record["case"] for record in records])
    axes.set_ylim(len(records) - 0.5, -0.5)
    axes.set_xlabel("PSNR, dB (mean over victims)")
    axes.xaxis.set_major_locator(MultipleLocator(20))
    axes.grid(axis="x", linewidth=0.4, color="0.9")


def _pictures(axes: Axes, records: Sequence[Values]) -> None:
    """True pictures, and recovered ones to the right of each."""
    channels, height, width = np.shape(records[0]["shown"]["truth"][0])
    gap = max(2, height // 8)
    most = max(len(record["shown"]["truth"]) for record in records)
    sheet = np.ones((len(records) * (height + gap), most * (2 * width + gap), 3))
    for line, record in enumerate(records):
        top = line * (height + gap)
        for place, pair in enumerate(zip(record["shown"]["truth"], record["shown"]["found"], strict=True)):
            for side, pixels in enumerate(pair):
                left = place * (2 * width + gap) + side * width
                sheet[top : top + height, left : left + width] = np.asarray(pixels).transpose(1, 2, 0)
    assert channels in (1, 3)
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    axes.set_title("true | recovered", loc="left")


def table(records: Sequence[Values]) -> Page:
    """The attacks' numbers, then those of the blind guesses."""
    heads = [
        "case", "attack", "told", "victims", "PSNR, dB", "median", "best restart by the truth", "goal, dB", "reached",
        "SSIM", "identified", "labels found", "gradients",
    ]  # fmt: skip
    lines, blind, models = [], [], {}
    for record in records:
        about: dict[str, Any] = record["about"]
        goal, median = about.get("goal"), about.get("of") == "median"
        judged = _of(record, "psnr_median" if median else "psnr")
        verdict = "—" if goal is None else "yes" if judged["value"] >= goal else "no"
        stated = "—" if goal is None else f"{goal:g}{' (median)' * median}, {about.get('source', '')}"
        lines.append(
            [
                record["case"], judged["by"], judged["knowledge"], judged["samples"],
                entry(_of(record, "psnr")), entry(_of(record, "psnr_median")), entry(_of(record, "psnr_oracle")),
                stated, verdict, entry(_of(record, "ssim")), entry(_of(record, "identified")),
                entry(_of(record, "label_recall")), number(_of(record, "evaluations")["value"]),
            ]
        )  # fmt: skip
        guesses = dict.fromkeys(row["by"] for row in record["rows"] if row["by"].startswith("blind"))
        blind.append([record["case"], *(entry(_of(record, "psnr", by)) for by in guesses)])
        models[f"{about['model']}, {'trained' if about.get('trained') else 'new'}"] = record["accuracy"]
    names = dict.fromkeys(row["by"] for row in records[0]["rows"] if row["by"].startswith("blind"))
    right = "\n".join(f"- {name}: {value:.3f}" for name, value in models.items())
    return [
        Table(heads, lines),
        "PSNR of guesses that see no update, in dB:",
        Table(["case", *names], blind),
        f"Accuracy of the models on the pool that victims come from:\n\n{right}",
    ]
