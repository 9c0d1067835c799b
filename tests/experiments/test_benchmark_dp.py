"""The benchmark of DP-SGD's step, in its quick form; no time is asserted but one with a wide margin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.benchmarks import dp

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    dp.main(["--quick", "--repeats", "2", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dp.json").read_text())
    return found


def test_record_states_its_circumstances(record: dict[str, Any]) -> None:
    assert record["threads"] == 1
    assert record["command"] == "python -m experiments.benchmarks.dp --repeats 2 --quick"
    assert record["hardware"]["processor"]
    assert record["gpu"] == "not measured"


def test_a_step_is_opacus_s_under_the_same_noise(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        assert set(row["differences"]) == set(dp.OURS)
        assert max(row["differences"].values()) <= dp.TOLERANCE, row["name"]
        assert row["same"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", dp.MODES)
def test_every_mode_of_opacus_takes_the_same_steps_without_noise(mode: str) -> None:
    task = dp.Task(dp.QUICK[0], torch.float64, noise_multiplier=1e-12)
    ours, theirs = dp.descender(task, "loop", True)(2), dp.opacus_descender(task, mode)(2)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=dp.TOLERANCE)
    assert any(not torch.equal(value, task.start[name]) for name, value in theirs.items())


@pytest.mark.filterwarnings("ignore")
def test_another_noise_is_noticed() -> None:
    task = dp.Task(dp.QUICK[0], torch.float64)
    ours, theirs = dp.descender(task, "loop", True)(2), dp.opacus_descender(task, "hooks")(2)
    assert max(float((ours[name] - value).abs().max()) for name, value in theirs.items()) > 100 * dp.TOLERANCE


def test_ratios_are_paired_and_of_the_best(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        seconds = row["seconds"]
        assert row["best"] == min(dp.OURS, key=lambda name: seconds[name]["median"])
        pairs = zip(seconds[row["best_opacus"]]["each"], seconds[row["best"]]["each"], strict=True)
        assert row["against_opacus"]["each"] == pytest.approx([theirs / ours for theirs, ours in pairs])
        assert all(one["median"] > 0 for one in seconds.values())


def test_sixteen_small_lanes_are_faster_than_one_opacus_model_after_another(record: dict[str, Any]) -> None:
    (row,) = (row for row in record["rows"] if row["lanes"] == 16)
    assert row["against_opacus"]["median"] >= 2.0


def test_a_goal_stands_beside_every_number_that_has_one(folder: Path, record: dict[str, Any]) -> None:
    text = (folder / "dp.md").read_text()
    assert text == dp.markdown(record)
    assert record["command"] in text
    assert "On a GPU: not measured" in text
    for row in record["rows"]:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {row['name']} |") and "x |" in line)
        goal = dp.GOAL_ALONE if row["lanes"] == 1 else dp.GOAL_LANES
        verdict = "reached" if row["against_opacus"]["median"] >= goal else "missed"
        assert f"| {goal:g}x | {verdict} |" in line


def test_measuring_leaves_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    dp.measure_all(dp.QUICK[:1], 1, 0.001)
    assert torch.get_num_threads() == before


def test_a_bad_option_exits_with_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        dp.main(["--repeats", "0"])
    assert "--repeats must be at least 1" in capsys.readouterr().err
