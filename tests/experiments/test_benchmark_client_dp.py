"""The benchmark of client-level privacy, on two rounds of small pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks import client_dp
from experiments.benchmarks.client_dp import CLIENTS, COHORT, MECHANISMS
from tests.pictures import write_bars


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    train = write_bars(folder / "train.parquet", CLIENTS, 0)
    return ["--train", train, "--test", write_bars(folder / "test.parquet", 60, 1)]


@pytest.fixture(scope="module")
def folder(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client_dp")
    client_dp.main([*files, "--quick", "--replicas", "2", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def points(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / "client_dp.json").read_text())["points"]
    return {point["mechanism"]: point for point in found}


@pytest.mark.heavy
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism_spends_its_epsilon_on_the_view_it_is_made_for(
    points: dict[str, dict[str, Any]], mechanism: str
):
    view = MECHANISMS[mechanism][1]
    spent = points[mechanism]["guarantees"]
    # A participant knows its own share of the noise, so against those who do not a little less is spent.
    assert 0.95 * 8 < spent[view] <= 8
    assert max(spent["released_model"], spent["participant"]) <= 8
    others = {"server": None, "ftrl": None, "shares": 8, "clients": 8}[mechanism]
    assert (spent["server"] is None) == (others is None)


@pytest.mark.heavy
def test_noise_that_every_client_adds_alone_is_the_most_in_the_sum(points: dict[str, dict[str, Any]]):
    """In clips; independent noise adds up in squares."""
    alone = points["clients"]["noise_multiplier"] * math.sqrt(COHORT)
    assert max(points[name]["noise_multiplier"] for name in ("server", "ftrl", "shares")) < alone / 5
    assert points["none"]["noise_multiplier"] is None


@pytest.mark.heavy
def test_the_page_has_a_row_for_every_point_and_a_picture(folder: Path, points: dict[str, dict[str, Any]]):
    page = (folder / "client_dp.md").read_text()
    assert sum(line.startswith(("| none", "| noise", "| all noise")) for line in page.splitlines()) == len(points)
    assert (folder / "client_dp.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "client_dp.pdf").read_bytes().startswith(b"%PDF")


def test_a_mechanism_that_diverged_has_a_row_and_no_point():
    guarantees = dict.fromkeys(("released_model", "participant", "secure_server", "server"), 8.0)
    common = {
        "epsilon": 8.0,
        "noise_multiplier": 1.0,
        "guarantees": guarantees,
        "promises": dict.fromkeys(guarantees, ""),
    }
    points = [{"mechanism": "none", **common, "epsilon": None, "accuracy": [0.9]}] + [
        {"mechanism": name, **common, "accuracy": None if name == "clients" else [0.5, 0.7]} for name in MECHANISMS
    ]
    record = {"command": "", "revision": "", "hardware": {"processor": "", "cores": 2}, "clients": CLIENTS, "cohort": 1,
              "rounds": 1, "lr": 1, "clip_norm": 1, "delta": 1e-4, "replicas": 2, "points": points}  # fmt: skip
    assert "| 8 | 0.600 [0.500, 0.700] | 0.600 [0.500, 0.700] | 0.600 [0.500, 0.700] | diverged |" in (
        client_dp.markdown(record)
    )
    (legend,) = client_dp.draw(record).legends
    assert len(legend.get_texts()) == len(MECHANISMS) - 1


def test_bad_input_is_one_line(files: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        client_dp.main([*files, "--rounds", "0"])
    assert caught.value.code == 2
    assert "--rounds" in capsys.readouterr().err.splitlines()[-1]
