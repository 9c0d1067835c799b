"""From scores and pictures to rows with intervals. The only judge that sees the truth."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.audit.one_run import audit_one_run
from attacks.metrics import (
    Interval,
    balanced_accuracy,
    bootstrap_over_replicas,
    mean_interval,
    roc_band,
    supports,
)
from attacks.vulnerability import gaps, stability
from experiments.cell import Cell
from experiments.configuration import flat
from experiments.pieces import Gallery, audited
from fl_core.fleet import times_to

Mask = NDArray[np.bool_]

AUDITED = 0.95
"""The confidence with which all audits of a cell hold together."""

MOST_VULNERABLE = 16
"""How many examples are named as the most vulnerable ones."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number: what question, by which attack under which view, about whom, and its 95% interval.

    `samples` is what the interval rests on; `ceiling` is the most that the guarantee allows, None where that is not
    computed; `note` says why a value is missing.
    """

    question: str
    attack: str
    view: str
    knowledge: str
    group: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    samples: str
    ceiling: float | None = None
    note: str = ""


def make_row(interval: Interval | None, **fields: Any) -> dict[str, Any]:
    """A row as plain values; without an interval it has no number, and the `note` says why."""
    value = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    return asdict(Row(value=value[0], low=value[1], high=value[2], **fields))


def membership(cell: Cell, scores: NDArray[np.float64], attack: str) -> dict[str, Any]:
    """Rows, ROC bands and the most vulnerable examples, from one attack's scores [targets, examples]."""
    members = cell.targets.members.numpy()
    about = _about(cell, attack)
    rows, curves = [], {}
    for group, mask in groups(cell).items():
        samples = _samples(cell, mask)
        told = about | {"group": group, "samples": samples}
        if not (members & mask).any() or (members | ~mask).all():
            why = "needs members and non-members"
            rows += [make_row(None, **told, metric=metric, note=why) for metric in ("auc", "tpr")]
            continue
        rows += _rates(cell, scores, members, mask, told)
        band = roc_band(scores, members, mask)
        curves[group] = {field: getattr(band, field).tolist() for field in ("fpr", "tpr", "low", "high")}
    for group, mask in breakdown(cell).items():
        if (members & mask).any() and not (members | ~mask).all():
            found = bootstrap_over_replicas(
                scores, members, mask, fpr=1.0, resamples=cell.config["attack"]["resamples"]
            )
            rows.append(make_row(found.auc, **about, group=group, metric="auc", samples=_samples(cell, mask)))
    candidates = cell.candidates.numpy()
    steady = stability(scores[:, candidates], members[:, candidates])
    told = about | {"group": "everybody", "metric": "rank_stability"}
    if steady is None:
        samples = _samples(cell, candidates)
        rows.append(
            make_row(None, **told, samples=samples, note="too few examples are on both sides in half the replicas")
        )
    else:
        note = f"of whole samples {steady.whole:.3f}; the most vulnerable tenths share {steady.top:.2f}"
        samples = f"{steady.examples} examples, halves of {cell.targets.replicas} replicas"
        rows.append(make_row(steady.halves, **told, samples=samples, note=note))
    return {
        "attack": about["attack"],
        "rows": rows,
        "roc": curves,
        "vulnerable": _vulnerable(gaps(scores, members), candidates),
    }


def _rates(cell: Cell, scores: NDArray[np.float64], members: Mask, mask: Mask, told: dict[str, Any]) -> list[Any]:
    """AUC, TPR at each false-positive rate that the non-members support, and balanced accuracy."""
    settings, outside = cell.config["attack"], int((~members & mask).sum())
    asked = [settings["fpr"], *(rate for rate in settings["fprs"] if rate != settings["fpr"])]
    possible = [rate for rate in asked if supports(rate, outside)]
    # A rate of 1 asks for the AUC alone, and everybody supports it.
    found = bootstrap_over_replicas(scores, members, mask, fpr=1.0, fprs=possible, resamples=settings["resamples"])
    rows = [make_row(found.auc, **told, metric="auc")]
    for rate in asked:
        metric = "tpr" if rate == settings["fpr"] else f"tpr_at_{rate:g}"
        note = "" if rate in possible else f"needs ≥ {math.ceil(1 / rate - 1e-9):,} non-members, has {outside:,}"
        rows.append(make_row(found.tprs.get(rate), **told, metric=metric, note=note))
    each = balanced_accuracy(scores, members, mask)
    note = "the threshold is the best one of the other replicas"
    rows.append(make_row(mean_interval(each), **told, metric="balanced_accuracy", note=note))
    return rows


def refused(cell: Cell, attack: str) -> list[dict[str, Any]]:
    """The rows of an attack that the view does not serve: no number, and why."""
    about, samples = _about(cell, attack), f"{cell.targets.replicas} replicas"
    return [
        make_row(None, **about, group=group, metric=metric, samples=samples, note=f"refused: {cell.refused[attack]}")
        for group in groups(cell)
        for metric in ("auc", "tpr")
    ]


