"""How the cost of a round grows with clients, cohort, replicas and parameters.

    python -m experiments.benchmarks.growth --out FOLDER            (minutes; --quick takes about one)

Each point is a federation in a process of its own, on a CPU and one torch thread: random pictures, FedAvg, WARM_UP
rounds that are not timed (they prepare what a federation keeps, and record its steps), then `repeats` timed ones.
`--point NAME:VALUE` plays one and prints one line of JSON. Memory is the most that was resident less what was just
before the federation ran. The pictures were by then, and torch's kernels too, because a federation of two clients and
a tiny model had run.

An exponent is the slope of log cost over log value, by least squares through the upper three points of a line: 0 for a
cost that stays, 1 for one in proportion. Beside it stands what to expect of the design.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import torch

from defenses.base import Defense
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN, McMahanCNN
from fl_core.cohort import Tile
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice, check_number
from fl_core.federation import Federation, run
from fl_core.lanes import Backend
from fl_core.memory import memory_budget
from fl_core.optimizers import Tree
from fl_core.participation import Everyone, Participation, Uniform
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.views import Recorder

MIB = 2**20
UPPER = 3  # points that an exponent is fitted to
WARM_UP = 5  # rounds of 2 steps: the ninth call of a layout is the last that is not yet replayed
NEAR = 0.2  # from the expected exponent, for a fitted one to be as expected
EVERYONE = Everyone()
COHORTS, REPLICAS, WIDTHS = (10, 30, 100, 300, 1000), (1, 4, 16, 64, 256), (2, 4, 8, 16, 32, 79)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points that differ in one number: `values`, or the `quick` ones.

    `panel` says which number: `clients`, `cohort`, `replicas`, or `parameters`, of which a value is the model's width.
    `seconds` and `memory` are the exponents to expect, None where there is none. `budget` is `Federation.memory`.
    """

    name: str
    panel: str
    label: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    seconds: float
    memory: float | None
    backend: Backend = "vmap"
    budget: int = memory_budget(torch.device("cpu"))


@dataclass(frozen=True)
class Panel:
    """The words of one panel of the figure."""

    title: str
    unit: str
    seconds: str = "seconds a round"
    memory: str = "peak memory"


PANELS = {
    "clients": Panel("Clients, 10 a round", "clients"),
    "cohort": Panel("Cohort, of 1,000 clients", "clients a round"),
    "replicas": Panel("Replicas, of 5 clients each", "replicas", seconds="seconds a replica and round"),
    "parameters": Panel("Parameters, 4 clients a round", "parameters", memory="peak memory a lane"),
}
LINES = (
    # A federation sorts the rows of its pool by client, so a part of its memory grows with the pool.
    Line(name="clients", panel="clients", label="cohort of 10", values=(10, 100, 1000, 10_000), quick=(10, 100),
         seconds=0, memory=None),
    Line(name="cohort", panel="cohort", label="8 MiB budget", values=COHORTS, quick=(100, 300),
         seconds=1, memory=0, budget=8 * MIB),
    Line(name="cohort-whole", panel="cohort", label="one tile", values=COHORTS, quick=(100, 300),
         seconds=1, memory=1, budget=1024 * MIB),
    Line(name="replicas-loop", panel="replicas", label="loop", values=REPLICAS, quick=(1, 4),
         seconds=0, memory=1, backend="loop"),
    Line(name="replicas-vmap", panel="replicas", label="vmap", values=REPLICAS, quick=(1, 4),
         seconds=0, memory=1),
    Line(name="parameters-loop", panel="parameters", label="loop", values=WIDTHS, quick=(2, 4),
         seconds=1, memory=1, backend="loop"),
    Line(name="parameters-vmap", panel="parameters", label="vmap", values=WIDTHS, quick=(2, 4),
         seconds=1, memory=1),
)  # fmt: skip
BY_NAME = {line.name: line for line in LINES}


