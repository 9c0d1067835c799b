"""One HTML page about a results folder: `python -m experiments.report results/NAME` writes report.html there.

The page holds all that it shows and loads nothing from a network. It is drawn from the folder's record alone, so it
works in a fresh clone; it is not committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments import record
from experiments.html.page import page
from experiments.terminal import Parser, command, one_line_errors
from fl_core.checkpoint import write_text

FILE = "report.html"


def write(folder: Path, made_by: str) -> Path:
    """Write a results folder's page, made by that command line; returns its path.

    Raises InputError where the folder holds no whole record, or Plotly is not installed.
    """
    out = folder / FILE
    write_text(out, page(record.read(folder), made_by))
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.report", __doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that a sweep or a study wrote")
    options = parser.parse_args(arguments)
    with one_line_errors():
        for folder in options.folders:
            print(f"Open: {write(folder, command())}")


if __name__ == "__main__":
    main()
