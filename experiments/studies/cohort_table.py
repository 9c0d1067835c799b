"""The tables of `cohort`, one a question, a line a setting and a column a cohort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.studies.base import Values, rows
from experiments.table import Entry, Number, Page, Table

Columns = Sequence[int]


def table(records: Sequence[Values], fpr: float) -> Page:
    """What was measured, with 95% intervals, and what was predicted after a slash."""
    parts: list[str | Table] = [
        "Numbers are measured, with 95% intervals; after a slash, what the theory predicts. n is the number of clients "
        "in the sum."
    ]
    gaussian = [
        (f"d = {row['dimension']}, {row['game']}", {"dimension": row["dimension"], "game": row["game"]})
        for row in _different(rows(records, kind="gaussian", metric="auc"), "dimension", "game")
    ]
    parts += _section("Known answer: standard normal updates, AUC", records, gaussian, kind="gaussian", metric="auc")
    settings = _different(rows(records, kind="membership"), "model", "target", "local_steps", "attack", "knowledge")
    real = [
        (
            f"{row['target']}, {row['model']} model, {row['local_steps']} step{'s' * (row['local_steps'] > 1)}: "
            f"{row['attack']}" + ("" if row["knowledge"] == "none" else f" ({row['knowledge']})"),
            {name: row[name] for name in ("model", "target", "local_steps", "attack", "knowledge")},
        )
        for row in settings
    ]
    for metric, words in (("auc", "AUC"), ("tpr", f"TPR at {fpr:.3g} FPR")):
        parts += _section(f"Real updates, masks alone, {words}", records, real, kind="membership", metric=metric)
    ways = _different(rows(records, kind="noise"), "epsilon", "view")
    noise = [(_way(row), {"epsilon": row["epsilon"], "view": row["view"]}) for row in ways]
    for metric, words in (("auc", "AUC"), ("tpr", f"TPR at {fpr:.3g} FPR")):
        parts += _section(f"With noise in shares, {words}", records, noise, kind="noise", metric=metric)
    ceilings = [
        f"ε = {row['epsilon']:g}: AUC ≤ {row['ceiling']:.3f}"
        for row in rows(records, kind="noise", metric="auc", view="secure_server")
        if row["ceiling"] is not None and row["cohort"] == min(one["cohort"] for one in rows(records, kind="noise"))
    ]
    if ceilings:
        parts.append(f"Ceilings on the sum with noise, whatever n: {'; '.join(ceilings)}.")
    found = _different(rows(records, kind="pictures"), "attack", "view", "noise_epsilon", "question")
    pictures = [
        (
            f"{row['attack']}" + ("" if row["noise_epsilon"] is None else f", noise of ε = {row['noise_epsilon']:g}")
            + (f", {row['view']}" if row["view"] != "none" else "") + f": {row['question']}",
            {name: row[name] for name in ("attack", "view", "noise_epsilon", "question")},
        )
        for row in found
    ]  # fmt: skip
    parts += _section("Pictures, PSNR in dB", records, pictures, digits=1, kind="pictures", metric="psnr")
    parts += _section("Pictures, share above 20 dB", records, pictures, digits=2, kind="pictures", metric="readable")
    return parts


def _way(row: Mapping[str, Any]) -> str:
    if row["epsilon"] is None:
        return "masks alone, clipped"
    seen = {"secure_server": "masks and noise", "server": "noise alone, each update seen"}[row["view"]]
    return f"ε = {row['epsilon']:g}, {seen}"


def _different(found: Iterable[Values], *names: str) -> list[Values]:
    """The first row of each different combination of the named values, in order."""
    kept: dict[tuple[Any, ...], Values] = {}
    for row in found:
        kept.setdefault(tuple(row[name] for name in names), row)
    return list(kept.values())


def _section(
    heading: str, records: Sequence[Values], lines: Sequence[tuple[str, Values]], digits: int = 3, **common: Any
) -> Page:
    """One table: a line for each of `lines`, words and the values that pick its rows, and a column a cohort."""
    if not lines:
        return []
    cohorts: Columns = sorted({row["cohort"] for row in rows(records, **common)})
    body: list[list[Entry]] = []
    for words, wanted in lines:
        found = {row["cohort"]: row for row in rows(records, **common, **wanted)}
        body.append([words, *(_cell(found.get(size), digits) for size in cohorts)])
    return [f"## {heading}", Table(["", *(f"n = {size}" for size in cohorts)], body)]


def _cell(row: Values | None, digits: int) -> Entry:
    if row is None:
        return "—"
    measured = Number(value=row["value"], low=row["low"], high=row["high"], digits=digits)
    theory = row.get("theory")
    return measured if theory is None else f"{measured} / {theory:.{digits}f}"
