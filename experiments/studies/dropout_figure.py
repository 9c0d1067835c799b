"""The figure and the table of the study of dropouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacks.pictures import EXACT_DB, RECOGNISED_DB
from experiments.figure_data import DECORATION
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, STYLE
from experiments.studies.base import Values, rows
from experiments.studies.drawing import cells, entry, line, number, pictures
from experiments.table import Entry, Page, Table

if TYPE_CHECKING:
    from experiments.studies.dropout import Dropout, Variant

NONE, FOR_ALL, FOR_THRESHOLD = "no noise", "noise for all", "noise for the threshold"
EACH = "each update"
EACH_NOISY = f"{EACH}, {FOR_ALL}"
LOOKS: dict[str, dict[str, Any]] = {
    NONE: {"color": BLUE, "marker": "o", "linestyle": "-", "shift": 0.97},
    FOR_ALL: {"color": ORANGE, "marker": "s", "linestyle": "-"},
    FOR_THRESHOLD: {"color": GREEN, "marker": "^", "linestyle": "--", "shift": 1.03},
}
FLAT: dict[str, dict[str, Any]] = {
    EACH: {"color": BLUE, "linestyle": (0, (4, 2))},
    EACH_NOISY: {"color": ORANGE, "linestyle": (0, (6, 1, 1, 1))},
    "mean image": {"color": GREY, "linestyle": ":"},
    "nearest public image": {"color": GREY, "linestyle": "-."},
}


def _words(study: Dropout) -> dict[str, str]:
    return {
        NONE: "sum of the survivors, no noise",
        FOR_ALL: f"noise for ε = {study.epsilon:g} with everybody's share",
        FOR_THRESHOLD: f"noise for ε = {study.epsilon:g} with {study.planned} shares",
        EACH: "no masks: each update",
        EACH_NOISY: "no masks: each update, noise as in orange",
        "mean image": "blind: mean image",
        "nearest public image": "blind: nearest public image",
    }


def draw(study: Dropout, records: Sequence[Values], title: str) -> Figure:
    """Pictures, membership and ε against the survivors; what each protocol allows; and some pictures."""
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(PAGE, 4.9), layout="constrained")
        places = figure.add_gridspec(2, 3)
        picture, member, epsilon = (figure.add_subplot(places[0, at]) for at in range(3))
        _panel(study, picture, records, "psnr", "PSNR (dB)", "a  The victim's one picture")
        picture.set_ylim(0, EXACT_DB * 1.04)
        for one in _variants(study)[1:3]:
            picture.text(one.threshold - 0.2, 72, one.name, rotation=90, va="top", fontsize=6, color="0.35")
        _panel(study, member, records, "auc", "AUC", "b  Who was in the sum")
        for name in (FOR_ALL, FOR_THRESHOLD):
            ceiling = sorted(rows(records, metric="auc ceiling", server=name), key=lambda one: float(one["survivors"]))
            at, most = [one["survivors"] for one in ceiling], [one["value"] for one in ceiling]
            style = ":" if name == FOR_ALL else (0, (1, 3))
            member.plot(at, most, color=LOOKS[name]["color"], linewidth=0.8, linestyle=style, gid=f"ceiling, {name}")
        above = member.plot([], [], color="0.3", linewidth=0.8, linestyle=":", label="ceiling of the same ρ")
        member.legend(handles=above, loc="lower left")
        member.axhline(0.5, color="0.7", linewidth=0.8, zorder=0)
        member.set_ylim(0.38, 1.02)
        _panel(study, epsilon, records, "epsilon", "ε", "c  What is still guaranteed")
        epsilon.axhline(study.epsilon, color="black", linewidth=0.8, linestyle=(0, (1, 1)), zorder=0)
        epsilon.text(1, 0.97 * study.epsilon, "promised", fontsize=6, va="top")
        epsilon.set_ylim(0, None)
        handles, words = picture.get_legend_handles_labels()
        figure.legend(handles, words, loc="outside lower center", ncols=3)
        _protocols(study, figure.add_subplot(places[1, :2]), records)
        _examples(study, figure.add_subplot(places[1, 2]), records)
        figure.suptitle(title)
    return figure


def _panel(study: Dropout, axes: Axes, records: Sequence[Values], metric: str, words: str, heading: str) -> None:
    found = rows(records, part="survivors", metric=metric)
    for name, look in LOOKS.items():
        mine = [one for one in found if one["server"] == name]
        line(axes, mine, "survivors", markersize=4, label=_words(study)[name], **look)
    for name, look in FLAT.items():
        level = [one["value"] for one in found if one["server"] == name and one["value"] is not None]
        if level:
            axes.axhline(float(np.mean(level)), linewidth=1, label=_words(study)[name], **look)
    for threshold in sorted({one.threshold for one in _variants(study)} - {1}):
        axes.axvline(threshold - 0.5, color="0.85", linewidth=3, zorder=0, label=DECORATION)
    axes.set_xticks([1, *range(5, study.clients + 1, 5)])
    axes.set(xlabel=f"survivors of {study.clients}", ylabel=words)
    axes.set_title(heading, loc="left")


def _variants(study: Dropout) -> list[Variant]:
    from experiments.studies.dropout import variants  # which imports this module

    return variants(study.clients)


def _protocols(study: Dropout, axes: Axes, records: Sequence[Values]) -> None:
    """For each protocol: the smallest sum that the server has got, and what two stories about the victim gave it."""
    lines: list[list[tuple[str, bool | None]]] = []
    for variant in _variants(study):
        fewest = _fewest(records, variant.name)
        told = next(iter(rows(records, part="stories", server=variant.name)), None)
        name = variant.name if variant.threshold == 1 else f"{variant.name}: {variant.threshold}"
        small = "—" if fewest is None else f"{fewest} of {study.clients}"
        few = fewest is not None and fewest < study.planned
        story = "—" if told is None else _story(told)
        lines.append([(name, None), (small, few), (story, told is not None and told["value"] > 0)])
    cells(axes, ["threshold", "smallest sum", "two stories about the victim"], [0.25, 0.2, 0.55], lines)
    axes.set_title("d  What the protocol lets the server have", loc="left")


def _fewest(records: Sequence[Values], variant: str) -> int | None:
    accepted = [one["survivors"] for one in rows(records, metric="a sum", server=variant) if one["value"] > 0]
    return min(accepted, default=None)


def _story(told: Values) -> str:
    if told["value"] > 0:
        return f"the victim's own vector, to the bit ({told['value']:.0%})"
    why = str(told["note"]).split(" times ", 1)[-1].replace(" of two secrets that take ", ", it takes ")
    return f"nothing: {why}"


def _examples(study: Dropout, axes: Axes, records: Sequence[Values]) -> None:
    kept = {one["survivors"]: one["pictures"] for one in records if one["part"] == "survivors"}
    chosen = sorted({min(kept), *[one for one in kept if one in (2, study.planned)], max(kept)})
    columns = [("true", kept[chosen[0]]["truth"])]
    columns += [(f"sum\nof {count}", kept[count][NONE]) for count in chosen]
    columns.append((f"{chosen[0]} with\nnoise", kept[chosen[0]][FOR_ALL]))
    pictures(axes, columns)
    axes.set_title("e  Victims", loc="left", pad=18)


def table(study: Dropout, records: Sequence[Values]) -> Page:
    """What the server gets, in numbers."""
    names = _words(study)
    parts: list[str | Table] = [
        f"{study.trials} cohorts of {study.clients} a point, each with a victim. PSNR in dB, an exact recovery "
        f"({EXACT_DB:g} dB or more) as {EXACT_DB:g}; recognised is the share of pictures at {RECOGNISED_DB:g} dB or "
        "more. Membership is told by the inner product of a picture's own update with what the server sees, both less "
        f"the mean of public ones, against {study.clients} pictures of nobody's a cohort. Brackets are 95% intervals: "
        "by bootstrap over victims or cohorts, and by Clopper and Pearson for shares. The most that an AUC can be is "
        "that of a Gaussian mechanism with the same ρ.",
        f"ε at δ = {study.delta:g} is for one client, whose update becomes zero, with as many shares of the noise as "
        "there are survivors.",
        "## Sums of survivors",
        Table(
            ["survivors", "seen", "ε", "PSNR", "recognised", "AUC", "AUC at most"],
            [
                _line(records, count, server, names[server])
                for count in study.survivors
                for server in (NONE, FOR_ALL, FOR_THRESHOLD)
            ]
            + [_line(records, study.survivors[0], server, names[server]) for server in FLAT],
        ),
        "## What the protocol allows",
        Table(
            ["threshold", *(f"{count}" for count in study.survivors)],
            [
                [
                    f"{one.name} ({one.threshold})",
                    *("a sum" if row["value"] == 1 else "aborted" for row in _ends(study, records, one.name)),
                ]
                for one in _variants(study)
            ],
        ),
        "## Two stories about the victim",
        Table(
            ["threshold", "victim's own vector, to the bit", "otherwise"],
            [
                [f"{variant.name} ({variant.threshold})", entry(one), one["note"] or "—"]
                for variant in _variants(study)
                for one in rows(records, part="stories", server=variant.name)
            ],
        ),
        "A vector of its own carries one share of the noise: with noise for all, it is that of a server without masks, "
        f"ε = {number(_each(records))}.",
    ]
    return parts


def _each(records: Sequence[Values]) -> float | None:
    told = rows(records, part="survivors", metric="epsilon", server=EACH_NOISY)
    return told[0]["value"] if told else None


def _ends(study: Dropout, records: Sequence[Values], variant: str) -> list[Values]:
    return [rows(records, metric="a sum", server=variant, survivors=count)[0] for count in study.survivors]


def _line(records: Sequence[Values], count: int, server: str, words: str) -> list[Entry]:
    def one(metric: str) -> Values | None:
        return next(iter(rows(records, part="survivors", survivors=count, metric=metric, server=server)), None)

    promised, ceiling = one("epsilon"), one("auc ceiling")
    return [
        "any" if server in FLAT else str(count),
        words,
        number(promised["value"] if promised else None),
        entry(one("psnr")),
        entry(one("recognised")),
        entry(one("auc")),
        number(ceiling["value"] if ceiling else None),
    ]
