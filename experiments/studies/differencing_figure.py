"""The figure of `differencing`: over the number of rounds that the server solves, with 95% bars over replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, SKY, STYLE
from experiments.studies.base import Values, rows
from experiments.studies.panels import below, marks

SCHEMES = {
    "uniform": ("drawn anew", BLUE, "o"),
    "swapping": ("one swapped", ORANGE, "^"),
    "batches": ("whole batches", GREEN, "s"),
}
REGIMES = {
    "still": ("model stands still", BLUE, "o"),
    "late": ("trained, slow steps", ORANGE, "^"),
    "early": ("new, slow steps", GREEN, "s"),
    "batched": ("trained, minibatches", PURPLE, "D"),
    "fast": ("new, full steps", SKY, "v"),
}


def draw(records: Sequence[Values], title: str) -> Figure:
    """What cohorts tell apart, and how far off the solved updates are, over the number of rounds."""
    lengths = sorted({row["rounds"] for row in rows(records)})
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(2, 3, figsize=(PAGE, 5.9), layout="constrained")
        resolved, still, drifting, early, regimes, noisy = grid.flat
        _schemes(resolved, records, "resolution", regime="still", epsilon=None)
        _frame(resolved, "a  What cohorts tell apart", "resolved share of an update", lengths)
        resolved.set_ylim(-0.03, 1.05)
        _schemes(still, records, "error", regime="still", epsilon=None)
        _frame(still, "b  Error, updates constant", "relative error", lengths)
        _by_regime(drifting, [record for record in records if record["regime"] != "still"], "error")
        _frame(drifting, "c  Error, cohorts drawn anew", "relative error", lengths)
        for axes in (still, drifting):
            axes.set_yscale("log")
            axes.axhline(1, color="0.75", linewidth=0.8, zorder=0)
        _membership(early, records)
        _frame(early, "d  Membership, slow steps", "AUC", lengths)
        _by_regime(regimes, records, "auc", source="recovered")
        _frame(regimes, "e  Membership, cohorts drawn anew", "AUC", lengths)
        _noise(noisy, records)
        _frame(noisy, "f  As d, with noise in shares", "AUC", lengths)
        for axes in (early, regimes, noisy):
            axes.set_ylim(0.45, 1.03)
            axes.axhline(0.5, color="0.75", linewidth=0.8, zorder=0)
        figure.suptitle(title)
    return figure


def _frame(axes: Axes, title: str, ylabel: str, lengths: Sequence[int]) -> None:
    axes.set_title(title, loc="left")
    axes.set_ylabel(ylabel)
    axes.set_xlabel("rounds solved")
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlim(lengths[0] * 0.9, lengths[-1] * 1.1)
    axes.xaxis.set_minor_locator(NullLocator())


def _line(
    axes: Axes, found: Sequence[Values], color: str, marker: str, label: str, linestyle: str = "-", **style: Any
) -> None:
    marks(axes, found, "rounds", color=color, marker=marker, label=label, linestyle=linestyle, **style)


def _schemes(axes: Axes, records: Sequence[Values], metric: str, **wanted: Any) -> None:
    for scheme, (words, color, marker) in SCHEMES.items():
        found = rows(records, scheme=scheme, metric=metric, **wanted)
        if found:
            _line(axes, found, color, marker, words)
    below(axes)


def _by_regime(axes: Axes, records: Sequence[Values], metric: str, **wanted: Any) -> None:
    for regime, (words, color, marker) in REGIMES.items():
        about = {"regime": regime, "scheme": "uniform", "epsilon": None}
        found = rows(records, metric=metric, **about, **wanted)
        if not found:
            continue
        drift = rows(records, metric="drift", **about)[-1]["value"]
        _line(axes, found, color, marker, f"{words} (drift {drift:.2g})" if metric == "error" else words)
        if metric == "auc":
            bare = rows(records, metric=metric, **about, source="sums")
            axes.plot([row["rounds"] for row in bare], [row["value"] for row in bare], color=color, linestyle=":",
                      marker=marker, markersize=2.5, markerfacecolor="white", linewidth=0.9,
                      gid=f"{words}, from the sums")  # fmt: skip
    below(axes)


def _membership(axes: Axes, records: Sequence[Values]) -> None:
    about = {"regime": "early", "epsilon": None, "metric": "auc"}
    for scheme, (words, color, marker) in SCHEMES.items():
        found = rows(records, scheme=scheme, source="recovered", **about)
        if found:
            _line(axes, found, color, marker, f"recovered, {words}")
    for source, words, line in (("unmasked", "without masks", "--"), ("sums", "from the sums alone", ":")):
        found = rows(records, scheme="uniform", source=source, **about)
        if found:
            _line(axes, found, GREY, "x", words, linestyle=line)
    below(axes)


def _noise(axes: Axes, records: Sequence[Values]) -> None:
    handles: list[Line2D] = []
    noisy = [record for record in records if record["epsilon"] is not None]
    epsilons = sorted({record["epsilon"] for record in noisy})
    for number, (epsilon, color, marker) in enumerate(
        zip(epsilons, (BLUE, ORANGE, PURPLE), ("o", "^", "D"), strict=False)
    ):
        for scheme, source, line, face in (
            ("uniform", "recovered", "-", None),
            ("batches", "recovered", "--", None),
            ("uniform", "unmasked", ":", "white"),
        ):
            found = rows(noisy, epsilon=epsilon, scheme=scheme, source=source, metric="auc")
            if found:
                words = f"ε = {epsilon:g}, {scheme}, {source}"
                _line(axes, found, color, marker, "", linestyle=line, markerfacecolor=face, gid=words)
        ceiling = next(record["ceiling"] for record in noisy if record["epsilon"] == epsilon)
        axes.axhline(
            ceiling, color=color, linestyle=(0, (1, 1 + number)), linewidth=0.8, zorder=0,
            gid=f"ceiling of ε = {epsilon:g}",
        )  # fmt: skip
        handles.append(
            Line2D([], [], color=color, marker=marker, markersize=3.4, linestyle="none", label=f"ε = {epsilon:g}")
        )
    for words, line, face in (
        ("recovered, drawn anew", "-", GREY), ("recovered, batches", "--", GREY), ("noise, no masks", ":", "white"),
    ):  # fmt: skip
        look: dict[str, Any] = {"linestyle": line, "markerfacecolor": face}
        handles.append(Line2D([], [], color=GREY, marker="o", markersize=3.4, label=words, **look))
    below(axes, handles=handles)
