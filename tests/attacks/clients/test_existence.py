"""One record or none: the Gaussian closed forms over rounds and clients, nothing on nulls, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from attacks.clients.evidence import descents
from attacks.clients.existence import BlindExistence, RecordFilter, RecordKnowledge, RecordProduct, clipped, gradients
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

ROUNDS, CLIENTS = 3, 4
NET = linear(bias=True)


def told(replicas: int, **more: Any) -> RecordKnowledge:
    data = pictures()
    pick = torch.zeros(replicas, dtype=torch.long)
    settings: dict[str, Any] = {
        "model": NET,
        "images": data.images[pick],
        "labels": data.labels[pick],
        "clients": CLIENTS,
        "public_images": data.images[4:],
        "public_labels": data.labels[4:],
    }
    return RecordKnowledge(**settings | more)


def noisy(exists: np.ndarray, noise: float, seed: int) -> tuple[Server, float]:
    """Rounds of Gaussian updates, with a record's descent in client 2's where it exists; and the μ of one client."""
    replicas = len(exists)
    draw = torch.Generator().manual_seed(seed)
    models, updates, sums, square = {}, {}, {}, 0.0
    for round in range(ROUNDS):
        one = {name: value[None] for name, value in initial_parameters(NET, round).items()}
        sent = {name: value.expand(replicas, *value.shape[1:]) for name, value in one.items()}
        known = told(1)
        added = descents(NET, one, known.images[None], known.labels[None])[0]
        square += float(added.square().sum())
        seen = noise * torch.randn(replicas, CLIENTS, len(added), generator=draw, dtype=torch.float64)
        seen[:, 2] += torch.from_numpy(exists)[:, None] * added
        models[round], updates[round] = sent, cut(seen, one, 2)
        sums[round] = cut(seen[:, 2], one, 1)
    fixed = {
        "cohorts": {round: torch.arange(CLIENTS).expand(replicas, -1) for round in range(ROUNDS)},
        "models": models,
        "model": models[0],
    }
    return observation(Server, updates=updates, sums=sums, **fixed), square**0.5 / noise


def cut(rows: Tensor, like: dict[str, Tensor], lead: int) -> dict[str, Tensor]:
    parts = rows.split([value[0].numel() for value in like.values()], lead)
    return {
        name: part.reshape(*part.shape[:lead], *value.shape[1:])
        for (name, value), part in zip(like.items(), parts, strict=True)
    }


@pytest.mark.parametrize("kind", [RecordFilter, RecordProduct])
def test_in_gaussian_sums_over_rounds_the_auc_is_the_closed_form(kind: Any):
    exists = np.random.default_rng(0).random(1000) < 0.5
    seen, mu = noisy(exists, 1.5, 1)
    assert 0.5 < mu < 3
    scores = kind(reads="sum").run(seen, told(1000, noise=1.5))
    # The standard error with 500 a side is at most that of a null, .0183: 3 of them.
    assert auc(scores, exists) == pytest.approx(norm.cdf(mu / 2**0.5), abs=3 * 0.0183)
    if kind is RecordFilter:  # standardised: 5 standard errors of a mean
        assert scores[~exists].mean() == pytest.approx(0, abs=5 / 500**0.5)
        assert scores[exists].mean() == pytest.approx(mu, abs=5 / 500**0.5)


def test_the_largest_of_the_clients_scores_has_the_auc_of_that_maximum():
    exists = np.random.default_rng(2).random(1000) < 0.5
    seen, mu = noisy(exists, 1.0, 3)
    scores = RecordFilter(reads="update").run(seen, told(1000, noise=1.0))
    at = np.linspace(-8, 12, 20_001)
    without = norm.cdf(at) ** CLIENTS
    inside = norm.cdf(at) ** (CLIENTS - 1) * norm.cdf(at - mu)
    expected = 1 - np.trapezoid(inside, without)
    assert auc(scores, exists) == pytest.approx(expected, abs=3 * 0.0183)


@pytest.mark.parametrize("reads", ["step", "sum", "update"])
@pytest.mark.parametrize("kind", [RecordFilter, RecordProduct])
def test_a_record_that_no_replica_holds_gives_an_auc_of_one_half(kind: Any, reads: Any):
    """Half of the replicas hold another record, so the question's truth is a coin that nothing depends on."""
    exists = np.random.default_rng(4).random(120) < 0.5
    seen = played(np.zeros(120, dtype=bool))
    scores = kind(reads=reads).run(seen, told(120, noise=0.1, others=4, weight=0.1))
    # Standard error .053: 4 of them, a false alarm in 16,000.
    assert auc(scores, exists) == pytest.approx(0.5, abs=4 * 0.053)


