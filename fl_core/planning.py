"""A federation's plan: its turns are drawn in advance, and what they make public is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fl_core.algorithms.fedavg import FedAvg
from fl_core.fleet import Ideal
from fl_core.models import variables_of
from fl_core.optimizers import Tree
from fl_core.plan import Plan, patterns
from fl_core.weighing import largest_weight

if TYPE_CHECKING:
    from fl_core.federation import Federation


def plan_of(federation: Federation) -> Plan:
    """What is public of the federation's replicas and rounds."""
    clients, sampler, algorithm = len(federation.sizes), federation.algorithm.sampler, federation.algorithm
    event, cohort = federation.participation.event(clients, federation.rounds), federation.expected_cohort
    rows = range(len(federation.replica_ids))
    turns = [[federation.turn(row, round) for round in range(federation.rounds)] for row in rows]
    # Who was asked for an attempt that failed does not count: of what it sent nothing can be read.
    found, most = patterns([[turn.asked.tolist() for turn in one] for one in turns])
    if not federation.fleet.synchronous:  # an update may count in another round than its client was asked in
        found, most = frozenset([tuple(range(federation.rounds))]), dict.fromkeys(range(clients), event.rounds)
    sizes = federation.sizes
    if not sampler.from_public_sizes:  # so many steps visit an example the more often, the fewer there are
        sizes = torch.where(federation.held_counts > 0, federation.held_counts, sizes).amin(0)
    like = {name: value.unsqueeze(0) for name, value in variables_of(federation.model).items()}
    ideal, sized = isinstance(federation.fleet, Ideal), event.kind in ("fixed", "uniform", "cyclic")
    return Plan(
        rounds=federation.rounds,
        clients=clients,
        sampling=tuple(sampler.event(size, most.get(client, 0)) for client, size in enumerate(sizes.tolist())),
        participation=event,
        patterns=found,
        cohort=cohort,
        asked=max((len(turn.asked) for one in turns for turn in one), default=0),
        # A masked sum of too few is tried again, with others than the coins had named.
        ideal=ideal and (sized or not federation.defense.masks),
        exact=ideal and sized and all(len(turn.clients) == cohort for one in turns for turn in one),
        streams=algorithm.aggregator.streams,
        synchronous=federation.fleet.synchronous,
        largest_weight=largest_weight(federation),
        even=algorithm.weighting == "uniform" or len(federation.sizes.unique()) == 1,
        stateless=not (algorithm.client_state(like, 1) or federation.defense.client_state()),
        message=sum(value.shape[1:].numel() for value in no_updates(algorithm, like).values()),
    )


def no_updates(algorithm: FedAvg, model: Tree) -> Tree:
    """Nobody's updates [0, ...], in the shapes of a client's message; `model` is [replicas, ...]."""
    nobody = {name: value[:0] for name, value in algorithm.broadcast(model, algorithm.server_state(model)).items()}
    kept = {name: value[:0, 0] for name, value in algorithm.client_state(model, 1).items()}
    start, _ = algorithm.local(algorithm.lr, nobody, kept)
    message, _ = algorithm.message(algorithm.lr, nobody, start, kept, torch.zeros(0, dtype=torch.long))
    return message
