"""What is promised against a server that chooses what it sends: what is promised against a server alone, or nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from defenses.base import Defense
from defenses.clip import Clip
from defenses.composed import composed
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.dp_ftrl import DPFTRL
from defenses.dp_sgd import DPSGD
from defenses.secagg.defense import SecAgg
from fl_core.algorithms.fedavg import FedAvg
from fl_core.sampling import Poisson
from tests.federations import federation

NOISE: dict[str, Any] = {"delta": 1e-5, "clip_norm": 1.0, "noise_multiplier": 2.0}
IN_THE_CLIENT = {
    "example": DPSGD(**NOISE),
    "by each client": DPFedAvg(**NOISE, noise_by="clients"),
    "in shares": DPFedAvgShares(**NOISE),
}


def epsilons(defense: Defense, unit: Any) -> dict[str, float]:
    algorithm = FedAvg(sampler=Poisson(batch_size=2), lr=0.5)
    plan = federation(defense=defense, algorithm=algorithm, rounds=3).plan
    ready: Any = defense.prepare(plan)
    views = ("released_model", "secure_server", "server", "malicious_server")
    return {view: ready.guarantee(view, unit, plan).epsilon for view in views}


@pytest.mark.parametrize("name", IN_THE_CLIENT)
def test_noise_that_is_added_in_the_client_holds_against_whatever_was_sent(name: str):
    found = epsilons(IN_THE_CLIENT[name], "example")
    assert math.isfinite(found["malicious_server"])
    assert found["malicious_server"] == found["server"]


@pytest.mark.parametrize("name", IN_THE_CLIENT)
def test_under_masks_a_malicious_server_is_not_promised_against_what_the_others_add(name: str):
    # It could leave the others out of the sum, and their noise with them.
    masked = epsilons(composed([IN_THE_CLIENT[name], SecAgg()]), "example")
    alone = epsilons(IN_THE_CLIENT[name], "example")
    assert masked["malicious_server"] == alone["server"]
    assert masked["malicious_server"] >= masked["server"]


@pytest.mark.parametrize(
    "defense", [DPFedAvg(**NOISE), DPFTRL(**NOISE), Clip(clip_norm=1.0), Defense(), SecAgg()], ids=lambda one: one.name
)
def test_noise_of_the_server_s_own_and_defences_without_any_promise_nothing(defense: Defense):
    for unit in ("example", "client"):
        assert epsilons(defense, unit)["malicious_server"] == math.inf
