"""The figure and the tables of `reconstruction_vs_defence`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from experiments.figure_data import DECORATION
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, SKY, STYLE
from experiments.studies.base import Values, rows
from experiments.studies.drawing import entry, number, pictures
from experiments.table import End, Page, Table

LOOKS = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (PURPLE, "D"), (SKY, "v"), ("#000000", "P"), ("#E69F00", "X"))
PRIVATE = ("example DP", "client DP", "secure aggregation")
Point = tuple[str, Any, float | None]
"""A defence, its strength and its ε."""
UNITS = {
    "example DP": "one example, noise by its client",
    "client DP": "one client, noise by itself",
    "secure aggregation": "one client, noise in shares under masks",
}
LINES, HEADINGS, NAMES = 4.4, 0.4, 1.05
"""Inches: how high the panels over ε are with their legend, and the pictures' headings; how wide the attacks' names."""
METRICS = (("psnr", "PSNR, dB"), ("identified", "share identified"), ("label_recall", "share of labels"))


def draw(records: Sequence[Values], title: str) -> Figure:
    """Each attack over the defences' ε, the defences without one as a map, and pictures."""
    attacks, found = list(dict.fromkeys(record["attack"] for record in records)), rows(records)
    plain = [point for point in defences(records) if point[2] is None]
    with plt.style.context(STYLE):
        heights = (LINES, 0.92 + 0.13 * len(attacks), _gallery_height(records, attacks))
        figure = plt.figure(figsize=(PAGE, sum(heights)), layout="constrained")
        parts: Any = figure.subfigures(3, 1, height_ratios=heights)
        lines, heat, shown = parts
        grid = lines.subplots(3, 3, sharex=True)
        for row, defence in zip(grid, PRIVATE, strict=True):
            for axes, (metric, label) in zip(row, METRICS, strict=True):
                _over_epsilon(axes, found, attacks, defence, metric)
                axes.set_ylabel(label)
            row[0].set_title(f"{defence}: {UNITS[defence]}", loc="left")
        for axes in grid[-1]:
            axes.set_xlabel("ε")
        lines.legend(handles=_handles(attacks), loc="outside lower center", ncols=5)
        for axes, (metric, label, digits) in zip(
            heat.subplots(1, 2, sharey=True),
            (("psnr", "PSNR, dB", 0), ("label_recall", "share of labels found", 2)),
            strict=True,
        ):
            _heat(axes, found, attacks, plain, metric, digits)
            axes.set_title(f"without an ε: {label}", loc="left")
        _gallery(shown.subplots(1, 1), records, attacks)
        figure.suptitle(title)
    return figure


def defences(records: Sequence[Values]) -> list[Point]:
    """The points but for the attack, in the order of the study: (defence, strength, ε)."""
    return list(dict.fromkeys((one["defence"], one["strength"], one["epsilon"]) for one in records))


def called(point: Point) -> str:
    """A defence with its strength in words."""
    defence, strength, epsilon = point
    if defence == "quantisation":
        return "signs" if strength == 1 else f"{strength} bits"
    if strength is not None:
        return f"{defence} {strength:g}"
    return defence if epsilon is None else f"{defence} ε = {epsilon:g}"


def _handles(attacks: Sequence[str]) -> list[Line2D]:
    styles = zip(attacks, LOOKS, strict=False)
    found = [Line2D([], [], color=color, marker=marker, markersize=3, label=name) for name, (color, marker) in styles]
    found.append(Line2D([], [], color=GREY, linestyle=":", label="nearest public picture"))
    found.append(Line2D([], [], color=GREY, linestyle="--", label="mean picture"))
    found.append(Line2D([], [], color="black", linestyle=(0, (1, 1)), label="the most that ε allows"))
    return found


def _of(found: Sequence[Values], **wanted: Any) -> list[Values]:
    """The rows with all of the wanted values, of rows that are flat already: there are thousands, asked often."""
    return [row for row in found if all(row.get(name) == value for name, value in wanted.items())]


