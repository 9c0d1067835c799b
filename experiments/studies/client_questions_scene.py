"""Federations for `client_questions`: who holds what in each replica, and what their views show."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from defenses.base import Defense
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_sgd import DPSGD
from experiments.studies.base import Setting, Values
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.federation import Federation, run
from fl_core.models import accuracy
from fl_core.participation import Participation, ParticipationEvent
from fl_core.sampling import Poisson
from fl_core.seeds import generator, seed
from fl_core.views import Recorder, SecureServer

if TYPE_CHECKING:
    from experiments.studies.client_questions import ClientQuestions


@dataclass(frozen=True)
class Enrolled(Participation):
    """Each client is in a replica's federation by its own coin of chance `rate`, and then in all of its rounds.

    Nothing is amplified: whoever is enrolled is in every round.
    """

    rate: float = 0.5

    def eligible(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        coins = torch.rand(clients, dtype=torch.float64, generator=generator(run, "enrolled", replica))
        return torch.nonzero(coins < self.rate).flatten()

    def draw(self, clients: int, run: int, replica: int, round: int) -> Tensor:
        return self.eligible(clients, run, replica, round)

    def expected(self, clients: int) -> float:
        return self.rate * clients

    def event(self, clients: int, rounds: int) -> ParticipationEvent:
        return ParticipationEvent("fixed", 1.0, rounds)

    def check(self, clients: int) -> None: ...


def dealt(labels: Tensor, clients: int, each: int, alpha: float, seed: int) -> Tensor:
    """Rows of `labels` for each client [clients, each], no row twice (Hsu et al. 2019, section 3.1).

    A client draws its class proportions from a Dirichlet(`alpha`) distribution, each label from these, and the record
    uniformly from what is left of that class; a class that is used up gives its share to the others.
    """
    rng = np.random.default_rng(seed)
    numbers = labels.cpu().numpy()
    left = [list(rng.permutation(np.flatnonzero(numbers == label))) for label in range(int(numbers.max()) + 1)]
    rows = np.empty((clients, each), dtype=np.int64)
    for client in range(clients):
        shares = rng.dirichlet([alpha] * len(left))
        for place in range(each):
            there = np.array([bool(rest) for rest in left])
            chances = np.where(there, shares, 0) if shares[there].sum() > 1e-9 else there.astype(float)
            rows[client, place] = left[rng.choice(len(left), p=chances / chances.sum())].pop()
    return torch.from_numpy(rows)


def dealt_replicas(
    labels: Tensor, study: ClientQuestions, clients: int, replicas: range, seed_of: str, run: int
) -> Tensor:
    """`dealt` anew in each of `replicas`: [replicas, clients, examples]."""
    return torch.stack(
        [dealt(labels, clients, study.examples, study.alpha, seed(run, seed_of, replica)) for replica in replicas]
    )


@dataclass(frozen=True, kw_only=True)
class Played:
    """A federation after its rounds, its defence, what the widest view showed, and its models' test accuracy."""

    federation: Federation
    defense: Defense
    seen: SecureServer
    accuracy: Tensor


def defense_of(study: ClientQuestions, point: Values) -> Defense:
    """None, DP-SGD where ε is for an example, and DP-FedAvg where it is for a client."""
    if point["epsilon"] is None:
        return Defense()
    if point["unit"] == "example":
        return DPSGD(epsilon=point["epsilon"], delta=study.delta, clip_norm=study.clip_norm)
    return DPFedAvg(
        epsilon=point["epsilon"],
        delta=study.delta,
        clip_norm=study.update_clip,
        noise_by="server" if point["question"] == "participation" else "clients",
    )


def play(
    study: ClientQuestions,
    setting: Setting,
    point: Values,
    examples: ImageSet,
    rows: Tensor,
    replicas: range,
    *,
    view: type[SecureServer],
    participation: Participation,
    there: Tensor | None = None,
) -> Played:
    """Train all `replicas`, each on its own `rows` [replicas, clients, each] of `examples`, and record a view.

    `rows` [1, clients, each] are the same in every replica. `there` [replicas, clients, each] says which of them are
    really held (None: all).
    """
    blocks, clients, each = rows.shape
    size, count = clients * each, len(replicas)
    members = torch.ones(count, size, dtype=torch.bool) if there is None else there.flatten(1)
    if blocks > 1:
        whole = torch.zeros(count, count, size, dtype=torch.bool)
        whole[torch.arange(count), torch.arange(count)] = members
        members = whole.flatten(1)
    defense = defense_of(study, point)
    model = setting.make("model", shape=examples.shape, classes=len(examples.classes)).to(setting.device)
    federation = Federation(
        model=model,
        data=examples.select(rows.flatten().to(examples.labels.device)),
        owners=torch.arange(clients).repeat_interleave(each).repeat(blocks),
        members=members,
        sizes=torch.full((clients,), study.examples),
        algorithm=FedAvg(sampler=Poisson(batch_size=study.batch_size, local_epochs=study.local_epochs), lr=study.lr),
        defense=defense,
        rounds=study.rounds,
        run=seed(setting.seed, f"client questions {point['question']}"),
        replica_ids=replicas,
        participation=participation,
        backend="vmap",
    )
    defense = defense.prepare(federation.plan)
    federation = dataclasses.replace(federation, defense=defense)
    recorder = Recorder(view)
    state = run(federation, recorder)
    seen = recorder.observation()
    assert isinstance(seen, SecureServer)
    score = accuracy(model, state.model, setting.test.to(setting.device))
    return Played(federation=federation, defense=defense, seen=seen, accuracy=score)
