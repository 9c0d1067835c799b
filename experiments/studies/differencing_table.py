"""The tables of `differencing`: a line a point, a column a number of rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.base import Values, rows
from experiments.table import Entry, Number, Page, Table

SECTIONS = (
    ("rank", "Rank of the participation matrix", 1, "of as many unknown updates as there are clients"),
    (
        "error",
        "Error of a recovered update",
        3,
        "root mean square over clients, relative to how far clients are from their mean: 1 is no better than the mean "
        "of all clients",
    ),
    ("cosine", "Cosine of what sets a client apart, recovered and true", 3, "mean over clients"),
    ("batch error", "Error of a recovered batch's mean", 4, "on the same scale"),
    (
        "drift",
        "Drift",
        4,
        "how much a client's update changes from round to round, relative to how far clients are from their mean",
    ),
)
SOURCES = {"recovered": "recovered updates", "sums": "mean of the sums", "unmasked": "updates without masks"}


def table(records: Sequence[Values], fpr: float) -> Page:
    """With 95% intervals over replicas."""
    parts: list[str | Table] = [
        "Columns are how many rounds the server solves, the last ones; brackets are 95% intervals over replicas."
    ]
    for metric, heading, digits, words in SECTIONS:
        parts += _section(f"{heading}\n\n{words[0].upper()}{words[1:]}.", records, digits, metric=metric)
    for metric, heading in (("auc", "AUC"), ("tpr", f"TPR at {fpr:.3g} FPR")):
        for source, words in SOURCES.items():
            parts += _section(f"Membership from {words}, {heading}", records, 3, metric=metric, source=source)
    noise = [
        f"{_words(record)}: noise multiplier {record['noise_multiplier']:.2f}, AUC for one example at most "
        f"{record['ceiling']:.3f}"
        for record in records
        if record["epsilon"] is not None
    ]
    return [*parts, "## Noise in shares", "\n".join(f"- {line}" for line in noise)] if noise else parts


def _words(record: Mapping[str, Any]) -> str:
    noise = "" if record["epsilon"] is None else f", ε = {record['epsilon']:g}"
    return f"{record['regime']}, {record['scheme']}{noise}"


def _section(heading: str, records: Sequence[Values], digits: int, **wanted: Any) -> Page:
    lengths = sorted({row["rounds"] for row in rows(records)})
    body: list[list[Entry]] = []
    for record in records:
        found = {row["rounds"]: row for row in rows([record], **wanted)}
        if found:
            shown = (found[length] for length in lengths)
            numbers = (Number(value=row["value"], low=row["low"], high=row["high"], digits=digits) for row in shown)
            body.append([_words(record), *numbers])
    return [f"## {heading}", Table(["", *map(str, lengths)], body)]
