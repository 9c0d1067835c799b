"""The tables of a sweep: what they hold, line by line; `experiments.table` prints them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from experiments.collect import CellResult, alarms
from experiments.scoring import Row
from experiments.table import Entry, Number, Page, Table
from fl_core.views import VIEWS


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, and what stands in a cell's row."""

    head: str
    cell: Callable[[CellResult], Entry]


def interval(row: Row | None, digits: int = 3) -> Entry:
    """A row's number with its interval, or an em dash where there is none."""
    if row is None or row.value is None:
        return "—"
    return Number(value=row.value, low=row.low, high=row.high, digits=digits)


def _utility(metric: str) -> Callable[[CellResult], Entry]:
    """One measure of utility, with the note on replicas that have none."""

    def print_it(cell: CellResult) -> Entry:
        row = cell.row("utility", metric)
        shown = interval(row, 1)
        return f"{shown} ({row.note})" if row is not None and row.note else shown

    return print_it


def whole(row: Row) -> bool:
    """Whether a row is about a group of the summary, and not about one class or client."""
    return not row.group.startswith(("class ", "client "))


def _ceiling(row: Row | None) -> str:
    return "1" if row is None or row.ceiling is None else f"{row.ceiling:.3f}"


def _bound(cell: CellResult) -> str:
    audit = cell.audit
    if not audit or audit.get("epsilon") is None:
        return "—"
    return f"{audit['epsilon']:.2f} (≤ {audit['ceiling']:.2f})"


