"""A table described once, and printed as Markdown, as LaTeX with booktabs, or as CSV.

The best entry of a column is marked only where its interval lies apart from the intervals of all others.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "ε": r"$\varepsilon$", "σ": r"$\sigma$", "δ": r"$\delta$",
    "α": r"$\alpha$", "μ": r"$\mu$", "∞": r"$\infty$", "≥": r"$\ge$", "≤": r"$\le$", "×": r"$\times$", "·": r"$\cdot$",
    "→": r"$\to$", "±": r"$\pm$", "—": "---", "–": "--", "<": r"$<$", ">": r"$>$", "|": r"$|$", "“": "``", "”": "''",
}  # fmt: skip

PLAIN_DIGITS, RAISED_DIGITS = "-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
RAISED, LOWERED = str.maketrans(PLAIN_DIGITS, RAISED_DIGITS), str.maketrans(RAISED_DIGITS, PLAIN_DIGITS)
SPECIAL = re.compile(rf"(ε\u0302|[{RAISED_DIGITS}]+|(?<![\w.-])-(?=\d))")  # what is more than its letters one by one

PACKAGES = r"\usepackage{array,booktabs,longtable}"
PAGE_OF_LINES = 40
"""A LaTeX table with more lines goes on over pages."""
WIDE = 45
"""A column of text with an entry of more letters is broken into lines in LaTeX."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A measured number with the ends of its interval.

    In print `digits` stand behind the point; with `significant` that many count from the first one that is not zero.
    """

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 3
    significant: bool = False

    def __str__(self) -> str:
        shown = self.printed(self.value)
        if self.low is None or self.high is None:
            return shown
        return f"{shown} [{self.printed(self.low)}, {self.printed(self.high)}]"

    def printed(self, value: float) -> str:
        """A value as this number's own is printed."""
        if not math.isfinite(value):
            return "—" if math.isnan(value) else "∞" if value > 0 else "-∞"
        if not self.significant:
            return f"{value:.{self.digits}f}"
        if value and not 1e-3 <= abs(value) < 1e5:
            exponent = math.floor(math.log10(abs(value)))
            return f"{value / 10**exponent:.1f}·10{str(exponent).translate(RAISED)}"
        return f"{value:.{self.digits}g}" if abs(value) < 100 else f"{value:,.0f}"


Entry = str | Number
End = Literal["highest", "lowest"]


@dataclass(frozen=True)
class Table:
    """Heads and lines. `best` says of a column, by its head, which end is the best; an entry that is text does not take
    part. Lines are compared with those that have the same entries in the columns `within`."""

    heads: Sequence[str]
    lines: Sequence[Sequence[Entry]]
    best: Mapping[str, End] = field(default_factory=dict)
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
    """The key of the largest (of sign · value) whose interval overlaps no other, in print too; None for under two."""
    if len(numbers) < 2:
        return None

    def ends(one: Number) -> tuple[float, float]:
        low, high = (one.value if end is None else end for end in (one.low, one.high))
        return (low, high) if sign > 0 else (-high, -low)

    first = max(numbers, key=lambda key: sign * numbers[key].value)
    bar = ends(numbers[first])[0]
    others = [(ends(one)[1], one) for key, one in numbers.items() if key != first]
    apart = all(end < bar and one.printed(end) != one.printed(bar) for end, one in others)
    return first if apart else None


Page = Sequence[str | Table]
"""Paragraphs and headings in Markdown, and tables, in the order in which they are read."""


def as_markdown(table: Table) -> str:
    """The table in Markdown, its best entries bold; a first column without any entry is left out."""
    heads, *body = _printed(table, lambda text: text.replace("|", "\\|"), "**{}**")
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *body))


def as_latex(table: Table) -> str:
    """The table in LaTeX, its best entries bold; a first column without any entry is left out. Needs PACKAGES."""
    heads, *body = (" & ".join(row) + r" \\" for row in _printed(table, tex, r"\textbf{{{}}}"))
    columns = "".join(_alignment([line[column] for line in table.lines]) for column in _columns(table))
    if len(body) <= PAGE_OF_LINES:
        begin, end = rf"\begin{{tabular}}{{{columns}}}", [r"\bottomrule", r"\end{tabular}"]
        top = [r"\toprule", heads, r"\midrule"]
    else:
        begin, end = rf"\begin{{longtable}}{{{columns}}}", [r"\end{longtable}"]
        top = [r"\toprule", heads, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
    return "\n".join([begin, *top, *body, *end, ""])


def _columns(table: Table) -> range:
    """The columns that are printed: all but a first one without any entry."""
    return range(int(bool(table.lines) and not any(str(line[0]) for line in table.lines)), len(table.heads))


def _printed(table: Table, escaped: Callable[[str], str], bold: str) -> list[list[str]]:
    """Heads and lines as text."""
    marked, columns = table.marked(), _columns(table)
    rows = [[escaped(table.heads[column]) for column in columns]]
    for place, line in enumerate(table.lines):
        entries = [(column, escaped(str(line[column]))) for column in columns]
        rows.append([bold.format(text) if (place, column) in marked else text for column, text in entries])
    return rows


def _alignment(entries: Sequence[Entry]) -> str:
    """Of a LaTeX column: numbers to the right, text to the left, and long text in lines of a quarter of the page."""
    if entries and all(isinstance(entry, Number) or _bare(str(entry)) for entry in entries):
        return "r"
    longest = max((len(str(entry)) for entry in entries), default=0)
    return "l" if longest <= WIDE else r">{\raggedright\arraybackslash}p{0.25\linewidth}"


def _bare(text: str) -> bool:
    """Whether an entry that is text stands for a number, or for the lack of one."""
    return text in ("", "—", "∞") or text.replace(".", "", 1).replace("-", "", 1).isdigit()


def tex(text: str) -> str:
    """Text with what LaTeX reads as commands escaped; raised digits and minus signs are those of mathematics."""
    return "".join(_tex(part) for part in SPECIAL.split(text))


def _tex(part: str) -> str:
    if part == "-":
        return "$-$"
    if not SPECIAL.fullmatch(part):
        return "".join(TEX.get(letter, letter) for letter in part)
    return r"$\hat\varepsilon$" if part.startswith("ε") else f"$^{{{part.translate(LOWERED)}}}$"


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


def page_markdown(page: Page) -> str:
    """Text and tables of a page in Markdown."""
    return "\n\n".join(as_markdown(part) if isinstance(part, Table) else part.strip() for part in page)


def page_latex(page: Page) -> str:
    """The tables of a page in LaTeX, each after the text before it as a comment; first, what they need."""
    lines = [f"% Needs {PACKAGES}"]
    for part in page:
        if isinstance(part, Table):
            lines.append(as_latex(part))
        else:
            lines += [f"% {line}" for line in part.strip().splitlines() if line]
    return "\n".join(lines)


def page_csv(page: Page) -> str:
    """Every entry of a page's tables, one a line: its table, line and column, and a number with its interval's ends."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "line", "column", "entry", "low", "high"])
    for number, table in enumerate((part for part in page if isinstance(part, Table)), start=1):
        for place, line in enumerate(table.lines, start=1):
            for head, entry in zip(table.heads, line, strict=True):
                writer.writerow([number, place, head, *_cells(entry, three=True)])
    return out.getvalue()
