"""What a view does not show does not exist on its observation."""

from __future__ import annotations

import dataclasses
from operator import attrgetter

import pytest
import torch
from torch import nn

from attacks.reconstruction.base import updates_of
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.cohort import Cohort
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.federation import Federation, run
from fl_core.participation import Uniform
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.views import (
    VIEWS,
    Observation,
    Participant,
    Recorder,
    ReleasedModel,
    SecureServer,
    Server,
    require_view,
)

SHOWN = {
    "released_model": {"model"},
    "participant": {"model", "models"},
    "secure_server": {"model", "models", "sums", "divisors", "cohorts", "dropped"},
    "server": {"model", "models", "sums", "divisors", "cohorts", "dropped", "updates", "weights", "versions"},
    "malicious_server": {"model", "models", "sums", "divisors", "cohorts", "dropped", "sent"},
}
EVERY = set().union(*SHOWN.values())


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def observe(view: type[ReleasedModel], rounds: list[int] | None = None) -> tuple[Observation, Recorder]:
    pixels = torch.rand(12, 1, 2, 2, generator=generator(0, "test data"))
    pool = ImageSet(pixels, torch.arange(12) % 2, ("a", "b"))
    federation = Federation(
        model=model(),
        data=pool,
        owners=torch.arange(12) % 3,
        members=torch.ones(2, 12, dtype=torch.bool),
        sizes=torch.tensor([4, 4, 4]),
        algorithm=FedAvg(sampler=Shuffled(local_epochs=1, batch_size=2), lr=0.5),
        defense=Defense(),
        rounds=3,
        run=0,
        replica_ids=[0, 1],
        participation=Uniform(cohort=2),
        backend="vmap",
    )
    recorder = Recorder(view=view, rounds=rounds)
    run(federation, recorder)
    return recorder.observation(), recorder


def test_every_view_is_known_by_its_name():
    assert VIEWS.keys() == SHOWN.keys()
    assert all(kind.view == name for name, kind in VIEWS.items())


@pytest.mark.parametrize("name", SHOWN)
def test_an_observation_has_exactly_the_fields_that_its_view_shows(name: str):
    observation, recorder = observe(VIEWS[name])
    assert type(observation) is VIEWS[name]
    assert {field.name for field in dataclasses.fields(observation)} == SHOWN[name]
    for field in EVERY - SHOWN[name]:
        assert not hasattr(observation, field)
    for field in SHOWN[name]:
        assert getattr(observation, field)
    # Nor does the recorder hold what it does not show: it drops it as it comes.
    assert set(recorder._kept) <= SHOWN[name]


def test_the_released_model_has_no_updates():
    observation, _ = observe(ReleasedModel)
    with pytest.raises(AttributeError, match="updates"):
        attrgetter("updates")(observation)


def test_shapes_are_replicas_first_and_then_the_cohort():
    observation, _ = observe(Server)
    assert isinstance(observation, Server)
    assert observation.model["1.weight"].shape == (2, 2, 4)
    for round in range(3):
        assert observation.models[round]["1.weight"].shape == (2, 2, 4)
        assert observation.sums[round]["1.weight"].shape == (2, 2, 4)
        assert observation.updates[round]["1.weight"].shape == (2, 2, 2, 4)
        assert observation.cohorts[round].shape == (2, 2)
        assert observation.weights[round].shape == (2, 2)


def test_what_the_server_sees_adds_up():
    observation, _ = observe(Server)
    assert isinstance(observation, Server)
    after = [*(observation.models[round] for round in (1, 2)), observation.model]
    for round, then in enumerate(after):
        for name, value in observation.updates[round].items():
            total = torch.einsum("rc,rc...->r...", observation.weights[round], value)
            torch.testing.assert_close(observation.sums[round][name], total)
            torch.testing.assert_close(then[name], observation.models[round][name] + total)


def test_the_recorder_s_views_show_the_same_run():
    whole, _ = observe(Server)
    assert isinstance(whole, Server)
    for view in (ReleasedModel, Participant, SecureServer):
        part, _ = observe(view)
        assert torch.equal(part.model["1.weight"], whole.model["1.weight"])
        if isinstance(part, SecureServer):
            assert torch.equal(part.sums[2]["1.weight"], whole.sums[2]["1.weight"])


def test_only_the_wanted_rounds_are_kept():
    observation, _ = observe(Server, rounds=[0, 2])
    assert isinstance(observation, Server)
    for kept in (observation.models, observation.sums, observation.updates, observation.cohorts):
        assert sorted(kept) == [0, 2]


def test_what_was_recorded_does_not_move_with_the_model():
    recorder = Recorder(view=Server)
    running = {"w": torch.zeros(1, 2)}
    seat, weights, divisors = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), torch.ones(1)
    cohort = Cohort(clients=seat, versions=seat, work=weights, factors=weights, dropped=seat)
    recorder.broadcast(0, running)
    recorder.asked(0, cohort, weights)
    recorder.received(0, (slice(0, 1), slice(0, 1)), {"w": running["w"].unsqueeze(1)})
    recorder.summed(0, running, divisors)
    recorder.finished(running)
    for value in (running["w"], seat, weights, divisors):
        value.add_(7)
    seen = recorder.observation()
    assert isinstance(seen, Server)
    for tree in (seen.model, seen.models[0], seen.updates[0], seen.sums[0]):
        assert tree["w"].flatten().tolist() == [0.0, 0.0]
    assert seen.cohorts[0].tolist() == [[0]]
    assert seen.weights[0].tolist() == [[1.0]]
    assert seen.divisors[0].tolist() == [1.0]
    assert seen.dropped[0].tolist() == [[0]]


def test_there_is_no_observation_before_the_end():
    with pytest.raises(RuntimeError, match="has not finished"):
        Recorder().observation()


@pytest.mark.parametrize("view", [ReleasedModel, Participant, SecureServer])
def test_an_attack_refuses_a_view_that_does_not_show_what_it_needs(view: type[ReleasedModel]):
    observation, _ = observe(view)
    with pytest.raises(InputError, match=rf"inverting gradients needs the view server; .* {view.view}, which"):
        updates_of(observation, 0, "inverting gradients")


def test_a_view_that_shows_more_is_accepted():
    observation, _ = observe(Server)
    for needed in (ReleasedModel, Participant, SecureServer, Server):
        require_view("some attack", observation, needed)
        assert isinstance(observation, needed)
