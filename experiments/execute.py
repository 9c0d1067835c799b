"""Run a cell: its replicas, its tasks side by side, then everything sealed into one stored run."""

from __future__ import annotations

import math
import shutil
import time
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from defenses.bounds import TradeOff
from experiments import reconstruction_scores, scoring, store, tasks, tensorboard_log
from experiments.cell import Cell
from experiments.executor import Run
from experiments.pieces import probe_parts, stored_scores, target_parts
from experiments.replicas import history_of, populate
from experiments.terminal import progress
from fl_core.checkpoint import load_tensors, read_json, save_tensors, write_bytes, write_json


def execute(cell: Cell, label: str = "", wait: bool = False) -> Path:
    """Run `cell` to its end, or go on where an earlier call stopped; a finished run is only checked.

    Replicas that are stored already are not trained again. Returns the stored run's folder. Raises InputError where
    another process is at the same cell or at its replicas (unless told to `wait` for it), workers died too often, or a
    stored run is damaged.
    """
    name = label or cell.config["name"]

    final = store.RUNS / cell.hash

    def work(pieces: Path) -> None:
        began = time.perf_counter()
        for number, population in enumerate(cell.populations):
            its = f"{name}, shadows" if number else name
            populate(population, cell.executor, tasks.train, its, wait)
        workers = _work(cell, pieces, name)
        _seal(cell, pieces, final, time.perf_counter() - began, workers)

    if not final.exists():
        cell.executor.connect()  # before any folder is made
    store.run_once(final, work, wait, store.CELL)
    for population in cell.populations:
        store.load(store.RUNS / population.hash, store.REPLICAS)
        tensorboard_log.stored(population.config, store.RUNS / population.hash)
    return final


def _work(cell: Cell, pieces: Path, name: str) -> int:
    """Do the cell's tasks, and again what a worker that died left undone; returns the number of workers."""
    parts = len(cell.possible) * len(target_parts(cell)) + probe_parts(cell)

    def done() -> int:
        return len(list(pieces.glob("score-*.safetensors"))) + len(list(pieces.glob("probe-*.safetensors")))

    with progress(parts, done, f"{name}, attacks", unit="part", afterwards="measuring"):
        return cell.executor.persist(
            lambda run: _waves(cell, pieces, run), wanted=cell.config["workers"], device=cell.device, name=name
        )


def _waves(cell: Cell, pieces: Path, run: Run) -> None:
    """First what attacks, then what measures it."""
    # A worker on another machine must not choose another device than the one that stands in the run's hash.
    config = cell.config | {"device": cell.device.type}
    pieces = pieces.absolute()  # a worker that outlived an earlier call may stand in another folder
    run(
        [joblib.delayed(tasks.probe)(config, pieces, part) for part in range(probe_parts(cell))]
        + [joblib.delayed(tasks.account)(config, pieces)]
        + [joblib.delayed(tasks.score)(config, pieces, *one) for one in product(cell.possible, target_parts(cell))]
    )
    run(joblib.delayed(tasks.measure)(config, pieces, attack) for attack in cell.possible)


