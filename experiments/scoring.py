"""From scores and pictures to rows with intervals. The only judge that sees the truth."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.audit.one_run import audit_one_run
from attacks.metrics import Interval, bootstrap_over_replicas, clopper_pearson, mean_interval, psnr, roc_band, supports
from experiments.cell import Cell
from experiments.pieces import probe_parts, score_one, stored_scores, stored_signals, target_parts
from fl_core.checkpoint import load_tensors
from fl_core.fleet import times_to

GROUPS = ("canary", "ordinary")
EXACT_DB = 100.0
"""A recovery at or above this many dB is exact for 8-bit pixels; it enters the mean as this number, and is counted."""


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


def _row(interval: Interval | None, **fields: Any) -> dict[str, Any]:
    value = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    return asdict(Row(value=value[0], low=value[1], high=value[2], **fields))


def membership_rows(cell: Cell, folder: Path, attack: str) -> dict[str, Any]:
    """Rows, ROC bands and, for the auditor's attack, the lower bound on ε."""
    settings = cell.config["attack"]
    scores = stored_scores(folder, attack, cell)
    members = cell.members.numpy()
    name = cell.membership_attacks[attack].name
    knowledge = "the defence, the training recipe, shadow replicas on the same distribution"
    about = {"question": "membership", "attack": name, "view": "released_model", "knowledge": knowledge}
    rows, curves = [], {}
    for group, mask in groups(cell).items():
        inside, outside = int((members & mask).sum()), int((~members & mask).sum())
        samples = f"{cell.replicas} replicas, {inside} members, {outside} non-members"
        enough = supports(settings["fpr"], outside)
        # A larger rate, where the wanted one is refused below, only so that the AUC has its interval.
        found = bootstrap_over_replicas(
            scores, members, mask, fpr=settings["fpr"] if enough else 1.0, resamples=settings["resamples"]
        )
        rows.append(_row(found.auc, **about, group=group, metric="auc", samples=samples))
        note = "" if enough else f"needs at least {math.ceil(1 / settings['fpr'])} non-members, has {outside}"
        rows.append(_row(found.tpr if enough else None, **about, group=group, metric="tpr", samples=samples, note=note))
        band = roc_band(scores, members, mask)
        curves[group] = {field: getattr(band, field).tolist() for field in ("fpr", "tpr", "low", "high")}
    audit = _audit(cell, folder, attack) if attack == settings["audit_with"] else None
    return {"attack": name, "rows": rows, "roc": curves, "audit": audit}


def groups(cell: Cell) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Masks [examples] of the groups that have any example."""
    candidates = cell.candidates.numpy()
    masks = dict(zip(GROUPS, (cell.canary.numpy() & candidates, ~cell.canary.numpy() & candidates), strict=True))
    return {group: mask for group, mask in masks.items() if mask.any()}


def _audit(cell: Cell, folder: Path, attack: str) -> dict[str, Any]:
    """The one-run lower bound on ε: the first half of the replicas are targets, the other half their only shadows."""
    canaries = groups(cell).get("canary")
    if cell.config["membership"] != 0.5 or canaries is None:
        return {"epsilon": None, "note": "needs canaries that are members by a fair coin (membership=0.5)"}
    (_, half), _ = target_parts(cell)
    shadows = np.arange(half, cell.replicas)
    signals = stored_signals(folder, cell)
    scores = np.stack([score_one(cell, attack, signals, target, shadows) for target in range(half)])
    found = audit_one_run(
        scores[:, canaries],
        cell.members.numpy()[:half][:, canaries],
        fraction=cell.config["attack"]["audit_fraction"],
        delta=cell.delta or 0.0,
    )
    return {**asdict(found), "targets": half, "note": ""}


def accuracy_rows(cell: Cell, accuracy: list[list[float]]) -> list[dict[str, Any]]:
    """Test accuracy of the released models, from [rounds][replicas]."""
    return [
        _row(
            mean_interval(np.array(accuracy[-1])),
            question="utility", attack="", view="", knowledge="", group="test", metric="accuracy",
            samples=f"{cell.replicas} replicas, {len(cell.test)} test examples",
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
        _row(
            mean_interval(np.array(reached)) if reached else None,
            question="utility", attack="", view="", knowledge="", group="test", metric=f"seconds_to_{target:g}",
            samples=f"{len(reached)} of {len(times)} replicas, on the fleet's clock",
            note=f"{never} of {len(times)} replicas never reached it" if never else "",
        )
    ]  # fmt: skip


def reconstruction_rows(cell: Cell, folder: Path) -> list[dict[str, Any]]:
    """PSNR of the attacker's choice, of the best restart in hindsight, of blind guesses; and the label's recall."""
    parts = [load_tensors(folder / f"probe-{part}.safetensors")[0] for part in range(probe_parts(cell))]
    if not parts:
        return []
    stored = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0] if "." not in name}
    truth, recovered = stored["true_images"], stored["recovered"]
    count = len(truth)
    selected = psnr(recovered[np.arange(count), stored["chosen"]], truth)
    each = np.stack([psnr(recovered[:, restart], truth) for restart in range(recovered.shape[1])], 1)
    public = cell.test.images.cpu().numpy()
    mean_image = np.broadcast_to(public.mean(0), truth.shape)
    nearest = np.array([psnr(public, np.broadcast_to(one, public.shape)).max() for one in truth])
    name = cell.reconstruction.name
    about = {
        "question": "reconstruction",
        "view": cell.reconstruction.needs.view,
        "knowledge": f"{cell.reconstruction.letter}: the update, the model, one step on one example; no label, no data",
        "group": "victims",
        "samples": f"{count} victims in as many replicas",
    }
    exact = int((selected >= EXACT_DB).sum())
    rows = [
        _row(_capped(selected), **about, attack=name, metric="psnr", note=f"{exact} exact" if exact else ""),
        _row(_capped(each.max(1)), **about, attack=name, metric="psnr_oracle", note="best restart by the truth"),
        _row(_capped(psnr(mean_image, truth)), **about, attack="blind (mean image)", metric="psnr"),
        _row(
            _capped(nearest),
            **about,
            attack="blind (nearest public image)",
            metric="psnr",
            note="picked by the truth",
        ),
    ]
    hits = int((stored["labels"] == stored["true_labels"]).sum())
    recall = clopper_pearson(hits, count)
    rows.append(_row(recall, **about, attack=name, metric="label_recall"))
    return rows


def _capped(decibels: Any) -> Interval:
    return mean_interval(np.minimum(decibels, EXACT_DB))
