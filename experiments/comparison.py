"""Two folders of results side by side: their rows matched, each pair tested, and what differs around the numbers.

Read are the committed files alone: manifest.json, and table.csv (a sweep's) or data.csv (a study's).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import false_discovery_control

from experiments.configuration import flat
from experiments.differences import Difference, Measured, difference, holm
from experiments.population import FREE
from fl_core.checkpoint import read_json
from fl_core.errors import InputError, check_choice

SWEEP = ("variant", "epsilon", "question", "attack", "view", "group", "metric")
"""What identifies a row of a sweep."""

MEASURED = (
    *("value", "low", "high", "ceiling", "chance", "chance_low", "chance_high", "expected", "theory", "binomial"),
    *("inside", "batches", "accuracy", "accounted", "assumes", "failure", "trials", "samples", "note"),
)
"""Columns of studies that say what came out, or how; all others identify a row."""

OVER_HALVINGS = ("rank_stability",)
"""Metrics whose interval is over random halvings of the same replicas, and so says nothing of other replicas."""

Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a folder: what identifies it, its number, and the stored run that it was measured in."""

    key: dict[str, str]
    value: float | None
    measured: Measured | None
    run: str | None


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a folder under results/ says: its manifest, and its rows."""

    folder: Path
    manifest: Mapping[str, Any]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def is_study(self) -> bool:
        """Whether it is a study's folder, and not a sweep's."""
        return "points" in self.manifest

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The stored runs that it was drawn from: a sweep's cells, or a study's points."""
        found: list[dict[str, Any]] = self.manifest["points" if self.is_study else "cells"]
        return found


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A row that both have. Without `change` there was nothing to test: `why` says so."""

    key: dict[str, str]
    a: Line
    b: Line
    change: Difference | None
    why: str = ""
    holm: float | None = None
    bh: float | None = None

    @property
    def p(self) -> float | None:
        """The p-value before any correction for many tests; None where nothing was tested."""
        return None if self.change is None else self.change.p

    @property
    def same(self) -> bool:
        """Whether the two have the same number with the same interval, or neither has one."""
        return (self.a.value, self.a.measured) == (self.b.value, self.b.measured)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`pairs` by falling significance, and the rows that one of the two lacks."""

    a: Results
    b: Results
    pairs: tuple[Pair, ...]
    only_a: tuple[Line, ...]
    only_b: tuple[Line, ...]


def read(folder: Path) -> Results:
    """The committed results in `folder`; InputError where it holds none, or they are damaged."""
    if not (folder / "manifest.json").is_file():
        raise InputError(f"{folder} holds no manifest.json; name a folder under results/ that a sweep or study wrote")
    manifest = read_json(folder / "manifest.json")
    study = isinstance(manifest, dict) and "points" in manifest
    if not study and not (isinstance(manifest, dict) and "cells" in manifest):
        raise InputError(f"{folder}/manifest.json is no sweep's and no study's; name a folder that one of them wrote")
    table = folder / ("data.csv" if study else "table.csv")
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"), newline="")))
        columns = [name for name in rows[0] if name not in MEASURED] if study else list(SWEEP)
        if not {*columns, "value"} <= set(rows[0]):
            raise KeyError("a column is missing")
        runs = _runs(manifest)
        lines = tuple(_line(row, columns, runs) for row in rows)
        _ = manifest["config"].items(), manifest["versions"].items(), manifest["seed"]
    except FileNotFoundError:
        raise InputError(f"{table} is missing; run the sweep again, or draw it with experiments.paper") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, csv.Error):
        raise InputError(f"{table} and manifest.json beside it do not belong together; run the sweep again") from None
    return Results(folder=folder, manifest=manifest, columns=tuple(columns), lines=lines)


Runs = dict[tuple[str, ...], dict[Key, str]]
"""Stored runs by the columns that say which cell or point a row is of, and by what stands there."""


def _runs(manifest: Mapping[str, Any]) -> Runs:
    """The stored runs behind a folder's rows. Points of one study may have different fields; lists and groups in a
    point are not among the columns of its rows."""
    found: Runs = {}
    if "points" in manifest:
        for one in manifest["points"]:
            plain = {name: _plain(value) for name, value in one["point"].items() if not isinstance(value, list | dict)}
            found.setdefault(tuple(plain), {})[tuple(plain.values())] = str(one["hash"])
        return found
    for one in manifest["cells"]:
        epsilon = "inf" if one["epsilon"] == "∞" else _plain(one["epsilon"])
        found.setdefault(("variant", "epsilon"), {})[one.get("variant", ""), epsilon] = str(one["run"])
    return found


def _line(row: Mapping[str, str], columns: Sequence[str], runs: Runs) -> Line:
    value, low, high = (_number(row.get(name)) for name in ("value", "low", "high"))
    units = re.match(r"\d+", row.get("samples") or "")
    measured = None
    if value is not None and low is not None and high is not None:
        measured = Measured(value=value, low=low, high=high, **({"units": float(units[0])} if units else {}))
    key = {name: _plain(row.get(name)) for name in columns}
    of = [known.get(tuple(_plain(row.get(name)) for name in names)) for names, known in runs.items()]
    its = [run for run in of if run is not None]
    return Line(key=key, value=value, measured=measured, run=its[0] if len(its) == 1 else None)


