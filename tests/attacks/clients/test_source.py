"""Whose example is it: exact where a client's update is its example's gradient, by all, by sums, by labels alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from attacks.clients.source import (
    BlindSource,
    CalibratedCosine,
    SmallestLoss,
    SourceKnowledge,
    UpdateCosine,
    WithAndWithout,
    verdicts,
)
from defenses.base import Defense
from fl_core.algorithms.fedsgd import FedSGD
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.federation import Federation, initial_state, run
from fl_core.participation import Everyone, Uniform
from fl_core.sampling import Shuffled
from fl_core.views import Participant, Recorder, ReleasedModel, SecureServer, Server
from tests.federations import linear, pictures
from tests.observations import observation

CLIENTS = 12


def one_example_each(view: Any, rounds: int = 1, participation: Any = None, lr: float = 0.01) -> tuple[Any, Any]:
    """Two replicas of FedSGD in which client k holds example k alone; and what the attacker is told of all of them.

    Pictures have one length, and the model starts from zero, where it gives every class the same chance: then all
    gradients of a label have one length, and by Cauchy and Schwarz none lowers an example's loss as its own does.
    """
    data = pictures()
    images = data.images[:CLIENTS]
    images = images / images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    data = ImageSet(images, data.labels[:CLIENTS], data.classes)
    net = linear(bias=True)
    recorder = Recorder(view)
    federation = Federation(
        model=net, data=data, owners=torch.arange(CLIENTS), members=torch.ones(2, CLIENTS, dtype=torch.bool),
        sizes=torch.ones(CLIENTS, dtype=torch.long),
        algorithm=FedSGD(sampler=Shuffled(batch_size=None, local_steps=1), lr=lr), defense=Defense(),
        rounds=rounds, run=0, replica_ids=[0, 1], participation=participation or Everyone(), backend="vmap",
    )  # fmt: skip
    start = initial_state(federation)
    zero = {name: torch.zeros_like(value) for name, value in start.model.items()}
    run(federation, recorder, state=dataclasses.replace(start, model=zero))
    known = SourceKnowledge(
        model=net,
        images=data.images.expand(2, *data.images.shape),
        labels=data.labels.expand(2, -1),
        clients=CLIENTS,
    )
    return recorder.observation(), known


@pytest.mark.parametrize("attack", [SmallestLoss(), UpdateCosine()], ids=lambda one: one.name)
def test_with_one_example_a_client_the_source_is_exact_under_fedsgd(attack: Any):
    seen, known = one_example_each(Server)
    scores = attack.run(seen, known)
    assert scores.shape == (2, CLIENTS, CLIENTS)
    assert (scores.argmax(2) == np.arange(CLIENTS)).all()


def test_the_owner_s_cosine_is_one():
    seen, known = one_example_each(Server)
    own = UpdateCosine().run(seen, known)[:, np.arange(CLIENTS), np.arange(CLIENTS)]
    assert own == pytest.approx(1, abs=1e-5)


def test_a_server_of_small_cohorts_learns_the_same_from_the_rounds_in_which_a_client_took_part():
    seen, known = one_example_each(Server, rounds=12, participation=Uniform(6))
    for attack in (SmallestLoss(), UpdateCosine()):
        scores = attack.run(seen, known)
        asked = np.isfinite(scores).all(1)  # who was never asked scores −∞ for every record
        right = scores.argmax(2) == np.arange(CLIENTS)
        assert asked.mean() > 0.9
        assert right[asked].mean() > 0.9


def with_public(known: SourceKnowledge, shares: np.ndarray | None = None) -> SourceKnowledge:
    public = pictures(seed=4)
    images = public.images / public.images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return dataclasses.replace(known, public_images=images, public_labels=public.labels, label_shares=shares)


def test_against_public_examples_of_its_label_a_record_stands_out_at_its_owner():
    seen, known = one_example_each(Server)
    scores = CalibratedCosine().run(seen, with_public(known))
    assert (scores.argmax(2) == np.arange(CLIENTS)).all()


def test_a_client_that_holds_none_of_the_label_is_never_named():
    seen, known = one_example_each(Server)
    shares = np.full((2, CLIENTS, 3), 1 / 3)
    shares[:, 5] = 0
    assert (CalibratedCosine().run(seen, with_public(known, shares))[:, :, 5] == -np.inf).all()


def test_where_updates_are_noise_the_prior_decides():
    _, known = one_example_each(ReleasedModel)
    draw = torch.Generator().manual_seed(0)
    sent = {"1.weight": torch.zeros(2, 3, 16), "1.bias": torch.zeros(2, 3)}
    updates = {name: torch.randn(2, CLIENTS, *value.shape[1:], generator=draw) for name, value in sent.items()}
    seen = observation(
        Server, model=sent, models={0: sent}, updates={0: updates}, cohorts={0: torch.arange(CLIENTS).expand(2, -1)}
    )
    shares = np.full((2, CLIENTS, 3), 0.05)
    shares[:, 7] = 0.9
    named = CalibratedCosine().run(seen, with_public(known, shares)).argmax(2)
    assert (named == 7).mean() > 0.7


def test_sums_over_changing_cohorts_name_the_source_and_sums_over_everybody_do_not():
    # The model hardly moves, so that sums are linear in who takes part: 40 rounds for 12 clients solve for each.
    seen, known = one_example_each(SecureServer, rounds=40, participation=Uniform(6))
    scores = WithAndWithout(ridge=1e-3).run(seen, known)
    assert (scores.argmax(2) == np.arange(CLIENTS)).all()
    still, _ = one_example_each(SecureServer, rounds=8)
    assert np.ptp(WithAndWithout().run(still, known), axis=2).max() < 1e-12


def test_the_label_prior_names_who_holds_most_of_the_label_and_ties_are_shared():
    _, known = one_example_each(ReleasedModel)
    shares = np.full((2, CLIENTS, 3), 1 / 3)
    shares[:, 4] = [0.8, 0.1, 0.1]
    known = SourceKnowledge(
        model=known.model, images=known.images, labels=known.labels, clients=CLIENTS, label_shares=shares
    )
    seen = observation(ReleasedModel, model={})
    named = verdicts(BlindSource().run(seen, known))
    first = known.labels.numpy() == 0
    assert named[first][:, 4] == pytest.approx(1)
    assert named[~first][:, 4] == pytest.approx(0)
    assert named[~first][:, 0] == pytest.approx(1 / (CLIENTS - 1))
    assert named.sum(2) == pytest.approx(1)


@pytest.mark.parametrize(
    ("attack", "kind", "says"),
    [
        (
            SmallestLoss(),
            SecureServer,
            "needs the view server; it was given secure_server, .* secure aggregation hides",
        ),
        (SmallestLoss(), Participant, "needs the view server; it was given participant"),
        (SmallestLoss(), ReleasedModel, "needs the view server; it was given released_model"),
        (
            UpdateCosine(),
            SecureServer,
            "needs the view server; it was given secure_server, .* secure aggregation hides",
        ),
        (UpdateCosine(), Participant, "needs the view server; it was given participant"),
        (UpdateCosine(), ReleasedModel, "needs the view server; it was given released_model"),
        (CalibratedCosine(), SecureServer, "needs the view server; it was given secure_server"),
        (CalibratedCosine(), Participant, "needs the view server; it was given participant"),
        (CalibratedCosine(), ReleasedModel, "needs the view server; it was given released_model"),
        (WithAndWithout(), Participant, "needs the view secure_server; it was given participant"),
        (WithAndWithout(), ReleasedModel, "needs the view secure_server; it was given released_model"),
    ],
)
def test_a_view_that_shows_too_little_is_refused_in_words(attack: Any, kind: Any, says: str):
    _, known = one_example_each(ReleasedModel)
    with pytest.raises(InputError, match=says):
        attack.run(observation(kind), known)


def test_what_does_not_fit_is_refused_in_words():
    seen, known = one_example_each(Server)
    with pytest.raises(InputError, match="needs each client's label shares"):
        BlindSource().run(seen, known)
    with pytest.raises(InputError, match="do not fit; give \\[replicas, records, channels"):
        SourceKnowledge(model=known.model, images=known.images[0], labels=known.labels, clients=3)
    few = SourceKnowledge(model=known.model, images=known.images, labels=known.labels, clients=3)
    with pytest.raises(InputError, match="client 11 sent an update, but the attacker knows of 3 clients"):
        UpdateCosine().run(seen, few)
    with pytest.raises(InputError, match=r"needs public examples of every label, and has none of \[0, 1, 2\]"):
        CalibratedCosine().run(seen, known)
    with pytest.raises(InputError, match="ridge is 0"):
        WithAndWithout(ridge=0)
