"""Signals of training calibrated example by example: how likelier is each under the shadows that trained on it?

The likelihood ratio of Carlini et al. 2022 (LiRA), of any signal of `series` and any round, with one variance IN and
one OUT pooled over the examples of a round. What the shadows' own ratios are is found without the shadow itself, so
that a classifier can learn from them (`combined`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.base import Bools, Floats, MembershipKnowledge, Shadows
from attacks.membership.lira import SMALLEST_VARIANCE
from attacks.membership.observed import Signals, require_shadows, require_signals
from attacks.membership.series import mean_over_rounds, narrowest, series
from fl_core.errors import InputError, check_choice

Array = NDArray[np.float64]


def likelihood_ratios(target: Floats, shadows: Floats, members: Bools) -> tuple[Array, Array]:
    """Log N(signal; IN) − log N(signal; OUT) in nats, of the target's signals and of each shadow's among the others.

    `target` is [rounds, examples], `shadows` [shadows, rounds, examples] and `members` [shadows, examples]; returned
    are [rounds, examples] and [shadows, rounds, examples]. NaN is a signal that is not there: its ratio is 0, and so is
    that of a signal to which there are no two others IN, or no two OUT, anywhere in its round. An example without any
    on one side takes the other side's mean and the average gap.

    A shadow's ratio leaves it out, and its complement, too, where the shadows have one: else the number of those left
    on either side would tell its membership (Bernoulli designs and complementary pairs alike).
    """
    known: Array = shadows.astype(np.float64)
    seen, inside = ~np.isnan(known), members[:, None]
    sides = [_Side.of(known, seen & inside), _Side.of(known, seen & ~inside)]
    each = [
        _ratio(own, *(side.without(left) for side in sides))
        for own, left in zip(known, _left_out(members), strict=True)
    ]
    return _ratio(target.astype(np.float64), *sides), np.stack(each)


def _left_out(members: Bools) -> list[NDArray[np.intp]]:
    """Each shadow's own number, and that of the shadows whose members are exactly the others."""
    packed = np.packbits(members, axis=1)
    turned = np.packbits(~members, axis=1)
    by_members: dict[bytes, list[int]] = {}
    for number, row in enumerate(packed):
        by_members.setdefault(row.tobytes(), []).append(number)
    return [np.array([number, *by_members.get(row.tobytes(), [])], dtype=np.intp) for number, row in enumerate(turned)]


@dataclass(frozen=True)
class _Side:
    """Signals [shadows, rounds, examples] of one side, zero where `chosen` is False, and their sums over shadows."""

    signals: Array
    chosen: Bools
    count: Array
    total: Array
    variance: Array

    @staticmethod
    def of(signals: Array, chosen: Bools) -> _Side:
        kept = np.where(chosen, signals, 0.0)
        count, total = chosen.sum(axis=0, dtype=np.float64), kept.sum(axis=0)
        mean = total / np.maximum(count, 1)
        squares = np.where(chosen, (signals - mean) ** 2, 0.0).sum(axis=(0, 2))
        freedom = np.maximum(count - 1, 0).sum(axis=1)
        variance = np.divide(squares, freedom, out=np.full_like(squares, np.nan), where=freedom > 0)
        return _Side(kept, chosen, count, total, np.maximum(variance, SMALLEST_VARIANCE))

    def without(self, left: NDArray[np.intp]) -> _Side:
        """The same without some shadows; the variance is that of all, in which one of them hardly counts."""
        count = self.count - self.chosen[left].sum(axis=0)
        return _Side(self.signals, self.chosen, count, self.total - self.signals[left].sum(axis=0), self.variance)


def _ratio(values: Array, inside: _Side, outside: _Side) -> Array:
    """Of values [rounds, examples]."""
    means = [side.total / np.maximum(side.count, 1) for side in (inside, outside)]
    both = (inside.count > 0) & (outside.count > 0)
    gap = np.where(both, means[0] - means[1], 0.0).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
    mean_in = np.where(inside.count > 0, means[0], means[1] + gap[:, None])
    mean_out = np.where(outside.count > 0, means[1], mean_in - gap[:, None])
    known = both.any(axis=1, keepdims=True) & (inside.count + outside.count > 0) & ~np.isnan(values)
    ratio = _log_normal(values, mean_in, inside.variance) - _log_normal(values, mean_out, outside.variance)
    return np.where(known & ~np.isnan(ratio), ratio, 0.0)


def _log_normal(values: Array, mean: Array, variance: Array) -> Array:
    """Of values and means [rounds, examples] with a variance a round."""
    density: Array = -0.5 * (np.log(variance) + (values - mean).T ** 2 / variance).T
    return density


@dataclass(frozen=True, kw_only=True)
class TrainingLiRA:
    """LiRA on a signal of training, one of `series.SERIES`.

    `rounds` is `mean` for the likelihood ratio of the signal's mean over rounds, or `each` for the sum of the ratios of
    all rounds, as if they were independent. A server's signals are of the example's owner.
    """

    signal: str = "step_product"
    rounds: Literal["mean", "each"] = "mean"

    def __post_init__(self) -> None:
        narrowest(self.signal)
        check_choice("LiRA rounds", self.rounds, ("mean", "each"))

    @property
    def name(self) -> str:
        """What tables call it: with its signal, and whether rounds count one by one."""
        return f"LiRA of {self.signal}" + ("" if self.rounds == "mean" else " in each round")

    @property
    def needs(self) -> type[Signals]:
        """The signals of the narrowest view that shows its signal."""
        return narrowest(self.signal)

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Log-likelihood ratios [examples], in nats.

        Raises InputError for a view that does not show the signal, and without shadows of both kinds.
        """
        require_signals(self.name, signals, self.needs)
        shadows = require_both_kinds(self.name, signals, knowledge)
        ours, theirs = (series(self.name, self.signal, own, knowledge.owners) for own in (signals, shadows.signals))
        if self.rounds == "mean":
            ours, theirs = (mean_over_rounds(own, nothing=np.nan)[:, None] for own in (ours, theirs))
        scores: NDArray[np.float64] = likelihood_ratios(ours[0], theirs, shadows.members)[0].sum(axis=0)
        return scores


def require_both_kinds(attack: str, signals: Signals, knowledge: MembershipKnowledge) -> Shadows:
    """The attacker's shadows, seen through a view that shows as much as the target's.

    Raises InputError where there are none, they do not fit, or no example has shadows with and without it.
    """
    shadows = require_shadows(attack, signals, knowledge)
    require_signals(f"{attack} (in its shadows)", shadows.signals, type(signals))
    if not (shadows.members.any(axis=0) & ~shadows.members.all(axis=0)).any():
        raise InputError(
            f"{attack} needs shadows with and without an example; none of {shadows.members.shape[1]} examples has both "
            f"among {len(shadows.members)} shadows; train at least 2, each on its own random half"
        )
    return shadows
