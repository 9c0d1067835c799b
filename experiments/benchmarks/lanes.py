"""How fast the lane engine trains many small models, against the ordinary way: one model after another.

    python -m experiments.benchmarks.lanes            (a quarter of an hour; --quick takes seconds)

Measured: the seconds of one round's local training on a CPU, in one process on one torch thread. Every
contender trains the same lanes from the same weights on the same batches, drawn beforehand:

- plain: one `nn.Module` and `torch.optim.SGD`, lane after lane; for DP-SGD, Opacus;
- loop, vmap, auto: `fl_core.lanes.descend`; auto forgets its choice before every repeat, so its trials count.

In each repeat the contenders take turns, so that a slow moment hits them alike. Numbers to quote are ratios
paired within a repeat: plain's seconds over ours, above 1 where ours is faster, as median [lowest, highest].
Before them untimed passes compare the final parameters with plain's, in double precision: in single precision a
rounding may flip the winner of a max-pool, and two right answers part (that difference is recorded as well). For
DP-SGD they have no noise, since Opacus draws its own. Imports and first calls fall into these passes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor

from defenses.clipping import Clipping
from defenses.rules import ClipAndNoise
from experiments.benchmarks import page
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core import lanes
from fl_core.architectures import CNN
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD, Tree
from fl_core.recorded import Recordings
from fl_core.sampling import ExampleFeed, Poisson, Sampler, Shuffled
from fl_core.seeds import generator

Contender = Literal["plain", "loop", "vmap", "auto"]
ENGINE: tuple[Contender, ...] = ("loop", "vmap", "auto")
CONTENDERS: tuple[Contender, ...] = ("plain", *ENGINE)
LR, CLIP_NORM, NOISE_MULTIPLIER = 0.1, 1.0, 1.0
TOLERANCE = 1e-4  # between final parameters, in double precision


@dataclass(frozen=True, kw_only=True)
class Row:
    """One problem: `lanes` CNNs of `width` channels, each taking `steps` of `batch` of its own examples."""

    shape: tuple[int, int, int]
    lanes: int
    batch: int
    width: int
    halve: Literal["stride", "pool"] = "pool"
    private: bool = False
    steps: int = 40
    local_epochs: int = 4

    @property
    def name(self) -> str:
        """What tables call it: pictures, lanes and batch, model."""
        channels, height, wide = self.shape
        images = f"{height}×{wide} {'RGB' if channels == 3 else 'grey'}"
        model = f"width {self.width}, {self.halve}, {'DP-SGD' if self.private else 'SGD'}"
        return f"{images}, {self.lanes} lanes × batch {self.batch}, {model}"


GREY8, GREY28, RGB32 = (1, 8, 8), (1, 28, 28), (3, 32, 32)
ROWS = (
    *(
        Row(shape=GREY8, lanes=count, batch=16, width=width, halve=halve)
        for halve in ("stride", "pool")
        for width in (8, 16)
        for count in (32, 120)
    ),
    Row(shape=GREY28, lanes=10, batch=10, width=16, steps=30, local_epochs=5),
    Row(shape=RGB32, lanes=8, batch=32, width=16, steps=30, local_epochs=5),
    *(Row(shape=GREY8, lanes=count, batch=16, width=8, halve="stride", private=True) for count in (32, 60)),
)
QUICK = (
    Row(shape=GREY8, lanes=32, batch=16, width=8, halve="stride", steps=8),
    Row(shape=GREY28, lanes=2, batch=10, width=8, steps=8),
    Row(shape=GREY8, lanes=32, batch=16, width=8, halve="stride", private=True, steps=6, local_epochs=2),
)


Goal = tuple[Contender, float, str, int, set[tuple[int, int, int]]]
GOALS: tuple[Goal, ...] = (  # who, at least how fast, on which rows: in words, from how many lanes on, which images
    ("vmap", 1.4, "32 or more lanes of 8×8", 32, {GREY8}),
    ("auto", 0.95, "every row", 1, {GREY8, GREY28, RGB32}),
)


@dataclass(frozen=True)
class Task:
    """A row made concrete: its examples, its batches `plan[lane][step]` and each lane's first parameters.

    `beside` are the same images with their channels last, and `recordings` go on from call to call; a federation's jobs
    have both.
    """

    row: Row
    model: CNN
    images: Tensor
    labels: Tensor
    plan: list[list[Tensor]]
    start: Tree
    noise_multiplier: float
    beside: Tensor
    recordings: Recordings = field(default_factory=Recordings)


def task_of(row: Row, kind: torch.dtype = torch.float32, noise_multiplier: float = 0.0) -> Task:
    """Random pictures and first weights of each lane's own; always the same for the same row."""
    each = row.batch * row.steps // row.local_epochs
    draw = generator(0, "benchmark data")
    images = torch.rand(row.lanes * each, *row.shape, generator=draw)
    labels = torch.randint(0, 10, (row.lanes * each,), generator=draw)
    drawn = Poisson if row.private else Shuffled
    sampler: Sampler = drawn(local_epochs=row.local_epochs, batch_size=row.batch)
    plan = [
        sampler.draw(mine, each, generator(0, "benchmark batches", client=lane))
        for lane, mine in enumerate(torch.arange(row.lanes * each).view(row.lanes, each))
    ]
    model = CNN(row.shape, 10, width=row.width, halve=row.halve)
    first = [initial_parameters(model, lane) for lane in range(row.lanes)]
    start = {name: torch.stack([one[name] for one in first]).to(kind) for name in first[0]}
    images = images.to(kind)
    beside = images.contiguous(memory_format=torch.channels_last)
    return Task(row, model.to(kind), images, labels, plan, start, noise_multiplier, beside)


