"""Every measured row of a sweep or a study as columns: what the page's plot and table are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from experiments.collect import CellResult
from experiments.scoring import Row
from experiments.studies.base import Values

DIGITS = 5
"""Significant digits of a number on the page; data.csv and table.csv have them all."""

HEADS = {
    "accounted": "accounted ε",
    "by": "attacker",
    "clip_norm": "clip norm",
    "defense": "defence",
    "epsilon": "ε",
    "noise_multiplier": "σ",
    "run": "run",
}
"""What a column is called where its name does not say it."""

FACTS = ("accounted", "defense")
"""Columns of a sweep's cell that follow from others."""


def head(name: str) -> str:
    """What a column is called."""
    return HEADS.get(name, name.replace("_", " "))


REMARKS = ("note", "samples", "run", "binomial", "failure", "assumes", "inside", "source")
"""Columns that describe a number, and do not set one apart from another."""

NUMBERS = ("value", "low", "high", "ceiling")
"""A measured number, its interval, and the most that the guarantee allows."""

ORDER = ("attack", "by", "view", "group", "metric", *NUMBERS, "knowledge")

Columns = list[dict[str, Any]]
"""A text column holds `values`, each once, and `codes` into them; one of numbers holds its `numbers`, None where there
is none. `lengths`, where there are any, say how often each code or number stands, one after another.

`missing` is what None means (∞ for an ε), `own` says that the column describes a cell or point and not a row of it,
and `remark` that it sets no row apart; `plotted` is for the plot alone.
"""


def of_cells(cells: Sequence[CellResult]) -> Columns:
    """A sweep's rows, cell by cell, the audits' bounds among them."""
    lines = []
    for cell in cells:
        about = {
            "variant": cell.variant,
            "epsilon": cell.epsilon if math.isfinite(cell.epsilon) else None,
            "accounted": cell.accounted if math.isfinite(cell.accounted) else None,
            "defense": cell.facts["defense"],
        }
        run = {"run": cell.manifest["hash"]}
        lines += [about | plain(row) | run for row in cell.rows]
        lines += [about | accounted | plain(row) | run for row, accounted in _bounds(cell)]
    return columns(lines, own=("variant", "epsilon", "accounted", "defense"))


def plain(row: Row) -> Values:
    """A row as plain values by name; asdict copies each of them, which takes long for a hundred thousand rows."""
    return {name: getattr(row, name) for name in ROW}


ROW = tuple(field.name for field in fields(Row))


def _bounds(cell: CellResult) -> list[tuple[Row, dict[str, float | None]]]:
    """The lower bound on ε of each audit, with the ε that is accounted against its view."""
    return [(row, {"accounted": accounted if math.isfinite(accounted) else None}) for row, accounted in cell.bounds()]


def of_points(records: Sequence[Values], manifest: Mapping[str, Any]) -> Columns:
    """A study's rows, point by point, each with its point's plain values and the hash of the point's run."""
    lines: list[Values] = []
    own: dict[str, None] = {}
    for record, point in zip(records, manifest["points"], strict=True):
        about = {name: value for name, value in record.items() if not isinstance(value, list | dict)}
        own |= dict.fromkeys(name for name in point["point"] if name in about)
        lines += [{"metric": "value"} | about | row | {"run": point["hash"]} for row in record["rows"]]
    several = sum(len({repr(line.get(name)) for line in lines}) > 1 for name in own if name != "attack") > 1
    settings = [_setting(line, own) for line in lines]
    if several and len(set(settings)) <= MOST_SETTINGS:
        lines = [line | {"setting": setting} for line, setting in zip(lines, settings, strict=True)]
    return columns(lines, own=("setting", *own))


MOST_SETTINGS = 40
"""As many fit on an axis."""


def _setting(values: Mapping[str, Any], names: Iterable[str]) -> str:
    """Everything that makes a point besides the attack, in words: "dp_sgd, ε 8"."""
    told = [(name, values[name]) for name in names if name != "attack" and values.get(name) is not None]
    return ", ".join(str(value) if isinstance(value, str) else f"{head(name)} {_text(value)}" for name, value in told)


def columns(lines: Sequence[Mapping[str, Any]], own: Sequence[str]) -> Columns:
    """The columns of `lines`: their points' `own` ones first, remarks last; those without any entry are left out."""
    names = dict.fromkeys([*own, *ORDER, *(name for line in lines for name in line if name not in REMARKS), *REMARKS])
    made = [_column(name, [line.get(name) for line in lines], name in own) for name in names]
    return [one for one in made if one is not None]


def _column(name: str, entries: Sequence[Any], own: bool) -> dict[str, Any] | None:
    there = [one for one in entries if one is not None and one != ""]
    if not there:
        return None
    about = {
        "name": name,
        "head": head(name),
        "own": own,
        "remark": name in REMARKS,
        "fact": name in FACTS,
        "plotted": name == "setting",
        "missing": "∞" if name in ("epsilon", "accounted") else "none" if own else "",
    }
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in there):
        return about | {"kind": "number"} | _packed("numbers", [_short(one) for one in entries])
    texts = [_text(one) for one in entries]
    codes = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    return about | {"kind": "text", "values": list(codes)} | _packed("codes", [codes[text] for text in texts])


def _packed(name: str, entries: list[Any]) -> dict[str, Any]:
    """The entries, or where that is shorter each run of equal ones by its length."""
    runs = [(value, len(list(same))) for value, same in groupby(entries)]
    if 2 * len(runs) > len(entries):
        return {name: entries}
    return {name: [value for value, _ in runs], "lengths": [length for _, length in runs]}


def entries(column: Mapping[str, Any]) -> list[Any]:
    """What stands in a column, row by row."""
    held = column["codes"] if column["kind"] == "text" else column["numbers"]
    if "lengths" in column:
        held = [value for value, length in zip(held, column["lengths"], strict=True) for _ in range(length)]
    return [column["values"][code] for code in held] if column["kind"] == "text" else list(held)


def distinct(column: Mapping[str, Any]) -> list[Any]:
    """What stands in a column, each once; a missing number is left out."""
    if column["kind"] == "text":
        return list(column["values"])
    return list(dict.fromkeys(one for one in column["numbers"] if one is not None))


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return "" if value is None else str(value)
