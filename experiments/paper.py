"""Draw figures and tables again from what results/ keeps: `python -m experiments.paper [results/NAME ...]`.

Without folders, all of results/. Nothing is trained or measured: a folder's record.json.xz and manifest.json are all
that is read, and the same record gives the same bytes. `--check` writes nothing and says which committed files are not
those that would be drawn now.
"""

from __future__ import annotations

import re
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from experiments import holdings, record, sweep_paper
from experiments.benchmarks import page
from experiments.reproduce import summary
from experiments.store import RESULTS
from experiments.studies import paper as study_paper
from experiments.terminal import Parser, one_line_errors
from fl_core.errors import InputError

STALE = 1
POINTS = 1e-3  # a PDF's coordinates are in points, 1/72 inch, with six decimals
WORD = re.compile(rb"\((?:\\.|[^()\\])*\)|[^\s\[\]()]+", re.DOTALL)  # a string in parentheses, or what has no space
NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?")
BENCHMARKS, REPRODUCED = "benchmarks", "reproduce"


def draw(folder: Path, out: Path | None = None) -> list[str]:
    """Draw a results folder from its record, or those of benchmarks or reproductions, into `out` or where it is.

    Returns the names of the files. Raises InputError where there is no record.
    """
    if folder.name == REPRODUCED:
        summary.write(folder, out)
        return list(summary.FILES)
    if folder.name == BENCHMARKS:
        return [name for file in sorted(folder.glob("*.json")) for name in page.draw(file, out or folder)]
    written: list[str] = []
    holds = (folder / holdings.RECORD).is_file()
    if (folder / record.FILE).is_file() or not holds:
        found = record.read(folder)
        draw_it = sweep_paper.draw if found.cells else study_paper.draw
        written += draw_it(found, out or folder)
    return written + (holdings.draw_again(folder, out or folder) if holds else [])


def all_folders(root: Path = RESULTS) -> list[Path]:
    """Every folder under `root` that holds records of any kind; stored runs aside."""
    kept = (path for name in (record.FILE, holdings.RECORD) for path in root.rglob(name))
    found = {path.parent for path in kept if "runs" not in path.relative_to(root).parts}
    return sorted(found | {path for path in (root / BENCHMARKS, root / REPRODUCED) if path.is_dir()})


def stale(folder: Path) -> list[str]:
    """The files of a results folder that differ from what its record gives, are missing, or are no longer drawn.

    Writes nothing there.
    """
    with tempfile.TemporaryDirectory() as fresh:
        there = [path.name for path in folder.iterdir() if path.is_file()]
        for name in there:
            (Path(fresh) / name).touch()  # which drawing takes away where a figure is not called for
        names = draw(folder, Path(fresh))
        left = [name for name in there if not (Path(fresh) / name).exists()]
        return [name for name in names if not same(folder / name, Path(fresh) / name)] + left


def same(old: Path, new: Path) -> bool:
    """Whether two files have the same content: the same bytes, or PDFs that draw the same to within POINTS.

    What deflates a PDF's streams is Python's own zlib, whose output differs between builds of it; and a processor with
    other vector instructions may round a coordinate the other way, or give -0 for 0.
    """
    if not old.is_file():
        return False
    before, after = old.read_bytes(), new.read_bytes()
    return before == after or (old.suffix == ".pdf" and _same_drawings(before, after))


def _same_drawings(old: bytes, new: bytes) -> bool:
    streams, others = _inflated(old), _inflated(new)
    return len(streams) == len(others) and all(map(_same_drawing, streams, others))


def _inflated(pdf: bytes) -> list[bytes]:
    """The streams of a PDF, without its table of offsets."""
    return [
        zlib.decompressobj().decompress(stream) if stream[:1] == b"\x78" else stream
        for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    ]


def _same_drawing(old: bytes, new: bytes) -> bool:
    """Whether two streams are the same bytes, or the same words and strings with numbers within POINTS."""
    words, others = WORD.findall(old), WORD.findall(new)
    return old == new or (len(words) == len(others) and all(map(_same_word, words, others)))


def _same_word(old: bytes, new: bytes) -> bool:
    if old == new:
        return True
    return bool(NUMBER.fullmatch(old) and NUMBER.fullmatch(new)) and abs(float(old) - float(new)) <= POINTS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.paper", __doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="folders that a sweep or a study wrote; none: all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is not current")
    options = parser.parse_args(arguments)
    with one_line_errors():
        folders = options.folders or all_folders()
        if not folders:
            raise InputError(f"{RESULTS} holds no record; run a sweep first, or name a folder that one wrote")
        if not options.check:
            for folder in folders:
                print(*(folder / name for name in draw(folder)), sep="\n")
            return
        old = [folder / name for folder in folders for name in stale(folder)]
        print(*(f"not current: {path}" for path in old), f"{len(folders)} folders, {len(old)} stale files", sep="\n")
        if old:
            sys.exit(STALE)


if __name__ == "__main__":
    main()
