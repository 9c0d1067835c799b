"""The utility benchmark: the example's setting and accounting, its table, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from defenses.accounting import epsilon_pld, epsilon_rdp
from experiments.benchmarks import dp_utility
from experiments.benchmarks.dp_utility import BATCH, DELTA, LEVELS, STEPS, Level
from fl_core.sampling import Poisson
from tests.pictures import write_bars


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    return [
        "--train",
        write_bars(folder / "train.parquet", 300, 0),
        "--test",
        write_bars(folder / "test.parquet", 60, 1),
    ]


@pytest.mark.parametrize(("name", "prv"), [("low", 5.44), ("medium", 2.31), ("high", 0.84)])
def test_the_example_s_epsilon_is_the_known_one(name: str, prv: float):
    """PRV's, which adds its own error of 0.01."""
    level = LEVELS[name]
    event = Poisson(batch_size=BATCH, local_steps=STEPS).event(60_000, level.epochs)
    assert level.sigma is not None
    assert level.published_rdp is not None
    pld = epsilon_pld(level.sigma, [event], DELTA)
    assert prv - 0.015 < pld <= prv
    # The example's own conversion is looser than the one that Opacus has had since.
    assert pld < epsilon_rdp(level.sigma, [event], DELTA) <= level.published_rdp


def test_a_call_trains_what_is_left_alone(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dp_utility, "STEPS", 2)
    command = [*files, "--quick", "--levels", "none,high", "--workers", "1", "--out", str(tmp_path), "--seeds"]
    dp_utility.main([*command, "1"])
    first = json.loads((tmp_path / "dp_utility.json").read_text())["runs"]
    dp_utility.main([*command, "2"])
    runs = json.loads((tmp_path / "dp_utility.json").read_text())["runs"]
    assert [(run["level"], run["seed"]) for run in runs] == [("none", 0), ("none", 1), ("high", 0), ("high", 1)]
    assert [run for run in runs if run["seed"] == 0] == first
    assert "epsilon_pld" not in runs[0]
    assert 0 < runs[2]["epsilon_pld"] < runs[2]["epsilon_rdp"]
    page = (tmp_path / "dp_utility.md").read_text()
    assert page.count("not run") == len(LEVELS), "one epoch is not the example"


def run(level: Level, name: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {"level": name, "seed": seed, "epochs": level.epochs, "accuracy": accuracy, "seconds": 60.0} | (
        {} if level.sigma is None else {"epsilon_pld": 1.0, "epsilon_rdp": 1.5}
    )


@pytest.mark.parametrize(
    ("apart", "verdict"), [(0.0, "reached"), (-0.0049, "reached"), (-0.006, "missed"), (0.006, "above")]
)
def test_the_table_judges_the_mean_of_the_seeds(apart: float, verdict: str):
    level = LEVELS["high"]
    runs = [run(level, "high", seed, level.published + apart + shift) for seed, shift in enumerate((-0.01, 0, 0.01))]
    record = {"command": "", "revision": "", "hardware": {"processor": "", "cores": 2}, "runs": runs}
    (row,) = [line for line in dp_utility.markdown(record).splitlines() if line.startswith("| 1.3 ")]
    assert f"| {100 * apart:+.2f} | {verdict} | 1.000 | 1.500 | 1.16 |" in row


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--levels", "lowest"], "lowest"),
        (["--seeds", "0"], "--seeds"),
        (["--workers", "none"], "--workers"),
        (["--train", "nowhere.parquet"], "nowhere.parquet is not a file"),
    ],
)
def test_bad_input_is_one_line(files: list[str], options: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        dp_utility.main([*files, *options])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_run_can_be_sent_to_a_process_by_the_program():
    """What stands in `__main__` travels as its source; a name of it beside `torch` must not drag a module along."""
    cloudpickle.register_pickle_by_value(dp_utility)
    try:
        assert cloudpickle.dumps(dp_utility.play)
    finally:
        cloudpickle.unregister_pickle_by_value(dp_utility)