def federation_of(line: Line, value: int, rounds: int) -> Federation:
    """The federation of one point."""
    if line.panel == "clients":
        return _federation(line, rounds, clients=value, participation=Uniform(10))
    if line.panel == "cohort":
        return _federation(line, rounds, clients=1000, participation=Uniform(value))
    if line.panel == "replicas":
        return _federation(line, rounds, clients=5, replicas=value)
    return _federation(line, rounds, clients=4, width=value)


def rehearsal(line: Line) -> Federation:
    """A round of two clients, so that stacked kernels are loaded, with a model that is about as small as can be."""
    return _federation(line, 1, clients=2, width=1 if line.panel == "parameters" else 4)


def _federation(
    line: Line, rounds: int, *, clients: int, width: int = 8, replicas: int = 1, participation: Participation = EVERYONE
) -> Federation:
    """A client holds 32 pictures of 8x8 and takes 2 steps of 16, or for `parameters` 50 of 28x28 and 5 steps of 10."""
    large = line.panel == "parameters"
    shape, held, batch = ((1, 28, 28), 50, 10) if large else ((1, 8, 8), 32, 16)
    draw = generator(0, "benchmark data")
    images = torch.rand(clients * held, *shape, generator=draw)
    labels = torch.randint(0, 10, (clients * held,), generator=draw)
    return Federation(
        model=McMahanCNN(shape, 10, width) if large else CNN(shape, 10, width=width, halve="stride"),
        data=ImageSet(images, labels, tuple("0123456789")),
        owners=torch.arange(clients).repeat_interleave(held),
        members=torch.ones(replicas, clients * held, dtype=torch.bool),
        sizes=torch.full((clients,), held),
        algorithm=FedAvg(sampler=Shuffled(local_epochs=1, batch_size=batch), lr=0.01),
        defense=Defense(),
        rounds=rounds,
        run=0,
        replica_ids=range(replicas),
        participation=participation,
        backend=line.backend,
        memory=line.budget,
    )


@dataclass
class _Tiles(Recorder):
    """Keeps no tensor, and counts the tiles of every round."""

    tiles: dict[int, int] = field(default_factory=dict)

    def received(self, round: int, tile: Tile, updates: Tree) -> None:
        self.tiles[round] = self.tiles.get(round, 0) + 1


def resident_memory() -> tuple[int, int]:
    """How much of this process is resident now, and the most that ever was, in bytes.

    Linux says both. A new process inherits the `ru_maxrss` of the one that starts it there, so that number is asked
    only elsewhere, for want of another, and stands for both.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text(encoding="utf-8").splitlines())
        found = {line[0]: int(line[1]) * 1024 for line in lines if line[0] in ("VmRSS:", "VmHWM:")}
        return found["VmRSS:"], found["VmHWM:"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def play(line: Line, value: int, repeats: int) -> dict[str, Any]:
    """One point, in this process.

    `seconds` [repeats] of the timed rounds and `warmup_seconds` of the first; `memory` in bytes, and what
    `Federation.footprint` expects of one lane, the `budget`, and the pictures' own `data_bytes`; `parameters` of the
    model; `lanes` and `tiles` a round.
    """
    run(rehearsal(line))
    federation = federation_of(line, value, WARM_UP + repeats)
    recorder, laps = _Tiles(), []
    before, _ = resident_memory()
    began = time.perf_counter()
    run(federation, recorder, after_round=lambda _: laps.append(time.perf_counter()))
    _, most = resident_memory()
    seconds = [after - earlier for earlier, after in zip([began, *laps], laps, strict=False)]
    images, lanes = federation.data.images, federation.cohort(0).clients.numel()
    estimated = federation.footprint.lane + federation.footprint.shared // lanes
    return {
        "name": line.name,
        "value": value,
        "seconds": seconds[WARM_UP:],
        "warmup_seconds": seconds[0],
        "memory": most - before,
        "data_bytes": images.numel() * images.element_size(),
        "parameters": sum(parameter.numel() for parameter in federation.model.parameters()),
        "lanes": lanes,
        "tiles": max(recorder.tiles.values()),
        "lane_bytes": estimated,
        "budget": line.budget,
    }


def measure(line: Line, value: int, repeats: int) -> dict[str, Any]:
    """The same in a process of its own; RuntimeError with the end of what it said where it fails."""
    options = ["--point", f"{line.name}:{value}", "--repeats", str(repeats)]
    command = [sys.executable, "-m", "experiments.benchmarks.growth", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def x_of(point: dict[str, Any]) -> int:
    """Where a point stands: at its value, and for `parameters` at their number and not at the width."""
    return int(point["parameters" if BY_NAME[point["name"]].panel == "parameters" else "value"])


def seconds_of(point: dict[str, Any]) -> list[float]:
    """Its timed rounds, for `replicas` by replica."""
    share = point["value"] if BY_NAME[point["name"]].panel == "replicas" else 1
    return [seconds / share for seconds in point["seconds"]]


def memory_of(point: dict[str, Any]) -> float:
    """Its peak memory in MiB, for `parameters` by lane."""
    share = point["lanes"] if BY_NAME[point["name"]].panel == "parameters" else 1
    return float(point["memory"] / MIB / share)


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The slope of log y over log x through the last UPPER points; None where a cost was too small to be seen."""
    if len(x) < 2 or min(y[-UPPER:]) <= 0:
        return None
    return linear_regression([math.log(one) for one in x[-UPPER:]], [math.log(one) for one in y[-UPPER:]]).slope


