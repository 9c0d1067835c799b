"""McMahan et al. 2017, Table 2: rounds of FedAvg until MNIST's test accuracy is 99%."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from defenses.base import Defense
from experiments.reproduce.base import MNIST, WHOLE, Budget, Published, Reproduction, over_seeds
from experiments.studies.base import Setting, Values, rows
from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import check_choice, check_number
from fl_core.federation import Federation, federate
from fl_core.federation import rounds as play
from fl_core.models import accuracy
from fl_core.participation import Uniform
from fl_core.partition import IID, Partition, Shards
from fl_core.sampling import Shuffled
from fl_core.seeds import seed


@dataclass(frozen=True)
class Cell:
    """A cell of the table: who holds what, and the epochs of a client's turn."""

    partition: Partition
    epochs: int


CELLS = {
    "IID, E=1, B=10": Cell(IID(), 1),
    "IID, E=5, B=10": Cell(IID(), 5),
    "non-IID, E=1, B=10": Cell(Shards(shards_per_client=2), 1),
    "non-IID, E=5, B=10": Cell(Shards(shards_per_client=2), 5),
}

SCREEN, MARGIN = 1000, 0.015
"""All test pictures are asked once these many are within the margin of the target: asking all takes as long as a round,
and far below the target it changes nothing."""

LONG = "one to two hours a seed on one core; the budget full measures it"

REAL = (*MNIST, *WHOLE, "model=mcmahan_cnn")


@dataclass(frozen=True, kw_only=True)
class Rounds(Reproduction):
    """The first round at which the running best of the test accuracy crosses `target`, between rounds by interpolation.

    `cells` says how many seeds each cell is played with, for `rounds` rounds at most.
    """

    cells: Mapping[str, int]
    rounds: int
    target: float = 0.99
    clients: int = 100
    cohort: int = 10
    batch: int = 10
    lr: float = 0.1

    title = "FedAvg on MNIST: rounds to 99% (McMahan et al. 2017, Table 2)"
    source = "McMahan et al. 2017, “Communication-Efficient Learning of Deep Networks from Decentralized Data”, Table 2"
    protocol = (
        "the CNN of 1,663,370 parameters; 100 clients of 600 pictures, ten of them a round, batches of 10, E epochs "
        "a turn; non-IID is two shards of one class each a client. Rounds until the running best of the test accuracy "
        "crosses 99%, by linear interpolation. The paper tuned the learning rate for each cell; here it is 0.1 in "
        "all, chosen beforehand. Pixels enter as 2x − 1."
    )
    published = tuple(
        Published(what=what, value=value, unit="rounds", remembered=True, sense="at most", digits=1)
        for what, value in zip(CELLS, (34, 20, 350, 229), strict=True)
    )
    budgets: ClassVar = {
        "smoke": Budget(
            overrides=("data=digits", "data.limit=400", "model=mcmahan_cnn", "model.width=4"),
            options={"cells": dict.fromkeys(CELLS, 2), "rounds": 6, "target": 0.3, "clients": 20, "cohort": 5},
            differs="8x8 digits, 20 clients, five a round, a CNN of width 4, rounds to 30%, at most 6",
        ),
        "cpu": Budget(
            overrides=REAL,
            options={"cells": {"IID, E=1, B=10": 6, "IID, E=5, B=10": 3}, "rounds": 60},
            differs="",
        ),
        "full": Budget(overrides=REAL, options={"cells": dict.fromkeys(CELLS, 5), "rounds": 1000}, differs=""),
    }

    reads: ClassVar[tuple[str, ...]] = ("data", "model")
    grid: ClassVar[tuple[str, ...]] = ("budget", "cells")

    def __post_init__(self) -> None:
        super().__post_init__()
        for cell, seeds in self.cells.items():
            check_choice("an entry of study.cells", cell, CELLS)
            check_number(f"study.cells.{cell}", seeds, minimum=1, integer=True)
        for name in ("rounds", "clients", "cohort", "batch"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        check_number("study.target", self.target, above=0, below=1)

    def check(self, setting: Setting) -> None:
        for cell in self.cells:
            self.federation(cell, 0, setting)

    def points(self) -> list[Values]:
        return [{"cell": cell, "seed": number} for cell, seeds in self.cells.items() for number in range(seeds)]

    def federation(self, cell: str, number: int, setting: Setting) -> Federation:
        """The federation of a cell, with its seed's number."""
        pool = setting.pool.to(setting.device)
        return federate(
            setting.make("model", shape=pool.shape, classes=len(pool.classes)),
            pool,
            clients=self.clients,
            rounds=self.rounds,
            run=seed(setting.seed, f"rounds to the target, {cell}", number),
            partition=CELLS[cell].partition,
            participation=Uniform(self.cohort),
            algorithm=FedAvg(
                sampler=Shuffled(batch_size=self.batch, local_epochs=CELLS[cell].epochs),
                lr=self.lr,
                weighting="by_examples",
            ),
            defense=Defense(),
            backend="loop" if setting.device.type == "cpu" else "vmap",
        )

    def measure(self, point: Values, setting: Setting) -> Values:
        federation = self.federation(point["cell"], point["seed"], setting)
        test = setting.test.to(setting.device)
        screen = test.select(torch.arange(min(SCREEN, len(test))))
        curve: list[float] = []
        for state in play(federation):
            found = float(accuracy(federation.model, state.model, screen))
            if found >= self.target - MARGIN:
                found = float(accuracy(federation.model, state.model, test))
            elif curve:  # where the screen alone was asked nothing is crossed
                found = min(found, self.target - MARGIN)
            curve.append(found)
            if found >= self.target:
                break
        return {"rows": [{"metric": point["cell"], "value": crossing(curve, self.target)}], "curve": curve}

    def measured(self, records: Sequence[Values]) -> list[Values]:
        """The mean over seeds of each cell.

        A seed that did not get there counts with all the rounds it was given: the mean is then too low, and has no
        interval that a published number could lie in by it.
        """
        found: list[Values] = []
        for cell in CELLS:
            each = [row["value"] for row in rows(records, metric=cell)]
            if not each:
                found.append({"metric": cell, "value": None, "samples": 0, "note": LONG})
                continue
            made = over_seeds(cell, [self.rounds if value is None else value for value in each])
            if late := each.count(None):
                made |= {"low": None, "high": None}
                made["note"] += f"; {late} did not get there in {self.rounds} rounds, and counts with these"
            found.append(made)
        return found


def crossing(curve: Sequence[float], target: float) -> float | None:
    """The round, counted from 1, at which the running best of `curve` crosses `target`, by linear interpolation.

    None where it does not; a curve that begins above it crossed in round 1.
    """
    best = np.maximum.accumulate(np.asarray(curve, dtype=np.float64))
    above = np.flatnonzero(best >= target)
    if not len(above):
        return None
    after = int(above[0])
    if after == 0:
        return 1.0
    before = best[after - 1]
    return float(after + (target - before) / (best[after] - before))
