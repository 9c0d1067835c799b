"""Exact attacks first, checked; the rest to whoever searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from attacks.pictures import psnr
from attacks.reconstruction.base import Knowledge, Reconstruction, Updates
from attacks.reconstruction.fully_connected import FullyConnected
from attacks.reconstruction.pipeline import Pipeline
from attacks.reconstruction.spear import Spear
from fl_core.architectures import CNN, MLP
from fl_core.errors import InputError
from tests.attacks.reconstruction.made import CLASSES, SHAPE, batches, knows, one_step


@dataclass(frozen=True, kw_only=True)
class Grey:
    """Two restarts of grey, and which victims it was given."""

    name: ClassVar[str] = "grey"
    letter: ClassVar[str] = "C"

    def run(self, updates: Updates, knowledge: Knowledge, *, victims: Sequence[int], **options: Any) -> Reconstruction:
        count = len(updates)
        return Reconstruction(
            images=torch.full((count, 2, knowledge.examples, *knowledge.shape), 0.5),
            labels=torch.zeros(count, 2, knowledge.examples, dtype=torch.long),
            objective=torch.tensor([[3.0, 2.0]]).expand(count, 2),
            evaluations=torch.full((count,), 7.0),
            method=tuple(f"grey {victim}" for victim in victims),
            exact=torch.zeros(count, dtype=torch.bool),
        )


def test_the_first_exact_attack_that_is_right_answers():
    images, labels = batches(4, 1)
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    found = Pipeline(fallback=Grey()).run(one_step(model, images, labels), knows(model, 1))
    assert found.method == ("fully connected layer",) * 4
    assert found.exact.all()
    assert psnr(found.selected()[:, 0], images[:, 0]).min() > 140
    assert found.reasons == ()


def test_what_one_attack_leaves_open_the_next_one_answers():
    images, labels = batches(3, 8)
    model = MLP(SHAPE, CLASSES, hidden=(128,))
    found = Pipeline(exact=(FullyConnected(), Spear())).run(one_step(model, images, labels), knows(model, 8))
    assert found.exact.all()
    assert "SPEAR" in found.method
    assert "does not explain" in found.reasons[0]


def test_a_chain_of_convolutions_is_answered_by_recursion():
    images, labels = batches(2, 1)
    model = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(128, CLASSES))
    found = Pipeline().run(one_step(model, images, labels), knows(model, 1))
    assert found.method == ("R-GAP",) * 2
    assert len(found.reasons) == 2


def test_what_is_not_exact_goes_to_the_fallback_by_number_and_keeps_its_place():
    # The second update is spoilt, so that nothing explains it.
    images, labels = batches(3, 1)
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    seen = one_step(model, images, labels)
    draw = torch.Generator().manual_seed(0)
    for value in seen.moved.values():
        value[1] += 0.1 * torch.randn(value[1].shape, generator=draw, dtype=value.dtype)
    found = Pipeline(fallback=Grey()).run(seen, knows(model, 1), victims=[5, 6, 7])
    assert found.method == ("fully connected layer", "grey 6", "fully connected layer")
    assert found.exact.tolist() == [True, False, True]
    assert (found.selected()[1] == 0.5).all()
    assert found.objective[1].tolist() == [3.0, 2.0]
    assert found.chosen.tolist() == [0, 1, 0]
    assert found.objective[0, 1].isinf()
    assert found.evaluations[1] > 7 > found.evaluations[0]
    assert psnr(found.selected()[[0, 2], 0], images[[0, 2], 0]).min() > 140


def test_without_a_fallback_what_is_left_is_a_failure_with_its_reasons():
    model = CNN(SHAPE, CLASSES, width=4)
    found = Pipeline().run(one_step(model, *batches(2, 2)), knows(model, 2))
    assert found.method == ("none", "none")
    assert found.images.isnan().all()
    assert not found.exact.any()
    assert [reason.split(":")[0] for reason in found.reasons] == ["fully connected layer", "SPEAR", "R-GAP"]
    assert not any("\n" in reason for reason in found.reasons)


def test_a_batch_size_that_is_too_small_stops_the_pipeline():
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    with pytest.raises(InputError, match="the update holds 4 pictures at least, not 2"):
        Pipeline().run(one_step(model, *batches(2, 4)), knows(model, 2))


def test_an_update_that_is_no_plain_gradient_goes_to_the_fallback():
    # Pruned, it has the rank of many pictures, which says nothing of how many there are.
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    seen = one_step(model, *batches(2, 2))
    for value in seen.moved.values():
        value[value.abs() < value.abs().median()] = 0.0
    found = Pipeline(fallback=Grey()).run(seen, knows(model, 2))
    assert found.method == ("grey 0", "grey 1")
    assert any("pictures at least, not 2" in reason for reason in found.reasons)
