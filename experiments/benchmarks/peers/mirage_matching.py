"""This project's gradient matching on that problem: victims and restarts are lanes.

python -m experiments.benchmarks.peers.mirage_matching        (asked line by line, see `matching`)
"""

from __future__ import annotations

import time

import torch

from attacks.reconstruction.base import Knowledge, Updates
from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.objectives import Distance, Objective
from attacks.reconstruction.simulation import Simulation
from experiments.benchmarks.peers.matching import CLASSES, LR, SHAPES, Answer, Problem, Request, problem_of, serve
from fl_core import lanes


def attack_of(request: Request) -> GradientMatching:
    """The attack with the request's settings, by the names that they have here."""
    cosine = request.measure == "cosine"
    return GradientMatching(
        restarts=request.restarts,
        iterations=request.iterations,
        part=request.iterations,
        optimizer=request.optimizer,
        lr=LR[request.optimizer],
        distance=Distance(measure=request.measure),
        total_variation=request.total_variation if cosine else 0.0,
    )


def _observed(request: Request, problem: Problem) -> tuple[Updates, Knowledge]:
    sent = {name: value.detach() for name, value in problem.model.named_parameters()}
    moved = {
        name: torch.stack([-gradients[place] for gradients in problem.gradients]) for place, name in enumerate(sent)
    }
    updates = Updates(
        view="server",
        sent={name: value.expand(request.victims, *value.shape) for name, value in sent.items()},
        moved=moved,
    )
    told = {"shape": SHAPES[request.model], "classes": CLASSES, "labels": problem.labels, "lr": 1.0}
    return updates, Knowledge(model=problem.model, **told)  # type: ignore[arg-type]


def play(request: Request) -> Answer:
    """A whole attack, with its trials of both backends: what it learned from an earlier one is forgotten."""
    problem = problem_of(request)
    updates, knowledge = _observed(request, problem)
    attack = attack_of(request)
    if request.check:
        return _check(attack, problem, updates, knowledge)
    lanes._fastest.clear()
    began = time.perf_counter()
    found = attack.run(updates, knowledge, device=request.device)
    return {"seconds": time.perf_counter() - began, "iterations": int(found.evaluations.sum())}


def _check(attack: GradientMatching, problem: Problem, updates: Updates, knowledge: Knowledge) -> Answer:
    assert attack.distance is not None
    shared = {name: value[0] for name, value in updates.sent.items()}
    objective = Objective(
        Simulation.of(problem.model), attack.distance, attack._regularisers(), attack.parametrisation, shared=shared
    )
    context = attack.distance.context(updates.gradient(1.0), knowledge) | {"labels": problem.labels}
    leaf = problem.start.unsqueeze(0).requires_grad_()
    value = torch.func.vmap(objective)({"pixels": leaf}, {name: one[:1] for name, one in context.items()}).sum()
    (gradient,) = torch.autograd.grad(value, [leaf])
    return {"objective": value.item(), "gradient": gradient.flatten().tolist()}


if __name__ == "__main__":
    serve(play)
