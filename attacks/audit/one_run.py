"""Lower bounds on ε from one run, whose many canaries were each included by a fair coin.

Every bound here holds for guesses whose number was fixed beforehand. A maximum over guess counts or attacks, taken on
the same data, loses the confidence.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, expit

from attacks.audit.checks import check_levels
from attacks.audit.outcomes import OneRunBound
from attacks.base import Bools, Floats
from fl_core.errors import InputError, check_number


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """Of `guesses` on `canaries` canaries `correct` were right; on the others the attacker said nothing."""

    canaries: int
    guesses: int
    correct: int


@functools.lru_cache(maxsize=4096)  # audits of one size differ in one count
def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float = 0.0, confidence: float = 0.95) -> float:
    """Largest ε that `correct` of `guesses` right guesses on `canaries` canaries reject, or 0.

    If a mechanism is (ε, δ)-DP and each canary is included by an independent fair coin, then the chance of
    `correct` or more right guesses is at most P[B ≥ v] + 2mδ · max_i P[v > B ≥ v − i] / i, with B ~
    Binomial(r, e^ε/(1+e^ε)), m canaries, r guesses, v right. ε is rejected while that is at most 1 −
    confidence. Raises InputError unless 0 ≤ correct ≤ guesses ≤ canaries, 1 ≤ guesses, 0 ≤ δ < 1 and ½ <
    confidence < 1. Source: Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", the
    theorem for approximate DP.
    """
    check_number("canaries", canaries, minimum=1, integer=True)
    check_number("guesses", guesses, minimum=1, maximum=canaries, integer=True)
    check_number("correct", correct, minimum=0, maximum=guesses, integer=True)
    check_levels(delta, confidence)
    if correct == 0:
        return 0.0

    # From i = v on, the numerator stays what it is at i = v while the divisor grows: i ≤ v is all there is.
    steps = np.arange(1, correct + 1)
    # P[B ≥ k] = I_p(k, r − k + 1), and 1 at k = 0.
    thresholds = np.maximum(correct - steps, 1)

    def p_value(epsilon: float) -> float:
        p = float(expit(epsilon))
        tail = float(betainc(correct, guesses - correct + 1, p))
        if delta == 0:
            return tail
        tails = betainc(thresholds, guesses - thresholds + 1, p)
        tails[-1] = 1.0
        return tail + 2 * canaries * delta * float(((tails - tail) / steps).max())

    # The rejected ε form an interval from 0, so bisection finds its end. For i ≥ 2mδ the i-th term of the
    # maximum, plus the tail, grows with ε. For i < 2mδ it is at least P[B ≥ v − i], so where it is below
    # one half the window [v − i, v) lies above the bulk of B, and there it grows as well.
    alpha = 1 - confidence
    if p_value(0.0) > alpha:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(high) <= alpha:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) <= alpha else (low, middle)
    return low


def one_run_ceiling(canaries: int, guesses: int, delta: float = 0.0, confidence: float = 0.95) -> float:
    """The most that `one_run_epsilon` can return, every guess right.

    For δ = 0 that is log(p/(1 − p)) at p = (1 − confidence)^(1/r). Raises InputError as `one_run_epsilon`
    does.
    """
    return one_run_epsilon(canaries, guesses, guesses, delta, confidence)


def audit_one_run(
    scores: Floats,
    members: Bools,
    *,
    fraction: float = 0.25,
    delta: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> OneRunBound:
    """Lower bound on the ε of one training run, from canaries that each run included by a fair coin.

    `scores` and `members` are [targets, canaries]. The `fraction` / 2 of all pooled scores that are highest
    are guessed IN, as many of the lowest OUT, the rest not at all. Ties are broken by a shuffle seeded with
    `seed`, never by membership nor by position, which may go with it.

    Formal guarantee: if each target is (ε, δ)-DP in its canaries, the chance of `epsilon` > ε is at most
    1 − `confidence`, provided that

    - each canary's membership in each target is an independent Bernoulli(½), the attacker seeing none of it;
    - `fraction`, the attack and its settings were fixed before the scores were seen;
    - the scores of all targets come from shadows that are none of the targets. Then several targets pool as
      one mechanism over targets × canaries coins, (ε, δ)-DP by parallel composition. If a target serves as
      a shadow for another, its membership bits reach the other's scores and the pool no longer satisfies
      the theorem.

    A small bound proves nothing: mechanisms exist with a large ε on which every such audit reports about 0
    (Keinan et al. 2025). Raises InputError for misfits, scores that are NaN and a fraction that leaves no
    guess. Source: Steinke, Nasr, Jagielski 2023, Algorithm 1.
    """
    check_levels(delta, confidence)
    found = guess(scores, members, fraction=fraction, seed=seed)
    return OneRunBound(
        epsilon=one_run_epsilon(found.canaries, found.guesses, found.correct, delta, confidence),
        delta=delta,
        confidence=confidence,
        ceiling=one_run_ceiling(found.canaries, found.guesses, delta, confidence),
        canaries=found.canaries,
        guesses=found.guesses,
        correct=found.correct,
    )


def guess(scores: Floats, members: Bools, *, fraction: float, seed: int) -> Guesses:
    """The guesses of `audit_one_run`, whose arguments and errors these are; how many there are follows from sizes."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or members.shape != scores.shape or members.dtype != np.bool_:
        raise InputError(
            f"scores {scores.shape} and members {members.shape} of type {members.dtype} do not fit; "
            "give numbers and booleans, both [targets, canaries]"
        )
    if np.isnan(scores).any():
        raise InputError(
            f"{int(np.isnan(scores).sum())} of {scores.size} audit scores are NaN; every canary needs a score"
        )
    check_number("audit fraction", fraction, above=0, maximum=1)
    a_side = math.floor(fraction * scores.size / 2 + 1e-9)
    if a_side == 0:
        raise InputError(
            f"an audit fraction of {fraction:g} of {scores.size} canaries leaves no guess; "
            f"it must be at least {2 / scores.size:g}"
        )
    shuffled = np.random.default_rng(seed).permutation(scores.size)
    order = shuffled[np.argsort(scores.reshape(-1)[shuffled], kind="stable")]
    truth = members.reshape(-1)[order]
    correct = int((~truth[:a_side]).sum() + truth[-a_side:].sum())
    return Guesses(canaries=scores.size, guesses=2 * a_side, correct=correct)
