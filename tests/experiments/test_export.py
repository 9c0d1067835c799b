"""Stored runs in MLflow, read back with its own client."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from experiments import export, store, tables
from experiments.collect import collect
from experiments.execute import execute
from fl_core.checkpoint import write_json, write_text
from tests.experiments.test_replicas import cell


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def manifest(name: str, **runs: Any) -> dict[str, Any]:
    """What a folder under results/ says of the stored runs behind it."""
    about = {"name": name, "title": "A title", "command": "python -m experiments.run", "seed": 0}
    return about | {"versions": {}, "config": {}} | runs


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    export.main()


def active(client: MlflowClient, name: str) -> tuple[Run, list[Run]]:
    """The parent run of a study and its children, as MLflow has them."""
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs if run is not parent)
    return parent, [run for run in runs if run is not parent]


@pytest.mark.heavy
def test_a_sweep_is_read_back_as_it_was_stored_and_exported_once(here: Path, uri: str, monkeypatch, capsys):
    made = cell("rounds=1")
    folder, cells = Path("results/single"), collect([execute(made)])
    write_text(folder / "table.csv", tables.as_csv(cells))
    write_json(folder / "manifest.json", manifest("single", cells=[{"run": made.hash, "epsilon": "∞", "variant": ""}]))
    call(monkeypatch, str(folder), "--mlflow", uri)
    assert capsys.readouterr().out == f"1 runs of {folder} are in {uri}, 1 of them new\n"
    client = MlflowClient(tracking_uri=uri)
    parent, (run,) = active(client, "single")
    assert run.data.tags["mirage.hash"] == made.hash
    assert run.data.tags["mirage.revision"] == store.revision()
    assert run.data.tags["mirage.view"] == "released_model"
    assert "has no guarantee (ε = ∞)" in run.data.tags["mirage.guarantees"]
    assert (run.info.run_name, run.info.status) == ("ε = ∞", "FINISHED")
    assert (run.data.params["rounds"], run.data.params["sampler.local_epochs"]) == ("1", "1")
    assert not {"workers", "debug", "tensorboard", "name"} & set(run.data.params)
    with open(folder / "table.csv") as file:
        for row in csv.DictReader(file):
            parts = [row[name] for name in ("question", "attack", "view", "group", "metric") if row[name]]
            if row["question"] == "audit":
                parts = ["audit", row["attack"].removeprefix("one-run audit by "), row["view"], row["metric"]]
            metric = "/".join(parts).translate({ord(letter): None for letter in "(),"})
            for end, name in (("value", metric), ("low", f"{metric}/low"), ("high", f"{metric}/high")):
                assert run.data.metrics.get(name) == (float(row[end]) if row[end] else None)
    there = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert there == {file.name for file in folder.iterdir()}

    call(monkeypatch, str(folder), "--mlflow", uri)
    assert "0 of them new" in capsys.readouterr().out
    again, (same,) = active(client, "single")
    assert (again.info.run_id, same.info.run_id) == (parent.info.run_id, run.info.run_id)


def study(value: float) -> Path:
    """A study of two points, as `experiments.studies` stores it."""
    points = [{"step": step, "about": {"kind": "a (b)"}} for step in (1, 2)]
    for point in points:
        final = store.RUNS / f"point{point['step']}"
        rows = [{"metric": "shift", "by": "LiRA, α", "value": value, "low": 0.1, "high": None, "note": "x"}]
        write_json(final.with_suffix(".sealed") / "record.json", {"rows": rows})
        facts = {"hash": final.name, "point": point, "config": {"data": {"limit": 3}, "seed": 0}, "seconds": 1.5}
        store.finish(final.with_suffix(".sealed"), final, facts | store.circumstances(torch.device("cpu")))
    folder = Path("results/rounding")
    told = [{"hash": f"point{point['step']}", "point": point} for point in points]
    write_json(folder / "manifest.json", manifest("rounding", points=told))
    write_text(folder / "data.csv", "step,metric,value\n1,shift,0\n2,shift,0\n")
    return folder


@pytest.mark.heavy
def test_a_study_that_says_something_else_under_the_same_hash_replaces_its_runs(here: Path, uri: str, monkeypatch):
    client = MlflowClient(tracking_uri=uri)
    for value in (0.25, 0.5):
        call(monkeypatch, str(study(value)), "--mlflow", uri)
        _, runs = active(client, "rounding")
        assert sorted(run.data.tags["mirage.hash"] for run in runs) == ["point1", "point2"]
        for run in runs:
            # a comma is nothing that MLflow takes
            assert run.data.metrics == {"LiRA α/shift": value, "LiRA α/shift/low": 0.1, "seconds": 1.5}
            expected = {"data.limit": "3", "seed": "0", "point.step": run.data.tags["mirage.hash"][-1]}
            assert run.data.params == expected | {"point.about.kind": "a (b)"}
        for stored in store.RUNS.iterdir():
            for file in stored.iterdir():
                file.unlink()
            stored.rmdir()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mlruns", "as in sqlite:///mlflow.db"),
        ("file:store", "no longer keeps runs in a folder"),
        ("sqlite://mlflow.db", "no file can be written"),
        ("sqlite:///nowhere/mlflow.db", "no file can be written"),
        ("sqlite:///mlflow.db", "holds no finished run"),
        ("sqlite:///mlflow.db missing", "missing holds no manifest.json"),
        ("without", "pip install 'mirage-fl[mlflow]'"),
    ],
)
def test_what_cannot_be_exported_is_one_line_with_exit_code_2(address, says, here: Path, monkeypatch, capsys):
    around: dict[str, Any] = {"cells": [{"run": "0f", "epsilon": "∞"}], "seed": 0, "versions": {}, "config": {}}
    Path("folder").mkdir()
    Path("folder/manifest.json").write_text(json.dumps(around))
    Path("folder/table.csv").write_text("metric,value,low,high\nauc,0.5,0,1\n")
    if address == "without":
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    where, _, folder = address.partition(" ")
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, folder or "folder", "--mlflow", where)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert [path.name for path in here.iterdir()] == ["folder"]
