"""What the membership reproductions share: a cell made of the configuration around them, and its numbers by attack.

The cell's replicas are stored like a sweep's, under results/runs: reproductions that ask others questions of the same
population, or the same ones again, train nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from experiments.cell import Cell, build
from experiments.execute import execute
from experiments.studies.base import Setting, Values
from fl_core.checkpoint import read_json

READS = (
    "data", "partition", "model", "participation", "fleet", "sampler", "augmentation", "algorithm", "aggregator",
    "client_schedule", "server_schedule", "defense", "attack", "clients", "rounds", "replicas", "first_replica",
    "membership", "design", "held", "canaries", "rarity", "client_names", "target_accuracy", "against", "tamper",
    "signals", "about", "save_rounds", "precision", "backend", "memory", "shard",
)  # fmt: skip
"""The fields of the configuration that a cell is made of."""

ALONE = ("clients=1", "canaries=0", "attack.victims=0", "attack.audit_with=[]")
"""One training run without a federation, and nothing asked but membership."""

ACCURACY = "test accuracy"
"""The metric of a row that says how good the attacked models are; no paper's number stands beside it."""


def cell_of(setting: Setting, attacks: Mapping[str, Values], **changes: Any) -> Cell:
    """The cell of the configuration with these membership `attacks`, and fields of it `changes`; trains nothing."""
    config = setting.config | changes
    around = {"name": "reproduce", "title": "", "study": None, "workers": 1, "debug": False, "tensorboard": None}
    processes = {"_target_": "experiments.executor.Processes", "retries": 2}
    asked = config["attack"] | {"membership": dict(attacks)}
    return build(
        config | around | {"executor": processes, "attack": asked, "seed": setting.seed, "device": setting.device.type}
    )


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """A finished cell: what each attack learned. `folder` is its stored run."""

    cell: Cell
    folder: Path
    rows: list[Values]

    def row(self, what: str, attack: str, metric: str, *, percent: bool = False, note: str = "") -> Values:
        """The row for the published number `what`: the `metric` of the attack of that name in the cell.

        A metric is auc, balanced_accuracy, or a false-positive rate, written 0.001, for the true-positive rate there.
        Where the non-members do not support the rate there is no value, and the note says what they lack.
        """
        name = self.cell.membership_attacks[attack].name
        if metric[0].isdigit():
            metric = "tpr" if float(metric) == self.cell.config["attack"]["fpr"] else f"tpr_at_{float(metric):g}"
        (found,) = (
            row for row in self.rows if (row["attack"], row["group"], row["metric"]) == (name, "ordinary", metric)
        )
        scale = 100 if percent else 1
        measured = {end: None if found[end] is None else scale * found[end] for end in ("value", "low", "high")}
        told = note if found["value"] is not None else found["note"]
        return {"metric": what, **measured, "samples": found["samples"], "note": told}

    def accuracy(self) -> Values:
        """How good the attacked models are on test examples."""
        (found,) = (row for row in self.rows if row["metric"] == "accuracy")
        return {"metric": ACCURACY, **{name: found[name] for name in ("value", "low", "high", "samples")}}

    def scores(self, attack: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The attack's scores and who was a member, both [replicas, examples]."""
        name = self.cell.membership_attacks[attack].name
        table = pq.read_table(self.folder / "scores.parquet", filters=[("attack", "=", name)])
        members: NDArray[np.bool_] = self.cell.targets.members.numpy()
        scores = np.full(members.shape, np.nan)
        scores[table["replica"].to_numpy(), table["example"].to_numpy()] = table["score"].to_numpy()
        return scores, members


def leaks(cell: Cell) -> Leaks:
    """Run the cell to its end and read what it found."""
    folder = execute(cell, wait=True)
    return Leaks(cell=cell, folder=folder, rows=read_json(folder / "leakage.json")["rows"])
