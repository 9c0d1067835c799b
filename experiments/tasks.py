"""The pieces of a cell's work that run side by side. Each reads what it needs, writes one file, and can be repeated.

A task is named by (configuration, folder, part), all plain values, so it runs in any process on any machine that sees
the folder. A task whose file exists is done.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from attacks.reconstruction.base import Knowledge, updates_of
from defenses.accounting import Unit, epsilon_rdp
from defenses.statements import Gaussians, PrivacyStatement
from experiments import population, replicas, scoring
from experiments.cell import build
from experiments.configuration import resolve_device
from experiments.pieces import PROBE_BATCH, Gallery, stored_scores, victims
from fl_core.aggregation import Mean
from fl_core.checkpoint import save_tensors, write_json
from fl_core.federation import Federation, run
from fl_core.sampling import Poisson
from fl_core.views import VIEWS, Recorder, ReleasedModel, Server


def train(config: dict[str, Any], folder: Path, shard: int) -> None:
    """`replicas.train`, one shard of the population that `config` describes."""
    _one_thread()
    device = resolve_device(config["device"])
    replicas.train(population.build(config, device, device.type), folder, shard)


def probe(config: dict[str, Any], folder: Path, part: int) -> None:
    """The probe round: each victim is a client with one example that takes one local step on the initial model.

    It is a federation like any other, under the cell's own defence, seen by the server; a victim stands in a replica
    of its own. Writes `probe-<part>.safetensors`: the observed update, the truth and what was recovered.
    """
    done = folder / f"probe-{part}.safetensors"
    if done.exists():
        return
    _one_thread()
    cell = build(config).calibrated()
    targets = cell.targets
    chosen = victims(cell)
    numbers = range(part * PROBE_BATCH, min((part + 1) * PROBE_BATCH, len(chosen)))
    rows = chosen[list(numbers)]
    members = torch.zeros(len(rows), len(targets.pool), dtype=torch.bool)
    members[torch.arange(len(rows)), rows] = True
    federation = Federation(
        model=targets.model,
        data=targets.pool,
        owners=torch.zeros(len(targets.pool), dtype=torch.long),
        members=members,
        sizes=torch.ones(1, dtype=torch.long),
        algorithm=replace(targets.algorithm, sampler=Poisson(local_steps=1, batch_size=1), aggregator=Mean()),
        defense=cell.defense,
        rounds=1,
        run=cell.config["seed"],
        replica_ids=numbers,
        backend=cell.config["backend"],
    )
    recorder = Recorder(Server)
    run(federation, recorder)
    attack = cell.reconstruction
    observed = updates_of(recorder.observation(), 0, attack.name)
    knowledge = Knowledge(
        model=targets.model,
        shape=targets.pool.shape,
        classes=len(targets.pool.classes),
        lr=targets.algorithm.lr,
    )
    partial = folder / f"probe-{part}.partial"
    found = attack.run(
        observed,
        knowledge,
        run=cell.config["seed"],
        victims=numbers,
        device=cell.device,
        backend=cell.config["backend"],
        checkpoint=partial,
    )
    save_tensors(
        done,
        {f"update.{name}": value for name, value in observed.moved.items()}
        | {
            "recovered": found.images[:, :, 0],
            "objective": found.objective,
            "chosen": found.chosen,
            "labels": found.selected_labels()[:, 0],
            "true_images": targets.pool.images[rows],
            "true_labels": targets.pool.labels[rows],
        },
    )
    partial.unlink(missing_ok=True)


def score(config: dict[str, Any], folder: Path, attack: str, targets: tuple[int, int]) -> None:
    """Run one membership attack on the targets [from, to), each with the shadows that the cell gives it.

    Writes `score-<attack>-<from>.safetensors`: `scores` [targets, examples].
    """
    done = folder / f"score-{attack}-{targets[0]}.safetensors"
    if done.exists():
        return
    _one_thread()
    gallery = Gallery.of(build(config), folder.parent)
    rows = [gallery.run(attack, target) for target in range(*targets)]
    save_tensors(done, {"scores": torch.from_numpy(np.stack(rows))})


def measure(config: dict[str, Any], folder: Path, attack: str) -> None:
    """Turn one attack's scores into rows with intervals. Writes `measure-<attack>.json`."""
    done = folder / f"measure-{attack}.json"
    if done.exists():
        return
    _one_thread()
    cell = build(config)
    found = scoring.membership(cell, stored_scores(folder, attack, cell), attack)
    audits = [scoring.audit(cell, attack, folder.parent)] if attack in cell.config["attack"]["audit_with"] else []
    write_json(done, found | {"audits": audits})


def account(config: dict[str, Any], folder: Path) -> None:
    """What the defence guarantees, cross-checked by a second accountant, and the ceiling that follows.

    Writes `account.json`.
    """
    done = folder / "account.json"
    if done.exists():
        return
    cell = build(config).calibrated()
    plan, units = cell.targets.plan(), get_args(Unit)
    stated = {(view, unit): cell.defense.guarantee(view, unit, plan) for view in VIEWS for unit in units}
    promised = {
        f"{view}/{unit}": {
            "view": view,
            "unit": unit,
            "promise": one.promise(),
            "epsilon": one.epsilon if math.isfinite(one.epsilon) else None,
        }
        for (view, unit), one in stated.items()
    }
    found: dict[str, Any] = {"guarantees": promised, "noise_multiplier": cell.defense.noise_multiplier}
    found["protects"] = cell.defense.protects
    curves: dict[Any, dict[str, Any]] = {}  # views share mechanisms, and a curve takes seconds
    found["trade_offs"] = {}
    for view in VIEWS:
        ours = stated[view, "example"]
        if not isinstance(ours, PrivacyStatement) or ours.mechanism is None:
            continue
        key = repr(ours.mechanism)
        if key not in curves:
            curves[key] = ours.mechanism.trade_off().as_dict()
        found["trade_offs"][view] = curves[key]
        if view == ReleasedModel.view and isinstance(ours.mechanism, Gaussians):
            noise, event = ours.mechanism.noise_multiplier, ours.mechanism.event
            found["epsilon_rdp"] = epsilon_rdp(noise, [event], ours.delta)
    write_json(done, found)


def _one_thread() -> None:
    """One thread a process: two processes beat two threads here, and sums keep their order whatever the machine."""
    torch.set_num_threads(1)
