"""Reading an observation: every signal against plain autograd, one example at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from attacks.membership import reading
from attacks.membership.observed import (
    KINDS,
    ParticipantSignals,
    SecureServerSignals,
    ServerSignals,
    Signals,
    require_signals,
)
from attacks.membership.reading import last_layer, looks, narrow, queries_of, read_signals
from attacks.membership.signals import scaled_confidence
from defenses.base import Defense
from defenses.secagg.defense import SecAgg
from fl_core.algorithms.fedbn import FedBN
from fl_core.architectures import CNN
from fl_core.devices import Devices
from fl_core.errors import InputError
from fl_core.federation import run
from fl_core.fleet import Buffered
from fl_core.participation import Everyone, PoissonClients, Uniform
from fl_core.sampling import Shuffled
from fl_core.views import VIEWS, MaliciousServer, Observation, Recorder, ReleasedModel, Server
from tests.federations import CLIENTS, federation, pictures

ROUNDS = 3
DATA = pictures()


def small() -> nn.Module:
    return CNN((1, 4, 4), 3, width=4, norm="group")


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.first = nn.Linear(16, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.norm(self.first(pixels.flatten(1)))))
        return found


def observed(view: type[ReleasedModel] = Server, model: nn.Module | None = None, **changes: Any) -> Observation:
    """Two replicas of a federation, in double precision from here on."""
    recorder = Recorder(view=view, rounds=changes.pop("recorded", None))
    settings = {"rounds": ROUNDS, "replica_ids": [0, 1], "participation": Uniform(cohort=4), "defense": Defense()}
    run(federation(model=model or small(), **(settings | changes)), recorder)
    return doubled(recorder.observation())


def doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: doubled(part) for key, part in value.items()}
    return dataclasses.replace(value, **{f.name: doubled(getattr(value, f.name)) for f in dataclasses.fields(value)})


def read(observation: Observation, model: nn.Module | None = None, **options: Any) -> Any:
    return read_signals(observation, (model or small()).double(), DATA.images.double(), DATA.labels, **options)


def row(tree: dict[str, Tensor], *at: int) -> dict[str, Tensor]:
    return {name: value[at] for name, value in tree.items()}


def naive(model: nn.Module, variables: dict[str, Tensor], example: int) -> tuple[Tensor, dict[str, Tensor]]:
    """One example's logits and the gradient of its loss, by plain autograd, in evaluation mode."""
    model.double().eval()
    leaves = {name: variables[name].clone().requires_grad_() for name, _ in model.named_parameters()}
    logits = functional_call(model, variables | leaves, (DATA.images[example : example + 1].double(),))
    loss = F.cross_entropy(logits, DATA.labels[example : example + 1])
    return logits.detach()[0], dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def inner(gradient: dict[str, Tensor], tree: dict[str, Tensor], names: Any = None) -> float:
    """Of minus the gradient with a tree, over some variables."""
    return -sum(float((gradient[n] * tree[n]).sum()) for n in (names or gradient) if n in tree)


def confidence(logits: Tensor, example: int) -> float:
    return float(scaled_confidence(logits[None].numpy(), DATA.labels[example : example + 1].numpy())[0])


