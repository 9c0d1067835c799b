"""All reproductions in one table: results/reproduce/README.md, verdicts.csv and verdicts.tex."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments import record
from experiments.reproduce.base import Judged, Reproduction, Verdict, verdict_table, verdicts
from experiments.studies.base import make_study
from experiments.table import Entry, Table, as_csv, as_markdown, page_latex, page_markdown
from fl_core.checkpoint import write_text

FILES = ("README.md", "verdicts.csv", "verdicts.tex")
VERDICTS: tuple[Verdict, ...] = ("matched", "missed", "scaled down", "not attempted")


def glance(everything: Sequence[tuple[str, Judged]]) -> Table:
    """A line a reproduction: how many published numbers of each verdict, how many of the computed values [c] were
    matched, and the first number that was measured."""
    lines: list[list[Entry]] = []
    for name in dict.fromkeys(name for name, _ in everything):
        mine = [line for other, line in everything if other == name]
        published, computed = apart(mine)
        counts = Counter(line.verdict for line in published)
        checked = f"{sum(line.verdict == 'matched' for line in computed)} of {len(computed)}" if computed else ""
        (first,) = verdict_table([next((line for line in mine if line.row is not None), mine[0])]).lines
        lines.append([name, *(str(counts[verdict] or "") for verdict in VERDICTS), checked, *first[:3]])
    return Table(["reproduction", *VERDICTS, "known values [c]", "for example", "published", "ours"], lines)


def apart(lines: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """The lines of numbers that a paper prints, and those of values that were computed for this project."""
    known = [line for line in lines if line.published is not None and line.published.computed]
    return [line for line in lines if line not in known], known


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the summary of every reproduction under `folder` into `out`, or there; returns the README's path."""
    out = out or folder
    parts: list[str] = []
    everything: list[tuple[str, Judged]] = []
    for path in sorted(folder.glob(f"*/{record.FILE}")):
        if path.parent.name.endswith("-smoke"):
            continue
        found = record.read(path.parent)
        study = make_study(found.manifest["config"]["study"])
        assert isinstance(study, Reproduction)
        lines = verdicts(study, found.points)
        everything += [(path.parent.name, line) for line in lines if line.published is not None]
        hardware = found.manifest["points"][0]["hardware"]
        processor = f"{hardware['cores']} cores, {hardware['processor']}"
        made = f"{hardware.get('gpu') or processor}, {found.manifest['seconds']:.0f} s over all points"
        parts.append(
            f"## {study.title}\n\n{page_markdown(study.table(found.points))}\n\n"
            f"Made by `{found.manifest['command']}` ({made}); [record]({path.parent.name}/manifest.json)."
        )
    published, computed = apart([line for _, line in everything])
    counts = Counter(line.verdict for line in published)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    reached = sum(line.verdict == "matched" for line in computed)
    table = verdict_table([line for _, line in everything], in_full=True)
    named = Table(
        heads=["reproduction", *table.heads],
        lines=[[name, *line] for (name, _), line in zip(everything, table.lines, strict=True)],
    )
    head = (
        "# Published numbers, measured again\n\n"
        f"{told}. A number is matched where it lies in our 95% interval, or ours is beyond it in the claim's sense, "
        "under the published protocol; under another protocol it is scaled down, and no verdict on the paper. A wide "
        f"interval is easily matched, so it stands beside. {reached} of {len(computed)} known values are reached that "
        "no paper prints [c]; they check this project, and are counted apart."
    )
    write_text(out / "README.md", "\n\n".join([head, as_markdown(glance(everything)), *parts]) + "\n")
    write_text(out / "verdicts.csv", as_csv(named))
    write_text(out / "verdicts.tex", page_latex([named]))
    return out / "README.md"