def _over_epsilon(axes: Axes, found: Sequence[Values], attacks: Sequence[str], defence: str, metric: str) -> None:
    """One metric over ε; at ∞ the same without noise, which for examples and clients is no defence at all."""
    without = "none" if defence != "secure aggregation" else defence
    finite = sorted({row["epsilon"] for row in _of(found, defence=defence) if row["epsilon"] is not None})
    ticks = np.log2([*finite, finite[-1] * 8]) if finite else np.array([0.0])
    for place, (name, (color, marker)) in enumerate(zip(attacks, LOOKS, strict=False)):
        picked = [
            next(iter(_of(found, defence=defence, epsilon=one, attack=name, by=name, metric=metric)), None)
            for one in finite
        ]
        picked.append(next(iter(_of(found, defence=without, epsilon=None, attack=name, by=name, metric=metric)), None))
        shift = 0.12 * (place - (len(attacks) - 1) / 2)
        pairs = [(x + shift, one) for x, one in zip(ticks, picked, strict=True) if one and one["value"] is not None]
        if not pairs:
            continue
        x = np.array([pair[0] for pair in pairs])
        value, low, high = (
            np.array([one[field] for _, one in pairs], dtype=float) for field in ("value", "low", "high")
        )
        bars = np.insert(np.maximum([value - low, high - value], 0), len(x) - 1, np.nan, axis=1)
        x, value = (np.insert(one, len(x) - 1, np.nan) for one in (x, value))  # ε = ∞ is no step along the axis
        axes.errorbar(
            x, value, yerr=bars, color=color, marker=marker, markersize=2.5, linewidth=0.8, elinewidth=0.6, gid=name
        )
    if metric == "psnr":
        for blind, style in (("blind (nearest public image)", ":"), ("blind (mean image)", "--")):
            level = [row["value"] for row in _of(found, defence=defence, by=blind, metric=metric)]
            if level:
                axes.axhline(float(np.mean(level)), color=GREY, linestyle=style, linewidth=0.9)
    else:
        axes.set_ylim(-0.04, 1.06)
    ceilings = {row["epsilon"]: row["ceiling"] for row in _of(found, defence=defence, metric=metric) if row["ceiling"]}
    if ceilings:
        axes.plot(
            [np.log2(one) for one in sorted(ceilings)], [ceilings[one] for one in sorted(ceilings)], color="black",
            linestyle=(0, (1, 1)), marker="_", linewidth=1, gid="the most that ε allows",
        )  # fmt: skip
    if len(ticks) > 1:
        axes.axvline(float(ticks[-2:].mean()), color="0.88", linewidth=4, zorder=0, label=DECORATION)
    axes.set_xticks(ticks, [*(f"{one:g}" for one in finite), "∞"])
    axes.xaxis.set_minor_locator(NullLocator())


