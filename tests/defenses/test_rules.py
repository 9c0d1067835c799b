"""Rules on per-example gradients: a batch in parts is the batch, and padding is nothing."""

from __future__ import annotations

import pytest
import torch

from defenses.clipping import Clipping
from defenses.rules import ClipAndNoise, ClipExamples, MeanOfExamples
from fl_core.architectures import CNN
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD, Tree
from fl_core.rules import ExampleRule, Outer, Step
from fl_core.sampling import ExampleFeed
from fl_core.seeds import generator

ROUNDING = 1e-5

RULES = {
    "noise": ClipAndNoise(Clipping(norm=0.5), 0.7, 4.0),
    "layers": ClipAndNoise(Clipping(norm=0.5, how="per_layer"), 0.7, 4.0),
    "adaptive": ClipAndNoise(Clipping(norm=0.5, how="adaptive"), 0.7, 4.0, 1.5),
    "clip alone": ClipExamples(Clipping(norm=0.5, how="adaptive")),
    "mean": MeanOfExamples(),
}


def trained(rule: ExampleRule, backend: str, at_once: int | None, first: float = 0.5) -> Tree:
    """Three lanes' variables, and their clips, after steps on batches of other sizes, one of them empty.

    Picture 0, which stands in for padding and which no lane trains on, is of brightness `first`.
    """
    draw = generator(0, "pool")
    images, labels = torch.rand(20, 1, 6, 6, generator=draw), torch.randint(0, 3, (20,), generator=draw)
    images[0] = first
    lanes = ([[1, 2, 3, 4, 5, 6, 7], [], [8]], [[9], [10, 11, 12, 13], [14, 15]], [[16, 17, 18, 19, 1], [2]])
    start = initial_parameters(CNN((1, 6, 6), 3, width=4), 0)
    kept = {"clip/examples": torch.full((3,), 0.5)}
    moved = descend(
        {name: value.expand(3, *value.shape) for name, value in start.items()},
        ClassificationLosses(CNN((1, 6, 6), 3, width=4)),
        ExampleFeed(images, labels, [[torch.tensor(rows, dtype=torch.long) for rows in lane] for lane in lanes]),
        SGD(lr=0.5, momentum=0.5),
        rule=rule,
        generators=[generator(0, "noise", lane) for lane in range(3)],
        backend=backend,
        kept=kept,
        examples_at_once=at_once,
    )
    return moved | kept


@pytest.mark.parametrize("name", RULES)
def test_products_of_two_vectors_are_summed_as_the_gradients_that_they_stand_for(name: str):
    draw = torch.Generator().manual_seed(0)
    sizes = 10 ** (2 * torch.rand(2, 5, 1, generator=draw) - 1)
    outer = Outer(torch.randn(2, 5, 3, generator=draw) * sizes, torch.randn(2, 5, 4, generator=draw))
    bias, mask = torch.randn(2, 5, 3, generator=draw), torch.tensor([[1.0] * 5, [1.0, 1, 0, 0, 0]])
    kept = {"clip/examples": torch.full((2,), 0.5)}
    parts, whole = (
        RULES[name].sum({"a.weight": value, "a.bias": bias}, mask, (), Step({}, (), kept))
        for value in (outer, outer.whole())
    )
    assert parts.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=ROUNDING)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_batch_in_parts_of_any_size_is_the_same_step(name: str, backend: str):
    whole = trained(RULES[name], backend, None)
    for at_once in (1, 2, 3, 6, 100):
        parts = trained(RULES[name], backend, at_once)
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("at_once", [None, 2])
def test_the_picture_that_stands_in_for_padding_changes_no_bit(name: str, at_once: int | None):
    there, bright = (trained(RULES[name], "vmap", at_once, first) for first in (0.5, 1e4))
    assert all(torch.equal(value, bright[key]) for key, value in there.items())
