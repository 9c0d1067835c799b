"""From a sweep's cells to results/<name>/: its figures and tables, and the record that they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import figures, record, store, tables
from experiments.collect import CellResult, alarms, ordered, stored
from experiments.field_figure import by_field
from experiments.front_figure import front
from experiments.leakage_figure import leakage_vs_epsilon
from experiments.reconstruction_figure import reconstructions
from experiments.record import Record
from experiments.roc_figure import roc
from experiments.store import RESULTS
from experiments.table import page_latex, page_markdown
from experiments.variants_figure import by_variant
from experiments.views_figure import by_view, views_of
from experiments.vulnerable_figure import vulnerable
from fl_core.checkpoint import write_bytes, write_text
from fl_core.errors import InputError

SHOWN = (
    "leakage_vs_epsilon.png",
    "roc.png",
    "reconstructions.png",
    "vulnerable.png",
    "front.png",
    "by_field.png",
    "by_view.png",
    "by_view_ordinary.png",
    "by_variant.png",
    "table.md",
)
"""What a user is told to open."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A cell of a sweep that has no stored run: its hash, what sets it apart in the sweep, and one line why."""

    run: str
    cell: str
    error: str


def write(folders: Sequence[Path], name: str, title: str, command: str, failed: Sequence[Failed] = ()) -> Path:
    """Write results/<name>/ from the stored runs in `folders` and say on the terminal what to open.

    The cells that `failed` are named in table.md, in the manifest and on the terminal.
    """
    if not folders:
        raise InputError("there is no stored run to report on; run a sweep first")
    found = [stored(folder) for folder in folders]
    cells, out = ordered(found), RESULTS / name
    record.write(out, _manifest(cells, name, title, command, failed), cells=found)
    for model in sorted((folders[-1] / "models").glob("*.safetensors")):
        write_bytes(out / model.name, model.read_bytes())
    written = draw(record.read(out), out)
    print(
        "\n".join(
            [
                tables.on_terminal(cells),
                *alarms(cells),
                *store.older({store.RUNS / cell.manifest["hash"]: cell.manifest["revision"] for cell in cells}),
                *(f"Failed, and not in the table: {one.cell}: {one.error}" for one in failed),
            ]
        )
    )
    print("Open:", *(f"  {out / file}" for file in SHOWN if file in written), sep="\n")
    print(f"To explore: python -m experiments.report {out}")
    return out


def draw(found: Record, out: Path) -> list[str]:
    """Write the figures and tables of a sweep's record into `out`; returns the names of the files."""
    cells, title = found.cells, str(found.manifest["title"])
    written = _figures(cells, out, title)
    about = cells[0].manifest["config"]["about"]
    names = cells[0].manifest["config"]["client_names"]
    whom = "" if about is None else f"{names[about] if names else f'client {about}'}'s "
    failed = [Failed(**one) for one in found.manifest["failed"]]
    page = [*tables.page(cells, title, whom), *_missing(failed)]
    for file, text in (
        ("table.csv", tables.as_csv(cells)),
        ("table.md", page_markdown(page) + "\n"),
        ("table.tex", page_latex(page)),
    ):
        write_text(out / file, text)
        written.append(file)
    return written


def _missing(failed: Sequence[Failed]) -> list[str]:
    """The end of the page where cells failed."""
    if not failed:
        return []
    return ["## Cells that failed", "\n".join(f"- `{one.cell}`: {one.error}" for one in failed)]


def figures_of(cells: Sequence[CellResult], title: str) -> dict[str, Figure | None]:
    """A sweep's figures by name, None for those that its cells do not call for."""
    varied = any(cell.variant for cell in cells)
    field = by_field(cells, title)
    # Over one ε alone, the figure by that field says all that those by view or variant would; and one by view would
    # have a single point for each attack in a panel.
    alone = len({cell.epsilon for cell in cells}) == 1
    said = field is not None and alone
    viewed = not said and not (varied and alone)
    defended = len({(cell.facts["defense"], cell.epsilon) for cell in cells})
    return {
        "leakage_vs_epsilon": None if varied else leakage_vs_epsilon(cells, title),
        "roc": None if varied else roc(cells, title),
        "front": front(cells, title, attack=tables.headline_attack(cells)) if defended > 2 else None,
        "reconstructions": None if varied else reconstructions(cells, title),
        "vulnerable": None if varied else vulnerable(cells, title),
        "by_field": field,
        "by_view": by_view(cells, title, "canary") if viewed else None,
        "by_view_ordinary": by_view(cells, title, "ordinary") if viewed else None,
        "by_variant": None if said or (viewed and len(views_of(cells)) > 1) else by_variant(cells, title),
    }


def _figures(cells: Sequence[CellResult], out: Path, title: str) -> list[str]:
    written = []
    for name, figure in figures_of(cells, title).items():
        if figure is None:
            figures.remove(out, name)
        else:
            written += figures.save(figure, out, name)
    return written


def _manifest(
    cells: Sequence[CellResult], name: str, title: str, command: str, failed: Sequence[Failed]
) -> dict[str, Any]:
    """What made the study; timings and hardware are those of the stored runs."""
    first = cells[0].manifest
    return {
        "name": name,
        "title": title,
        "command": command,
        "seed": first["config"]["seed"],
        "replicas": first["config"]["replicas"],
        "cells": [
            {
                "run": cell.manifest["hash"],
                "epsilon": cell.label(),
                "variant": cell.variant,
                "replicas": cell.manifest["replicas"],
                "seconds": cell.manifest["seconds"],
                "workers": cell.manifest["workers"],
                "revision": cell.manifest["revision"],
                "hardware": cell.manifest["hardware"],
                "guarantees": tables.guarantees(cell),
                "epsilon_rdp": cell.account.get("epsilon_rdp"),
            }
            for cell in cells
        ],
        "failed": [asdict(one) for one in failed],
        "seconds": round(sum(cell.manifest["seconds"] for cell in cells), 1),
        "versions": first["versions"],
        "config": first["config"],
    }
