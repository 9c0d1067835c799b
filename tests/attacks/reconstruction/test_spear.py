"""SPEAR: directions of hand-made sparse columns, then whole batches off the engine's own updates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.pictures import match, psnr
from attacks.reconstruction.base import Reconstruction, Updates
from attacks.reconstruction.sparse_directions import Mixture, find_directions, null_directions, often_off
from attacks.reconstruction.spear import Spear
from experiments.studies.victims import Victims, drawn
from fl_core.architectures import CNN, MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.models import initial_parameters


def mixed(pictures: int, noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[∂W ∂b] of a made-up layer of 120 units on 30 inputs, and X, ∂Z, W and b."""
    draw = torch.Generator().manual_seed(pictures)
    entered = torch.randn(pictures, 30, generator=draw, dtype=torch.float64)
    weight, bias = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((120, 30), (120,)))
    on = entered @ weight.T + bias > 0
    columns = torch.randn(120, pictures, generator=draw, dtype=torch.float64) * on.T
    gradient = columns @ torch.cat([entered, torch.ones(pictures, 1)], 1)
    gradient = gradient + noise * torch.randn(gradient.shape, generator=draw, dtype=torch.float64)
    return gradient, entered, columns, weight, bias


def in_order_of(found: Tensor, truth: Tensor) -> list[int]:
    return torch.cdist(truth, found).argmin(1).tolist()


# Known answers


def test_a_null_direction_is_orthogonal_to_its_rows():
    left = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = torch.arange(50).view(10, 5)
    found = null_directions(left, sets)
    assert torch.einsum("sab,sb->sa", left[sets], found).abs().max() < 1e-12
    torch.testing.assert_close(found.norm(dim=1), torch.ones(10, dtype=torch.float64))


def test_units_that_are_off_for_known_pictures_are_tried_first():
    assert often_off(torch.zeros(0, 3, dtype=torch.bool)).tolist() == [0.5, 0.5, 0.5]
    off = torch.tensor([[True, False, True], [True, False, False]])
    assert often_off(off).tolist() == [0.75, 0.25, 0.5]


@pytest.mark.parametrize("pictures", [1, 2, 5, 9])
def test_hand_made_sparse_columns_are_separated_to_rounding(pictures: int):
    gradient, entered, columns, weight, bias = mixed(pictures)
    mixture = Mixture.of(gradient, pictures)
    draw = torch.Generator().manual_seed(1)
    directions = find_directions(mixture, weight, bias, samples=40_000, chunk=2000, draw=draw)
    assert directions is not None
    separated = mixture.separated(directions)
    assert separated is not None
    order = in_order_of(separated[0], entered)
    assert sorted(order) == list(range(pictures))
    torch.testing.assert_close(separated[0][order], entered, rtol=0, atol=1e-9)
    torch.testing.assert_close(separated[1][:, order], columns, rtol=0, atol=1e-9)


def test_noise_leaves_an_error_of_its_own_size():
    gradient, entered, _, weight, bias = mixed(5, noise=1e-4)
    mixture = Mixture.of(gradient, 5)
    assert mixture.noise == pytest.approx(1e-4, rel=0.1)
    draw = torch.Generator().manual_seed(1)
    directions = find_directions(mixture, weight, bias, samples=40_000, chunk=2000, draw=draw)
    assert directions is not None
    separated = mixture.separated(directions)
    assert separated is not None
    error = (separated[0][in_order_of(separated[0], entered)] - entered).square().mean().sqrt()
    assert 1e-6 < error < 1e-3


def test_columns_without_zeros_have_no_direction():
    draw = torch.Generator().manual_seed(0)
    gradient = torch.randn(120, 4, generator=draw, dtype=torch.float64) @ torch.randn(4, 31, generator=draw).double()
    weight, bias = torch.randn(120, 30).double(), torch.randn(120).double()
    assert find_directions(Mixture.of(gradient, 4), weight, bias, samples=4000, chunk=2000, draw=draw) is None


# On updates


def victims(examples: int, count: int = 2, model: nn.Module | None = None, lr: float = 1.0, run: int = 0) -> Victims:
    pool, _ = digits()
    model = model or MLP(pool.shape, 10, hidden=(400, 50))
    start = {name: value[None] for name, value in initial_parameters(model, 0).items()}
    return Victims(model=model, start=start, pool=pool, rows=drawn(pool, count, 1, examples, run), lr=lr)


def in_doubles(round: Victims) -> Updates:
    """The updates [victims, ...] by autograd in float64."""
    moved = []
    for images, labels in zip(round.images.double(), round.labels, strict=True):
        model = MLP(round.pool.shape, 10, hidden=(400, 50)).double()
        model.load_state_dict({name: value[0].double() for name, value in round.start.items()})
        loss = F.cross_entropy(model(images), labels)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        moved.append([-round.lr * grad for grad in grads])
    stacked = {name: torch.stack(each) for name, each in zip(round.start, zip(*moved, strict=True), strict=True)}
    sent = {name: round.start[name].double().expand_as(value) for name, value in stacked.items()}
    return Updates(view="server", sent=sent, moved=stacked)


