"""The figure of `fleets`: accuracy over virtual time, and when each fleet reached the target."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.figures import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, SKY, STYLE

STYLES: dict[str, dict[str, Any]] = {
    "synchronous": {"color": GREY, "linestyle": "-"},
    "over-selection": {"color": BLUE, "linestyle": "-"},
    "deadline": {"color": PURPLE, "linestyle": (0, (4, 1))},
    "partial": {"color": GREEN, "linestyle": (0, (3, 1, 1, 1))},
    "fedprox": {"color": SKY, "linestyle": (0, (1, 0.7))},
    "fedbuff": {"color": ORANGE, "linestyle": "-"},
}
POINTS = 200
ACCURACIES = (0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
LEAST_ERROR = 1e-3  # where a logarithm of the error must end


def band(curves: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds [points], and there the lower quartile, median and upper quartile over replicas [3, points].

    A replica's accuracy at a second is that after its last round until then. The line begins when every replica has
    played a round, and ends with the first that has played all of them.
    """
    begins, ends = max(one[0] for one in curves["ended"]), min(one[-1] for one in curves["ended"])
    seconds = np.linspace(min(begins, ends), ends, POINTS)
    replicas = zip(curves["accuracy"], curves["ended"], strict=True)
    then = [
        np.array(reached)[np.maximum(np.searchsorted(ended, seconds, side="right") - 1, 0)]
        for reached, ended in replicas
    ]
    return seconds, np.quantile(then, (0.25, 0.5, 0.75), axis=0)


def draw(record: dict[str, Any]) -> Figure:
    """Left the curves with bands over replicas; right each replica's seconds to the target, their mean and interval."""
    with plt.style.context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(PAGE, 2.7), layout="constrained", gridspec_kw={"width_ratios": (1.5, 1)}
        )
        _curves(left, record)
        _arrivals(right, record)
    return figure


def _curves(axes: Axes, record: dict[str, Any]) -> None:
    """Accuracies on a logarithmic scale of the error, since the fleets part where it is small."""
    target = record["study"]["target"]
    for number, fleet in enumerate(record["fleets"]):
        seconds, (low, middle, high) = band(fleet["curves"])
        style = STYLES[fleet["name"]]
        axes.fill_between(seconds, low, high, color=style["color"], alpha=0.12, linewidth=0)
        # A few markers, each curve's at places of its own, tell curves apart in grey.
        every = (8 + 4 * number, 32)
        axes.plot(
            seconds, middle, **style, marker="oD^sv*"[number % 6], markersize=2.5, markevery=every, label=fleet["words"]
        )
    axes.axhline(target, color="0.3", linewidth=0.6, zorder=0)
    axes.annotate(
        f"target {target:g}", (0, target), xycoords=("axes fraction", "data"), xytext=(2, 1.5),
        textcoords="offset points", fontsize=6, color="0.3",
    )  # fmt: skip
    axes.set_yscale("function", functions=(_nines, _accuracy))
    lowest, highest = max(0.0, 1 - 6 * (1 - target)), 1 - 0.5 * (1 - target)
    axes.set(xlabel="virtual time (s)", ylabel="test accuracy", ylim=(lowest, highest))
    axes.set_yticks([one for one in ACCURACIES if lowest <= one <= highest])
    axes.set_xlim(left=0)
    axes.set_title("a  Accuracy: median and quartiles of the replicas", loc="left")
    axes.legend(loc="lower right", handlelength=2.6)


def _nines(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-np.log10(np.maximum(1 - accuracy, LEAST_ERROR)))


def _accuracy(nines: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 - 10.0**-nines)


def _arrivals(axes: Axes, record: dict[str, Any]) -> None:
    """Each replica as a point, their mean and its 95% interval above them, and how many never arrived."""
    fleets = record["fleets"]
    for line, fleet in enumerate(fleets):
        style = STYLES[fleet["name"]]
        each = [one["seconds"] for one in fleet["replicas"] if one["seconds"] is not None]
        axes.plot(each, [line + 0.22] * len(each), "o", markersize=2, color=style["color"], alpha=0.45, mew=0)
        if fleet["seconds"] is not None:
            mean, low, high = (fleet["seconds"][key] for key in ("value", "low", "high"))
            axes.plot([low, high], [line, line], linewidth=1.6, **{**style, "linestyle": "-"})
            axes.plot(mean, line, "o", markersize=4, color=style["color"])
        if fleet["never"]:
            words = f"{len(fleet['never'])} of {len(fleet['replicas'])} never"
            axes.annotate(words, (1, line - 0.3), xycoords=("axes fraction", "data"), ha="right", fontsize=6)
    axes.set_yticks(range(len(fleets)), [fleet["words"] for fleet in fleets])
    axes.set_ylim(len(fleets) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"virtual seconds to {record['study']['target']:g}")
    axes.set_title("b  Time to the target: mean, 95%", loc="left")
