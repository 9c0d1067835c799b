"""The figure and the table of the study of malicious servers' reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacks.pictures import RECOGNISED_DB, RECOVERED_DB
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, SKY, STYLE
from experiments.studies.base import Values, rows
from experiments.studies.drawing import cells, entry, line, number, pictures
from experiments.studies.malicious_reconstruction_noticed import NOTICED, SCORES
from experiments.studies.malicious_reconstruction_scene import (
    ATTACKS,
    DENSE,
    FISHING,
    FLIP,
    LARGEST,
    LAYERS,
    LOKI,
    SIGNS,
    SPARSE,
    TRAPS,
)
from experiments.table import Entry, Page, Table

if TYPE_CHECKING:
    from experiments.studies.malicious_reconstruction import MaliciousReconstruction

LOOKS: dict[str, dict[str, Any]] = {
    DENSE: {"color": BLUE, "marker": "o"},
    SPARSE: {"color": ORANGE, "marker": "s"},
    SIGNS: {"color": GREEN, "marker": "^"},
    TRAPS: {"color": GREEN, "marker": "v", "linestyle": "--"},
    LOKI: {"color": PURPLE, "marker": "D"},
    FISHING: {"color": GREY, "marker": "x"},
    FLIP: {"color": SKY, "marker": "P"},
}
THEORY: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (1, 1)), "color": "0.3"}


def draw(study: MaliciousReconstruction, records: Sequence[Values], title: str) -> Figure:
    """The goal, noise, all attacks, LOKI and local steps, pictures, and what a client could see."""
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(PAGE, 6.9), layout="constrained")
        places = figure.add_gridspec(3, 6, height_ratios=[1, 1, 0.95])
        _goal(study, figure.add_subplot(places[0, :2]), records)
        _noise(figure.add_subplot(places[0, 2:4]), records)
        _attacks(study, figure.add_subplot(places[0, 4:]), records)
        _loki(study, figure.add_subplot(places[1, :2]), records)
        _steps(study, figure.add_subplot(places[1, 2:4]), records)
        _examples(figure.add_subplot(places[1, 4:]), records)
        _noticed(figure.add_subplot(places[2, :]), records)
        figure.suptitle(title)
    return figure


def _goal(study: MaliciousReconstruction, axes: Axes, records: Sequence[Values]) -> None:
    ways = ("one client, float64", "one client, float32", "masked sum")
    found = rows(records, part="goal", metric="recovered")
    if found:
        axes.axhspan(found[0]["chance_low"], found[0]["chance_high"], color="0.88", linewidth=0, zorder=0)
        axes.axhline(found[0]["expected"], **THEORY, zorder=1)
    for name, shift in ((DENSE, -0.12), (SPARSE, 0.12)):
        for place, way in enumerate(ways):
            for one in [one for one in found if one["attack"] == name and one["way"] == way]:
                bars = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
                label = name if not place else None
                axes.errorbar(
                    place + shift,
                    one["value"],
                    yerr=bars,
                    capsize=2,
                    markersize=4,
                    label=label,
                    gid=name,
                    **LOOKS[name],
                )
    axes.set_xticks(range(3), ["float64", "float32", "float32,\nmasked"])
    axes.set_xlim(-0.5, 2.5)
    axes.set_ylim(0.6, 0.95)
    axes.set(xlabel=f"one client (masked: {study.goal_clients})", ylabel="share recovered")
    axes.set_title(f"a  {study.goal_batch} pictures, {study.units} bins", loc="left")
    axes.plot([], [], **THEORY, label="$(1-1/k)^{n-1}$, 95%")
    axes.legend(loc="upper left")


def _noise(axes: Axes, records: Sequence[Values]) -> None:
    found = rows(records, part="noise", metric="psnr")
    promised = sorted({one["epsilon"] for one in found if one.get("epsilon")})
    places = {epsilon: at for at, epsilon in enumerate([*promised, None])}
    for name in (DENSE, SPARSE):
        mine = [one | {"place": places[one["epsilon"]]} for one in found if one["attack"] == name]
        line(axes, mine, "place", markersize=4, label=name, **LOOKS[name])
    for guess, style in (("mean image", (0, (1, 1))), ("nearest public image", (0, (4, 2)))):
        for one in [one for one in found if one["attack"] == guess]:
            axes.axhline(one["value"], color="0.5", linewidth=0.8, linestyle=style, zorder=0, label=guess)
    axes.set_xticks(list(places.values()), [_short(epsilon) for epsilon in places])
    axes.set_ylim(0, 105)
    axes.set(xlabel="client-level ε", ylabel="PSNR (dB)")
    axes.set_title("b  Noise in shares", loc="left")
    axes.legend(loc="upper left")


def _short(epsilon: float | None) -> str:
    if epsilon is None:
        return "none"
    return f"{epsilon:g}" if epsilon < 1000 else f"{epsilon / 1000:.0f}k"


def _attacks(study: MaliciousReconstruction, axes: Axes, records: Sequence[Values]) -> None:
    for name in (*LAYERS, FLIP, FISHING):
        mine = rows(records, part="attack", metric="recovered", attack=name)
        shift = 1.06 if name == SPARSE else 1.0  # which lies on the dense one
        line(axes, mine, "clients", shift=shift, markersize=4, label=name, **LOOKS[name])
    _clients(axes, study.clients)
    axes.set_ylim(-0.03, 1.62)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylabel("share recovered")
    axes.set_title("c  All attacks", loc="left")
    axes.legend(loc="upper left", ncols=2, columnspacing=0.8, handlelength=1.6)


def _clients(axes: Axes, clients: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(clients), [str(count) for count in clients])
    axes.minorticks_off()
    axes.set_xlabel("clients in the sum")


def _loki(study: MaliciousReconstruction, axes: Axes, records: Sequence[Values]) -> None:
    _beside(axes, rows(records, part="loki", metric="recovered"), "clients")
    _clients(axes, study.loki_clients)
    axes.set_ylim(-0.03, 1.35)
    axes.set_title(f"d  One step, {study.loki_units} bins", loc="left")


def _steps(study: MaliciousReconstruction, axes: Axes, records: Sequence[Values]) -> None:
    _beside(axes, rows(records, part="steps", metric="recovered"), "steps")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(study.steps), [str(steps) for steps in study.steps])
    axes.minorticks_off()
    axes.set_xlabel("local steps")
    axes.set_ylim(-0.03, 1.35)
    axes.set_title(f"e  {study.loki_cohort} clients, {study.step_units} bins", loc="left")


def _beside(axes: Axes, found: Sequence[Values], x: str) -> None:
    for name, words in ((LOKI, "LOKI"), (SPARSE, "not split")):
        mine = sorted((one for one in found if one["attack"] == name), key=lambda one: float(one[x]))
        line(axes, mine, x, markersize=4, label=words, **LOOKS[name])
        axes.plot([one[x] for one in mine], [one["expected"] for one in mine], gid=f"closed form, {words}", **THEORY)
    axes.plot([], [], **THEORY, label="closed form")
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylabel("share recovered")
    axes.legend(loc="upper left", ncols=2, columnspacing=0.8)


def _examples(axes: Axes, records: Sequence[Values]) -> None:
    """The same pictures, alone in the sparse layer's units, out of the masked sum."""
    (kept,) = [one["pictures"] for one in records if one["part"] == "noise"]
    columns = [("true", kept["truth"]), ("no\nnoise", kept["none"])]
    promised = sorted((float(name) for name in kept if name not in ("truth", "none")), reverse=True)
    columns += [(f"ε =\n{_short(epsilon)}", kept[f"{epsilon:g}"]) for epsilon in promised]
    pictures(axes, columns)
    axes.set_title("f  Masked sum, sparse", loc="left", pad=20)


