"""How many pictures an update holds, and whether an answer explains it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from attacks.reconstruction.base import Updates
from attacks.reconstruction.rank import check_examples, count_pictures
from attacks.reconstruction.verification import residual, tolerance
from fl_core.architectures import MLP, LeNet
from fl_core.errors import InputError
from tests.attacks.reconstruction.made import CLASSES, SHAPE, batches, knows, one_step


@pytest.mark.parametrize("examples", [1, 4, 16])
def test_the_rank_of_the_first_layer_s_gradient_is_the_batch_size(examples: int):
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    counted = count_pictures(one_step(model, *batches(5, examples)), knows(model, examples))
    assert counted.weight == "hidden.0.weight"
    assert counted.at_least.tolist() == [examples] * 5
    assert counted.told.all()


@pytest.mark.parametrize("examples", [1, 4, 16])
def test_in_float32_the_rank_is_never_above_the_batch_size(examples: int):
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    seen = one_step(model, *batches(10, examples, torch.float32), lr=0.01, subtract=True)
    found = count_pictures(seen, knows(model, examples, 0.01)).at_least
    assert (found <= examples).all()
    assert (found >= examples / 2).all()


def test_a_batch_size_that_is_too_small_is_refused_in_one_line():
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    seen = one_step(model, *batches(3, 4))
    with pytest.raises(InputError, match="the update holds 4 pictures at least, not 3") as caught:
        check_examples(seen, knows(model, 3))
    assert "\n" not in str(caught.value)
    assert check_examples(seen, knows(model, 8)) is not None  # eight of which some are alike, for all it can tell


def test_noise_that_the_attacker_knows_nothing_of_leaves_the_count_open():
    model = MLP(SHAPE, CLASSES, hidden=(48,))
    seen = one_step(model, *batches(2, 12))
    draw = torch.Generator().manual_seed(0)
    moved = {n: v + 1e-3 * torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in seen.moved.items()}
    counted = check_examples(Updates(view="server", sent=seen.sent, moved=moved), knows(model, 2))
    assert counted is not None
    assert not counted.told.any()


def test_noise_that_the_attacker_knows_of_adds_no_picture():
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    seen = one_step(model, *batches(5, 4))
    draw = torch.Generator().manual_seed(0)
    moved = {n: v + 1e-4 * torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in seen.moved.items()}
    noisy = Updates(view="server", sent=seen.sent, moved=moved)
    told = dataclasses.replace(knows(model, 4), noise=1e-4)
    assert count_pictures(noisy, told).at_least.tolist() == [4] * 5


def test_a_convolutional_model_is_counted_by_its_output_layer_and_one_without_any_is_not():
    model = LeNet(SHAPE, CLASSES)
    counted = count_pictures(one_step(model, *batches(3, 3)), knows(model, 3))
    assert (counted.weight, counted.limit) == ("head.weight", 9)
    assert counted.at_least.tolist() == [3] * 3
    convolutions = nn.Sequential(nn.Conv2d(1, CLASSES, 8), nn.Flatten())
    seen = one_step(convolutions, *batches(1, 1))
    with pytest.raises(InputError, match="no fully connected layer"):
        count_pictures(seen, knows(convolutions, 1))


def test_the_true_pictures_explain_the_update_and_others_do_not():
    model = MLP(SHAPE, CLASSES, hidden=(16,))
    for dtype in (torch.float64, torch.float32):
        images, labels = batches(4, 3, dtype)
        seen = one_step(model, images, labels, lr=0.1, subtract=True)
        for lr in (0.1, None):
            assert (residual(seen, knows(model, 3, lr), images, labels) <= tolerance(seen)).all()
        assert (residual(seen, knows(model, 3, 0.2), images, labels) > 0.5).all()
        assert (residual(seen, knows(model, 3, None), images.flip(0), labels.flip(0)) > 0.1).all()
        labels[0, 0], images[1, 0, 0, 0, 0] = -1, torch.nan
        assert residual(seen, knows(model, 3, 0.1), images, labels)[:2].isinf().all()
