"""How fast gradient matching goes, beside one restart at a time in plain PyTorch and beside the package `breaching`.

    python -m experiments.benchmarks.reconstruction --python .venv/breaching/bin/python

Measured: iterations a second, all restarts and victims together, an iteration being one gradient of the objective for
one guess. All match the gradient of the same model at the same pictures, by the same objective: that is checked first,
to its gradient, and a difference ends the program. Each may use the machine as it likes best: one process with one
torch thread, one with a thread a core, or a process a core with one thread each, which share the restarts. One restart
after another costs the same each time, so the other two are timed on one restart (one a process). Ours is timed as a
whole attack, recording and trials of both backends included. In each repeat all take turns; ratios are paired within
it, between the ways that are fastest by the median. `--python` is an interpreter that has `breaching`:

    uv venv .venv/breaching
    uv pip install --python .venv/breaching torch==2.13.0 torchvision==0.28.0 breaching==0.1.2
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from experiments.benchmarks import page
from experiments.benchmarks.lanes import spread
from experiments.benchmarks.peers.matching import Contender, Model, Request
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.errors import InputError, check_choice, check_number

TOLERANCE = 1e-4  # between objectives, and between their gradients, relative
GOALS = {"cpu": 3.0, "cuda": 15.0}
GOAL_RESTARTS = 16
NAMES = {"lenet": "LeNet, 32×32", "cnn": "CNN of width 8, 8×8", "convnet": "ConvNet of width 16, 32×32"}
TRIALS, HOPELESS = (3, 10), 1 / 3  # iterations; a way that is so much slower in the last trial is timed no further
OURS, PLAIN, BREACHING = "mirage_matching", "plain_matching", "breaching_matching"
WORDS = {OURS: "Mirage", PLAIN: "plain PyTorch", BREACHING: "breaching"}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a contender uses the machine."""

    processes: int = 1
    threads: int = 1

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.processes > 1:
            return f"{self.processes} processes"
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One problem at several numbers of (victims, restarts)."""

    request: Request
    sizes: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """What tables call it: model, distance, optimizer."""
        what = "cosine + TV" if self.request.measure == "cosine" else "squared"
        how = "signed Adam" if self.request.optimizer == "adam" else "L-BFGS"
        return f"{NAMES[self.request.model]}: {what}, {how}"


OPTIMIZERS: tuple[Literal["lbfgs", "adam"], ...] = ("lbfgs", "adam")
MODELS: tuple[Model, ...] = ("lenet", "cnn")
ALL = ((1, 1), (1, 4), (1, 16), (1, 32), (16, 1))
ROWS = (
    Row(request=Request(model="lenet", iterations=200), sizes=ALL),
    Row(request=Request(model="cnn", iterations=200), sizes=ALL),
    Row(request=Request(model="convnet", iterations=12), sizes=((1, 1), (1, 4), (1, 16))),
    *(
        Row(
            request=Request(model=model, measure="squared", optimizer=optimizer, iterations=100),
            sizes=((1, 1), (1, 16)),
        )
        for model in MODELS
        for optimizer in OPTIMIZERS
    ),
)
QUICK = (
    Row(request=Request(model="cnn", iterations=4), sizes=((1, 1), (1, 2))),
    Row(request=Request(model="cnn", measure="squared", optimizer="lbfgs", iterations=4), sizes=((1, 2),)),
)


def ways_of(cores: int, device: str) -> tuple[Way, ...]:
    """The ways to use so many cores: one thread, all as threads, all as processes."""
    if device != "cpu" or cores == 1:
        return (Way(),)
    return Way(), Way(threads=cores), Way(processes=cores)


def check_same(request: Request, contender: Contender, reference: Contender) -> float:
    """The relative difference of the objective's gradient at one guess; RuntimeError where it is not the same."""
    asked = replace(request, check=True, victims=1, restarts=1)
    answers = []
    for one in (contender, reference):
        one.ask(asked)
        answers.append(one.answer())
    mine, theirs = (torch.tensor(answer["gradient"], dtype=torch.float64) for answer in answers)
    values: list[float] = [answer["objective"] for answer in answers]
    apart: float = max(
        float((mine - theirs).norm() / theirs.norm()), abs(values[0] - values[1]) / max(abs(values[1]), 1e-12)
    )
    if not apart <= TOLERANCE:
        raise RuntimeError(
            f"{contender.peer} and {reference.peer} have different objectives on {request.model}, {request.measure}: "
            f"{values[0]:.6g} and {values[1]:.6g}, gradients {apart:.1e} apart"
        )
    return apart


