"""One training loop: every backend gives the numbers of a plain PyTorch loop, however lanes are stacked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from defenses.clipping import Clipping
from defenses.rules import ClipAndNoise
from fl_core import lanes
from fl_core.architectures import CNN
from fl_core.errors import InputError
from fl_core.lanes import Batch, descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD, Adam, Optimizer, Tree
from fl_core.sampling import ExampleFeed
from fl_core.seeds import generator

NONE: list[int] = []
RAGGED = [
    [[0, 1, 2, 3], [4, 5], [6], [7, 8, 9], [10, 11], [12], [13, 14], [15, 16]],
    [[20, 21], [22, 23, 24, 25, 26], [27], [28], [29], [30], [31], [32, 33]],
    [[40, 41, 42], [43]],
    NONE,
]
"""Rows of the pool by lane and step: uneven batches, lanes that stop early, one that never starts."""

POISSON = [
    [[], [1, 2, 3], [], [4], [5, 6], [], [7]],
    [[], [8], [9, 10], [], [], [11, 12, 13], [14]],
]
"""Batches that may be empty, once for both lanes at the same step."""


def pool() -> tuple[Tensor, Tensor]:
    draw = generator(0, "pool")
    return torch.rand(64, 1, 8, 8, generator=draw), torch.randint(0, 5, (64,), generator=draw)


def stack_of_models(model: nn.Module, lanes: int) -> Tree:
    each = [initial_parameters(model, seed) for seed in range(lanes)]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def feed_of(plan: Sequence[Sequence[Sequence[int]]], device: str = "cpu") -> ExampleFeed:
    images, labels = pool()
    batches = [[torch.tensor(batch, dtype=torch.long) for batch in lane] for lane in plan]
    return ExampleFeed(images.to(device), labels.to(device), batches)


def train(
    backend: str,
    plan: Sequence[Sequence[Sequence[int]]] = RAGGED,
    *,
    optimizer: Optimizer | None = None,
    rule: ClipAndNoise | None = None,
    norm: str = "group",
    device: str = "cpu",
) -> Tree:
    model = CNN((1, 8, 8), 5, width=4, norm=norm)
    start = {name: value.to(device) for name, value in stack_of_models(model, len(plan)).items()}
    found = descend(
        start,
        ClassificationLosses(model.to(device)),
        feed_of(plan, device),
        optimizer or SGD(lr=0.2, momentum=0.9),
        rule=rule,
        generators=[generator(0, "noise", lane, device=device) for lane in range(len(plan))],
        backend=backend,
    )
    return {name: value.cpu() for name, value in found.items()}


def assert_same(one: Tree, other: Tree, tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance)


def plain_pytorch(plan: Sequence[Sequence[Sequence[int]]], momentum: float) -> Tree:
    """What anyone would write: one model after another, torch's own module, loss and optimiser."""
    images, labels = pool()
    finished = []
    for lane, batches in enumerate(plan):
        model = CNN((1, 8, 8), 5, width=4, norm="group")
        model.load_state_dict(initial_parameters(model, lane))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=momentum)
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        finished.append({name: value.detach() for name, value in model.named_parameters()})
    return {name: torch.stack([one[name] for one in finished]) for name in finished[0]}


