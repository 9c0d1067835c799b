"""Augmented pictures are the picture itself, mirrored and moved, by choices that belong to the example and the seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from defenses.base import Defense
from defenses.clipping import Clipping
from defenses.rules import ClipAndNoise
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN
from fl_core.augmentation import FlipAndShift, looked_at
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.federation import federate, run
from fl_core.lanes import Backend, descend
from fl_core.models import ClassificationLosses, accuracy, variables_of
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import ExampleFeed, Shuffled
from fl_core.seeds import Generators, generator
from tests.fl_core.test_engine import federation, same_bits


def by_hand(image: Tensor, look: Tensor) -> Tensor:
    """Pad by reflection, mirror, cut: with torch's own functions, one picture at a time."""
    mirrored, down, right = look.tolist()
    pad, (height, width) = 3, image.shape[1:]
    image = image.flip(-1) if mirrored else image
    padded = F.pad(image[None], (pad, pad, pad, pad), mode="reflect")[0]
    return padded[:, pad - down : pad - down + height, pad - right : pad - right + width]


def test_pictures_are_mirrored_and_moved_as_their_looks_say():
    draw = generator(0, "pictures")
    images = torch.rand(6, 3, 5, 7, generator=draw)
    rows = torch.randint(0, 6, (4, 9), generator=draw)
    looks = FlipAndShift(shift=3).draw(36, draw).view(4, 9, 3)
    found = looked_at(images, rows, looks)
    assert found.shape == (4, 9, 3, 5, 7)
    for lane in range(4):
        for place in range(9):
            assert torch.equal(found[lane, place], by_hand(images[rows[lane, place]], looks[lane, place]))


def test_looks_are_uniform_and_can_be_switched_off():
    looks = FlipAndShift(shift=2).draw(50_000, generator(0, "looks"))
    assert looks[:, 0].float().mean() == pytest.approx(0.5, abs=0.01)  # 4.5 standard deviations
    for axis in (1, 2):
        counts = torch.bincount(looks[:, axis].long() + 2, minlength=5)
        assert ((counts / 50_000 - 0.2).abs() < 0.008).all()  # 4.5 standard deviations
    still = FlipAndShift(flip=False, shift=0).draw(100, generator(0, "looks"))
    assert not still.any()
    images = torch.rand(100, 1, 4, 4)
    assert torch.equal(looked_at(images, torch.arange(100), still), images)


@pytest.mark.parametrize("rule", [None, ClipAndNoise(Clipping(norm=1.0), 0.0, 4.0)], ids=["SGD", "DP-SGD"])
def test_backends_agree_on_augmented_pictures_in_ragged_lanes(rule: ClipAndNoise | None):
    draw = generator(0, "pictures")
    images, labels = torch.rand(30, 1, 8, 8, generator=draw).double(), torch.randint(0, 3, (30,), generator=draw)
    sizes = [[4, 3, 4], [2, 4], [0, 1, 3]]
    plan = [[torch.randint(0, 30, (size,), generator=draw) for size in lane] for lane in sizes]
    looks = [[FlipAndShift(shift=2).draw(size, draw) for size in lane] for lane in sizes]
    model = CNN((1, 8, 8), 3, width=4).double()
    start = {name: torch.stack([value] * 3) for name, value in variables_of(model).items()}

    def train(backend: Backend, looks: list[list[Tensor]] | None) -> Tree:
        feed = ExampleFeed(images, labels, plan, looks)
        noise = Generators([0, 1, 2])
        return descend(
            start, ClassificationLosses(model), feed, SGD(lr=0.1), rule=rule, generators=noise, backend=backend
        )

    one, other, plain = train("vmap", looks), train("loop", looks), train("vmap", None)
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=0, atol=1e-9)
    assert any(not torch.allclose(value, plain[name], atol=1e-4) for name, value in one.items())


def test_an_augmented_federation_does_not_depend_on_how_it_is_cut_nor_on_an_interruption():
    whole = federation(augmentation=FlipAndShift(shift=1))
    final = run(whole)
    assert same_bits(final, run(replace(whole, memory=1)))
    states = []
    run(whole, after_round=states.append)
    assert same_bits(final, run(whole, state=states[0]))
    assert not same_bits(final, run(replace(whole, augmentation=None)))


def test_no_augmentation_draws_what_none_ever_drew():
    still = federation(augmentation=FlipAndShift(flip=False, shift=0))
    assert same_bits(run(still), run(replace(still, augmentation=None)))


@pytest.mark.heavy
def test_augmentation_carries_over_to_pictures_that_are_mirrored():
    """Bars on the left, high or low; the test has them on the right."""
    draw = generator(0, "pictures")
    labels = torch.randint(0, 2, (400,), generator=draw)
    images = 0.2 * torch.rand(400, 1, 10, 10, generator=draw)
    for image, label in zip(images, labels, strict=True):
        row = 2 if label else 6
        image[0, row : row + 2, 1:4] += 0.8  # always on the left
    train = ImageSet(images, labels, ("low", "high"))
    mirrored = ImageSet(images.flip(-1), labels, train.classes)

    def accuracy_on_the_right(augmentation: FlipAndShift | None) -> float:
        algorithm = FedAvg(sampler=Shuffled(local_epochs=2, batch_size=20), lr=0.2)
        model = CNN((1, 10, 10), 2, width=4)
        kinds = {"clients": 2, "rounds": 4, "algorithm": algorithm, "defense": Defense(), "augmentation": augmentation}
        final = run(federate(model, train, **kinds))
        return float(accuracy(model, final.model, mirrored).mean())

    assert accuracy_on_the_right(FlipAndShift(shift=1)) > 0.95
    assert accuracy_on_the_right(None) < 0.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shift": -1}, "augmentation.shift is -1"),
        ({"shift": 1.5}, "augmentation.shift is 1.5"),
        ({"flip": "yes"}, "augmentation.flip is 'yes'; it must be true or false"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        FlipAndShift(**wrong)


def test_a_shift_past_the_picture_is_refused():
    with pytest.raises(InputError, match="6x6 and can be moved by 5 pixels at most"):
        federation(augmentation=FlipAndShift(shift=6))
