"""Gradient matching as one writes it in PyTorch: one restart at a time, torch's own optimizers.

python -m experiments.benchmarks.peers.plain_matching        (asked line by line, see `matching`)
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarks.peers.matching import LR, Answer, Request, problem_of, serve, synchronize


def objective(request: Request, model: nn.Module, observed: Sequence[Tensor], label: Tensor, pixels: Tensor) -> Tensor:
    """The distance [] of the picture's gradient from the observed one, plus the total variation."""
    loss = F.cross_entropy(model(pixels), label)
    gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    pairs = list(zip(gradient, observed, strict=True))
    theirs = sum((seen.square().sum() for seen in observed), torch.zeros(()))
    if request.measure == "squared":
        return sum(((mine - seen).square().sum() for mine, seen in pairs), torch.zeros(())) / theirs
    along = sum(((mine * seen).sum() for mine, seen in pairs), torch.zeros(()))
    own = sum((mine.square().sum() for mine in gradient), torch.zeros(()))
    across = (pixels[..., 1:] - pixels[..., :-1]).abs().mean()
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean()
    return 1 - along / (own.sqrt() * theirs.sqrt()) + request.total_variation * (across + down)


def descend(
    request: Request, model: nn.Module, observed: Sequence[Tensor], label: Tensor, start: Tensor
) -> tuple[Tensor, int]:
    """The picture [1, ...] after the request's iterations, and how many gradients that took."""
    pixels = start.clone().requires_grad_()
    count = 0

    def closure() -> Tensor:
        nonlocal count
        count += 1
        found = objective(request, model, observed, label, pixels)
        (pixels.grad,) = torch.autograd.grad(found, [pixels])
        return found

    if request.optimizer == "lbfgs":
        most = request.iterations
        lbfgs = torch.optim.LBFGS(
            [pixels], lr=LR["lbfgs"], max_iter=most, max_eval=most, history_size=20, tolerance_grad=0.0,
            tolerance_change=0.0,
        )  # fmt: skip
        lbfgs.step(closure)
        return pixels.detach(), count
    adam = torch.optim.Adam([pixels], lr=LR["adam"])
    passed = [round(request.iterations * eighths / 8) for eighths in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, passed)
    for _ in range(request.iterations):
        closure()
        assert pixels.grad is not None
        pixels.grad.sign_()
        adam.step()
        schedule.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return pixels.detach(), count


def play(request: Request) -> Answer:
    """Every victim, restart after restart."""
    problem = problem_of(request)
    if request.check:
        pixels = problem.start.clone().requires_grad_()
        found = objective(request, problem.model, problem.gradients[0], problem.labels[0], pixels)
        (gradient,) = torch.autograd.grad(found, [pixels])
        return {"objective": found.item(), "gradient": gradient.flatten().tolist()}
    count = 0
    synchronize(request.device)
    began = time.perf_counter()
    for observed, label in zip(problem.gradients, problem.labels, strict=True):
        for _ in range(request.restarts):
            count += descend(request, problem.model, observed, label, torch.rand_like(problem.start))[1]
    synchronize(request.device)
    return {"seconds": time.perf_counter() - began, "iterations": count}


if __name__ == "__main__":
    serve(play)
