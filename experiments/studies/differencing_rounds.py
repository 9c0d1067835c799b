"""What `differencing` measures: rounds are played, their sums solved for each client, members looked for in that."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attacks.aggregation.differencing import Differencing, participation
from attacks.membership.population import estimate
from attacks.membership.update_product import MatchedFilter, TargetKnowledge
from attacks.metrics import bootstrap_over_replicas, mean_interval
from defenses.base import Defense
from defenses.clip import Clip
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.noise import cut
from defenses.statements import PrivacyStatement
from experiments.studies.base import Setting, Values
from experiments.studies.clients import Recipe, flat, initial, seen_sums, shortened, trained, updates
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.federation import Federation, initial_state, run
from fl_core.optimizers import Tree
from fl_core.participation import Batches, Everyone, Participation, Swapping, Uniform
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.views import Recorder, SecureServer, Server

if TYPE_CHECKING:
    from experiments.studies.differencing import Differences

SCHEMES = ("uniform", "swapping", "batches")


def participation_of(study: Differences, scheme: str) -> Participation:
    """How the scheme draws a round's clients."""
    if scheme == "batches":
        return Batches(study.batch, study.cohort)
    return Uniform(study.cohort) if scheme == "uniform" else Swapping(study.cohort)


@dataclass(frozen=True, kw_only=True)
class Played:
    """One replica after its rounds: what a server without masks would have seen, and what stands around it.

    `clean` are the updates without their noise, a round each, [cohort, parameters]; they go to the scorer alone.
    `public` are the rows of the pool that the attacker has.
    """

    federation: Federation
    recipe: Recipe
    seen: Server
    clean: list[Tensor]
    pool: ImageSet
    public: Tensor


def measure(study: Differences, setting: Setting, point: Values) -> Values:
    """What the last rounds give away, for each length in `study.rounds`: means over replicas with their intervals."""
    found: list[list[Found]] = []  # [replicas][lengths]
    inside: list[Any] = []
    promise: Values = {}
    for replica in range(study.replicas):
        played = play(study, setting, point, replica)
        found.append([_looked_at(study, setting, played, length) for length in study.rounds])
        inside.append(played.federation.members[0].numpy())
        promise = _promise(played.federation)
    rows: list[Values] = []
    for length, mine in zip(study.rounds, zip(*found, strict=True), strict=True):
        for name in mine[0].numbers:
            interval = mean_interval(np.array([one.numbers[name] for one in mine]))
            rows.append({"rounds": length, "metric": name} | dataclasses.asdict(interval))
        for source in mine[0].scores:
            scores = np.stack([one.scores[source] for one in mine])
            summary = bootstrap_over_replicas(scores, np.stack(inside), fpr=study.fpr, resamples=study.resamples)
            for metric, interval in (("auc", summary.auc), ("tpr", summary.tpr)):
                rows.append({"rounds": length, "metric": metric, "source": source} | dataclasses.asdict(interval))
    return {"rows": rows, **promise}


def _promise(federation: Federation) -> Values:
    """The noise, and the ceiling that it puts on the AUC for one of a client's examples; None without noise."""
    defense = federation.defense
    if not isinstance(defense, DPFedAvgShares):
        return {"noise_multiplier": None, "ceiling": None}
    stated = defense.guarantee("secure_server", "example", federation.plan)
    assert isinstance(stated, PrivacyStatement)
    assert stated.mechanism is not None
    return {"noise_multiplier": defense.noise_multiplier, "ceiling": stated.mechanism.trade_off().auc()}


