"""Run a cell: its tasks side by side, then everything sealed into one stored run."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from defenses.bounds import TradeOff
from experiments import store, tasks
from experiments.cell import Cell
from experiments.executor import Run
from experiments.pieces import probe_parts, stored_scores, target_parts
from experiments.scoring import accuracy_rows, clock_rows, reconstruction_rows
from experiments.store import partial
from experiments.terminal import progress
from fl_core.checkpoint import load_tensors, read_json, save_tensors, write_bytes, write_json, write_text
from fl_core.errors import InputError


def execute(cell: Cell, label: str = "", wait: bool = False) -> Path:
    """Run `cell` to its end, or go on where an earlier call stopped; a finished run is only checked.

    Returns the stored run's folder. Raises InputError where another process is at the same cell (unless told to `wait`
    for it), workers died too often, or the stored run is damaged.
    """
    final = store.RUNS / cell.hash
    pieces = partial(final)
    if final.exists():
        store.load(final)
    else:
        cell.executor.connect()
        pieces.mkdir(parents=True, exist_ok=True)
        with _alone(pieces, wait):
            if not final.exists():
                began = time.perf_counter()
                workers = _work(cell, pieces, label)
                _seal(cell, pieces, final, time.perf_counter() - began, workers)
    shutil.rmtree(pieces, ignore_errors=True)
    return final


@contextmanager
def _alone(pieces: Path, wait: bool) -> Iterator[None]:
    """Hold the cell's lock, so that two sweeps do not write the same run."""
    try:
        with filelock.FileLock(pieces / "lock", timeout=-1 if wait else 0):
            yield
    except filelock.Timeout:
        raise InputError(f"another process is running this cell ({pieces}); wait for it, or stop it") from None


def _work(cell: Cell, pieces: Path, label: str) -> int:
    """Do the cell's tasks, and again what a worker that died left undone; returns the number of workers."""
    shards, rounds = len(cell.shards()), cell.config["rounds"]

    def rounds_done() -> int:
        done = 0
        for shard in range(shards):
            count = pieces / f"train-{shard}.round"
            if (pieces / f"train-{shard}.safetensors").exists():
                done += rounds
            elif count.exists():
                done += int(count.read_text() or 0)
        return done

    name = label or cell.config["name"]
    with progress(shards * rounds, rounds_done, name, unit="round", afterwards="attacking"):
        return cell.executor.persist(
            lambda run: _waves(cell, pieces, run), wanted=cell.config["workers"], device=cell.device, name=name
        )


def _waves(cell: Cell, pieces: Path, run: Run) -> None:
    """First what trains, then what scores it, then what measures the scores."""
    # A worker on another machine must not choose another device than the one that stands in the run's hash.
    config, attacks = cell.config | {"device": cell.device.type}, list(cell.membership_attacks)
    pieces = pieces.absolute()  # a worker that outlived an earlier call may stand in another folder
    run(
        [joblib.delayed(tasks.train)(config, pieces, shard) for shard in range(len(cell.shards()))]
        + [joblib.delayed(tasks.probe)(config, pieces, part) for part in range(probe_parts(cell))]
        + [joblib.delayed(tasks.account)(config, pieces)]
    )
    run(joblib.delayed(tasks.score)(config, pieces, attack, part) for attack in attacks for part in target_parts(cell))
    run(joblib.delayed(tasks.measure)(config, pieces, attack) for attack in attacks)


def _seal(cell: Cell, pieces: Path, final: Path, seconds: float, workers: int) -> None:
    """Gather the pieces into one stored run. The pieces stay until it has its final name."""
    sealed = pieces / "sealed"
    shutil.rmtree(sealed, ignore_errors=True)
    trained = [load_tensors(pieces / f"train-{shard}.safetensors") for shard in range(len(cell.shards()))]
    probed = [load_tensors(pieces / f"probe-{part}.safetensors")[0] for part in range(probe_parts(cell))]
    # [rounds][replicas]
    accuracy, turns = (
        [[one for _, facts in trained for one in facts[name][round]] for round in range(cell.config["rounds"])]
        for name in ("accuracy", "fleet")
    )
    account = read_json(pieces / "account.json")
    measured = {attack: read_json(pieces / f"measure-{attack}.json") for attack in cell.membership_attacks}

    rows = [row for found in measured.values() for row in found["rows"]]
    _add_ceilings(rows, account, cell.config["attack"]["fpr"])
    rows += reconstruction_rows(cell, pieces) + accuracy_rows(cell, accuracy) + clock_rows(cell, accuracy, turns)
    leakage = {
        "cell": describe(cell, account),
        "rows": rows,
        "roc": {found["attack"]: found["roc"] for found in measured.values()},
        "audit": next((found["audit"] for found in measured.values() if found["audit"]), None),
        "account": account,
    }
    write_json(sealed / "leakage.json", leakage)
    lines = [
        json.dumps({"round": round + 1, "test_accuracy": values, "fleet": turns[round]})
        for round, values in enumerate(accuracy)
    ]
    write_text(sealed / "rounds.jsonl", "\n".join(lines) + "\n")
    _write_scores(cell, pieces, sealed / "scores.parquet")

    shown = _joined([tensors for tensors, _ in trained])
    updates = _joined([{n: v for n, v in part.items() if n.startswith("update.")} for part in probed])
    save_tensors(sealed / "observations.safetensors", shown | updates)
    guesses = _joined([{n: part[n] for n in ("recovered", "objective", "chosen", "labels")} for part in probed])
    save_tensors(sealed / "reconstructions.safetensors", guesses)
    truth = _joined([{n: part[n] for n in ("true_images", "true_labels")} for part in probed])
    own = {"members": cell.members, "canary": cell.canary, "owners": cell.owners, "labels": cell.pool.labels}
    save_tensors(sealed / "truth" / "truth.safetensors", truth | own)
    if (pieces / "models").is_dir():
        shutil.copytree(pieces / "models", sealed / "models")
    manifest = {
        "hash": cell.hash,
        "config": cell.config,
        "cell": leakage["cell"],
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
        "examples": len(cell.pool),
        "classes": list(cell.pool.classes),
        "parameters": sum(value.numel() for value in cell.model.parameters()),
        "fpr": cell.config["attack"]["fpr"],
    }


def _add_ceilings(rows: list[dict[str, Any]], account: dict[str, Any], fpr: float) -> None:
    """What the guarantee allows any attack on the released model, beside what this one reached."""
    if "trade_off" not in account:
        return
    ceiling = TradeOff.from_dict(account["trade_off"])
    values = {"auc": ceiling.auc(), "tpr": float(ceiling.tpr_at(fpr))}
    for row in rows:
        row["ceiling"] = values[row["metric"]]


def _joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def _write_scores(cell: Cell, pieces: Path, path: Path) -> None:
    """One line an attack, target replica and example; whether it was a member is not said here."""
    columns: dict[str, list[Any]] = {"attack": [], "replica": [], "example": [], "score": []}
    for attack in cell.membership_attacks:
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
