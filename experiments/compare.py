"""What changed between two sweeps, or two studies: `python -m experiments.compare results/A results/B [--out DIR]`.

All rows that are compared are one family of tests: narrow it with --metric, --attack and --group before looking.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.comparison import Comparison, Line, Pair, circumstances, compare, read
from experiments.studies.drawing import number
from experiments.table import Table
from experiments.table import as_markdown as printed
from experiments.terminal import Parser, one_line_errors
from fl_core.checkpoint import write_text

SIGNIFICANT = 0.05
SHOWN = 30
"""How many differences the terminal gets; files get all."""

ASSUMED = (
    "Each difference is B − A with its 95% interval, from the two 95% intervals on the scale that they are given in "
    "(MOVER, Zou and Donner 2008): a side of it takes the two sides that could have made it. p is two-sided, by "
    "Student's t for the replicas or victims that the intervals rest on (normal where the table does not say how "
    "many); it is below 0.05 exactly where the interval leaves 0 out. Holm's p holds for all rows together, however "
    "they depend on one another; Benjamini and Hochberg's bounds the share of false ones to expect below it, "
    "where rows are independent or go together."
)


def assumption(found: Comparison) -> str:
    """What is assumed of the two runs' dependence, by whether they share their seed; empty where nothing is tested."""
    if all(pair.p is None for pair in found.pairs):
        return ""
    if found.a.manifest["seed"] != found.b.manifest["seed"]:
        return "The two have seeds of their own, and are independent of one another."
    return (
        f"Both have the seed {found.a.manifest['seed']}, so what it draws is the same where the data are (members, "
        "canaries, victims), and the two are not independent, as the tests assume. Where their replicas do well or "
        "badly together, differences are surer than shown here (p is too large); were they opposed, p is too small."
    )


def headline(found: Comparison) -> list[str]:
    """The result in a few lines."""
    tested = [pair for pair in found.pairs if pair.p is not None]
    strict = sum(map(_significant, tested))
    listed = sum(pair.bh is not None and pair.bh < SIGNIFICANT for pair in tested)
    lines = [f"A is {found.a.folder}, B is {found.b.folder}: {len(found.pairs)} rows are in both."]
    if found.pairs and all(pair.same for pair in found.pairs):
        lines.append("All of them have identical numbers.")
    else:
        identical = sum(pair.same for pair in found.pairs)
        lines.append(
            f"{len(tested)} are tested, of which {strict} differ by Holm's p < {SIGNIFICANT} and {listed} by Benjamini "
            f"and Hochberg's; {identical} rows are identical."
        )
    untested = Counter(pair.why or "intervals without a width" for pair in found.pairs if pair.p is None)
    lines += [f"Not tested: {count} rows ({why})." for why, count in untested.items()]
    for name, only, others in (("A", found.only_a, found.only_b), ("B", found.only_b, found.only_a)):
        if only:
            lines.append(f"Only in {name}: {len(only)} rows{_whose(only, found, others)}.")
    return lines


def _significant(pair: Pair) -> bool:
    return pair.holm is not None and pair.holm < SIGNIFICANT


def _whose(only: Sequence[Line], found: Comparison, others: Sequence[Line]) -> str:
    """Which values of which columns the other folder does not have."""
    shared = [pair.a.key for pair in found.pairs] + [line.key for line in others]
    told = []
    for name in only[0].key:
        alone = dict.fromkeys(line.key[name] for line in only)
        alone = dict.fromkeys(one for one in alone if one and one not in {key.get(name, "") for key in shared})
        if alone:
            more = f" and {len(alone) - 6} more" if len(alone) > 6 else ""
            told.append(f"{name} {', '.join(list(alone)[:6])}{more}")
    return f" (it alone has {'; '.join(told)})" if told else ""


def columns(pairs: Sequence[Pair]) -> list[str]:
    """The identifying columns that tell these rows apart."""
    names = list(pairs[0].key) if pairs else []
    return [name for name in names if len({pair.key[name] for pair in pairs}) > 1] or names[-1:]


def table(pairs: Sequence[Pair]) -> Table:
    """A line a pair; what is the same in all of them is no column."""
    names = columns(pairs)
    lines = []
    for pair in pairs:
        numbers = [_entry(pair.a), _entry(pair.b), _change(pair), *map(_p, (pair.p, pair.holm, pair.bh))]
        lines.append([*(pair.key[name] for name in names), *numbers])
    return Table([*names, "A", "B", "B − A", "p", "p, Holm", "p, BH"], lines)


def _entry(line: Line) -> str:
    if line.value is None:
        return "—"
    if line.measured is None:
        return str(number(line.value))
    return f"{number(line.value)} [{number(line.measured.low)}, {number(line.measured.high)}]"


def _change(pair: Pair) -> str:
    if pair.change is not None:
        return f"{number(pair.change.value)} [{number(pair.change.low)}, {number(pair.change.high)}]"
    if pair.a.value is None or pair.b.value is None:
        return pair.why
    return f"{number(pair.b.value - pair.a.value)} ({pair.why})"


def _p(p: float | None) -> str:
    return "—" if p is None else "< 1e-12" if p < 1e-12 else f"{p:.2g}"


