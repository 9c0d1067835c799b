"""A malicious server in the engine: what it sends is what clients train on, and what the round goes on from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from defenses.base import Defense
from defenses.secagg.defense import SecAgg
from fl_core.algorithms.fedavg import FedAvg
from fl_core.devices import Devices
from fl_core.errors import InputError
from fl_core.federation import Federation, initial_state, run
from fl_core.fleet import Buffered
from fl_core.optimizers import Tree
from fl_core.participation import PoissonClients
from fl_core.sampling import Shuffled
from fl_core.views import MaliciousServer, Participant, Recorder, Server
from tests.federations import CLIENTS, federation, prepared


@dataclass(frozen=True)
class Shift:
    """Adds a number to every weight in the rounds named."""

    by: float
    rounds: tuple[int, ...] = (0, 1, 2)

    def tamper(self, round: int, sent: Tree) -> Tree:
        return {"1.weight": sent["1.weight"] + self.by} if round in self.rounds else {}


def played(view: Any = MaliciousServer, **changes: Any) -> tuple[Federation, Any, Any]:
    settings = {"defense": Defense(), "rounds": 3, "replica_ids": [0, 1]}
    made = federation(**(settings | changes))
    recorder = Recorder(view=view)
    return made, run(made, recorder), recorder.observation()


def test_without_tampering_nothing_changes_in_bits():
    _, honest, _ = played()
    _, idle, _ = played(tamper=Shift(1.0, rounds=()))
    assert torch.equal(honest.model["1.weight"], idle.model["1.weight"])


def test_clients_are_sent_what_the_server_chose_and_the_next_model_is_what_they_make_of_it():
    _, honest, plain = played()
    _, final, seen = played(tamper=Shift(0.5, rounds=(1,)))
    # The first round is the honest one; in the second the same model went out with a half added to it.
    torch.testing.assert_close(seen.models[0]["1.weight"], plain.models[0]["1.weight"])
    torch.testing.assert_close(seen.models[1]["1.weight"], plain.models[1]["1.weight"] + 0.5)
    # Federated averaging: the average of the models that came back, and the third round is sent as it is.
    for round, after in ((1, seen.models[2]), (2, final.model)):
        back = seen.models[round]["1.weight"] + seen.sums[round]["1.weight"]
        torch.testing.assert_close(after["1.weight"], back)
    assert not torch.allclose(final.model["1.weight"], honest.model["1.weight"])


def test_clients_train_on_the_model_that_they_are_sent():
    # One round from a start of 0.5 more, tampered with or drawn so: the updates are the same.
    made, _, seen = played(Server, rounds=1, tamper=Shift(0.5))
    start = initial_state(dataclasses.replace(made, tamper=None))
    moved = dataclasses.replace(start, model={"1.weight": start.model["1.weight"] + 0.5})
    recorder = Recorder(view=Server)
    run(dataclasses.replace(made, tamper=None), recorder, state=moved)
    honest: Any = recorder.observation()
    torch.testing.assert_close(seen.updates[0]["1.weight"], honest.updates[0]["1.weight"])


def test_a_replica_in_which_nobody_takes_part_keeps_its_honest_model():
    _, final, seen = played(participation=PoissonClients(rate=0.15), tamper=Shift(0.5))
    models = [*(seen.models[round]["1.weight"] - 0.5 for round in range(3)), final.model["1.weight"]]
    empty = [(r, k) for r in range(3) for k in range(2) if (seen.cohorts[r][k] < 0).all()]
    assert empty
    for round, replica in empty:
        torch.testing.assert_close(models[round + 1][replica], models[round][replica])


def test_the_malicious_server_sees_what_it_sent_to_each_client_and_participants_what_they_got():
    _, _, seen = played(tamper=Shift(0.5))
    _, _, part = played(Participant, tamper=Shift(0.5))
    for round in range(3):
        assert seen.sent[round]["1.weight"].shape == (2, CLIENTS, 3, 16)
        for seat in range(CLIENTS):
            assert torch.equal(seen.sent[round]["1.weight"][:, seat], seen.models[round]["1.weight"])
        assert torch.equal(part.models[round]["1.weight"], seen.models[round]["1.weight"])


def test_secure_aggregation_leaves_the_malicious_server_its_view():
    recorder = Recorder(view=MaliciousServer)
    run(prepared(defense=SecAgg(), tamper=Shift(0.5)), recorder)
    assert type(recorder.observation()) is MaliciousServer


def test_a_resumed_run_is_the_uninterrupted_one():
    made, final, _ = played(tamper=Shift(0.5))
    first = run(dataclasses.replace(made, rounds=1, algorithm=FedAvg(sampler=Shuffled(batch_size=2), lr=0.5)))
    assert torch.equal(run(made, state=first).model["1.weight"], final.model["1.weight"])


@dataclass(frozen=True)
class Wrong:
    change: Tree

    def tamper(self, round: int, sent: Tree) -> Tree:
        return self.change


@pytest.mark.parametrize("change", [{"2.weight": torch.zeros(2, 3, 16)}, {"1.weight": torch.zeros(2, 3)}])
def test_changes_of_what_is_not_sent_or_of_another_shape_are_refused(change: Tree):
    with pytest.raises(InputError, match=r"tampering changes .* may change the variables that are sent, .*1\.weight"):
        played(tamper=Wrong(change))


def test_an_asynchronous_fleet_has_no_malicious_server():
    fleet = Buffered(concurrency=4, buffer=2, devices=Devices())
    with pytest.raises(InputError, match="choose a synchronous fleet"):
        played(fleet=fleet, tamper=Shift(0.5))
    with pytest.raises(InputError, match="choose a synchronous fleet"):
        played(fleet=fleet)
