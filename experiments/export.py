"""Runs for other tools: `python -m experiments.export results/NAME --mlflow sqlite:///mlflow.db`.

A sweep's cells, or a study's points, become MLflow runs under one parent that has the folder's files as artifacts:
params are what the run's hash is made of, metrics its rows, each with both ends of its interval, tags the rest. A run
whose hash is there already is not made twice.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import record, tables
from experiments.collect import CellResult
from experiments.comparison import MEASURED, SWEEP
from experiments.configuration import flat
from experiments.population import FREE
from experiments.record import Record
from experiments.terminal import Parser, one_line_errors
from fl_core.errors import InputError

BATCH = 1000
"""The most metrics that MLflow takes at once."""

PARAMS = 100
"""The most params."""

PARENT = "mlflow.parentRunId"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One stored run, in MLflow's terms."""

    hash: str
    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def runs_of(found: Record) -> list[Run]:
    """The stored runs behind a results folder: a sweep's cells, or a study's points."""
    if found.cells:
        return [_cell(cell) for cell in found.cells]
    return [_point(found, *both) for both in zip(found.manifest["points"], found.points, strict=True)]


def _cell(cell: CellResult) -> Run:
    view = cell.manifest["config"]["signals"]["view"]
    rows = [{"variant": "", "epsilon": "", **vars(row)} for row in cell.rows]
    audits = {
        f"audit/{_plain(audit['attack'])}/{audit['view']}/epsilon_lower_bound": float(audit["epsilon"])
        for audit in cell.audits
        if audit["epsilon"] is not None
    }
    about = f"{cell.variant + ', ' if cell.variant else ''}ε = {cell.label()}"
    tags = {"view": str(view), "guarantees": "\n".join(tables.guarantees(cell))}
    return _run(cell.manifest, about, metrics(rows, SWEEP) | audits, tags)


def _point(found: Record, stored: Mapping[str, Any], measured: Mapping[str, Any]) -> Run:
    point = stored["point"]
    rows = [{name: value for name, value in row.items() if point.get(name, "") != value} for row in measured["rows"]]
    named = [*dict.fromkeys(name for row in rows for name in row if name not in (*MEASURED, "metric")), "metric"]
    about = ", ".join(f"{name} = {value}" for name, value in point.items() if not isinstance(value, list | dict))
    params = {f"point.{name}": str(value) for name, value in flat(point).items()}
    around = {"config": found.manifest["config"], "versions": found.manifest["versions"]}
    return _run({**stored, **around}, about, metrics(rows, named), {}, params)


def _run(
    manifest: Mapping[str, Any], name: str, found: dict[str, float], tags: dict[str, str],
    params: Mapping[str, str] | None = None,
) -> Run:  # fmt: skip
    config = {field: value for field, value in manifest["config"].items() if field not in FREE}
    around = {f"version.{package}": str(number) for package, number in manifest["versions"].items()}
    around |= {f"hardware.{part}": str(value) for part, value in manifest["hardware"].items()}
    told = {"hash": manifest["hash"], "revision": manifest["revision"]} | tags | around
    return Run(
        hash=str(manifest["hash"]),
        name=name,
        params={field: str(value) for field, value in flat(config).items()} | dict(params or {}),
        metrics=found | {"seconds": float(manifest["seconds"])},
        tags={f"mirage.{field}": str(value) for field, value in told.items()},
    )


def metrics(rows: Sequence[Mapping[str, Any]], named: Sequence[str]) -> dict[str, float]:
    """Measured numbers by names that MLflow takes, made of a row's columns `named`; what is missing is left out.

    The ends of an interval and a ceiling stand beside, as in `membership/LiRA/released_model/canary/auc/low`.
    """
    found: dict[str, float] = {}
    for row in rows:
        parts = [str(row[name]) for name in named if row.get(name) not in (None, "")]
        plain = "/".join(map(_plain, parts))
        for end in ("value", "low", "high", "ceiling"):
            value = row.get(end)
            if value is None or not math.isfinite(value):
                continue
            name = plain if end == "value" else f"{plain}/{end}"
            if name in found:
                raise InputError(f"two rows of a stored run would both be the metric {name}; name its rows apart")
            found[name] = float(value)
    return found


def _plain(part: str) -> str:
    return re.sub(r"[^\w\-. :]+", "", part).strip()


