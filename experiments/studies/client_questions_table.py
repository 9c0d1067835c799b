"""The tables of `client_questions`: one a question, a line an attack, a column a number of clients or an ε."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.studies.base import Values, rows
from experiments.table import Page, Table

HEADINGS = {
    "participation": ("Did this client take part?", "AUC over clients and replicas; chance is 0.5."),
    "source": ("Whose is it?", "Share of records whose client is named; chance is one over the number of clients."),
    "properties": (
        "What do they hold?",
        "Total variation between estimated and true shares of the classes: 0 is exact, and chance is the blind share.",
    ),
    "existence": ("Does it exist?", "AUC over replicas with the record and without; chance is 0.5."),
}
UNITS = {None: "", "example": " an example (DP-SGD)", "client": " a client (DP-FedAvg)"}


def table(records: Sequence[Values]) -> Page:
    """Markdown: values with 95% intervals over replicas, and after a slash the most that the guarantee allows."""
    parts: list[str | Table] = [
        "Brackets are 95% intervals over replicas; after a slash, the ceiling that the guarantee of ε puts on that "
        "view. Blind baselines never see a model."
    ]
    for question, (heading, words) in HEADINGS.items():
        mine = [record for record in records if record["question"] == question]
        if not mine:
            continue
        parts.append(f"## {heading}\n\n{words}")
        plain = [record for record in mine if record["epsilon"] is None]
        parts.append(_section(plain, [f"{record['clients']} clients" for record in plain]))
        for unit in dict.fromkeys(record["unit"] for record in mine if record["unit"] is not None):
            noisy = [record for record in mine if record["unit"] == unit]
            parts.append(_section(noisy, [f"ε = {record['epsilon']:g} for{UNITS[unit]}" for record in noisy]))
    return parts


def _section(records: Sequence[Values], heads: Sequence[str]) -> Table:
    """A line for each attack, view and knowledge of the first record, and a column a record."""
    lines = []
    for first in rows(records[:1]):
        wanted = {name: first[name] for name in ("attack", "view", "knowledge", "metric")}
        cells = [_cell(rows([record], **wanted)[0]) for record in records]
        name = first["metric"] if first["attack"] == "none" else first["attack"]
        lines.append([name, first["knowledge"], "—" if first["view"] == "none" else first["view"], *cells])
    return Table(["attack", "of", "view", *heads], lines)


def _cell(row: Values) -> str:
    found = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return found if row["ceiling"] is None else f"{found} / {row['ceiling']:.3f}"
