"""How a round's updates become one: tile by tile as they come, or from all of them at the end."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fl_core.aggregation import Aggregator, Mean
from fl_core.cohort import Cohort, Tile, joined
from fl_core.optimizers import Tree


class Summing(Protocol):
    """Takes a round's updates, and makes one of them."""

    def add(self, tile: Tile, updates: Tree) -> None:
        """Take a tile's updates [rows, seats, ...]; each tile comes once."""
        ...

    def total(self) -> Tree:
        """The one update [replicas, ...] that they make; empty where nobody sent any."""
        ...


class RunningSum(Summing):
    """The weighted sum, in which every tile is forgotten as soon as it is added."""

    def __init__(self, mean: Mean, shares: Tensor) -> None:
        self._mean, self._shares = mean, shares
        self._total: Tree = {}

    def add(self, tile: Tile, updates: Tree) -> None:
        for name, value in updates.items():
            self._total.setdefault(name, value.new_zeros(len(self._shares), *value.shape[2:]))
        self._mean.add({name: value[tile[0]] for name, value in self._total.items()}, updates, self._shares[tile])

    def total(self) -> Tree:
        return self._total


class WholeCohort(Summing):
    """An aggregator that has to see all updates of a cohort beside each other."""

    def __init__(self, aggregator: Aggregator, cohort: Cohort, shares: Tensor) -> None:
        self._aggregator, self._cohort, self._shares = aggregator, cohort, shares
        self._parts: list[tuple[Tile, Tree]] = []

    def add(self, tile: Tile, updates: Tree) -> None:
        self._parts.append((tile, updates))

    def total(self) -> Tree:
        if not self._parts:
            return {}
        return self._aggregator(joined(self._parts, self._cohort), self._shares, self._cohort.present)


def in_the_clear(aggregator: Aggregator, cohort: Cohort, shares: Tensor) -> Summing:
    """The summing of a server that sees every update; `shares` are [replicas, seats]."""
    if isinstance(aggregator, Mean):
        return RunningSum(aggregator, shares)
    return WholeCohort(aggregator, cohort, shares)
