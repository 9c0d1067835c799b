"""A fully connected first layer at batch 1, read off what a server sees; and label counts of larger sums."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from attacks.pictures import match, psnr
from attacks.reconstruction.base import Updates, updates_of
from attacks.reconstruction.fully_connected import FullyConnected, LayerKnowledge, layer_input
from attacks.reconstruction.labels import infer_label_counts, infer_label_from_weights
from attacks.reconstruction.prior import linear_prior
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import MLP, LeNet
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.federation import Federation, run
from fl_core.models import ClassificationLosses, cross_entropy, initial_parameters, logits
from fl_core.sampling import Shuffled
from fl_core.views import Recorder, Server
from tests.attacks.reconstruction.made import CLASSES, SHAPE, batches, knows, one_step

TOLD = LayerKnowledge(weight="hidden.0.weight", bias="hidden.0.bias", shape=SHAPE)


def test_a_server_reads_every_client_s_only_example_off_its_update():
    data, _ = digits(limit=20)
    model = MLP(SHAPE, CLASSES, hidden=(32,))
    federation = Federation(
        model=model,
        data=data,
        owners=torch.arange(20),
        members=torch.ones(1, 20, dtype=torch.bool),
        sizes=torch.ones(20, dtype=torch.long),
        algorithm=FedAvg(sampler=Shuffled(local_epochs=1, batch_size=1), lr=1.0),
        defense=Defense(),
        rounds=1,
        run=0,
        replica_ids=[0],
    )
    recorder = Recorder(view=Server)
    run(federation, recorder)
    seen = updates_of(recorder.observation(), 0, FullyConnected.name)
    found = FullyConnected().run(seen, knows(model, 1))
    assert found.images.shape == (20, 1, 1, *SHAPE)
    assert psnr(found.selected()[:, 0], data.images).min() > 100
    assert torch.equal(found.selected_labels()[:, 0], data.labels)
    assert found.exact.all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_picture_comes_out_to_rounding_whatever_the_normalisation(dtype: torch.dtype):
    class Standardised(MLP):
        def forward(self, pixels: Tensor) -> Tensor:
            scores: Tensor = super().forward((pixels - 0.13) / 0.31)
            return scores

    images, labels = batches(20, 1, dtype)
    for model in (MLP(SHAPE, CLASSES, hidden=(48,)), Standardised(SHAPE, CLASSES, hidden=(48,))):
        found = FullyConnected().run(one_step(model, images, labels), knows(model, 1, None))
        if dtype == torch.float64:
            assert (found.selected() - images).abs().max() <= 1e-12
        assert psnr(found.selected()[:, 0], images[:, 0]).min() > 140
        assert found.exact.all()


def test_pictures_of_a_batch_with_units_to_themselves_come_out_and_the_others_are_left_open():
    model = MLP(SHAPE, CLASSES, hidden=(200,))
    images, labels = batches(6, 4)
    found = FullyConnected().run(one_step(model, images, labels), knows(model, 4))
    assert found.exact.all()
    for answer, named, truth, own in zip(found.selected(), found.selected_labels(), images, labels, strict=True):
        order = torch.as_tensor(match(answer, truth))
        assert psnr(answer[order], truth).min() > 140
        assert torch.equal(named[order], own)
    images, labels = batches(6, 16)
    found = FullyConnected().run(one_step(model, images, labels), knows(model, 16))
    there = torch.isfinite(found.selected()).flatten(2).all(2)
    assert not found.exact.any()
    assert found.objective.isinf().all()
    assert 0 < there.sum() < there.numel()
    assert torch.equal(found.selected_labels() >= 0, there)
    for answer, truth in zip(found.selected(), images, strict=True):
        kept = answer[torch.isfinite(answer).flatten(1).all(1)].flatten(1)
        assert (torch.cdist(kept, truth.flatten(1)).amin(1) < 1e-9).all()


@pytest.mark.parametrize(
    ("deviation", "least", "most"), [(1e-5, 65, 72), (1e-4, 45, 52), (1e-3, 25, 31), (1e-2, 3, 10)]
)
def test_noise_takes_the_picture_long_before_the_label(deviation: float, least: float, most: float):
    # Unit quotients, ∂W_i/∂b_i of the largest ∂b_i, on an update clipped to 1: 68, 48, 28 and 7 dB on digits. The
    # attack's least squares over all units is never worse.
    model = MLP(SHAPE, CLASSES, hidden=(200, 200))
    images, labels = batches(40, 1)
    seen = one_step(model, images, labels)
    length = torch.stack([value.flatten(1).norm(dim=1) for value in seen.moved.values()]).norm(dim=0).clamp(min=1)
    draw = torch.Generator().manual_seed(1)
    moved = {
        name: value / length.view(-1, *[1] * (value.ndim - 1))
        + deviation * torch.randn(value.shape, generator=draw, dtype=value.dtype)
        for name, value in seen.moved.items()
    }
    noisy = Updates(view="server", sent=seen.sent, moved=moved)
    lane, row = torch.arange(40), moved[TOLD.bias].abs().argmax(1)
    quotient = (moved[TOLD.weight][lane, row] / moved[TOLD.bias][lane, row, None] + 1) / 2
    single = psnr(quotient.clamp(0, 1), images.flatten(1)).mean()
    found = FullyConnected().run(noisy, dataclasses.replace(knows(model, 1, None), noise=deviation))
    assert least <= single <= most
    assert psnr(found.selected()[:, 0].clamp(0, 1), images[:, 0]).mean() > single
    assert torch.equal(found.selected_labels(), labels)
    assert not found.exact.any()


def test_the_quotient_of_a_gradient_is_the_input_to_the_last_digits_of_a_double():
    data, _ = digits(limit=50)
    model = MLP(SHAPE, CLASSES, hidden=(32,)).double()
    start = {name: value.double() for name, value in initial_parameters(model, 0).items()}
    losses = ClassificationLosses(model)
    found = []
    for image, label in zip(data.images.double(), data.labels, strict=True):
        leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
        grads = torch.autograd.grad(losses(leaves, image[None], label[None]).sum(), list(leaves.values()))
        found.append(layer_input({name: grad[None] for name, grad in zip(leaves, grads, strict=True)}, TOLD)[0][0])
    assert (torch.stack(found) - data.images.double()).abs().max() <= 1e-12


def test_several_examples_come_out_as_a_mean_of_theirs():
    pictures = torch.rand(2, *SHAPE, dtype=torch.float64)
    parts = torch.tensor([[3.0, 1.0], [0.5, 0.5]], dtype=torch.float64)  # each unit's gradient of each example
    weight = parts @ (2 * pictures.flatten(1) - 1)
    found, deviation = layer_input({TOLD.weight: weight[None], TOLD.bias: parts.sum(1)[None]}, TOLD)
    assert deviation.item() == 0
    first = (4 * 3 + 1 * 0.5) / (4 * 4 + 1)
    torch.testing.assert_close(found[0], first * pictures[0] + (1 - first) * pictures[1])


def noisy(error: float, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A picture, its recovery from 400 units with that error in each coordinate, and what that says of its own."""
    parts = torch.randn(400, generator=draw, dtype=torch.float64)
    picture = torch.rand(1, *SHAPE, generator=draw, dtype=torch.float64)
    weight = parts[:, None] * (2 * picture.flatten(1) - 1)
    weight = weight + error * torch.randn(400, 64, generator=draw, dtype=torch.float64)
    bias = parts + error * torch.randn(400, generator=draw, dtype=torch.float64)
    told = dataclasses.replace(TOLD, error=error)
    found, deviation = layer_input({TOLD.weight: weight[None], TOLD.bias: bias[None]}, told)
    return picture, found, deviation


