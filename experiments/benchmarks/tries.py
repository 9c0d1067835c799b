"""What makes a step of one small model faster on a CPU, and what does not: each idea alone, against a plain step.

A step is forward, cross-entropy, backward and SGD on one batch that lies in memory. Ideas about the step are timed in
one process on one torch thread, taking turns; ideas about the cores (two threads, or two processes with a thread each)
are timed as the whole machine's steps a second. What pays is kept in `fl_core`; what does not is written down here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import joblib
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from fl_core import recorded
from fl_core.architectures import CNN, McMahanCNN
from fl_core.models import ClassificationLosses
from fl_core.optimizers import Tree
from fl_core.residual import ResNet

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model, the shape of its pictures and the batch of one step."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch: int


GREY8, GREY28, RGB32 = (1, 8, 8), (1, 28, 28), (3, 32, 32)
PROBLEMS = (
    Problem(name="8×8, CNN width 8", make=lambda: CNN(GREY8, 10, width=8, halve="stride"), shape=GREY8, batch=16),
    Problem(name="MNIST, 27k parameters", make=lambda: McMahanCNN(GREY28, 10, width=4), shape=GREY28, batch=10),
    Problem(name="MNIST, 417k parameters", make=lambda: McMahanCNN(GREY28, 10, width=16), shape=GREY28, batch=10),
    Problem(name="32×32, CNN width 16", make=lambda: CNN(RGB32, 10, width=16), shape=RGB32, batch=32),
    Problem(name="32×32, ResNet-8 GroupNorm", make=lambda: ResNet(RGB32, 10, depth=8), shape=RGB32, batch=32),
)
RECORDED = "recorded, channels last"
STACKED = ("10 stacked", "10 stacked, recorded")
LANES = 10
IDEAS = (
    "channels last", "bf16", "bf16, channels last", "torch.compile", "torch.optim, foreach", "torch.optim, fused",
    RECORDED, *STACKED,
)  # fmt: skip


def step_of(problem: Problem, idea: str = "plain") -> Step:
    """One training step under one idea; `plain` is torch.func-free autograd and an in-place foreach update.

    `stacked` is a step of LANES models at once.
    """
    torch.manual_seed(0)
    model = problem.make()
    images, labels = torch.rand(problem.batch, *problem.shape), torch.randint(0, 10, (problem.batch,))
    if "channels last" in idea:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    parameters: list[Tensor] = list(model.parameters())
    if idea == RECORDED or idea in STACKED:
        return _recorded_or_stacked(model, images, labels, idea)
    forward = torch.compile(model) if idea == "torch.compile" else model
    optimizer = {
        "torch.optim, foreach": lambda: torch.optim.SGD(parameters, lr=1e-3, foreach=True),
        "torch.optim, fused": lambda: torch.optim.SGD(parameters, lr=1e-3, fused=True),
    }.get(idea, lambda: None)()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in idea):
            loss = F.cross_entropy(forward(images), labels)
        if optimizer is not None:
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            return
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-1e-3)

    return step


def _recorded_or_stacked(model: nn.Module, images: Tensor, labels: Tensor, idea: str) -> Step:
    losses, names = ClassificationLosses(model), [name for name, _ in model.named_parameters()]
    values: list[Tensor] = [value.detach() for value in model.parameters()]
    if idea in STACKED:
        values = [value.expand(LANES, *value.shape).clone() for value in values]
        images, labels = (one.expand(LANES, *one.shape).clone() for one in (images, labels))

    def mean(variables: Tree, images: Tensor, labels: Tensor) -> Tensor:
        return losses(variables, images, labels).mean()

    def gradients(*inputs: Tensor) -> Sequence[Tensor]:
        *leaves, images, labels = inputs
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        found = (vmap(mean) if idea in STACKED else mean)(dict(zip(names, leaves, strict=True)), images, labels)
        return torch.autograd.grad(found.sum(), leaves)

    find: Callable[..., Sequence[Tensor]] = gradients
    if "recorded" in idea:
        _, find = recorded.record(gradients, [*values, images, labels])

    def step() -> None:
        found = find(*values, images, labels)
        with torch.no_grad():
            torch._foreach_add_(values, list(found), alpha=-1e-3)

    return step


def per_step(step: Step, seconds: float) -> float:
    """Seconds a step, over about as many steps as fill `seconds`."""
    steps, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not steps:
        step()
        steps += 1
    return took / steps


def _alone(number: int, seconds: float) -> float:
    torch.set_num_threads(1)
    step = step_of(PROBLEMS[number])
    step()
    return per_step(step, seconds)


def measure_tries(repeats: int, quick: bool = False) -> list[dict[str, Any]]:
    """One record a problem: seconds a plain step, and each idea's speed-up over it in every repeat."""
    seconds, threads, cores = (0.02 if quick else 0.5), torch.get_num_threads(), joblib.cpu_count()
    ideas = [idea for idea in IDEAS if not (quick and idea == "torch.compile")]
    records = []
    with joblib.Parallel(n_jobs=cores) as parallel:
        for number, problem in enumerate(PROBLEMS[:2] if quick else PROBLEMS):
            torch.set_num_threads(1)
            steps, first = {}, {}
            for idea in ("plain", *ideas):
                steps[idea] = step_of(problem, idea)
                began = time.perf_counter()
                steps[idea]()
                first[idea] = time.perf_counter() - began
            ratios: dict[str, list[float]] = {idea: [] for idea in (*ideas, "threads", "processes")}
            plain = []
            for _ in range(repeats):
                torch.set_num_threads(1)
                took = {
                    idea: per_step(step, seconds) / (LANES if idea in STACKED else 1) for idea, step in steps.items()
                }
                plain.append(took["plain"])
                for idea in ideas:
                    ratios[idea].append(took["plain"] / took[idea])
                torch.set_num_threads(cores)
                ratios["threads"].append(took["plain"] / per_step(steps["plain"], seconds))
                side_by_side = parallel(joblib.delayed(_alone)(number, 2 * seconds) for _ in range(cores))
                ratios["processes"].append(took["plain"] * sum(1 / one for one in side_by_side))
            records.append(
                {
                    "problem": problem.name,
                    "batch": problem.batch,
                    "plain_seconds": plain,
                    "first_call_seconds": first,
                    "cores": cores,
                    "ratios": ratios,
                }
            )
    torch.set_num_threads(threads)
    return records


def tries_markdown(records: Sequence[dict[str, Any]]) -> str:
    """The part of the page on what makes a step faster, from the JSON records alone."""
    cores = records[0]["cores"]
    names = {"threads": f"{cores} threads", "processes": f"{cores} processes × 1 thread"}
    ideas = list(records[0]["ratios"])
    lines = [
        "## What makes a step faster\n",
        "Speed-up over a plain step on one thread, above 1 is faster; median [lowest, highest]. `torch.compile` "
        "without its first call, which took "
        + (", ".join(f"{r['first_call_seconds'].get('torch.compile', float('nan')):.0f}" for r in records))
        + " s. `recorded` replays a step's operations (fl_core.recorded); `10 stacked` is a tenth of a step of ten "
        "models under vmap. Threads and processes are the whole machine's steps a second.\n",
        f"| problem | plain, ms | {' | '.join(names.get(idea, idea) for idea in ideas)} |",
        f"| --- | --- |{' --- |' * len(ideas)}",
    ]
    for record in records:
        cells = [f"{median(v):.2f} [{min(v):.2f}, {max(v):.2f}]" for v in record["ratios"].values()]
        milliseconds = 1e3 * median(record["plain_seconds"])
        lines.append(f"| {record['problem']}, batch {record['batch']} | {milliseconds:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
