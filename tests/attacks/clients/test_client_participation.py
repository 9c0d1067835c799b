"""Membership of a whole client: the Gaussian closed form, nothing on nulls, a real federation, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from attacks.clients.evidence import by_client, descents, evidence
from attacks.clients.participation import BlindParticipation, ClientKnowledge, ExpectedUpdate, MeanConfidence
from attacks.metrics import auc
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.federation import Federation, run
from fl_core.models import initial_parameters
from fl_core.sampling import Shuffled
from fl_core.views import Participant, Recorder, ReleasedModel, SecureServer, Server
from tests.federations import linear, pictures
from tests.observations import observation

ATTACKS = [MeanConfidence(), ExpectedUpdate(reads="step"), ExpectedUpdate(reads="sum")]


def released(replicas: int, seed: int) -> dict[str, Tensor]:
    """Linear models [replicas, ...], all different."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "1.weight": torch.randn(replicas, 3, 16, generator=draw),
        "1.bias": torch.randn(replicas, 3, generator=draw),
    }


def told(**more: Any) -> ClientKnowledge:
    net, data = linear(bias=True), pictures()
    return ClientKnowledge(model=net, images=data.images[:4], labels=data.labels[:4], **more)


def noisy_sums(replicas: int, took_part: np.ndarray, length: float, seed: int) -> SecureServer:
    """Sums of standard normal noise, and of `length` along the client's descent direction where it took part."""
    net = linear(bias=True)
    sent = {name: value.expand(replicas, *value.shape) for name, value in initial_parameters(net, 0).items()}
    one = {name: value[:1] for name, value in sent.items()}
    toward = descents(net, one, told().images[None], told().labels[None])[0]
    toward = toward / toward.norm()
    noise = torch.randn(replicas, len(toward), generator=torch.Generator().manual_seed(seed))
    total = noise + length * torch.from_numpy(took_part)[:, None] * toward
    shapes = {name: value.shape[1:] for name, value in sent.items()}
    parts = total.float().split([shape.numel() for shape in shapes.values()], 1)
    summed = {name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return observation(SecureServer, model=sent, models={0: sent}, sums={0: summed})


def test_in_gaussian_sums_a_client_is_found_as_the_closed_form_says():
    rng = np.random.default_rng(0)
    took_part, theirs = (rng.random(2000) < 0.5 for _ in range(2))
    shadows = noisy_sums(2000, theirs, 1.0, 1)
    scores = ExpectedUpdate(reads="sum").run(
        noisy_sums(2000, took_part, 1.0, 2), told(shadows=shadows, took_part=theirs)
    )
    # μ = 1. The standard error of an AUC of .76 with 1,000 a side is .0106 (Hanley and McNeil 1982): 3 of them.
    assert auc(scores, took_part) == pytest.approx(norm.cdf(1 / 2**0.5), abs=3 * 0.0106)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.name)
def test_where_models_know_nothing_of_the_client_its_auc_is_one_half(attack: Any):
    rng = np.random.default_rng(3)
    took_part, theirs = (rng.random(1200) < 0.5 for _ in range(2))

    def seen(count: int, seed: int) -> SecureServer:
        models = {round: released(count, seed + round) for round in range(2)}
        sums = {round: released(count, seed + 10 + round) for round in range(2)}
        return observation(SecureServer, model=released(count, seed + 20), models=models, sums=sums)

    scores = attack.run(seen(1200, 0), told(shadows=seen(1200, 100), took_part=theirs))
    # Standard error .0167; 4 of them: a false alarm in 16,000.
    assert auc(scores, took_part) == pytest.approx(0.5, abs=4 * 0.0167)