def train_plain(task: Task) -> Tree:
    """One lane after another, as one writes it without an engine; returns final parameters [lanes, ...]."""
    module = GradSampleModule(task.model) if task.row.private else task.model
    named = dict(task.model.named_parameters())
    trained: list[Tree] = []
    for lane, batches in enumerate(task.plan):
        task.model.load_state_dict({name: value[lane] for name, value in task.start.items()})
        optimizer = torch.optim.SGD(module.parameters(), lr=LR)
        if task.row.private:
            clip = {"noise_multiplier": task.noise_multiplier, "max_grad_norm": CLIP_NORM}
            optimizer = DPOptimizer(optimizer, **clip, expected_batch_size=task.row.batch)
        for rows in batches:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(F.cross_entropy(module(task.images[rows]), task.labels[rows]))
            optimizer.step()
        trained.append({name: parameter.detach().clone() for name, parameter in named.items()})
    if isinstance(module, GradSampleModule):
        module.to_standard_module()
    return {name: torch.stack([one[name] for one in trained]) for name in named}


def train(task: Task, contender: Contender) -> Tree:
    """The same by any contender; `auto` starts without any memory of what was fastest."""
    if contender == "plain":
        return train_plain(task)
    lanes._fastest.clear()
    rule = ClipAndNoise(Clipping(norm=CLIP_NORM), task.noise_multiplier, task.row.batch) if task.row.private else None
    return lanes.descend(
        task.start,
        ClassificationLosses(task.model),
        ExampleFeed(task.beside, task.labels, task.plan),
        SGD(lr=LR),
        rule=rule,
        generators=[generator(0, "benchmark noise", client=lane) for lane in range(task.row.lanes)],
        backend=contender,
        recordings=task.recordings,
        channels_last=True,
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and both ends."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def differences(task: Task) -> dict[Contender, float]:
    """The largest absolute difference between each backend's final parameters and plain's."""
    expected = train(task, "plain")
    found = {backend: train(task, backend) for backend in ENGINE}
    return {
        backend: max(float((tree[name] - expected[name]).abs().max()) for name in expected)
        for backend, tree in found.items()
    }


def measure(row: Row, repeats: int) -> dict[str, Any]:
    """Seconds, paired ratios and differences of one row."""
    task = task_of(row, noise_multiplier=NOISE_MULTIPLIER)
    exact, single = (differences(task_of(row, kind)) for kind in (torch.float64, torch.float32))
    seconds: dict[Contender, list[float]] = {contender: [] for contender in CONTENDERS}
    choices: list[str] = []
    for repeat in range(repeats):
        turn = repeat % len(CONTENDERS)
        for contender in CONTENDERS[turn:] + CONTENDERS[:turn]:
            began = time.perf_counter()
            train(task, contender)
            seconds[contender].append(time.perf_counter() - began)
            if contender == "auto":
                choices.append(next(iter(lanes._fastest.values()), "no trial"))
    pairs = {backend: zip(seconds["plain"], seconds[backend], strict=True) for backend in ENGINE}
    ratios = {backend: [plain / ours for plain, ours in both] for backend, both in pairs.items()}
    return {
        "name": row.name,
        **asdict(row),
        "parameters": sum(value[0].numel() for value in task.start.values()),
        "seconds": {contender: spread(values) for contender, values in seconds.items()},
        "ratios": {backend: {**spread(values), "each": values} for backend, values in ratios.items()},
        "differences": exact,
        "differences_float32": single,
        "same": max(exact.values()) <= TOLERANCE,
        "auto_chose": choices,
    }


def judge(goal: Goal, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the median ratio reaches the goal on each row that it is about."""
    who, least, words, lanes_from, shapes = goal
    about = [row for row in rows if row["lanes"] >= lanes_from and row["shape"] in shapes]
    found = {row["name"]: row["ratios"][who]["median"] for row in about}
    missed = [name for name, ratio in found.items() if ratio < least]
    facts = {"rows": len(found), "lowest": min(found.values()), "highest": max(found.values()), "missed": missed}
    return {"goal": f"{who} at least {least}x plain, {words}", **facts, "reached": not missed}


def markdown(record: dict[str, Any]) -> str:
    """The table for people, from the JSON record alone."""
    hardware, versions = record["hardware"], record["versions"]
    lines = [
        "# The lane engine against one model after another\n",
        f"Made by `{record['command']}` at revision {record['revision']}, on {hardware['processor']}, "
        f"{hardware['cores']} cores, {record['threads']} torch thread; torch {versions['torch']}, "
        f"Opacus {versions['opacus']}.\n",
        "A ratio is plain's seconds over ours for one round's local training: above 1 ours is faster; median "
        f"[lowest, highest] of {record['repeats']} repeats, paired within each. Plain trains one model after "
        "another with `torch.optim.SGD`, or Opacus for DP-SGD, on the same batches. `auto` includes the steps "
        "on which it tries both. The differences are the largest between our final parameters and plain's, in "
        "double and in single precision, where rounding may flip a max-pool (for DP-SGD without noise).\n",
        "| problem | steps | plain, s | loop | vmap | auto | auto chose | float64 | float32 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        cells = [row["name"], str(row["steps"]), f"{row['seconds']['plain']['median']:.2f}"]
        for backend in ENGINE:
            ratio = row["ratios"][backend]
            cells.append(f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]")
        cells.append(", ".join(sorted(set(row["auto_chose"]))))
        cells += [f"{max(row[key].values()):.0e}" for key in ("differences", "differences_float32")]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for goal in record["goals"]:
        outcome = "reached" if goal["reached"] else f"missed on {'; '.join(goal['missed'])}"
        span = f"medians {goal['lowest']:.2f} to {goal['highest']:.2f} on {goal['rows']} rows"
        lines.append(f"- {goal['goal']}: {outcome} ({span}).")
    differ = "; ".join(row["name"] for row in record["rows"] if not row["same"])
    verdict = f"NO: {differ}" if differ else "yes, on every row"
    lines.append(f"- The same parameters as plain to {TOLERANCE:g}, in double precision: {verdict}.")
    return "\n".join(lines) + "\n"


def measure_all(rows: Sequence[Row], repeats: int) -> list[dict[str, Any]]:
    """Every row on one torch thread; leaves torch's threads and `auto`'s memory as they were."""
    threads, known = torch.get_num_threads(), dict(lanes._fastest)
    torch.set_num_threads(1)
    results = []
    try:
        for row in rows:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Full backward hook")  # Opacus's hooks, at every step
                results.append(measure(row, repeats))
            medians = ", ".join(f"{one} {results[-1]['ratios'][one]['median']:.2f}x" for one in ENGINE)
            print(f"{row.name}: {medians}", flush=True)
    finally:
        torch.set_num_threads(threads)
        lanes._fastest.clear()
        lanes._fastest.update(known)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.lanes", __doc__)
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats of every row")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="three small rows, a few seconds")
    asked = parser.parse_args(arguments)
    if asked.repeats < 1:
        parser.error("--repeats must be at least 1")
    rows = measure_all(QUICK if asked.quick else ROWS, asked.repeats)
    record = {
        **circumstances(torch.device("cpu")),
        "command": f"python -m experiments.benchmarks.lanes --repeats {asked.repeats}{' --quick' * asked.quick}",
        "threads": 1,
        "repeats": asked.repeats,
        "rows": rows,
        "goals": [judge(goal, rows) for goal in GOALS],
    }
    page.write(asked.out, "lanes", record)
    print(f"wrote {asked.out / 'lanes.json'} and {asked.out / 'lanes.md'}")


if __name__ == "__main__":
    with one_line_errors():
        main()