def assess(line: Line, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A line of the record: its points, their exponents, and a verdict in words."""
    x, seconds = [x_of(point) for point in points], [median(seconds_of(point)) for point in points]
    memory, words = [memory_of(point) for point in points], PANELS[line.panel]
    found = {"seconds": exponent(x, seconds), "memory": exponent(x, memory)}
    enough = len(points) >= UPPER
    expected = {"seconds": line.seconds if enough else None, "memory": line.memory if enough else None}
    verdict = (
        f"from {x[0]:,} to {x[-1]:,} {words.unit}, {words.seconds} from {seconds[0]:.3g} to {seconds[-1]:.3g}, "
        f"{_judged(found['seconds'], expected['seconds'])}; "
        f"{words.memory} from {memory[0]:.3g} to {memory[-1]:.3g} MiB, {_judged(found['memory'], expected['memory'])}"
    )
    last = points[-1]
    if last["tiles"] > 1:
        verdict += f"; at last {last['tiles']} tiles, and {last['memory'] / last['budget']:.1f} times the budget"
    facts = {"name": line.name, "panel": line.panel, "label": line.label, "backend": line.backend}
    return {**facts, "points": list(points), "exponents": found, "expected": expected, "verdict": verdict}


def _judged(found: float | None, expected: float | None) -> str:
    if found is None:
        return "no exponent, since it is too small to be seen"
    if expected is None:
        return f"exponent {found:.2f}"
    near = abs(found - expected) <= NEAR
    word = "as expected" if near else f"{'steeper' if found > expected else 'less steep'} than expected"
    return f"exponent {found:.2f} where {expected:g} is expected: {word}"


def compare(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Two lines of one panel at their last point, in words."""
    ours, theirs = first["points"][-1], second["points"][-1]
    seconds = median(seconds_of(theirs)) / median(seconds_of(ours))
    text = f"{second['label']} against {first['label']}, at {x_of(ours):,}: {seconds:.2f} times the seconds"
    if min(ours["memory"], theirs["memory"]) <= 0:
        return text
    return f"{text}, {theirs['memory'] / ours['memory']:.1f} times the memory"


def measure_growth(repeats: int, quick: bool) -> dict[str, Any]:
    """Every line, point after point; `repeats` timed rounds each."""
    check_number("--repeats", repeats, minimum=1, integer=True)
    lines = []
    for line in LINES:
        points = [measure(line, value, repeats) for value in (line.quick if quick else line.values)]
        lines.append(assess(line, points))
        print(f"{line.name}: {lines[-1]['verdict']}", flush=True)
    return {"repeats": repeats, "quick": quick, "threads": 1, "lines": lines}


def growth_markdown(record: dict[str, Any]) -> str:
    """The section for people, from the record alone."""
    text = [
        "## How the cost of a round grows\n",
        f"FedAvg on random pictures, one torch thread, a process a point; median [lowest, highest] of "
        f"{record['repeats']} rounds after {WARM_UP} that are not timed. Clients, cohort and replicas: a CNN of 1,898 "
        "parameters on 8×8, 2 steps of 16 a client; parameters: McMahan's CNN on 28×28, 5 steps of 10. Memory is the "
        "peak of a process less what it held just before, the pictures among it. A lane's is that of the "
        "tile it trains in, beside what `fl_core.memory.footprint` estimates; with the clients grows an index of the "
        "pool, too. `one tile` has a budget that holds every lane at once. Exponents are slopes of log cost "
        f"through the upper {UPPER} points of a line, and as expected within {NEAR:g}.\n",
    ]
    if record["quick"]:
        text.append("These are the few small points of `--quick`: too few to judge how anything grows.\n")
    for panel, words in PANELS.items():
        lines = [line for line in record["lines"] if line["panel"] == panel]
        text += [
            f"### {words.title}\n",
            f"| line | {words.unit} | {words.seconds} | memory, MiB | lanes | tiles | KiB a lane | estimated |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(f"| {line['label']} | {_cells(point)} |" for line in lines for point in line["points"]),
            "",
            *(f"- {line['label']}: {line['verdict']}." for line in lines),
        ]
        if len(lines) == 2:
            text.append(f"- {compare(*lines)}.")
        text.append("")
    return "\n".join(text)


def _cells(point: dict[str, Any]) -> str:
    seconds, lane = seconds_of(point), point["memory"] * point["tiles"] / point["lanes"]
    return " | ".join(
        (
            f"{x_of(point):,}",
            f"{median(seconds):.3g} [{min(seconds):.3g}, {max(seconds):.3g}]",
            f"{point['memory'] / MIB:.1f}",
            f"{point['lanes']:,}",
            f"{point['tiles']}",
            f"{lane / 1024:,.0f}",
            f"{point['lane_bytes'] / 1024:,.0f}",
        )
    )


def markdown(record: dict[str, Any]) -> str:
    """The page of a record that holds growth alone."""
    hardware = record["hardware"]
    made = (
        f"Made by `{record['command']}` at revision {record['revision']}, on {hardware['processor']}, "
        f"{hardware['cores']} cores; torch {record['versions']['torch']}.\n\n"
    )
    return made + growth_markdown(record)


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """The figure, by its name."""
    from experiments.benchmarks.growth_figure import draw

    return {"growth": draw(record)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.growth", __doc__)
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of every point")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="two small points a line")
    parser.add_argument("--point", metavar="NAME:VALUE", help=f"play one alone; NAME is one of {', '.join(BY_NAME)}")
    asked = parser.parse_args(arguments)
    try:
        check_number("--repeats", asked.repeats, minimum=1, integer=True)
        if asked.point is not None:
            line, value = _point(asked.point)
            torch.set_num_threads(1)
            print(json.dumps(play(line, value, asked.repeats)))
            return
    except InputError as error:
        parser.error(str(error))
    record = {
        **circumstances(torch.device("cpu")),
        "command": f"python -m experiments.benchmarks.growth --repeats {asked.repeats}{' --quick' * asked.quick}",
        **measure_growth(asked.repeats, asked.quick),
    }
    # Here and not above, since the process of a point would wait for what it never draws.
    from experiments.benchmarks import page

    page.write(asked.out, "growth", record)
    print(f"wrote growth.json, .md, .png, .pdf and .csv in {asked.out}")


def _point(asked: str) -> tuple[Line, int]:
    name, _, value = asked.partition(":")
    check_choice("the NAME of --point", name, BY_NAME)
    if not (value.isdecimal() and int(value)):
        raise InputError(f"--point is {asked!r}; VALUE must be a whole number at least 1, as in {name}:10")
    return BY_NAME[name], int(value)


if __name__ == "__main__":
    with one_line_errors():
        main()