def headline_attack(cells: Sequence[CellResult]) -> str:
    """The attack that stands in the summary: the first of the configuration that any cell's view served."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.attacks()))
    served = {row.attack for cell in cells for row in cell.rows if row.value is not None}
    return next((name for name in names if name in served), next(iter(names), ""))


def summary(cells: Sequence[CellResult]) -> Table:
    """One line a cell."""
    attack = headline_attack(cells)
    fpr = f"{cells[0].facts['fpr']:.3g}"

    def member(metric: str, group: str) -> Callable[[CellResult], Row | None]:
        return lambda cell: cell.row("membership", metric, attack, group)

    def matched(metric: str) -> Callable[[CellResult], Row | None]:
        return lambda cell: cell.row("reconstruction", metric)

    def printed(pick: Callable[[CellResult], Row | None]) -> Callable[[CellResult], Entry]:
        return lambda cell: interval(pick(cell))

    columns = [Column("variant", lambda cell: cell.variant)] if any(cell.variant for cell in cells) else []
    columns += [
        Column("ε", CellResult.label),
        Column("accounted ε", lambda cell: "∞" if math.isinf(cell.accounted) else f"{cell.accounted:.3f}"),
        Column(
            "σ",
            lambda cell: "—" if cell.facts["noise_multiplier"] is None else f"{cell.facts['noise_multiplier']:.3f}",
        ),
        Column("test accuracy", lambda cell: interval(cell.row("utility", "accuracy"))),
    ]
    timed = sorted({row.metric for cell in cells for row in cell.rows if row.metric.startswith("seconds_to_")})
    for metric in timed:
        seconds = _utility(metric)
        columns.append(Column(f"virtual s to {metric.removeprefix('seconds_to_')}", seconds))
    for group, word in (("canary", "canaries"), ("ordinary", "ordinary")):
        area, power = member("auc", group), member("tpr", group)
        if any(map(area, cells)):
            columns += [
                Column(f"AUC, {word}", printed(area)),
                Column(f"TPR at FPR {fpr}, {word}", printed(power)),
            ]
    first = "canary" if any(member("auc", "canary")(cell) for cell in cells) else "ordinary"
    columns += [
        Column("AUC ceiling", lambda cell: _ceiling(member("auc", first)(cell))),
        Column("TPR ceiling", lambda cell: _ceiling(member("tpr", first)(cell))),
        Column("audited ε ≥ (at most)", _bound),
    ]
    if any(matched("psnr")(cell) for cell in cells):
        columns += [
            Column("PSNR, dB", lambda cell: interval(matched("psnr")(cell), 1)),
            Column("labels found", lambda cell: interval(matched("label_recall")(cell), 2)),
        ]
    return Table([column.head for column in columns], [[column.cell(cell) for column in columns] for cell in cells])


def membership(cells: Sequence[CellResult]) -> Table:
    """One line a cell, attack and group, the blind baselines among them; single classes and clients are in the CSV.

    The strongest attack on a group of a cell is marked where its interval lies above all others.
    """
    found = [row for cell in cells for row in cell.rows if row.question == "membership" and whole(row)]
    rates = sorted({row.metric for row in found if row.metric.startswith("tpr_at_")}, key=_rate, reverse=True)
    summary_rate = cells[0].facts["fpr"]
    metrics = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}
    metrics |= {one: f"TPR at {_rate(one):.3g}" for one in rates if _rate(one) > summary_rate}
    metrics |= {"tpr": f"TPR at {summary_rate:.3g}"}
    metrics |= {one: f"TPR at {_rate(one):.3g}" for one in rates if _rate(one) < summary_rate}
    lines: list[list[Entry]] = []
    for cell in cells:
        mine = [row for row in cell.rows if row.question == "membership" and whole(row)]
        for attack in cell.attacks():
            for group in dict.fromkeys(row.group for row in mine if row.metric == "auc"):
                rows = [cell.row("membership", metric, attack, group) for metric in metrics]
                view = next((row.view for row in mine if row.attack == attack), "")
                lines.append([cell.variant, cell.label(), attack, view, group, *map(_number_or_why, rows)])
    heads = ["variant", "ε", "attack", "view", "group", *metrics.values()]
    return Table(heads, lines, dict.fromkeys(metrics.values(), "highest"), within=("variant", "ε", "group"))


def _rate(metric: str) -> float:
    return float(metric.removeprefix("tpr_at_"))


def _number_or_why(row: Row | None) -> Entry:
    if row is None or (row.value is None and row.note.startswith("refused")):
        return "refused" if row is not None else "—"
    return row.note.replace(" non-members", "") if row.value is None else interval(row)


def refusals(cells: Sequence[CellResult]) -> list[str]:
    """Why attacks were refused, each reason once."""
    rows = [row for cell in cells for row in cell.rows if row.note.startswith("refused: ")]
    return list(dict.fromkeys(row.note.removeprefix("refused: ") for row in rows))


def stabilities(cells: Sequence[CellResult]) -> Table:
    """How far two halves of the replicas rank the examples alike, by each attack."""
    lines = [
        [cell.variant, cell.label(), row.attack, row.view, interval(row), row.note]
        for cell in cells
        for row in cell.rows
        if row.metric == "rank_stability" and row.value is not None
    ]
    return Table(["variant", "ε", "attack", "view", "rank correlation of two halves", "and"], lines)


def pictures(cells: Sequence[CellResult]) -> Table:
    """One line a cell, attack and metric of the reconstructions."""
    lines = [
        [cell.variant, cell.label(), row.attack, row.view, row.metric, interval(row, 1 if "psnr" in row.metric else 3)]
        + [row.note]
        for cell in cells
        for row in cell.rows
        if row.question == "reconstruction"
    ]
    return Table(["variant", "ε", "attack", "view", "metric", "value", "note"], lines)


def every_audit(cells: Sequence[CellResult]) -> Table:
    """One line a cell and audit; the bounds of a cell hold together."""
    lines = [
        [
            cell.variant,
            cell.label(),
            audit["attack"],
            audit["view"],
            "—" if audit["epsilon"] is None else f"{audit['epsilon']:.2f} (≤ {audit['ceiling']:.2f})",
            "∞" if math.isinf(accounted := cell.accounted_against(audit["view"])) else f"{accounted:.3f}",
            audit["note"],
        ]
        for cell in cells
        for audit in cell.audits
    ]
    return Table(["variant", "ε", "attack", "view", "audited ε ≥ (at most)", "accounted ε", "note"], lines)


def in_words(cells: Sequence[CellResult], whom: str) -> list[str]:
    """What was learned in each cell, for a reader without the field's terms; `whom` is "" or "Alice's "."""
    sentences = []
    attack = headline_attack(cells)
    for cell in cells:
        told = []
        for group, kind in (("canary", "mislabelled pictures"), ("ordinary", "ordinary pictures")):
            row = cell.row("membership", "auc", attack, group)
            if row is not None and row.low is not None:
                verb = "tells" if row.low > 0.5 else "cannot be shown to tell"
                told.append(f"{verb} which of {whom}{kind} were trained on (AUC {interval(row)})")
        parts = [f"The released model {' and '.join(told)}."] if told else []
        rebuilt = cell.row("reconstruction", "psnr")
        blind = cell.row("reconstruction", "psnr", "blind (nearest public image)")
        if rebuilt is not None and blind is not None and rebuilt.low is not None and blind.high is not None:
            better = "shows" if rebuilt.low > blind.high else "does not show"
            parts.append(
                f"An update after one step {better} a picture better than the nearest public one does "
                f"({interval(rebuilt, 1)} dB against {interval(blind, 1)} dB)."
            )
        sentences.append(f"{cell.variant + ', ' if cell.variant else ''}ε = {cell.label()}. {' '.join(parts)}")
    return sentences


