"""What secure aggregation costs a client and the server, by cohort and length, and beside Flower's SecAgg+.

    python -m experiments.benchmarks.secagg --python .venv/bench/bin/python

Each cell is one aggregation in a process of its own, every message written and parsed, none sent anywhere. Seconds are
the processor's, since the machine may be shared; a client's are the mean of those who stayed. Masks are what takes the
time, so a cell that would expand more of them than `--budget` GB says so instead. Both contenders of a comparison take
turns, repeat by repeat. `--python` is an interpreter that has flwr, see `experiments/benchmarks/peers`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.benchmarks import page
from experiments.benchmarks.lanes import spread
from experiments.benchmarks.peers import measure
from experiments.benchmarks.peers.mirage_secagg import parameters_of
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.errors import InputError, check_number

PATIENCE = 3600.0
GOAL_FASTER, GOAL_EXPANSION, COHORT = 10.0, 2.0, (1000, 10**6)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cohort of `clients` with vectors of `length`; `lost` of them drop out before they send their own."""

    clients: int
    length: int
    sparse: bool = False
    lost: int = 0

    @property
    def options(self) -> list[str]:
        """What the process that measures it is told on its command line."""
        sizes = ["--clients", str(self.clients), "--length", str(self.length), "--lost", str(self.lost)]
        return sizes + ["--sparse"] * self.sparse

    @property
    def words(self) -> str:
        """What tables call it: clients × coordinates, graph, and who is lost."""
        lost = f", {self.lost} lost" if self.lost else ""
        return f"{self.clients} × {_short(self.length)}, {'sparse' if self.sparse else 'complete'}{lost}"

    @property
    def gigabytes(self) -> float:
        """Of masks that clients and server expand together."""
        links = parameters_of(self.clients, self.length, self.sparse).neighbours or self.clients - 1
        there = self.clients - self.lost
        return (there * (links + 1) + there + self.lost * links) * 4 * self.length / 1e9


