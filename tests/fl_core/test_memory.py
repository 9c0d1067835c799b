"""What lanes take is measured, not guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from defenses.clipping import Clipping
from defenses.rules import ClipAndNoise
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN
from fl_core.memory import _LOST, Footprint, _Peak, footprint, step_bytes
from fl_core.sampling import Shuffled
from tests.fl_core.test_engine import VARIETY, federation

SHAPE = (1, 6, 6)


PLAIN = FedAvg(sampler=Shuffled(batch_size=20), lr=0.1)
MOMENTUM = FedAvg(sampler=Shuffled(batch_size=20), lr=0.1, momentum=0.9)


def test_the_peak_is_that_of_the_tensors_alive_at_once():
    kept = torch.zeros(1000)
    with _Peak() as peak:
        for _ in range(5):
            one = kept + 1  # 4,000 bytes
            two = one.view(10, 100) * 2  # as many again; the view is no storage of its own
            one.mul_(2)
            del one, two
    assert peak.bytes == 8000


@pytest.mark.parametrize("rule", [None, ClipAndNoise(Clipping(norm=1.0), 1.0, 12.0)], ids=["SGD", "DP-SGD"])
@pytest.mark.parametrize("stacked", [True, False], ids=["vmap", "loop"])
def test_two_lanes_and_a_few_pictures_tell_what_a_dozen_take(stacked: bool, rule: ClipAndNoise | None):
    model = CNN(SHAPE, 3, width=4)
    size = 4 * sum(value.numel() for value in model.parameters())
    lost = _LOST if stacked else 1.0
    found = footprint(model, SHAPE, 12, MOMENTUM, rule, "vmap" if stacked else "loop")
    # Less what a lane has before and after its steps.
    expected = found.shared / lost + 12 * (found.lane / lost - size) if stacked else found.shared + 12 * 2 * size
    assert step_bytes(model, SHAPE, 12, 12, MOMENTUM, rule, stacked) == pytest.approx(expected, rel=0.2)


def test_a_lane_grows_with_its_model_its_batch_its_optimiser_and_a_rule():
    small, large = CNN(SHAPE, 3, width=4), CNN(SHAPE, 3, width=16)
    base = footprint(small, SHAPE, 20, PLAIN)
    assert footprint(large, SHAPE, 20, PLAIN).lane > base.lane
    assert footprint(small, SHAPE, 40, PLAIN).lane > base.lane
    assert footprint(small, SHAPE, 20, MOMENTUM).lane > base.lane
    assert footprint(small, SHAPE, 20, PLAIN, ClipAndNoise(Clipping(norm=1.0), 1.0, 20.0)).lane > base.lane


def test_one_lane_at_a_time_shares_what_its_step_takes():
    model = CNN(SHAPE, 3, width=4)
    parameters = sum(value.numel() for value in model.parameters())
    few, many = (footprint(model, SHAPE, batch, PLAIN, backend="loop") for batch in (2, 200))
    assert few.lane == many.lane == 4 * 4 * parameters
    assert many.shared > 20 * few.shared


def test_measuring_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    footprint(model, SHAPE, 2, PLAIN)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_at_least_one_lane_fits():
    assert Footprint(shared=100, lane=50).lanes(60) == 1
    assert Footprint(shared=100, lane=50).lanes(249) == 2


@pytest.mark.parametrize("name", VARIETY)
def test_every_algorithm_and_defence_has_a_footprint(name: str):
    found = federation(**VARIETY[name]).footprint
    assert found.lane > 0
    assert found.shared >= 0
