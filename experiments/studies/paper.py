"""From a study's stored runs to results/<name>/: figure.png, figure.pdf, data.csv, table.md and manifest.json.

Nothing is measured here. data.csv has a line for every measured number, at full precision, after its point's values.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from experiments import store
from experiments.figures import encoded
from experiments.store import StoredRun
from experiments.studies.base import Study, Values, make_study, rows
from fl_core.checkpoint import read_json, write_bytes, write_json, write_text
from fl_core.errors import InputError

FIELDS = ("hash", "point", "config", "seconds", "versions", "hardware", "revision")
"""What the manifest of a point's stored run holds."""


def write(study: Study, config: Mapping[str, Any], runs: Sequence[str], command: str) -> Path:
    """Write results/<name>/ from stored `runs` of a study, say on the terminal what to open, and return the folder.

    Files are replaced one by one, each whole. Raises InputError where a stored run is missing or damaged.
    """
    stored = [store.load(store.RUNS / run, FIELDS) for run in runs]
    records = [run.manifest["point"] | read_json(run.folder / "record.json") for run in stored]
    out, title = store.RESULTS / str(config["name"]), str(config["title"])
    figure = study.figure(records, title)
    for kind in ("png", "pdf"):
        write_bytes(out / f"figure.{kind}", encoded(figure, kind))
    plt.close(figure)
    table = study.table(records).strip()
    write_text(out / "data.csv", as_csv(records))
    write_text(out / "table.md", f"# {title}\n\n{table}\n")
    write_json(out / "manifest.json", _manifest(config, stored, command))
    print("\n".join([table, *store.older({run.folder: run.manifest["revision"] for run in stored}, "points")]))
    print("Open:", *(f"  {out / file}" for file in ("figure.png", "table.md", "data.csv")), sep="\n")
    return out


def as_csv(records: Sequence[Values]) -> str:
    """A line a row, with all columns that any row has; empty where a row has no such value."""
    lines = rows(records)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _manifest(config: Mapping[str, Any], stored: Sequence[StoredRun], command: str) -> Values:
    """What made the study; seconds are added up over points, which may have run side by side."""
    facts = ("hash", "point", "seconds", "revision", "hardware")
    return {
        "name": config["name"],
        "title": config["title"],
        "command": command,
        "seed": config["seed"],
        "points": [{name: run.manifest[name] for name in facts} for run in stored],
        "seconds": round(sum(run.manifest["seconds"] for run in stored), 1),
        "versions": stored[0].manifest["versions"],
        "config": config,
    }


def redraw(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write a study's folder again, from the stored runs that its `manifest` names."""
    try:
        config, command = manifest["config"], str(manifest["command"])
        runs = [str(point["hash"]) for point in manifest["points"]]
        study = make_study(config["study"])
        _ = config["name"], config["title"], config["seed"]
    except (KeyError, TypeError):
        raise InputError(f"{folder}/manifest.json is damaged; run the study again") from None
    return write(study, config, runs, command)
