"""What the shadows say of each example, on either side: how many, their mean and their spread.

Most attacks with shadows are closed forms of these few numbers. They are computed once, in blocks of examples, and
shared: see `attacks.base.Shadows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import InputError

if TYPE_CHECKING:
    from attacks.base import Bools, Floats

Array = NDArray[np.float64]

BLOCK = 1 << 20
"""Entries of one block: 8 MB in double precision, which stays in the cache."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The shadows with an example, or those without: `count` [examples], `mean` and `squares` [queries, examples].

    `squares` is the sum of squared residuals around the mean. Both are 0 where there is no such shadow.
    """

    count: NDArray[np.int64]
    mean: Array
    squares: Array

    def pooled_variance(self) -> Array | None:
        """One variance for all examples [queries, 1], None if no example has two shadows on this side.

        Each example's own mean costs one degree of freedom.
        """
        freedom = int(np.maximum(self.count - 1, 0).sum())
        return self.squares.sum(axis=-1, keepdims=True) / freedom if freedom else None

    def variance_around_all(self) -> Array:
        """The variance [queries, 1] around the overall mean, with the examples' own differences in it."""
        number = self.count.sum()
        overall = (self.count * self.mean).sum(axis=-1, keepdims=True) / number
        squares = (self.squares + self.count * (self.mean - overall) ** 2).sum(axis=-1, keepdims=True)
        spread: Array = squares / number
        return spread


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of one signal over the shadows that trained on each example (`inside`) and those that did not (`outside`)."""

    inside: Side
    outside: Side

    @property
    def has_both(self) -> NDArray[np.bool_]:
        """Which examples [examples] have shadows of both kinds."""
        return (self.inside.count > 0) & (self.outside.count > 0)

    def gap(self) -> Array:
        """The mean [queries, 1] of IN less OUT means over the examples that have both.

        0 if none has, as for an attacker whose shadows hold no example at all.
        """
        if not self.has_both.any():
            return np.zeros((len(self.inside.mean), 1))
        average: Array = (self.inside.mean - self.outside.mean)[:, self.has_both].mean(axis=-1, keepdims=True)
        return average

    def means(self) -> tuple[Array, Array]:
        """IN and OUT means, each [queries, examples], none missing.

        An example without shadows on one side takes the other side's mean, and the average gap between the two.
        """
        gap = self.gap()
        mean_in = np.where(self.inside.count > 0, self.inside.mean, self.outside.mean + gap)
        mean_out = np.where(self.outside.count > 0, self.outside.mean, self.inside.mean - gap)
        return mean_in, mean_out


def moments(signals: Floats, inside: Bools, outside: Bools | None = None) -> Moments:
    """Moments of `signals` [shadows, queries, examples], where `inside` [shadows, examples] says who trained on whom.

    `outside`, of the same shape, is everybody else if it is not given. Raises InputError for signals that are not
    finite or shapes that do not fit.
    """
    if signals.ndim != 3 or inside.shape != (len(signals), signals.shape[-1]):
        raise InputError(
            f"shadows {signals.shape} and members {inside.shape} do not fit; "
            "give [shadows, queries, examples] and [shadows, examples]"
        )
    _, queries, examples = signals.shape
    sides = []
    for chosen in (inside, ~inside if outside is None else outside):
        mean, squares = np.zeros((queries, examples)), np.zeros((queries, examples))
        count = chosen.sum(axis=0)
        step = max(1, BLOCK // (len(signals) * queries))
        for start in range(0, examples, step):
            block = slice(start, start + step)
            mean[:, block], squares[:, block] = _of_block(signals[..., block], chosen[:, None, block], count[block])
        sides.append(Side(count=count, mean=mean, squares=squares))
    return Moments(inside=sides[0], outside=sides[1])


def _of_block(signals: Floats, chosen: Bools, count: NDArray[np.int64]) -> tuple[Array, Array]:
    # Around the first shadow's signal: constant signals then give their own value and no spread, to the last bit.
    finite = np.isfinite(signals)
    if not finite.all():
        raise InputError(f"{int((~finite).sum())} shadow signals are not finite; retrain that model")
    origin = signals[0].astype(np.float64)
    residual = signals - origin
    shares = 1 / np.maximum(count, 1)
    centre = np.einsum("sqe,se->qe", residual, chosen[:, 0].astype(np.float64)) * shares
    residual -= centre
    residual *= chosen
    return np.where(count > 0, origin + centre, 0.0), np.einsum("sqe,sqe->qe", residual, residual)


def first(members: Bools, number: int) -> Bools:
    """Of `members` [shadows, examples], each example's first `number` shadows; all where it has fewer."""
    so_far = members.cumsum(axis=0, dtype=np.int32)
    chosen: Bools = members & (so_far <= number)
    return chosen
