"""Labels behind an update: where they are exact, and where they are known to be only likely."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.reconstruction.labels import (
    infer_labels,
    labels_of_pictures,
    llg_counts,
    present_classes,
)
from fl_core.architectures import MLP
from fl_core.data import digits
from fl_core.errors import InputError
from tests.attacks.reconstruction.made import CLASSES, SHAPE, batches, knows, one_step


def counted(labels: Tensor) -> Tensor:
    return F.one_hot(labels, CLASSES).sum(1)


def share_right(found: Tensor, truth: Tensor) -> float:
    """The share of labels recalled, as multisets."""
    return 1 - ((counted(found) - counted(truth)).abs().sum() / 2 / truth.numel()).item()


def without_bias(activation: str = "relu") -> MLP:
    model = MLP(SHAPE, CLASSES, hidden=(64,), activation=activation)
    model.head = nn.Linear(64, CLASSES, bias=False)
    return model


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("lr", [1.0, None])
def test_the_label_of_one_picture_is_always_found_with_a_bias_or_without(activation: str, lr: float | None):
    images, labels = batches(100, 1)
    for model in (MLP(SHAPE, CLASSES, hidden=(64,), activation=activation), without_bias(activation)):
        found = infer_labels(one_step(model, images, labels), knows(model, 1, lr))
        assert torch.equal(found, labels)


@pytest.mark.parametrize(("examples", "recall"), [(8, 0.98), (64, 0.49)])
def test_a_negative_bias_gradient_is_never_a_false_alarm(examples: int, recall: float):
    # Labels drawn evenly. 1,500 and 1,000 present classes or so: five deviations of the recall are 0.018 and 0.08.
    model, victims = MLP(SHAPE, CLASSES, hidden=(32,)), {8: 250, 64: 100}[examples]
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(victims, examples, *SHAPE, generator=draw)
    labels = torch.randint(CLASSES, (victims, examples), generator=draw)
    found = present_classes(one_step(model, images, labels).gradient(), CLASSES)
    there = counted(labels) > 0
    assert not (found & ~there).any()
    assert (found & there).sum().item() / there.sum().item() == pytest.approx(recall, abs={8: 0.02, 64: 0.08}[examples])


def test_llg_counts_what_its_own_model_of_a_gradient_says():
    # signal = impact · count + offset: the closed form that the greedy count inverts.
    counts = torch.tensor([[3, 0, 1, 4], [0, 8, 0, 0]])
    offset = torch.tensor([[0.02, 0.01, 0.03, 0.02]]).expand(2, 4)
    signal = -0.1 * counts + offset
    assert torch.equal(llg_counts(signal, 8, torch.full((2,), -0.1), offset), counts)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("examples", [2, 8, 32])
def test_labels_of_a_batch_are_nearly_all_found_on_an_untrained_model(bias: bool, examples: int):
    model = MLP(SHAPE, CLASSES, hidden=(200, 200)) if bias else without_bias()
    images, labels = batches(8, examples)
    found = infer_labels(one_step(model, images, labels), knows(model, examples))
    assert share_right(found, labels) >= (0.95 if examples < 32 else 0.93 if bias else 0.85)


@pytest.mark.parametrize("examples", [16, 128])
def test_with_public_pictures_every_label_of_a_batch_is_found_on_an_untrained_model(examples: int):
    model = MLP(SHAPE, CLASSES, hidden=(200, 200))
    images, labels = batches(5, examples)
    _, public = digits()
    told = dataclasses.replace(knows(model, examples), public=public.images)
    assert torch.equal(infer_labels(one_step(model, images, labels), told), labels.sort(1).values)


def test_without_a_rate_small_batches_are_still_found():
    model = MLP(SHAPE, CLASSES, hidden=(200, 200))
    images, labels = batches(10, 4)
    found = infer_labels(one_step(model, images, labels, lr=0.3), knows(model, 4, None))
    assert share_right(found, labels) >= 0.95


def test_labels_that_were_told_are_not_inferred():
    model = MLP(SHAPE, CLASSES, hidden=(8,))
    images, labels = batches(3, 2)
    told = dataclasses.replace(knows(model, 2), labels=labels.flip(1))
    assert torch.equal(infer_labels(one_step(model, images, labels), told), labels.flip(1))


def test_each_picture_of_a_batch_gets_its_own_label():
    images, labels = batches(4, 12)
    for model in (MLP(SHAPE, CLASSES, hidden=(64,)), without_bias("tanh")):
        seen = one_step(model, images, labels, lr=0.1)
        assert torch.equal(labels_of_pictures(seen, knows(model, 12, None), images), labels)


def test_a_model_without_an_output_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(1, CLASSES, 8), nn.Flatten())
    images, labels = batches(1, 1)
    with pytest.raises(InputError, match="no linear output layer of 10 classes"):
        infer_labels(one_step(model, images, labels), knows(model, 1))
