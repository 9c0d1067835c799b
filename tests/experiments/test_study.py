"""A sweep from start to end: its files, its repeatability, its interruptions."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import paper, store
from tests.experiments.conftest import FILES, STUDY, SWEEP, contents


@pytest.mark.heavy
def test_the_sweep_writes_every_file_and_skips_finished_cells(here, mirage, reference, capsys, monkeypatch):
    mirage(*SWEEP, "workers=1")
    assert contents() == reference
    manifest = json.loads((STUDY / "manifest.json").read_text())
    assert [cell["epsilon"] for cell in manifest["cells"]] == ["8", "∞"]
    runs = {path: path.stat().st_mtime_ns for path in Path("results/runs").glob("*/manifest.json")}
    assert len(runs) == 4  # two cells, and the replicas of each
    assert not list(Path("results/runs").glob("*.partial"))
    mirage(*SWEEP, "workers=1")
    assert {path: path.stat().st_mtime_ns for path in Path("results/runs").glob("*/manifest.json")} == runs
    assert "another revision" not in capsys.readouterr().out
    monkeypatch.setattr(store, "revision", lambda: "a later one")
    for name in FILES:
        (STUDY / name).unlink()
    mirage(*SWEEP, "workers=1")
    assert contents() == reference
    assert "Note: 2 of 2 cells were run by another revision" in capsys.readouterr().out
    for name in FILES:
        (STUDY / name).unlink()
    assert set(FILES) <= set(paper.stale(STUDY))
    paper.draw(STUDY)
    assert contents() == reference
    assert not paper.stale(STUDY)

    damaged = next(Path("results/runs").glob("*/scores.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"corrupted")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        mirage(*SWEEP, "workers=1")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "scores.parquet is damaged or was altered; delete the folder" in said
    assert said.count("\n") == 1


@pytest.mark.heavy
def test_the_tables_do_not_depend_on_the_number_of_workers(here, mirage, reference):
    mirage(*SWEEP, "workers=2")
    assert contents() == reference


@pytest.mark.heavy
def test_a_killed_sweep_goes_on_and_ends_in_the_same_bytes(here, mirage, reference):
    command = [sys.executable, "-m", "experiments.run", *SWEEP, "workers=1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(Path("results/runs").glob("*.partial/train-*.checkpoint.safetensors")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not STUDY.exists()
    mirage(*SWEEP, "workers=1")
    assert contents() == reference


@pytest.mark.heavy
def test_the_lane_backend_changes_no_number_by_more_than_1e_5(here, mirage, reference):
    mirage(*SWEEP, "workers=1", "backend=loop")
    ours, theirs = (
        list(csv.DictReader(text.decode().splitlines())) for text in (contents()["table.csv"], reference["table.csv"])
    )
    assert len(ours) == len(theirs) > 20
    for mine, other in zip(ours, theirs, strict=True):
        # Pictures are apart: 4 steps of signed descent turn a gradient's last digit into a whole step.
        if mine["question"] in ("reconstruction",):
            continue
        for field in ("value", "low", "high"):
            if other[field]:
                assert float(mine[field]) == pytest.approx(float(other[field]), abs=1e-5), (mine, other)


def test_a_study_that_was_never_run_is_refused_in_one_line(here, capsys):
    with pytest.raises(SystemExit) as stopped:
        paper.main(["results/nothing"])
    assert stopped.value.code == 2
    assert "holds no manifest.json" in capsys.readouterr().err
