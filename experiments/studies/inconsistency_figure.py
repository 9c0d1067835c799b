"""The figure and the table of the study of model inconsistency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacks.pictures import EXACT_DB, RECOGNISED_DB, RECOVERED_DB
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, STYLE
from experiments.studies.base import Values, rows
from experiments.studies.drawing import entry, line, number, pictures
from experiments.table import Entry, Page, Table

if TYPE_CHECKING:
    from experiments.studies.inconsistency import Inconsistency

EACH, ONE, TWO = "each update", "sum, one model", "sum, two models"
LOOKS: dict[str, dict[str, Any]] = {
    EACH: {"color": GREEN, "marker": "^", "linestyle": "--", "shift": 0.94},
    ONE: {"color": BLUE, "marker": "o", "linestyle": "-"},
    TWO: {"color": ORANGE, "marker": "s", "linestyle": "-", "shift": 1.06},
}
THEORY: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (1, 1))}
BLIND: dict[str, dict[str, Any]] = {
    "mean image": {"color": GREY, "linestyle": ":"},
    "nearest public image": {"color": GREY, "linestyle": "-."},
}
TITLES = {
    EACH: "the server sees each update",
    ONE: "masked sum, one model for all",
    TWO: "masked sum, two models, no hash",
    "mean image": "blind: mean image",
    "nearest public image": "blind: nearest public image",
}


def draw(study: Inconsistency, records: Sequence[Values], title: str) -> Figure:
    """Pictures, angles and batches against the cohort's size; pictures and labels against ε; and some pictures."""
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(PAGE, 4.7), layout="constrained")
        places = figure.add_gridspec(2, 3)
        size, angle, batch, noise, label = (figure.add_subplot(places[at // 3, at % 3]) for at in range(5))
        for axes, metric, words, heading in (
            (size, "psnr", "PSNR (dB)", "a  The victim's one picture"),
            (angle, "cosine", "cosine", "b  Angle to the victim's update"),
        ):
            found = rows(records, part="pictures", metric=metric)
            _servers(axes, found, "clients")
            _against_clients(axes, study.clients, words, heading)
        dense = np.geomspace(min(study.clients), max(study.clients), 50)
        angle.legend(
            handles=angle.plot(dense, dense**-0.5, label="1/√clients", **THEORY),
            loc="upper right",
            bbox_to_anchor=(1, 0.9),
        )
        angle.set_ylim(0, 1.08)
        size.set_ylim(0, EXACT_DB * 1.04)
        _batches(study, batch, records)
        _noise(noise, records, "psnr", "PSNR (dB)", "d  Noise in shares: pictures")
        _noise(label, records, "label", "share of labels right", "e  Noise in shares: labels")
        label.axhline(1 / records[0].get("classes", 10), color=GREY, linestyle=":", linewidth=1)
        label.set_ylim(-0.02, 1.05)
        figure.legend(*noise.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        _examples(figure.add_subplot(places[1, 2]), records)
        figure.suptitle(title)
    return figure


def _servers(axes: Axes, found: Sequence[Values], x: str) -> None:
    for server, look in LOOKS.items():
        mine = [one for one in found if one["server"] == server]
        line(axes, mine, x, markersize=4, label=TITLES[server], **look)
    for name, look in BLIND.items():
        mine = [one for one in found if one["server"] == name]
        if mine:
            axes.axhline(float(np.mean([one["value"] for one in mine])), linewidth=1, label=TITLES[name], **look)


def _against_clients(axes: Axes, clients: Sequence[int], words: str, heading: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(clients), [str(count) for count in clients])
    axes.minorticks_off()
    axes.set(xlabel="clients in the cohort", ylabel=words)
    axes.set_title(heading, loc="left")


def _batches(study: Inconsistency, axes: Axes, records: Sequence[Values]) -> None:
    _servers(axes, rows(records, part="batches"), "clients")
    dense = np.geomspace(min(study.batch_clients), max(study.batch_clients), 50)
    alone = 1 - 1 / study.bins
    closed = axes.plot(
        dense, alone ** (dense * study.batch - 1), label=f"$(1-1/{study.bins})^{{n-1}}$, n pictures", **THEORY
    )
    axes.axhline(alone ** (study.batch - 1), **THEORY)
    _against_clients(axes, study.batch_clients, "share recovered", f"c  Its {study.batch}, imprint layer")
    axes.set_ylim(-0.02, 1.05)
    axes.legend(handles=closed, loc="upper right", bbox_to_anchor=(1, 0.8))


def _noise(axes: Axes, records: Sequence[Values], metric: str, words: str, heading: str) -> None:
    """Against what the sum guarantees a client, whichever server is looked at."""
    promised = {
        one["noise_multiplier"]: one["value"] for one in rows(records, metric="epsilon", server=TWO, part="noise")
    }
    found = [one | {"epsilon": promised[one["noise_multiplier"]]} for one in rows(records, part="noise", metric=metric)]
    _servers(axes, found, "epsilon")
    axes.set_xscale("log")
    axes.set(xlabel="ε that the sum guarantees", ylabel=words)
    axes.set_title(heading, loc="left")
    axes.set_xticks([10.0**exponent for exponent in range(1, 8, 2)])
    axes.minorticks_off()


def _examples(axes: Axes, records: Sequence[Values]) -> None:
    """Some victims: what is true, and what each server has, without noise and with a little."""
    noisy = [one for one in records if one["part"] == "noise"]
    plain = [one for one in records if one["part"] == "pictures" and noisy and one["clients"] == noisy[0]["clients"]]
    first = (plain or [one for one in records if one["part"] == "pictures"])[0]["pictures"]
    columns = [("true", first["truth"]), ("one\nfor all", first[ONE]), ("two", first[TWO])]
    columns.append(("two,\nhash", None))
    heading = "f  Victims"
    if noisy:
        middle = min(noisy, key=lambda one: abs(np.log10(one["noise_multiplier"]) + 2))
        columns += [("each,\nnoise", middle["pictures"][EACH]), ("two,\nnoise", middle["pictures"][TWO])]
        heading += f"; noise for ε = {number(rows([middle], metric='epsilon', server=TWO)[0]['value'], 2)}"
    pictures(axes, columns)
    axes.set_title(heading, loc="left", pad=16)


def table(study: Inconsistency, records: Sequence[Values]) -> Page:
    """What each server gets, in numbers."""
    parts: list[str | Table] = [
        f"{study.trials} cohorts a point, each with a victim. PSNR in dB, an exact recovery ({EXACT_DB:g} dB or more) "
        f"as {EXACT_DB:g}; recognised is the share of pictures at {RECOGNISED_DB:g} dB or more. Brackets are 95% "
        "intervals, by bootstrap over victims for means and by Clopper and Pearson for shares. The cosine leaves out "
        "the output layer's biases, which the others' dead models still move. The server knows the noise and the test "
        "pictures, and shrinks what it found towards them; the nearest public image is picked by the truth.",
        "## One picture a client",
        Table(
            ["clients", "server", "PSNR", "recognised", "exact", "label right", "cosine"],
            [_line(records, server, part="pictures", clients=count) for count in study.clients for server in TITLES],
        ),
        "## The model's hash in the key derivation",
        Table(
            ["clients", "variant", "rounds aborted", "how"],
            [
                [str(one["clients"]), one["server"].split("(")[1].rstrip(")"), entry(one), one["note"]]
                for one in rows(records, part="pictures", metric="aborted")
            ],
        ),
        "No client sends a masked vector in these rounds, so the server has nothing to take for a sum.",
        f"## {study.batch} pictures a client, an imprint layer of {study.bins} bins",
        Table(
            ["clients", "sent to", f"share of the victim's pictures at {RECOVERED_DB:g} dB or more", "closed form"],
            [
                [
                    str(one["clients"]),
                    {ONE: "all", TWO: "the victim, all others dead"}[one["server"]],
                    entry(one),
                    number((1 - 1 / study.bins) ** (study.batch * (one["clients"] if one["server"] == ONE else 1) - 1)),
                ]
                for one in rows(records, part="batches")
            ],
        ),
        f"## Noise in shares, {study.noisy_clients} clients",
        f"ε at δ = {study.delta:g} for one client, whose update becomes zero: of one update for the server that sees "
        "each, of the sum for the others. The dead clients' updates are zero, and their shares of the noise are not.",
        Table(
            ["noise multiplier", "server", "ε", "PSNR", "recognised", "label right", "cosine"],
            [
                [number(multiplier), *_noisy_line(records, server, multiplier)]
                for multiplier in study.noise_multipliers
                for server in LOOKS
            ],
        ),
    ]
    return parts


def _one(records: Sequence[Values], metric: str, server: str, **wanted: Any) -> Values | None:
    return next(iter(rows(records, metric=metric, server=server, **wanted)), None)


def _line(records: Sequence[Values], server: str, **wanted: Any) -> list[Entry]:
    metrics = ("psnr", "recognised", "exact", "label", "cosine")
    return [str(wanted["clients"]), TITLES[server], *(entry(_one(records, one, server, **wanted)) for one in metrics)]


def _noisy_line(records: Sequence[Values], server: str, multiplier: float) -> list[Entry]:
    wanted = {"part": "noise", "noise_multiplier": multiplier}
    promised = _one(records, "epsilon", server, **wanted)
    found = [entry(_one(records, one, server, **wanted)) for one in ("psnr", "recognised", "label", "cosine")]
    return [TITLES[server], number(promised["value"] if promised else None), *found]