def export(folder: Path, uri: str) -> tuple[int, int]:
    """Bring the MLflow store at `uri` up to date with a folder's stored runs; (how many, how many are new there).

    Raises InputError where MLflow is not installed or does not take the store, and as `runs_of`.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise InputError("--mlflow needs MLflow: pip install 'mirage-fl[mlflow]'")
    _check(uri)
    found = record.read(folder)
    runs = runs_of(found)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports on its users otherwise
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # seven take minutes to say that nobody is there
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return _bring(MlflowClient(tracking_uri=uri), folder, found.manifest, runs)
    except (MlflowException, SQLAlchemyError) as error:
        raise InputError(f"MLflow cannot use {uri}: {str(error).splitlines()[0]}") from None


def _check(uri: str) -> None:
    """InputError where MLflow could not keep runs at `uri`; it retries for minutes before it says so itself."""
    scheme, _, path = uri.partition("://")
    if not path or scheme.split("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql", "http", "https"):
        raise InputError(
            f"--mlflow is {uri!r}; name a database or a server, as in sqlite:///mlflow.db or http://HOST:5000 (MLflow "
            "no longer keeps runs in a folder of files)"
        )
    if scheme == "sqlite":
        file = Path(path.removeprefix("/"))
        if not path.startswith("/") or not os.access(file if file.exists() else file.parent, os.W_OK) or file.is_dir():
            raise InputError(f"--mlflow is {uri!r}, where no file can be written; name one, as in sqlite:///mlflow.db")


def _bring(client: Any, folder: Path, manifest: Mapping[str, Any], runs: Sequence[Run]) -> tuple[int, int]:
    name = str(manifest["name"])
    known = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if known is None else known.experiment_id
    there = {run.data.tags.get("mirage.hash"): run for run in _active(client, experiment)}
    study = Run(
        hash=f"study {name}",
        name=name,
        params={},
        metrics={},
        tags={"mirage.hash": f"study {name}", "mlflow.source.name": str(manifest["command"])}
        | {"mirage.title": str(manifest["title"])},
    )
    parent, _ = _put(client, experiment, study, there.get(study.hash))
    client.log_artifacts(parent, str(folder))
    new = 0
    for run in runs:
        _, made = _put(client, experiment, run, there.get(run.hash), {PARENT: parent})
        new += made
    return len(runs), new


def _active(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _put(
    client: Any, experiment: str, run: Run, old: Any, more: Mapping[str, str] | None = None
) -> tuple[str, bool]:  # fmt: skip
    """Make a run, or bring the `old` one of its hash up to date: its id, and whether it is new.

    MLflow takes back neither a param nor a metric, so an old run that says anything else is replaced.
    """
    from mlflow.entities import Metric, Param, RunTag

    if old is not None and (old.data.params, old.data.metrics) != (run.params, run.metrics):
        client.delete_run(old.info.run_id)
        old = None
    tags = [RunTag(name, value) for name, value in {**run.tags, **(more or {})}.items()]
    if old is not None:
        client.log_batch(old.info.run_id, tags=tags)
        return str(old.info.run_id), False
    made = str(client.create_run(experiment, run_name=run.name).info.run_id)
    now = int(time.time() * 1000)
    numbers = [Metric(name, value, now, 0) for name, value in run.metrics.items()]
    values = [Param(name, value) for name, value in run.params.items()]
    client.log_batch(made, tags=tags)
    for start in range(0, len(numbers), BATCH):
        client.log_batch(made, metrics=numbers[start : start + BATCH])
    for start in range(0, len(values), PARAMS):
        client.log_batch(made, params=values[start : start + PARAMS])
    client.set_terminated(made)
    return made, True


def main() -> None:
    parser = Parser("experiments.export", __doc__)
    parser.add_argument(
        "folder", type=Path, help="a folder that a sweep or a study wrote, such as results/leakage_vs_epsilon"
    )
    parser.add_argument(
        "--mlflow", required=True, metavar="URI",
        help="where MLflow tracks runs: sqlite:///mlflow.db, or a server's http://HOST:5000",
    )  # fmt: skip
    given = parser.parse_args()
    with one_line_errors():
        count, new = export(given.folder, given.mlflow)
        print(f"{count} runs of {given.folder} are in {given.mlflow}, {new} of them new")


if __name__ == "__main__":
    main()
