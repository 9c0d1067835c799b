"""R-GAP against closed forms, and what it must not claim where equations are missing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from attacks.pictures import psnr
from attacks.reconstruction.base import Knowledge, Updates
from attacks.reconstruction.chain import chain_of
from attacks.reconstruction.constraints import gradient_matrix, rank_analysis, taps, weight_matrix
from attacks.reconstruction.recursive import RecursiveGradientAttack
from fl_core.architectures import CNN, MLP, LeNet
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.models import cross_entropy, initial_parameters

SHAPE, CLASSES = (1, 8, 8), 10
ATTACK = RecursiveGradientAttack()


def pictures(count: int) -> tuple[Tensor, Tensor]:
    data, _ = digits(limit=count)
    return data.images, data.labels


def updates_of(
    model: nn.Module, images: Tensor, labels: Tensor, lr: float = 1.0, dtype: torch.dtype = torch.float64
) -> Updates:
    """What each of the pictures' owners sends back after one step: the new model less the old one."""
    model.to(dtype)
    start = {name: value.to(dtype) for name, value in initial_parameters(model, 0).items()}
    model.load_state_dict(start)
    moved: dict[str, list[Tensor]] = {name: [] for name in start}
    for image, label in zip(images.to(dtype), labels, strict=True):
        loss = cross_entropy(model(image[None]), label[None]).sum()
        for (name, value), grad in zip(start.items(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            moved[name].append((value - lr * grad) - value)
    sent = {name: value.expand(len(images), *value.shape) for name, value in start.items()}
    return Updates(view="server", sent=sent, moved={name: torch.stack(each) for name, each in moved.items()})


def knowing(model: nn.Module, **more: object) -> Knowledge:
    return Knowledge(**{"model": model, "shape": SHAPE, "classes": CLASSES, "lr": 1.0} | more)  # type: ignore[arg-type]


def convolutions(bias: bool, classes: int = CLASSES, act: type[nn.Module] = nn.LeakyReLU) -> nn.Sequential:
    """Two convolutions and a fully connected layer."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=bias), act(), nn.Conv2d(6, 6, 3, padding=1, bias=bias), act(),
        nn.Flatten(), nn.Linear(96, classes, bias=bias),
    )  # fmt: skip


def linears(*widths: int, bias: bool, act: type[nn.Module] = nn.LeakyReLU) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


LAYERS = [
    nn.Conv2d(2, 3, 3, stride=2, padding=1),
    nn.Conv2d(2, 4, (2, 3), padding=(0, 2)),
    nn.Conv2d(2, 2, 2, dilation=2, stride=3),
]


@pytest.mark.parametrize("layer", LAYERS, ids=["stride", "oblong", "dilated"])
def test_the_constraints_of_a_convolution_are_autograd_s(layer: nn.Conv2d):
    layer.double()
    draw = torch.Generator().manual_seed(0)
    entered = torch.randn(1, 2, 6, 5, generator=draw, dtype=torch.float64)
    output = layer(entered)
    at_output = torch.randn(output.shape, generator=draw, dtype=torch.float64)
    grad = torch.autograd.grad((output * at_output).sum(), layer.weight)[0]
    side = 6 * 5
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(output.numel(), 2)).double()
    link = chain_of(model, (2, 6, 5), "the test").links[0]
    matrix = gradient_matrix(taps(link), side, at_output[0].flatten(1))
    torch.testing.assert_close(matrix @ entered.view(2, side).T, grad.flatten(2).transpose(1, 2).flatten(0, 1))
    weights = weight_matrix(taps(link), side, layer.weight.detach().flatten(2))
    without = output[0] - layer.bias[:, None, None]
    torch.testing.assert_close(weights @ entered.flatten(), without.flatten())


@pytest.mark.parametrize("lr", [1.0, 0.01, None])
@pytest.mark.parametrize(
    "model",
    [
        linears(64, CLASSES, bias=True),
        linears(64, CLASSES, bias=False),
        linears(64, 30, 20, CLASSES, bias=False),
        linears(64, 30, CLASSES, bias=False, act=nn.Tanh),
        convolutions(bias=True),
        convolutions(bias=False),
        convolutions(bias=False, act=nn.Tanh),
        LeNet(SHAPE, CLASSES),
        MLP(SHAPE, CLASSES, hidden=(30,)),
        CNN(SHAPE, CLASSES, width=32, halve="stride"),
    ],
    ids=["one layer", "no bias", "three", "tanh", "convs", "convs, no bias", "tanh convs", "lenet", "mlp", "cnn"],
)
def test_a_picture_and_its_label_come_out_to_the_last_digits(model: nn.Module, lr: float | None):
    images, labels = pictures(3)
    updates = updates_of(model, images, labels, lr or 1.0)
    found = ATTACK.run(updates, knowing(model, lr=lr))
    assert found.images.shape == (3, 1, 1, *SHAPE)
    assert (found.selected()[:, 0] - images).abs().max() < 1e-8
    assert torch.equal(found.selected_labels()[:, 0], labels)
    assert found.exact.all()


def test_two_classes_without_a_bias_leave_two_answers_of_which_the_update_picks_one():
    images, labels = pictures(12)
    model = convolutions(bias=False, classes=2)
    found = ATTACK.run(updates_of(model, images, labels % 2), knowing(model, classes=2))
    assert torch.equal(found.selected_labels()[:, 0], labels % 2)
    assert (found.selected()[:, 0] - images).abs().max() < 1e-8
    assert (found.evaluations >= 3).all()  # both, and the check


@pytest.mark.parametrize(
    ("model", "least"),
    [(LeNet(SHAPE, CLASSES), 110), (convolutions(bias=False), 80), (linears(64, 30, CLASSES, bias=False), 100)],
)  # fmt: skip
def test_differences_of_float32_models_are_enough_for_small_nets(model: nn.Module, least: float):
    images, labels = pictures(4)
    found = ATTACK.run(updates_of(model, images, labels, lr=0.1, dtype=torch.float32), knowing(model, lr=0.1))
    assert psnr(found.selected(), images[:, None]).min() > least
    assert found.exact.all()


def test_noise_on_the_update_leaves_an_answer_that_is_not_called_exact():
    images, labels = pictures(2)
    model = LeNet(SHAPE, CLASSES)
    updates = updates_of(model, images, labels)
    draw = torch.Generator().manual_seed(0)
    near = {}
    for noise in (1e-6, 1e-2):
        moved = {
            name: value + noise * torch.randn(value.shape, generator=draw, dtype=torch.float64)
            for name, value in updates.moved.items()
        }
        noisy = Updates(view="server", sent=updates.sent, moved=moved)
        found = ATTACK.run(noisy, knowing(model, noise=noise))
        near[noise] = psnr(found.selected(), images[:, None]).mean()
        assert not found.exact.any()
    assert near[1e-6] > near[1e-2] + 20


def test_told_labels_are_used_and_victims_do_not_meet():
    images, labels = pictures(3)
    model = convolutions(bias=False)
    updates = updates_of(model, images, labels)
    together = ATTACK.run(updates, knowing(model, labels=labels[:, None]))
    assert torch.equal(together.selected_labels()[:, 0], labels)
    alone = ATTACK.run(updates.select(slice(1, 2)), knowing(model, labels=labels[1:2, None]))
    assert torch.equal(alone.images[0], together.images[1])


# Missing equations


def narrow() -> nn.Sequential:
    """A convolution of 2x2 patches into one number each: of 64 pixels, 16 outputs and 4 weights tell at most 20."""
    return nn.Sequential(nn.Conv2d(1, 1, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, CLASSES))


def test_equations_are_counted_as_by_hand():
    def counted(conv: nn.Conv2d, out: int) -> tuple[int, int, int]:
        layer = rank_analysis(nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(out, 2)), (1, 4, 4)).layers[0]
        return layer.unknowns, layer.gradient, layer.weight

    assert counted(nn.Conv2d(1, 1, 1), 16) == (16, 1, 16)  # one weight, and one output a pixel
    assert counted(nn.Conv2d(1, 3, 1, stride=2), 12) == (16, 3, 12)
    assert counted(nn.Conv2d(1, 1, 2, stride=2), 4) == (16, 4, 4)
    assert counted(nn.Conv2d(1, 9, 4), 9) == (16, 16, 9)  # as a fully connected layer over all pixels


def test_the_analysis_names_the_layer_that_lacks_equations():
    analysis = rank_analysis(narrow(), SHAPE)
    assert not analysis.recoverable
    assert analysis.layers[0].index == 20 - 64
    assert analysis.verdict == "0 has 64 unknowns and at most 20 equations"
    assert rank_analysis(LeNet(SHAPE, CLASSES), SHAPE).recoverable
    relu = CNN((3, 32, 32), CLASSES, width=16, halve="stride")
    assert rank_analysis(relu, (3, 32, 32)).recoverable
    assert not rank_analysis(relu, (3, 32, 32), active=0.5).recoverable


def test_a_model_that_lacks_equations_is_refused_or_its_answer_not_called_exact():
    images, labels = pictures(2)
    model = narrow()
    updates = updates_of(model, images, labels)
    with pytest.raises(InputError, match="0 has 64 unknowns and at most 20 equations; set try_deficient"):
        ATTACK.run(updates, knowing(model))
    found = RecursiveGradientAttack(try_deficient=True).run(updates, knowing(model))
    assert torch.isfinite(found.images).all()
    assert psnr(found.selected(), images[:, None]).max() < 40
    assert not found.exact.any()


def test_equations_that_repeat_each_other_make_no_exact_answer():
    # Two outputs of the same weights count twice and say the same; every picture of the null space fits the update.
    model = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(64, CLASSES))
    assert rank_analysis(model, SHAPE).recoverable
    images, labels = pictures(2)
    images = 0.25 + images / 2  # no pixel at an edge, where cutting would show
    updates = updates_of(model, images, labels)
    same = {name: value.clone() for name, value in updates.sent.items()}
    same["0.weight"] = same["0.weight"][:, :1].expand_as(same["0.weight"])
    same["0.bias"] = torch.zeros_like(same["0.bias"])
    model.load_state_dict({name: value[0] for name, value in same.items()})
    moved: dict[str, list[Tensor]] = {name: [] for name in same}
    for image, label in zip(images.double(), labels, strict=True):
        loss = cross_entropy(model(image[None]), label[None]).sum()
        for name, grad in zip(same, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            moved[name].append(-grad)
    found = ATTACK.run(
        Updates(view="server", sent=same, moved={k: torch.stack(v) for k, v in moved.items()}), knowing(model)
    )
    assert (found.objective < 1e-6).all()
    assert not found.exact.any()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"examples": 2}, "recovers one picture from an update, and 2 are behind"),
        ({"examples": 1, "epochs": 2}, "needs an update of one local step"),
    ],
)
def test_several_pictures_or_steps_are_refused(more: dict[str, int], why: str):
    images, labels = pictures(1)
    model = LeNet(SHAPE, CLASSES)
    with pytest.raises(InputError, match=why):
        ATTACK.run(updates_of(model, images, labels), knowing(model, **more))


def test_a_model_that_ends_in_a_convolution_is_refused():
    images, labels = pictures(1)
    model = nn.Sequential(nn.Conv2d(1, CLASSES, 8), nn.Flatten())
    with pytest.raises(InputError, match="last layer is fully connected"):
        ATTACK.run(updates_of(model, images, labels), knowing(model))


def test_a_picture_whose_gradient_stops_on_the_way_is_not_answered():
    images, labels = pictures(1)
    model = MLP(SHAPE, CLASSES, hidden=(6,))
    updates = updates_of(model, images, labels)
    moved = {
        name: torch.zeros_like(value) if name.startswith("hidden") else value for name, value in updates.moved.items()
    }
    found = ATTACK.run(Updates(view="server", sent=updates.sent, moved=moved), knowing(model))
    assert torch.isnan(found.images).all()
    assert torch.isinf(found.objective).all()
    assert not found.exact.any()


def test_a_system_above_the_largest_is_left_to_gradient_constraints():
    # LeNet on 8x8 pixels does with these; 16 weights of 2x2 patches say too little of 64 pixels.
    images, labels = pictures(2)
    model = LeNet(SHAPE, CLASSES)
    updates = updates_of(model, images, labels)
    assert RecursiveGradientAttack(largest=1).run(updates, knowing(model)).exact.all()
    few = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(64, CLASSES))
    updates = updates_of(few, images, labels)
    assert ATTACK.run(updates, knowing(few)).exact.all()
    found = RecursiveGradientAttack(largest=63).run(updates, knowing(few))
    assert not found.exact.any()
    assert psnr(found.selected(), images[:, None]).max() < 40