def as_text(found: Comparison, pairs: Sequence[Pair]) -> str:
    """For the terminal: what differs around the numbers, the most significant differences, and the result."""
    around = circumstances(found.a, found.b)
    parts = [f"{what}: {_short(a)} → {_short(b)}" for what, a, b in around if not what.startswith("guarantees")]
    parts += [f"{what}: differ" for what, *_ in around if what.startswith("guarantees")]
    shown = [pair for pair in pairs if not pair.same][:SHOWN]
    if shown:
        parts += [_throughout(shown), *_aligned(table(shown))]
    left = sum(not pair.same for pair in pairs) - len(shown)
    if left:
        parts.append(f"... and {left} more; --out DIR writes them all")
    return "\n".join([*parts, *headline(found), *filter(None, [assumption(found)])])


def _throughout(pairs: Sequence[Pair]) -> str:
    """What is the same in all rows that are shown."""
    same = {name: value for name, value in pairs[0].key.items() if value and name not in columns(pairs)}
    return "All of: " + ", ".join(f"{name} = {value}" for name, value in same.items()) if same else "All rows:"


def _aligned(found: Table) -> list[str]:
    rows = [[str(entry) for entry in row] for row in (found.heads, *found.lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(found.heads))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_markdown(found: Comparison, pairs: Sequence[Pair]) -> str:
    """table.md: the rows that differ at all, and what differs around them."""
    parts = [f"# {found.a.folder.name} and {found.b.folder.name}", "\n".join(f"- {one}" for one in headline(found))]
    parts += [ASSUMED, assumption(found)] if assumption(found) else []
    differing = [pair for pair in pairs if not pair.same]
    if differing:
        parts += ["## Differences, by significance", _throughout(differing), printed(table(differing))]
    around = circumstances(found.a, found.b)
    if around:
        lines = [[what, a, b] for what, a, b in around]
        parts += ["## What else differs", printed(Table(["what", "A", "B"], lines))]
    return "\n\n".join(parts) + "\n"


def as_csv(found: Comparison, pairs: Sequence[Pair]) -> str:
    """table.csv: every row of both folders at full precision; `in` says whether one of them lacks it.

    A column that was ignored, and differs, says what it is in A and in B.
    """
    names = list(dict.fromkeys(found.a.columns + found.b.columns))
    numbers = [f"{side}_{part}" for side in ("a", "b", "difference") for part in ("value", "low", "high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, "in", *numbers, "p", "p_holm", "p_bh", "why"], lineterminator="\n")
    writer.writeheader()
    for pair in pairs:
        ignored = {name: _both(value, pair.b.key.get(name, "")) for name, value in pair.a.key.items()}
        known = ignored | pair.key | {"in": "both", "p": pair.p, "p_holm": pair.holm, "p_bh": pair.bh}
        sides = _sides("a", pair.a) | _sides("b", pair.b)
        if pair.change is not None:
            sides |= {f"difference_{part}": getattr(pair.change, part) for part in ("value", "low", "high")}
        writer.writerow(known | sides | {"why": pair.why})
    for side, lines in (("a", found.only_a), ("b", found.only_b)):
        for line in lines:
            writer.writerow(line.key | {"in": side} | _sides(side, line))
    return text.getvalue()


def _both(a: str, b: str) -> str:
    return a if a == b else f"{a} → {b}"


def _sides(side: str, line: Line) -> dict[str, float | None]:
    low, high = (None, None) if line.measured is None else (line.measured.low, line.measured.high)
    return {f"{side}_value": line.value, f"{side}_low": low, f"{side}_high": high}


def main() -> None:
    parser = Parser("experiments.compare", __doc__)
    parser.add_argument("a", type=Path, metavar="A", help="a folder under results/ that a sweep or a study wrote")
    parser.add_argument("b", type=Path, metavar="B", help="another one; differences are B − A")
    parser.add_argument("--metric", help="compare this metric alone, such as auc")
    parser.add_argument("--attack", help="compare this attack alone, such as LiRA")
    parser.add_argument("--group", help="compare this group of examples alone, such as canary")
    parser.add_argument(
        "--ignore", nargs="+", default=[], metavar="COLUMN",
        help="match rows that differ in these columns too: epsilon, say, for two runs at different ε",
    )  # fmt: skip
    parser.add_argument(
        "--significant", action="store_true", help=f"show only differences with Holm's p < {SIGNIFICANT}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write table.md and table.csv there, with every row")
    given = parser.parse_args()
    with one_line_errors():
        only = {"metric": given.metric, "attack": given.attack, "group": given.group}
        found = compare(read(given.a), read(given.b), only, given.ignore)
        pairs = [one for one in found.pairs if not given.significant or _significant(one)]
        if given.out is not None:
            write_text(given.out / "table.md", as_markdown(found, pairs))
            write_text(given.out / "table.csv", as_csv(found, pairs))
        print(as_text(found, pairs))
        if given.out is not None:
            print("Open:", *(f"  {given.out / file}" for file in ("table.md", "table.csv")), sep="\n")


if __name__ == "__main__":
    main()
