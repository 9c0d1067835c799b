"""Measure a study's points side by side; each is a stored run of its own, so a study that was stopped goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import torch

from experiments import store
from experiments.executor import Run
from experiments.studies import paper
from experiments.studies.base import Values, build
from experiments.terminal import progress
from fl_core.checkpoint import write_json


def perform(config: Mapping[str, Any], overrides: Sequence[str], command: str) -> Path:
    """Run the study of a resolved configuration and write results/<name>/; returns that folder.

    Everything is checked first: the study, its points, and the finished runs among them, which are not run again.
    `overrides` and `command` are the command line's. Raises InputError for what cannot be used, and where workers died
    too often. A point whose measurement fails ends the study; those that are done stay.
    """
    made = build(config, overrides)
    # Absolute, since a worker that outlived an earlier call may stand in another folder.
    folders = [(store.RUNS / run).absolute() for run in made.runs]
    for folder in folders:
        if folder.exists():
            store.load(folder, paper.FIELDS)
    # A worker on another machine must not choose another device than the one that stands in the run's hash.
    plain = made.config | {"device": made.setting.device.type}
    made.executor.connect()

    def done() -> int:
        return sum(folder.exists() for folder in folders)

    def work(run: Run) -> None:
        run(joblib.delayed(measure)(plain, folder) for folder in folders if not folder.exists())

    with progress(len(folders), done, str(config["name"]), unit="point"):
        name = str(config["name"])
        made.executor.persist(work, wanted=config["workers"], device=made.setting.device, name=name)
    return paper.write(made.config, list(made.runs), command)


def measure(config: Values, final: Path) -> None:
    """Measure the point whose stored run is the folder `final`, and seal it; nothing where that exists.

    Two calls of a study, or of two that share points, work beside each other: one measures a point, the other waits.
    """

    def work(pieces: Path) -> None:
        torch.set_num_threads(1)  # as a cell's tasks: sums keep their order whatever the machine
        began = time.perf_counter()
        made = build(config)
        point = made.runs[final.name]
        record = made.study.measure(point, made.setting)
        json.dumps(record, allow_nan=False)  # a number that could not be read back is a fault of the study's
        sealed = pieces / "sealed"
        shutil.rmtree(sealed, ignore_errors=True)
        write_json(sealed / "record.json", record)
        store.finish(
            sealed,
            final,
            {
                "hash": final.name,
                "point": point,
                "config": {name: config[name] for name in (*made.study.reads, "seed", "device", "study")},
                "seconds": round(time.perf_counter() - began, 2),
                **store.circumstances(made.setting.device),
            },
        )

    store.run_once(final, work, True, paper.FIELDS)
