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

from attacks.reconstruction.gradient_matching import ReconstructionKnowledge
from defenses.accounting import Unit, epsilon_rdp
from defenses.statements import Gaussians, PrivacyStatement
from experiments.cell import Cell, build
from experiments.pieces import PROBE_BATCH, score_one, stored_signals, victims
from experiments.scoring import membership_rows
from fl_core.aggregation import Mean
from fl_core.checkpoint import load_tensors, save_tensors, write_json, write_text
from fl_core.federation import Federation, run
from fl_core.fleet import log_line
from fl_core.models import accuracy, logits
from fl_core.sampling import Poisson
from fl_core.state import State
from fl_core.views import VIEWS, Recorder, ReleasedModel, Server, require_view


def train(config: dict[str, Any], folder: Path, shard: int) -> None:
    """Train one shard of replicas, round by round, and query the released models on every candidate.

    Writes `train-<shard>.safetensors`: `model.*` [replicas, ...] and `outputs` [replicas, examples, classes]. After
    each round the state goes to disk, and a later call goes on from there with the same bits.
    """
    done = folder / f"train-{shard}.safetensors"
    if done.exists():
        return
    _one_thread()
    cell = build(config).calibrated()
    replicas = cell.shards()[shard]
    federation = cell.federation(replicas)
    saved = folder / f"train-{shard}.checkpoint.safetensors"
    state: State | None = None
    history: dict[str, list[list[Any]]] = {"accuracy": [], "fleet": []}  # [rounds][replicas]
    if saved.exists():
        tensors, history = load_tensors(saved)
        state = State.from_tensors(tensors, cell.device)

    def after_round(state: State) -> None:
        history["accuracy"].append(accuracies(cell, state))
        history["fleet"].append([log_line(federation.turn(row, state.round - 1)) for row in range(len(replicas))])
        save_tensors(saved, state.tensors(), history)
        write_text(folder / f"train-{shard}.round", str(state.round))
        if cell.config["save_rounds"] and 0 in replicas:
            first = {name: value[0] for name, value in state.model.items()}
            save_tensors(folder / "models" / f"global_model_round{state.round}.safetensors", first)

    recorder = Recorder(ReleasedModel)
    run(federation, recorder, state=state, after_round=after_round)
    released = recorder.observation().model
    outputs = logits(cell.model, {name: v.to(cell.device) for name, v in released.items()}, cell.pool.images)
    save_tensors(
        done,
        {f"model.{name}": value for name, value in released.items()} | {"outputs": outputs},
        history,
    )
    saved.unlink(missing_ok=True)


def accuracies(cell: Cell, state: State) -> list[float]:
    """Test accuracy of each replica's model; with local layers, the mean over its clients' own models."""
    personal = cell.algorithm.personal(state.model, state.clients)
    lanes = state.model if personal is None else {name: value.flatten(0, 1) for name, value in personal.items()}
    replicas = len(next(iter(state.model.values())))
    each: list[float] = accuracy(cell.model, lanes, cell.test).unflatten(0, (replicas, -1)).mean(1).tolist()
    return each


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
    chosen = victims(cell)
    numbers = range(part * PROBE_BATCH, min((part + 1) * PROBE_BATCH, len(chosen)))
    rows = chosen[list(numbers)]
    members = torch.zeros(len(rows), len(cell.pool), dtype=torch.bool)
    members[torch.arange(len(rows)), rows] = True
    federation = Federation(
        model=cell.model,
        data=cell.pool,
        owners=torch.zeros(len(cell.pool), dtype=torch.long),
        members=members,
        sizes=torch.ones(1, dtype=torch.long),
        algorithm=replace(cell.algorithm, sampler=Poisson(local_steps=1, batch_size=1), aggregator=Mean()),
        defense=cell.defense,
        rounds=1,
        run=cell.config["seed"],
        replica_ids=numbers,
        backend=cell.config["backend"],
    )
    recorder = Recorder(Server)
    run(federation, recorder)
    observation = recorder.observation()
    attack = cell.reconstruction
    require_view(attack.name, observation, attack.needs)
    knowledge = ReconstructionKnowledge(model=cell.model, shape=cell.pool.shape, classes=len(cell.pool.classes))
    found = attack.run(
        observation,
        knowledge,
        run=cell.config["seed"],
        victims=numbers,
        device=cell.device,
        backend=cell.config["backend"],
    )
    assert isinstance(observation, Server)
    save_tensors(
        done,
        {f"update.{name}": value[:, 0] for name, value in observation.updates[0].items()}
        | {
            "recovered": found.images,
            "objective": found.objective,
            "chosen": found.chosen,
            "labels": found.labels,
            "true_images": cell.pool.images[rows],
            "true_labels": cell.pool.labels[rows],
        },
    )


def score(config: dict[str, Any], folder: Path, attack: str, targets: tuple[int, int]) -> None:
    """Run one membership attack on the targets [from, to), each with all the other replicas as its shadows.

    Writes `score-<attack>-<from>.safetensors`: `scores` [targets, examples].
    """
    done = folder / f"score-{attack}-{targets[0]}.safetensors"
    if done.exists():
        return
    _one_thread()
    cell = build(config)
    signals = stored_signals(folder, cell)
    others = np.arange(cell.replicas)
    rows = [score_one(cell, attack, signals, target, others[others != target]) for target in range(*targets)]
    save_tensors(done, {"scores": torch.from_numpy(np.stack(rows))})


def measure(config: dict[str, Any], folder: Path, attack: str) -> None:
    """Turn one attack's scores into rows with intervals. Writes `measure-<attack>.json`."""
    done = folder / f"measure-{attack}.json"
    if done.exists():
        return
    _one_thread()
    write_json(done, membership_rows(build(config), folder, attack))


def account(config: dict[str, Any], folder: Path) -> None:
    """What the defence guarantees, cross-checked by a second accountant, and the ceiling that follows.

    Writes `account.json`.
    """
    done = folder / "account.json"
    if done.exists():
        return
    cell = build(config).calibrated()
    plan, units = cell.plan(), get_args(Unit)
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
    ours = stated[ReleasedModel.view, "example"]
    if isinstance(ours, PrivacyStatement) and ours.mechanism is not None:
        found["trade_off"] = ours.mechanism.trade_off().as_dict()
        if isinstance(ours.mechanism, Gaussians):
            noise, event = ours.mechanism.noise_multiplier, ours.mechanism.event
            found["epsilon_rdp"] = epsilon_rdp(noise, [event], ours.delta)
    write_json(done, found)


def _one_thread() -> None:
    """One thread a process: two processes beat two threads here, and sums keep their order whatever the machine."""
    torch.set_num_threads(1)
