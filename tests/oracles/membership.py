"""Membership on problems whose answer is known, and the papers' formulas read one example at a time, slowly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.observed import Signals

Array = np.ndarray[Any, Any]


# Problems


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Replicas of which the last is the target; all that an attacker may be told of them."""

    signals: Signals
    members: Array
    knowledge: MembershipKnowledge

    @property
    def target(self) -> Signals:
        return self.signals.select([-1])

    @property
    def truth(self) -> Array:
        return self.members[-1]


def bernoulli(replicas: int, examples: int, seed: int) -> Array:
    """Members [replicas, examples] by independent fair coins."""
    return np.random.default_rng([seed, 1]).random((replicas, examples)) < 0.5


def exactly_half(replicas: int, examples: int, seed: int) -> Array:
    """Every example in exactly half of the replicas, drawn at random."""
    order = np.random.default_rng([seed, 2]).random((replicas, examples)).argsort(axis=0)
    return order.argsort(axis=0) < replicas // 2


def complementary_pairs(replicas: int, examples: int, seed: int) -> Array:
    """Replica 2i + 1 holds exactly what replica 2i does not."""
    half = np.random.default_rng([seed, 3]).random((replicas // 2, examples)) < 0.5
    return np.stack([half, ~half], axis=1).reshape(-1, examples)


def problem(
    *,
    members: Array | None = None,
    shadows: int = 8,
    examples: int = 300,
    gain: float = 1.0,
    seed: int = 0,
    classes: int = 4,
    queries: int = 2,
    public: int = 100,
    without: tuple[int, ...] = (),
) -> Problem:
    """Normal logits, each example of its own difficulty, `gain` more for the true one where the replica has it.

    Members are a coin's unless they are given, [shadows + 1, examples]; the shadows `without` are not the attacker's.
    Pictures are noise, so that they tell nothing.
    """
    rng = np.random.default_rng([seed, 0])
    members = bernoulli(shadows + 1, examples, seed) if members is None else members
    count = len(members)
    labels, public_labels = rng.integers(0, classes, examples), rng.integers(0, classes, public)
    logits = rng.standard_normal((count, queries, examples, classes))
    logits[..., np.arange(examples), labels] += 1 + 2 * rng.standard_normal(examples) + gain * members[:, None]
    public_logits = rng.standard_normal((count, public, classes))
    public_logits[:, np.arange(public), public_labels] += 1 + 2 * rng.standard_normal(public)
    signals = Signals(labels=labels, logits=logits, public_labels=public_labels, public_logits=public_logits)
    kept = [one for one in range(count - 1) if one not in without]
    knowledge = MembershipKnowledge(
        shadows=Shadows(signals=signals.select(kept), members=members[kept]),
        images=rng.random((examples, 1, 6, 6)),
        public_images=rng.random((public, 1, 6, 6)),
        public_labels=public_labels,
    )
    return Problem(signals=signals, members=members, knowledge=knowledge)


def gaussian_means(mu: float, shadows: int, examples: int, seed: int) -> tuple[Array, Array]:
    """Signals ⟨release, x⟩ [shadows + 1, examples] and members; a release is the mean of n = 200 standard Gaussians.

    A member x, of length μ√n, replaces one of the n. So the best test's power is Φ(Φ⁻¹(F) + μ), up to 1/n:
    the variance IN is (n − 1)/n of the one OUT. Along x the others' sum is one normal number, however many dimensions.
    """
    rng = np.random.default_rng(seed)
    n = 200
    length = mu * np.sqrt(n)
    members = rng.random((shadows + 1, examples)) < 0.5
    others = rng.standard_normal((shadows + 1, examples)) * np.sqrt(n - members)
    return length * (others + members * length) / n, members


def with_confidence(confidence: Array) -> Array:
    """Logits [..., 2] whose first class has this scaled confidence."""
    return np.stack([confidence, np.zeros_like(confidence)], axis=-1)


# The papers' formulas


def probabilities(logits: Array) -> Array:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def naive_confidence(logits: Array, label: int) -> float:
    p = probabilities(logits)[label]
    return float(np.log(p / (1 - p)))


def naive_modified_entropy(logits: Array, label: int) -> float:
    p = probabilities(logits)
    total = -(1 - p[label]) * np.log(p[label])
    for other in range(len(p)):
        if other != label:
            total -= p[other] * np.log(1 - p[other])
    return float(total)


def _sides(problem: Problem, query: int = 0) -> list[tuple[list[float], list[float]]]:
    """Scaled confidences of each example's shadows, IN and OUT."""
    shadows = problem.knowledge.shadows
    assert shadows is not None
    found = []
    for j, label in enumerate(shadows.signals.labels):
        values = [naive_confidence(own[query, j], label) for own in shadows.signals.logits]
        inside = [v for v, member in zip(values, shadows.members[:, j], strict=True) if member]
        outside = [v for v, member in zip(values, shadows.members[:, j], strict=True) if not member]
        found.append((inside, outside))
    return found


def _target(problem: Problem, query: int = 0) -> list[float]:
    target = problem.target
    return [naive_confidence(target.logits[0, query, j], label) for j, label in enumerate(target.labels)]


def _pooled(samples: list[list[float]]) -> float:
    squares, freedom = 0.0, 0
    for values in samples:
        squares += sum((v - np.mean(values)) ** 2 for v in values)
        freedom += max(len(values) - 1, 0)
    return squares / freedom


def naive_lira(problem: Problem, *, online: bool, fixed: bool, query: int = 0) -> Array:
    """Carlini et al. 2022, Algorithm 1 (online) and −log of 1 − Λ, eq. 4 (offline)."""
    sides, scores = _sides(problem, query), []
    pooled_in, pooled_out = _pooled([inside for inside, _ in sides]), _pooled([outside for _, outside in sides])
    for (inside, outside), own in zip(sides, _target(problem, query), strict=True):
        variance_in = pooled_in if fixed else np.var(inside, ddof=1)
        variance_out = pooled_out if fixed else np.var(outside, ddof=1)
        as_out = norm(np.mean(outside), np.sqrt(variance_out))
        if online:
            scores.append(norm(np.mean(inside), np.sqrt(variance_in)).logpdf(own) - as_out.logpdf(own))
        else:
            scores.append(-as_out.logsf(own))
    return np.array(scores)


def naive_rmia(problem: Problem, *, online: bool, gamma: float, a: float, references: int | None = None) -> Array:
    """Zarifzadeh et al. 2024, eq. 3 and 4: the share of z with (Pr(x|θ)/Pr(x))/(Pr(z|θ)/Pr(z)) ≥ γ, pair after pair."""
    shadows, target = problem.knowledge.shadows, problem.target
    assert shadows is not None
    public, public_labels = shadows.signals.public_logits, target.public_labels
    assert public is not None
    assert public_labels is not None
    assert target.public_logits is not None

    def marginal(inside: list[float], outside: list[float]) -> float:
        if online:
            return (float(np.mean(inside[:references])) + float(np.mean(outside[:references]))) / 2
        return ((1 + a) * float(np.mean(outside[:references])) + 1 - a) / 2

    z_ratios = []
    for z, label in enumerate(public_labels):
        seen = [probabilities(own[z])[label] for own in public]
        mean = float(np.mean(seen if references is None else seen[: 2 * references]))
        mean = mean if online else ((1 + a) * mean + 1 - a) / 2
        z_ratios.append(probabilities(target.public_logits[0, z])[label] / mean)
    scores = []
    for x, label in enumerate(target.labels):
        inside, outside = [], []
        for own, member in zip(shadows.signals.logits, shadows.members[:, x], strict=True):
            (inside if member else outside).append(probabilities(own[0, x])[label])
        ratio = probabilities(target.logits[0, 0, x])[label] / marginal(inside, outside)
        scores.append(np.mean([ratio / other >= gamma for other in z_ratios]))
    return np.array(scores)


def naive_bavaria(problem: Problem, *, online: bool, gaussian: bool, strength: float) -> Array:
    """The conjugate updates of a normal-inverse-gamma prior, one shadow after another."""
    sides, scores = _sides(problem), []
    priors = [_prior([one[side] for one in sides]) for side in (0, 1)]
    for both, own in zip(sides, _target(problem), strict=True):
        predictive = []
        for values, (location, kappa, variance) in zip(both, priors, strict=True):
            alpha, beta = strength / 2, strength / 2 * variance
            for value in values:
                beta += kappa * (value - location) ** 2 / (2 * (kappa + 1))
                location = (kappa * location + value) / (kappa + 1)
                kappa, alpha = kappa + 1, alpha + 0.5
            scale = np.sqrt(beta / alpha * (1 + 1 / kappa))
            predictive.append(norm(location, scale) if gaussian else student(2 * alpha, location, scale))
        inside, outside = predictive
        scores.append(inside.logpdf(own) - outside.logpdf(own) if online else -outside.logsf(own))
    return np.array(scores)


def _prior(samples: list[list[float]]) -> tuple[float, float, float]:
    """Mean, how many shadows it is worth, and variance within examples."""
    within = _pooled(samples)
    means = [float(np.mean(values)) for values in samples]
    between = float(np.var(means)) - within * float(np.mean([1 / len(values) for values in samples]))
    return float(np.mean(means)), within / between, within


def naive_attack_r(problem: Problem) -> Array:
    """One minus the share of losses as low as the target's, the target's own among them."""
    scores = []
    for (_, outside), own in zip(_sides(problem), _target(problem), strict=True):
        losses, mine = [np.log1p(np.exp(-v)) for v in outside], np.log1p(np.exp(-own))
        scores.append(1 - (1 + sum(one <= mine for one in losses)) / (1 + len(losses)))
    return np.array(scores)


def naive_difficulty(problem: Problem) -> Array:
    """Watson et al. 2022: the mean loss of the models without the example, less the target's."""
    return np.array(
        [
            np.mean([np.log1p(np.exp(-v)) for v in outside]) - np.log1p(np.exp(-own))
            for (_, outside), own in zip(_sides(problem), _target(problem), strict=True)
        ]
    )
