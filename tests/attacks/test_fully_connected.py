"""A fully connected first layer at batch 1, read off what a server sees; and label counts of larger sums."""

from __future__ import annotations

import pytest
import torch

from attacks.metrics import psnr
from attacks.reconstruction.fully_connected import FullyConnected, LayerKnowledge, layer_input
from attacks.reconstruction.labels import label_counts
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.federation import Federation, run
from fl_core.models import ClassificationLosses, cross_entropy, initial_parameters, logits
from fl_core.sampling import Shuffled
from fl_core.views import Recorder, SecureServer, Server
from tests.observations import observation

SHAPE, CLASSES = (1, 8, 8), 10
TOLD = LayerKnowledge(weight="hidden.0.weight", bias="hidden.0.bias", shape=SHAPE)


def test_a_server_reads_every_client_s_only_example_off_its_update():
    data, _ = digits(limit=20)
    federation = Federation(
        model=MLP(SHAPE, CLASSES, hidden=(32,)),
        data=data,
        owners=torch.arange(20),
        members=torch.ones(1, 20, dtype=torch.bool),
        sizes=torch.ones(20, dtype=torch.long),
        algorithm=FedAvg(sampler=Shuffled(batch_size=1), lr=1.0),
        defense=Defense(),
        rounds=1,
        run=0,
        replica_ids=[0],
    )
    recorder = Recorder(view=Server)
    run(federation, recorder)
    seen = recorder.observation()
    assert isinstance(seen, Server)
    found = FullyConnected().run(seen, TOLD)
    assert found.shape == (1, 20, *SHAPE)
    assert psnr(found[0], data.images).min() > 100


def test_the_quotient_of_a_gradient_is_the_input_to_the_last_digits_of_a_double():
    data, _ = digits(limit=50)
    model = MLP(SHAPE, CLASSES, hidden=(32,)).double()
    start = {name: value.double() for name, value in initial_parameters(model, 0).items()}
    losses = ClassificationLosses(model)
    found = []
    for image, label in zip(data.images.double(), data.labels, strict=True):
        leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
        grads = torch.autograd.grad(losses(leaves, image[None], label[None]).sum(), list(leaves.values()))
        found.append(layer_input({name: grad[None] for name, grad in zip(leaves, grads, strict=True)}, TOLD)[0])
    assert (torch.stack(found) - data.images.double()).abs().max() <= 1e-12


def test_several_examples_come_out_as_a_mean_of_theirs():
    pictures = torch.rand(2, *SHAPE, dtype=torch.float64)
    parts = torch.tensor([[3.0, 1.0], [0.5, 0.5]], dtype=torch.float64)  # each unit's gradient of each example
    weight = parts @ (2 * pictures.flatten(1) - 1)
    found = layer_input({TOLD.weight: weight[None], TOLD.bias: parts.sum(1)[None]}, TOLD)
    first = (4 * 3 + 1 * 0.5) / (4 * 4 + 1)
    torch.testing.assert_close(found[0], first * pictures[0] + (1 - first) * pictures[1])


def test_least_squares_over_the_units_evens_noise_out():
    draw = torch.Generator().manual_seed(0)
    parts = torch.randn(400, generator=draw, dtype=torch.float64)
    noise = 0.3 * torch.randn(400, 64, generator=draw, dtype=torch.float64)
    picture = torch.rand(1, *SHAPE, generator=draw, dtype=torch.float64)
    weight = parts[:, None] * (2 * picture.flatten(1) - 1) + noise
    found = layer_input({TOLD.weight: weight[None], TOLD.bias: parts[None]}, TOLD)
    # Per pixel 0.3 / 2 / |∂b|: 400 units against the largest one, whose square is about 9.
    expected = (0.15**2 / parts.square().sum()).item()
    assert (found - picture).square().mean().item() == pytest.approx(expected, rel=0.6)  # 64 pixels: 3.4 deviations


def test_an_update_that_did_not_move_and_a_view_without_updates_are_refused():
    still = {TOLD.weight: torch.zeros(1, 4, 64), TOLD.bias: torch.zeros(1, 4)}
    with pytest.raises(InputError, match=r"hidden\.0\.bias did not move"):
        layer_input(still, TOLD)
    with pytest.raises(InputError, match="fully connected layer needs the view server; it was given secure_server"):
        FullyConnected().run(observation(SecureServer), TOLD)  # type: ignore[arg-type]
    nothing = observation(Server)
    with pytest.raises(InputError, match=r"round 0 was not recorded; recorded: \[\]"):
        FullyConnected().run(nothing, TOLD)


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
        loss = cross_entropy(model(pool.images[rows]), pool.labels[rows]).sum()
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        counts = label_counts({name: grad[None] for name, grad in grads.items()}, chances, size)
        assert torch.equal(counts[0].long(), torch.bincount(pool.labels[rows], minlength=CLASSES))
