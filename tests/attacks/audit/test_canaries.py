"""Canaries are what they are called: wrongly labelled, blank, orthogonal, as long as asked."""

from __future__ import annotations

import pytest
import torch

from attacks.audit.canaries import blank, dirac, flat, mislabelled, orthogonal, quiet_coordinates, unflattened
from fl_core.architectures import MLP
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.models import ClassificationLosses, initial_parameters, variables_of
from fl_core.per_example import by_vmap
from tests.federations import pictures


def test_a_mislabelled_canary_never_keeps_its_label_and_depends_on_the_seed():
    data = pictures()
    first, again, other = (mislabelled(data, seed) for seed in (0, 0, 1))
    assert (first.labels != data.labels).all()
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert torch.equal(first.images, data.images)


def test_blank_canaries_are_of_one_grey_each_and_all_different():
    found = blank(pictures(), 5)
    values = found.images.flatten(1)
    assert torch.equal(values, values[:, :1].expand_as(values))
    assert values[:, 0].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert found.labels.tolist() == [0, 1, 2, 0, 1]


def test_diracs_are_orthogonal_as_long_as_asked_and_on_the_quietest_coordinates():
    gradients = torch.tensor([[3.0, 0.1, 0.0, 1.0], [0.0, 0.2, 0.3, 1.0]])
    coordinates = quiet_coordinates(gradients, 2)
    assert coordinates.tolist() == [1, 2]
    found = dirac(coordinates, 4, 7.0)
    assert torch.equal(found @ found.T, 49 * torch.eye(2))
    assert found[0].tolist() == [0, 7, 0, 0]


def test_flat_and_unflattened_are_inverse():
    tree = {"b": torch.arange(6.0).view(3, 2, 1), "a": torch.arange(9.0).view(3, 3)}
    rows = flat(tree, 1)
    assert rows[1].tolist() == [3, 4, 5, 2, 3]  # in the order of the names
    back = unflattened(rows, {name: value[0] for name, value in tree.items()})
    assert all(torch.equal(back[name], tree[name]) for name in tree)


def test_made_canaries_are_nearer_to_orthogonal_and_as_long_as_the_clip():
    model, data = MLP((1, 4, 4), 3, hidden=(8,)), pictures()
    models = [initial_parameters(model, number) for number in range(3)]
    stacked = {name: torch.stack([one[name] for one in models]) for name in models[0]}
    losses = ClassificationLosses(model)

    def gradients(examples: ImageSet) -> torch.Tensor:
        inputs = (examples.images, examples.labels)
        each = [by_vmap(losses, one, inputs) for one in models]
        return flat({name: torch.stack([one[name] for one in each]) for name in each[0]}, 2)

    references = gradients(data.select(torch.arange(12)))
    directions = references / references.norm(dim=-1, keepdim=True)
    start = data.select(torch.arange(12, 16))
    made = orthogonal(losses, stacked, start, references, clip_norm=1.0, steps=40)

    def overlap(examples: ImageSet) -> float:
        return float(torch.einsum("mcd,mrd->mcr", gradients(examples), directions).square().mean())

    assert overlap(made) < 0.8 * overlap(start)
    assert (gradients(made).norm(dim=-1) > 0.7).all()
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert {name: value.shape for name, value in variables_of(model).items()}.keys() == stacked.keys()


def test_unusable_canaries_are_refused():
    data = pictures()
    one_class = ImageSet(data.images, torch.zeros_like(data.labels), ("a",))
    with pytest.raises(InputError, match="one class"):
        mislabelled(one_class, 0)
    with pytest.raises(InputError, match="number of coordinates"):
        quiet_coordinates(torch.ones(2, 3), 4)
    with pytest.raises(InputError, match="length"):
        dirac(torch.tensor([0]), 3, 0.0)
