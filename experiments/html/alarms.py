"""What a reader must know before any number is believed: contradictions, attacks worse than blind guesses, failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments import collect
from experiments.collect import CellResult
from experiments.html.pictures import named
from experiments.scoring import Row
from experiments.studies.base import Values
from experiments.tables import whole

HIGHER_IS_MORE = ("auc", "tpr", "balanced_accuracy", "psnr", "ssim", "label_recall", "recovered", "recognised", "readable")
"""The first part of the metrics that grow with what was learned; others are not compared with blind baselines."""


@dataclass(frozen=True)
class Alarm:
    """`broken`: a bound contradicts the accounting; `blind`: an attack is worse than not looking; `failed`: no number.

    `where` are the cells or points.
    """

    level: Literal["broken", "blind", "failed"]
    words: str
    where: tuple[str, ...] = ()


def of_cells(cells: Sequence[CellResult], failed: Sequence[Mapping[str, str]]) -> list[Alarm]:
    """Those of a sweep; `failed` cells are those of its manifest."""
    found = [Alarm("broken", line.removeprefix("ALARM ").capitalize()) for line in collect.alarms(cells)]
    worse: dict[str, list[str]] = {}
    for cell in cells:
        label = named(cell)
        for words, numbers in _below_blind([row for row in cell.rows if whole(row)]):
            worse.setdefault(words, []).append(f"{label}: {numbers}")
    found += [Alarm("blind", words, tuple(where)) for words, where in worse.items()]
    return found + [Alarm("failed", f"{one['cell']} failed: {one['error']}") for one in failed]


def _below_blind(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Attacks whose whole interval lies below that of the best blind baseline for the same question."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row.attack.startswith("blind") and row.low is not None and row.metric.startswith(HIGHER_IS_MORE):
            key = row.question, row.group, row.metric
            if key not in best or row.low > (best[key].low or 0.0):
                best[key] = row
    for row in rows:
        blind = best.get((row.question, row.group, row.metric))
        if blind is None or row.high is None or row.attack.startswith("blind"):
            continue
        if blind.low is not None and row.high < blind.low:
            yield (
                f"{row.attack}, {row.metric} on {row.group}: below {blind.attack}, which never saw the model",
                f"{_interval(row.low, row.high)} against {_interval(blind.low, blind.high)}",
            )


def _interval(low: float | None, high: float | None) -> str:
    return f"[{low:.3g}, {high:.3g}]"


def of_points(records: Sequence[Values], manifest: Mapping[str, Any]) -> list[Alarm]:
    """Those of a study: bounds above the accounted ε, attacks below the blind ones of their point, failed attacks."""
    broken, worse, failed = [], {}, {}
    for record, point in zip(records, manifest["points"], strict=True):
        label = in_words(point["point"])
        if record.get("failure"):
            failed.setdefault(str(record["failure"]), []).append(label)
        for row in record["rows"]:
            accounted = row.get("accounted", record.get("accounted"))
            if row.get("metric") == "epsilon" and accounted is not None and row["value"] is not None:
                if row["value"] > accounted:
                    who = row.get("auditor", row.get("attack", "an audit"))
                    broken.append(
                        f"{label}: {who} shows ε ≥ {row['value']:.3g}, above the accounted {accounted:.3g}; the "
                        "accounting, the mechanism or the audit is broken"
                    )
        for words, numbers in _point_below_blind(record["rows"]):
            worse.setdefault(words, []).append(f"{label}: {numbers}")
    return [
        *(Alarm("broken", words) for words in broken),
        *(Alarm("blind", words, tuple(where)) for words, where in worse.items()),
        *(Alarm("failed", words, tuple(where)) for words, where in failed.items()),
    ]


DESCRIBED = ("by", "attack", "value", "low", "high", "ceiling", "note", "knowledge", "samples")


def _point_below_blind(rows: Sequence[Values]) -> Iterator[tuple[str, str]]:
    """The same within one point; a row's other fields must agree with the baseline's."""

    def name(row: Values) -> str:
        return str(row.get("by", row.get("attack", "")))

    def key(row: Values) -> str:
        return repr(sorted((field, value) for field, value in row.items() if field not in DESCRIBED))

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
            yield (
                f"{name(row)}, {row['metric']}: below {name(blind)}, which never saw the model",
                f"{_interval(row['low'], row['high'])} against {_interval(blind['low'], blind['high'])}",
            )


def in_words(point: Mapping[str, Any]) -> str:
    """A point's plain values: "attack DLG, defence dp_sgd, epsilon 8"."""
    plain = {name: value for name, value in point.items() if not isinstance(value, list | dict) and value is not None}
    return ", ".join(f"{'ε =' if name == 'epsilon' else name.replace('_', ' ')} {value}" for name, value in plain.items())
