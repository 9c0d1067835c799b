"""From a study's points to results/<name>/: its figure, its table as Markdown, LaTeX and CSV, data.csv, and the record
that they are drawn from.

Nothing is measured here. data.csv has a line for every measured number, at full precision, after its point's values.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import record, store
from experiments.figures import save
from experiments.record import Record
from experiments.store import StoredRun
from experiments.studies.base import Study, Values, make_study, rows
from experiments.table import page_csv, page_latex, page_markdown
from fl_core.checkpoint import read_json, write_text
from fl_core.errors import InputError

FIELDS = ("hash", "point", "config", "seconds", "versions", "hardware", "revision")
"""What the manifest of a point's stored run holds."""


def write(config: Mapping[str, Any], runs: Sequence[str], command: str) -> Path:
    """Write results/<name>/ from stored `runs` of a study, say on the terminal what to open, and return the folder.

    Files are replaced one by one, each whole. Raises InputError where a stored run is missing or damaged.
    """
    stored = [store.load(store.RUNS / run, FIELDS) for run in runs]
    points = [run.manifest["point"] | read_json(run.folder / "record.json") for run in stored]
    out = store.RESULTS / str(config["name"])
    record.write(out, _manifest(config, stored, command), points=points)
    found = record.read(out)
    draw(found, out)
    told = page_markdown(_study(found).table(found.points))
    print("\n".join([told, *store.older({run.folder: run.manifest["revision"] for run in stored}, "points")]))
    print("Open:", *(f"  {out / file}" for file in ("figure.png", "table.md", "data.csv")), sep="\n")
    print(f"To explore: python -m experiments.report {out}")
    return out


def draw(found: Record, out: Path) -> list[str]:
    """Write the figure and tables of a study's record into `out`; returns the names of the files."""
    study, title = _study(found), str(found.manifest["title"])
    written = save(study.figure(found.points, title), out, "figure")
    page = study.table(found.points)
    for file, text in (
        ("data.csv", as_csv(found.points)),
        ("table.md", f"# {title}\n\n{page_markdown(page)}\n"),
        ("table.tex", f"% {title}\n{page_latex(page)}"),
        ("table.csv", page_csv(page)),
    ):
        write_text(out / file, text)
        written.append(file)
    return written


def _study(found: Record) -> Study:
    try:
        return make_study(found.manifest["config"]["study"])
    except (KeyError, TypeError):
        raise InputError(f"the manifest of {found.manifest.get('name')} names no study; run the study again") from None


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