def _number(text: str | None) -> float | None:
    """A measured number; None where there is none, or none that is finite."""
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _plain(value: Any) -> str:
    """A value that identifies a row, as text: whole numbers as they are, since seeds and counts may be long; others to
    four digits, since a calibrated one may differ in its last."""
    text = "" if value is None else str(value)
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else f"{number:.4g}"


def compare(a: Results, b: Results, only: Mapping[str, str | None], ignore: Sequence[str] = ()) -> Comparison:
    """Match the rows of two folders and test each pair for a difference.

    `only` keeps rows with these values, by column; None keeps all. `ignore` are identifying columns that may differ.
    Raises InputError where a sweep meets a study, a column or value is not there, or rows can no longer be told apart.
    """
    if a.is_study != b.is_study:
        kinds = [f"{one.folder} is a {'study' if one.is_study else 'sweep'}" for one in (a, b)]
        raise InputError(f"{' and '.join(kinds)}; compare two sweeps, or two studies")
    columns = [name for name in dict.fromkeys(a.columns + b.columns) if name not in ignore]
    for name in ignore:
        check_choice("--ignore", name, sorted({*a.columns, *b.columns}))
    for name, wanted in only.items():
        if wanted is not None:
            check_choice(f"--{name}", wanted, {one.key.get(name, "") for one in a.lines + b.lines} - {""})
    left, right = (_by_key(one, columns, only) for one in (a, b))
    pairs = [_pair(key, left[key], right[key], columns) for key in left if key in right]
    tested = [at for at, pair in enumerate(pairs) if pair.p is not None]
    if tested:
        p = [pair.p for pair in pairs if pair.p is not None]
        for at, strict, listed in zip(tested, holm(p), false_discovery_control(p), strict=True):
            pairs[at] = replace(pairs[at], holm=float(strict), bh=float(listed))
    return Comparison(
        a=a,
        b=b,
        pairs=tuple(sorted(pairs, key=_significance)),
        only_a=tuple(line for key, line in left.items() if key not in right),
        only_b=tuple(line for key, line in right.items() if key not in left),
    )


def _by_key(results: Results, columns: Sequence[str], only: Mapping[str, str | None]) -> dict[Key, Line]:
    found: dict[Key, Line] = {}
    for line in results.lines:
        if any(wanted is not None and line.key.get(name) != wanted for name, wanted in only.items()):
            continue
        key = tuple(line.key.get(name, "") for name in columns)
        if key in found:
            told = ", ".join(f"{name} = {value}" for name, value in zip(columns, key, strict=True) if value)
            raise InputError(f"{results.folder} has two rows with {told}; ignore fewer columns, or pick with --metric")
        found[key] = line
    return found


def _pair(key: Key, a: Line, b: Line, columns: Sequence[str]) -> Pair:
    about = dict(zip(columns, key, strict=True))
    if a.run is not None and a.run == b.run:
        return Pair(key=about, a=a, b=b, change=None, why="the same stored run")
    if a.key.get("metric") in OVER_HALVINGS:
        return Pair(key=about, a=a, b=b, change=None, why="intervals over halvings, not over replicas")
    if a.measured is None or b.measured is None:
        lacking = sum(one.value is None for one in (a, b))
        why = ("no interval", "no number in one of them", "no number")[lacking]
        return Pair(key=about, a=a, b=b, change=None, why=why)
    if min(a.measured.units, b.measured.units) < 2:
        return Pair(key=about, a=a, b=b, change=None, why="one replica or victim alone")
    return Pair(key=about, a=a, b=b, change=difference(a.measured, b.measured))


def _significance(pair: Pair) -> tuple[float, float]:
    """What is tested by its p-value, then other differences, then what is the same."""
    untested = 3.0 if pair.same else 2.0
    return untested if pair.p is None else pair.p, -abs((pair.b.value or 0) - (pair.a.value or 0))


def circumstances(a: Results, b: Results) -> list[tuple[str, str, str]]:
    """What differs around the numbers, as (what, in A, in B): configuration, versions, revisions, hardware, promises.

    A sweep's configuration is that of its first cell.
    """
    found: list[tuple[str, str, str]] = []
    for prefix, field in (("", "config"), ("version of ", "versions")):
        left, right = (flat(one.manifest[field]) for one in (a, b))
        for name in dict.fromkeys([*left, *right]):
            if name not in ("name", "title") and repr(left.get(name, "")) != repr(right.get(name, "")):
                free = " (changes no result)" if field == "config" and name.split(".")[0] in FREE else ""
                found.append((f"{prefix}{name}{free}", str(left.get(name, "—")), str(right.get(name, "—"))))
    for what in ("revision", "hardware"):
        mine, its = (", ".join(sorted({_in_words(run.get(what)) for run in one.runs})) for one in (a, b))
        if mine != its:
            found.append((what, mine, its))
    promised, others = (
        {(run.get("variant", ""), run.get("epsilon")): run.get("guarantees", []) for run in one.runs} for one in (a, b)
    )
    for cell in promised:
        if cell in others and promised[cell] != others[cell]:
            mine, its = (_without(*pair) for pair in ((promised[cell], others[cell]), (others[cell], promised[cell])))
            found.append((f"guarantees at {cell[0] + ', ' if cell[0] else ''}ε = {cell[1]}", mine, its))
    return found


def _without(words: Sequence[str], others: Sequence[str]) -> str:
    return " ".join(one for one in words if one not in others)


def _in_words(value: Any) -> str:
    return " ".join(str(one) for one in value.values()) if isinstance(value, Mapping) else str(value)
