"""LiRA, the likelihood-ratio attack (Carlini et al. 2022, Algorithm 1, online).

For each example: fit one Gaussian to the signal of the shadows that trained on it and one to the signal of
those that did not, then ask under which the target's signal is likelier. The target's membership enters
nowhere: means and variances come from the shadows alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Bools, Floats, MembershipKnowledge
from attacks.membership.observed import Signals, require_shadows
from fl_core.errors import InputError

# Nats². Shadows that agree to the last bit (a saturated or constant model) must give a finite score.
SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class LiRA:
    """Online LiRA on the logit-scaled confidence, one query an example.

    `fixed_variance` pools one variance for IN and one for OUT over all examples, which
    serves better while shadows are few; otherwise each example has its own two.
    """

    fixed_variance: bool = True
    name: ClassVar[str] = "LiRA"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Log-likelihood ratios [examples], in nats.

        Raises InputError without shadows, or as `lira_scores` and `scaled_confidence` do.
        """
        shadows = require_shadows(self.name, signals, knowledge)
        return lira_scores(
            signals.confidence[0, 0],
            shadows.signals.confidence[:, 0],
            shadows.members,
            fixed_variance=self.fixed_variance,
        )


def lira_scores(target: Floats, shadows: Floats, members: Bools, *, fixed_variance: bool = True) -> NDArray[np.float64]:
    """Log N(signal; μ_in, σ²_in) − log N(signal; μ_out, σ²_out) of each example, in nats.

    `target` [examples] and `shadows` [shadows, examples] are signals; `members` [shadows, examples] is
    boolean. Returns [examples], higher for likelier members. Source: Carlini et al. 2022, Algorithm 1.

    An example that no shadow trained on has no IN mean: it takes its OUT mean plus the average gap between
    IN and OUT means over the examples that have both (and the other way round). Its own variance needs two
    shadows on that side; with fewer it takes the pooled one. The pooled variance divides the squared
    residuals around the examples' own means by shadows − 1 summed over examples; if no example has two
    shadows on a side, it takes the other side's, and if neither side has any, the residuals around the
    side's overall mean.

    Raises InputError unless some example has both an IN and an OUT shadow, and for signals that are not
    finite.
    """
    target = np.asarray(target, dtype=np.float64)
    shadows = np.asarray(shadows, dtype=np.float64)
    if shadows.ndim != 2 or members.shape != shadows.shape or target.shape != shadows.shape[1:]:
        raise InputError(
            f"target {target.shape}, shadows {shadows.shape} and members {members.shape} do not fit; "
            "give [examples], [shadows, examples] and [shadows, examples]"
        )
    for name, signal in (("target", target), ("shadow", shadows)):
        if not np.isfinite(signal).all():
            raise InputError(f"{int((~np.isfinite(signal)).sum())} {name} signals are not finite; retrain that model")
    has_both = members.any(axis=0) & ~members.all(axis=0)
    if not has_both.any():
        raise InputError(
            f"LiRA needs shadows with and without an example; none of {target.size} examples has both among "
            f"{len(shadows)} shadows; train at least 2, each on its own random half"
        )

    mean_in, squares_in, count_in = _mean_and_squares(shadows, members)
    mean_out, squares_out, count_out = _mean_and_squares(shadows, ~members)
    gap = float((mean_in - mean_out)[has_both].mean())
    mean_in = np.where(count_in > 0, mean_in, mean_out + gap)
    mean_out = np.where(count_out > 0, mean_out, mean_in - gap)

    variance_in, variance_out = _pooled_variances(shadows, members, (squares_in, count_in), (squares_out, count_out))
    if not fixed_variance:
        variance_in = np.where(count_in > 1, squares_in / np.maximum(count_in - 1, 1), variance_in)
        variance_out = np.where(count_out > 1, squares_out / np.maximum(count_out - 1, 1), variance_out)
    return _log_normal(target, mean_in, variance_in) - _log_normal(target, mean_out, variance_out)


def _mean_and_squares(signals: Floats, chosen: Bools) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean, sum of squared residuals around it and number of the chosen shadows, each [examples]."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, signals, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(chosen, (signals - mean) ** 2, 0.0).sum(axis=0)
    return mean, squares, count


def _pooled_variances(
    signals: Floats,
    members: Bools,
    inside: tuple[Floats, NDArray[np.int64]],
    outside: tuple[Floats, NDArray[np.int64]],
) -> tuple[Floats, Floats]:
    pooled = []
    for squares, count in (inside, outside):
        # One mean was estimated for each example, so each costs one degree of freedom.
        freedom = int(np.maximum(count - 1, 0).sum())
        pooled.append(squares.sum() / freedom if freedom else None)
    variance_in, variance_out = (next((v for v in order if v is not None), None) for order in (pooled, pooled[::-1]))
    if variance_in is None or variance_out is None:  # two shadows that share no side of any example
        return np.asarray(signals[members].var()), np.asarray(signals[~members].var())
    return np.asarray(variance_in), np.asarray(variance_out)


def _log_normal(x: Floats, mean: Floats, variance: Floats) -> NDArray[np.float64]:
    variance = np.maximum(variance, SMALLEST_VARIANCE)
    density: NDArray[np.float64] = -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)
    return density