@pytest.mark.parametrize("error", [0.01, 0.3, 1.0])
def test_least_squares_tells_its_own_error(error: float):
    # A pixel is off by error/(2·√400), and a little more where ∂b is off, too; the mean of 30 pictures.
    draw = torch.Generator().manual_seed(0)
    trials = [noisy(error, draw) for _ in range(30)]
    squares = torch.stack([(found - picture).square().mean() for picture, found, _ in trials]).mean()
    told = torch.cat([deviation for *_, deviation in trials]).square().mean()
    if error < 1:  # as large as the units' own gradients, it is in every product
        assert squares.item() == pytest.approx((error / 2) ** 2 / 400, rel=0.6)
    assert squares.item() == pytest.approx(told.item(), rel=0.5)


def test_where_noise_is_all_that_there_is_the_error_says_so():
    draw = torch.Generator().manual_seed(1)
    told = dataclasses.replace(TOLD, error=1.0)
    noise = {TOLD.weight: torch.randn(100, 50, 64, generator=draw), TOLD.bias: torch.randn(100, 50, generator=draw)}
    _, deviation = layer_input(noise, told)
    # 3% of sums of squares are two deviations above their mean; 12 of 100 would be five deviations of that too many.
    assert torch.isfinite(deviation).sum() < 12