def check_against_autograd(found: Any, observation: Any, model: nn.Module, examples: range = range(0, 24, 5)) -> None:
    last = last_layer(model)
    for replica in range(2):
        final = row(observation.model, replica)
        models = {r: final | row(tree, replica) for r, tree in observation.models.items()}
        after = {r: models.get(r + 1, final) for r in models}
        for r, example in ((r, example) for r in models for example in examples):
            at = replica, r, example
            logits, gradient = naive(model, models[r], example)
            length = np.sqrt(-inner(gradient, gradient))
            step = {name: after[r][name] - models[r][name] for name in models[r]}
            total = row(observation.sums[r], replica)
            np.testing.assert_allclose(found.round_confidence[at], confidence(logits, example), atol=1e-9)
            np.testing.assert_allclose(found.gradient_norm[at], length, atol=1e-10)
            np.testing.assert_allclose(found.layer_norm[at], np.sqrt(-inner(gradient, gradient, last)), atol=1e-10)
            np.testing.assert_allclose(found.step_product[at], inner(gradient, step), atol=1e-10)
            np.testing.assert_allclose(found.layer_product[at], inner(gradient, step, last), atol=1e-10)
            np.testing.assert_allclose(found.sum_product[at], inner(gradient, total), atol=1e-10)
            np.testing.assert_allclose(found.sum_layer_product[at], inner(gradient, total, last), atol=1e-10)
            norm = np.sqrt(-inner(step, step, list(gradient)))
            np.testing.assert_allclose(found.step_norm[at[:2]], norm, atol=1e-10)
            if not isinstance(found, ServerSignals):
                continue
            for client in range(CLIENTS):
                seats = (observation.cohorts[r][replica] == client).nonzero().flatten().tolist()
                here = replica, r, client, example
                assert found.took_part[here[:3]] == bool(seats)
                if not seats:
                    assert np.isnan(found.client_product[here])
                    assert np.isnan(found.client_confidence[here])
                    continue
                had = models[int(observation.versions[r][replica, seats[0]])]
                update = row(observation.updates[r], replica, seats[0])
                logits, gradient = naive(model, had, example)
                length = np.sqrt(-inner(gradient, gradient))
                np.testing.assert_allclose(found.client_gradient_norm[here], length, atol=1e-10)
                own, _ = naive(model, had | {n: had[n] + update[n] for n in had if n in update}, example)
                np.testing.assert_allclose(found.client_product[here], inner(gradient, update), atol=1e-10)
                np.testing.assert_allclose(found.client_layer_product[here], inner(gradient, update, last), atol=1e-10)
                np.testing.assert_allclose(found.client_confidence[here], confidence(own, example), atol=1e-9)
                norm = np.sqrt(-inner(update, update, [n for n in gradient if n in update]))
                np.testing.assert_allclose(found.client_norm[here[:3]], norm, atol=1e-10)


@pytest.mark.parametrize("chunk", [None, 7])
def test_every_signal_is_autograd_s_example_by_example(chunk: int | None, monkeypatch: pytest.MonkeyPatch):
    if chunk:
        monkeypatch.setattr(reading, "MOST_EXAMPLES", chunk)
    observation = observed()
    found = read(observation, clients=CLIENTS)
    assert type(found) is ServerSignals
    assert found.client_product.shape == (2, ROUNDS, CLIENTS, len(DATA))
    check_against_autograd(found, observation, small())


def test_a_chunk_never_holds_more_gradients_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch):
    observation = observed()
    parameters = sum(value.numel() for value in small().parameters())
    monkeypatch.setattr(reading, "GRADIENT_BYTES", 2 * 8 * parameters * 5)
    rows: list[int] = []
    whole = reading.example_gradients

    def watched(losses: Any, variables: Any, inputs: Any) -> Any:
        rows.append(len(inputs[0]))
        return whole(losses, variables, inputs)

    monkeypatch.setattr(reading, "example_gradients", watched)
    read(observation)
    assert max(rows) == 5


def test_models_of_a_network_with_batch_norm_are_asked_with_their_running_statistics():
    model, changes = WithBatchNorm(), {"backend": "loop"}
    observation = observed(model=model, **changes)
    before = {name: value.clone() for name, value in model.named_buffers()}
    check_against_autograd(read(observation, model, clients=CLIENTS), observation, model)
    for name, value in model.named_buffers():
        torch.testing.assert_close(value, before[name].to(value.dtype))


def test_a_layer_that_clients_keep_to_themselves_has_the_released_model_s_values():
    algorithm = FedBN(sampler=Shuffled(batch_size=2), lr=0.5)
    observation = observed(algorithm=algorithm)
    check_against_autograd(read(observation, clients=CLIENTS), observation, small())


def test_updates_of_an_asynchronous_fleet_are_held_against_the_model_that_the_client_had():
    observation: Any = observed(**buffered())
    assert any((versions < r).any() for r, versions in observation.versions.items())
    check_against_autograd(read(observation, clients=CLIENTS), observation, small())


def buffered() -> dict[str, Any]:
    return {"participation": Everyone(), "fleet": Buffered(concurrency=4, buffer=2, devices=Devices())}


def test_the_model_that_an_asynchronous_client_had_must_have_been_recorded():
    with pytest.raises(InputError, match="which were not recorded; record them too"):
        read(observed(recorded=[2], **buffered()))


