"""The clients of a round train: jobs are cut and planned here, and their updates handed back after the defence."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_core.cohort import Cohort, Lane, Tile, kept_by, lanes_of, seated, sent_to, tiles
from fl_core.defended import Senders
from fl_core.local import Job, Trainer
from fl_core.memory import memory_budget
from fl_core.optimizers import Tree
from fl_core.seeds import Generators, from_seed, seed
from fl_core.state import State

if TYPE_CHECKING:
    from fl_core.federation import Federation

SHARES = 8  # of the memory that one lane's batch may take, so that no bit depends on how many workers share it


def local_training(
    federation: Federation, state: State, past: Mapping[int, Tree], cohort: Cohort, train: Trainer, workers: int
) -> Iterator[tuple[Tile, Tree]]:
    """Every client of every replica trains on its own examples, as lanes, a tile of the cohort at a time.

    Hands out each tile's updates [rows, seats, ...], after the defence; an empty seat's is zero. What the clients keep
    changes in `state.clients`.
    """
    algorithm, defense, round = federation.algorithm, federation.defense, state.round
    lr = algorithm.lr * algorithm.schedule.factor(round, federation.rounds)
    batch = algorithm.sampler.batch(int(federation.sizes.max()))
    rule, batch_rule = defense.example_rule(batch), defense.batch_rule()
    ours = defense.client_state().keys()
    cut = tiles(len(cohort.clients), cohort.clients.shape[1], _most_lanes(federation, cohort, workers))
    places = [(tile, lanes) for tile in cut if (lanes := lanes_of(cohort, tile))]
    begun: list[tuple[Tree, Tree, Tensor]] = []
    at_once = federation.footprint.examples(_budget(federation, SHARES), batch) if rule else None

    def jobs() -> Iterator[Job]:
        for _, lanes in places:
            plan = [_batches(federation, round, lane) for lane in lanes]
            sent, kept = sent_to(past, lanes), kept_by(state.clients, lanes)
            theirs, mine = _without(sent, state.defense), _without(kept, ours)
            start, optimizer = algorithm.local(lr, theirs, mine)
            begun.append((sent, mine, torch.tensor([len(batches) for batches in plan])))
            rows = [batch for batches in plan for batch in batches]
            yield Job(
                model=federation.model,
                start=start,
                optimizer=optimizer,
                rows=torch.cat(rows) if rows else torch.empty(0, dtype=torch.long),
                sizes=[[len(batch) for batch in batches] for batches in plan],
                rule=rule,
                noise=[_lane_seed(federation, "example noise", round, lane) for lane in lanes],
                backend=federation.backend,
                looks=_looks(federation, round, lanes, plan),
                precision=federation.precision,
                kept={name: kept[name] for name in ours},
                examples_at_once=at_once,
                batch_rule=batch_rule,
                batch_seeds=[_lane_seed(federation, "batch defence", round, lane) for lane in lanes]
                if batch_rule
                else (),
                classes=len(federation.data.classes),
            )

    for (tile, lanes), trained in zip(places, train(jobs()), strict=True):
        sent, mine, steps = begun.pop(0)
        trained = {name: value.to(federation.data.images.device) for name, value in trained.items()}
        theirs, found = _without(sent, state.defense), _without(trained, ours)
        updates, keep = algorithm.message(lr, theirs, found, mine, steps)
        for name, value in (keep | {name: trained[name] for name in ours}).items():
            state.clients[name][[lane.row for lane in lanes], [lane.client for lane in lanes]] = value
        seeds = [_lane_seed(federation, "update noise", round, lane) for lane in lanes]
        generators = Generators(seeds, federation.data.images.device)
        updates = defense.on_update(updates, Senders(sent, generators, federation.expected_cohort))
        yield tile, seated(updates, cohort.present[tile])


def _looks(federation: Federation, round: int, lanes: Sequence[Lane], plan: list[list[Tensor]]) -> Tensor | None:
    """How the lanes look at the pictures of all their steps, in the order of the rows."""
    if federation.augmentation is None:
        return None
    seeds = [_lane_seed(federation, "augmentation", round, lane) for lane in lanes]
    counts = [sum(len(batch) for batch in batches) for batches in plan]
    each = [federation.augmentation.draw(count, from_seed(one)) for count, one in zip(counts, seeds, strict=True)]
    return torch.cat(each) if each else None


def _lane_seed(federation: Federation, purpose: str, round: int, lane: Lane) -> int:
    return seed(federation.run, purpose, federation.replica_ids[lane.row], round, lane.client)


def _batches(federation: Federation, round: int, lane: Lane) -> list[Tensor]:
    """A client's batches; one that does only a share of its work does the first ones, at least one."""
    draw = from_seed(_lane_seed(federation, "batches", round, lane))
    size = int(federation.sizes[lane.client])
    batches = federation.algorithm.sampler.draw(federation.held(lane.row, lane.client), size, draw)
    return batches if lane.work >= 1 else batches[: max(1, math.floor(lane.work * len(batches) + 1e-9))]


def _without(tree: Tree, names: Container[str]) -> Tree:
    return {name: value for name, value in tree.items() if name not in names}


def _budget(federation: Federation, workers: int) -> float:
    """Bytes that the lanes of one process may take."""
    return (federation.memory or memory_budget(federation.data.images.device)) / workers


def _most_lanes(federation: Federation, cohort: Cohort, workers: int) -> int:
    """How many lanes train together: what memory allows, and no more than leave work for every worker."""
    share = -(-cohort.clients.numel() // workers)
    return share if share <= 1 else min(federation.footprint.lanes(_budget(federation, workers)), share)
