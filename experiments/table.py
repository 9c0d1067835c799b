"""A table described once, and printed as Markdown, as LaTeX with booktabs, or as CSV.

The best entry of a column is marked only where its interval lies apart from the intervals of all others.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "ε": r"$\varepsilon$", "σ": r"$\sigma$", "δ": r"$\delta$",
    "α": r"$\alpha$", "μ": r"$\mu$", "∞": r"$\infty$", "≥": r"$\ge$", "≤": r"$\le$", "×": r"$\times$", "·": r"$\cdot$",
    "→": r"$\to$", "±": r"$\pm$", "—": "---", "–": "--", "²": "$^2$", "⁴": "$^4$", "⁶": "$^6$", "⁷": "$^7$",
    "<": r"$<$", ">": r"$>$", "|": r"$|$", "“": "``", "”": "''",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Number:
    """A measured number with the ends of its interval; `digits` stand behind the point in print."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 3

    def __str__(self) -> str:
        shown = f"{self.value:.{self.digits}f}"
        if self.low is None or self.high is None:
            return shown
        return f"{shown} [{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"


Entry = str | Number


@dataclass(frozen=True, kw_only=True)
class Table:
    """Heads and lines. `best` says of a column, by its head, which end is the best; an entry that is text does not take
    part. Lines are compared with those that have the same entries in the columns `within`."""

    heads: Sequence[str]
    lines: Sequence[Sequence[Entry]]
    best: Mapping[str, Literal["highest", "lowest"]] = field(default_factory=dict)
    within: Sequence[str] = ()

    def marked(self) -> set[tuple[int, int]]:
        """The places (line, column) of the best entries whose intervals lie apart from those of all others."""
        found = set()
        keys = [tuple(str(line[list(self.heads).index(head)]) for head in self.within) for line in self.lines]
        for head, end in self.best.items():
            column, sign = list(self.heads).index(head), 1 if end == "highest" else -1
            for key in dict.fromkeys(keys):
                numbers = {
                    place: line[column]
                    for place, line in enumerate(self.lines)
                    if keys[place] == key and isinstance(line[column], Number)
                }
                winner = _apart({place: one for place, one in numbers.items() if isinstance(one, Number)}, sign)
                if winner is not None:
                    found.add((winner, column))
        return found


def _apart(numbers: Mapping[int, Number], sign: int) -> int | None:
    """The key of the largest (of sign · value) whose interval overlaps no other; None for fewer than two."""
    if len(numbers) < 2:
        return None

    def ends(one: Number) -> tuple[float, float]:
        low, high = (one.value if end is None else end for end in (one.low, one.high))
        return (low, high) if sign > 0 else (-high, -low)

    first = max(numbers, key=lambda key: sign * numbers[key].value)
    bar = ends(numbers[first])[0]
    return first if all(ends(one)[1] < bar for key, one in numbers.items() if key != first) else None


def as_markdown(table: Table) -> str:
    """The table in Markdown, its best entries bold; a first column without any entry is left out."""
    marked, start = table.marked(), int(bool(table.lines) and not any(str(line[0]) for line in table.lines))

    def printed(place: int, column: int, entry: Entry) -> str:
        text = str(entry).replace("|", "\\|")
        return f"**{text}**" if (place, column) in marked else text

    body = [[printed(place, column, one) for column, one in enumerate(line)] for place, line in enumerate(table.lines)]
    heads = [head.replace("|", "\\|") for head in table.heads]
    rows = [heads, ["---"] * len(table.heads), *body]
    return "\n".join("| " + " | ".join(row[start:]) + " |" for row in rows)


def as_latex(table: Table) -> str:
    """A tabular with booktabs, its best entries bold; needs \\usepackage{booktabs}."""
    marked = table.marked()

    def printed(place: int, column: int, entry: Entry) -> str:
        text = tex(str(entry))
        return rf"\textbf{{{text}}}" if (place, column) in marked else text

    numeric = [
        bool(table.lines) and all(isinstance(line[column], Number) or _bare(str(line[column])) for line in table.lines)
        for column in range(len(table.heads))
    ]
    lines = [
        " & ".join(printed(place, column, one) for column, one in enumerate(line)) + r" \\"
        for place, line in enumerate(table.lines)
    ]
    heads = " & ".join(map(tex, table.heads)) + r" \\"
    columns = "".join("r" if one else "l" for one in numeric)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            heads,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _bare(text: str) -> bool:
    """Whether an entry that is text stands for a number, or for the lack of one."""
    return text in ("", "—", "∞") or text.replace(".", "", 1).replace("-", "", 1).isdigit()


def tex(text: str) -> str:
    """Text with what LaTeX reads as commands escaped."""
    return "".join(TEX.get(letter, letter) for letter in text)


def as_csv(table: Table) -> str:
    """The same entries at full precision; a column with numbers is three: the value and the ends of its interval."""
    wide = [any(isinstance(line[column], Number) for line in table.lines) for column in range(len(table.heads))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for head, three in zip(table.heads, wide, strict=True) for name in _names(head, three)])
    for line in table.lines:
        writer.writerow([cell for entry, three in zip(line, wide, strict=True) for cell in _cells(entry, three)])
    return out.getvalue()


def _names(head: str, three: bool) -> list[str]:
    return [head, f"{head}, low", f"{head}, high"] if three else [head]


def _cells(entry: Entry, three: bool) -> list[str | float]:
    if isinstance(entry, Number):
        ends = ("" if end is None or math.isnan(end) else end for end in (entry.low, entry.high))
        return [entry.value, *ends]
    return [entry, "", ""] if three else [entry]