def played(replicas: range, took_part: np.ndarray) -> SecureServer:
    """Client 0 of six holds four pictures of its own where it takes part, and otherwise four others."""
    data = pictures(seed=1)
    other = pictures(seed=2)
    both = ImageSet(
        torch.cat([data.images, other.images[:4]]), torch.cat([data.labels, other.labels[:4]]), ("a", "b", "c")
    )
    owners = torch.cat([torch.arange(24) // 4, torch.zeros(4, dtype=torch.long)])
    members = torch.ones(len(replicas), 28, dtype=torch.bool)
    members[:, :4] = torch.from_numpy(took_part)[:, None]
    members[:, 24:] = ~torch.from_numpy(took_part)[:, None]
    recorder = Recorder(SecureServer)
    run(
        Federation(
            model=linear(bias=True), data=both, owners=owners, members=members, sizes=torch.full((6,), 4),
            algorithm=FedAvg(sampler=Shuffled(batch_size=2), lr=0.3), defense=Defense(), rounds=3, run=0,
            replica_ids=replicas, backend="vmap",
        ),
        recorder,
    )  # fmt: skip
    seen = recorder.observation()
    assert isinstance(seen, SecureServer)
    return seen


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.name)
def test_a_client_is_found_in_a_real_federation_and_not_where_a_fresh_draw_has_its_place(attack: Any):
    took_part, data = np.random.default_rng(5).random(240) < 0.5, pictures(seed=1)
    nobody = np.zeros(240, dtype=bool)
    for truth, low, high in ((took_part, 0.9, 1.0), (nobody, 0.5 - 4 * 0.053, 0.5 + 4 * 0.053)):  # 4 standard errors
        known = ClientKnowledge(
            model=linear(bias=True),
            images=data.images[:4],
            labels=data.labels[:4],
            shadows=played(range(120, 240), truth[120:]),
            took_part=took_part[120:],
        )
        scores = attack.run(played(range(120), truth[:120]), known)
        assert low <= auc(scores, took_part[:120]) <= high


def test_a_step_is_the_server_s_rate_times_the_sum():
    seen = played(range(3), np.array([True, False, True]))
    for round in range(3):
        steps, sums = evidence(seen, "step", round), evidence(seen, "sum", round)
        for name in seen.model:
            assert torch.allclose(steps[name], sums[name], atol=1e-6)


def test_the_blind_baseline_never_sees_the_model():
    shadows, took_part = observation(ReleasedModel, model=released(4, 0)), np.array([True, True, True, False])
    known = told(shadows=shadows, took_part=took_part)
    for seed in (1, 2):
        assert (
            BlindParticipation().run(observation(ReleasedModel, model=released(3, seed)), known).tolist() == [0.75] * 3
        )


@pytest.mark.parametrize(
    ("attack", "kind", "says"),
    [
        (ExpectedUpdate(reads="step"), ReleasedModel, "needs the view participant; it was given released_model"),
        (ExpectedUpdate(reads="sum"), ReleasedModel, "needs the view secure_server; it was given released_model"),
        (ExpectedUpdate(reads="sum"), Participant, "needs the view secure_server; it was given participant"),
    ],
)
def test_a_view_that_shows_too_little_is_refused_in_words(attack: Any, kind: Any, says: str):
    with pytest.raises(InputError, match=says):
        attack.run(observation(kind, model=released(2, 0)), told())


def test_missing_shadows_and_missing_rounds_are_refused_in_words():
    seen = observation(Participant, model=released(2, 0))
    with pytest.raises(InputError, match="needs shadows and who took part in them"):
        MeanConfidence().run(seen, told())
    with pytest.raises(InputError, match="needs 2 shadows with the client and 2 without, has 1 and 2"):
        MeanConfidence().run(
            seen,
            told(shadows=observation(ReleasedModel, model=released(3, 1)), took_part=np.array([True, False, False])),
        )
    with pytest.raises(InputError, match="has 3 shadows, but took_part speaks of 4"):
        MeanConfidence().run(
            seen, told(shadows=observation(ReleasedModel, model=released(3, 1)), took_part=np.ones(4, dtype=bool))
        )
    with pytest.raises(InputError, match="needs a recorded round, and the observation has none"):
        ExpectedUpdate(reads="step").run(seen, told())
    gap = dataclasses.replace(seen, models={0: released(2, 1), 2: released(2, 2)})
    with pytest.raises(InputError, match="round 0 is recorded and round 1 is not"):
        ExpectedUpdate(reads="step").run(gap, told())
    with pytest.raises(InputError, match="reads is 'update'; allowed: step, sum"):
        ExpectedUpdate(reads="update")
    nobody = observation(SecureServer, model=released(2, 0), models={0: released(2, 0)}, sums={0: {}})
    with pytest.raises(InputError, match="nobody took part in round 0"):
        evidence(nobody, "sum", 0)


def test_seats_are_added_up_by_client_and_empty_ones_count_for_nobody():
    values = torch.tensor([[[1.0], [2.0], [4.0]], [[8.0], [16.0], [32.0]]])
    cohort = torch.tensor([[2, 0, -1], [1, 1, 0]])
    assert by_client(values, cohort, 3)[..., 0].tolist() == [[2.0, 0.0, 1.0], [32.0, 24.0, 0.0]]
    with pytest.raises(InputError, match="client 2 sent an update, but the attacker knows of 2 clients"):
        by_client(values, cohort, 2)


def test_server_s_seats_keep_their_axis():
    updates = {name: value.unsqueeze(1).expand(-1, 5, *value.shape[1:]) for name, value in released(2, 0).items()}
    seen = observation(Server, model=released(2, 1), models={0: released(2, 2)}, updates={0: updates})
    assert {name: value.shape for name, value in evidence(seen, "update", 0).items()} == {
        "1.weight": (2, 5, 3, 16),
        "1.bias": (2, 5, 3),
    }
