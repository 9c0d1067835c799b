"""From a benchmark's record to its files: NAME.json, and NAME.md and figures that are drawn from it.

The module of the same name says how: `markdown(record)`, and where there are figures `figures(record)`, by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.figures import save
from fl_core.checkpoint import read_json, write_json, write_text


def write(out: Path, name: str, record: Mapping[str, Any]) -> list[str]:
    """Write a record and all that is drawn from it into `out`; returns the names of the files."""
    write_json(out / f"{name}.json", dict(record))
    return [f"{name}.json", *draw(out / f"{name}.json", out)]


def draw(file: Path, out: Path) -> list[str]:
    """Write what is drawn from the record in `file`; returns the names of the files."""
    record, name = read_json(file), file.stem
    module = importlib.import_module(f"experiments.benchmarks.{name}")
    write_text(out / f"{name}.md", module.markdown(record))
    figures = module.figures(record) if hasattr(module, "figures") else {}
    return [f"{name}.md", *(one for title, figure in figures.items() for one in save(figure, out, title))]
