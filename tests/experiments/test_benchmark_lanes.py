"""The benchmark of the lane engine, in its quick form; times are asserted only where the margin is wide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.benchmarks import lanes
from fl_core.lanes import _fastest

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    lanes.main(["--quick", "--repeats", "3", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "lanes.json").read_text())
    return found


def test_record_states_its_circumstances(record: dict[str, Any]) -> None:
    assert record["threads"] == 1
    assert record["repeats"] == 3
    assert record["command"] == "python -m experiments.benchmarks.lanes --repeats 3 --quick"
    assert record["hardware"]["processor"]
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]


def test_every_backend_trains_the_same_parameters_as_the_plain_loop(record: dict[str, Any]) -> None:
    assert len(record["rows"]) == len(lanes.QUICK)
    for row in record["rows"]:
        assert set(row["differences"]) == set(lanes.ENGINE)
        assert max(row["differences"].values()) <= 1e-4, row["name"]
        assert row["same"]


def test_ratios_are_paired_and_positive(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        for backend in lanes.ENGINE:
            ratio = row["ratios"][backend]
            assert len(ratio["each"]) == record["repeats"]
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]


def test_stacking_32_tiny_lanes_is_no_slower_than_one_after_another(record: dict[str, Any]) -> None:
    tiny = [row for row in record["rows"] if row["shape"] == [1, 8, 8] and row["lanes"] == 32]
    assert tiny
    for row in tiny:
        assert row["ratios"]["vmap"]["median"] >= 1.0, row["name"]


def test_goals_are_judged_on_medians() -> None:
    def row(name: str, vmap: float, auto: float) -> dict[str, Any]:
        ratios = {"vmap": {"median": vmap}, "auto": {"median": auto}}
        return {"name": name, "lanes": 32, "shape": (1, 8, 8), "ratios": ratios}

    vmap, auto = (lanes.judge(goal, [row("a", 1.4, 0.94), row("b", 3.0, 1.0)]) for goal in lanes.GOALS)
    assert vmap["reached"]
    assert vmap["missed"] == []
    assert (vmap["lowest"], vmap["highest"]) == (1.4, 3.0)
    assert not auto["reached"]
    assert auto["missed"] == ["a"]


def test_table_has_a_line_for_every_row_and_goal(folder: Path, record: dict[str, Any]) -> None:
    text = (folder / "lanes.md").read_text()
    assert text == lanes.markdown(record)
    assert record["command"] in text
    for row in record["rows"]:
        assert f"| {row['name']} |" in text
    for goal in record["goals"]:
        assert f"- {goal['goal']}: {'reached' if goal['reached'] else 'missed'}" in text


def test_measuring_leaves_threads_and_choices_as_they_were() -> None:
    before, choices = torch.get_num_threads(), dict(_fastest)
    lanes.measure_all([lanes.Row(shape=(1, 8, 8), lanes=2, batch=4, width=4, steps=4)], 1)
    assert torch.get_num_threads() == before
    assert _fastest == choices