def _noticed(axes: Axes, records: Sequence[Values]) -> None:
    lines: list[list[tuple[str, bool | None]]] = []
    for name in NOTICED:
        found = _scores(records, name)
        if not found:
            continue
        seen = [(_score(found[score]["value"]), found[f"{score} over"]["value"] >= 0.5) for score in SCORES]
        added = int(found["added"]["value"])
        share = found["noticed"]["value"]
        lines.append(
            [(name, None), *((text, over) for text, over in seen), (str(added), added > 0), (f"{share:.0%}", share > 0)]
        )
    cells(
        axes,
        ["what is sent", *HEADS, "added", "noticed"],
        [0.21, 0.1, 0.13, 0.14, 0.11, 0.13, 0.08, 0.1],
        lines,
    )
    axes.set_title("g  What a client could have noticed: medians, and the share of models noticed", loc="left")


HEADS = ("D-SNR", "KS distance", "rank missing", "zero rows", "largest entry")


def _score(value: float) -> str:
    return ">999" if value >= LARGEST else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _scores(records: Sequence[Values], name: str) -> dict[str, Values]:
    return {one["metric"]: one for one in rows(records, part="noticed", model=name)}


# The table


def table(study: MaliciousReconstruction, records: Sequence[Values]) -> Page:
    """What is stolen, and what shows, in numbers."""
    goal = rows(records, part="goal", metric="recovered")
    chance = goal[0] if goal else {}
    parts: list[str | Table] = [
        "A picture is compared with what a unit that it fires says, the best by the truth where it fires several; it "
        f"is recovered at {RECOVERED_DB:g} dB or more, which no mean of two is, and recognised at {RECOGNISED_DB:g}. "
        "PSNR in dB, for pixels in [0, 1]. Brackets are 95% intervals.",
        f"## {study.goal_batch} pictures, {study.units} bins: a closed form",
        f"Means over {study.goal_trials} batches. Expected is (1 − 1/k)^(n − 1), and with the deviation that pictures "
        f"have which share bins, {_share(chance, 'chance_low')} to {_share(chance, 'chance_high')} in 95% of such "
        "means: inside says whether the measured one lies there. Of single batches, those are counted that lie in the "
        f"binomial 95% interval, {chance.get('binomial')} of {study.goal_batch}. The masked sum is over "
        f"{study.goal_clients} clients with {study.goal_batch // study.goal_clients} pictures each, clipped to "
        f"{study.clip_norm:g} and rounded to {study.bits} bits; thresholds are quantiles of the test pictures. "
        "PSNR is of the pictures that are alone.",
        Table(
            ["layer", "seen", "recovered", "expected", "inside", "batches inside", "PSNR, least", "median"],
            [
                [
                    one["attack"],
                    one["way"],
                    entry(one),
                    number(one["expected"]),
                    "yes" if one["inside"] else "no",
                    f"{one['batches']} of {study.goal_trials}",
                    *(
                        number(
                            _one(
                                records, part="goal", metric=f"{which} PSNR alone", attack=one["attack"], way=one["way"]
                            )["value"]
                        )
                        for which in ("least", "median")
                    ),
                ]
                for one in goal
            ],
        ),
        "## Noise in shares",
        f"ε at δ = {study.delta:g} of the same masked sum for one client whose update becomes zero, every client "
        f"adding its share of discrete Gaussian noise after a clip to {study.clip_norm:g}. The server knows the noise "
        "and shrinks what it found towards the test pictures; PSNR is of all pictures, at most 100, beside "
        f"{_blind(records)}.",
        Table(
            [
                "ε",
                "noise multiplier",
                *(f"{name}, {what}" for name in (DENSE, SPARSE) for what in ("recognised", "PSNR")),
            ],
            [
                [
                    "no noise" if epsilon is None else number(epsilon),
                    number(_one(records, part="noise", epsilon=epsilon, attack=DENSE)["noise_multiplier"]),
                    *(
                        entry(_one(records, part="noise", epsilon=epsilon, attack=name, metric=metric))
                        for name in (DENSE, SPARSE)
                        for metric in ("recognised", "psnr")
                    ),
                ]
                for epsilon in (*study.epsilons, None)
            ],
        ),
        f"## All attacks, {study.batch} pictures a client, {study.units} units, one local step, sums in float32",
        "The share is of all pictures in the sum; of the label flip's it is of the one victim's, and fishing goes "
        "for one picture of the cohort, which is its share. PSNR is the median of those recovered. Rounds are on the "
        "same batch. Cosine: of what fishing isolates with that example's own gradient below the output layer, and "
        "of the honest update with the example's honest gradient.",
        Table(
            ["attack", "clients", "recovered", "PSNR", "rounds", "cosine", "honest"],
            [
                [
                    name,
                    str(count),
                    *(
                        entry(found) if found["low"] is not None else number(found["value"])
                        for metric in ("recovered", "psnr", "rounds", "cosine", "honest cosine")
                        for found in [_one(records, part="attack", attack=name, clients=count, metric=metric)]
                    ),
                ]
                for name in ATTACKS
                for count in study.clients
            ],
        ),
        f"## LOKI, {study.loki_batch} pictures a client and step, rate {study.lr:g}",
        f"Beside a sparse layer with as many units in which the clients are not split: {study.loki_units} units and "
        f"one step, then {study.step_units} units and {study.loki_cohort} clients. In several steps LOKI keeps the "
        "first picture of a unit, and the closed form says so; the other one is for pictures that add up.",
        Table(
            ["clients", "steps", "LOKI", "closed form", "PSNR", "not split", "closed form"],
            [[who, str(steps), *_loki_cells(records, wanted)] for who, steps, wanted in _loki_points(study)],
        ),
        f"## What a client could have noticed, batches of {study.batch}",
        f"Medians over {study.benign} models of each kind, the worst layer each. D-SNR: the longest per-example "
        "gradient over the sum of the others (Garov et al. 2024). KS distance: of a variable's entries from the "
        "benign model's, less what chance makes of it. Rank missing and zero rows: shares. Largest entry: over the "
        "benign model's. The benign model is a new one, and for trained ones that of ten steps before. Faulted by: a "
        "score over its limit (see `attacks.reconstruction.detectability.Limits`), or a new variable; for benign "
        "models this is the false-alarm rate.",
        Table(
            ["what is sent", *HEADS, "new variables", "by D-SNR", "by the parameters", "by anything"],
            [
                [
                    name,
                    *(_score(found[score]["value"]) for score in SCORES),
                    str(int(found["added"]["value"])),
                    *(entry(found[metric]) for metric in ("d_snr over", "parameters", "noticed")),
                ]
                for name in NOTICED
                for found in [_scores(records, name)]
                if found
            ],
        ),
    ]
    return parts


