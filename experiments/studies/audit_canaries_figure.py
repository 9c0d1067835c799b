"""The figure and the table of the study of canaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from experiments.figure_data import DECORATION
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, STYLE
from experiments.studies.base import Values, rows
from experiments.table import Entry, Page, Table

if TYPE_CHECKING:
    from experiments.studies.audit_canaries import AuditCanaries

LOOKS: dict[str, dict[str, Any]] = {
    "two worlds": {"color": BLUE, "marker": "o"},
    "two worlds, Gaussian": {"color": ORANGE, "marker": "D"},
    "two worlds, sequential": {"color": GREY, "marker": "x"},
    "one run": {"color": GREEN, "marker": "^"},
    "one run, Gaussian": {"color": PURPLE, "marker": "s"},
}
TITLES = {"dp_sgd": "DP-SGD, an example", "dp_fedavg": "DP-FedAvg, a client"}
WORDS = {
    "mislabelled": "mislabelled",
    "blank": "blank",
    "orthogonal": "made orthogonal",
    "dirac": "crafted gradient",
}


def draw(records: Sequence[Values], title: str) -> Figure:
    """A panel for each mechanism and kind of canary: what each auditor shows against what the accountant says."""
    found = rows(records, metric="epsilon")
    mechanisms = [name for name in TITLES if any(one["mechanism"] == name for one in found)]
    kinds = [name for name in WORDS if any(one["kind"] == name for one in found)]
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            len(mechanisms), len(kinds), figsize=(PAGE, 1.75 * len(mechanisms) + 0.9),
            sharex=True, sharey=True, squeeze=False, layout="constrained",
        )  # fmt: skip
        for row, mechanism in enumerate(mechanisms):
            for column, kind in enumerate(kinds):
                axes = grid[row, column]
                _panel(axes, [one for one in found if (one["mechanism"], one["kind"]) == (mechanism, kind)])
                letter = chr(ord("a") + row * len(kinds) + column)
                axes.set_title(f"{letter}  {WORDS[kind]}", loc="left")
                if column == 0:
                    axes.set_ylabel(f"{TITLES[mechanism]}\nε shown")
                if row == len(mechanisms) - 1:
                    axes.set_xlabel("ε of the accountant")
        handles, words = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside lower center", ncols=4)
        figure.suptitle(title)
    return figure


def _panel(axes: Axes, found: Sequence[Values]) -> None:
    ticks = sorted({one["epsilon"] for one in found})
    ends = np.array([0.8 * ticks[0], 1.25 * ticks[-1]])
    axes.set(xscale="log", yscale="symlog", xlim=ends, ylim=(0, 1.3 * ticks[-1]))
    axes.set_yscale("symlog", linthresh=0.5)
    axes.plot(ends, ends, color="black", linewidth=0.8, label="accountant")
    axes.fill_between(ends, ends, 100 * ticks[-1], color="0.94", linewidth=0, zorder=0, label=DECORATION)
    for number, (name, look) in enumerate(LOOKS.items()):
        mine = sorted((one for one in found if one["auditor"] == name), key=lambda one: float(one["epsilon"]))
        # Side by side: where nothing is shown all of them lie at 0.
        at = np.array([one["epsilon"] for one in mine]) * 1.06 ** (number - 2)
        axes.plot(at, [one["value"] for one in mine], markersize=3.2, linewidth=0.9, label=name, clip_on=False, **look)
        if name in ("two worlds", "one run") and mine:
            stroke = ":" if name == "two worlds" else (0, (4, 1, 1, 1, 1, 1))
            most = [one["ceiling"] for one in mine]
            axes.plot(
                at, most, color=look["color"], linestyle=stroke, linewidth=0.8, label=f"most that {name} can show"
            )
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    levels = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    axes.yaxis.set_major_locator(FixedLocator(levels))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{level:g}" for level in levels]))
    axes.yaxis.set_minor_locator(NullLocator())


def table(study: AuditCanaries, records: Sequence[Values]) -> Page:
    """What each auditor shows, with the most that it could have shown, beside the accountant's ε."""
    found = rows(records, metric="epsilon")
    told = (
        f"{study.runs} runs a row, each with {study.canaries} canaries that take part by fair coins; {study.clients} "
        f"clients hold {study.each} ordinary pictures each and take one full step in each of {study.rounds} rounds. "
        f"The attacker knows all but the coins. Lower bounds on ε at δ = {study.delta:g} with 95% confidence, each by "
        "itself, and in brackets the most that a perfect attack could have shown. Two-world audits use the first "
        "canary of each run, one-run audits all canaries of all runs. The Gaussian ones hold for a Gaussian trade-off, "
        "which full steps have."
    )
    lines: list[list[Entry]] = []
    for mechanism in study.mechanisms:
        for kind in study.kinds:
            for epsilon in study.epsilons:
                here = [
                    one
                    for one in found
                    if (one["mechanism"], one["kind"], one["epsilon"]) == (mechanism, kind, float(epsilon))
                ]
                if here:
                    by = {one["auditor"]: one for one in here}
                    cells = [TITLES[mechanism], WORDS[kind], f"{here[0]['accounted']:.2f}"]
                    cells += [_entry(by[name]) for name in LOOKS]
                    lines.append([*cells])
    above = [one for one in found if one["value"] > one["accounted"]]
    above_words = (
        f"{len(above)} of {len(found)} bounds lie above the accountant's ε"
        + (
            ": "
            + "; ".join(f"{one['auditor']}, {one['mechanism']}, {one['kind']}, ε = {one['epsilon']:g}" for one in above)
            if above
            else ""
        )
        + ". At 95% confidence each may do so by chance, in 5% of studies at most."
    )
    return [told, Table(["mechanism", "canary", "accounted ε", *LOOKS], lines), above_words]


def _entry(one: Values) -> str:
    return f"{one['value']:.2f} (≤ {one['ceiling']:.2f})" + " **above**" * bool(one["value"] > one["accounted"])
