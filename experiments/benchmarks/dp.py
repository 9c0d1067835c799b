"""What a step of DP-SGD costs over a plain one, and against Opacus's own on the same model and batch.

    python -m experiments.benchmarks.dp            (some ten minutes; --quick takes seconds)

A step is forward, backward, clipping, noise and SGD on one batch that lies in memory, on one torch thread of a CPU, in
one process. Contenders of one model:

- plain: `fl_core.lanes.descend` without a rule, by `loop`, or by `vmap` for many lanes;
- loop, vmap: the same with `defenses.dp_sgd.DPSGD.example_rule`;
- opacus hooks, functorch, ew, ghost: its grad-sample modes, with its own optimiser, clip and noise.

Rows of many lanes time one step of all of them: Opacus goes one model after another. In each repeat the contenders take
turns, so that a slow moment hits them alike, and the numbers to quote are ratios paired within a repeat. First calls
fall before them, so that `descend` replays what it recorded. Each row's check feeds the same noise to both and compares
the parameters after two steps in double precision. Nothing is measured on a GPU.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import opacus.optimizers.optimizer as opacus_optimizer
import torch
import torch.nn.functional as F
from opacus.grad_sample import wrap_model
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from defenses.dp_sgd import DPSGD
from experiments.benchmarks import page
from experiments.benchmarks.lanes import spread
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.architectures import CNN, McMahanCNN
from fl_core.lanes import Backend, descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD, Tree
from fl_core.recorded import Recordings
from fl_core.residual import ResNet
from fl_core.sampling import ExampleFeed
from fl_core.seeds import generator
from fl_core.tutorial import TutorialCNN

LR, CLIP_NORM, NOISE_MULTIPLIER = 0.05, 1.0, 1.0
TOLERANCE = 1e-5  # between parameters after two steps; Opacus adds 1e-6 to each norm
OURS: dict[str, Backend] = {"loop": "loop", "vmap": "vmap"}
MODES = ("hooks", "functorch", "ew", "ghost")
FAST_MODES = ("hooks", "ew")  # the two that rows of many lanes wait for
OPACUS = tuple(f"opacus {mode}" for mode in MODES)
GOAL_ALONE, GOAL_LANES = 1.0, 5.0
GREY8 = (1, 8, 8)


@dataclass(frozen=True, kw_only=True)
class Row:
    """`lanes` models of one kind, each with its own batch of random pictures."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch: int
    lanes: int = 1

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.name}, batch {self.batch}" + (f", {self.lanes} lanes" if self.lanes > 1 else "")


def _tiny() -> nn.Module:
    return CNN(GREY8, 10, width=8, halve="stride")


def _mcmahan() -> nn.Module:
    return McMahanCNN((1, 28, 28), 10, width=4)


ROWS = (
    Row(name="8×8, CNN width 8", make=_tiny, shape=GREY8, batch=16),
    Row(name="28×28, McMahan's CNN of 27k parameters", make=_mcmahan, shape=(1, 28, 28), batch=10),
    Row(name="28×28, McMahan's CNN of 27k parameters", make=_mcmahan, shape=(1, 28, 28), batch=64),
    Row(
        name="28×28, McMahan's CNN of 1.7M parameters",
        make=lambda: McMahanCNN((1, 28, 28), 10),
        shape=(1, 28, 28),
        batch=64,
    ),
    Row(name="28×28, Opacus's tutorial CNN", make=lambda: TutorialCNN((1, 28, 28), 10), shape=(1, 28, 28), batch=64),
    Row(name="32×32, CNN width 16", make=lambda: CNN((3, 32, 32), 10, width=16), shape=(3, 32, 32), batch=32),
    Row(name="32×32, ResNet-8 GroupNorm", make=lambda: ResNet((3, 32, 32), 10, depth=8), shape=(3, 32, 32), batch=32),
    Row(name="8×8, CNN width 8", make=_tiny, shape=GREY8, batch=16, lanes=16),
    Row(name="8×8, CNN width 8", make=_tiny, shape=GREY8, batch=16, lanes=64),
    Row(name="28×28, McMahan's CNN of 27k parameters", make=_mcmahan, shape=(1, 28, 28), batch=10, lanes=16),
)
QUICK = (ROWS[0], Row(name="8×8, CNN width 8", make=_tiny, shape=GREY8, batch=4, lanes=16))


