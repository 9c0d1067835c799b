"""Per-example gradients: the ones of each example by itself, for any model, however they are found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_core import per_example
from fl_core.architectures import CNN, MLP, ConvNet, LeNet, McMahanCNN, centred
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import Tree
from fl_core.per_example import example_gradients, stacked_example_gradients
from fl_core.recorded import record
from fl_core.residual import ResNet, WideResNet
from fl_core.rules import Gradients, Outer
from fl_core.tutorial import TutorialCNN


def problem(
    model: nn.Module, shape: tuple[int, int, int], lanes: int = 2, batch: int = 3, kind: torch.dtype = torch.float64
) -> tuple[ClassificationLosses, Tree, Tensor, Tensor]:
    """Losses, and variables, pictures and labels of all lanes."""
    draw = torch.Generator().manual_seed(0)
    first = [initial_parameters(model, lane) for lane in range(lanes)]
    variables = {name: torch.stack([one[name] for one in first]).to(kind) for name in first[0]}
    images = torch.rand(lanes, batch, *shape, generator=draw).to(kind)
    labels = torch.randint(0, 4, (lanes, batch), generator=draw)
    return ClassificationLosses(model.to(kind)), variables, images, labels


def alone(losses: ClassificationLosses, variables: Tree, images: Tensor, labels: Tensor) -> Tree:
    """The oracle [lanes, batch, ...]: autograd on one example after another, in batches of one."""
    rows: list[list[list[Tensor]]] = []
    for lane in range(len(images)):
        leaves = {name: value[lane].clone().requires_grad_() for name, value in variables.items()}
        each = [losses(leaves, images[lane, i : i + 1], labels[lane, i : i + 1]) for i in range(images.shape[1])]
        rows.append(
            [list(torch.autograd.grad(one.sum(), list(leaves.values()), materialize_grads=True)) for one in each]
        )
    return {
        name: torch.stack([torch.stack([example[place] for example in lane]) for lane in rows])
        for place, name in enumerate(variables)
    }


def both_ways(losses: ClassificationLosses, variables: Tree, images: Tensor, labels: Tensor) -> tuple[Tree, Tree]:
    """Lane by lane and stacked, each [lanes, batch, ...]."""
    each = [
        example_gradients(
            losses, {name: value[lane] for name, value in variables.items()}, (images[lane], labels[lane])
        )
        for lane in range(len(images))
    ]
    one_by_one = {name: torch.stack([made_whole(one)[name] for one in each]) for name in variables}
    return one_by_one, made_whole(stacked_example_gradients(losses, variables, (images, labels)))


def made_whole(gradients: Gradients) -> Tree:
    return {name: value.whole() if isinstance(value, Outer) else value for name, value in gradients.items()}


def assert_same(found: Tree, expected: Tree, tolerance: float = 1e-10) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


@pytest.fixture
def detours(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The calls that went by `by_vmap`, one entry each."""
    calls: list[object] = []
    plain = per_example.by_vmap

    def counted(losses: per_example.Losses, variables: Tree, inputs: per_example.Inputs) -> Tree:
        calls.append(losses)
        return plain(losses, variables, inputs)

    monkeypatch.setattr(per_example, "by_vmap", counted)
    return calls


