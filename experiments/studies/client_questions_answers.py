"""What `client_questions` measures: each question's federations, its attackers and its judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attacks.base import Bools, Floats
from attacks.clients.evidence import Reads, Scores
from attacks.clients.existence import BlindExistence, RecordFilter, RecordKnowledge, RecordProduct
from attacks.clients.participation import BlindParticipation, ClientKnowledge, ExpectedUpdate, MeanConfidence
from attacks.clients.properties import (
    BlindShares,
    LabelCounts,
    OutputLayerRegression,
    PropertyKnowledge,
    total_variation,
)
from attacks.clients.source import (
    BlindSource,
    CalibratedCosine,
    SmallestLoss,
    SourceKnowledge,
    UpdateCosine,
    WithAndWithout,
    verdicts,
)
from attacks.metrics import Interval, bootstrap_over_replicas, mean_interval
from defenses.dp_sgd import DPSGD
from defenses.statements import PrivacyStatement
from experiments.studies.base import Setting, Values
from experiments.studies.client_questions_scene import Enrolled, Played, dealt, dealt_replicas, play
from fl_core.participation import Everyone, Uniform
from fl_core.seeds import generator, seed
from fl_core.views import SecureServer, Server

if TYPE_CHECKING:
    from experiments.studies.client_questions import ClientQuestions

VIEWS: dict[Reads, str] = {"step": "participant", "sum": "secure_server", "update": "server"}
BLIND = "none"
"""The view of a baseline."""


def participation(study: ClientQuestions, setting: Setting, point: Values) -> Values:
    """AUC over all clients and replicas. The clients are the same in all replicas, and in the attacker's shadows."""
    pool, clients = setting.pool.to(setting.device), point["clients"]
    rows = dealt(pool.labels, clients, 2 * study.examples, study.alpha, seed(setting.seed, "clients", clients))
    held = {"own records": rows[:, : study.examples], "fresh records": rows[:, study.examples :]}
    ours, theirs = range(study.replicas), range(study.replicas, study.replicas + study.shadows)
    target, shadows = (
        play(
            study, setting, point, pool, held["own records"].unsqueeze(0), replicas, view=SecureServer,
            participation=Enrolled(),
        )
        for replicas in (ours, theirs)
    )  # fmt: skip
    took_part, known = (_enrolled(one, clients) for one in (target, shadows))
    rows_out: list[Values] = []
    for attack, view in (
        (MeanConfidence(), "released_model"),
        (ExpectedUpdate(reads="step"), "participant"),
        (ExpectedUpdate(reads="sum"), "secure_server"),
        (BlindParticipation(), BLIND),
    ):
        for whose, records in held.items():
            scores = [
                attack.run(
                    target.seen,
                    ClientKnowledge(
                        model=target.federation.model,
                        images=pool.images[records[client]],
                        labels=pool.labels[records[client]],
                        shadows=shadows.seen,
                        took_part=known[:, client],
                    ),
                )
                for client in range(clients)
            ]
            about = {"attack": attack.name, "view": view, "knowledge": whose}
            rows_out.append(about | _auc(study, np.stack(scores, 1), took_part) | _ceiling(target, view, "client"))
    return {"rows": [*rows_out, _accuracy(target)]}


def _enrolled(played: Played, clients: int) -> Bools:
    found = torch.zeros(len(played.federation.replica_ids), clients, dtype=torch.bool)
    for row, turn in enumerate(played.federation.turns(0)):
        found[row, turn.clients] = True
    mine: Bools = found.numpy()
    return mine


