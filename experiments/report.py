"""Draw a sweep's or a study's figures and tables again: `python -m experiments.report results/leakage_vs_epsilon`.

Nothing is trained. Files are replaced one by one, each whole.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from experiments import figures, store, tables
from experiments.collect import CellResult, alarms, collect
from experiments.reconstruction_figure import reconstructions
from experiments.store import RESULTS
from experiments.studies import paper
from experiments.terminal import one_line_errors
from experiments.variants_figure import by_variant
from experiments.views_figure import by_view, views_of
from experiments.vulnerable_figure import vulnerable
from fl_core.checkpoint import write_bytes, write_json, write_text
from fl_core.errors import InputError

SHOWN = (
    "leakage_vs_epsilon.png",
    "roc.png",
    "reconstructions.png",
    "vulnerable.png",
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
    cells = collect(folders)
    out = RESULTS / name
    written = _figures(cells, out, title)
    about = cells[0].manifest["config"]["about"]
    names = cells[0].manifest["config"]["client_names"]
    whom = "" if about is None else f"{names[about] if names else f'client {about}'}'s "
    for file, text in (
        ("table.csv", tables.as_csv(cells)),
        ("table.md", tables.as_markdown(cells, title, whom) + _missing(failed)),
        ("table.tex", tables.as_latex(cells, title)),
    ):
        write_text(out / file, text)
        written.append(file)
    for model in sorted((cells[-1].folder / "models").glob("*.safetensors")):
        write_bytes(out / model.name, model.read_bytes())
        written.append(model.name)
    write_json(out / "manifest.json", _manifest(cells, name, title, command, failed))
    missing = [f"Failed, and not in the table: {one.cell}: {one.error}" for one in failed]
    print(
        "\n".join(
            [
                tables.on_terminal(cells),
                *alarms(cells),
                *store.older({cell.folder: cell.manifest["revision"] for cell in cells}),
                *missing,
            ]
        )
    )
    shown = [file for file in SHOWN if file in written]
    print("Open:", *(f"  {out / file}" for file in shown), sep="\n")
    return out


def _missing(failed: Sequence[Failed]) -> str:
    """The end of table.md where cells failed."""
    if not failed:
        return ""
    return "\n".join(["\n## Cells that failed\n", *(f"- `{one.cell}`: {one.error}" for one in failed), ""])


def _figures(cells: Sequence[CellResult], out: Path, title: str) -> list[str]:
    varied = any(cell.variant for cell in cells)
    drawn = [
        ("leakage_vs_epsilon", ("png", "pdf"), None if varied else figures.leakage_vs_epsilon(cells, title)),
        ("roc", ("png",), None if varied else figures.roc(cells, title)),
        ("reconstructions", ("png",), None if varied else reconstructions(cells, title)),
        ("vulnerable", ("png",), None if varied else vulnerable(cells, title)),
        ("by_view", ("png", "pdf"), by_view(cells, title, "canary")),
        ("by_view_ordinary", ("png", "pdf"), by_view(cells, title, "ordinary")),
    ]
    if len(views_of(cells)) < 2:
        drawn.append(("by_variant", ("png", "pdf"), by_variant(cells, title)))
    written = []
    for name, kinds, figure in drawn:
        if figure is None:
            (out / f"{name}.png").unlink(missing_ok=True)
            continue
        for kind in kinds:
            write_bytes(out / f"{name}.{kind}", figures.encoded(figure, kind))
            written.append(f"{name}.{kind}")
        plt.close(figure)
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


def redraw(folder: Path) -> Path:
    """Draw `folder` again from the runs that its manifest names."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if "points" in manifest:
            return paper.redraw(folder, manifest)
        runs = [store.RUNS / cell["run"] for cell in manifest["cells"]]
        about = manifest["name"], manifest["title"], manifest["command"]
        failed = [Failed(**one) for one in manifest.get("failed", [])]
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no manifest.json; name a folder that a sweep wrote, such as results/leakage_vs_epsilon"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder}/manifest.json is damaged; run the sweep again") from None
    return write(runs, *about, failed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder that a sweep wrote, such as results/leakage_vs_epsilon")
    with one_line_errors():
        redraw(parser.parse_args().folder)


if __name__ == "__main__":
    main()