def _about(cell: Cell, attack: str) -> dict[str, Any]:
    method, references = cell.membership_attacks[attack], cell.config["attack"]["references"]
    if cell.shadows is None:
        known = "shadow replicas on the same distribution"
    else:
        known = f"shadow replicas with {_changes(cell.config['attack']['shadows'])}"
    most = "" if references is None else f", {references} of them"
    return {
        "question": "membership",
        "attack": method.name,
        "view": method.needs.view.view,
        "knowledge": f"the defence, the training recipe, {known}{most}",
    }


def _changes(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in flat(changes).items())


def _samples(cell: Cell, mask: Mask) -> str:
    members = cell.targets.members.numpy()
    inside, outside = int((members & mask).sum()), int((~members & mask).sum())
    return f"{cell.targets.replicas} replicas, {inside} members, {outside} non-members"


def groups(cell: Cell) -> dict[str, Mask]:
    """Masks [examples] of the groups that have any example: canaries, the rare one, and the ordinary ones."""
    candidates, canary, rare = (one.numpy() for one in (cell.candidates, cell.targets.canary, cell.targets.rare))
    masks = {"canary": canary, "rare": rare & ~canary, "ordinary": ~canary & ~rare}
    return {group: mask & candidates for group, mask in masks.items() if (mask & candidates).any()}


def breakdown(cell: Cell) -> dict[str, Mask]:
    """Masks [examples] of the ordinary candidates of each class, and of each client."""
    ordinary, owners = groups(cell).get("ordinary"), cell.targets.owners.numpy()
    if ordinary is None:
        return {}
    labels, names = cell.targets.pool.labels.cpu().numpy(), cell.targets.pool.classes
    masks = {f"class {name}": ordinary & (labels == number) for number, name in enumerate(names)}
    masks |= {f"client {number}": ordinary & (owners == number) for number in range(cell.config["clients"])}
    return {group: mask for group, mask in masks.items() if mask.any()}


def _vulnerable(gap: NDArray[np.float64], candidates: Mask) -> list[dict[str, Any]]:
    """The candidates that an attack separates best, most vulnerable first."""
    ranked = np.argsort(np.where(candidates & np.isfinite(gap), -gap, np.inf), kind="stable")
    most = ranked[: min(MOST_VULNERABLE, int((candidates & np.isfinite(gap)).sum()))]
    return [{"example": int(one), "gap": float(gap[one])} for one in most]


def audit(cell: Cell, attack: str, runs: Path) -> dict[str, Any]:
    """The one-run lower bound on ε by the scores of `attack`: no target's membership reaches its shadows' use.

    Several audits of a cell share the error of one, so that all of their bounds hold together.
    """
    settings, method = cell.config["attack"], cell.membership_attacks[attack]
    told = {"attack": method.name, "view": method.needs.view.view}
    canaries = groups(cell).get("canary")
    if cell.config["membership"] != 0.5 or cell.config["design"] != "coins" or canaries is None:
        why = "needs canaries that are members by a fair coin of their own (membership=0.5, design=coins)"
        return {**told, "epsilon": None, "note": why}
    targets, shadows = audited(cell)
    guesses = settings["audit_fraction"] * int(canaries.sum()) * len(targets)
    if guesses < 2:
        return {
            **told,
            "epsilon": None,
            "note": f"too few canaries: attack.audit_fraction leaves {guesses:.2g} guesses",
        }
    gallery = Gallery.of(cell, runs)
    scores = np.stack([gallery.run(attack, target, shadows) for target in targets])
    found = audit_one_run(
        scores[:, canaries],
        cell.targets.members.numpy()[targets][:, canaries],
        fraction=settings["audit_fraction"],
        delta=cell.delta or 0.0,
        confidence=1 - (1 - AUDITED) / len([name for name in settings["audit_with"] if name in cell.possible]),
    )
    return {**told, **asdict(found), "targets": len(targets), "note": ""}


def accuracy_rows(cell: Cell, accuracy: list[list[float]]) -> list[dict[str, Any]]:
    """Test accuracy of the released models, from [rounds][replicas]."""
    return [
        make_row(
            mean_interval(np.array(accuracy[-1])),
            question="utility", attack="", view="", knowledge="", group="test", metric="accuracy",
            samples=f"{cell.targets.replicas} replicas, {len(cell.targets.test)} test examples",
        )
    ]  # fmt: skip


def clock_rows(cell: Cell, accuracy: list[list[float]], turns: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Virtual seconds to `target_accuracy`, from [rounds][replicas]; none without a target or without a clock.

    The mean is over the replicas that got there; the note counts the others.
    """
    target = cell.config["target_accuracy"]
    if target is None or not any(turn["ended"] for turn in turns[-1]):
        return []
    ended = [[turn["ended"] for turn in replicas] for replicas in turns]
    times = times_to([*zip(*accuracy, strict=True)], [*zip(*ended, strict=True)], target)
    reached = [seconds for seconds in times if seconds is not None]
    never = len(times) - len(reached)
    return [
        make_row(
            mean_interval(np.array(reached)) if reached else None,
            question="utility", attack="", view="", knowledge="", group="test", metric=f"seconds_to_{target:g}",
            samples=f"{len(reached)} of {len(times)} replicas, on the fleet's clock",
            note=f"{never} of {len(times)} replicas never reached it" if never else "",
        )
    ]  # fmt: skip