def source(study: ClientQuestions, setting: Setting, point: Values) -> Values:
    """The share of records whose client is named, one a client. Half of the clients come a round, drawn anew."""
    pool, test, clients = setting.pool.to(setting.device), setting.test.to(setting.device), point["clients"]
    replicas = range(study.replicas)
    rows = dealt_replicas(pool.labels, study, clients, replicas, "holdings", setting.seed)
    target = play(study, setting, point, pool, rows, replicas, view=Server, participation=Uniform(max(1, clients // 2)))
    records = rows[:, :, 0]
    knowledge = SourceKnowledge(
        model=target.federation.model,
        images=pool.images[records],
        labels=pool.labels[records].cpu(),
        clients=clients,
        label_shares=_shares(pool.labels, rows, len(pool.classes)),
        public_images=test.images[: study.public],
        public_labels=test.labels[: study.public],
    )
    found = []
    for attack, view in (
        (SmallestLoss(), "server"), (UpdateCosine(), "server"), (CalibratedCosine(), "server"),
        (WithAndWithout(), "secure_server"),
        (BlindSource(), BLIND),
    ):  # fmt: skip
        named = verdicts(attack.run(target.seen, knowledge))
        right = named[:, np.arange(clients), np.arange(clients)].mean(1)
        about = {
            "attack": attack.name,
            "view": view,
            "knowledge": "label shares" if attack in (BlindSource(), CalibratedCosine()) else "the record",
        }
        found.append(about | _mean("accuracy of the source", right) | {"chance": 1 / clients, "ceiling": None})
    return {"rows": [*found, _accuracy(target)]}


def properties(study: ClientQuestions, setting: Setting, point: Values) -> Values:
    """Total variation between estimated and true shares of the classes, of each client and of the cohort.

    The attacker's shadow clients hold one half of the pool, the target's the other.
    """
    pool, clients = setting.pool.to(setting.device), point["clients"]
    halves = torch.randperm(len(pool), generator=generator(setting.seed, "halves")).to(pool.labels.device).chunk(2)
    ours, theirs = range(study.replicas), range(study.replicas, study.replicas + study.shadows)
    played, truths = [], []
    for half, replicas in zip(halves, (ours, theirs), strict=True):
        rows = dealt_replicas(pool.labels[half], study, clients, replicas, "holdings", setting.seed)
        examples = pool.select(half)
        played.append(play(study, setting, point, examples, rows, replicas, view=Server, participation=Everyone()))
        truths.append(_shares(examples.labels, rows, len(pool.classes)))
    (target, shadows), (truth, known) = played, truths
    sampler = target.federation.algorithm.sampler
    found = []
    reads: Reads
    for reads in ("update", "sum", "step"):
        whole = reads != "update"
        mine, taught = (one.mean(1, keepdims=True) if whole else one for one in (truth, known))
        knowledge = PropertyKnowledge(
            model=target.federation.model,
            images=setting.test.images[: study.public].to(setting.device),
            examples=study.examples * (clients if whole else 1),
            descent=study.lr * sampler.steps(study.examples),
            shadows=shadows.seen,
            shares=taught,
        )
        attacks: list[tuple[Any, str]] = [
            (OutputLayerRegression(reads=reads), VIEWS[reads]), (LabelCounts(reads=reads), VIEWS[reads]),
        ]  # fmt: skip
        if reads != "step":
            attacks.append((BlindShares(), BLIND))
        for attack, view in attacks:
            error = total_variation(attack.run(target.seen, knowledge), mine).mean(1)
            about = {"attack": attack.name, "view": view, "knowledge": "the cohort" if whole else "each client"}
            found.append(about | _mean("total variation", error) | {"chance": None, "ceiling": None})
    return {"rows": [*found, _accuracy(target)]}


def existence(study: ClientQuestions, setting: Setting, point: Values) -> Values:
    """AUC over replicas with the record and without. A record of the rare class is the only one of its class."""
    found, last = [], None
    for kind in ("rare record", "ordinary record"):
        last, rows = _existence(study, setting, point, kind)
        found += rows
    assert last is not None
    return {"rows": [*found, _accuracy(last)]}


def _existence(study: ClientQuestions, setting: Setting, point: Values, kind: str) -> tuple[Played, list[Values]]:
    pool, test, clients = setting.pool.to(setting.device), setting.test.to(setting.device), point["clients"]
    replicas, run_seed = range(study.worlds), setting.seed
    rare = kind == "rare record"
    usual = torch.nonzero(pool.labels != study.rare).flatten() if rare else torch.arange(len(pool))
    held = usual[dealt_replicas(pool.labels[usual], study, clients, replicas, kind, run_seed)]
    draw = generator(run_seed, f"records {kind}")
    of_class = torch.nonzero(pool.labels == study.rare).flatten()
    record = torch.stack([_one(of_class if rare else _others(len(pool), own), draw) for own in held])
    rows = torch.cat([held, record.view(-1, 1, 1).expand(-1, clients, 1)], 2)
    exists = torch.rand(study.worlds, generator=generator(run_seed, f"exists {kind}")) < 0.5
    there = torch.ones(rows.shape, dtype=torch.bool)
    there[:, :, -1] = False
    there[:, 0, -1] = exists
    target = play(study, setting, point, pool, rows, replicas, view=Server, participation=Everyone(), there=there)
    known = torch.nonzero((test.labels != study.rare) | (not rare)).flatten()[: study.public]
    defense, steps = target.defense, target.federation.algorithm.sampler.steps(study.examples)
    noise, clip = 0.0, None
    if isinstance(defense, DPSGD):
        assert defense.noise_multiplier is not None
        clip = defense.clip_norm
        noise = study.lr * defense.noise_multiplier * clip * steps**0.5 / study.batch_size
    found = []
    for reads, parts in (("update", 1), ("sum", clients)):
        knowledge = RecordKnowledge(
            model=target.federation.model,
            images=pool.images[record],
            labels=pool.labels[record],
            clients=clients,
            weight=study.lr * steps / study.examples / parts,
            others=study.examples * parts,
            noise=noise / parts**0.5,
            clip_norm=clip,
            public_images=test.images[known],
            public_labels=test.labels[known],
        )
        attacks: list[tuple[Any, str]] = [
            (RecordFilter(reads=reads), VIEWS[reads]), (RecordProduct(reads=reads), VIEWS[reads]),  # type: ignore[arg-type,index]
        ]  # fmt: skip
        if reads == "update":
            attacks.append((BlindExistence(), BLIND))
        for attack, view in attacks:
            scores = attack.run(target.seen, knowledge)[:, None]
            about = {"attack": attack.name, "view": view, "knowledge": kind}
            found.append(about | _auc(study, scores, exists.numpy()[:, None]) | _ceiling(target, view, "example"))
    return target, found


def _others(count: int, held: Tensor) -> Tensor:
    """The rows of `count` that are not `held`."""
    free = torch.ones(count, dtype=torch.bool)
    free[held.flatten().cpu()] = False
    return torch.nonzero(free).flatten()


def _one(rows: Tensor, draw: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (), generator=draw).to(rows.device)].cpu()


def _shares(labels: Tensor, rows: Tensor, classes: int) -> Floats:
    """The share of each class [replicas, clients, classes] of what `rows` hold."""
    shares: Floats = torch.nn.functional.one_hot(labels.cpu()[rows], classes).double().mean(2).numpy()
    return shares


def _auc(study: ClientQuestions, scores: Scores, truth: Bools) -> Values:
    found = bootstrap_over_replicas(scores, truth, fpr=0.5, resamples=study.resamples)
    return _interval("auc", found.auc) | {"chance": 0.5}


def _mean(metric: str, values: Floats) -> Values:
    return _interval(metric, mean_interval(values))


def _interval(metric: str, interval: Interval) -> Values:
    return {"metric": metric, "value": interval.value, "low": interval.low, "high": interval.high}


def _accuracy(played: Played) -> Values:
    """The models' test accuracy, for what a defence costs."""
    about = {"attack": "none", "view": BLIND, "knowledge": "test examples"}
    return about | _mean("test accuracy", played.accuracy.numpy()) | {"chance": None, "ceiling": None}


def _ceiling(played: Played, view: str, unit: Any) -> Values:
    """The most that the defence's guarantee to `unit` allows as an AUC of `view`; None where it gives none."""
    if view == BLIND or not played.defense.private:
        return {"ceiling": None}
    stated = played.defense.guarantee(view, unit, played.federation.plan)
    if not isinstance(stated, PrivacyStatement) or stated.mechanism is None:
        return {"ceiling": None}
    return {"ceiling": stated.mechanism.trade_off().auc()}
