"""The benchmark of scoring in its quick form: every attack is in it, and the loops give the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks import scoring

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        for library in ("OMP", "OPENBLAS", "MKL"):
            patch.setenv(f"{library}_NUM_THREADS", "1")  # it sets them, and they are put back
        assert scoring.main(["--quick", "--repeats", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scoring.json").read_text())
    return found


def test_every_attack_of_the_configuration_is_timed(record: dict[str, Any]):
    timed = [row["key"] for row in record["rows"] if row["kind"] == "attack"]
    assert timed == list(scoring.attacks())
    assert [row["key"] for row in record["rows"] if row["kind"] == "shared"] == list(scoring.SHARED)
    assert record["totals"]["seconds"][0] == pytest.approx(sum(row["seconds"][0] for row in record["rows"]))


def test_loops_and_closed_forms_score_alike(record: dict[str, Any]):
    assert {row["key"] for row in record["loops"]} == set(scoring.NEEDED)
    assert max(row["error"] for row in record["loops"]) <= scoring.TOLERANCE


def test_a_loop_that_differs_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], record: dict[str, Any]
):
    runs = [
        {
            "rows": [{**row, "seconds": row["seconds"][0], "processor": row["processor"][0]} for row in record["rows"]],
            "loops": [{**row, "processor": row["processor"][0], "error": 1.0} for row in record["loops"]],
            "totals": {kind: values[0] for kind, values in record["totals"].items()},
            "peak": record["peak"],
            "before": record["before"],
        }
    ]
    monkeypatch.setattr(scoring, "measure", lambda *_: runs)
    assert scoring.main(["--quick", "--repeats", "1", "--out", str(tmp_path)]) == 1
    assert "differs from the loops: LiRA, own variances" in capsys.readouterr().out


def test_the_page_comes_from_the_record_alone(folder: Path, record: dict[str, Any]):
    page = (folder / "scoring.md").read_text()
    assert scoring.markdown(record) == page
    assert "MISSED" in scoring.markdown({**record, "peak": 5.0})
    assert {"hardware", "versions", "revision", "command", "load"} <= set(record)


def test_the_committed_record_keeps_to_the_goal_in_the_processor_s_seconds():
    record = json.loads((ROOT / "results/benchmarks/scoring.json").read_text())
    assert record["size"] == {"shadows": 256, "examples": 50_000, "classes": 10, "public": 10_000, "loops": 250}
    assert record["repeats"] >= 3
    assert sorted(row["key"] for row in record["rows"] if row["kind"] == "attack") == sorted(scoring.attacks())
    assert scoring.reached(record, "processor")
    assert max(row["error"] for row in record["loops"]) <= scoring.TOLERANCE
    assert scoring.markdown(record) == (ROOT / "results/benchmarks/scoring.md").read_text()


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        scoring.main(["--repeats", "0"])
    assert caught.value.code == 2
    assert "--repeats is 0" in capsys.readouterr().err.splitlines()[-1]
