"""What an ImageSet keeps together, and which part of a source is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_core.data import ImageSet, digits
from fl_core.errors import InputError


def test_digits_are_8x8_grey_pixels_between_0_and_1():
    pool, test = digits()
    assert len(pool) + len(test) == 1797
    assert len(test) == round(0.2 * 1797)
    for part in (pool, test):
        assert part.shape == (1, 8, 8)
        assert part.images.dtype == torch.float32
        assert part.images.min() == 0
        assert part.images.max() == 1
        assert part.labels.unique().tolist() == list(range(10))
        assert part.classes == tuple("0123456789")


def test_the_seed_chooses_the_split_and_no_example_is_in_both_parts():
    pool, test = digits(seed=3)
    again, _ = digits(seed=3)
    other, _ = digits(seed=4)
    assert torch.equal(pool.images, again.images)
    assert not torch.equal(pool.images, other.images)
    both = torch.cat([pool.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) >= 1790, "scikit-learn's own few twins apart, every digit is there once"


def test_limits_take_that_many_and_keep_the_order():
    pool, test = digits(limit=100, test_limit=50)
    assert (len(pool), len(test)) == (100, 50)
    whole, whole_test = digits()
    assert torch.equal(pool.images, whole.images[:100])
    assert torch.equal(test.images, whole_test.images[:50])


def test_select_and_relabel_keep_the_rest():
    pool, _ = digits()
    part = pool.select(torch.tensor([5, 2]))
    assert torch.equal(part.images, pool.images[[5, 2]])
    assert torch.equal(part.labels, pool.labels[[5, 2]])
    flipped = part.relabel(torch.tensor([1, 1]))
    assert torch.equal(flipped.images, part.images)
    assert flipped.labels.tolist() == [1, 1]


def test_owners_go_with_their_examples():
    images = torch.arange(3.0).view(3, 1, 1, 1)
    data = ImageSet(images, torch.tensor([0, 1, 0]), ("x", "y"), torch.tensor([1, 0, 1]), ("amy", "zoe"))
    part = data.select(torch.tensor([2, 1]))
    assert part.images.flatten().tolist() == [2, 1]
    assert part.owners.tolist() == [1, 0]
    other = part.relabel(torch.tensor([1, 1])).to(torch.device("meta"))
    assert other.owners.device.type == other.labels.device.type == other.images.device.type == "meta"
    assert other.owner_names == ("amy", "zoe")
    assert other.classes == ("x", "y")
    assert data.select(torch.tensor([0])).owner_names == ("amy", "zoe")


@pytest.mark.parametrize(
    ("wrong", "needed"),
    [
        ({"classes": ["cat", "3"]}, ("data.classes names 'cat'", "10 classes")),
        ({"classes": [3, 10]}, ("data.classes names 10", "0 to 9")),
        ({"classes": [3, -1]}, ("data.classes names -1",)),
        ({"classes": [3]}, ("at least two different classes",)),
        ({"classes": [3, "3"]}, ("at least two different classes",)),
        ({"limit": 0}, ("data.limit is 0",)),
        ({"test_limit": 1.5}, ("data.test_limit is 1.5",)),
        ({"classes": [True, 3]}, ("data.classes names True",)),
        ({"classes": 3}, ("data.classes is 3", "must be a list")),
        ({"classes": "35"}, ("data.classes is '35'", "must be a list")),
        ({"test_fraction": 1.0}, ("data.test_fraction is 1.0",)),
        ({"seed": "x"}, ("data.seed is 'x'",)),
        ({"seed": -1}, ("data.seed is -1",)),
    ],
)
def test_a_choice_that_means_nothing_is_refused(wrong: dict[str, Any], needed: tuple[str, ...]):
    with pytest.raises(InputError) as caught:
        digits(**wrong)
    for part in needed:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
