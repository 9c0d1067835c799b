"""Recorded steps: the same bits as plain ones, and plain ones wherever that cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from defenses.clipping import Clipping
from defenses.rules import ClipAndNoise
from fl_core import lanes, recorded
from fl_core.architectures import CNN, MLP, ConvNet, LeNet, McMahanCNN
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, takes_channels_last, variables_of
from fl_core.optimizers import SGD, Tree
from fl_core.recorded import Recordings, Unrecordable, record, recordings_of
from fl_core.residual import ResNet
from fl_core.sampling import ExampleFeed
from fl_core.seeds import Generators

SHAPE = (1, 12, 12)


def batches(*sizes: int, lanes: int = 3, seed: int = 0) -> ExampleFeed:
    """A feed of random pictures, one step a size."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(50, *SHAPE, generator=draw)
    labels = torch.randint(0, 4, (50,), generator=draw)
    images = images.contiguous(memory_format=torch.channels_last)
    plan = [[torch.randint(0, 50, (size,), generator=draw) for size in sizes] for _ in range(lanes)]
    return ExampleFeed(images, labels, plan)


def stacked(model: nn.Module, lanes: int = 3) -> Tree:
    return {name: torch.stack([value] * lanes) for name, value in variables_of(model).items()}


class Counting(Recordings):
    """Counts the calls that found the gradient plainly."""

    def __init__(self) -> None:
        super().__init__(record_at=1)
        self.plain = 0
        self.all = 0

    def run(self, name: object, function: recorded.Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        def counted(*values: Tensor) -> Sequence[Tensor]:
            self.plain += 1
            return function(*values)

        self.all += 1
        return super().run(name, counted, inputs)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: CNN(SHAPE, 4, width=4),
    "cnn with stride and GroupNorm": lambda: CNN(SHAPE, 4, width=4, norm="group", halve="stride"),
    "mlp": lambda: MLP(SHAPE, 4, hidden=(6,)),
    "mcmahan": lambda: McMahanCNN(SHAPE, 4, width=2),
    "lenet": lambda: LeNet(SHAPE, 4),
    "convnet": lambda: ConvNet(SHAPE, 4, width=4),
    "resnet": lambda: ResNet(SHAPE, 4, depth=8, width=8),
}


@pytest.mark.parametrize("rule", [None, ClipAndNoise(Clipping(norm=1.0), 0.5, 4.0)], ids=["SGD", "DP-SGD"])
@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("model", MODELS)
def test_replayed_steps_come_to_the_same_bits(model: str, backend: lanes.Backend, rule: ClipAndNoise | None) -> None:
    net = MODELS[model]()
    start, losses, feed = stacked(net), ClassificationLosses(net), batches(*[5, 4] * 5)

    def train(recordings: Recordings) -> Tree:
        noise = Generators([1, 2, 3], torch.device("cpu"))
        optimizer, last = SGD(lr=0.1), takes_channels_last(net)
        more = {"rule": rule, "generators": noise, "backend": backend, "channels_last": last}
        return descend(start, losses, feed, optimizer, recordings=recordings, **more)

    wanted = train(Recordings(record_at=1000))
    recordings = Counting()
    found = train(recordings)
    assert recordings.plain <= 4  # recorded and checked, for each of two layouts
    assert recordings.all == (10 if backend == "vmap" else 30)
    for name, value in wanted.items():
        assert torch.equal(found[name], value)


def test_a_recording_goes_on_in_the_next_call() -> None:
    net, recordings = CNN(SHAPE, 4, width=4), Counting()
    for _ in range(3):
        descend(stacked(net), ClassificationLosses(net), batches(5), SGD(lr=0.1), backend="vmap", recordings=recordings)
    assert (recordings.plain, recordings.all) == (2, 3)


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: [x * 2 if x.sum() > 0 else x],
        lambda x: [x * x.max().item()],
        lambda x: [x if torch.equal(x, x.round()) else -x],
        lambda x: [x[x > 0].sum()],
        lambda x: [torch.unique(x).sum()],
    ],
)
def test_a_function_that_depends_on_values_is_refused(reads: Callable[[Tensor], list[Tensor]]) -> None:
    with pytest.raises(Unrecordable):
        record(reads, [torch.ones(3)])


def test_one_tensor_for_two_inputs_is_not_recorded() -> None:
    same, other = torch.ones(2), torch.zeros(2)
    recordings = Recordings(record_at=1)
    for pair in ((same, same), (same, same), (same, same), (same, other), (same, other), (other, same), (same, same)):
        found = recordings.run("minus", lambda x, y: [x - y], pair)
        assert torch.equal(found[0], pair[0] - pair[1])


