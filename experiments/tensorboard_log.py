"""The rounds of a population as TensorBoard scalars: `tensorboard=FOLDER`, then `tensorboard --logdir FOLDER`.

Each population has a folder of its own there, named after the study, its ε and its hash. Its events say what its
rounds.jsonl says, in single precision (all that TensorBoard's own server reads). They are written by the process that
started the run, from the files that workers leave after every round: so training does not know of them, and a run that
was stored before is logged as well.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.terminal import meanwhile
from fl_core.errors import InputError

POLL_SECONDS = 1.0

Points = dict[tuple[str, int], float]
"""Values by tag and round; the first round is 1, as in rounds.jsonl."""

History = Mapping[str, Sequence[Sequence[Any]]]
"""Of replicas that train together, `accuracy` and `fleet` (log lines), both [rounds so far][replicas]."""


def check(folder: Any) -> None:
    """InputError where `tensorboard` in the configuration names no folder that can be written, or the package is not
    there."""
    if folder is None:
        return
    if not isinstance(folder, str) or not folder:
        raise InputError(f"tensorboard is {folder!r}; name a folder for its events, or null for none")
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard=FOLDER needs TensorBoard: pip install 'mirage-fl[tensorboard]'")
    place = Path(folder).absolute()
    there = next(one for one in (place, *place.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"tensorboard is {folder!r}, but {there} is no folder that can be written; name another one")


def place(config: Mapping[str, Any], run: str) -> Path:
    """Where the events of the population with this hash go."""
    epsilon = config["defense"].get("epsilon")
    bound = "" if epsilon is None else f", ε = {epsilon:g}"
    return Path(config["tensorboard"]) / f"{config['name']}{bound} ({run})".replace("/", "-")


def points(shards: Mapping[int, History]) -> Points:
    """What is logged of a population's shards, by the number of the first replica of each.

    A replica's accuracy appears as soon as its shard has the round; means wait for all shards.
    """
    found: Points = {}
    for first, shard in shards.items():
        for played, accuracies in enumerate(shard["accuracy"], 1):
            found |= {(f"test accuracy/replica {first + row}", played): one for row, one in enumerate(accuracies)}
    for played in range(min(len(shard["accuracy"]) for shard in shards.values())):
        accuracies = [one for shard in shards.values() for one in shard["accuracy"][played]]
        turns = [one for shard in shards.values() for one in shard["fleet"][played]]
        means = {
            "test accuracy/mean": accuracies,
            "cohort/asked": [len(turn["asked"]) for turn in turns],
            "cohort/counted": [len(turn["clients"]) for turn in turns],
            "cohort/lost": [sum(map(len, turn["lost"].values())) for turn in turns],
            "cohort/staleness": [one for turn in turns for one in turn["staleness"]],
            "cohort/work": [one for turn in turns for one in turn["work"]],
            "clock/seconds": [turn["ended"] for turn in turns],
        }
        found |= {(tag, played + 1): math.fsum(each) / len(each) for tag, each in means.items() if each}
    return found


def logged(folder: Path) -> Points:
    """The scalars of the event files in `folder`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})  # 0: all of them
    events.Reload()
    return {
        (tag, event.step): float(make_ndarray(event.tensor_proto).item())
        for tag in events.Tags()["tensors"]
        for event in events.Tensors(tag)
    }


class Board:
    """The event files of one population. What they hold already is not written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = logged(folder)
        self._writer: Any = None

    def add(self, wanted: Points) -> None:
        """Write what is not there yet; where something else is there, all anew."""
        wanted = {at: float(np.float32(value)) for at, value in wanted.items()}
        if any(self.held.get(at, value) != value for at, value in wanted.items()):
            self.close()
            for file in self.folder.glob("events.out.tfevents.*"):
                file.unlink()
            self.held = {}
        new = {at: value for at, value in wanted.items() if at not in self.held}
        if not new:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder))
        for (tag, played), value in new.items():
            self._writer.add_scalar(tag, value, played, new_style=True)
        self._writer.flush()
        self.held |= new

    def close(self) -> None:
        """Close the file that is being written, if any; `add` opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@contextmanager
def live(config: Mapping[str, Any], run: str, histories: Callable[[], Mapping[int, History]]) -> Iterator[None]:
    """Log the rounds of a population while it trains; nothing unless the configuration names a folder.

    `histories` says how far each shard has come.
    """
    if config["tensorboard"] is None:
        yield
        return
    board = Board(place(config, run))
    with meanwhile(lambda: board.add(points(histories())), POLL_SECONDS):
        yield
    board.add(points(histories()))
    board.close()


def stored(config: Mapping[str, Any], run: Path) -> None:
    """Log the rounds of the stored population `run`, unless they are logged already."""
    if config["tensorboard"] is None:
        return
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    whole = {"accuracy": [line["test_accuracy"] for line in lines], "fleet": [line["fleet"] for line in lines]}
    board = Board(place(config, run.name))
    board.add(points({config["first_replica"]: whole}))
    board.close()
