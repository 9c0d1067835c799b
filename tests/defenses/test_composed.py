"""Defences in a list, and what the list guarantees."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.base import Defense
from defenses.clip import Clip
from defenses.composed import Composed, composed
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.dp_ftrl import DPFTRL
from defenses.dp_sgd import DPSGD
from defenses.heuristics import KBit, Pruning, RandomNoise, Sign, TopK
from defenses.mixup import Mixup
from defenses.soteria import Soteria
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.defended import Senders
from fl_core.errors import InputError
from fl_core.federation import Federation
from fl_core.sampling import SamplingEvent
from tests.fl_core.test_engine import federation, play
from tests.plans import plan

EXAMPLES = DPSGD(epsilon=4.0, delta=1e-5, clip_norm=1.0)
CLIENTS = DPFedAvg(epsilon=8.0, delta=1e-3, clip_norm=1.0)
PLAN = plan([SamplingEvent(sampler="poisson", rate=0.1, steps=50)])


def updates() -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([[3.0, -4.0, 0.1, 0.0], [0.3, 0.4, -0.5, 0.6]])}


def senders() -> Senders:
    return Senders({}, [torch.Generator().manual_seed(lane) for lane in range(2)], 2.0)


def test_updates_go_through_the_parts_in_order():
    clip, prune = Clip(clip_norm=1.0), Pruning(share=0.5)
    once = prune.on_update(clip.on_update(updates(), senders()), senders())
    assert torch.equal(composed([clip, prune]).on_update(updates(), senders())["w"], once["w"])
    assert not torch.equal(composed([prune, clip]).on_update(updates(), senders())["w"], once["w"])


def test_a_list_of_one_is_that_one_and_named_parts_keep_their_order():
    assert composed([EXAMPLES]) is EXAMPLES
    assert composed({"b": Sign(), "a": EXAMPLES}).name == "sign + dp_sgd"


def test_each_unit_gets_the_guarantee_of_the_part_that_hides_it():
    both = composed([EXAMPLES, CLIENTS]).prepare(PLAN)
    example, client = (both.guarantee("released_model", unit, PLAN) for unit in ("example", "client"))
    assert isinstance(example, PrivacyStatement)
    assert isinstance(client, PrivacyStatement)
    assert 3.99 <= example.epsilon <= 4.0
    assert 7.98 <= client.epsilon <= 8.0
    server = both.guarantee("server", "client", PLAN)
    assert isinstance(server, NoGuarantee)
    assert "dp_sgd: the noise hides one example" in server.reason
    assert "dp_fedavg: the server adds the noise itself" in server.reason


@pytest.fixture(scope="module")
def calibrated():
    return EXAMPLES.prepare(PLAN)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(5)))
def test_the_order_of_a_list_makes_no_difference_to_epsilon(calibrated, order):
    parts = [calibrated, Pruning(share=0.3), Clip(clip_norm=2.0), TopK(keep=0.5), Sign()]
    alone, whole = calibrated, composed([parts[place] for place in order]).prepare(PLAN)
    for view in ("released_model", "participant", "secure_server", "server"):
        for unit in ("example", "client"):
            assert whole.guarantee(view, unit, PLAN).epsilon == alone.guarantee(view, unit, PLAN).epsilon
    assert (whole.epsilon, whole.delta, whole.protects) == (4.0, 1e-5, "example")


def test_without_noise_that_is_accounted_a_list_guarantees_nothing_and_says_all_reasons():
    stated = composed([Clip(clip_norm=1.0), RandomNoise(std=0.1)]).guarantee("server", "client", PLAN)
    assert isinstance(stated, NoGuarantee)
    assert stated.reason.startswith("clip: clipping bounds")
    assert "random_noise: " in stated.reason


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "defense.defenses is empty"),
        ([EXAMPLES, Clip(unit="example", clip_norm=1.0)], "only one may clip an example's gradient"),
        ([CLIENTS, DPFTRL(epsilon=1.0, delta=1e-3, clip_norm=1.0)], "only one may noise a sum"),
        ([CLIENTS, KBit(bits=4)], "can make an update longer than the clip"),
        ([CLIENTS, RandomNoise(std=0.1)], "put random_noise before it"),
        (
            [DPFedAvgShares(epsilon=1.0, delta=1e-3, clip_norm=1.0), Pruning(share=0.1)],
            "noise is in the updates already",
        ),
        ([DPFedAvg(epsilon=1.0, delta=1e-3, clip_norm=1.0, noise_by="clients"), Sign()], "put sign before it"),
        ([Clip(clip_norm=1.0, clipping="adaptive"), CLIENTS], "a count of clients to which no noise is accounted"),
        ([Mixup(alpha=1.0), EXAMPLES], "let one example into several clipped gradients"),
        ([EXAMPLES, "clip"], "must have a _target_"),
    ],
)
def test_what_would_make_a_statement_false_is_refused_in_one_line(parts, says):
    with pytest.raises(InputError, match=says) as refused:
        composed(parts)
    assert "\n" not in str(refused.value)


def test_two_adaptive_clips_of_one_thing_are_refused():
    twice = composed([Clip(clip_norm=1.0, clipping="adaptive"), Clip(clip_norm=2.0, clipping="adaptive")])
    with pytest.raises(InputError, match="let only one of them be adaptive"):
        twice.server_state({})


def defended(defense: Defense) -> Federation:
    plain = federation(rounds=2)
    return federation(rounds=2, defense=defense.for_model(plain.model).prepare(plain.plan))


def test_a_federation_under_a_list_is_the_one_under_its_parts():
    noise = DPSGD(delta=1e-5, clip_norm=1.0, noise_multiplier=1.0)
    alone, _ = play(defended(noise))
    listed, _ = play(defended(composed([noise, Clip(clip_norm=1e6)])))
    for name, value in alone.model.items():
        torch.testing.assert_close(listed.model[name], value)
    short, seen = play(defended(composed([noise, Clip(clip_norm=1e-3)])))
    lengths = torch.cat([value.flatten(2) for value in seen.updates[0].values()], 2).norm(dim=2)
    assert lengths.max() <= 1e-3 * (1 + 1e-5)
    assert not torch.equal(short.model["head.weight"], alone.model["head.weight"])


def test_changed_gradients_are_clipped_and_noised_afterwards():
    noise = DPSGD(delta=1e-5, clip_norm=0.1, noise_multiplier=1e-6)
    found = composed([Soteria(share=0.9), noise])
    assert found.reduces_examples
    pruned, _ = play(defended(found))
    clipped, _ = play(defended(noise))
    assert all(torch.isfinite(value).all() for value in pruned.model.values())
    assert not torch.allclose(pruned.model["head.weight"], clipped.model["head.weight"], atol=1e-4)


def test_an_infinite_epsilon_in_a_list_leaves_the_others():
    left = composed([DPSGD(epsilon=math.inf, delta=1e-5, clip_norm=1.0), Clip(clip_norm=1.0)]).prepare(PLAN)
    assert isinstance(left, Composed)
    assert not left.private
    assert left.example_rule(4.0) is None
