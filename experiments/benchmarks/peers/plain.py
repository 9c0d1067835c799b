"""FedAvg as one writes it in PyTorch: one model, one client after another.

python -m experiments.benchmarks.peers.plain --train mnist-train.parquet --test mnist-test.parquet
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarks.peers.problem import Problem, Stopwatch, parser, problem_of, report, settings_of


def local_epoch(model: nn.Module, images: Tensor, labels: Tensor, batches: Sequence[Tensor], lr: float) -> None:
    """One step of SGD on each batch, in place; `batches` are rows of `images`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for rows in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        torch.autograd.backward(loss)
        optimizer.step()


def play_round(problem: Problem, model: nn.Module, round: int) -> None:
    """Every client of the cohort trains from the global model, whose place their mean takes."""
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    total = {name: torch.zeros_like(value) for name, value in sent.items()}
    cohort = problem.cohort(round)
    for client in cohort:
        model.load_state_dict(sent)
        batches = problem.batches(client, round)
        local_epoch(model, problem.pool.images, problem.pool.labels, batches, problem.settings.step_size)
        for name, value in model.state_dict().items():
            total[name] += value / len(cohort)
    model.load_state_dict(total)


def main(arguments: Sequence[str] | None = None) -> None:
    settings, _ = settings_of(parser("Time FedAvg on MNIST as a plain PyTorch loop."), arguments)
    torch.set_num_threads(settings.threads)
    problem = problem_of(settings)
    model, watch = problem.model(), Stopwatch(problem)
    watch.start()
    for round in range(settings.warmup + settings.rounds):
        play_round(problem, model, round)
        watch.lap(lambda: model)
    report("plain", watch, processes=1)


if __name__ == "__main__":
    main()
