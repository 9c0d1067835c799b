"""A population on disk: trained once, read once through one view, and shared by every cell that asks about it.

`results/runs/<hash>/` of a population holds
manifest.json            its configuration, code revision, versions, hardware, seconds
rounds.jsonl             for each round, by replica: test accuracy, who took part, the fleet's clock
observations.safetensors the released models
signals.safetensors      what the view says of every candidate, by replica (and round): all that an attack is given
truth/                   members: for scorers, and for an attacker whose own shadows they are
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor

from attacks.membership.observed import KINDS, SHARED, Signals
from attacks.membership.reading import read_signals
from experiments import store, tensorboard_log
from experiments.executor import Executor
from experiments.population import Population
from experiments.terminal import progress
from fl_core.checkpoint import load_facts, load_tensors, save_tensors, write_text
from fl_core.errors import InputError
from fl_core.federation import run
from fl_core.fleet import log_line
from fl_core.models import accuracy
from fl_core.state import State


def train(population: Population, folder: Path, shard: int) -> None:
    """Train one shard of replicas, round by round, and read what the view shows of them.

    Writes `train-<shard>.safetensors`: `model.*` [replicas, ...] and `signals.*`, as the classes of
    `attacks.membership.observed` have them. After each round the state, and what was seen in it, go to disk, and a
    later call goes on from there with the same bits.
    """
    done = folder / f"train-{shard}.safetensors"
    if done.exists():
        return
    population = population.calibrated()
    rows = population.shards()[shard]
    federation = population.federation(rows)
    saved = folder / f"train-{shard}.checkpoint.safetensors"
    recorder = population.recorder()
    state: State | None = None
    history: dict[str, list[list[Any]]] = {"accuracy": [], "fleet": []}  # [rounds][replicas]
    if saved.exists():
        tensors, history = load_tensors(saved)
        state = State.from_tensors(tensors, population.device)
        for round in range(state.round):
            recorder.restore(round, load_tensors(_seen(folder, shard, round))[0])

    def after_round(state: State) -> None:
        history["accuracy"].append(accuracies(population, state))
        history["fleet"].append([log_line(federation.turn(row, state.round - 1)) for row in range(len(rows))])
        save_tensors(_seen(folder, shard, state.round - 1), recorder.kept(state.round - 1))
        save_tensors(saved, state.tensors(), history)
        write_text(folder / f"train-{shard}.round", str(state.round))
        if population.config["save_rounds"] and 0 in rows:
            first = {name: value[0] for name, value in state.model.items()}
            save_tensors(folder / "models" / f"global_model_round{state.round}.safetensors", first)

    run(federation, recorder, state=state, after_round=after_round)
    observation, public = recorder.observation(), population.public
    signals = read_signals(
        observation,
        population.model,
        population.pool.images,
        population.pool.labels,
        clients=len(population.sizes),
        queries=population.config["signals"]["queries"],
        public=None if public is None else (public.images, public.labels),
    )
    read = {f"signals.{name}": torch.as_tensor(value) for name, value in _arrays(signals).items()}
    save_tensors(done, {f"model.{name}": value for name, value in observation.model.items()} | read, history)
    saved.unlink(missing_ok=True)
    for round in range(federation.rounds):
        _seen(folder, shard, round).unlink(missing_ok=True)


def _arrays(signals: Signals) -> dict[str, Any]:
    values = {field.name: getattr(signals, field.name) for field in fields(signals)}
    return {name: value for name, value in values.items() if value is not None}


def _seen(folder: Path, shard: int, round: int) -> Path:
    return folder / f"train-{shard}.seen-{round}.safetensors"


def accuracies(population: Population, state: State) -> list[float]:
    """Test accuracy of each replica's model; with local layers, the mean over its clients' own models."""
    personal = population.algorithm.personal(state.model, state.clients)
    lanes = state.model if personal is None else {name: value.flatten(0, 1) for name, value in personal.items()}
    replicas = len(next(iter(state.model.values())))
    each = accuracy(population.model, lanes, population.test).unflatten(0, (replicas, -1)).mean(1)
    found: list[float] = each.tolist()
    return found


def populate(population: Population, executor: Executor, task: Callable[..., None], label: str, wait: bool) -> Path:
    """Train and read `population`, or go on where an earlier call stopped; finished replicas are only checked.

    `task` (configuration, folder, shard) is `train` in a form that any process can call. Returns the stored
    population's folder; raises as `store.run_once`.
    """

    final = store.RUNS / population.hash

    def work(pieces: Path) -> None:
        began = time.perf_counter()
        with tensorboard_log.live(population.config, population.hash, lambda: so_far(population, pieces)):
            workers = _work(population, executor, task, pieces, label)
        _seal(population, pieces, final, time.perf_counter() - began, workers)

    store.run_once(final, work, wait, store.REPLICAS)
    return final


def _work(population: Population, executor: Executor, task: Callable[..., None], pieces: Path, label: str) -> int:
    """Train the shards, and again what a worker that died left undone; returns the number of workers."""
    shards, rounds = len(population.shards()), population.config["rounds"]

    def rounds_done() -> int:
        done = 0
        for shard in range(shards):
            count = pieces / f"train-{shard}.round"
            if (pieces / f"train-{shard}.safetensors").exists():
                done += rounds
            elif count.exists():
                done += int(count.read_text(encoding="utf-8") or 0)
        return done

    # A worker on another machine must not choose another device than the one that stands in the hash.
    config = population.config | {"device": population.device.type}
    folder = pieces.absolute()  # a worker that outlived an earlier call may stand in another folder
    with progress(shards * rounds, rounds_done, label, unit="round", afterwards="reading signals"):
        return executor.persist(
            lambda run: run(joblib.delayed(task)(config, folder, shard) for shard in range(shards)),
            wanted=population.config["workers"],
            device=population.device,
            name=label,
        )


def so_far(population: Population, pieces: Path) -> dict[int, tensorboard_log.History]:
    """The rounds that each shard under way has played, by the number of its first replica."""
    found: dict[int, tensorboard_log.History] = {}
    for shard, rows in enumerate(population.shards()):
        files = (pieces / f"train-{shard}.safetensors", pieces / f"train-{shard}.checkpoint.safetensors")
        first = population.config["first_replica"] + rows.start
        found[first] = next(filter(None, map(_history, files)), {"accuracy": [], "fleet": []})
    return found


def _history(file: Path) -> dict[str, Any]:
    try:
        return load_facts(file) if file.exists() else {}
    except InputError:  # it was there a moment ago; whoever needs the whole of it says what is wrong
        return {}


def _seal(population: Population, pieces: Path, final: Path, seconds: float, workers: int) -> None:
    sealed = pieces / "sealed"
    shutil.rmtree(sealed, ignore_errors=True)
    trained = [load_tensors(pieces / f"train-{shard}.safetensors") for shard in range(len(population.shards()))]
    lines = []
    for played in range(population.config["rounds"]):
        both = {name: [one for _, facts in trained for one in facts[name][played]] for name in ("accuracy", "fleet")}
        lines.append(json.dumps({"round": played + 1, "test_accuracy": both["accuracy"], "fleet": both["fleet"]}))
    write_text(sealed / "rounds.jsonl", "\n".join(lines) + "\n")
    tensors = [part for part, _ in trained]
    save_tensors(sealed / "observations.safetensors", _joined(tensors, "model."))
    save_tensors(sealed / "signals.safetensors", _joined(tensors, "signals."))
    truth = {"members": population.members, "canary": population.canary, "owners": population.owners}
    save_tensors(sealed / "truth" / "truth.safetensors", truth | {"labels": population.pool.labels})
    if (pieces / "models").is_dir():
        shutil.copytree(pieces / "models", sealed / "models")
    manifest = {
        "hash": population.hash,
        "config": population.config,
        "view": population.view.view,
        "seconds": round(seconds, 1),
        "workers": workers,
        **store.circumstances(population.device),
    }
    store.finish(sealed, final, manifest)


def _joined(parts: list[dict[str, Tensor]], prefix: str) -> dict[str, Tensor]:
    """The shards' arrays as one, without the prefix that tells them apart; what all replicas share is kept once."""
    names = [name for name in parts[0] if name.startswith(prefix)]
    shared = {f"signals.{name}" for name in SHARED}
    return {name: parts[0][name] if name in shared else torch.cat([part[name] for part in parts]) for name in names}


def signals_of(folder: Path) -> Signals:
    """All replicas' signals of a stored population."""
    tensors, _ = load_tensors(folder / "signals.safetensors")
    view = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["view"]
    arrays = {name.removeprefix("signals."): value.numpy() for name, value in tensors.items()}
    return KINDS[view](**arrays)


def history_of(folder: Path) -> tuple[list[list[float]], list[list[dict[str, Any]]]]:
    """Test accuracies and the fleets' log lines of a stored population, both [rounds][replicas]."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["test_accuracy"] for line in lines], [line["fleet"] for line in lines]