def _seal(cell: Cell, pieces: Path, final: Path, seconds: float, workers: int) -> None:
    """Gather the pieces into one stored run. The pieces stay until it has its final name."""
    sealed = pieces / "sealed"
    shutil.rmtree(sealed, ignore_errors=True)
    probed = [load_tensors(pieces / f"probe-{part}.safetensors")[0] for part in range(probe_parts(cell))]
    trained = store.RUNS / cell.targets.hash
    accuracy, turns = history_of(trained)
    account = read_json(pieces / "account.json")
    measured = {attack: read_json(pieces / f"measure-{attack}.json") for attack in cell.possible}

    rows: list[dict[str, Any]] = []
    for attack in cell.membership_attacks:
        rows += measured[attack]["rows"] if attack in measured else scoring.refused(cell, attack)
    _add_ceilings(rows, account, cell.config["attack"]["fpr"])
    rows += reconstruction_scores.probe_rows(cell, pieces)
    rows += scoring.accuracy_rows(cell, accuracy) + scoring.clock_rows(cell, accuracy, turns)
    order = {attack: number for number, attack in enumerate(cell.config["attack"]["audit_with"])}
    audits = [
        one for attack in sorted(measured.keys() & order, key=order.__getitem__) for one in measured[attack]["audits"]
    ]
    leakage = {
        "cell": describe(cell, account),
        "rows": rows,
        "roc": {found["attack"]: found["roc"] for found in measured.values()},
        "audits": audits,
        "vulnerable": {found["attack"]: found["vulnerable"] for found in measured.values()},
        "account": account,
    }
    write_json(sealed / "leakage.json", leakage)
    _write_scores(cell, pieces, sealed / "scores.parquet")

    updates = _joined([{n: v for n, v in part.items() if n.startswith("update.")} for part in probed])
    save_tensors(sealed / "observations.safetensors", updates)
    guesses = _joined([{n: part[n] for n in ("recovered", "objective", "chosen", "labels")} for part in probed])
    save_tensors(sealed / "reconstructions.safetensors", guesses)
    truth = _joined([{n: part[n] for n in ("true_images", "true_labels")} for part in probed])
    targets = cell.targets
    if measured:
        most = [one["example"] for one in next(iter(measured.values()))["vulnerable"]]
        truth |= {"vulnerable_images": targets.pool.images[most], "vulnerable_labels": targets.pool.labels[most]}
    own = {
        "members": targets.members,
        "canary": targets.canary,
        "owners": targets.owners,
        "labels": targets.pool.labels,
    }
    save_tensors(sealed / "truth" / "truth.safetensors", truth | own)
    if (trained / "models").is_dir():
        shutil.copytree(trained / "models", sealed / "models")
    manifest = {
        "hash": cell.hash,
        "config": cell.config,
        "cell": leakage["cell"],
        "replicas": [population.hash for population in cell.populations],
        "guarantees": account["guarantees"],
        "seconds": round(seconds, 1),
        "workers": workers,
        **store.circumstances(cell.device),
    }
    store.finish(sealed, final, manifest)


def describe(cell: Cell, account: dict[str, Any]) -> dict[str, Any]:
    """What a table says of the cell besides its results: ε (None is infinite), δ, the defence, the data."""
    wanted = cell.defense.epsilon if math.isfinite(cell.defense.epsilon) else None
    if cell.defense.noise_multiplier is not None:
        wanted = account["guarantees"][f"released_model/{cell.defense.protects}"]["epsilon"]
    return {
        "defense": cell.defense.name,
        "epsilon": wanted,
        "delta": cell.delta,
        "noise_multiplier": account["noise_multiplier"],
        "examples": len(cell.targets.pool),
        "classes": list(cell.targets.pool.classes),
        "parameters": sum(value.numel() for value in cell.targets.model.parameters()),
        "fpr": cell.config["attack"]["fpr"],
    }


def _add_ceilings(rows: list[dict[str, Any]], account: dict[str, Any], fpr: float) -> None:
    """What the guarantee allows any attack with the row's view, beside what this one reached."""
    ceilings = {view: TradeOff.from_dict(curve) for view, curve in account["trade_offs"].items()}
    for row in rows:
        ceiling = ceilings.get(row["view"])
        if ceiling is None:
            continue
        if row["metric"] == "auc":
            row["ceiling"] = ceiling.auc()
        elif row["metric"].startswith("tpr"):
            rate = float(row["metric"].removeprefix("tpr_at_")) if "_at_" in row["metric"] else fpr
            row["ceiling"] = float(ceiling.tpr_at(rate))


def _joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def _write_scores(cell: Cell, pieces: Path, path: Path) -> None:
    """One line an attack, target replica and example; whether it was a member is not said here."""
    columns: dict[str, list[Any]] = {"attack": [], "replica": [], "example": [], "score": []}
    for attack in cell.possible:
        scores = stored_scores(pieces, attack, cell)
        replica, example = np.indices(scores.shape)
        columns["attack"].append(np.full(scores.size, cell.membership_attacks[attack].name))
        columns["replica"].append(replica.ravel().astype(np.int32))
        columns["example"].append(example.ravel().astype(np.int32))
        columns["score"].append(scores.ravel())
    table = pa.table({name: np.concatenate(parts) for name, parts in columns.items()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue().to_pybytes())
