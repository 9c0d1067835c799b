"""The seats of a round: who takes part, from which model, and how stacked lanes are cut and put back together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.optimizers import Tree
from fl_core.partition import NOBODY

Tile = tuple[slice, slice]
"""A rectangle of replicas x seats."""


@dataclass(frozen=True)
class Cohort:
    """Who takes part in a round, one seat each [replicas, seats]; `clients` is NOBODY where a seat stays empty.

    `versions` is the round whose global model a client started from, `work` the share of its steps that it does, and
    `factors` what its weight is multiplied with; see `fleet.Turn`. `dropped` [replicas, most] are those who were asked
    and lost, NOBODY where a replica lost fewer.
    """

    clients: Tensor
    versions: Tensor
    work: Tensor
    factors: Tensor
    dropped: Tensor

    @property
    def present(self) -> Tensor:
        """Which seats are taken, bool [replicas, seats]."""
        return self.clients != NOBODY


@dataclass(frozen=True)
class Lane:
    """One client's turn: the replica at `row`, its client, the version it starts from, and how much it does."""

    row: int
    client: int
    version: int
    work: float


def lanes_of(cohort: Cohort, tile: Tile) -> list[Lane]:
    """The seats of a tile that are taken, row by row."""
    lanes = []
    for row in range(tile[0].start, tile[0].stop):
        clients = cohort.clients[row].tolist()
        for seat in range(tile[1].start, tile[1].stop):
            if clients[seat] != NOBODY:
                lanes.append(Lane(row, clients[seat], int(cohort.versions[row, seat]), float(cohort.work[row, seat])))
    return lanes


def tiles(rows: int, columns: int, lanes: int) -> Iterator[tuple[slice, slice]]:
    """Cut a stack of rows x columns lanes into rectangles of at most `lanes`, at least one lane each, in order.

    Whole rows where they fit; parts of one row otherwise.
    """
    lanes = max(lanes, 1)
    if columns <= lanes:
        step = lanes // max(columns, 1)
        yield from ((slice(row, min(row + step, rows)), slice(0, columns)) for row in range(0, rows, step))
        return
    parts = math.ceil(columns / lanes)
    for row in range(rows):
        for part in range(parts):  # of equal size, to one lane
            yield slice(row, row + 1), slice(part * columns // parts, (part + 1) * columns // parts)


def sent_to(past: Mapping[int, Tree], lanes: Sequence[Lane]) -> Tree:
    """What each lane was sent [lanes, ...]; without a copy where all were sent the same."""
    first = lanes[0]
    names = past[first.version]
    if all((lane.row, lane.version) == (first.row, first.version) for lane in lanes):
        return {name: value[first.row].expand(len(lanes), *value.shape[1:]) for name, value in names.items()}
    if all(lane.version == first.version for lane in lanes):
        rows = torch.tensor([lane.row for lane in lanes], device=next(iter(names.values())).device)
        return {name: value[rows] for name, value in names.items()}
    return {name: torch.stack([past[lane.version][name][lane.row] for lane in lanes]) for name in names}


def kept_by(clients: Tree, lanes: Sequence[Lane]) -> Tree:
    """What each lane's client keeps [lanes, ...]."""
    rows, columns = [lane.row for lane in lanes], [lane.client for lane in lanes]
    return {name: value[rows, columns] for name, value in clients.items()}


def seated(updates: Tree, present: Tensor) -> Tree:
    """Lanes [lanes, ...] in their seats [rows, seats, ...]."""
    if present.all():
        return {name: value.unflatten(0, present.shape) for name, value in updates.items()}
    found = {name: value.new_zeros(*present.shape, *value.shape[1:]) for name, value in updates.items()}
    for name, value in updates.items():
        found[name][present.to(value.device)] = value
    return found


def joined(parts: Sequence[tuple[Tile, Tree]], cohort: Cohort) -> Tree:
    """Tiles of updates as one whole [replicas, seats, ...]."""
    whole = {name: value.new_zeros(*cohort.clients.shape, *value.shape[2:]) for name, value in parts[0][1].items()}
    for tile, updates in parts:
        for name, value in updates.items():
            whole[name][tile] = value
    return whole
