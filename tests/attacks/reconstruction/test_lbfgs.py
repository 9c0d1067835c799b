"""L-BFGS in lanes against closed forms and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from attacks.reconstruction.lbfgs import LBFGS
from fl_core.errors import InputError
from fl_core.optimizers import Tree


def descended(optimizer: LBFGS, start: Tensor, gradient, steps: int) -> Tensor:
    variables: Tree = {"x": start.clone()}
    slots = optimizer.slots(variables)
    for step in range(steps):
        optimizer.step(variables, {"x": gradient(variables["x"])}, slots, step)
    return optimizer.settled(variables, slots)["x"]


def rosenbrock(x: Tensor) -> Tensor:
    """Its gradient [lanes, 6]."""
    inner = x[:, 1:] - x[:, :-1] ** 2
    gradient = torch.zeros_like(x)
    gradient[:, :-1] += -400 * x[:, :-1] * inner - 2 * (1 - x[:, :-1])
    gradient[:, 1:] += 200 * inner
    return gradient


def test_a_quadratic_is_solved_to_rounding():
    torch.manual_seed(0)
    root = torch.randn(3, 12, 12, dtype=torch.float64)
    matrix = root @ root.mT + 0.1 * torch.eye(12, dtype=torch.float64)
    goal = torch.randn(3, 12, dtype=torch.float64)
    found = descended(LBFGS(), torch.zeros_like(goal), lambda x: ((x - goal)[:, None] @ matrix)[:, 0], 120)
    torch.testing.assert_close(found, goal, rtol=0, atol=1e-8)


def test_rosenbrock_is_solved_in_about_as_many_gradients_as_scipy_takes():
    torch.manual_seed(1)
    start = torch.randn(4, 6, dtype=torch.float64)
    theirs = [
        scipy.optimize.minimize(
            scipy.optimize.rosen, one.numpy(), jac=scipy.optimize.rosen_der, method="L-BFGS-B",
            options={"maxcor": 20, "gtol": 1e-9, "ftol": 0, "maxiter": 2000},
        )
        for one in start
    ]  # fmt: skip
    calls = max(one.nfev for one in theirs)
    found = descended(LBFGS(), start, rosenbrock, 2 * calls)
    assert rosenbrock(found).abs().max() < 1e-5
    assert all(np.abs(one.x - ours.numpy()).max() < 1e-3 for one, ours in zip(theirs, found, strict=True))


def test_a_lane_s_way_does_not_depend_on_its_neighbours():
    torch.manual_seed(2)
    start = torch.randn(5, 6, dtype=torch.float64)
    together = descended(LBFGS(memory=4), start, rosenbrock, 60)
    alone = torch.cat([descended(LBFGS(memory=4), one[None], rosenbrock, 60) for one in start])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_one_lane_without_its_axis_goes_the_same_way():
    start = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    optimizer = LBFGS()
    slots = {name: value[0] for name, value in optimizer.slots({"x": start}).items()}
    variables = {"x": start[0].clone()}
    for step in range(40):
        optimizer.step(variables, {"x": rosenbrock(variables["x"][None])[0]}, slots, step)
    torch.testing.assert_close(slots["point"][None], descended(optimizer, start, rosenbrock, 40), rtol=0, atol=1e-12)


def test_a_gradient_that_is_not_finite_is_a_step_refused():
    def walled(x: Tensor) -> Tensor:  # a quadratic about −1, whose gradient is lost from 2 on
        return torch.where(x >= 2, torch.nan, x + 1)

    found = descended(LBFGS(lr=50.0), torch.full((1, 3), 1.9, dtype=torch.float64), walled, 60)
    torch.testing.assert_close(found, torch.full_like(found, -1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"memory": 0}, {"decrease": 0.6}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError):
        LBFGS(**wrong)


def test_the_direction_is_that_of_the_two_loops_with_any_number_of_pairs():
    draw = torch.Generator().manual_seed(0)
    lanes, size, memory = 4, 6, 3
    roots = torch.randn(lanes, size, size, dtype=torch.float64, generator=draw)
    hessians = roots @ roots.mT + torch.eye(size)
    optimizer = LBFGS(memory=memory)
    slots = optimizer.slots({"x": torch.zeros(lanes, size, dtype=torch.float64)})
    slots["slope"] = torch.randn(lanes, size, dtype=torch.float64, generator=draw)
    histories: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(lanes)]
    for turn in range(5):  # lane 0 gets no pair, the last one more than it can hold
        moved = torch.randn(lanes, size, dtype=torch.float64, generator=draw)
        changed = (hessians @ moved[..., None])[..., 0]
        who = torch.tensor([lane for lane in range(lanes) if turn < (0, 1, 3, 5)[lane]])
        optimizer._remember(slots, who, moved, changed)
        for lane in who.tolist():
            histories[lane] = [*histories[lane], (moved[lane], changed[lane])][-memory:]
    found = optimizer._times_inverse(slots)
    for lane, history in enumerate(histories):
        torch.testing.assert_close(found[lane], two_loops(slots["slope"][lane], history), rtol=1e-10, atol=1e-12)


def two_loops(slope: Tensor, history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Nocedal & Wright 2006, algorithm 7.4; the history's oldest pair comes first."""
    vector, weights = slope.clone(), []
    for step, change in reversed(history):
        weights.append(step @ vector / (step @ change))
        vector = vector - weights[-1] * change
    if history:
        step, change = history[-1]
        vector = vector * (step @ change) / (change @ change)
    for (step, change), weight in zip(history, reversed(weights), strict=True):
        vector = vector + step * (weight - change @ vector / (step @ change))
    return vector