@dataclass
class Task:
    """A row made concrete: images [lanes, batch, ...], labels and each lane's first parameters [lanes, ...]."""

    row: Row
    kind: torch.dtype = torch.float32
    noise_multiplier: float = NOISE_MULTIPLIER
    recordings: dict[str, Recordings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        row, draw = self.row, generator(0, "benchmark data")
        self.model = row.make().to(self.kind)
        self.images = torch.rand(row.lanes, row.batch, *row.shape, generator=draw).to(self.kind)
        self.labels = torch.randint(0, 10, (row.lanes, row.batch), generator=draw)
        first = [initial_parameters(self.model, lane) for lane in range(row.lanes)]
        self.start: Tree = {name: torch.stack([one[name] for one in first]) for name in first[0]}

    def generators(self) -> list[torch.Generator]:
        """Fresh generators for noise, one a lane, the same at every call."""
        return [generator(0, "benchmark noise", client=lane) for lane in range(self.row.lanes)]


def descender(task: Task, backend: Backend, private: bool) -> Callable[[int], Tree]:
    """Takes so many steps of all lanes, from their first parameters, and returns them [lanes, ...]."""
    row = task.row
    defense = DPSGD(epsilon=1.0, delta=1e-5, clip_norm=CLIP_NORM, noise_multiplier=task.noise_multiplier)
    losses, noise = ClassificationLosses(task.model), task.generators()
    recordings = task.recordings.setdefault(f"{backend}, {private}", Recordings())
    # A trainer keeps its pictures' channels last (see `fl_core.local`), so these are.
    images = task.images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    rows = torch.arange(len(images)).view(row.lanes, row.batch)

    def steps(count: int) -> Tree:
        return descend(
            task.start,
            losses,
            ExampleFeed(images, task.labels.flatten(), [[mine] * count for mine in rows]),
            SGD(lr=LR),
            rule=defense.example_rule(row.batch) if private else None,
            generators=noise,
            backend=backend,
            recordings=recordings,
            channels_last=True,
        )

    return steps


def opacus_descender(task: Task, mode: str) -> Callable[[int], Tree]:
    """The same by Opacus in a grad-sample mode, one model after another; raises what Opacus raises for a model."""
    row = task.row
    more = {"max_grad_norm": CLIP_NORM} if mode == "ghost" else {}
    module = wrap_model(task.row.make().to(task.kind), mode, batch_first=True, loss_reduction="mean", **more)
    inner: nn.Module = module._module
    named = dict(inner.named_parameters())
    make = DPOptimizerFastGradientClipping if mode == "ghost" else DPOptimizer

    def steps(count: int) -> Tree:
        trained: list[Tree] = []
        for lane in range(row.lanes):
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(task.start[name][lane])
            optimizer = make(
                torch.optim.SGD(inner.parameters(), lr=LR),
                noise_multiplier=task.noise_multiplier,
                max_grad_norm=CLIP_NORM,
                expected_batch_size=row.batch,
            )
            loss: Any = F.cross_entropy
            if mode == "ghost":
                loss = DPLossFastGradientClipping(module, optimizer, nn.CrossEntropyLoss(), "mean")
            for _ in range(count):
                optimizer.zero_grad(set_to_none=True)
                loss(module(task.images[lane]), task.labels[lane]).backward()
                optimizer.step()
            trained.append({name: parameter.detach().clone() for name, parameter in named.items()})
        return {name: torch.stack([one[name] for one in trained]) for name in named}

    return steps


@contextmanager
def same_noise(task: Task) -> Iterator[None]:
    """Opacus draws what our rule draws: a lane's noise for all its parameters at once, lane after lane."""
    sizes = [value[0].numel() for value in task.start.values()]
    draws = task.generators()
    left: list[Tensor] = []
    drawn = 0

    def serve(std: float, reference: Tensor, **_: object) -> Tensor:
        nonlocal drawn
        if not left:
            lane = drawn // _CHECKED_STEPS
            left.extend(torch.randn(sum(sizes), generator=draws[lane], dtype=task.kind).split(sizes))
            drawn += 1
        return std * left.pop(0).view(reference.shape)

    module = "opacus.optimizers.optimizer_fast_gradient_clipping._generate_noise"
    with patch.object(opacus_optimizer, "_generate_noise", serve), patch(module, serve):
        yield


_CHECKED_STEPS = 2


def differences(row: Row) -> dict[str, float]:
    """The largest difference between our parameters and those of Opacus's hooks under the same noise, in float64."""
    task = Task(row, torch.float64)
    with same_noise(task):
        theirs = opacus_descender(task, "hooks")(_CHECKED_STEPS)
    found = {name: descender(task, backend, True)(_CHECKED_STEPS) for name, backend in OURS.items()}
    return {who: max(float((tree[n] - theirs[n]).abs().max()) for n in theirs) for who, tree in found.items()}


def contenders(task: Task) -> tuple[dict[str, Callable[[int], Tree]], dict[str, str]]:
    """Who runs on this row, each warm; and why the others do not."""
    found = {"plain": descender(task, "loop" if task.row.lanes == 1 else "vmap", False)}
    found |= {name: descender(task, backend, True) for name, backend in OURS.items()}
    failed = {}
    for mode in MODES if task.row.lanes == 1 else FAST_MODES:
        name = f"opacus {mode}"
        try:
            found[name] = opacus_descender(task, mode)
            found[name](1)
        except Exception as error:  # whatever Opacus says of a model
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            del found[name]
    for name in ("plain", *OURS):
        found[name](12)  # until its steps are recorded
    return found, failed


def measure(row: Row, repeats: int, seconds: float) -> dict[str, Any]:
    """Seconds a step of every contender, and the paired ratios of one row."""
    task = Task(row)
    ready, failed = contenders(task)
    took: dict[str, list[float]] = {name: [] for name in ready}
    counts = {}
    for name, steps in ready.items():
        began = time.perf_counter()
        steps(2)
        counts[name] = max(2, round(2 * seconds / (time.perf_counter() - began)))
    for repeat in range(repeats):
        order = list(ready)
        for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
            began = time.perf_counter()
            ready[name](counts[name])
            took[name].append((time.perf_counter() - began) / counts[name])
    mine, theirs = (
        min((name for name in took if name in names), key=lambda name: median(took[name])) for names in (OURS, OPACUS)
    )
    apart = differences(row)
    return {
        "name": row.title,
        "lanes": row.lanes,
        "parameters": sum(value[0].numel() for value in task.start.values()),
        "seconds": {name: {**spread(values), "each": values} for name, values in took.items()},
        "failed": failed,
        "best": mine,
        "best_opacus": theirs,
        "against_opacus": paired(took[theirs], took[mine]),
        "against_hooks": paired(took["opacus hooks"], took[mine]),
        "overhead": paired(took[mine], took["plain"]),
        "overhead_opacus": paired(took[theirs], took["plain"]),
        "differences": apart,
        "same": max(apart.values()) <= TOLERANCE,
    }


def paired(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """The ratios of two contenders' rates, repeat by repeat: their spread, and each."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return {**spread(ratios), "each": ratios}


def goal_of(row: Mapping[str, Any]) -> float | None:
    """At least how many times faster than Opacus's best mode: one lane, or 16 and more."""
    if row["lanes"] == 1:
        return GOAL_ALONE
    return GOAL_LANES if row["lanes"] >= 16 else None


def markdown(record: Mapping[str, Any]) -> str:
    """The page for people, from the JSON record alone."""
    hardware, versions = record["hardware"], record["versions"]
    lines = [
        "# DP-SGD: what a step costs, against Opacus\n",
        f"Made by `{record['command']}` at revision {record['revision']}, on {hardware['processor']}, "
        f"{hardware['cores']} cores, {record['threads']} torch thread; torch {versions['torch']}, Opacus "
        f"{versions['opacus']}.\n",
        f"Median [lowest, highest] of {record['repeats']} repeats, ratios paired within each. `faster` is the time of "
        "Opacus's best mode over our best backend's, and its goal is met at the median; `overhead` is a private step "
        "over our plain one. `apart` is the largest difference between our parameters and Opacus's after "
        f"{_CHECKED_STEPS} steps under the same noise, in double precision.\n",
        "| model | plain, ms | ours, ms | Opacus, ms | faster | goal | | overhead: ours | Opacus | apart |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        seconds, goal = row["seconds"], goal_of(row)
        verdict = "" if goal is None else "reached" if row["against_opacus"]["median"] >= goal else "missed"
        cells = [
            row["name"],
            _shown(seconds["plain"], 1e3),
            f"{row['best']} {_shown(seconds[row['best']], 1e3)}",
            f"{row['best_opacus'].removeprefix('opacus ')} {_shown(seconds[row['best_opacus']], 1e3)}",
            _shown(row["against_opacus"]),
            "–" if goal is None else f"{goal:g}x",
            verdict,
            _shown(row["overhead"]),
            _shown(row["overhead_opacus"]),
            f"{max(row['differences'].values()):.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["\nMilliseconds a step of every contender; Opacus's slower modes for one lane alone:\n"]
    names = ["plain", *OURS, *OPACUS]
    lines += [f"| model | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row in record["rows"]:
        cells = [_shown(row["seconds"][name], 1e3) if name in row["seconds"] else "–" for name in names]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {name} on {row['name']}: {why}" for row in record["rows"] for name, why in row["failed"].items()]
    apart = "; ".join(row["name"] for row in record["rows"] if not row["same"])
    lines.append(
        f"- The same parameters as Opacus's to {TOLERANCE:g}: {f'NO: {apart}' if apart else 'yes, on every row'}."
    )
    lines.append("- On a GPU: not measured.")
    return "\n".join(lines) + "\n"


def _shown(values: Mapping[str, float], scale: float = 1.0) -> str:
    middle, low, high = (scale * values[key] for key in ("median", "min", "max"))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def measure_all(rows: Sequence[Row], repeats: int, seconds: float) -> list[dict[str, Any]]:
    """Every row on one torch thread; leaves torch's threads as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    try:
        for row in rows:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Opacus's hooks warn at every step
                found.append(measure(row, repeats, seconds))
            print(f"{row.title}: {found[-1]['against_opacus']['median']:.2f}x {found[-1]['best_opacus']}", flush=True)
    finally:
        torch.set_num_threads(threads)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.dp", __doc__)
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats of every row")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="two small rows, a few seconds")
    asked = parser.parse_args(arguments)
    if asked.repeats < 1:
        parser.error("--repeats must be at least 1")
    rows = measure_all(QUICK if asked.quick else ROWS, asked.repeats, 0.02 if asked.quick else 0.4)
    record = {
        **circumstances(torch.device("cpu")),
        "command": f"python -m experiments.benchmarks.dp --repeats {asked.repeats}{' --quick' * asked.quick}",
        "threads": 1,
        "repeats": asked.repeats,
        "rows": rows,
        "gpu": "not measured",
    }
    page.write(asked.out, "dp", record)
    print(f"wrote {asked.out / 'dp.json'} and {asked.out / 'dp.md'}")


if __name__ == "__main__":
    with one_line_errors():
        main()
