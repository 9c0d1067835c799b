"""The figure and the table of the study of imprint layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacks.pictures import EXACT_DB, RECOGNISED_DB, RECOVERED_DB
from attacks.reconstruction.imprint import Kind, alone
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, STYLE
from experiments.studies.base import Values, rows
from experiments.studies.drawing import cells, entry, line, number, pictures
from experiments.table import Entry, Page, Table

if TYPE_CHECKING:
    from experiments.studies.imprint import ImprintSum

DENSE: Kind = "dense"
SPARSE: Kind = "sparse"
TRAPS: Kind = "traps"
GENTLE, HONEST = "sparse, gain 1", "no layer"
SUM, EACH = "sum", "each update"
STEPPED = (DENSE, SPARSE, GENTLE, TRAPS)
LOOKS: dict[str, dict[str, Any]] = {
    DENSE: {"color": BLUE, "marker": "o"},
    SPARSE: {"color": ORANGE, "marker": "s"},
    TRAPS: {"color": GREEN, "marker": "^"},
    GENTLE: {"color": PURPLE, "marker": "D"},
    HONEST: {"color": GREY, "marker": "x"},
}
WORDS = {
    DENSE: "dense imprint",
    SPARSE: "sparse imprint",
    TRAPS: "traps",
    GENTLE: "sparse, small gain",
    HONEST: "model as it is",
}
THEORY: dict[str, Any] = {"linewidth": 0.8, "linestyle": (0, (1, 1))}


def draw(study: ImprintSum, records: Sequence[Values], title: str) -> Figure:
    """Crowds and bins; fixed point, noise and local steps; what a client could see; and some pictures."""
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(PAGE, 6.4), layout="constrained")
        places = figure.add_gridspec(3, 3, height_ratios=[1, 1, 0.85])
        panels = [figure.add_subplot(places[at // 3, at % 3]) for at in range(6)]
        _crowd(study, panels[0], records, DENSE, "a  Dense imprint: crowds and bins")
        _crowd(study, panels[1], records, TRAPS, "b  Traps: crowds and bins")
        panels[1].legend(loc="upper right")
        _bits(panels[2], records)
        _noise(panels[3], records)
        _labels(panels[4], records)
        _steps(study, panels[5], records)
        _examples(figure.add_subplot(places[2, :2]), records)
        _layer(figure.add_subplot(places[2, 2]), records)
        figure.suptitle(title)
    return figure


def _crowd(study: ImprintSum, axes: Axes, records: Sequence[Values], kind: Kind, heading: str) -> None:
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(study.bins)))
    least, most = min(study.clients) * study.batch, max(study.clients) * study.batch
    dense = np.geomspace(least, most, 60)
    for number_, (color, marker, bins) in enumerate(zip(colors, "osD^v<>", study.bins, strict=False)):
        found = [
            one | {"pictures": one["clients"] * study.batch}
            for one in rows(records, part="crowd", metric="recovered", kind=kind, bins=bins)
        ]
        line(axes, found, "pictures", color=color, marker=marker, linestyle="none", markersize=4, label=f"{bins} units")
        axes.plot(dense, [alone(kind, bins, count) for count in dense], color=color, linewidth=0.8,
            linestyle=(0, (1, 1 + number_)),
            gid=f"closed form, {bins} units",
        )  # fmt: skip
    axes.plot([], [], color="0.3", **THEORY, label="closed form")
    axes.set_xscale("log", base=4)
    axes.set_xticks([count * study.batch for count in study.clients])
    axes.set_xticklabels([f"{count * study.batch}" for count in study.clients])
    axes.minorticks_off()
    axes.set_ylim(-0.02, 1.05)
    axes.set(xlabel=f"pictures in the sum ({study.batch} a client)", ylabel="share recovered")
    axes.set_title(heading, loc="left")


def _kinds(axes: Axes, found: Sequence[Values], x: str, kinds: Sequence[str], **style: Any) -> None:
    for kind in kinds:
        mine = [one for one in found if one["kind"] == kind]
        line(axes, mine, x, markersize=4, label=WORDS[kind], **(LOOKS[kind] | style))


def _bits(axes: Axes, records: Sequence[Values]) -> None:
    found = rows(records, part="bits", metric="psnr")
    _kinds(axes, found, "bits", (DENSE, SPARSE, TRAPS))
    axes.set_xticks(sorted({one["bits"] for one in found}))
    axes.set_ylim(0, EXACT_DB * 1.04)
    axes.set(xlabel="bits of the sum", ylabel="PSNR (dB)")
    axes.set_title("c  Fixed point: those alone", loc="left")
    axes.legend(loc="lower right")


def _against_epsilon(records: Sequence[Values], metric: str, server: str) -> list[Values]:
    told = rows(records, part="noise", metric="epsilon", server=SUM, kind=SPARSE)
    promised = {one["noise_multiplier"]: one["value"] for one in told}
    found = rows(records, part="noise", metric=metric, server=server)
    return [one | {"epsilon": promised[one["noise_multiplier"]]} for one in found]


def _epsilon_axis(axes: Axes, heading: str, words: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks([10.0**exponent for exponent in range(1, 9, 2)])
    axes.minorticks_off()
    axes.set(xlabel="ε that the sum guarantees", ylabel=words)
    axes.set_title(heading, loc="left")


def _noise(axes: Axes, records: Sequence[Values]) -> None:
    _kinds(axes, _against_epsilon(records, "recognised", SUM), "epsilon", (DENSE, SPARSE, TRAPS))
    each = [one for one in _against_epsilon(records, "recognised", EACH) if one["kind"] == SPARSE]
    look = LOOKS[SPARSE] | {"linestyle": "--", "markerfacecolor": "white"}
    line(axes, each, "epsilon", markersize=4, label="sparse, each update", **look)
    _epsilon_axis(axes, "d  Noise in shares: pictures", "share recognised")
    axes.set_ylim(-0.02, 1.75)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(loc="upper left")


def _labels(axes: Axes, records: Sequence[Values]) -> None:
    _kinds(axes, _against_epsilon(records, "labels", SUM), "epsilon", (HONEST, SPARSE))
    each = [one for one in _against_epsilon(records, "labels", EACH) if one["kind"] == HONEST]
    look = LOOKS[HONEST] | {"linestyle": "--"}
    line(axes, each, "epsilon", markersize=4, label="as it is, each update", **look)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_ylim(-0.5, 1.05)
    _epsilon_axis(axes, "e  Noise in shares: labels", "correlation of label counts")
    axes.legend(loc="lower right")


def _steps(study: ImprintSum, axes: Axes, records: Sequence[Values]) -> None:
    _kinds(axes, rows(records, part="steps", metric="recovered"), "steps", STEPPED)
    dense = np.linspace(min(study.steps), max(study.steps), 60)
    once = study.cohort * study.cohort_batch
    closed = [alone(DENSE, study.units, once * steps) for steps in dense]
    axes.plot(dense, closed, color="0.3", **THEORY, label="$(1-1/k)^{n-1}$")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(study.steps), [str(steps) for steps in study.steps])
    axes.minorticks_off()
    axes.set_ylim(-0.02, 1.05)
    axes.set(xlabel="local steps, on new pictures", ylabel="share recovered")
    axes.set_title("f  Several local steps", loc="left")
    axes.legend(loc="upper right")


def _examples(axes: Axes, records: Sequence[Values]) -> None:
    """The same pictures, alone in the sparse layer's units, as they come out of several sums."""
    kept = [(f"{one['bits']}\nbits", one["pictures"]) for one in records if one["part"] == "bits"][:5]
    for one in [one for one in records if one["part"] == "noise"][1:7]:
        promised = rows([one], metric="epsilon", server=SUM, kind=SPARSE)[0]["value"]
        kept.append((f"ε =\n{promised:.0e}".replace("e+0", "e"), one["pictures"]))
    columns = [("true", kept[0][1]["truth"]), *((heading, found["found"]) for heading, found in kept)]
    pictures(axes, columns)
    axes.set_title("g  Pictures alone in a sparse layer, from the sum", loc="left", pad=20)