def assert_recovered(found: Reconstruction, truth: Victims, least: float) -> None:
    assert found.exact.all()
    for victim in range(len(truth.images)):
        order = match(found.selected()[victim], truth.images[victim])
        assert psnr(found.selected()[victim][order], truth.images[victim]).min() > least
        assert torch.equal(found.selected_labels()[victim][order], truth.labels[victim])


@pytest.mark.parametrize("examples", [1, 4, 8])
def test_a_batch_is_recovered_exactly_with_its_labels(examples: int):
    truth = victims(examples)
    found = Spear().run(in_doubles(truth), truth.knowledge())
    assert_recovered(found, truth, least=200)
    assert found.objective.max() < 1e-10


@pytest.mark.parametrize("examples", [4, 8])
def test_the_engine_s_own_updates_in_float32_give_the_batch_away(examples: int):
    truth = victims(examples)
    assert_recovered(Spear().run(truth.updates(Spear.name), truth.knowledge()), truth, least=100)


@pytest.mark.heavy
def test_sixteen_pictures_are_recovered_exactly():
    truth = victims(16)
    assert_recovered(Spear().run(truth.updates(Spear.name), truth.knowledge()), truth, least=100)


def test_the_rate_need_not_be_known():
    truth = victims(4, lr=0.2)
    told = dataclasses.replace(truth.knowledge(), lr=None)
    assert_recovered(Spear().run(truth.updates(Spear.name), told), truth, least=100)


def test_a_victim_s_answer_does_not_depend_on_who_else_is_attacked():
    truth = victims(4, count=3)
    seen = truth.updates(Spear.name)
    whole = Spear().run(seen, truth.knowledge())
    alone = Spear().run(seen.select(slice(2, 3)), truth.knowledge(), victims=[2])
    torch.testing.assert_close(whole.images[2:], alone.images, rtol=0, atol=0)
    assert torch.equal(whole.labels[2:], alone.labels)


def test_pictures_that_a_batch_holds_twice_leave_a_gap_and_are_not_called_exact():
    truth = victims(4, count=1)
    twice = dataclasses.replace(truth, rows=truth.rows[..., [0, 1, 2, 2]])
    found = Spear().run(twice.updates(Spear.name), twice.knowledge())
    answered = torch.isfinite(found.images[0, 0]).flatten(1).all(1)
    assert answered.tolist() == [True, True, True, False]
    assert found.labels[0, 0, 3] == -1
    assert not found.exact.any()
    assert found.objective.isinf().all()


# What it cannot do


def assert_no_answer(found: Reconstruction) -> None:
    assert found.images.isnan().all()
    assert (found.labels == -1).all()
    assert found.objective.isinf().all()
    assert not found.exact.any()


def test_too_few_samples_and_a_smooth_activation_have_no_answer():
    truth = victims(16, count=1)
    assert_no_answer(Spear(samples=500).run(truth.updates(Spear.name), truth.knowledge()))
    smooth = victims(4, count=1, model=MLP((1, 8, 8), 10, hidden=(400, 50), activation="tanh"))
    assert_no_answer(Spear(samples=20_000).run(smooth.updates(Spear.name), smooth.knowledge()))


def test_a_batch_larger_than_the_layer_can_tell_has_no_answer():
    truth = victims(70, count=1)  # 64 pixels and a bias
    assert_no_answer(Spear(samples=1000).run(truth.updates(Spear.name), truth.knowledge()))


def test_noise_is_never_called_exact():
    truth = victims(4, count=1)
    seen = truth.updates(Spear.name)
    draw = torch.Generator().manual_seed(0)
    moved = {name: value + 1e-3 * torch.randn(value.shape, generator=draw) for name, value in seen.moved.items()}
    told = dataclasses.replace(truth.knowledge(), noise=1e-3)
    assert not Spear(samples=5000).run(dataclasses.replace(seen, moved=moved), told).exact.any()


def test_a_first_layer_that_was_pruned_away_has_no_answer():
    truth = victims(4, count=1)
    seen = truth.updates(Spear.name)
    still = {name: value * (not name.startswith("hidden.0")) for name, value in seen.moved.items()}
    assert_no_answer(Spear(samples=1000).run(dataclasses.replace(seen, moved=still), truth.knowledge()))


def test_what_it_cannot_attack_is_refused_in_one_line():
    conv = victims(2, count=1, model=CNN((1, 8, 8), 10, width=4))
    with pytest.raises(InputError, match="attacks like SPEAR need a first layer that is fully connected"):
        Spear().run(conv.updates(Spear.name), conv.knowledge())
    truth = victims(4, count=1)
    seen = truth.updates(Spear.name)
    with pytest.raises(InputError, match="holds 4 pictures at least, not 3"):
        Spear().run(seen, dataclasses.replace(truth.knowledge(), examples=3))
    with pytest.raises(InputError, match="one local step"):
        Spear().run(seen, dataclasses.replace(truth.knowledge(), steps=2))
    with pytest.raises(InputError, match="samples"):
        Spear(samples=0)
