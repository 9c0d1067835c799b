"""How the cost of a round grows with clients, cohort, replicas and parameters.

    python -m experiments.benchmarks.growth --out FOLDER            (minutes; --quick takes about one)

Each point is a federation in a process of its own, on a CPU and one torch thread: random pictures, FedAvg, one round
that is not timed (it also prepares what a federation keeps), then `repeats` timed ones. `--point NAME:VALUE` plays one
and prints one line of JSON. Memory is the most that was resident less what was just before the federation ran. The
pictures were by then, and torch's kernels too, because a federation of one tiny client had run.

An exponent is the slope of log cost over log value, by least squares through the upper three points of a line: 0 for a
cost that stays, 1 for one in proportion. Beside it stands what to expect of the design.
"""

from __future__ import annotations

import argparse
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
from torch import nn

from defenses.base import Defense
from experiments.store import circumstances
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN, McMahanCNN
from fl_core.checkpoint import write_bytes, write_json, write_text
from fl_core.cohort import Tile
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice, check_number
from fl_core.federation import Federation, run
from fl_core.lanes import Backend
from fl_core.local import lane_bytes, memory_budget
from fl_core.optimizers import Tree
from fl_core.participation import Everyone, Participation, Uniform
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.views import Recorder

MIB = 2**20
UPPER = 3  # points that an exponent is fitted to
NEAR = 0.2  # from the expected exponent, for a fitted one to be as expected
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


LINES = (
    # The rows of all clients are sorted once by client, so memory has a part that grows with the pool.
    Line(name="clients", panel="clients", label="cohort of 10", values=(10, 100, 1000, 10_000), quick=(10, 100),
         seconds=0, memory=None),
    Line(name="cohort", panel="cohort", label="budget of 8 MiB", values=COHORTS, quick=(100, 300),
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
        return _small(line, rounds, clients=value, participation=Uniform(10))
    if line.panel == "cohort":
        return _small(line, rounds, clients=1000, participation=Uniform(value))
    if line.panel == "replicas":
        return _small(line, rounds, replicas=value)
    return _mcmahan(line, rounds, width=value, clients=4)


def rehearsal(line: Line) -> Federation:
    """One round of one client with the smallest model of the line's kind."""
    if line.panel == "parameters":
        return _mcmahan(line, 1, width=1, clients=1)
    return _small(line, 1, width=4, clients=1)


def _small(
    line: Line, rounds: int, *, width: int = 8, clients: int = 5, replicas: int = 1,
    participation: Participation | None = None,
) -> Federation:  # fmt: skip
    """32 pictures of 8x8 a client, in 2 steps of 16."""
    model = CNN((1, 8, 8), 10, width=width, halve="stride")
    return _federation(line, rounds, model, clients, 32, 16, replicas, participation or Everyone())


def _mcmahan(line: Line, rounds: int, *, width: int, clients: int) -> Federation:
    """50 pictures of 28x28 a client, in 5 steps of 10."""
    return _federation(line, rounds, McMahanCNN((1, 28, 28), 10, width), clients, 50, 10, 1, Everyone())


def _federation(
    line: Line, rounds: int, model: CNN | McMahanCNN, clients: int, held: int, batch: int, replicas: int,
    participation: Participation,
) -> Federation:  # fmt: skip
    draw = generator(0, "benchmark data")
    shape = (1, 8, 8) if isinstance(model, CNN) else (1, 28, 28)
    images = torch.rand(clients * held, *shape, generator=draw)
    labels = torch.randint(0, 10, (clients * held,), generator=draw)
    return Federation(
        model=model,
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
        lines = (line.split() for line in status.read_text().splitlines())
        found = {line[0]: int(line[1]) * 1024 for line in lines if line[0] in ("VmRSS:", "VmHWM:")}
        return found["VmRSS:"], found["VmHWM:"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def play(line: Line, value: int, repeats: int) -> dict[str, Any]:
    """One point, in this process.

    `seconds` [repeats] of the timed rounds and `warmup_seconds` of the one before; `memory` in bytes, and what
    `lane_bytes` expects of one lane, the `budget`, and the pictures' own `data_bytes`; `parameters` of the model;
    `lanes` and `tiles` a round.
    """
    run(rehearsal(line))
    federation = federation_of(line, value, 1 + repeats)
    recorder, laps = _Tiles(), []
    before, _ = resident_memory()
    began = time.perf_counter()
    run(federation, recorder, after_round=lambda _: laps.append(time.perf_counter()))
    _, most = resident_memory()
    seconds = [after - earlier for earlier, after in zip([began, *laps], laps, strict=False)]
    batch = federation.algorithm.sampler.batch(int(federation.sizes.max()))
    images = federation.data.images
    return {
        "name": line.name,
        "value": value,
        "seconds": seconds[1:],
        "warmup_seconds": seconds[0],
        "memory": most - before,
        "data_bytes": images.numel() * images.element_size(),
        "parameters": sum(parameter.numel() for parameter in federation.model.parameters()),
        "lanes": federation.cohort(0).clients.numel(),
        "tiles": max(recorder.tiles.values()),
        "lane_bytes": lane_bytes(federation.model, federation.data.shape, batch, stacked=line.backend != "loop"),
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure how the cost of a round grows.")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of every point")
    parser.add_argument("--point", metavar="NAME:VALUE", help="one point, as one line of JSON")
    asked = parser.parse_args(arguments)
    name, _, value = asked.point.partition(":")
    torch.set_num_threads(1)
    print(json.dumps(play(BY_NAME[name], int(value), asked.repeats)))


if __name__ == "__main__":
    main()
