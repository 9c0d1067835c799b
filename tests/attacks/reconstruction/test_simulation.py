"""The attacker's copy of local training against the engine's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.reconstruction.simulation import Simulation, observed_moments
from fl_core.architectures import CNN
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, initial_parameters, statistics_of
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import ExampleFeed

SHAPE, CLASSES, LR = (1, 8, 8), 4, 0.3


def pictures(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(count)
    images = torch.rand(count, *SHAPE, generator=draw, dtype=torch.float64)
    return images, torch.randint(CLASSES, (count,), generator=draw)


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, CLASSES)
    )


def trained(model: nn.Module, start: Tree, images, labels, plan) -> Tree:
    """The engine's update [...] of one client that takes `plan`'s batches."""
    stacked = {name: value[None] for name, value in start.items()}
    moved = descend(
        stacked, ClassificationLosses(model), ExampleFeed(images, labels, [plan]), SGD(lr=LR),
        statistics=statistics_of(model),
    )  # fmt: skip
    return {name: moved[name][0] - value for name, value in start.items()}


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (4, 1), (2, 3), (1, 3)])
def test_simulated_steps_are_the_engine_s(steps: int, epochs: int):
    model = CNN(SHAPE, CLASSES, width=4, halve="stride").double()
    images, labels = pictures(4)
    start = {name: value.double() for name, value in initial_parameters(model, 0).items()}
    plan = [*torch.arange(4).split(4 // steps)] * epochs
    update = trained(model, start, images, labels, plan)
    found, _ = Simulation.of(model, steps, epochs, LR)(start, images, labels)
    for name, value in update.items():
        torch.testing.assert_close(-LR * found[name], value, rtol=0, atol=1e-12)


def test_with_pictures_of_their_own_each_epoch_may_have_another_order():
    model = CNN(SHAPE, CLASSES, width=4, halve="stride").double()
    images, _ = pictures(4)
    labels = torch.tensor([1, 1, 2, 2])
    start = {name: value.double() for name, value in initial_parameters(model, 0).items()}
    swapped = torch.tensor([1, 0, 3, 2])
    plan = [*torch.arange(4).split(2), *swapped.split(2)]
    update = trained(model, start, images, labels, plan)
    found, _ = Simulation.of(model, 2, 2, LR, own=True)(start, torch.cat([images, images[swapped]]), labels)
    for name, value in update.items():
        torch.testing.assert_close(-LR * found[name], value, rtol=0, atol=1e-12)


def test_batch_normalisation_trains_as_the_client_s_and_keeps_no_statistics():
    model = normalised().double()
    images, labels = pictures(4)
    start = {name: value.double() for name, value in initial_parameters(model, 0).items()}
    update = trained(model, start, images, labels, [torch.arange(4)])
    simulation = Simulation.of(model, lr=LR)
    parameters = {name: value for name, value in start.items() if name not in statistics_of(model)}
    found, _ = simulation(parameters, images, labels)
    for name, value in found.items():
        torch.testing.assert_close(-LR * value, update[name], rtol=0, atol=1e-12)
    assert model[1].track_running_stats  # the model that was handed over is left as it was


def test_running_statistics_that_come_back_give_the_batch_s_own_moments():
    model = normalised().double()
    images, labels = pictures(4)
    start = {name: value.double() for name, value in initial_parameters(model, 0).items()}
    update = trained(model, start, images, labels, [torch.arange(4)])
    sent, moved = ({name: value[None] for name, value in tree.items()} for tree in (start, update))
    mean, variance = observed_moments(model, sent, moved)["1"]
    parameters = {name: value for name, value in start.items() if name not in statistics_of(model)}
    _, moments = Simulation.of(model)(parameters, images, labels)
    torch.testing.assert_close(mean[0], moments["1"][0], rtol=0, atol=1e-12)
    entries = 4 * 64  # torch keeps the unbiased variance
    torch.testing.assert_close(variance[0] * (entries - 1) / entries, moments["1"][1], rtol=0, atol=1e-12)
    without = {name: value for name, value in moved.items() if "running" not in name}
    kept, _ = observed_moments(model, sent, without)["1"]
    assert torch.equal(kept, sent["1.running_mean"])
