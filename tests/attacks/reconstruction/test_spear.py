"""Whole batches off a ReLU layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.pictures import match, psnr
from attacks.reconstruction.spear import Spear, invert_layer
from fl_core.architectures import MLP
from fl_core.errors import InputError
from tests.attacks.reconstruction.made import CLASSES, SHAPE, batches, knows, one_step


@pytest.mark.parametrize(("examples", "victims"), [(1, 5), (2, 5), (4, 5), (8, 4)])
def test_every_picture_of_a_batch_comes_out_exactly_with_its_label(examples: int, victims: int):
    model = MLP(SHAPE, CLASSES, hidden=(256, 64))
    images, labels = batches(victims, examples)
    found = Spear(submatrices=200_000).run(one_step(model, images, labels), knows(model, examples, None))
    assert found.exact.all()
    for answer, named, truth, own in zip(found.selected(), found.selected_labels(), images, labels, strict=True):
        order = torch.as_tensor(match(answer, truth))
        assert psnr(answer[order], truth).min() > 150
        assert torch.equal(named[order], own)


def test_an_inner_layer_s_activations_come_out_as_well():
    torch.manual_seed(0)
    first, inner, head = nn.Linear(64, 100).double(), nn.Linear(100, 200).double(), nn.Linear(200, 10).double()
    images, labels = batches(1, 4)
    entered = torch.tanh(first(images[0].flatten(1)))
    loss = F.cross_entropy(head(F.relu(inner(entered))), labels[0])
    weight, bias = torch.autograd.grad(loss, [inner.weight, inner.bias])
    sent = (inner.weight.detach(), inner.bias.detach())
    found = invert_layer(weight, bias, sent, 4, torch.Generator().manual_seed(0))
    assert torch.cdist(found.inputs, entered.detach()).amin(0).max() < 1e-9


def test_a_layer_without_relu_gives_no_batch_away_and_says_so():
    model = MLP(SHAPE, CLASSES, hidden=(128,), activation="tanh")
    found = Spear(submatrices=2_000).run(one_step(model, *batches(2, 4)), knows(model, 4))
    assert not found.exact.any()
    assert found.images.isnan().all()
    assert (found.labels == -1).all()


def test_a_batch_as_large_as_the_layer_is_refused():
    model = MLP(SHAPE, CLASSES, hidden=(8,))
    with pytest.raises(InputError, match="a layer that is wider than the batch"):
        Spear().run(one_step(model, *batches(1, 16)), knows(model, 16))