def _one(records: Sequence[Values], **wanted: Any) -> Values:
    return next(iter(rows(records, **wanted)), {"value": None, "low": None, "noise_multiplier": None})


def _share(one: Values, name: str) -> Entry:
    return number(one.get(name))


def _blind(records: Sequence[Values]) -> str:
    guesses = [one for one in rows(records, part="noise", metric="psnr") if "image" in one["attack"]]
    return ", ".join(f"{one['value']:.1f} dB of the {one['attack']}" for one in guesses)


def _loki_points(study: MaliciousReconstruction) -> list[tuple[str, int, Values]]:
    """Each line's clients, local steps, and the part of the study that measured it."""
    return [
        *((str(count), 1, {"part": "loki", "clients": count}) for count in study.loki_clients),
        (f"{study.goal_clients}, masked", 1, {"part": "loki, masked"}),
        *((str(study.loki_cohort), steps, {"part": "steps", "steps": steps}) for steps in study.steps),
    ]


def _loki_cells(records: Sequence[Values], wanted: Values) -> list[Entry]:
    mine, other = (_one(records, metric="recovered", attack=name, **wanted) for name in (LOKI, SPARSE))
    level = _one(records, metric="psnr", attack=LOKI, **wanted)
    return [
        entry(mine), number(mine.get("expected")), number(level["value"]), entry(other), number(other.get("expected"))
    ]  # fmt: skip
