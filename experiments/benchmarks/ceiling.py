"""What the processor could do at best: the arithmetic of a round, over the speed of its matrix products.

Floating-point operations of a step by torch's own counter, convolutions and linear layers forward and backward; and
the operations a second of a large matrix product in single precision, in as many single-threaded processes at once as
there are cores. No program that does this arithmetic plays a round in less time than their quotient.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import joblib
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.peers.problem import BATCH
from fl_core.architectures import McMahanCNN
from fl_core.models import ClassificationLosses, variables_of

SIDE = 1024
STEPS = 10 * 60
"""Of a round: a cohort of 10 with 600 pictures each, in batches of 10."""


def round_operations(width: int) -> int:
    """Floating-point operations of a round of FedAvg on MNIST with McMahan's CNN of this width."""
    model = McMahanCNN((1, 28, 28), 10, width)
    variables = {name: value.requires_grad_() for name, value in variables_of(model).items()}
    with FlopCounterMode(display=False) as counter:
        images, labels = torch.zeros(BATCH, 1, 28, 28), torch.zeros(BATCH, dtype=torch.long)
        loss = ClassificationLosses(model)(variables, images, labels).mean()
        torch.autograd.grad(loss, list(variables.values()))
    return STEPS * int(counter.get_total_flops())


def product_rate(seconds: float = 1.0) -> float:
    """Floating-point operations a second of matrix products on one thread, over about so many seconds."""
    torch.set_num_threads(1)
    left, right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    torch.mm(left, right)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        torch.mm(left, right)
        done += 1
    return 2 * SIDE**3 * done / (time.perf_counter() - began)


def measure_ceiling(widths: Sequence[int], repeats: int) -> dict[str, Any]:
    """Operations of a round by width, and operations a second of all cores together [repeats]."""
    cores = joblib.cpu_count()
    with joblib.Parallel(n_jobs=cores) as parallel:
        rates = [sum(parallel(joblib.delayed(product_rate)() for _ in range(cores))) for _ in range(repeats)]
    return {"cores": cores, "operations": {str(width): round_operations(width) for width in widths}, "rates": rates}


def ceiling_markdown(
    ceiling: Mapping[str, Any], words: Mapping[int, str], best: Mapping[int, Mapping[str, Any]]
) -> str:
    """What a round takes at least, beside Mirage's best and each of the `best` peers' goals, in seconds, by width."""
    rate = median(ceiling["rates"])
    lines = [
        f"What these cores could do: they multiply matrices at {rate / 1e9:.0f} GFLOP/s together (median of "
        f"{len(ceiling['rates'])}), so a round cannot take less than:\n",
        "| model | GFLOP a round | at least, s | Mirage's best, s | of the limit | four times Flower's speed, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for width, operations in sorted(ceiling["operations"].items(), key=lambda one: int(one[0])):
        least, rows = operations / rate, best[int(width)]
        cells = [words[int(width)], f"{operations / 1e9:.1f}", f"{least:.2f}"]
        mine, flower = (median(rows[name]) if rows.get(name) else None for name in ("Mirage", "Flower"))
        cells += ["–", "–"] if mine is None else [f"{mine:.2f}", f"{least / mine:.0%}"]
        if flower is None:
            cells.append("–")
        else:
            cells.append(f"{flower / 4:.2f}" + (", out of reach" if flower / 4 < least else ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
