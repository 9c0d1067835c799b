"""What lanes take is measured, not guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from defenses.clipping import Clipping
from defenses.dp_sgd import DPSGD
from defenses.rules import ClipAndNoise
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN
from fl_core.federation import run
from fl_core.local_training import SHARES
from fl_core.memory import _LOST, Footprint, _Peak, footprint, step_bytes
from fl_core.participation import Fixed
from fl_core.sampling import Shuffled
from fl_core.state import State
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


def test_as_many_examples_are_at_work_as_fit_and_at_least_one():
    found = Footprint(shared=100, lane=1000, example=30)
    assert found.examples(1100, 32) is None
    assert found.examples(1099, 32) == 31
    assert found.examples(800, 32) == 22
    assert found.examples(1, 32) == 1
    assert Footprint(shared=100, lane=1000).examples(1, 32) is None


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_examples_gradients_stay_inside_the_memory_that_a_federation_is_given(backend: str):
    defense = DPSGD(delta=1e-5, clip_norm=0.5, noise_multiplier=0.8)
    algorithm = FedAvg(sampler=Shuffled(batch_size=None), lr=0.1)
    # Ten examples a client, all in one batch, whose gradients take most of what a lane takes.
    changes = {
        "members": torch.ones(1, 60, dtype=torch.bool),
        "replica_ids": [0],
        "sizes": torch.full((6,), 10),
        "participation": Fixed(cohort=1),
        "model": CNN(SHAPE, 3, width=8),
        "rounds": 1,
    }

    def played(memory: int | None) -> tuple[State, int]:
        whole = federation(defense=defense, algorithm=algorithm, backend=backend, memory=memory, **changes)
        whole.footprint  # noqa: B018 - it measures with steps of its own
        with _Peak() as peak:
            done = run(whole)
        return done, peak.bytes

    (whole, most), (nothing, least) = played(None), played(1)
    found = federation(defense=defense, algorithm=algorithm, backend=backend, **changes).footprint
    budget = found.shared + found.lane - 5 * found.example
    assert found.examples(budget, 10) == 5
    done, halved = played(SHARES * budget)  # one lane's batch may take a share of it
    # `least` is what a federation takes beside the examples that are at work.
    assert least < halved < most
    assert halved - least <= 5 * found.example
    for one in (done, nothing):
        for name, value in whole.tensors().items():
            torch.testing.assert_close(one.tensors()[name], value, rtol=0, atol=1e-6)