def _heat(
    axes: Axes, found: Sequence[Values], attacks: Sequence[str], points: Sequence[Point],
    metric: str, digits: int,
) -> None:  # fmt: skip
    """Attacks by defences, each with its number."""
    values = np.full((len(attacks), len(points)), np.nan)
    for line, name in enumerate(attacks):
        for column, (defence, strength, _) in enumerate(points):
            for row in _of(
                found, defence=defence, strength=strength, epsilon=None, attack=name, by=name, metric=metric
            ):
                values[line, column] = row["value"]
    top = 40.0 if metric == "psnr" else 1.0
    axes.imshow(values, cmap="cividis", vmin=5.0 if metric == "psnr" else 0.0, vmax=top, aspect="auto")
    for (line, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            bright = value > 0.6 * top
            axes.text(
                column,
                line,
                f"{value:.{digits}f}",
                ha="center",
                va="center",
                fontsize=6,
                color="k" if bright else "w",
            )
    axes.set_xticks(range(len(points)), [called(point) for point in points], rotation=35, ha="right")
    axes.set_yticks(range(len(attacks)), attacks)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _shown(records: Sequence[Values]) -> dict[tuple[Point, str], Values]:
    """The pictures that are kept of each defence that sees single clients, and each attack."""
    return {
        ((record["defence"], record["strength"], record["epsilon"]), record["attack"]): record["shown"]
        for record in records
        if record["defence"] != "secure aggregation"
    }


def _gallery_height(records: Sequence[Values], attacks: Sequence[str]) -> float:
    """Inches that the pictures take with their headings, as wide as the page allows."""
    columns = 1 + len({point for point, _ in _shown(records)})
    return HEADINGS + len(attacks) * (PAGE - NAMES) / columns


def _gallery(axes: Axes, records: Sequence[Values], attacks: Sequence[str]) -> None:
    """One victim's picture by every attack under the defences that see single clients."""
    first = _shown(records)
    points = list(dict.fromkeys(point for point, _ in first))
    truth = next(iter(first.values()))["truth"][0]
    nothing = np.full(np.shape(truth), 0.9).tolist()
    columns: list[tuple[str, Any]] = [("truth", [truth] * len(attacks))]
    for point in points:
        shown = [first[point, name]["found"][0] if (point, name) in first else None for name in attacks]
        heading = called(point).replace(" ", "\n", 1) if point[2] is None else f"ε = {point[2]:g}"
        columns.append((heading, [nothing if one is None else one for one in shown]))
    pictures(axes, columns)
    height = np.shape(truth)[1]
    step = height + max(1, height // 14)
    for defence in dict.fromkeys(point[0] for point in points if point[2] is not None):  # over all of its ε, once
        its = [place for place, point in enumerate(points, start=1) if point[0] == defence and point[2] is not None]
        middle = float(np.mean(its)) * step + height / 2
        axes.annotate(
            defence, (middle, -(step - height)), xytext=(0, 8), textcoords="offset points", ha="center", va="bottom",
            fontsize=6, annotation_clip=False,
        )  # fmt: skip
    for line, name in enumerate(attacks):
        axes.text(-0.3 * step, line * step + height / 2, name, ha="right", va="center", fontsize=6)


def table(records: Sequence[Values]) -> Page:
    """Pictures and labels that every attack found under every defence; then the guesses that see no update."""
    heads = [
        "defence",
        "attack",
        "PSNR, dB",
        "best restart by the truth",
        "SSIM",
        "identified",
        "at most",
        "labels found",
        "verified",
        "gradients",
    ]
    lines = []
    for point in defences(records):
        for name in dict.fromkeys(record["attack"] for record in records):
            mine = dict(zip(("defence", "strength", "epsilon"), point, strict=True)) | {"attack": name, "by": name}
            found = {row["metric"]: row for row in rows(records, **mine)}
            if not found:
                continue
            ceiling = found["identified"]["ceiling"]
            lines.append(
                [
                    called(point), name,
                    *(entry(found.get(one)) for one in ("psnr", "psnr_oracle", "ssim", "identified")),
                    number(ceiling), entry(found.get("label_recall")), entry(found.get("verified")),
                    number(found["evaluations"]["value"]),
                ]
            )  # fmt: skip
    highest: dict[str, End] = dict.fromkeys(("PSNR, dB", "SSIM", "identified", "labels found"), "highest")
    parts: list[str | Table] = [Table(heads, lines, highest, within=("defence",))]
    for alone in (True, False):
        defence = "none" if alone else "secure aggregation"
        blind = [row for row in rows(records, defence=defence, epsilon=None) if str(row["by"]).startswith("blind")]
        named = {(row["by"], row["metric"]): row for row in blind if row["value"] is not None}
        guesses = dict.fromkeys(by for by, _ in named)
        body = [[by, *(entry(named.get((by, one))) for one in ("psnr", "ssim", "identified"))] for by in guesses]
        about = "a client" if alone else "a cohort"
        parts.append(f"Guesses that see no update, about {about}:")
        parts.append(Table(["guess", "PSNR, dB", "SSIM", "identified"], body))
    failures = dict.fromkeys(
        f"- {called((one['defence'], one['strength'], one['epsilon']))}, {one['attack']}: {one['failure']}"
        for one in records
        if one.get("failure")
    )
    if failures:
        parts.append("Not mounted:\n\n" + "\n".join(failures))
    return parts
