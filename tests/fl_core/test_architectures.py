"""The models are the ones of the papers that they name, and all keep the engine's contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call, grad, vmap

from fl_core.architectures import CNN, MLP, NORMS, ConvNet, LeNet, McMahanCNN, norm_layer
from fl_core.errors import InputError
from fl_core.factories import from_path
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.residual import HeConv2d, ResNet, WideResNet

CONF = Path(__file__).parents[2] / "conf/model"
CLASSES = 3

Build = Callable[[tuple[int, int, int]], nn.Module]
SHARE_NOTHING: dict[str, Build] = {
    "cnn": lambda shape: CNN(shape, CLASSES, width=4),
    "cnn, group": lambda shape: CNN(shape, CLASSES, width=4, norm="group", halve="stride"),
    "mlp": lambda shape: MLP(shape, CLASSES, hidden=[8, 6], activation="tanh"),
    "softmax regression": lambda shape: MLP(shape, CLASSES, hidden=[]),
    "mcmahan": lambda shape: McMahanCNN(shape, CLASSES, width=2),
    "lenet": lambda shape: LeNet(shape, CLASSES),
    "lenet, default": lambda shape: LeNet(shape, CLASSES, activation="leaky_relu", init="default"),
}
BATCH: dict[str, Build] = {}
for norm in NORMS:
    where = BATCH if norm == "batch" else SHARE_NOTHING
    where[f"convnet, {norm}"] = lambda shape, norm=norm: ConvNet(shape, CLASSES, width=4, norm=norm)
    where[f"resnet8, {norm}"] = lambda shape, norm=norm: ResNet(shape, CLASSES, depth=8, width=4, norm=norm)
    where[f"resnet18, {norm}"] = lambda shape, norm=norm: ResNet(shape, CLASSES, depth=18, width=4, norm=norm)
    where[f"wrn10-1, {norm}"] = lambda shape, norm=norm: WideResNet(shape, CLASSES, depth=10, widen=1, norm=norm)
EVERY = SHARE_NOTHING | BATCH


def count(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def load(model: nn.Module, values: nn.Module) -> None:
    """Give a model the parameters of another, in order."""
    for mine, theirs in zip(model.parameters(), values.parameters(), strict=True):
        mine.data = theirs.data.clone()


# --- the contract ---


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 10, 13)])
def test_pictures_of_one_or_three_channels_become_one_logit_a_class(name: str, shape: tuple[int, int, int]):
    assert EVERY[name](shape)(torch.rand(2, *shape)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", EVERY)
def test_pixels_are_normalised_inside(name: str):
    model = EVERY[name]((1, 9, 9))
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 9, 9))
    assert seen[0].flatten(1)[:, 0].tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_every_parameter(name: str):
    model = EVERY[name]((3, 9, 9)).double()
    images = torch.rand(8, 3, 9, 9, dtype=torch.float64)
    nn.functional.cross_entropy(model(images), torch.arange(8) % CLASSES).backward()
    for path, value in model.named_parameters():
        assert value.grad is not None, path
        if name == "convnet, batch" and path.startswith("convs") and path.endswith("bias"):
            assert value.grad.abs().max() < 1e-12, "BatchNorm takes the mean away, and the bias before it too"
        else:
            assert value.grad.abs().max() > 1e-9, path


@pytest.mark.parametrize("name", SHARE_NOTHING)
def test_stacked_lanes_and_examples_give_the_gradients_of_one_at_a_time(name: str):
    model = SHARE_NOTHING[name]((1, 9, 9))
    losses = ClassificationLosses(model)
    lanes = [initial_parameters(model, seed) for seed in range(2)]
    stacked = {path: torch.stack([lane[path] for lane in lanes]) for path in lanes[0]}
    images, labels = torch.rand(2, 3, 1, 9, 9), torch.randint(CLASSES, (2, 3))

    def loss(parameters, image, label):
        return losses(parameters, image[None], label[None])[0]

    together = vmap(vmap(grad(loss), in_dims=(None, 0, 0)))(stacked, images, labels)
    torch.testing.assert_close(
        vmap(losses)(stacked, images, labels),
        torch.stack([losses(lane, images[at], labels[at]) for at, lane in enumerate(lanes)]),
        rtol=1e-5,
        atol=1e-5,
    )
    for at, lane in enumerate(lanes):
        for example in range(3):
            leaves = {path: value.clone().requires_grad_() for path, value in lane.items()}
            scores = functional_call(model, leaves, (images[at, example][None],))
            nn.functional.cross_entropy(scores, labels[at, example][None]).backward()
            for path, value in leaves.items():
                torch.testing.assert_close(together[path][at, example], value.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_an_example_s_output_depends_on_its_batch_under_batch_norm_alone(name: str):
    model = EVERY[name]((1, 9, 9)).double()
    images = torch.rand(5, 1, 9, 9, dtype=torch.float64)
    difference = (model(images)[2:4] - model(images[2:4])).abs().max()
    assert difference > 1e-3 if name in BATCH else difference < 1e-12


@pytest.mark.parametrize("name", EVERY)
def test_only_batch_norm_has_buffers(name: str):
    buffers = {path.rpartition(".")[2] for path, _ in EVERY[name]((1, 9, 9)).named_buffers()}
    assert buffers == ({"running_mean", "running_var", "num_batches_tracked"} if name in BATCH else set())


@pytest.mark.parametrize("name", EVERY)
def test_a_seed_sets_every_parameter_anew_except_the_constant_ones(name: str):
    model = EVERY[name]((3, 9, 9))
    first = initial_parameters(model, 1)
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(7.0)
    again, other = initial_parameters(model, 1), initial_parameters(model, 2)
    for path, value in first.items():
        assert torch.equal(value, again[path]), path
        layer, _, own = path.rpartition(".")
        place = model.get_submodule(layer)
        if isinstance(place, nn.GroupNorm | nn.BatchNorm2d) or (isinstance(place, HeConv2d) and own == "bias"):
            constant = 1.0 if own in ("weight", "running_var") else 0.0
            assert value.eq(constant).all(), path
            assert other[path].eq(constant).all(), path
        else:
            assert not value.eq(other[path]).all(), path


# --- the papers ---


@pytest.mark.parametrize(("width", "parameters"), [(32, 1_663_370), (16, 417_482), (4, 26_714)])
def test_the_mcmahan_cnn_has_the_papers_parameters(width: int, parameters: int):
    assert count(McMahanCNN((1, 28, 28), 10, width=width)) == parameters


def test_the_default_mlp_is_mcmahan_s_2nn():
    assert count(MLP((1, 28, 28), 10)) == 199_210


def test_dlg_s_lenet_has_768_inputs_to_its_linear_layer():
    model = LeNet((3, 32, 32), 100)
    assert model.head.in_features == 768
    assert count(model) == 85_036


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_geiping_s_convnet_has_the_released_code_s_parameters(norm: str):
    model = ConvNet((3, 32, 32), 10, norm=norm)
    assert count(model) == 2_904_970
    statistics = sum(value.numel() for value in model.buffers())
    assert statistics == (3_208 if norm == "batch" else 0)  # two of each of 1600 channels, eight counters


def conv(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, size // 2)


def plain_convnet() -> nn.Sequential:
    widths = [3, 4, 8, 8, 16, 16, 16, 16, 16]
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), 1):
        layers += [conv(before, after, 3), nn.ReLU()] + [nn.MaxPool2d(3)] * (number in (6, 8))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 3 * 3, 5))


SIGMOID, RELU = nn.Sigmoid(), nn.ReLU()
PLAIN = {
    "mlp": (
        lambda: MLP((3, 32, 32), 5, hidden=[7, 6]),
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 7), RELU, nn.Linear(7, 6), RELU, nn.Linear(6, 5)
        ),
    ),
    "mcmahan": (
        lambda: McMahanCNN((3, 32, 32), 5, width=2),
        lambda: nn.Sequential(
            *(conv(3, 2, 5), RELU, nn.MaxPool2d(2), conv(2, 4, 5), RELU, nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(256, 32), RELU, nn.Linear(32, 5)),
        ),
    ),
    "lenet": (
        lambda: LeNet((3, 32, 32), 5),
        lambda: nn.Sequential(
            *(conv(3, 12, 5, 2), SIGMOID, conv(12, 12, 5, 2), SIGMOID, conv(12, 12, 5), SIGMOID),
            *(nn.Flatten(), nn.Linear(768, 5)),
        ),
    ),
    "convnet": (lambda: ConvNet((3, 32, 32), 5, width=4, norm="none"), plain_convnet),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_computes_what_its_layers_in_a_row_compute(name: str):
    model, plain = (build() for build in PLAIN[name])
    load(plain, model)
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(pixels), plain(2 * pixels - 1))


def test_lenet_starts_uniform_between_minus_and_plus_one_half():
    """The range always holds; at 15,826 draws neither end is missed by 0.01, but with odds below 1e-60."""
    values = torch.cat([value.flatten() for value in initial_parameters(LeNet((3, 32, 32), 10), 0).values()])
    assert values.min() >= -0.5
    assert values.max() <= 0.5
    assert values.min() < -0.49
    assert values.max() > 0.49


def test_torch_s_own_initialisation_starves_lenet_s_first_layer_of_gradient():
    norms = {}
    for init in ("uniform", "default"):
        model = LeNet((3, 32, 32), 10, init=init)
        nn.functional.cross_entropy(model(torch.rand(8, 3, 32, 32)), torch.arange(8)).backward()
        norms[init] = model.conv1.weight.grad.norm()
    assert norms["default"] < norms["uniform"] / 50


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (8, 2), (12, 3), (18, 3), (64, 16), (128, 32), (144, 24), (256, 32), (512, 32)]
)
def test_group_norm_has_four_channels_a_group_and_at_most_32_groups(channels: int, groups: int):
    layer = norm_layer("group", channels)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: McMahanCNN((1, 8, 8), 2, width=0), r"model\.width is 0"),
        (lambda: McMahanCNN((1, 8, 3), 2), r"images are 8x3; McMahan's CNN needs at least 4x4 pixels"),
        (lambda: MLP((1, 8, 8), 2, hidden=[8, 0]), r"a width in model\.hidden is 0"),
        (lambda: MLP((1, 8, 8), 2, hidden=8), r"model\.hidden is 8; it must be a list"),
        (lambda: MLP((1, 8, 8), 2, activation="relo"), r"model\.activation is 'relo'.*did you mean 'relu'"),
        (lambda: LeNet((1, 8, 8), 2, activation="gelu"), r"model\.activation is 'gelu'"),
        (lambda: LeNet((1, 8, 8), 2, init="dlg"), r"model\.init is 'dlg'; allowed: default, uniform"),
        (lambda: ConvNet((1, 8, 8), 2), r"images are 8x8; the ConvNet needs at least 9x9 pixels"),
        (lambda: ConvNet((1, 9, 9), 2, width=3), r"model\.width is 3"),
        (lambda: ConvNet((1, 9, 9), 2, norm="layer"), r"model\.norm is 'layer'; allowed: batch, group, none"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(build: Callable[[], nn.Module], message: str):
    with pytest.raises(InputError, match=message):
        build()


# --- conf/model ---

PUBLISHED = {
    "mlp": 656_810,
    "lenet": 15_826,
    "convnet": 2_904_970,
    "resnet8": 78_042,
    "resnet18": 11_173_962,
    "resnet20_4": 4_327_754,
    "wrn16_4": 2_748_890,
    "wrn28_2": 1_467_610,
}
"""Parameters on 3x32x32 pixels with 10 classes."""


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configured_model_names_all_its_options_and_is_the_published_size(path: Path):
    config = OmegaConf.load(path)
    target = config["_target_"]
    made = from_path if path.stem == "custom" else get_class(target)
    assert list(config)[1:] == list(inspect.signature(made).parameters)[2:], "every option, in the order of the code"
    if path.stem != "custom":
        with torch.device("meta"):  # sizes without memory
            model = instantiate(config, shape=(3, 32, 32), classes=10, _convert_="all")
        assert count(model) == PUBLISHED.get(path.stem, count(model))


def test_every_published_size_belongs_to_a_configured_model():
    assert PUBLISHED.keys() <= {path.stem for path in CONF.glob("*.yaml")}