GREY, RGB = (1, 16, 16), (3, 12, 12)
OURS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "cnn, stride": (lambda: CNN(GREY, 4, width=8, halve="stride"), GREY),
    "cnn, pool": (lambda: CNN(RGB, 4, width=8), RGB),
    "cnn, GroupNorm": (lambda: CNN(RGB, 4, width=8, norm="group"), RGB),
    "cnn, wide pictures": (lambda: CNN((3, 32, 36), 4, width=6), (3, 32, 36)),
    "mcmahan": (lambda: McMahanCNN(GREY, 4, width=6), GREY),
    "tutorial": (lambda: TutorialCNN((1, 28, 28), 4), (1, 28, 28)),
    "mlp": (lambda: MLP(GREY, 4, hidden=(6, 5), activation="leaky_relu"), GREY),
    "softmax regression": (lambda: MLP(GREY, 4, hidden=()), GREY),
    "lenet": (lambda: LeNet(RGB, 4), RGB),
    "convnet": (lambda: ConvNet(RGB, 4, width=8), RGB),
    "resnet": (lambda: ResNet(RGB, 4, depth=8, width=8), RGB),
    "wide resnet": (lambda: WideResNet(RGB, 4, depth=10, widen=1), RGB),
    "resnet without norm": (lambda: ResNet(RGB, 4, depth=8, width=8, norm="none"), RGB),
}


@pytest.mark.parametrize("name", OURS)
def test_our_models_get_each_example_s_own_gradient_without_a_detour(name: str, detours: list[object]) -> None:
    make, shape = OURS[name]
    given = problem(make(), shape)
    for found in both_ways(*given):
        assert_same(found, alone(*given))
    assert not detours


def test_a_linear_layer_s_gradients_are_kept_as_two_vectors_an_example():
    losses, variables, images, labels = problem(MLP(GREY, 4, hidden=(6,)), GREY)
    found = stacked_example_gradients(losses, variables, (images, labels))
    weights = [value for name, value in found.items() if name.endswith("weight")]
    assert len(weights) == 2
    for value in weights:
        assert isinstance(value, Outer)
        assert value.slope.shape[:2] == value.seen.shape[:2] == images.shape[:2]


@pytest.mark.parametrize("norm", ["none", "group"])
def test_channels_last_pictures_give_the_same(norm: str) -> None:
    losses, variables, images, labels = problem(CNN(RGB, 4, width=8, norm=norm), RGB, lanes=1)
    beside = images[0].contiguous(memory_format=torch.channels_last).unsqueeze(0)
    for found in both_ways(losses, variables, beside, labels):
        assert_same(found, alone(losses, variables, images, labels))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_replay_on_other_pictures_gives_their_gradients(batch: int) -> None:
    losses, variables, images, labels = problem(CNN(RGB, 4, width=8), RGB, batch=batch)
    names = list(variables)

    def function(*values: Tensor) -> Gradients:
        return stacked_example_gradients(losses, dict(zip(names, values, strict=False)), values[-2:])

    _, replay = record(function, [*variables.values(), images, labels])
    others = images.flip(0, 1).contiguous()
    with torch.no_grad():
        replayed = replay(*variables.values(), others, labels)
    assert_same(made_whole(replayed), alone(losses, variables, others, labels))


def test_half_precision_products_agree_with_each_example_s_own() -> None:
    losses, variables, images, labels = problem(
        CNN(RGB, 4, width=8, norm="group", halve="stride"), RGB, kind=torch.float32
    )
    expected = alone(losses, variables, images, labels)
    lower = ClassificationLosses(losses.model, "bfloat16")
    for found in both_ways(lower, variables, images, labels):
        for name, value in found.items():
            assert value.dtype == torch.float32
            assert (value - expected[name]).norm() <= 0.1 * expected[name].norm()


