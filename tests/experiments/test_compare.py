"""`python -m experiments.compare`: which rows meet, what is said of them, and what cannot be compared."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import compare
from experiments.comparison import Comparison, read
from experiments.comparison import compare as compared

ANYTHING: dict[str, str | None] = {"metric": None, "attack": None, "group": None}


def row(attack: str, epsilon: str, value: float | None, width: float = 0.02, **more: Any) -> dict[str, Any]:
    about = {"variant": "", "epsilon": epsilon, "question": "membership", "attack": attack, "view": "released_model"}
    number = {"value": value, "low": value and value - width, "high": value and value + width}
    return about | {"group": "canary", "metric": "auc", "samples": "24 replicas, 8 members"} | number | more


def sweep(folder: str, rows: list[dict[str, Any]], run: str, **config: Any) -> Path:
    """A folder as a sweep writes it, with cells at ε = 8 and ∞."""
    where = Path(folder)
    where.mkdir()
    cells = [{"epsilon": epsilon, "variant": "", "run": f"{run}{epsilon}", "revision": run, "hardware": {"cores": 2}}
             for epsilon in ("8", "∞")]  # fmt: skip
    manifest = {"cells": cells, "seed": 0, "versions": {"torch": "2.13"}, "config": {"name": folder} | config}
    (where / "manifest.json").write_text(json.dumps(manifest))
    with open(where / "table.csv", "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return where


def both(a: Path, b: Path, **only: str) -> Comparison:
    return compared(read(a), read(b), ANYTHING | only)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    compare.main()


def test_rows_meet_by_what_was_measured_and_the_surest_difference_comes_first(here: Path):
    a = sweep("a", [row("LiRA", "8.0", 0.6), row("LiRA", "inf", 0.9), row("RMIA", "8.0", 0.6)], "old")
    b = sweep("b", [row("LiRA", "inf", 0.7), row("RMIA", "7.99999", 0.61), row("gap", "8", 0.5)], "new")
    found = both(a, b)
    assert [(one.key["attack"], one.key["epsilon"]) for one in found.pairs] == [("LiRA", "inf"), ("RMIA", "8")]
    first, second = found.pairs
    assert first.change is not None
    assert first.change.value == pytest.approx(-0.2)
    assert first.holm == pytest.approx(2 * (first.p or 0))
    assert second.p is not None
    assert second.p > 0.3
    assert [line.key["attack"] for line in found.only_a] == ["LiRA"]
    assert [line.key["attack"] for line in found.only_b] == ["gap"]
    assert "Only in B: 1 rows (it alone has attack gap)." in compare.headline(found)


def test_the_same_stored_run_is_not_tested_and_identical_results_are_said_to_be(here: Path, monkeypatch, capsys):
    rows = [row("LiRA", "8.0", 0.6), row("LiRA", "inf", 0.9), row("gap", "inf", None)]
    call(monkeypatch, str(sweep("a", rows, "same")), str(sweep("b", rows, "same")))
    told = capsys.readouterr().out
    assert "All of them have identical numbers." in told
    assert "Not tested: 3 rows (the same stored run)." in told
    found = both(Path("a"), sweep("c", rows, "another"))
    assert [pair.p for pair in found.pairs] == [1.0, 1.0, None]


def test_a_number_without_an_interval_is_listed_and_not_tested(here: Path):
    bound = {"metric": "epsilon_lower_bound", "low": None, "high": None}
    a = sweep("a", [row("audit", "8", 1.0, **bound), row("LiRA", "8", 0.6)], "old")
    b = sweep("b", [row("audit", "8", 2.0, **bound), row("LiRA", "8", 0.6)], "new")
    found = compare.table(both(a, b).pairs)
    assert found.heads[:2] == ["attack", "metric"]  # what is the same in all rows is no column
    assert found.lines[1] == ["audit", "epsilon_lower_bound", "1", "2", "1 (no interval)", "—", "—", "—"]


def test_one_replica_alone_is_not_tested_since_its_interval_has_no_width_and_says_nothing_of_chance(here: Path):
    a = sweep("a", [row("LiRA", "8", 0.6, 0.0, samples="1 replicas, 60 test examples")], "old")
    b = sweep("b", [row("LiRA", "8", 0.61, 0.005)], "new")
    (pair,) = both(a, b).pairs
    assert pair.p is None
    assert compare.table([pair]).lines[0][3] == "0.01 (one replica or victim alone)"


def test_what_is_no_finite_number_is_none(here: Path):
    a, b = (sweep(name, [row("LiRA", "8", None) | {"value": "nan"}, row("gap", "8", 0.6)], name) for name in "ab")
    found = {pair.key["attack"]: pair for pair in both(a, b).pairs}
    assert (found["LiRA"].why, found["LiRA"].same, found["gap"].p) == ("no number", True, 1.0)


def test_what_differs_around_the_numbers_is_named(here: Path, monkeypatch, capsys):
    rows = [row("LiRA", "8.0", 0.6)]
    a = sweep("a", rows, "old", rounds=3, model={"width": 8}, workers=1)
    b = sweep("b", rows, "new", rounds=5, model={"width": 8}, workers=2)
    call(monkeypatch, str(a), str(b))
    told = capsys.readouterr().out
    for line in ("rounds: 3 → 5", "workers (changes no result): 1 → 2", "revision: old → new"):
        assert line in told.splitlines()
    assert "width" not in told
    assert "Both have the seed 0" in told


def test_out_writes_every_row_and_significant_leaves_the_others_out(here: Path, monkeypatch, capsys):
    a = sweep("a", [row("LiRA", "8.0", 0.6), row("RMIA", "8.0", 0.6), row("gap", "inf", 0.5)], "old")
    b = sweep("b", [row("LiRA", "8.0", 0.8), row("RMIA", "8.0", 0.61)], "new")
    call(monkeypatch, str(a), str(b), "--out", "c")
    with open("c/table.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["attack"], line["in"]) for line in lines] == [("LiRA", "both"), ("RMIA", "both"), ("gap", "a")]
    assert float(lines[0]["difference_value"]) == pytest.approx(0.2)
    page = Path("c/table.md").read_text()
    assert "| LiRA | 0.6 [0.58, 0.62] | 0.8 [0.78, 0.82] | 0.2 [0.172, 0.228] |" in page
    assert "| RMIA |" in page
    call(monkeypatch, str(a), str(b), "--significant", "--out", "d")
    assert "| RMIA |" not in Path("d/table.md").read_text()
    assert "  c/table.md" in capsys.readouterr().out


def test_one_attack_is_a_family_of_its_own(here: Path):
    a = sweep("a", [row("LiRA", "8.0", 0.6), row("RMIA", "8.0", 0.6)], "old")
    b = sweep("b", [row("LiRA", "8.0", 0.65), row("RMIA", "8.0", 0.6)], "new")
    (alone,) = both(a, b, attack="LiRA").pairs
    assert alone.holm == alone.p
    assert both(a, b).pairs[0].holm == pytest.approx(2 * (alone.p or 0))


def test_ignored_columns_let_two_epsilons_meet(here: Path):
    a, b = sweep("a", [row("LiRA", "8.0", 0.6)], "old"), sweep("b", [row("LiRA", "inf", 0.9)], "new")
    assert not both(a, b).pairs
    found = compared(read(a), read(b), ANYTHING, ["epsilon"])
    (line,) = csv.DictReader(compare.as_csv(found, found.pairs).splitlines())
    assert (line["in"], line["attack"], line["epsilon"]) == ("both", "LiRA", "8 → inf")


def test_what_says_nothing_of_other_replicas_is_not_tested(here: Path):
    told = "297 examples, halves of 24 replicas"
    stable = {"group": "everybody", "metric": "rank_stability", "samples": told}
    a = sweep("a", [row("LiRA", "8", 0.6, **stable), row("gap", "8", None), row("RMIA", "8", 0.5, low="nan")], "old")
    b = sweep("b", [row("LiRA", "8", 0.9, **stable), row("gap", "8", 0.5), row("RMIA", "8", 0.6)], "new")
    why = {pair.key["attack"]: pair.why for pair in both(a, b).pairs}
    assert why.pop("LiRA") == "intervals over halvings, not over replicas"
    assert why == {"gap": "no number in one of them", "RMIA": "no interval"}


def test_studies_meet_by_their_points(here: Path):
    for name, shift in (("a", 0.0), ("b", 0.5)):
        Path(name).mkdir()
        points = [{"hash": f"{name}{step}", "point": {"step": step, "about": {"x": 1}}} for step in (1, 2)]
        manifest = {"points": points, "seed": 0, "versions": {}, "config": {}}
        Path(name, "manifest.json").write_text(json.dumps(manifest))
        lines = [f"{step},psnr,{step + shift},{step - 0.1},{step + shift + 0.1},{shift}" for step in (1, 2)]
        Path(name, "data.csv").write_text("\n".join(["step,metric,value,low,high,accuracy", *lines]))
    found = both(Path("a"), Path("b"))
    assert [(pair.a.run, pair.b.run) for pair in found.pairs] == [("a1", "b1"), ("a2", "b2")]
    assert all(pair.change is not None and pair.change.value == 0.5 for pair in found.pairs)


def test_seeds_and_counts_that_differ_in_a_late_digit_are_told_apart(here: Path):
    for name in ("a", "b"):
        Path(name).mkdir()
        points = [{"hash": f"{name}{seed}", "point": {"seed": seed}} for seed in (20240101, 20240102)]
        manifest = {"points": points, "seed": 0, "versions": {}, "config": {}}
        Path(name, "manifest.json").write_text(json.dumps(manifest))
        Path(name, "data.csv").write_text("seed,metric,value,low,high\n20240101,auc,1,0,2\n20240102.0,auc,1,0,2\n")
    found = both(Path("a"), Path("b"))
    assert [(pair.a.run, pair.b.run) for pair in found.pairs] == [
        ("a20240101", "b20240101"),
        ("a20240102", "b20240102"),
    ]


def test_a_row_is_of_its_point_though_points_have_different_fields(here: Path):
    points = [
        {"hash": "theory", "point": {"kind": "gaussian"}},
        {"hash": "run", "point": {"kind": "run", "epsilon": 8}},
    ]
    Path("a").mkdir()
    Path("a/manifest.json").write_text(json.dumps({"points": points, "seed": 0, "versions": {}, "config": {}}))
    Path("a/data.csv").write_text("kind,epsilon,value\ngaussian,1,0.5\nrun,8,0.5\nother,8,0.5\n")
    assert [line.run for line in read(Path("a")).lines] == ["theory", "run", None]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a", "nothing"], "nothing holds no manifest.json"),
        (["a", "benchmark"], "benchmark/manifest.json is no sweep's and no study's"),
        (["a", "empty"], "empty/table.csv is missing; run the sweep again, or draw it with experiments.paper"),
        (["a", "list"], "list/manifest.json is no sweep's and no study's"),
        (["a", "old"], "old/table.csv and manifest.json beside it do not belong together"),
        (["a", "torn"], "torn/table.csv and manifest.json beside it do not belong together"),
        (["a", "damaged"], "damaged/table.csv and manifest.json beside it do not belong together"),
        (["a", "study"], "a is a sweep and study is a study"),
        (["a", "a", "--metric", "acu"], "did you mean 'auc'?"),
        (["a", "a", "--ignore", "epsilonn"], "did you mean 'epsilon'?"),
        (["a", "a", "--ignore", "epsilon"], "a has two rows with question = membership, attack = LiRA"),
    ],
)
def test_what_cannot_be_compared_is_one_line_with_exit_code_2(arguments, says, here: Path, monkeypatch, capsys):
    sweep("a", [row("LiRA", "8", 0.6), row("LiRA", "inf", 0.6)], "old")
    around: dict[str, Any] = {"seed": 0, "versions": {}, "config": {}}
    manifests: dict[str, Any] = {"benchmark": {}, "list": [], "study": {"points": []} | around}
    manifests |= {name: {"cells": []} | around for name in ("empty", "damaged", "old", "torn")}
    for name, manifest in manifests.items():
        Path(name).mkdir()
        Path(name, "manifest.json").write_text(json.dumps(manifest))
    Path("damaged/table.csv").write_text("value,low,high\nx,0,1\n")
    Path("old/table.csv").write_text("attack,metric,value,low,high\nLiRA,auc,0.5,0,1\nRMIA,auc,0.5,0,1\n")
    Path("torn/table.csv").write_text(Path("a/table.csv").read_text() + '"' + "x" * 2**18)
    Path("study/data.csv").write_text("metric,value,low,high\nauc,0.5,0,1\n")
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *arguments, "--out", "written")
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not Path("written").exists()
