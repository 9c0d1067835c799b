"""Large batches as independent components."""

from __future__ import annotations

import pytest
import torch

from attacks.pictures import match, psnr
from attacks.reconstruction.cocktail import CocktailParty, fast_ica, whiten
from fl_core.architectures import MLP
from fl_core.errors import InputError
from tests.attacks.reconstruction.made import CLASSES, SHAPE, batches, knows, one_step


def test_independent_components_are_told_apart_up_to_sign_order_and_length():
    # Sparse sources of 4,000 numbers, mixed into 9 rows: each is found at a correlation of at least 0.99.
    draw = torch.Generator().manual_seed(0)
    sources = torch.randn(2, 4, 4000, generator=draw, dtype=torch.float64).pow(3)
    mixing = torch.randn(2, 9, 4, generator=draw, dtype=torch.float64)
    white, whitening = whiten(mixing @ sources, 4)
    covariance = white @ white.transpose(1, 2) / 4000
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    start = torch.randn(2, 4, 4, generator=draw, dtype=torch.float64)
    unmixing = fast_ica(white, start, 100)
    for found, truth in zip(unmixing @ whitening @ mixing @ sources, sources, strict=True):
        alike = torch.corrcoef(torch.cat([found, truth]))[:4, 4:].abs()
        assert (alike.amax(0) > 0.99).all()


def test_pictures_of_a_batch_come_out_above_their_mean():
    # 32x32 pictures of a few bright boxes, as edges are: digits of 8x8 are too few pixels for statistics.
    shape, victims, examples = (1, 32, 32), 2, 8
    draw = torch.Generator().manual_seed(0)
    images = torch.zeros(victims * examples, *shape, dtype=torch.float64)
    for picture in images:
        for _ in range(4):
            top, left = torch.randint(0, 24, (2,), generator=draw).tolist()
            high, wide = torch.randint(3, 14, (2,), generator=draw).tolist()
            picture[:, top : top + high, left : left + wide] = torch.rand(1, generator=draw, dtype=torch.float64)
    images = images.unflatten(0, (victims, examples))
    labels = torch.randint(CLASSES, (victims, examples), generator=draw)
    model = MLP(shape, CLASSES, hidden=(64,))
    told = knows(model, examples, None, shape=shape)
    found = CocktailParty().run(one_step(model, images, labels), told)
    assert found.images.shape == (victims, 1, examples, *shape)
    assert not found.exact.any()
    for answer, truth in zip(found.selected(), images, strict=True):
        blind = psnr(images.flatten(0, 1).mean(0, keepdim=True).expand_as(truth), truth).mean()
        assert psnr(answer[torch.as_tensor(match(answer, truth))], truth).mean() > blind + 8


def test_a_batch_as_large_as_the_layer_is_refused():
    model = MLP(SHAPE, CLASSES, hidden=(8,))
    with pytest.raises(InputError, match="a layer that is wider than the batch"):
        CocktailParty().run(one_step(model, *batches(1, 16)), knows(model, 16))
