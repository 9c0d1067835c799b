"""Descents in lanes: when they end, what they cost, and how they go on after a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from attacks.reconstruction.fitting import Fitted, Schedule, fit
from attacks.reconstruction.lbfgs import LBFGS
from fl_core.errors import InputError
from fl_core.optimizers import Adam, Tree


class Bowl:
    """The squared distance of `x` from the context's goal; NaN where the goal is."""

    gradients = 1
    settings = "a bowl"

    def __call__(self, variables: Tree, context: Tree) -> Tensor:
        return (variables["pixels"] - context["goal"]).square().sum().unsqueeze(0)


class Valley(Bowl):
    """A curved one, which no optimizer here reaches the end of in a hundred steps."""

    def __call__(self, variables: Tree, context: Tree) -> Tensor:
        x = variables["pixels"] - context["goal"] + 1
        return (100 * (x[1:] - x[:-1] ** 2).square() + (1 - x[:-1]).square()).sum().unsqueeze(0) + 1


def goals(*values: float) -> Tree:
    return {"goal": torch.tensor(values).view(-1, 1).expand(-1, 3).contiguous()}


def descended(
    context: Tree, schedule: Schedule, *, restarts: int = 1, optimizer=None, objective=None, **options
) -> Fitted:
    lanes = len(context["goal"])
    start = {"pixels": torch.linspace(0.1, 0.9, 3 * lanes).view(lanes, 3)}
    optimizer = optimizer or Adam(lr=0.05, steps=schedule.iterations)
    objective = objective or Bowl()
    return fit(objective, start, context, optimizer, schedule, restarts=restarts, backend="vmap", **options)


@pytest.mark.parametrize("optimizer", [Adam(lr=0.05, steps=60), LBFGS()])
def test_a_descent_that_was_cut_off_goes_on_to_the_same_bits(tmp_path: Path, optimizer):
    context, schedule = goals(0.2, 0.7), Schedule(iterations=60, part=20)
    options = {"optimizer": optimizer, "objective": Valley()}
    whole = descended(context, schedule, **options)
    file = tmp_path / "descent"

    def cut(done: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descended(context, schedule, **options, checkpoint=file, on_part=cut)
    seen: list[int] = []
    resumed = descended(context, schedule, **options, checkpoint=file, on_part=seen.append)
    assert seen == [60]  # the first forty were not done again
    assert torch.equal(resumed.variables["pixels"], whole.variables["pixels"])
    assert torch.equal(resumed.objective, whole.objective)
    assert torch.equal(resumed.iterations, whole.iterations)


def test_a_checkpoint_of_another_descent_is_refused(tmp_path: Path):
    file = tmp_path / "descent"
    descended(goals(0.2), Schedule(iterations=4, part=2), checkpoint=file)
    with pytest.raises(InputError, match="belongs to another reconstruction"):
        descended(goals(0.3), Schedule(iterations=4, part=2), checkpoint=file)


def test_parts_do_not_change_where_a_descent_goes():
    context = goals(0.2, 0.7)
    one = descended(context, Schedule(iterations=60, part=60))
    several = descended(context, Schedule(iterations=60, part=15))
    assert (several.objective <= one.objective).all()  # the best end of a part is kept
    torch.testing.assert_close(one.variables["pixels"], several.variables["pixels"], rtol=0, atol=1e-2)


def test_a_lane_that_is_there_stops_and_costs_no_more():
    context = goals(0.5, 5.0)  # the second goal lies outside the pixels' range
    found = descended(context, Schedule(iterations=200, part=10, enough=1e-3))
    assert found.objective[0] <= 1e-3
    assert found.iterations.tolist()[1] == 200
    assert found.iterations[0] < 150


def test_a_lane_that_gets_no_better_stops():
    found = descended(goals(5.0), Schedule(iterations=400, part=10, patience=0.01))
    assert found.iterations.item() <= 60
    assert found.objective.item() == pytest.approx(3 * 16)


def test_the_worse_restarts_go():
    # Two victims, four restarts each, one of which has a goal within its reach.
    context = goals(5.0, 0.5, 6.0, 7.0, 8.0, 9.0, 0.4, 5.0)
    found = descended(context, Schedule(iterations=80, part=10, keep=0.25), restarts=4)
    assert found.iterations.view(2, 4)[0].argmax() == 1
    assert found.iterations.view(2, 4)[1].argmax() == 2
    assert found.iterations.view(2, 4).amax(1).tolist() == [80, 80]
    assert found.iterations.sum() < 0.6 * 8 * 80
    assert found.objective.view(2, 4).argmin(1).tolist() == [1, 2]


def test_a_restart_that_fails_is_inf_and_spoils_no_other():
    found = descended(goals(float("nan"), 0.5), Schedule(iterations=40, part=10))
    assert found.objective[0] == torch.inf
    assert found.objective[1] < 1e-2


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"part": 0}, {"enough": -1}, {"patience": 1}, {"keep": 0}])
def test_schedules_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Schedule(**wrong)
