"""What a reader must know before any number is believed: contradictions, attacks worse than blind guesses, failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments import collect
from experiments.collect import CellResult
from experiments.html.pictures import named
from experiments.html.rows import head, plain
from experiments.html.words import metric_words
from experiments.studies.base import Values
from experiments.tables import whole

HIGHER_IS_MORE = (
    "auc",
    "tpr",
    "balanced_accuracy",
    "psnr",
    "ssim",
    "label_recall",
    "recovered",
    "recognised",
    "readable",
)
"""The first part of the metrics that grow with what was learned; others are not compared with blind baselines."""


@dataclass(frozen=True)
class Alarm:
    """`broken`: a bound contradicts the accounting; `failed`: no number; `blind`: an attack, named by `words`, is worse
    than not looking. `where` are the cells or points, with the numbers.
    """

    level: Literal["broken", "failed", "blind"]
    words: str
    where: tuple[str, ...] = ()


def of_cells(cells: Sequence[CellResult], failed: Sequence[Mapping[str, str]]) -> list[Alarm]:
    """Those of a sweep; `failed` cells are those of its manifest."""
    found = [Alarm("broken", line.removeprefix("ALARM ")) for line in collect.alarms(cells)]
    found += [Alarm("failed", f"{one['cell']}: {one['error']}") for one in failed]
    worse: dict[str, list[str]] = {}
    for cell in cells:
        rows = [plain(row) for row in cell.rows if whole(row)]
        words = metric_words({row["metric"] for row in rows}, cell.facts["fpr"])
        for attack, metric, group, numbers in _below_blind(rows):
            worse.setdefault(attack, []).append(f"{named(cell)}, {words[metric]} on {group}: {numbers}")
    return found + _blind(worse)


def _blind(worse: Mapping[str, Sequence[str]]) -> list[Alarm]:
    return [Alarm("blind", attack, tuple(where)) for attack, where in worse.items()]


DESCRIBED = ("by", "attack", "view", "value", "low", "high", "ceiling", "note", "knowledge", "samples")
"""Fields in which an attack's row may differ from that of the baseline that it is compared with."""


def _below_blind(rows: Sequence[Values]) -> Iterator[tuple[str, str, str, str]]:
    """Attack, metric, group and numbers where a whole interval lies below that of the best blind baseline.

    The baseline's row agrees in all fields besides `DESCRIBED`.
    """

    def name(row: Values) -> str:
        return str(row.get("by", row.get("attack", "")))

    def key(row: Values) -> str:
        return repr([(field, value) for field, value in sorted(row.items()) if field not in DESCRIBED])

    scored = [
        row for row in rows
        if str(row.get("metric", "")).startswith(HIGHER_IS_MORE) and None not in (row.get("low"), row.get("high"))
    ]  # fmt: skip
    best: dict[str, Values] = {}
    for row in scored:
        if name(row).startswith("blind") and (key(row) not in best or row["low"] > best[key(row)]["low"]):
            best[key(row)] = row
    for row in scored:
        blind = best.get(key(row))
        if blind is not None and name(row) and not name(row).startswith("blind") and row["high"] < blind["low"]:
            numbers = f"{_interval(row)} against {_interval(blind)} of {name(blind)}"
            yield name(row), row["metric"], str(row.get("group", "")), numbers


def _interval(row: Values) -> str:
    return f"[{row['low']:.3g}, {row['high']:.3g}]"


def of_points(records: Sequence[Values], manifest: Mapping[str, Any]) -> list[Alarm]:
    """Those of a study: bounds above the accounted ε, failed attacks, attacks below the blind ones of their point."""
    broken: list[Alarm] = []
    worse: dict[str, list[str]] = {}
    failed: dict[str, list[str]] = {}
    for record, point in zip(records, manifest["points"], strict=True):
        label = in_words(point["point"])
        if record.get("failure"):
            failed.setdefault(str(record["failure"]), []).append(label)
        broken += [Alarm("broken", f"{label}: {words}") for words in _contradictions(record)]
        words = metric_words({str(row.get("metric")) for row in record["rows"]}, None)
        for attack, metric, group, numbers in _below_blind(record["rows"]):
            about = words[metric] + (f" on {group}" if group else "")
            worse.setdefault(attack, []).append(f"{label}, {about}: {numbers}")
    return [*broken, *(Alarm("failed", words, tuple(where)) for words, where in failed.items()), *_blind(worse)]


def _contradictions(record: Values) -> Iterator[str]:
    """Audits of a point whose bound is above the ε that it accounts for."""
    for row in record["rows"]:
        accounted = row.get("accounted", record.get("accounted"))
        bound = row.get("value")
        if row.get("metric") == "epsilon" and None not in (accounted, bound) and bound > accounted:
            who = row.get("auditor", row.get("attack", "an audit"))
            yield (
                f"{who} shows ε ≥ {bound:.3g}, above the accounted {accounted:.3g}; the accounting, the "
                "mechanism or the audit is broken"
            )


def in_words(point: Mapping[str, Any]) -> str:
    """A point's plain values: "attack DLG, defence dp_sgd, ε 8"."""
    told = [(name, value) for name, value in point.items() if not isinstance(value, list | dict) and value is not None]
    return ", ".join(f"{head(name)} {value}" for name, value in told)