def test_replicas_in_which_nobody_took_part_have_no_client_s_signals_and_a_sum_of_nothing():
    observation: Any = observed(participation=PoissonClients(rate=0.15), rounds=ROUNDS)
    empty = {(r, k) for r, cohort in observation.cohorts.items() for k in range(2) if (cohort[k] < 0).all()}
    assert empty
    found = read(observation, clients=CLIENTS)
    for r, k in empty:
        assert not found.took_part[k, r].any()
        assert (found.sum_product[k, r] == 0).all()
        assert np.isnan(found.client_product[k, r]).all()
    check_against_autograd(found, observation, small(), range(0, 24, 11))


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_s_signals_are_of_its_own_class_and_a_wider_recording_narrows_to_them(view: str):
    own, wide = read(observed(VIEWS[view])), read(observed(MaliciousServer if view == "malicious_server" else Server))
    assert type(own) is KINDS[view]
    narrower = narrow(wide, KINDS[view])
    assert type(narrower) is KINDS[view]
    for field in dataclasses.fields(own):
        one, other = getattr(narrower, field.name), getattr(own, field.name)
        if one is None or other is None:
            assert one is other
        else:
            np.testing.assert_allclose(one, other, atol=1e-10)


def test_narrowing_keeps_what_was_derived_and_nothing_widens():
    wide = read(observed(), public=(DATA.images[:5].double(), DATA.labels[:5]))
    derived = wide.confidence
    assert vars(narrow(wide, Signals))["confidence"] is derived
    assert "client_product" not in vars(narrow(wide, SecureServerSignals))
    assert narrow(wide, Signals).public_confidence.shape == (2, 5)
    with pytest.raises(InputError, match="participant does not show all that server does"):
        narrow(narrow(wide, ParticipantSignals), ServerSignals)


def test_secure_aggregation_leaves_no_client_s_signals():
    federated = federation(model=small(), rounds=1, defense=SecAgg())
    recorder = Recorder(view=Server)
    run(dataclasses.replace(federated, defense=federated.defense.prepare(federated.plan)), recorder)
    found = read(doubled(recorder.observation()))
    assert type(found) is SecureServerSignals
    with pytest.raises(InputError, match="secure aggregation hides each client's update"):
        require_signals("an attack", found, ServerSignals)


def test_only_the_rounds_asked_for_are_read_and_others_refused():
    observation = observed()
    whole, part = read(observation, clients=CLIENTS), read(observation, clients=CLIENTS, rounds=[2, 0])
    for name in ("round_confidence", "step_product", "sum_norm", "client_product", "took_part"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:, [2, 0]])
    with pytest.raises(InputError, match=r"rounds \[7\] were not recorded; recorded: \[0, 1, 2\]"):
        read(observation, rounds=[0, 7])
    with pytest.raises(InputError, match="clients is 1, but client 5 was seen"):
        read(observation, clients=1)
    with pytest.raises(InputError, match="do not fit"):
        read_signals(observation, small().double(), DATA.images, DATA.labels[:3])


def test_selected_replicas_have_the_signals_of_those_replicas():
    found = read(observed(), clients=CLIENTS)
    some = found.select([1])
    np.testing.assert_array_equal(some.client_product, found.client_product[1:])
    assert type(some) is ServerSignals


def test_query_0_is_the_picture_and_the_first_eighteen_are_flips_and_moves_by_a_pixel():
    images = torch.rand(2, 1, 5, 5)
    found = queries_of(images, 18)
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], images.flip(-1))
    assert len(set(looks(50))) == 50
    assert {look[1:] for look in looks(18)} == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    at = list(looks(18)).index((0, 1, -1))
    assert torch.equal(found[at][..., 1:, :-1], images[..., :-1, 1:])
    with pytest.raises(InputError, match=r"pictures of 2x2 cannot be moved by \(-2, -2\) for a query"):
        queries_of(torch.rand(1, 1, 2, 2), 40)


def test_each_query_is_asked_of_each_replica():
    observation = observed(ReleasedModel)
    found = read(observation, queries=4)
    copies = queries_of(DATA.images.double(), 4)
    for replica in range(2):
        for query in range(4):
            expected = functional_call(small().double(), row(observation.model, replica), (copies[query],)).detach()
            np.testing.assert_allclose(found.logits[replica, query], expected, atol=1e-10)
