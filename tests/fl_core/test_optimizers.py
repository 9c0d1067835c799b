"""Descent steps against torch.optim."""

from __future__ import annotations

import pytest
import torch

from fl_core.errors import InputError
from fl_core.optimizers import SGD, Adam


def gradient_of(value: torch.Tensor, step: int) -> torch.Tensor:
    """Some smooth gradient that changes with the place and the time."""
    return torch.sin(3 * value + step) + 0.1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torch_s(momentum: float):
    start = torch.randn(4, 3, dtype=torch.float64)
    reference = torch.nn.Parameter(start.clone())
    theirs = torch.optim.SGD([reference], lr=0.05, momentum=momentum)
    variables = {"x": start.clone()}
    ours = SGD(lr=0.05, momentum=momentum)
    slots = ours.slots(variables)
    for step in range(10):
        ours.step(variables, {"x": gradient_of(variables["x"], step)}, slots, step)
        reference.grad = gradient_of(reference.detach(), step)
        theirs.step()
    torch.testing.assert_close(variables["x"], reference.detach(), rtol=0, atol=1e-12)


def test_plain_sgd_keeps_no_state_and_leaves_the_gradient_alone():
    for momentum in (0.0, 0.9):
        variables, gradients = {"x": torch.ones(2)}, {"x": torch.full((2,), 3.0)}
        optimizer = SGD(lr=0.1, momentum=momentum)
        slots = optimizer.slots(variables)
        assert bool(slots) == bool(momentum)
        optimizer.step(variables, gradients, slots, 0)
        assert gradients["x"].tolist() == [3.0, 3.0]


def test_the_order_of_the_gradients_names_does_not_matter():
    variables = {"a": torch.zeros(1), "b": torch.zeros(2)}
    optimizer = SGD(lr=1.0, momentum=0.5)
    optimizer.step(variables, {"b": torch.ones(2), "a": torch.full((1,), 2.0)}, optimizer.slots(variables), 0)
    assert variables["a"].tolist() == [-2.0]
    assert variables["b"].tolist() == [-1.0, -1.0]


def test_signed_adam_is_adam_on_signs_with_three_drops_of_the_rate():
    steps = 16
    start = torch.rand(5, 7, dtype=torch.float64)
    reference = torch.nn.Parameter(start.clone())
    theirs = torch.optim.Adam([reference], lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(theirs, [6, 10, 14], gamma=0.1)  # 3/8, 5/8, 7/8 of 16
    variables = {"x": start.clone()}
    ours = Adam(lr=0.1, steps=steps, box=None)
    slots = ours.slots(variables)
    for step in range(steps):
        ours.step(variables, {"x": gradient_of(variables["x"], step)}, slots, step)
        reference.grad = gradient_of(reference.detach(), step).sign()
        theirs.step()
        schedule.step()
        torch.testing.assert_close(variables["x"], reference.detach(), rtol=0, atol=1e-9)


def test_signed_adam_keeps_pixels_in_their_box():
    variables = {"x": torch.rand(100)}
    optimizer = Adam(lr=0.5, steps=8)
    slots = optimizer.slots(variables)
    direction = torch.where(torch.arange(100) % 2 == 0, 1.0, -1.0)
    for step in range(8):
        optimizer.step(variables, {"x": direction}, slots, step)
        assert variables["x"].min() >= 0
        assert variables["x"].max() <= 1
    assert torch.equal(variables["x"], (direction < 0).float())


def test_numbers_that_mean_nothing_are_refused():
    for make in (
        lambda: SGD(lr=0),
        lambda: SGD(lr=0.1, momentum=1.0),
        lambda: SGD(lr=float("nan")),
        lambda: Adam(lr=0, steps=1),
        lambda: Adam(lr=0.1, steps=0),
    ):
        with pytest.raises(InputError):
            make()