@pytest.fixture
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` has timed nothing yet, so it tries both backends on the first steps."""
    monkeypatch.setattr(lanes, "_fastest", {})


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("backend", ["vmap", "loop", "auto"])
def test_a_stack_of_ragged_lanes_is_a_plain_pytorch_loop(backend: str, momentum: float):
    assert_same(train(backend, optimizer=SGD(lr=0.2, momentum=momentum)), plain_pytorch(RAGGED, momentum=momentum))


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize("plan", [RAGGED, POISSON])
def test_backends_agree_on_dp_sgd_under_the_same_generators(plan):
    rule = ClipAndNoise(Clipping(norm=0.5), 0.7, 3.0)
    stacked = train("vmap", plan, rule=rule)
    assert_same(stacked, train("loop", plan, rule=rule))
    assert_same(stacked, train("auto", plan, rule=rule))


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize("norm", ["none", "group"])
def test_backends_agree_on_empty_batches_without_a_rule(norm: str):
    # Poisson sampling without a defence: an empty batch has no gradient, and no NaN.
    stacked = train("vmap", POISSON, norm=norm)
    assert all(torch.isfinite(value).all() for value in stacked.values())
    assert_same(stacked, train("loop", POISSON, norm=norm))
    assert_same(stacked, train("auto", POISSON, norm=norm))


def test_auto_remembers_what_it_timed(monkeypatch: pytest.MonkeyPatch):
    remembered: dict = {}
    monkeypatch.setattr(lanes, "_fastest", remembered)
    train("auto")
    assert len(remembered) == 1
    assert set(remembered.values()) <= {"vmap", "loop"}


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("rule", [None, ClipAndNoise(Clipping(norm=0.5), 0.7, 3.0)])
def test_a_lane_with_fewer_steps_keeps_its_variables_in_bits(backend: str, rule: ClipAndNoise | None):
    # With momentum and with noise, a lane that were still moved would coast or jitter.
    whole = train(backend, rule=rule)
    cut = train(backend, [lane[:2] for lane in RAGGED], rule=rule)
    start = stack_of_models(CNN((1, 8, 8), 5, width=4, norm="group"), len(RAGGED))
    for name, value in whole.items():
        assert torch.equal(value[2], cut[name][2])
        assert torch.equal(value[3], start[name][3])
        assert not torch.equal(value[0], cut[name][0])


@pytest.mark.parametrize("rule", [None, ClipAndNoise(Clipping(norm=0.5), 0.7, 3.0)])
def test_a_diverging_lane_does_not_touch_its_idle_neighbour(rule: ClipAndNoise | None):
    # Lane 1 stopped; lane 0 runs on to values where its losses overflow.
    plan = [[[1, 2]] * 6, [[3]]]
    found = train("vmap", plan, optimizer=SGD(lr=1e30), rule=rule)
    assert not torch.isfinite(found["head.weight"][0]).all() or found["head.weight"][0].abs().max() > 1e20
    alone = train("vmap", [plan[0][:1], plan[1]], optimizer=SGD(lr=1e30), rule=rule)
    assert torch.equal(found["head.weight"][1], alone["head.weight"][1])


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_results_do_not_depend_on_how_lanes_are_chunked(backend: str):
    model = CNN((1, 8, 8), 5, width=4)
    start = stack_of_models(model, 4)

    def chunk(which: slice) -> Tree:
        return descend(
            {name: value[which] for name, value in start.items()},
            ClassificationLosses(model),
            feed_of(RAGGED[which]),
            SGD(lr=0.2, momentum=0.9),
            backend=backend,
        )

    parts = [chunk(slice(0, 1)), chunk(slice(1, 3)), chunk(slice(3, 4))]
    joined = {name: torch.cat([part[name] for part in parts]) for name in start}
    assert_same(chunk(slice(0, 4)), joined)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_the_same_call_gives_the_same_bits_and_leaves_its_input_alone(backend: str):
    start = stack_of_models(CNN((1, 8, 8), 5, width=4), 4)
    kept = {name: value.clone() for name, value in start.items()}
    model = CNN((1, 8, 8), 5, width=4)
    runs = [
        descend(start, ClassificationLosses(model), feed_of(RAGGED), SGD(lr=0.2), backend=backend) for _ in range(2)
    ]
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name])
        assert torch.equal(start[name], kept[name])


class _Constant:
    """The same inputs at every step, as a reconstruction has them."""

    def __init__(self, inputs: tuple[Tree, Tree, Tensor], steps: int) -> None:
        self.steps, self.inputs = steps, inputs

    def stacked(self, step: int) -> Batch:
        del step
        labels = self.inputs[2]
        return Batch(self.inputs, torch.ones(len(labels), 1, dtype=torch.float64))

    def one(self, step: int, lane: int) -> Batch:
        del step
        cut = slice(lane, lane + 1)
        models, observed = ({name: leaf[cut] for name, leaf in tree.items()} for tree in self.inputs[:2])
        return Batch((models, observed, self.inputs[2][cut]), torch.ones(1, 1, dtype=torch.float64))


@pytest.mark.usefixtures("_forgetful")
def test_backends_agree_on_signed_adam_on_images():
    # The inverting-gradients objective (Geiping et al. 2020, eq. 4): a gradient of a gradient. In
    # float64, since a sign amplifies the last bit of a gradient near zero to a whole step.
    model = CNN((1, 8, 8), 5, width=4, halve="stride").double()
    lanes_, steps = 3, 24
    models = {name: value.double() for name, value in stack_of_models(model, lanes_).items()}
    images, labels = (value[:lanes_] for value in pool())

    def task(parameters: Tree, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image,)), label)

    targets = images.double().unsqueeze(1)
    observed = torch.func.vmap(torch.func.grad(task))(models, targets, labels[:, None])

    def objective(variables: Tree, parameters: Tree, theirs: Tree, label: Tensor) -> Tensor:
        guess = torch.func.grad(task)(parameters, variables["pixels"], label)
        along = sum((guess[name] * theirs[name]).sum() for name in guess)
        own = sum(value.square().sum() for value in guess.values())
        other = sum(value.square().sum() for value in theirs.values())
        rough = variables["pixels"].diff(dim=-1).abs().mean() + variables["pixels"].diff(dim=-2).abs().mean()
        return (1 - along / (own * other).sqrt() + 0.01 * rough).unsqueeze(0)

    start = torch.rand(targets.shape, generator=generator(0, "restart"), dtype=torch.float64)
    found = {
        backend: descend(
            {"pixels": start},
            objective,
            _Constant((models, observed, labels[:, None]), steps),
            Adam(lr=0.1, steps=steps),
            backend=backend,
        )
        for backend in ("vmap", "loop", "auto")
    }
    assert_same(found["vmap"], found["loop"])
    assert_same(found["vmap"], found["auto"])
    assert (found["vmap"]["pixels"] - start).abs().max() > 0.2


def test_each_step_is_reported_where_the_backend_goes_step_by_step():
    model = CNN((1, 8, 8), 5, width=4)
    for backend, expected in (("vmap", list(range(8))), ("loop", [7])):
        seen: list[int] = []
        descend(
            stack_of_models(model, 4),
            ClassificationLosses(model),
            feed_of(RAGGED),
            SGD(lr=0.1),
            backend=backend,
            on_step=seen.append,
        )
        assert seen == expected


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match=r"backend is 'vmapp'; allowed: auto, loop, vmap"):
        train("vmapp")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_cuda_gives_the_cpu_s_numbers(backend: str):
    # Without noise, which a GPU draws from its own generator, and without TF32 in the convolutions.
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for rule in (None, ClipAndNoise(Clipping(norm=0.5), 0.0, 3.0)):
            on_gpu = train(backend, rule=rule, device="cuda")
            assert_same(on_gpu, train(backend, rule=rule), tolerance=1e-4)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def test_one_stacked_lane_of_colour_pictures_with_channels_last_goes_through_group_norm():
    draw = generator(0, "colour")
    pictures = torch.rand(6, 8, 8, 3, generator=draw).permute(0, 3, 1, 2)  # as a trainer lays them out on a CPU
    labels = torch.randint(0, 4, (6,), generator=draw)
    model = CNN((3, 8, 8), 4, width=4, norm="group")
    start = {name: value.unsqueeze(0) for name, value in initial_parameters(model, 0).items()}
    feed = ExampleFeed(pictures, labels, [[torch.arange(6), torch.arange(3)]])
    each = [descend(start, ClassificationLosses(model), feed, SGD(lr=0.1), backend=one) for one in ("vmap", "loop")]
    assert_same(*each)