def rate(contenders: Sequence[Contender], request: Request, way: Way) -> float | None:
    """Iterations a second; None where there are fewer restarts than processes."""
    shares = [request] * way.processes
    if contenders[0].peer == OURS and way.processes > 1:
        field = "restarts" if request.restarts > 1 else "victims"
        whole = getattr(request, field)
        if whole < way.processes:
            return None
        split = [whole // way.processes + (place < whole % way.processes) for place in range(way.processes)]
        shares = [replace(request, **{field: part}) for part in split]
    asked = list(zip(contenders, shares, strict=False))
    for contender, share in asked:
        contender.ask(replace(share, threads=way.threads))
    answers = [contender.answer() for contender, _ in asked]
    done: float = sum(answer["iterations"] for answer in answers)
    took: float = max(answer["seconds"] for answer in answers)
    return done / took


def measure(row: Row, teams: dict[str, list[Contender]], ways: Sequence[Way], repeats: int) -> dict[str, Any]:
    """Rates [repeats] by contender, size and way; a way that is hopeless in a short trial has none."""
    turns = []
    for peer, team in teams.items():
        for size in row.sizes if peer == OURS else ((1, 1),):
            request = replace(row.request, victims=size[0], restarts=size[1])
            turns += [(peer, team, request, way) for way in worthwhile(team, request, ways)]
    rates: dict[str, dict[str, dict[str, list[float]]]] = {}
    for _ in range(repeats):
        for peer, team, request, way in turns:
            found = rate(team, request, way)
            if found is not None:
                of_size = rates.setdefault(peer, {}).setdefault(f"{request.victims}x{request.restarts}", {})
                of_size.setdefault(way.name, []).append(found)
    return rates


def worthwhile(team: Sequence[Contender], request: Request, ways: Sequence[Way]) -> list[Way]:
    """The first way, and those that keep up in a trial; two threads on cores that others use can take fifty times."""
    for iterations in TRIALS:  # the first is cold
        short = replace(request, iterations=min(iterations, request.iterations))
        rates = [rate(team, short, way) or 0.0 for way in ways]
    return [way for way, found in zip(ways, rates, strict=True) if way == ways[0] or found >= HOPELESS * max(rates)]


def best(ways: dict[str, list[float]]) -> str:
    """The way with the highest median rate."""
    return max(ways, key=lambda way: median(ways[way]))


def ratios(rates: dict[str, Any], size: str, peer: str) -> list[float]:
    """Ours at `size` over a peer's, each its best way, repeat by repeat."""
    mine, theirs = rates[OURS][size], rates[peer]["1x1"]
    return [one / other for one, other in zip(mine[best(mine)], theirs[best(theirs)], strict=True)]


def measure_all(
    rows: Sequence[Row], python: str, repeats: int, device: str, ways: Sequence[Way]
) -> tuple[list[dict[str, Any]], str | None]:
    """A record for each row, and why `breaching` could not run, if so."""
    failed = None
    count = max(way.processes for way in ways)
    teams = {peer: [Contender(peer) for _ in range(count)] for peer in (OURS, PLAIN)}
    teams[BREACHING] = [Contender(BREACHING, python) for _ in range(count)]
    found = []
    try:
        for row in rows:
            request = replace(row.request, device=device)
            row = replace(row, request=request)
            same = {WORDS[OURS]: check_same(request, teams[OURS][0], teams[PLAIN][0])}
            if BREACHING in teams:
                try:  # its total variation has an edge of its own
                    bare = replace(request, total_variation=0.0)
                    same[WORDS[BREACHING]] = check_same(bare, teams[BREACHING][0], teams[PLAIN][0])
                except RuntimeError as error:
                    if "different objectives" in str(error):
                        raise
                    failed = str(error)
                    del teams[BREACHING]
            rates = measure(row, teams, ways, repeats)
            found.append(
                {
                    "name": row.name, "model": request.model, "measure": request.measure,
                    "optimizer": request.optimizer, "iterations": request.iterations, "apart": same, "rates": rates,
                }
            )  # fmt: skip
            said = ", ".join(f"{size} {median(ratios(rates, size, PLAIN)):.1f}x" for size in rates[OURS])
            print(f"{row.name}: {said}", flush=True)
    finally:
        for team in teams.values():
            for contender in team:
                contender.close()
    return found, failed


def _cell(values: Sequence[float], digits: int = 1) -> str:
    of = spread(values)
    return f"{of['median']:,.{digits}f} [{of['min']:,.{digits}f}, {of['max']:,.{digits}f}]"


def _size(size: str) -> str:
    victims, restarts = map(int, size.split("x"))
    pictures = "one picture" if victims == 1 else f"{victims} pictures"
    return f"{pictures}, {restarts} restart{'s' * (restarts > 1)}"


def _in_order(sizes: Iterable[str]) -> list[str]:
    return sorted(sizes, key=lambda size: [int(part) for part in size.split("x")])


def _rates_table(row: dict[str, Any]) -> list[str]:
    rates = row["rates"]
    ways = sorted({way for sizes in rates.values() for of_size in sizes.values() for way in of_size})
    peers = [peer for peer in (PLAIN, BREACHING) if peer in rates]
    over = [f"over {WORDS[peer]}" for peer in peers]
    lines = [f"| contender | {' | '.join([*ways, *over])} |", "| --- |" + " --- |" * (len(ways) + len(over))]
    for peer in peers:
        mine = rates[peer]["1x1"]
        cells = [_cell(mine[way], 0) if way in mine else "–" for way in ways]
        lines.append(f"| {WORDS[peer]}, one at a time | {' | '.join(cells)} |{' |' * len(over)}")
    for size in _in_order(rates[OURS]):
        mine = rates[OURS][size]
        cells = [_cell(mine[way], 0) if way in mine else "–" for way in ways]
        cells += [_cell(ratios(rates, size, peer)) for peer in peers]
        lines.append(f"| Mirage, {_size(size)} | {' | '.join(cells)} |")
    return lines


def lbfgs_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Milliseconds that an evaluation takes beyond one under Adam, on one thread."""
    by_kind = {(row["model"], row["optimizer"]): row["rates"] for row in rows if row["measure"] == "squared"}
    lines = []
    for model in dict.fromkeys(model for model, _ in by_kind):
        if {(model, "lbfgs"), (model, "adam")} - by_kind.keys():
            continue
        slow, fast = by_kind[model, "lbfgs"], by_kind[model, "adam"]
        for peer, size in [(PLAIN, "1x1"), *((OURS, size) for size in _in_order(slow[OURS]) if size in fast[OURS])]:
            whole, bare = ([1e3 / one for one in of[peer][size]["1 thread"]] for of in (slow, fast))
            extra = median(whole) - median(bare)
            who = "torch.optim.LBFGS" if peer == PLAIN else f"Mirage, {_size(size)}"
            lines.append(f"| {NAMES[model]} | {who} | {_cell(whole, 2)} | {_cell(bare, 2)} | {extra:.2f} |")
    if not lines:
        return []
    return [
        "## What L-BFGS costs\n",
        "Milliseconds an evaluation of the gradient of one guess, on one thread: the whole with L-BFGS, the same "
        "objective under Adam, and what is between the medians. Histories hold 20 pairs.\n",
        "| model | who | L-BFGS, ms | Adam, ms | between |",
        "| --- | --- | --- | --- | --- |",
        *lines,
        "",
    ]


def judge(rows: Sequence[dict[str, Any]], device: str) -> str:
    """What became of the goal, in words."""
    aimed, size = GOALS["cpu" if device == "cpu" else "cuda"], f"1x{GOAL_RESTARTS}"
    for row in rows:
        if (row["model"], row["measure"]) == ("lenet", "cosine") and size in row["rates"][OURS]:
            found = ratios(row["rates"], size, PLAIN)
            verdict = "reached" if median(found) >= aimed else "missed"
            return (
                f"{aimed:g}x over one restart at a time at {GOAL_RESTARTS} restarts on LeNet: {verdict}, {_cell(found)}"
            )
    return f"{aimed:g}x over one restart at a time at {GOAL_RESTARTS} restarts on LeNet: not measured"


def markdown(record: dict[str, Any]) -> str:
    """The page for people, from the record alone."""
    hardware, versions = record["hardware"], record["versions"]
    lines = [
        "# Gradient matching: iterations a second\n",
        f"Made by `{record['command']}` at revision {record['revision']}, on {hardware['processor']}, "
        f"{hardware['cores']} cores, {hardware.get('gpu', 'no GPU')}; torch {versions['torch']}, Python "
        f"{versions['python']}.\n",
        "Iterations a second of all restarts and victims together, an iteration being one gradient of the objective "
        f"for one guess; median [lowest, highest] of {record['repeats']} repeats, in which all take turns. Plain "
        "PyTorch and breaching go one restart at a time, in each process. Ratios are paired within a repeat, between "
        "the ways that are fastest for each. All have the same objective with the same gradient: see the largest "
        "relative difference from plain PyTorch's under each table (breaching's without total variation, whose edges "
        "it treats otherwise). Ours includes recording and the trials of both backends. A dash: fewer restarts than "
        "processes, or under a third of the fastest way in a short trial.\n",
    ]
    for row in record["rows"]:
        apart = ", ".join(f"{who} {value:.0e}" for who, value in row["apart"].items())
        lines += [
            f"## {row['name']}, {row['iterations']} iterations\n",
            *_rates_table(row),
            f"\nDifference: {apart}.\n",
        ]
    lines += lbfgs_table(record["rows"])
    lines += ["## Goals\n", f"- {judge(record['rows'], record['device'])}."]
    if record["device"] == "cpu":
        lines.append(f"- {GOALS['cuda']:g}x on a GPU: not measured, for want of one; `--device cuda` measures it.")
    if record["failed"]:
        lines.append(f"- breaching could not run: {record['failed']}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.reconstruction", __doc__)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has breaching")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats of every row")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--models", nargs="+", choices=list(NAMES), default=list(NAMES), help="measure these alone")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="a small model for a few iterations on one thread")
    asked = parser.parse_args(arguments)
    try:
        check_number("--repeats", asked.repeats, minimum=1, integer=True)
        check_choice("--device", asked.device, tuple(GOALS))
        if asked.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: this torch sees no GPU")
        if not Path(asked.python).is_file():
            raise InputError(f"--python {asked.python} is not a file; name an interpreter that has breaching")
    except InputError as error:
        parser.error(str(error))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    every, ways = (QUICK, (Way(),)) if asked.quick else (ROWS, ways_of(cores, asked.device))
    rows = [row for row in every if row.request.model in asked.models]
    measured, failed = measure_all(rows, asked.python, asked.repeats, asked.device, ways)
    command = f"python -m experiments.benchmarks.reconstruction --python ... --repeats {asked.repeats}"
    record = {
        **circumstances(torch.device(asked.device)),
        "command": command
        + f" --models {' '.join(asked.models)}" * (asked.models != list(NAMES))
        + f" --device {asked.device}" * (asked.device != "cpu")
        + " --quick" * asked.quick,
        "device": asked.device,
        "repeats": asked.repeats,
        "rows": measured,
        "failed": failed,
    }
    page.write(asked.out, "reconstruction", record)
    print(f"wrote {asked.out}/reconstruction.json and reconstruction.md")


if __name__ == "__main__":
    with one_line_errors():
        main()
