"""Models take pixels in [0, 1] and share nothing between examples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fl_core.architectures import CNN
from fl_core.errors import InputError
from fl_core.federation import run
from fl_core.models import (
    ClassificationLosses,
    check_trainable,
    initial_parameters,
    logits,
    statistics_of,
    takes_channels_last,
    variables_of,
)
from fl_core.seeds import generator
from tests.fl_core.test_engine import federation

EVERY = [(norm, halve) for norm in ("none", "group") for halve in ("pool", "stride")]


@pytest.mark.parametrize(("norm", "halve"), EVERY)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 5, 7), (1, 4, 4)])
def test_the_cnn_takes_any_picture_from_four_pixels_on(norm: str, halve: str, shape: tuple[int, int, int]):
    assert CNN(shape, 7, width=4, norm=norm, halve=halve)(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_pixels_are_normalised_inside_to_minus_one_and_one(norm: str):
    model = CNN((1, 4, 4), 2, width=4, norm=norm)
    seen: list[torch.Tensor] = []
    model.conv1.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4))
    assert seen[0][:, 0, 0, 0].tolist() == [-1.0, 0.0, 1.0]


def test_group_norm_has_four_channels_a_group_and_none_has_no_norm():
    model = CNN((1, 8, 8), 2, width=12, norm="group")
    assert isinstance(model.norm1, nn.GroupNorm)
    assert isinstance(model.norm2, nn.GroupNorm)
    assert model.norm1.num_channels / model.norm1.num_groups == 4
    assert model.norm2.num_channels / model.norm2.num_groups == 4
    assert not any(name.startswith("norm") for name in variables_of(CNN((1, 8, 8), 2)))


@pytest.mark.parametrize(("norm", "halve"), EVERY)
def test_an_example_s_output_does_not_depend_on_its_batch(norm: str, halve: str):
    model = CNN((1, 8, 8), 3, width=4, norm=norm, halve=halve).double()
    images = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]), rtol=0, atol=1e-12)


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


def test_batch_norm_s_running_statistics_are_variables_and_its_counter_is_not():
    assert statistics_of(batch_norm()) == {"1.running_mean", "1.running_var"}
    assert list(variables_of(batch_norm()))[-2:] == ["1.running_mean", "1.running_var"]
    assert statistics_of(CNN((1, 8, 8), 2, norm="group")) == set()


def test_lent_statistics_are_the_ones_that_a_forward_pass_updates():
    model = batch_norm()
    own = {name: value.clone() for name, value in model.named_buffers()}
    lent = initial_parameters(model, 0)
    images = torch.rand(6, 1, 4, 4)
    ClassificationLosses(model)(lent, images, torch.zeros(6, dtype=torch.long))
    seen = nn.functional.conv2d(images, lent["0.weight"], lent["0.bias"])
    torch.testing.assert_close(lent["1.running_mean"], 0.1 * seen.mean((0, 2, 3)))
    torch.testing.assert_close(lent["1.running_var"], 0.9 + 0.1 * seen.transpose(0, 1).flatten(1).var(1))
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(dict(model.named_buffers())[name], own[name])


def test_outputs_use_the_running_statistics_and_leave_them_alone():
    model = batch_norm()
    stacked = {name: value.unsqueeze(0) for name, value in initial_parameters(model, 0).items()}
    images = torch.rand(6, 1, 4, 4)
    ClassificationLosses(model)  # leaves the model in training mode
    whole = logits(model, stacked, images)
    assert torch.equal(stacked["1.running_mean"], torch.zeros(1, 2))
    torch.testing.assert_close(whole[:, 2:3], logits(model, stacked, images[2:3]))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "dropout"),
        (nn.Sequential(nn.BatchNorm2d(2, momentum=None)), "give it a momentum"),
        (nn.Flatten(), "no parameters to train"),
    ],
)
def test_a_model_that_cannot_be_trained_repeatably_is_refused(model: nn.Module, message: str):
    with pytest.raises(InputError, match=message):
        check_trainable(model)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 3}, r"model\.width is 3"),
        ({"width": 6, "norm": "group"}, r"GroupNorm needs a multiple of 4"),
        ({"norm": "batch"}, r"model\.norm is 'batch'; allowed: group, none"),
        ({"halve": "average"}, r"model\.halve is 'average'"),
        ({"shape": (1, 3, 8)}, r"images are 3x8; the CNN needs at least 4x4 pixels"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        CNN(**({"shape": (1, 8, 8), "classes": 2} | wrong))


def test_initial_parameters_are_a_function_of_the_seed_alone():
    model = CNN((1, 8, 8), 3, width=4, norm="group")
    first = initial_parameters(model, 7)
    before = torch.get_rng_state()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    again = initial_parameters(CNN((1, 8, 8), 3, width=4, norm="group"), 7)
    moved = initial_parameters(model, 7)
    other = initial_parameters(model, 8)
    assert list(first) == [name for name, _ in model.named_parameters()]
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, moved[name])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    torch.set_rng_state(before)
    initial_parameters(model, 9)
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator is left alone"


def test_initial_parameters_are_copies():
    model = CNN((1, 8, 8), 3, width=4)
    first = initial_parameters(model, 7)
    kept = first["conv1.weight"].clone()
    initial_parameters(model, 8)
    assert torch.equal(first["conv1.weight"], kept)


def test_losses_are_cross_entropy_in_nats():
    model = CNN((1, 8, 8), 3, width=4)
    parameters = {name: torch.zeros_like(value) for name, value in variables_of(model).items()}
    losses = ClassificationLosses(model)(parameters, torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(losses, torch.full((4,), 3.0).log())


def test_logits_are_each_lane_s_own_and_do_not_depend_on_the_chunk():
    model = CNN((1, 8, 8), 3, width=4)
    each = [initial_parameters(model, seed) for seed in range(2)]
    stacked = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    images = torch.rand(10, 1, 8, 8)
    whole = logits(model, stacked, images)
    assert whole.shape == (2, 10, 3)
    assert not whole.requires_grad
    torch.testing.assert_close(whole, logits(model, stacked, images, chunk=3))
    for lane in range(2):
        torch.testing.assert_close(whole[lane], functional_call(model, each[lane], (images,)).detach())


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), False),
        (nn.Conv2d(16, 8, 1, stride=2, groups=4), False),
        (nn.Conv2d(16, 8, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(4, 8, 3, stride=2), True),
    ],
)
def test_channels_lie_last_except_where_a_kernel_of_onednn_would_write_outside_its_memory(layer: nn.Conv2d, fits: bool):
    assert takes_channels_last(nn.Sequential(layer)) == fits


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_bfloat16_trains_to_nearly_the_same_variables_which_stay_in_single_precision(backend: str):
    start, draw = federation(backend=backend, rounds=1), generator(0, "pictures")
    assert not torch.equal(
        ClassificationLosses(start.model, "bfloat16")(variables_of(start.model), *pictures(draw)),
        ClassificationLosses(start.model)(variables_of(start.model), *pictures(draw)),
    )
    exact, lower = run(start).model, run(replace(start, precision="bfloat16")).model
    for name, value in exact.items():
        assert lower[name].dtype == torch.float32
        assert torch.allclose(lower[name], value, atol=0.02)
    assert any(not torch.equal(lower[name], value) for name, value in exact.items())


def pictures(draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 1, 6, 6, generator=draw), torch.randint(0, 3, (4,), generator=draw)
