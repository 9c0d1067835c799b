"""One attack under its view, on one group, over ε: bands, blind guesses, ceilings, the audit, and utility below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.collect import CellResult
from experiments.figures import COLUMN, LOOKS, STYLE, line, looks_of, mark_axis, positions, shade_above
from experiments.leakage_figure import Audit, audit_panel
from experiments.scoring import Row
from fl_core.errors import InputError
from fl_core.views import VIEWS

METRICS = {"auc": "AUC", "tpr": "TPR", "balanced_accuracy": "balanced accuracy"}


def resolve(cells: Sequence[CellResult], attack: str | None, view: str | None) -> tuple[str, str]:
    """The attack and view that were asked for; without a word about either, the first of the sweep.

    An attack may be named by how it begins. Raises InputError where no attack of the sweep is meant, or several are.
    """
    rows = [row for cell in cells for row in cell.rows if row.question == "membership"]
    pairs = list(dict.fromkeys((row.attack, row.view) for row in rows))
    seen = [one for one in VIEWS if any(its == one for _, its in pairs)]
    if not pairs:
        raise InputError("this sweep has no membership attack, which this figure is about")
    if view is not None and view not in seen:
        raise InputError(f"--view is {view!r}; this sweep has attacks for {', '.join(seen)}")
    able = [(name, its) for name, its in pairs if view in (None, its)]
    exact = [pair for pair in able if attack in (None, pair[0])]
    begun = [pair for pair in able if attack is not None and pair[0].lower().startswith(attack.lower())]
    found = exact[:1] or begun
    if len(found) != 1:
        allowed = "; ".join(name for name, _ in (begun or able))
        raise InputError(f"--attack is {attack!r}; name one of {allowed}" + (f" (--view {view})" if view else ""))
    return found[0]


def leakage(
    cells: Sequence[CellResult], title: str, *, attack: str, view: str, group: str, metric: str = "tpr"
) -> Figure:
    """`metric` of one attack on one group, a line a variant, over the audit and the utility of the same cells.

    Raises InputError where the group or metric was not measured, or has no number.
    """
    rows = [row for cell in cells for row in cell.rows if row.question == "membership" and row.attack == attack]
    for name, value, known in (
        ("--group", group, dict.fromkeys(row.group for row in rows)),
        ("--metric", metric, dict.fromkeys(row.metric for row in rows if row.group == group)),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r}; of {attack} this sweep has {', '.join(known)}")
    asked = [row for row in rows if (row.group, row.metric) == (group, metric)]
    if all(row.value is None for row in asked):
        why = "; ".join(dict.fromkeys(row.note for row in asked if row.note)) or "it was not measured"
        raise InputError(f"{metric} of {attack} on {group} has no number in this sweep: {why}")
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    audits = {variant: _audits(cells, variant, attack, view) for variant in variants}
    told = any(one for found in audits.values() for one in found)
    heights = [2.0, *([1.4] if told else []), 1.1]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(heights), 1, figsize=(COLUMN, sum(heights) + 0.7 + 0.1 * len(variants)), height_ratios=heights,
            layout="constrained", sharex=True,
        )  # fmt: skip
        fpr = cells[0].facts["fpr"]
        words = f"TPR at {fpr:.3g} FPR" if metric == "tpr" else METRICS.get(metric, metric.replace("_", " "))
        top = axes[0]
        mark_axis(top, cells, words, f"{attack}, {view.replace('_', ' ')}, {group}")
        _measured(top, cells, variants, attack, group, metric)
        if metric in ("auc", "balanced_accuracy"):
            top.axhline(0.5, color="0.7", linewidth=0.8, zorder=0)
            top.set_ylim(min(0.4, top.get_ylim()[0]), 1.02)
        elif metric.startswith("tpr"):
            rate = fpr if metric == "tpr" else float(metric.removeprefix("tpr_at_"))
            top.axhline(rate, color="0.7", linewidth=0.8, zorder=0)
            top.set_ylim(-0.02, 1.02)
        if told:
            # Of several variants the first that was audited: bounds of all of them would hide one another.
            first = next(variant for variant in variants if any(audits[variant]))
            by = next(one["attack"] for one in audits[first] if one)
            mine = [cell for cell in cells if cell.variant == first]
            audit_panel(axes[1], mine, ", ".join(filter(None, ("Audit", first, f"by {by}"))), audits[first])
            axes[1].legend(loc="upper left")
        bottom = axes[-1]
        mark_axis(bottom, cells, "test accuracy", "Utility")
        for number, variant in enumerate(variants):
            pick = _of(variant, question="utility", metric="accuracy")
            line(bottom, cells, pick, label=variant or "model", **LOOKS[number % len(LOOKS)])
        bottom.set_ylim(0, 1.02)
        protects = {cell.account["protects"] for cell in cells}
        bottom.set_xlabel(f"ε for one {' or '.join(sorted(protects))} (∞: no noise)")
        handles = {
            words: handle
            for axis in (bottom, top)
            for handle, words in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        if len(variants) < 2:
            handles.pop(variants[0] or "model", None)  # which the panel's heading names
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 if len(variants) < 2 else 1)
        figure.suptitle(title)
    return figure


def _of(variant: str, **wanted: Any) -> Callable[[CellResult], Row | None]:
    """What picks the wanted row from the cells of a variant, and nothing from others."""

    def pick(cell: CellResult) -> Row | None:
        return cell.row(**wanted) if cell.variant == variant else None

    return pick


def _measured(
    axes: Axes, cells: Sequence[CellResult], variants: Sequence[str], attack: str, group: str, metric: str
) -> None:
    """The attack's lines with bands and the ceiling of the first variant, and that variant's blind guesses."""
    x = positions(cells)[0]
    wanted: dict[str, Any] = {"question": "membership", "metric": metric, "group": group}
    for number, variant in enumerate(variants):
        look, pick = LOOKS[number % len(LOOKS)], _of(variant, attack=attack, **wanted)
        rows = [pick(cell) for cell in cells]
        _band(axes, x, cells, rows, look["color"])
        line(axes, cells, pick, label=variant or attack, **look)
        known = [(at, row.ceiling) for at, row in zip(x, rows, strict=True) if row and row.ceiling is not None]
        if known and number == 0:
            shade_above(axes, known)
    blind = [name for name in cells[0].attacks() if name.startswith("blind")]
    for name, look in looks_of(blind).items():
        line(axes, cells, _of(variants[0], attack=name, **wanted), label=name, **look)


def _band(axes: Axes, x: Any, cells: Sequence[CellResult], rows: Sequence[Row | None], color: str) -> None:
    """The interval, filled along the finite ε."""
    known = [
        (place, row.low, row.high)
        for place, cell, row in zip(x, cells, rows, strict=True)
        if row is not None and row.value is not None and math.isfinite(cell.epsilon)
    ]
    if len(known) > 1:
        at, low, high = map(np.array, zip(*known, strict=True))
        axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)


def _audits(cells: Sequence[CellResult], variant: str, attack: str, view: str) -> list[Audit | None]:
    """Of each cell of a variant the audit with the attack's scores, or else with another's of the same view."""
    found = []
    for cell in cells:
        if cell.variant == variant:
            mine = [one for one in cell.audits if one["view"] == view]
            found.append(next((one for one in mine if one["attack"] == attack), next(iter(mine), None)))
    return found