def test_public_pictures_even_noise_out_and_no_noise_is_worse_than_their_mean():
    pool, public = digits(test_fraction=0.5)
    prior = linear_prior(public.images)
    truth, mean = pool.images[:100], prior.mean.view(1, *SHAPE).float()
    blind = (truth - mean).square().mean()
    assert torch.equal(prior.estimate(truth, torch.zeros(100)), truth)
    for deviation in (0.05, 0.3, 3.0):
        seen = truth + deviation * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
        error = (prior.estimate(seen, torch.full((100,), deviation)) - truth).square().mean()
        assert error < min(0.8 * deviation**2, 1.02 * blind)
    lost = prior.estimate(torch.full((1, *SHAPE), 1e9), torch.tensor([torch.inf]))
    torch.testing.assert_close(lost, mean)
    with pytest.raises(InputError, match="at least two public pictures"):
        linear_prior(public.images[:1])


def test_what_cannot_be_read_is_refused_in_one_line():
    still = {TOLD.weight: torch.zeros(1, 4, 64), TOLD.bias: torch.zeros(1, 4)}
    with pytest.raises(InputError, match=r"hidden\.0\.bias did not move"):
        layer_input(still, TOLD)
    model = MLP(SHAPE, CLASSES, hidden=(32,))
    seen = one_step(model, *batches(2, 4))
    with pytest.raises(InputError, match="the update holds 4 pictures at least, not 2"):
        FullyConnected().run(seen, knows(model, 2))
    with pytest.raises(InputError, match="needs an update of one local step, and was told of 2"):
        FullyConnected().run(seen, dataclasses.replace(knows(model, 4), steps=2))
    net = LeNet(SHAPE, CLASSES)
    with pytest.raises(InputError, match="a first layer that is fully connected"):
        FullyConnected().run(one_step(net, *batches(2, 1)), knows(net, 1))


@pytest.mark.parametrize("size", [4, 32, 256])
def test_the_labels_of_a_whole_batch_are_counted_exactly(size: int):
    # An untrained network gives all pictures about the same chances, so that other pictures' mean is near enough.
    pool, public = digits()
    model = MLP(SHAPE, CLASSES, hidden=(200, 200))
    start = initial_parameters(model, 0)
    chances = logits(model, {name: value[None] for name, value in start.items()}, public.images)[0].softmax(-1).mean(0)
    model.load_state_dict(start)
    for batch in range(5):
        rows = torch.arange(size) + batch * size
        leaves = dict(model.named_parameters())
        loss = cross_entropy(model(pool.images[rows]), pool.labels[rows]).mean()
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        counts = infer_label_counts({name: grad[None] for name, grad in grads.items()}, chances, size)
        assert torch.equal(counts[0], torch.bincount(pool.labels[rows], minlength=CLASSES))


@pytest.mark.parametrize(("activation", "least", "most"), [("relu", 1.0, 1.0), ("tanh", 0.32, 0.68)])
def test_the_output_layer_s_weights_tell_the_label_where_no_unit_is_negative(
    activation: str, least: float, most: float
):
    # Each picture has a network of its own. Where units have both signs, their sum has either: a fair coin, of whose
    # 200 throws five deviations are 0.18 of the share.
    data, _ = digits(limit=200)
    model = MLP(SHAPE, CLASSES, hidden=(32,), activation=activation)
    losses = ClassificationLosses(model)
    gradients = []
    for one in range(len(data)):
        start = {name: value.requires_grad_() for name, value in initial_parameters(model, one).items()}
        loss = losses(start, data.images[[one]], data.labels[[one]]).sum()
        gradients.append(torch.autograd.grad(loss, start["head.weight"])[0])
    found = infer_label_from_weights({"head.weight": torch.stack(gradients)}, "head.weight")
    assert least <= (found == data.labels).double().mean() <= most
