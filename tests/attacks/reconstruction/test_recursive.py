"""One picture behind a chain of layers, from the loss back to the pixels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from attacks.pictures import psnr
from attacks.reconstruction.recursive import RecursiveGradients, chain_of, recoverable
from fl_core.architectures import CNN, MLP, LeNet
from fl_core.errors import InputError
from fl_core.residual import ResNet
from tests.attacks.reconstruction.made import CLASSES, SHAPE, batches, knows, one_step


def chain(activation: type[nn.Module] = nn.LeakyReLU) -> nn.Module:
    """A small one after the paper's: strided convolutions without a bias, then a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, stride=2, padding=1, bias=False),
        activation(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        activation(),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
def test_a_picture_behind_strided_convolutions_comes_out(activation: type[nn.Module]):
    model = chain(activation)
    assert all(layer.enough for layer in recoverable(model, SHAPE))
    images, labels = batches(3, 1)
    found = RecursiveGradients().run(one_step(model, images, labels), knows(model, 1, None))
    assert torch.equal(found.selected_labels(), labels)
    assert psnr(found.selected()[:, 0], images[:, 0]).min() > 49
    assert found.exact.all()


def test_a_model_of_one_s_own_that_normalises_first_is_followed():
    images, labels = batches(2, 1)
    for model in (LeNet(SHAPE, CLASSES), MLP(SHAPE, CLASSES, hidden=(100, 80), activation="tanh")):
        found = RecursiveGradients().run(one_step(model, images, labels), knows(model, 1))
        assert psnr(found.selected()[:, 0], images[:, 0]).min() > 49


def test_the_rank_says_beforehand_which_network_keeps_its_pictures():
    # One channel of 3x3 at stride 4: 4 outputs and 9 slopes for 64 pixels.
    model = nn.Sequential(nn.Conv2d(1, 1, 3, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(4, CLASSES))
    first = recoverable(model, SHAPE)[0]
    assert (first.name, first.unknown, first.enough) == ("0", 64, False)
    assert first.rank <= 13
    images, labels = batches(1, 1)
    found = RecursiveGradients().run(one_step(model, images, labels), knows(model, 1))
    assert psnr(found.selected()[:, 0], images[:, 0]).max() < 20


def test_models_and_batches_that_cannot_be_followed_are_refused_in_a_line():
    with pytest.raises(InputError, match="R-GAP cannot undo relu"):
        chain_of(CNN(SHAPE, CLASSES, halve="stride"))
    with pytest.raises(InputError, match="R-GAP"):
        chain_of(ResNet(SHAPE, CLASSES))
    model = chain()
    seen = one_step(model, *batches(1, 2))
    with pytest.raises(InputError, match="one picture behind an update, and was told of 2"):
        RecursiveGradients().run(seen, knows(model, 2))
    with pytest.raises(InputError, match="one local step"):
        RecursiveGradients().run(seen, dataclasses.replace(knows(model, 2), steps=2))
