"""Lower bounds on ε from independent runs of a two-world game: with the canary, and without.

The trials must be independent: one run a trial, not many examples of one model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.audit.bands import lower_bounds, upper_bounds
from attacks.audit.checks import check_levels
from attacks.audit.outcomes import TwoWorldBound
from attacks.audit.thresholds import Choice, prove
from attacks.base import Floats
from fl_core.errors import check_number

Array = NDArray[np.float64]


def two_world_bound(
    inside: Floats, outside: Floats, choice: Choice, *, delta: float = 0.0, confidence: float = 0.95
) -> TwoWorldBound:
    """Lower bound on the ε of a mechanism at `delta`, from the scores of runs with the canary and without.

    `inside` and `outside` are [trials], one score a run, higher where the attack believes the canary was there;
    `choice` is one of `thresholds`' ways to a threshold.

    Formal guarantee: if the runs are independent, and those of one world alike, then `epsilon` exceeds the smallest ε
    at which the mechanism is (ε, δ)-DP in its canary with a chance of at most 1 − `confidence`. Raises InputError for
    scores that are NaN or misshapen, and what `choice` raises. Source: Nasr et al. 2021, "Adversary Instantiation";
    Kairouz, Oh and Viswanath 2015 for what (ε, δ) allows the two rates.
    """
    check_levels(delta, confidence)
    rates, best = prove(inside, outside, choice, confidence, lambda tpr, fpr: epsilon_of_rates(tpr, fpr, delta))
    perfect, flawless = (np.array([rate]) for rate in rates.best)
    return TwoWorldBound(
        epsilon=float(epsilon_of_rates(rates.tpr, rates.fpr, delta)[best]),
        delta=delta,
        confidence=confidence,
        ceiling=float(epsilon_of_rates(perfect, flawless, delta)[0]),
        members=rates.members,
        non_members=rates.non_members,
        true_positives=int(rates.true_positives[best]),
        false_positives=int(rates.false_positives[best]),
        threshold=float(rates.thresholds[best]),
    )


def epsilon_of_rates(tpr: Array, fpr: Array, delta: float) -> Array:
    """The smallest ε that allows a TPR of at least `tpr` at a FPR of at most `fpr`, all [thresholds]; 0 or more.

    Both tests count: TPR ≤ e^ε FPR + δ, and TNR ≤ e^ε FNR + δ for the converse. The same two bounds serve both,
    since TNR ≥ 1 − `fpr` and FNR ≤ 1 − `tpr`, so that no error is spent on the second.
    """
    right = np.stack([tpr, 1 - fpr]) - delta
    wrong = np.stack([fpr, 1 - tpr])
    proven = right > wrong  # and so right > 0; the bounds of a finite sample keep wrong above 0
    logs = np.log(np.where(proven, right, 1.0)) - np.log(np.where(proven, wrong, 1.0))
    epsilons: Array = logs.max(0)
    return epsilons


def clopper_pearson_epsilon(
    true_positives: int,
    members: int,
    false_positives: int,
    non_members: int,
    delta: float = 0.0,
    confidence: float = 0.95,
) -> float:
    """Lower bound on ε from the counts at one pre-registered threshold, or 0.

    A lower bound on the TPR and an upper one on the FPR, each failing with (1 − confidence)/2 so that both hold
    together with `confidence`, turned into ε by `epsilon_of_rates`. Raises InputError for counts that do not fit.
    Source and conditions as `two_world_bound`.
    """
    check_levels(delta, confidence)
    check_number("members", members, minimum=1, integer=True)
    check_number("non_members", non_members, minimum=1, integer=True)
    check_number("true_positives", true_positives, minimum=0, maximum=members, integer=True)
    check_number("false_positives", false_positives, minimum=0, maximum=non_members, integer=True)
    side = (1 - confidence) / 2
    power = lower_bounds(members, side)[true_positives]
    error = upper_bounds(non_members, side)[false_positives]
    return float(epsilon_of_rates(np.array([power]), np.array([error]), delta)[0])