def test_an_index_of_whole_numbers_is_replayed() -> None:
    _, replay = record(lambda x, rows: [x[rows]], [torch.ones(3), torch.tensor([0, 2])])
    assert torch.equal(replay(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1]))[0], torch.tensor([2.0, 2.0]))


class Forking(nn.Module):
    """Takes another path for bright pictures, by looking at them."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.bright = nn.Linear(144, 4), nn.Linear(144, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(1)
        return self.bright(flat) if flat.mean() > 0.5 else self.dark(flat)


def test_a_model_that_forks_on_values_takes_its_own_path_every_time() -> None:
    net = Forking()
    start, losses = stacked(net, 1), ClassificationLosses(net)
    feed = batches(*[3] * 20, lanes=1)  # of pictures on either side of one half
    wanted = descend(start, losses, feed, SGD(lr=0.5), backend="loop")
    moved = {name.split(".")[0] for name, value in wanted.items() if not torch.equal(value, start[name])}
    assert moved == {"dark", "bright"}
    found = descend(start, losses, feed, SGD(lr=0.5), backend="loop", recordings=Recordings(record_at=1))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_replay_that_disagrees_is_never_used() -> None:
    calls = []

    def function(x: Tensor) -> list[Tensor]:
        calls.append(x)
        return [x + len(calls)]

    recordings = Recordings()
    for call in range(1, 30):
        assert recordings.run("counts", function, [torch.zeros(2)])[0][0] == call


def test_constants_of_a_model_are_kept() -> None:
    scale, shift = torch.tensor(3.0), torch.tensor(1.0)
    found, replay = record(lambda x: [x * scale + shift * torch.tensor(2.0)], [torch.ones(2)])
    assert torch.equal(found[0], torch.full((2,), 5.0))
    assert torch.equal(replay(torch.zeros(2))[0], torch.full((2,), 2.0))


def test_operations_in_place_are_replayed() -> None:
    def function(x: Tensor) -> list[Tensor]:
        doubled = x * 2
        doubled[0].add_(1)
        doubled.view(-1)[1:].mul_(3)
        return [doubled]

    _, replay = record(function, [torch.ones(3)])
    given = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(replay(given)[0], torch.tensor([3.0, 12.0, 18.0]))
    assert torch.equal(given, torch.tensor([1.0, 2.0, 3.0]))


def test_another_layout_has_a_recording_of_its_own() -> None:
    recordings = Recordings(record_at=1)
    flat = torch.arange(6.0).view(2, 3)
    for value in (flat, flat.double(), flat.T.contiguous().T, flat[:1]):
        for _ in range(4):
            found = recordings.run("sum", lambda x: [vmap(torch.sum)(x)], [value])
            assert torch.equal(found[0], value.sum(1))
            assert found[0].dtype == value.dtype
    assert len(recordings._known) == 4


class Own(nn.Module):
    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        self.layer, self.slope = nn.Linear(144, 4), slope

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.layer(pixels.flatten(1)), self.slope)


def test_recordings_are_found_again_by_what_a_model_holds_but_its_parameters() -> None:
    net = CNN(SHAPE, 4, width=4)
    kept = recordings_of(net, "a")
    assert recordings_of(CNN(SHAPE, 4, width=4), "b") is kept
    assert recordings_of(CNN(SHAPE, 4, width=8), "a") is not kept
    assert recordings_of(CNN(SHAPE, 4, width=4, halve="stride"), "a") is not kept
    assert recordings_of(MLP(SHAPE, 4, activation="relu"), "a") is not recordings_of(
        MLP(SHAPE, 4, activation="tanh"), "a"
    )


def test_recordings_of_code_of_ones_own_last_for_one_run() -> None:
    kept = recordings_of(Own(), "a")
    assert recordings_of(Own(), "a") is kept
    assert recordings_of(Own(), "b") is not kept
    assert recordings_of(Own(slope=0.2), "a") is not kept
    unpicklable = Own()
    unpicklable.hook = lambda: None
    assert recordings_of(unpicklable, "a") is not recordings_of(unpicklable, "a")


def test_recording_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from fl_core.recorded import record\n"
        "record(lambda x: torch.autograd.grad((x.requires_grad_() * 2).sum(), [x]), [torch.ones(2)])\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
