"""How the server makes one update of a cohort's: the clients' weights, the mean, and means that resist a few liars.

An aggregator is given updates [replicas, cohort, ...], the weights [replicas, cohort] and who is present in each seat
[replicas, cohort]; it returns [replicas, ...], zero for a replica without any update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree

WEIGHTINGS = ("uniform", "by_examples")


def weights(weighting: str, sizes: Tensor, present: Tensor) -> Tensor:
    """Shares [replicas, cohort] that sum to 1 a replica over the seats that are `present` [replicas, cohort].

    A client without examples has no share `by_examples` of its `sizes` [replicas, cohort], and an equal one under
    `uniform`. A replica where nobody is present, or nobody holds anything, has shares of 0.
    """
    check_choice("algorithm.weighting", weighting, WEIGHTINGS)
    shares = present.to(torch.float32) * (1 if weighting == "uniform" else sizes)
    return shares / shares.sum(1, keepdim=True).clamp(min=1e-12)


def public_weights(weighting: str, sizes: Tensor, cap: float | None = None) -> Tensor:
    """Each client's weight [clients] in a sum whose denominator is public, in (0, 1], float64.

    It is 1 under `uniform`, and otherwise the client's public size of `sizes` [clients] over `cap`, at most 1 (None:
    the largest size). Source: McMahan et al. 2018, section 2.
    """
    check_choice("algorithm.weighting", weighting, WEIGHTINGS)
    each = sizes.double()
    return torch.ones_like(each) if weighting == "uniform" else (each / (cap or each.max())).clamp(max=1)


class Aggregator(Protocol):
    """Makes one update of a cohort's."""

    @property
    def streams(self) -> bool:
        """Whether `add` to a running sum will do, so that no more than a part of a cohort is ever in memory."""
        ...

    def __call__(self, updates: Tree, shares: Tensor, present: Tensor) -> Tree: ...


@dataclass(frozen=True)
class Mean:
    """The weighted mean: the sum of updates times shares, which may be taken part by part."""

    streams: ClassVar[bool] = True

    def __call__(self, updates: Tree, shares: Tensor, present: Tensor) -> Tree:
        total = {name: value.new_zeros(value.shape[0], *value.shape[2:]) for name, value in updates.items()}
        self.add(total, updates, shares)
        return total

    def add(self, total: Tree, updates: Tree, shares: Tensor) -> None:
        """Add to a running sum [rows, ...], in place; seat by seat, so that no bit depends on how a cohort is cut."""
        for name, value in updates.items():
            weighted = shares.to(value).view(*shares.shape, *[1] * (value.dim() - 2))
            for seat in range(value.shape[1]):
                total[name].addcmul_(weighted[:, seat], value[:, seat])


@dataclass(frozen=True)
class Median:
    """The median of every coordinate (Yin et al. 2018, Algorithm 1, option I); weights do not count.

    Of an even number of updates it is the mean of the middle two.
    """

    streams: ClassVar[bool] = False

    def __call__(self, updates: Tree, shares: Tensor, present: Tensor) -> Tree:
        def middle(value: Tensor) -> Tensor:
            ordered, count = value.sort(0).values, len(value)
            return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2

        return _each_replica(updates, present, middle)


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """The mean of every coordinate without its `trim`·n lowest and highest values (Yin et al. 2018, option II)."""

    trim: float = 0.1
    streams: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("aggregator.trim", self.trim, minimum=0, below=0.5)

    def __call__(self, updates: Tree, shares: Tensor, present: Tensor) -> Tree:
        def inner(value: Tensor) -> Tensor:
            cut = int(self.trim * len(value))
            return value.sort(0).values[cut : len(value) - cut].mean(0)

        return _each_replica(updates, present, inner)


@dataclass(frozen=True, kw_only=True)
class Krum:
    """The update closest to its n − f − 2 nearest others (Blanchard et al. 2017), or the mean of the `keep` best.

    `byzantine` is f, the number of liars it is to withstand; it needs n ≥ 2f + 3 updates a round, and raises
    InputError in a round that has fewer. Distances are taken over all variables together. Weights do not count.
    """

    byzantine: int = 1
    keep: int = 1
    streams: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("aggregator.byzantine", self.byzantine, minimum=0, integer=True)
        check_number("aggregator.keep", self.keep, minimum=1, integer=True)

    def __call__(self, updates: Tree, shares: Tensor, present: Tensor) -> Tree:
        found = {name: value.new_zeros(value.shape[0], *value.shape[2:]) for name, value in updates.items()}
        for row, here in enumerate(present):
            if not here.any():
                continue
            mine = {name: value[row][here.to(value.device)] for name, value in updates.items()}
            best = self._best(torch.cat([value.reshape(len(value), -1) for value in mine.values()], 1).double())
            for name, value in mine.items():
                found[name][row] = value[best].mean(0)
        return found

    def _best(self, flat: Tensor) -> Tensor:
        """Row numbers of the chosen among updates [n, parameters]."""
        count = len(flat)
        self.check(count)
        near = count - self.byzantine - 2
        # A client is at distance 0 from itself: drop that smallest entry of each row.
        distances = torch.cdist(flat, flat).square().sort(1).values[:, 1 : near + 1].sum(1)
        return distances.argsort(stable=True)[: self.keep]

    def check(self, count: int) -> None:
        """Raise InputError where a round of `count` updates is too small."""
        if count < 2 * self.byzantine + 3 or self.keep > count - self.byzantine:
            raise InputError(
                f"a round has {count} updates, but Krum with aggregator.byzantine={self.byzantine} and "
                f"keep={self.keep} needs at least {max(2 * self.byzantine + 3, self.keep + self.byzantine)}; "
                "enlarge the cohort or lower them"
            )


def _each_replica(updates: Tree, present: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tree:
    """`reduce` [present, ...] -> [...] for every replica and variable; zero where nobody is present."""
    return {
        name: torch.stack(
            [
                reduce(value[row][here.to(value.device)]) if here.any() else torch.zeros_like(value[row, 0])
                for row, here in enumerate(present)
            ]
        )
        for name, value in updates.items()
    }
