"""TensorBoard's events say what rounds.jsonl says, and writing them changes nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from experiments import replicas
from experiments.execute import execute
from experiments.tensorboard_log import Board, Points, place, points
from tests.experiments.test_replicas import SMALL, cell

OWN = ["rounds=3", "fleet=devices", "first_replica=6"]


def read(folder: Path) -> Points:
    """All scalars in a folder, by TensorBoard's own reader."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        (tag, event.step): make_ndarray(event.tensor_proto).item()
        for tag in events.Tags()["tensors"]
        for event in events.Tensors(tag)
    }


def population() -> Path:
    """The stored replicas: the run that has rounds."""
    (found,) = Path("results/runs").glob("*/rounds.jsonl")
    return found.parent


def told(run: Path) -> Points:
    """What the events of a run must hold, worked out from its rounds.jsonl."""
    wanted: Points = {}
    for line in map(json.loads, (run / "rounds.jsonl").read_text().splitlines()):
        played, accuracies, turns = line["round"], line["test_accuracy"], line["fleet"]
        values = {f"test accuracy/replica {6 + row}": one for row, one in enumerate(accuracies)}
        values["test accuracy/mean"] = np.mean(accuracies)
        values["cohort/asked"] = np.mean([len(turn["asked"]) for turn in turns])
        values["cohort/counted"] = np.mean([len(turn["clients"]) for turn in turns])
        values["cohort/lost"] = np.mean([sum(map(len, turn["lost"].values())) for turn in turns])
        values["cohort/staleness"] = np.mean([one for turn in turns for one in turn["staleness"]])
        values["cohort/work"] = np.mean([one for turn in turns for one in turn["work"]])
        values["clock/seconds"] = np.mean([turn["ended"] for turn in turns])
        wanted |= {(tag, played): float(np.float32(value)) for tag, value in values.items()}
    return wanted


@pytest.mark.heavy
def test_events_equal_the_stored_rounds_and_change_neither_the_hash_nor_the_results(here: Path):
    execute(cell(*OWN))
    plain = population()
    before = {file.name: file.read_bytes() for file in plain.glob("*.*") if file.name != "manifest.json"}
    runs = sorted(path.name for path in Path("results/runs").iterdir())

    execute(cell(*OWN, "tensorboard=afterwards"))  # of a finished run, which is skipped by its hash
    assert sorted(path.name for path in Path("results/runs").iterdir()) == runs
    (folder,) = Path("afterwards").iterdir()
    assert folder.name == f"single ({plain.name})"
    assert read(folder) == told(plain)
    (file,) = folder.iterdir()
    written = file.read_bytes()
    execute(cell(*OWN, "tensorboard=afterwards"))
    assert file.read_bytes() == written
    assert list(folder.iterdir()) == [file]

    Path("results").rename("before")
    execute(cell(*OWN, "tensorboard=live"))  # while it trains
    again = population()
    assert again.name == plain.name
    assert {name: (again / name).read_bytes() for name in before} == before
    (folder,) = Path("live").iterdir()
    assert read(folder) == told(again)
    assert len(list(folder.iterdir())) == 1  # nothing was missing at the end


def test_a_replica_is_logged_as_soon_as_its_shard_has_a_round_and_means_wait_for_all(here: Path):
    made = cell(*OWN).targets
    pieces = Path("pieces")
    assert points(replicas.so_far(made, pieces)) == {}
    replicas.train(made, pieces, 1)
    board = Board(Path("events"))
    board.add(points(replicas.so_far(made, pieces)))
    half = read(Path("events"))
    assert {tag for tag, _ in half} == {"test accuracy/replica 8", "test accuracy/replica 9"}
    replicas.train(made, pieces, 0)
    board.add(points(replicas.so_far(made, pieces)))
    board.close()
    whole = read(Path("events"))
    assert half.items() < whole.items()
    means = [whole["test accuracy/mean", played] for played in (1, 2, 3)]
    each = [[whole[f"test accuracy/replica {one}", played] for one in range(6, 10)] for played in (1, 2, 3)]
    assert means == pytest.approx(np.mean(each, axis=1), rel=1e-6)


def test_folders_are_named_after_the_study_and_its_epsilon():
    config = {"tensorboard": "tb", "name": "a/b", "defense": {"epsilon": 8.0}}
    assert place(config, "0f") == Path("tb/a-b, ε = 8 (0f)")


def test_events_of_other_results_are_replaced(here: Path):
    for value in (0.25, 0.5):
        board = Board(Path("events"))
        board.add({("test accuracy/mean", 1): value, ("test accuracy/mean", 2): 0.75})
        board.close()
    assert read(Path("events")) == {("test accuracy/mean", 1): 0.5, ("test accuracy/mean", 2): 0.75}
    assert len(list(Path("events").iterdir())) == 1


def test_a_board_that_was_stopped_goes_on(here: Path):
    for last in (1, 2):
        board = Board(Path("events"))
        board.add({("test accuracy/mean", played): 0.1 * played for played in range(1, last + 1)})
        board.close()
    assert len(list(Path("events").iterdir())) == 2
    assert set(read(Path("events"))) == {("test accuracy/mean", 1), ("test accuracy/mean", 2)}


@pytest.mark.parametrize("place", ["a_file", "a_file/inside"])
def test_a_place_where_no_event_can_be_written_is_refused_before_anything_is_trained(place, here: Path, mirage, capsys):
    Path("a_file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        mirage(*SMALL, f"tensorboard={place}")
    assert stopped.value.code == 2
    assert "a_file is no folder that can be written" in capsys.readouterr().err
    assert [file.name for file in here.iterdir()] == ["a_file"]


@pytest.mark.parametrize(
    ("installed", "says"), [(False, "pip install 'mirage-fl[tensorboard]'"), (True, "tensorboard is 3")]
)
def test_tensorboard_needs_its_package_and_a_folder(installed, says, here: Path, mirage, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    with pytest.raises(SystemExit) as stopped:
        mirage(*SMALL, "tensorboard=3" if installed else "tensorboard=tb")
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1
    assert not list(here.iterdir())
