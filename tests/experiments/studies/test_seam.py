"""Any study, from the command line to its files: what is checked first, what is kept, what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor

from experiments import paper, store
from fl_core.checkpoint import read_json, write_json
from tests.experiments.conftest import refusal

TARGET = "tests.experiments.studies.squares"
OURS = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}  # where a program finds the study of these tests
OUT = Path("results/squares")
FILES = ("figure.png", "figure.pdf", "data.csv", "table.md", "table.tex", "table.csv")


def squares(bases: Sequence[int] = (1, 2, 3), kind: str = "Squares", **more: object) -> list[str]:
    fields = {"_target_": f"{TARGET}.{kind}", "bases": list(bases), **more}
    inner = ",".join(f"{name}:{str(value).replace(' ', '')}" for name, value in fields.items())
    return [f"study={{{inner}}}", "name=squares", "title=Squares", "workers=1", "data.limit=100"]


def files() -> dict[str, bytes]:
    return {name: (OUT / name).read_bytes() for name in FILES}


def measured() -> list[int]:
    return [int(line) for line in Path("measured").read_text().split()] if Path("measured").exists() else []


def test_a_study_writes_its_files_and_data_csv_holds_every_number_exactly(here, mirage, capsys):
    mirage(*squares(noise=0.1), "seed=3")
    assert "results/squares/figure.png" in capsys.readouterr().out
    found = list(csv.DictReader((OUT / "data.csv").read_text().splitlines()))
    assert [(row["base"], row["metric"]) for row in found] == [
        (base, metric) for base in "123" for metric in ("square", "clients")
    ]
    stored = {run["point"]["base"]: run for run in read_json(OUT / "manifest.json")["points"]}
    for row in found:
        folder = store.RUNS / stored[int(row["base"])]["hash"]
        numbers = {one["metric"]: one for one in read_json(folder / "record.json")["rows"]}
        if row["metric"] == "square":
            assert float(row["value"]) == numbers["square"]["value"] != int(row["base"]) ** 2
        assert row["count"] == ("5" if row["metric"] == "clients" else "")
    assert (OUT / "table.md").read_text().startswith("# Squares\n\n| base | square |")
    assert (OUT / "figure.pdf").read_bytes().startswith(b"%PDF")
    manifest = read_json(OUT / "manifest.json")
    assert manifest["seed"] == 3
    assert {"hash", "point", "seconds", "revision", "hardware"} == set(manifest["points"][0])
    assert not list(store.RUNS.glob("*.partial"))


def test_finished_points_are_skipped_and_a_longer_list_measures_the_new_ones_alone(here, mirage):
    mirage(*squares())
    before = files()
    mirage(*squares())
    assert measured() == [1, 2, 3]
    assert files() == before
    mirage(*squares([1, 2, 3, 4]))
    assert measured() == [1, 2, 3, 4]
    mirage(*squares([1, 2, 3, 4], noise=0.1))
    mirage(*squares([1, 2, 3, 4], noise=0.1), "seed=1")
    mirage(*squares([1, 2, 3, 4], noise=0.1), "clients=6")
    mirage(*squares([1, 2, 3, 4], noise=0.1), "data.limit=99")
    assert measured() == [1, 2, 3, 4] * 5


def test_the_files_do_not_depend_on_the_number_of_workers(here, mirage):
    mirage(*squares(noise=0.1))
    before = files()
    for path in store.RUNS.glob("*/record.json"):
        path.unlink()
        (path.parent / "manifest.json").unlink()
        path.parent.rmdir()
    get_reusable_executor().shutdown(wait=True)  # workers that an earlier test left would write the log in its folder
    mirage(*squares(noise=0.1), "workers=2")
    assert sorted(measured()) == [1, 1, 2, 2, 3, 3]
    assert files() == before


def test_a_study_is_drawn_again_without_its_data_or_runs_and_without_measuring(here, mirage):
    mirage(*squares())
    before = files()
    for name in FILES:
        (OUT / name).unlink()
    manifest = read_json(OUT / "manifest.json")
    manifest["config"]["data"]["_target_"] = "nowhere.to_be_found"
    write_json(OUT / "manifest.json", manifest)
    shutil.rmtree(store.RUNS)  # as in a fresh clone
    assert sorted(paper.stale(OUT)) == sorted(FILES)
    paper.draw(OUT)
    assert files() == before
    assert not paper.stale(OUT)
    assert measured() == [1, 2, 3]


def test_a_point_that_fails_ends_the_study_and_the_finished_ones_stay(here, mirage):
    with pytest.raises(ArithmeticError, match="no square today"):
        mirage(*squares(fails_at=3))
    assert not OUT.exists()
    mirage(*squares())
    assert measured() == [1, 2, 3]


def test_a_number_that_json_cannot_say_is_a_fault_and_stores_nothing(here, mirage):
    with pytest.raises(ValueError, match="not JSON compliant"):
        mirage(*squares(kind="Endless"))
    assert not list(store.RUNS.glob("*/manifest.json"))


@pytest.mark.heavy
def test_a_study_whose_worker_dies_goes_on_and_ends_in_the_same_bytes(here, mirage):
    mirage(*squares(noise=0.1))
    before = files()
    Path("measured").unlink()
    (here / "results").rename(here / "first")
    command = [sys.executable, "-m", "experiments.run", *squares(noise=0.1, dies_at=2), "workers=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=OURS)
    assert done.returncode == 0, done.stderr
    assert "a worker of squares died; going on from what is on disk" in done.stderr
    assert files() == before


@pytest.mark.heavy
def test_a_killed_study_goes_on_where_it_was(here, mirage):
    command = [sys.executable, "-m", "experiments.run", *squares(dies_at=3), "workers=1"]
    assert subprocess.run(command, capture_output=True, timeout=120, env=OURS).returncode == -signal.SIGKILL
    assert measured() == [1, 2]
    assert not OUT.exists()
    mirage(*squares())
    assert measured() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (squares([1, 0]), "study.bases is 0; it must be a whole number at least 1"),
        (squares([1, 101]), "study.bases has 101, more than the 100 examples"),
        (squares([]), "needs at least one point"),
        (squares([2, 2]), "none twice"),
        (squares(nois=1), "did you mean 'noise'?"),
        ([*squares(), "study.base=[3]"], "there is no option study.base; allowed: bases; did you mean bases?"),
        ([*squares(), "rounds=3"], "squares does not read rounds; it reads clients, data, debug"),
        ([*squares(), "defense=dp_sgd"], "squares does not read defense"),
        ([*squares(), "workers=0"], "workers (or auto) is 0"),
        ([*squares(), "seed=-1"], "seed is -1"),
        ([*squares(), "device=cpux"], "device is 'cpux'"),
        ([*squares(), "--multirun"], "squares is one study over its own points, and no sweep"),
        (["study=cohort"], "study is 'cohort'; it must be null, or a _target_"),
        (["study={_target_:nowhere.Study}"], "'nowhere.Study', which cannot be imported"),
        (["study={_target_:fl_core.data.ImageSet}"], "'fl_core.data.ImageSet', which is no study"),
        ([f"study={{_target_:{TARGET}.Squares}}"], "study.bases has no value"),
    ],
)
def test_a_bad_input_is_one_line_with_exit_code_2_and_nothing_written(arguments, says, here, mirage, capsys):
    assert says in refusal(capsys, mirage, *arguments)
    assert not list(here.iterdir())


def test_a_damaged_or_missing_point_is_named(here, mirage, capsys):
    mirage(*squares())
    point = json.loads((OUT / "manifest.json").read_text())["points"][1]
    record = store.RUNS / point["hash"] / "record.json"
    record.write_text(record.read_text().replace("4", "5"))
    with pytest.raises(SystemExit) as stopped:
        mirage(*squares())
    assert stopped.value.code == 2
    assert f"{record} is damaged or was altered; delete the folder" in capsys.readouterr().err
    record.unlink()
    with pytest.raises(SystemExit):
        mirage(*squares())
    assert f"{record} is missing" in capsys.readouterr().err
