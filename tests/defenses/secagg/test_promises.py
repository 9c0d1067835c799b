"""What secure aggregation guarantees to each view, alone and around noise, and where it stands in a list."""

from __future__ import annotations

import dataclasses
import math

import pytest

from defenses.base import Defense
from defenses.clip import Clip
from defenses.composed import composed
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.dp_sgd import DPSGD
from defenses.secagg.defense import SecAgg
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.errors import InputError
from fl_core.participation import ParticipationEvent, PoissonClients
from fl_core.sampling import SamplingEvent
from tests.fl_core.test_engine import federation
from tests.plans import plan

VIEWS = ("released_model", "participant", "secure_server", "server")
EVENTS = [SamplingEvent(sampler="poisson", rate=0.1, steps=50)]
FULL, DRAWN = (
    plan(EVENTS),
    plan(EVENTS, clients=1000, participation=ParticipationEvent("uniform", 0.01, 20), patterns=frozenset([(3, 7)])),
)
SHARES = DPFedAvgShares(epsilon=8.0, delta=1e-5, clip_norm=1.0)
SERVER = DPFedAvg(epsilon=8.0, delta=1e-5, clip_norm=1.0)
CLIENTS = DPFedAvg(epsilon=8.0, delta=1e-5, clip_norm=1.0, noise_by="clients")
EXAMPLES = DPSGD(epsilon=4.0, delta=1e-5, clip_norm=1.0)


def table(part: Defense, here, unit: str) -> dict[str, float]:
    masked = composed([part, SecAgg()]).prepare(here)
    return {view: masked.guarantee(view, unit, here).epsilon for view in VIEWS}


def test_masks_alone_guarantee_nothing_and_say_why():
    for view in VIEWS:
        for unit in ("client", "example"):
            stated = SecAgg().prepare(FULL).guarantee(view, unit, FULL)
            assert isinstance(stated, NoGuarantee)
            assert "the sum is released as it is" in stated.reason
    assert not SecAgg().private


@pytest.mark.parametrize("unit", ["client", "example"])
def test_the_server_is_promised_what_one_that_sees_sums_is(unit):
    alone = SHARES.prepare(FULL)
    found = table(SHARES, FULL, unit)
    for view, epsilon in found.items():
        assert epsilon == alone.guarantee("secure_server" if view == "server" else view, unit, FULL).epsilon
    assert found["server"] == found["secure_server"] < alone.guarantee("server", unit, FULL).epsilon
    stated = composed([SHARES, SecAgg()]).prepare(FULL).guarantee("server", unit, FULL)
    assert isinstance(stated, PrivacyStatement)
    assert stated.sampler.endswith("summed under masks by a server that follows the protocol and that no client helps")
    assert stated.view == "server"


def test_noise_by_the_server_promises_a_server_nothing_under_masks_either():
    found = table(SERVER, FULL, "client")
    assert found["server"] == found["secure_server"] == math.inf
    assert found["released_model"] == found["participant"] == pytest.approx(8.0, rel=2e-3)
    stated = composed([SERVER, SecAgg()]).prepare(FULL).guarantee("server", "client", FULL)
    assert "the server adds the noise itself, to what it has seen" in stated.reason


def test_noise_that_needs_no_masks_is_promised_as_without_them():
    alone = EXAMPLES.prepare(FULL)
    for view, epsilon in table(EXAMPLES, FULL, "example").items():
        assert epsilon == alone.guarantee(view, "example", FULL).epsilon
    stated = composed([EXAMPLES, SecAgg()]).prepare(FULL).guarantee("server", "example", FULL)
    assert "masks" not in stated.sampler


def test_noise_of_each_client_s_own_is_rounded_before_it_is_summed_and_accounted_alone():
    alone = CLIENTS.prepare(FULL)
    each = alone.guarantee("server", "client", FULL).epsilon
    assert alone.guarantee("secure_server", "client", FULL).epsilon < each
    assert set(table(CLIENTS, FULL, "client").values()) == {each}


def test_a_participant_knows_who_else_takes_part_so_that_no_draw_amplifies_for_it():
    alone = dataclasses.replace(SERVER, noise_multiplier=1.0).prepare(DRAWN)
    masked = composed([alone, SecAgg()])
    for unit in ("client", "example"):
        inside, outside = (masked.guarantee(view, unit, DRAWN) for view in ("participant", "released_model"))
        assert inside.sampler == "2 steps without amplification"
        assert "rate 0.01" in outside.sampler
        assert outside.epsilon == alone.guarantee("released_model", unit, DRAWN).epsilon < inside.epsilon
        assert alone.guarantee("participant", unit, DRAWN).epsilon < inside.epsilon
    # Noise is calibrated to that: what is asked for holds against everybody whom it is promised to.
    found = table(SERVER, DRAWN, "client")
    assert found["released_model"] <= found["participant"] <= 8.0
    assert found["participant"] >= 7.9


def test_coins_that_are_tossed_again_amplify_for_nobody():
    # A cohort of fewer than two is let go: whoever is in one is then not there by its own coin alone.
    coins = {"participation": PoissonClients(rate=0.5), "rounds": 2}
    assert federation(**coins).plan.ideal
    masked = composed([dataclasses.replace(SERVER, noise_multiplier=1.0), SecAgg()])
    here = federation(**coins, defense=masked).plan
    assert not here.ideal
    assert "without amplification" in masked.prepare(here).guarantee("released_model", "client", here).sampler


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([SecAgg(), Clip(clip_norm=1.0)], "clip after secagg; what is masked can only be summed, so put secagg last"),
        ([SecAgg(), SecAgg()], "only once"),
        ([SecAgg(), SHARES], "put secagg last"),
    ],
)
def test_masks_come_last_in_a_list(parts, says):
    with pytest.raises(InputError, match=says):
        composed(parts)
    with pytest.raises(InputError, match="24 for the masks and 20 for the noise in shares"):
        composed([SHARES, SecAgg(bits=24)]).prepare(FULL)
