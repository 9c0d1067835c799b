"""What figures of studies share: measured values with their intervals, and a legend below its panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.studies.base import Values


def marks(
    axes: Axes, found: Sequence[Values], x: str, *, color: str, marker: str, label: str = "", **style: Any
) -> None:
    """Rows' values over `x`, with bars from `low` to `high`; not joined unless a `linestyle` says so."""
    at, value, low, high = (np.array([row[name] for row in found], dtype=float) for name in (x, "value", "low", "high"))
    bars = np.maximum([value - low, high - value], 0)
    look: dict[str, Any] = {"linestyle": "none", "linewidth": 0.9, "markersize": 3.2} | style
    axes.errorbar(at, value, yerr=bars, color=color, marker=marker, label=label, **look)


def below(axes: Axes, columns: int = 1, **more: Any) -> None:
    """The panel's legend, under its x axis, where it hides nothing."""
    axes.legend(
        ncols=columns, loc="upper center", bbox_to_anchor=(0.47, -0.24), borderaxespad=0.0,
        columnspacing=1.0, handlelength=2.6, labelspacing=0.35, **more,
    )  # fmt: skip