def _layer(axes: Axes, records: Sequence[Values]) -> None:
    lines: list[list[tuple[str, bool | None]]] = []
    for name, (cosine, rank, fired) in _scores(records).items():
        shown = [(f"{cosine:.2f}", cosine > 0.99), (str(number(rank, 2)), rank < 1.5), (f"{fired:.1%}", fired < 0.05)]
        lines.append([(name, None), *shown])
    cells(axes, ["layer", "cosine", "rank", "fired"], [0.44, 0.22, 0.16, 0.18], lines)
    axes.set_title("h  What a client could see", loc="left", pad=16)


def table(study: ImprintSum, records: Sequence[Values]) -> Page:
    """What the sum gives away, in numbers."""
    once = study.cohort * study.cohort_batch
    parts: list[str | Table] = [
        "A picture is compared with what a unit that it fires says, the best by the truth where it fires several. It "
        f"is recovered at {RECOVERED_DB:g} dB or more, which no mean of two is, and recognised at {RECOGNISED_DB:g}. "
        f"PSNR in dB, at most {EXACT_DB:g}. Brackets are 95% intervals over cohorts. The server knows the test "
        "pictures: thresholds are their quantiles.",
        f"## Crowds and bins, {study.batch} pictures a client, floating point",
        "One client's row is also what a server without masks has of each. Real pictures are no even draw: a threshold "
        "is off by what the test pictures are, and those that fire one trap fire others, too. Single is the share of "
        "those units that the server takes for one picture's which are.",
        Table(
            ["units", "clients", "pictures", "dense", "closed form", "single", "traps", "closed form", "single"],
            [
                [
                    str(bins),
                    str(count),
                    str(count * study.batch),
                    *(
                        words
                        for kind in (DENSE, TRAPS)
                        for words in (
                            entry(_one(records, part="crowd", metric="recovered", kind=kind, bins=bins, clients=count)),
                            number(alone(kind, bins, count * study.batch)),
                            entry(_one(records, part="crowd", metric="single", kind=kind, bins=bins, clients=count)),
                        )
                    ),
                ]
                for bins in study.bins
                for count in study.clients
            ],
        ),
        f"## Fixed point: {study.cohort} clients, {once} pictures, {study.units} units, clip {study.clip_norm:g}",
        "PSNR of the pictures that are alone in a unit.",
        Table(
            ["bits", *(f"{kind}, {words}" for kind in (DENSE, SPARSE, TRAPS) for words in ("recognised", "PSNR"))],
            [
                [
                    str(bits),
                    *(
                        entry(_one(records, part="bits", metric=metric, kind=kind, bits=bits))
                        for kind in (DENSE, SPARSE, TRAPS)
                        for metric in ("recognised", "psnr")
                    ),
                ]
                for bits in study.bits
            ],
        ),
        f"## Noise in shares, {study.noise_bits} bits",
        f"ε at δ = {study.delta:g} for one client whose update becomes zero: for the server that sees the sum, and for "
        "one that sees each update with one share of the noise. The server knows the noise and shrinks what it found "
        f"towards the test pictures; PSNR is of all pictures, beside {_blind(records)}. Labels: the correlation of the "
        "counted with the true labels, over classes (and clients).",
        Table(
            ["noise multiplier", "server", "ε", "layer", "recognised", "PSNR", "labels"],
            [
                [number(multiplier), server, *_noisy(records, multiplier, server, kind)]
                for multiplier in study.noise_multipliers
                for server in (SUM, EACH)
                for kind in (DENSE, SPARSE, TRAPS, HONEST)
            ],
        ),
        f"## Local steps at the rate {study.lr:g}, each on {study.cohort_batch} new pictures a client, floating point",
        "Of all pictures, and of those of the first step.",
        Table(
            ["steps", "closed form", *(words for kind in STEPPED for words in (WORDS[kind], "first step"))],
            [
                [
                    str(steps),
                    number(alone(DENSE, study.units, once * steps)),
                    *(
                        entry(_one(records, part="steps", metric=metric, kind=kind, steps=steps))
                        for kind in STEPPED
                        for metric in ("recovered", "recovered of the first step")
                    ),
                ]
                for steps in study.steps
            ],
        ),
        f"## What a client could have noticed, {study.units} units",
        "The largest cosine between two rows, the stable rank ‖W‖²_F/‖W‖²₂, and the share of units that one of its own "
        "pictures fires on average. Identical rows give an imprint away; traps have a new layer's rows, and units that "
        "hardly ever fire.",
        Table(
            ["layer", "largest cosine", "stable rank", "fired"],
            [[name, *map(number, scores)] for name, scores in _scores(records).items()],
        ),
    ]
    return parts


def _one(records: Sequence[Values], **wanted: Any) -> Values:
    return next(iter(rows(records, **wanted)), {"value": None})


def _blind(records: Sequence[Values]) -> str:
    found = {one["kind"]: one["value"] for one in rows(records, part="noise", server="blind")}
    return ", ".join(f"{value:.1f} dB of the {name}" for name, value in found.items())


def _noisy(records: Sequence[Values], multiplier: float, server: str, kind: str) -> list[Entry]:
    wanted = {"part": "noise", "noise_multiplier": multiplier, "server": server}
    promised = number(_one(records, metric="epsilon", kind=SPARSE, **wanted)["value"])
    found = [entry(_one(records, metric=metric, kind=kind, **wanted)) for metric in ("recognised", "psnr", "labels")]
    return [promised, kind, *found]


def _scores(records: Sequence[Values]) -> dict[str, list[float]]:
    """Of each layer: the largest cosine, the stable rank and the share fired."""
    found: dict[str, list[float]] = {}
    for one in rows(records, part="rows"):
        found.setdefault(one["kind"], []).append(one["value"])
    return found
