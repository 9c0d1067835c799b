"""The cocktail party: known sources out of known mixtures, then pictures off the engine's own updates."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from attacks.pictures import match, psnr
from attacks.reconstruction.cocktail import GAUSSIAN, CocktailParty, nongaussianity, whitened
from experiments.studies.victims import Victims, drawn
from fl_core.architectures import CNN, MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.models import initial_parameters

SHAPE = (1, 16, 16)


def squares() -> Tensor:
    """Four pictures [4, 256] of mean 0 and variance 1 with a square each, at places of their own."""
    pictures = torch.zeros(4, 16, 16)
    for place, (row, column) in enumerate([(1, 1), (1, 9), (9, 1), (9, 9)]):
        pictures[place, row : row + 5, column : column + 5 - place % 2] = 1
    flat = pictures.flatten(1)
    return (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True, correction=0)


# Known answers


def test_log_cosh_tells_a_coin_from_a_gaussian():
    coin = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    assert nongaussianity(coin).item() == pytest.approx(math.log(math.cosh(1)) - GAUSSIAN, abs=1e-9)
    drawn_normal = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # log cosh of a normal number has a deviation of 0.41: five deviations of the mean are 0.0032.
    assert nongaussianity(drawn_normal).item() < 0.0032
    assert nongaussianity(torch.full((3,), 300.0)).isfinite()


def test_whitened_mixtures_have_mean_0_and_are_uncorrelated_with_variance_1():
    gradient = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)).double() @ squares()[:3].double() + 0.3
    whitening, white = whitened(gradient, 3)
    torch.testing.assert_close(white @ white.T / 256, torch.eye(3).double(), rtol=0, atol=1e-9)
    assert white.mean(1).abs().max() < 1e-9
    centred = gradient - gradient.mean(1, keepdim=True)
    torch.testing.assert_close(whitening @ centred, white, rtol=0, atol=1e-9)


def test_a_mixture_of_known_sources_is_unmixed():
    sources = squares()
    mixing = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    _, white = whitened((mixing @ sources).double(), 4)
    start = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(2))
    rows, losses = CocktailParty(iterations=150).unmix(white.float(), start, SHAPE)
    alike = (rows[losses.argmin()] @ white.float() @ sources.T / 256).abs()
    before = (torch.nn.functional.normalize(start[0], dim=1) @ white.float() @ sources.T / 256).abs()
    assert alike.amax(0).min() > 0.95
    assert sorted(alike.argmax(1).tolist()) == [0, 1, 2, 3]
    assert before.amax(0).min() < 0.9


def test_lanes_are_unmixed_as_they_are_alone():
    _, white = whitened((torch.randn(30, 4, generator=torch.Generator().manual_seed(1)) @ squares()).double(), 4)
    start = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
    attack = CocktailParty(iterations=5)
    rows, losses = attack.unmix(white.float(), start, SHAPE)
    alone, loss = attack.unmix(white.float(), start[1:2], SHAPE)
    torch.testing.assert_close(rows[1:2], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(losses[1:2], loss, rtol=0, atol=1e-5)


# On updates


def victims(examples: int, count: int = 2, model: nn.Module | None = None) -> Victims:
    pool, _ = digits()
    model = model or MLP(pool.shape, 10, hidden=(100,))
    start = {name: value[None] for name, value in initial_parameters(model, 0).items()}
    return Victims(model=model, start=start, pool=pool, rows=drawn(pool, count, 1, examples, 0), lr=1.0)


def test_pictures_of_a_batch_are_told_apart_better_than_by_their_mean():
    truth = victims(4, count=3)
    found = CocktailParty(restarts=2, iterations=200).run(truth.updates(CocktailParty.name), truth.knowledge())
    assert found.images.shape == (3, 2, 4, 1, 8, 8)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.objective.shape == (3, 2)
    assert not found.exact.any()
    assert found.evaluations.tolist() == [20] * 3
    pool, _ = digits()
    blind = pool.images.mean(0, keepdim=True)
    scores, nulls = [], []
    for victim in range(3):
        answer = found.selected()[victim]
        scores.append(torch.as_tensor(psnr(answer[match(answer, truth.images[victim])], truth.images[victim])))
        nulls.append(torch.as_tensor(psnr(blind.expand(4, -1, -1, -1), truth.images[victim])))
    assert torch.stack(scores).mean() > torch.stack(nulls).mean() + 2


def test_a_single_picture_needs_no_unmixing():
    truth = victims(1)
    found = CocktailParty(iterations=1).run(truth.updates(CocktailParty.name), truth.knowledge())
    assert psnr(found.selected()[:, 0], truth.images[:, 0]).min() > 100
    assert torch.equal(found.selected_labels(), truth.labels)


def test_a_victim_s_answer_does_not_depend_on_who_else_is_attacked():
    truth, attack = victims(4, count=3), CocktailParty(iterations=5)
    seen = truth.updates(attack.name)
    whole = attack.run(seen, truth.knowledge())
    alone = attack.run(seen.select(slice(2, 3)), truth.knowledge(), victims=[2])
    torch.testing.assert_close(whole.images[2:], alone.images, rtol=0, atol=1e-5)


def test_pictures_that_a_batch_holds_twice_leave_a_gap():
    truth = victims(4, count=1)
    twice = dataclasses.replace(truth, rows=truth.rows[..., [0, 1, 2, 2]])
    found = CocktailParty(iterations=2).run(twice.updates(CocktailParty.name), twice.knowledge())
    assert torch.isfinite(found.images[0, 0]).flatten(1).all(1).tolist() == [True, True, True, False]
    assert found.labels[0, 0, 3] == -1


def test_what_it_cannot_attack_is_refused_in_one_line():
    conv = victims(2, count=1, model=CNN((1, 8, 8), 10, width=4))
    with pytest.raises(InputError, match="cocktail parties need a first layer that is fully connected"):
        CocktailParty().run(conv.updates(CocktailParty.name), conv.knowledge())
    truth = victims(4, count=1)
    with pytest.raises(InputError, match="holds 4 pictures at least, not 3"):
        CocktailParty().run(truth.updates(CocktailParty.name), dataclasses.replace(truth.knowledge(), examples=3))
    with pytest.raises(InputError, match="restarts"):
        CocktailParty(restarts=0)