def play(study: Differences, setting: Setting, point: Values, replica: int) -> Played:
    """All rounds of one replica. Half of each client's candidates are its examples, by a fair coin each."""
    pool, run_seed, each = setting.pool.to(setting.device), setting.seed, 2 * study.examples
    order = torch.randperm(len(pool), generator=generator(run_seed, "public or not"))
    crowd, public = order.chunk(2)
    model = setting.make("model", shape=pool.shape, classes=len(pool.classes)).to(setting.device)
    recipe = Recipe(model=model, lr=study.lr)
    start = initial(model, run_seed, setting.device)
    if point["model"] == "trained":
        start = trained(model, pool.select(public.to(setting.device)), study.pretraining, study.lr, run_seed)
    draw = generator(run_seed, "differencing", replica)
    chosen = crowd[torch.randperm(len(crowd), generator=draw)[: study.clients * each]]
    defense: Defense = Defense()
    if point["epsilon"] is not None:
        lengths = updates(recipe, start, pool, drawn(public, study.public, study.examples, run_seed)).norm(dim=1)
        defense = DPFedAvgShares(
            epsilon=point["epsilon"], delta=study.delta, clip_norm=float(lengths.median()), bits=study.bits
        )
    federation = Federation(
        model=model,
        data=pool.select(chosen.to(setting.device)),
        owners=torch.arange(study.clients).repeat_interleave(each),
        members=torch.rand(1, len(chosen), generator=draw) < 0.5,
        sizes=torch.full((study.clients,), study.examples),
        algorithm=FedAvg(
            sampler=Shuffled(batch_size=point["batch_size"], local_steps=1), lr=study.lr, server_lr=point["server_lr"]
        ),
        defense=defense,
        rounds=study.last,
        run=run_seed,
        replica_ids=[replica],
        participation=participation_of(study, point["scheme"]),
        backend="vmap",
    )
    federation = dataclasses.replace(federation, defense=defense.prepare(federation.plan))
    seen = _seen(federation, start)
    clean = [_sent(seen, round) for round in range(study.last)]
    if isinstance(federation.defense, DPFedAvgShares):
        # What was sent has noise in it; the same clients once more at the same models, clipped alone.
        clip = Clip(clip_norm=federation.defense.clip_norm)
        again = dataclasses.replace(federation, participation=Everyone(), defense=clip, rounds=1)
        clean = [_sent(_seen(again, seen.models[round]), 0)[seen.cohorts[round][0]] for round in range(study.last)]
    return Played(federation=federation, recipe=recipe, seen=seen, clean=clean, pool=pool, public=public)


def _sent(seen: Server, round: int) -> Tensor:
    """The cohort's updates [cohort, parameters] of the one replica."""
    return flat({name: value[0] for name, value in seen.updates[round].items()})


def _seen(federation: Federation, start: Tree) -> Server:
    recorder = Recorder(Server)
    on_device = {name: value.to(federation.data.images.device) for name, value in start.items()}
    run(federation, recorder, state=dataclasses.replace(initial_state(federation), model=on_device))
    seen = recorder.observation()
    assert isinstance(seen, Server)
    return seen