CELLS = tuple(
    Cell(clients=clients, length=length, sparse=sparse, lost=lost)
    for clients in (10, 100, 1000)
    for sparse in ((False, True) if clients > 10 else (False,))  # ten clients have no sparse graph
    for lost in (0, clients // 10)
    for length in (10**4, 10**5, 10**6, 10**7)
)
BESIDE_FLOWER = (
    Cell(clients=20, length=10**5),
    Cell(clients=20, length=10**5, lost=2),
    Cell(clients=10, length=10**6),
    Cell(clients=100, length=10**4),
    Cell(clients=100, length=10**4, sparse=True),
)
QUICK = (Cell(clients=4, length=1000), Cell(clients=60, length=1000, sparse=True, lost=6))


def measure_cells(cells: Sequence[Cell], budget: float) -> Iterator[dict[str, Any]]:
    """A row for each; `found` is None where it would expand too many masks."""
    for cell in cells:
        row: dict[str, Any] = {**asdict(cell), "gigabytes": cell.gigabytes, "found": None}
        if cell.gigabytes <= budget:
            row["found"] = measure("mirage_secagg", cell.options, timeout=PATIENCE)
            print(f"{cell.words}: {row['found']['client_seconds']:.4f} s a client", flush=True)
        yield row


def measure_beside(cells: Sequence[Cell], python: str, repeats: int) -> list[dict[str, Any]]:
    """Both contenders on each cell, in turns; a reason where Flower cannot run."""
    rows = []
    for cell in cells:
        row: dict[str, Any] = {"cell": cell.words, "ours": [], "flower": [], "failed": None}
        links = parameters_of(cell.clients, cell.length, cell.sparse).neighbours
        theirs = ["--clients", str(cell.clients), "--length", str(cell.length), "--lost", str(cell.lost)]
        theirs += ["--neighbours", str(links + 1)] if links else []
        for _ in range(repeats):
            row["ours"].append(measure("mirage_secagg", cell.options))
            try:
                row["flower"].append(measure("flower_secagg", theirs, python, timeout=PATIENCE))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                row["failed"] = str(error).splitlines()[-1][:300]
                break
            print(f"{cell.words}: {row['flower'][-1]['seconds'] / row['ours'][-1]['seconds']:.1f}x", flush=True)
        rows.append(row)
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The page for people, from the record alone."""
    hardware = record["hardware"]
    return "\n".join(
        [
            "# Secure aggregation: what it costs\n",
            f"Made by `{record['command']}` at revision {record['revision']}, on {hardware['processor']}, "
            f"{hardware['cores']} cores, one of them at work.\n",
            "Against an honest-but-curious server, 32-bit words, each message written and parsed as for a network. "
            "Processor seconds are those of the mean client that stayed (encoding its vector included) and of the "
            "server; bytes are what such a client sends, and over the 4 bytes a coordinate that it would send without "
            "masks. The sparse graph is computed for a tenth colluding and a tenth lost. MiB are what the process, "
            "all clients and the server in it, took beyond the vectors themselves. Every sum was compared with the sum "
            "of the integers, bit for bit.\n",
            *_costs(record["cells"]),
            "",
            *_large(record["cells"]),
            "## Beside Flower's SecAgg+\n",
            "Processor seconds of all clients and the server together, in one process without a network; ratios paired "
            "within a repeat: median [lowest, highest].\n",
            *_beside(record["beside"]),
            "",
            "Flower sends 8 bytes a coordinate, and folds a mask's seed to 32 bits; Mirage's seeds have 256.",
            "",
        ]
    )


def _costs(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| cohort × length | graph | neighbours | lost | client, s | server, s | client sends | over plain | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        found, graph = row["found"], "sparse" if row["sparse"] else "complete"
        head = f"| {row['clients']} × {_short(row['length'])} | {graph} | "
        if found is None:
            lines.append(f"{head} | {row['lost']} | not measured: {row['gigabytes']:,.0f} GB of masks | | | | |")
            continue
        lines.append(
            f"{head}{found['neighbours']} | {row['lost']} | {found['client_seconds']:.4f} | "
            f"{found['server_seconds']:.3f} | {found['client_bytes'] / 1e3:,.0f} kB | "
            f"{found['client_bytes'] / 4 / row['length']:.3f} | {found['grew_mib']:,.0f} |"
        )
    return lines


def _large(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The goals that the table speaks of."""
    million = [row for row in rows if row["length"] == 10**6 and row["found"]]
    lines = []
    if million:
        most = max(row["found"]["client_bytes"] / 4 / row["length"] for row in million)
        verdict = "reached" if most <= GOAL_EXPANSION else "missed"
        lines.append(f"- Expansion over plain vectors at a length of 10⁶: at most {most:.3f}; goal "
                     f"{GOAL_EXPANSION:g}: {verdict}.")  # fmt: skip
    whole = [row for row in rows if (row["clients"], row["length"]) == COHORT and row["found"]]
    peaks = [row["found"]["grew_mib"] for row in whole]
    told = f"yes, with {max(peaks):,.0f} MiB beside the vectors" if peaks else "not measured"
    return [*lines, f"- A cohort of 1000 × 10⁶ within memory: {told}.\n"]


def _beside(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| cell | Mirage, s | Flower, s | times faster | goal | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        ours = spread([one["seconds"] for one in row["ours"]])
        if not row["flower"]:
            lines.append(f"| {row['cell']} | {ours['median']:.3f} | cannot run: {row['failed']} | | | |")
            continue
        theirs = spread([one["seconds"] for one in row["flower"]])
        each = [one["seconds"] / mine["seconds"] for one, mine in zip(row["flower"], row["ours"], strict=False)]
        ratio, aimed = spread(each), row["cell"].startswith("20 × 100k, complete") and "lost" not in row["cell"]
        verdict = ("reached" if median(each) >= GOAL_FASTER else "missed") if aimed else ""
        lines.append(
            f"| {row['cell']} | {ours['median']:.3f} | {theirs['median']:.3f} | {ratio['median']:.1f} "
            f"[{ratio['min']:.1f}, {ratio['max']:.1f}] | {f'{GOAL_FASTER:g}x' if aimed else '–'} | {verdict} |"
        )
    return lines


def _short(length: int) -> str:
    return f"{length // 10**6}M" if length >= 10**6 else f"{length // 1000}k"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.secagg", __doc__)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has flwr")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison with Flower")
    parser.add_argument("--budget", type=float, default=210.0, help="GB of masks that one cell may expand")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="two small cells")
    asked = parser.parse_args(arguments)
    try:
        check_number("--repeats", asked.repeats, minimum=1, integer=True)
        check_number("--budget", asked.budget, above=0)
        if not Path(asked.python).is_file():
            raise InputError(f"--python {asked.python} is not a file; name an interpreter that has flwr")
    except InputError as error:
        parser.error(str(error))
    beside = measure_beside(QUICK[:1] if asked.quick else BESIDE_FLOWER, asked.python, asked.repeats)
    rows = list(measure_cells(QUICK if asked.quick else CELLS, asked.budget))
    command = (
        f"python -m experiments.benchmarks.secagg --python ... --repeats {asked.repeats} --budget {asked.budget:g}"
    )
    record = {
        **circumstances(torch.device("cpu")),
        "command": command + " --quick" * asked.quick,
        "cells": rows,
        "beside": beside,
    }
    page.write(asked.out, "secagg", record)
    print(f"wrote {asked.out}/secagg.json and secagg.md")


if __name__ == "__main__":
    with one_line_errors():
        main()