def played(exists: np.ndarray) -> Server:
    """A federation of four clients; client 2 also holds the record where it exists. One full step a round."""
    data, rest = pictures(), pictures(seed=3)
    both = ImageSet(
        torch.cat([rest.images[:16], data.images[:1]]), torch.cat([rest.labels[:16], data.labels[:1]]), data.classes
    )
    members = torch.ones(len(exists), 17, dtype=torch.bool)
    members[:, 16] = torch.from_numpy(exists)
    recorder = Recorder(Server)
    run(
        Federation(
            model=NET, data=both, owners=torch.cat([torch.arange(16) // 4, torch.tensor([2])]), members=members,
            sizes=torch.full((CLIENTS,), 4), algorithm=FedAvg(sampler=Shuffled(batch_size=None, local_steps=1), lr=0.5),
            defense=Defense(), rounds=2, run=0, replica_ids=range(len(exists)), backend="vmap",
        ),
        recorder,
    )  # fmt: skip
    seen = recorder.observation()
    assert isinstance(seen, Server)
    return seen


def test_a_real_record_is_found_in_updates_and_in_sums():
    exists = np.random.default_rng(6).random(60) < 0.5
    seen = played(exists)
    for reads, weight, others in (("update", 0.1, 4), ("sum", 0.025, 16)):
        known = told(60, weight=weight, others=others, noise=1e-3)
        assert auc(RecordFilter(reads=reads).run(seen, known), exists) > 0.9  # type: ignore[arg-type]


def test_clipping_shortens_what_is_too_long_and_nothing_else():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert clipped(rows, 1.0).tolist() == [pytest.approx([0.6, 0.8]), pytest.approx([0.3, 0.4])]
    assert clipped(rows, None) is rows


def test_examples_gradients_average_to_the_descent_direction():
    data, model = pictures(), initial_parameters(NET, 0)
    stacked = {name: value[None] for name, value in model.items()}
    each = gradients(NET, stacked, data.images, data.labels)[0]
    mean = descents(NET, stacked, data.images[None], data.labels[None])[0]
    assert torch.allclose(each.mean(0), -mean, atol=1e-6)


def test_the_blind_baseline_never_sees_the_model():
    known = told(3)
    public = known.public_images
    assert public is not None
    same = dataclasses.replace(known, images=public[:3])
    for seed in (0, 1):
        model = {name: value.expand(3, *value.shape) for name, value in initial_parameters(NET, seed).items()}
        assert BlindExistence().run(observation(ReleasedModel, model=model), same) == pytest.approx(0, abs=1e-6)
        far = BlindExistence().run(observation(ReleasedModel, model=model), known)
        assert (far < -0.1).all()


NARROWER = [
    ("update", SecureServer, "server"),
    ("update", Participant, "server"),
    ("update", ReleasedModel, "server"),
    ("sum", Participant, "secure_server"),
    ("sum", ReleasedModel, "secure_server"),
    ("step", ReleasedModel, "participant"),
]


@pytest.mark.parametrize("kind", [RecordFilter, RecordProduct])
@pytest.mark.parametrize(("reads", "view", "needed"), NARROWER)
def test_a_view_that_shows_too_little_is_refused_in_words(kind: Any, reads: Any, view: Any, needed: str):
    with pytest.raises(InputError, match=f"{reads} needs the view {needed}; it was given {view.view}"):
        kind(reads=reads).run(observation(view), told(1))


def test_what_is_missing_is_refused_in_words():
    seen = played(np.zeros(2, dtype=bool))
    bare = told(2, public_images=None)
    with pytest.raises(InputError, match="needs 8 public examples or more"):
        RecordFilter(reads="sum").run(seen, bare)
    with pytest.raises(InputError, match="needs 1 public examples or more"):
        BlindExistence().run(seen, bare)
    with pytest.raises(InputError, match="give one record a replica"):
        told(2, images=pictures().images[0])
    with pytest.raises(InputError, match="weight is 0"):
        told(2, weight=0)
