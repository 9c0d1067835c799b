"""Runs in MLflow, read back with its own client."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from experiments import export, record

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


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
def test_a_sweep_is_read_back_as_it_is_committed_and_exported_once(here: Path, uri: str, monkeypatch, capsys):
    folder = Path(shutil.copytree(RESULTS / "leakage_vs_epsilon", "results/leakage_vs_epsilon"))
    call(monkeypatch, str(folder), "--mlflow", uri)
    assert capsys.readouterr().out == f"7 runs of {folder} are in {uri}, 7 of them new\n"
    client = MlflowClient(tracking_uri=uri)
    parent, runs = active(client, "leakage_vs_epsilon")
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {file.name for file in folder.iterdir()}
    cells = {cell["run"]: cell for cell in json.loads((folder / "manifest.json").read_text())["cells"]}
    by_epsilon = {}
    for run in runs:
        cell = cells.pop(run.data.tags["mirage.hash"])
        assert run.data.tags["mirage.revision"] == cell["revision"]
        assert run.data.tags["mirage.view"] == "released_model"
        assert run.data.tags["mirage.guarantees"].splitlines() == cell["guarantees"]
        assert (run.info.run_name, run.info.status) == (f"ε = {cell['epsilon']}", "FINISHED")
        assert (run.data.params["rounds"], run.data.params["defense._target_"]) == ("20", "defenses.dp_sgd.DPSGD")
        assert not {"workers", "debug", "name"} & set(run.data.params)
        by_epsilon[float(run.data.params["defense.epsilon"])] = run.data.metrics
    assert not cells
    with open(folder / "table.csv") as file:
        for row in csv.DictReader(file):
            parts = [row[name] for name in ("question", "attack", "view", "group", "metric") if row[name]]
            if row["question"] == "audit":
                parts = ["audit", row["attack"].removeprefix("one-run audit by "), row["view"], row["metric"]]
            metric = "/".join(parts).translate({ord(letter): None for letter in "(),"})
            for end, name in (("value", metric), ("low", f"{metric}/low"), ("high", f"{metric}/high")):
                assert by_epsilon[float(row["epsilon"])].get(name) == (float(row[end]) if row[end] else None)

    call(monkeypatch, str(folder), "--mlflow", uri)
    assert "7 runs" in (told := capsys.readouterr().out)
    assert "0 of them new" in told
    again, same = active(client, "leakage_vs_epsilon")
    assert again.info.run_id == parent.info.run_id
    assert {run.info.run_id for run in same} == {run.info.run_id for run in runs}


def study(value: float) -> Path:
    """A results folder of a study with two points."""
    rows = [{"metric": "shift", "by": "LiRA, α", "value": value, "low": 0.1, "high": None, "note": "x"}]
    points = [{"step": step, "about": {"kind": "a (b)"}} for step in (1, 2)]
    facts = {"seconds": 1.5, "revision": "0f", "hardware": {"cores": 2}}
    told = [{"hash": f"point{point['step']}", "point": point} | facts for point in points]
    about = {"name": "rounding", "title": "A title", "command": "python -m experiments.run", "versions": {"torch": "2"}}
    about |= {"seed": 0, "seconds": 3.0}
    config = {"data": {"limit": 3}, "seed": 0, "workers": 2}
    manifest = about | {"points": told, "config": config}
    record.write(Path("results/rounding"), manifest, points=[point | {"rows": rows} for point in points])
    return Path("results/rounding")


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


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mlruns", "as in sqlite:///mlflow.db"),
        ("file:store", "no longer keeps runs in a folder"),
        ("sqlite://mlflow.db", "no file can be written"),
        ("sqlite:///nowhere/mlflow.db", "no file can be written"),
        ("sqlite:///mlflow.db", "folder holds no record.json.xz"),
        ("sqlite:///mlflow.db missing", "missing holds no manifest.json"),
        ("without", "pip install 'mirage-fl[mlflow]'"),
    ],
)
def test_what_cannot_be_exported_is_one_line_with_exit_code_2(address, says, here: Path, monkeypatch, capsys):
    Path("folder").mkdir()
    Path("folder/manifest.json").write_text("{}")
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