def drawn(rows: Tensor, clients: int, each: int, run_seed: int) -> Tensor:
    """Who holds what of `rows`, with replacement [clients, each]."""
    return rows[torch.randint(len(rows), (clients, each), generator=generator(run_seed, "public clients", len(rows)))]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Numbers by name, and for each source of evidence a score for every candidate [candidates]."""

    numbers: dict[str, float]
    scores: dict[str, Any]


def _looked_at(study: Differences, setting: Setting, played: Played, length: int) -> Found:
    """What the last `length` rounds give away: how well single updates are recovered, and what they tell of members."""
    seen, clients = played.seen, study.clients
    window = range(study.last - length, study.last)
    masked = SecureServer(
        model=seen.model,
        models=seen.models,
        sums=seen.sums,
        divisors=seen.divisors,
        cohorts=seen.cohorts,
        dropped=seen.dropped,
    )
    found = Differencing().run(masked, clients, rounds=window)
    recovered = flat({name: value[0] for name, value in found.updates.items()})

    each = [_turns(played, client, window) for client in range(clients)]
    turns = torch.tensor([len(one) for one in each])
    asked = turns > 0
    truth = torch.stack([one.mean(0) if len(one) else recovered.new_zeros(recovered.shape[1]) for one in each])
    own = truth - truth[asked].mean(0)  # what sets a client apart
    spread = float(own[asked].square().sum(1).mean().sqrt())
    changes = [one.var(0).sum() for one in each if len(one) > 1]
    guess = recovered - recovered[asked].mean(0)
    numbers = {
        "error": float((recovered - truth)[asked].square().sum(1).mean().sqrt()) / spread,
        "cosine": float(torch.cosine_similarity(guess[asked], own[asked], dim=1).mean()),
        "drift": float(torch.stack(changes).mean().sqrt()) / spread,
        "resolution": float(found.resolution[0].mean()),
        "rank": float(torch.linalg.matrix_rank(participation(masked, clients, window)[0].double())),
        "ridge": float(found.ridge[0]),
        "trend": float(found.trend[0]),
    }
    participants = played.federation.participation
    if isinstance(participants, Batches):
        batches = participants.members(clients, played.federation.run, played.federation.replica_ids[0])
        means, guessed = truth[batches].mean(1), recovered[batches].mean(1)
        numbers["batch error"] = float((guessed - means).square().sum(1).mean().sqrt()) / spread
    return Found(numbers=numbers, scores=_scores(study, setting, played, window, recovered, found.amplification[0]))


def _turns(played: Played, client: int, window: range) -> Tensor:
    """A client's clean updates [turns, parameters] in the rounds of the window that asked it, double precision."""
    cohorts = [(round, played.seen.cohorts[round][0].tolist()) for round in window]
    mine = [played.clean[round][cohort.index(client)] for round, cohort in cohorts if client in cohort]
    return torch.stack(mine).double() if mine else torch.zeros(0, played.clean[0].shape[1], dtype=torch.float64)


def _scores(
    study: Differences, setting: Setting, played: Played, window: range, recovered: Tensor, amplification: Tensor
) -> dict[str, Any]:
    """The matched filter's verdict on every candidate, from three sources.

    - `recovered`: its owner's update by differencing;
    - `sums`: the mean of the sums, which is the mean over all clients;
    - `unmasked`: its owner's updates themselves, with the noise that they carry, averaged over its turns.

    Candidates' updates and the population are those at the model in the middle of the window.
    """
    federation, seen, clients = played.federation, played.seen, study.clients
    model = seen.models[window[len(window) // 2]]
    on_device = {name: value.to(setting.device) for name, value in model.items()}
    split, defense = len(played.public) * 3 // 4, federation.defense
    clip, noise = None, 0.0
    if isinstance(defense, DPFedAvgShares):
        assert defense.noise_multiplier is not None
        clip, noise = defense.clip_norm, defense.noise_multiplier * defense.clip_norm
    known = [
        updates(played.recipe, on_device, played.pool, drawn(rows, count, study.examples, federation.run))
        for rows, count in (
            (played.public[:split], study.public * 3 // 4),
            (played.public[split:], study.public // 4),
        )
    ]
    population = estimate(*(shortened(rows, clip) for rows in known))
    candidates = torch.arange(len(federation.data)).unsqueeze(1)
    targets = cut(updates(played.recipe, on_device, federation.data, candidates), model)

    sums = torch.stack([flat(seen.sums[round])[0] for round in window]).mean(0)
    turns = torch.zeros(clients)
    unmasked = torch.zeros(clients, len(sums))
    for round in window:
        asked = seen.cohorts[round][0]
        unmasked[asked] += _sent(seen, round)
        turns[asked] += 1
    unmasked /= turns.clamp(min=1).unsqueeze(1)
    cohort = study.cohort
    mean_turns = float(turns.mean().clamp(min=1))
    evidence = {
        "recovered": (recovered.float()[federation.owners], 1, noise / cohort * float(amplification.mean().sqrt())),
        "sums": (
            clients * sums.expand(len(candidates), -1),
            clients,
            noise * clients / cohort / math.sqrt(len(window)),
        ),
        "unmasked": (unmasked[federation.owners], 1, noise / math.sqrt(cohort * mean_turns)),
    }
    return {
        source: MatchedFilter().run(
            seen_sums(model, totals, size), TargetKnowledge(targets=targets, population=population, noise=deviation)
        )
        for source, (totals, size, deviation) in evidence.items()
    }