def on_terminal(cells: Sequence[CellResult]) -> str:
    """The summary as aligned columns, without intervals."""
    table = summary(cells)
    rows = [table.heads, *([str(entry).split(" [")[0] for entry in line] for line in table.lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.heads))]
    return "\n".join("  ".join(entry.rjust(width) for entry, width in zip(row, widths, strict=True)) for row in rows)


def as_csv(cells: Sequence[CellResult]) -> str:
    """Every measured number, one a line, at full precision."""
    out = io.StringIO()
    heads = ["variant", "epsilon", "accounted_epsilon", "delta", "defense", *(field.name for field in fields(Row))]
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        about: dict[str, Any] = {
            "variant": cell.variant,
            "epsilon": cell.epsilon,
            "accounted_epsilon": cell.accounted,
            "delta": cell.facts["delta"],
            "defense": cell.facts["defense"],
        }
        for row in cell.rows:
            writer.writerow({**about, **asdict(row)})
        for bound, accounted in cell.bounds():
            writer.writerow({**about, "accounted_epsilon": accounted, **asdict(bound)})
    return out.getvalue()


def page(cells: Sequence[CellResult], title: str, whom: str) -> Page:
    """All tables of a sweep, with what a reader must know; `whom` as in `in_words`."""
    parts: list[str | Table] = [f"# {title}", *alarms(cells), summary(cells)]
    attack = headline_attack(cells)
    facts = cells[-1].facts
    parts.append(
        f"Membership by {attack}; 95% intervals over independent replicas. Ceilings are the most "
        f"that the accounted guarantee allows any attack with its view. The audited ε is a 95% lower bound, and in "
        f"brackets the most that this audit could have shown. PSNR is of the restart that the attacker itself picks, "
        f"from one client's update after one step on one example; blind guesses stand below. {facts['examples']} "
        f"examples, {facts['parameters']} parameters."
    )
    if any(cell.account["protects"] == "client" for cell in cells):
        parts.append("ε is what one client is promised; the accounted ε and the ceilings are for one of its examples.")
    parts += ["## In words", "\n".join(f"- {line}" for line in in_words(cells, whom))]
    parts += [
        "## What is guaranteed",
        "\n".join(
            f"- {c.variant + ', ' if c.variant else ''}ε = {c.label()}: {words}"
            for c in cells
            for words in guarantees(c)
        ),
    ]
    if any(len(cell.audits) > 1 for cell in cells):
        parts += ["## Audits", every_audit(cells)]
    parts += ["## Membership, every attack", membership(cells)]
    parts += [f"- {why}" for why in refusals(cells)]
    if stabilities(cells).lines:
        parts += [
            "## Who is vulnerable",
            "Whether the same examples stand out in other replicas; the interval is over random halvings. Where the "
            "shadows are the other replicas, an attack errs for an example alike in both halves and is above 0 without "
            "leakage: LiRA on 24 replicas of noise is at 0.1 to 0.3, and the tenths share .3 to .5. Compare it with a "
            "small ε.",
            stabilities(cells),
        ]
    if pictures(cells).lines:
        parts += ["## Pictures", pictures(cells)]
    return parts


def guarantees(cell: CellResult) -> list[str]:
    """The privacy statements of a cell in words, those that say the same to several views as one."""
    told: dict[str, list[str]] = {}
    for statement in cell.account["guarantees"].values():
        told.setdefault(statement["promise"], []).append(statement["view"])
    order = list(VIEWS)

    def views(names: list[str]) -> str:
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

    return [f"Against {views(sorted(names, key=order.index))}: {promise}" for promise, names in told.items()]
