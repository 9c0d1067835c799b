"""Gradient matching by the package `breaching` (PyPI, 0.1.2; Geiping et al.), by its own attacker and configurations.

The model and the gradient are handed over directly, so none of its data is needed. Its total variation counts the
pixels past the right and the lower edge as black and takes one mean, ours leaves them out; the rest is the same.
Its squared distance has a factor of its own, set to ours.

python -m experiments.benchmarks.peers.breaching_matching        (asked line by line, see `matching`)
"""

from __future__ import annotations

import time
from typing import Any

import breaching
import torch
from omegaconf import OmegaConf
from torch import nn

from experiments.benchmarks.peers.matching import (
    CLASSES,
    LR,
    SHAPES,
    Answer,
    Problem,
    Request,
    problem_of,
    serve,
    synchronize,
)


def attacker_of(request: Request, problem: Problem, victim: int) -> tuple[Any, list[Any], list[Any]]:
    """Its attacker, and what its server and its user would have handed over."""
    named = "invertinggradients" if request.optimizer == "adam" else "deepleakage"
    config = breaching.get_attack_config(named)
    OmegaConf.set_struct(config, False)
    config.attack_type = "optimization"  # that with labels as variables too cannot be told them, and fails for pictures
    config.restarts.num_trials = request.restarts
    # Its L-BFGS is torch's, of which it counts steps of 20 evaluations each.
    config.optim.max_iterations = request.iterations if request.optimizer == "adam" else -(-request.iterations // 20)
    config.optim.step_size = LR[request.optimizer]
    if request.measure == "squared":
        square = sum(float(value.square().sum()) for value in problem.gradients[victim])
        config.objective = {"type": "euclidean", "scale": 2 / square, "task_regularization": 0.0}
        config.regularization = None
    elif request.total_variation:
        config.regularization.total_variation.scale = request.total_variation
    else:
        config.regularization = None
    metadata = OmegaConf.create(
        {
            "shape": list(SHAPES[request.model]), "mean": [0.0] * 3, "std": [1.0] * 3, "modality": "vision",
            "classes": CLASSES, "task": "classification",
        }
    )  # fmt: skip
    setup = {"dtype": torch.float, "device": torch.device(request.device)}
    attacker = breaching.attacks.prepare_attack(problem.model, nn.CrossEntropyLoss(), config, setup)
    parameters = [value.detach() for value in problem.model.parameters()]
    payload = [{"parameters": parameters, "buffers": [], "metadata": metadata}]
    told = {"num_data_points": 1, "labels": problem.labels[victim], "local_hyperparams": None}
    shared = [{"gradients": problem.gradients[victim], "buffers": None, "metadata": told}]
    return attacker, payload, shared


def _check(request: Request, problem: Problem) -> Answer:
    attacker, payload, shared = attacker_of(request, problem, 0)
    models, labels, _ = attacker.prepare_attack(payload, shared)
    attacker.objective.initialize(attacker.loss_fn, attacker.cfg.impl, None)
    pixels = problem.start.clone().requires_grad_()
    value, _ = attacker.objective(models[0], shared[0]["gradients"], pixels, labels)
    (gradient,) = torch.autograd.grad(value.sum(), [pixels])
    return {"objective": float(value), "gradient": gradient.flatten().tolist()}


def play(request: Request) -> Answer:
    """Seconds of all its attacks and how often they asked for the gradient; for a `check`, what it asks for."""
    problem = problem_of(request)
    if request.check:
        return _check(request, problem)
    count, seconds = 0, 0.0

    def tally(*_: object) -> None:
        nonlocal count
        count += 1

    for victim in range(request.victims):
        attacker, payload, shared = attacker_of(request, problem, victim)
        attacker.objective.register_forward_pre_hook(tally)
        synchronize(request.device)
        began = time.perf_counter()
        attacker.reconstruct(payload, shared, {}, initial_data=torch.rand_like(problem.start))
        synchronize(request.device)
        seconds += time.perf_counter() - began
    return {"seconds": seconds, "iterations": count}


if __name__ == "__main__":
    serve(play)