class OneOfOnesOwn(nn.Module):
    """A model whose forward pass is given."""

    def __init__(self, forward: Callable[[OneOfOnesOwn, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.own = nn.Linear(9, 4)
        self.given = forward
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.extra = nn.Parameter(torch.ones(9))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.given(self, centred(pixels))


def scaled(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    return self.own(pixels.flatten(1) * self.extra)  # a variable that no layer uses


def in_place(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    return F.relu(self.own(pixels.flatten(1)), inplace=True)


def assigned(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    scores = self.own(pixels.flatten(1))
    scores[:, 0] = 0.0
    return scores


def unfollowed(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = self.own(pixels.flatten(1))
    return self.own(pixels.flatten(1)) + hidden * 0.5


def layer(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    return self.own(self.conv(pixels).flatten(1))


STRANGE: dict[str, Callable[[], nn.Module]] = {
    "a variable outside layers": lambda: OneOfOnesOwn(scaled),
    "an operation in place": lambda: OneOfOnesOwn(in_place),
    "an assignment": lambda: OneOfOnesOwn(assigned),
    "a part without gradient": lambda: OneOfOnesOwn(unfollowed),
    "a dilated layer": lambda: OneOfOnesOwn(layer, conv=nn.Conv2d(1, 2, 3, padding=1, dilation=2)),
    "a layer's own padding": lambda: OneOfOnesOwn(layer, conv=nn.Conv2d(1, 1, 3, padding="same")),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_not_known_takes_the_detour_and_is_as_right(name: str, detours: list[object]) -> None:
    model = STRANGE[name]()
    if name == "a dilated layer":
        model.own = nn.Linear(2, 4)
    given = problem(model, (1, 3, 3))
    for found in both_ways(*given):
        assert_same(found, alone(*given))
    assert detours


def mixed_by_mean(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    scores = self.own(pixels.flatten(1))
    return scores - scores.mean(0, keepdim=True)


def mixed_by_transposing(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    return self.own(pixels.flatten(1).t().softmax(-1).t())


def mixed_by_rolling(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    return self.own(pixels.flatten(1).roll(1, 0))


def mixed_by_broadcasting(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    scores = self.own(pixels.flatten(1))  # four examples and four classes: the sums meet the wrong axis
    return scores + scores.sum(-1)


def mixed_by_norm(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
    return F.batch_norm(self.own(pixels.flatten(1)), None, None, training=True)


@pytest.mark.parametrize(
    "forward", [mixed_by_mean, mixed_by_transposing, mixed_by_rolling, mixed_by_broadcasting, mixed_by_norm]
)
def test_a_model_that_mixes_examples_is_never_given_the_whole_batch_s_gradient(
    forward: Callable[[OneOfOnesOwn, Tensor], Tensor], detours: list[object]
) -> None:
    given = problem(OneOfOnesOwn(forward), (1, 3, 3), batch=4)
    if forward is mixed_by_norm:  # refuses a batch of one, by `vmap` as in the oracle
        with pytest.raises(ValueError, match="more than 1 value"):
            both_ways(*given)
        return
    for found in both_ways(*given):
        assert_same(found, alone(*given))
    assert detours


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_strides_that_a_single_channel_leaves_open_change_no_bit(batch: int) -> None:
    model = CNN((1, 6, 6), 4, width=4)
    losses, variables, images, labels = problem(model, (1, 6, 6), lanes=1, batch=batch, kind=torch.float32)
    odd = images.as_strided(images.shape, (36 * batch, 36, 1, 6, 1))  # as a worker process gets them
    assert odd.stride() != images.stride()
    pairs = zip(both_ways(losses, variables, images, labels), both_ways(losses, variables, odd, labels), strict=True)
    for usual, other in pairs:
        assert all(torch.equal(value, other[name]) for name, value in usual.items())


def test_a_layer_used_twice_adds_its_gradients(detours: list[object]) -> None:
    def twice(self: OneOfOnesOwn, pixels: Tensor) -> Tensor:
        return self.own(self.square(self.square(pixels.flatten(1)).tanh()))

    given = problem(OneOfOnesOwn(twice, square=nn.Linear(9, 9)), (1, 3, 3))
    for found in both_ways(*given):
        assert_same(found, alone(*given))
    assert not detours  # and the parameter that nothing uses has gradient 0


def test_the_variables_are_left_as_they_were() -> None:
    losses, variables, images, labels = problem(CNN(RGB, 4, width=8), RGB)
    before = {name: value.clone() for name, value in variables.items()}
    both_ways(losses, variables, images, labels)
    for name, value in variables.items():
        assert torch.equal(value, before[name])
        assert not value.requires_grad
