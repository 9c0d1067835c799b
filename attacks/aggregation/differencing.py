"""Differencing: single updates out of the sums of many rounds (So et al. 2021, section 3).

Each round of secure aggregation gives the server one linear equation in its clients' updates. Where these barely change
from round to round, as near convergence, rounds with different cohorts are equations in the same unknowns, and least
squares solves them. A client's update is recovered exactly as far as its unit vector lies in the span of the cohorts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.views import SecureServer, require_view

SMALLEST = 1e-13
"""The smallest ridge, as a share of the largest eigenvalue: what double precision takes for none."""

RIDGES = tuple(np.logspace(math.log10(SMALLEST), 1, 60).tolist())
TRENDS = (0, 1, 2, 4, 8, 16)
"""The ridges and trends that are tried where none is given."""


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """One estimate a client: `updates` [replicas, clients, ...], double precision.

    `resolution` [replicas, clients] is how much of a client's own update is in its estimate if updates are constant: 1
    is all of it, 1/k where k clients are always seen together, 0 where it was never asked. `amplification` [replicas,
    clients] is the variance of its estimate for errors of variance 1 in each round's sum. `ridge`
    and `trend` [replicas] are those that were used.
    """

    updates: Tree
    resolution: Tensor
    amplification: Tensor
    ridge: Tensor
    trend: Tensor


@dataclass(frozen=True, kw_only=True)
class Differencing:
    """Least squares over the participation matrix, drawn towards the mean update as far as the sums themselves ask for.

    The model is S_t = Σ_i p_ti u_i + c_t + error, with p_ti = 1/cohort for the clients of round t, since the server
    knows who they are and not how they are weighed. As the model learns all updates change together, and c_t is that
    common drift, a polynomial in time of degree `trend` without mean; 0 is none. Estimates are m + Pᵀ(PPᵀ + λ)⁻¹(S − m)
    in the space that it does not touch, m the mean of the sums: plain least squares as λ → 0, with m wherever the sums
    do not say more. `ridge` is λ as a share of the largest eigenvalue of PPᵀ.

    None for either picks, in each replica, what has the least generalised cross-validation error (Golub, Heath and
    Wahba 1979), which the attacker can compute from the sums alone.
    """

    ridge: float | None = None
    trend: int | None = None

    name = "differencing"
    needs = SecureServer

    def __post_init__(self) -> None:
        if self.ridge is not None:
            check_number("ridge", self.ridge, minimum=0)
        if self.trend is not None:
            check_number("trend", self.trend, minimum=0, integer=True)

    def run(self, observation: SecureServer, clients: int, *, rounds: Sequence[int] | None = None) -> Recovered:
        """Solve for all `clients` of the federation from the recorded `rounds` (None: all).

        Raises InputError for a view without sums, and without rounds.
        """
        require_view(self.name, observation, SecureServer)
        chosen = sorted(observation.sums) if rounds is None else list(rounds)
        if not chosen:
            raise InputError(f"{self.name} needs the sum of at least one round; none was recorded")
        like = observation.sums[chosen[0]]
        sums = torch.stack([_flat(observation.sums[round]) for round in chosen], 1).double()
        matrix = participation(observation, clients, chosen).to(sums)
        found = [solve(mine, seen, self.ridge, self.trend) for mine, seen in zip(matrix, sums, strict=True)]
        estimates, resolution, amplification, ridge, trend = map(torch.stack, zip(*found, strict=True))
        return Recovered(
            updates=_cut(estimates, like),
            resolution=resolution,
            amplification=amplification,
            ridge=ridge,
            trend=trend,
        )


def participation(observation: SecureServer, clients: int, rounds: Sequence[int]) -> Tensor:
    """How much each client counts in each round's sum [replicas, rounds, clients], 1/cohort for whoever is in it.

    In double precision: what a third is in single precision shows in the recovered updates.
    """
    matrix = torch.zeros(len(observation.cohorts[rounds[0]]), len(rounds), clients, dtype=torch.float64)
    for row, round in enumerate(rounds):
        cohort = observation.cohorts[round]
        there = cohort >= 0  # −1 is nobody
        share = there.double() / there.sum(1, keepdim=True).clamp(min=1)
        matrix[:, row].scatter_add_(1, cohort.clamp(min=0), share)
    return matrix


def solve(matrix: Tensor, sums: Tensor, ridge: float | None, trend: int | None) -> tuple[Tensor, ...]:
    """Estimates [clients, parameters] from `sums` [rounds, parameters] and the `matrix` [rounds, clients].

    Then the resolution and the amplification [clients], the ridge and the trend, as in `Recovered`.
    """
    mean = sums.mean(0)
    centred = sums - matrix.sum(1, keepdim=True) * mean
    trends = [one for one in (TRENDS if trend is None else (trend,)) if one == 0 or 4 * one <= len(sums)]
    if not trends:
        raise InputError(f"a trend of degree {trend} needs at least {4 * (trend or 0)} rounds, has {len(sums)}")
    problems = {degree: _Problem.of(matrix, centred, degree) for degree in trends}
    tried = [(degree, one) for degree in trends for one in (RIDGES if ridge is None else (ridge,))]
    # The first is the answer where there is no choice.
    degree, chosen = min(tried, key=lambda one: problems[one[0]].cross_validation(one[1])) if tried[1:] else tried[0]
    estimate, resolution, amplification = problems[degree].solved(chosen)
    return (mean + estimate, resolution, amplification, *torch.tensor([chosen, degree], dtype=torch.float64))


@dataclass(frozen=True)
class _Problem:
    """min ‖S − PU‖² + λ‖U‖², in the eigenvectors of PPᵀ."""

    values: Tensor
    rotated: Tensor
    back: Tensor
    weights: Tensor

    @staticmethod
    def of(matrix: Tensor, sums: Tensor, trend: int) -> _Problem:
        """The part of the problem that no such trend touches."""
        free = _without_trend(len(sums), trend).to(sums)
        matrix, sums = free @ matrix, free @ sums
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        rotated = vectors.T @ sums
        return _Problem(values.clamp(min=0), rotated, matrix.T @ vectors, rotated.square().sum(1))

    @property
    def top(self) -> float:
        return float(self.values[-1])

    def cross_validation(self, ridge: float) -> float:
        """The generalised cross-validation error: squared residual over the squared number of what is left free."""
        left = ridge * self.top / (self.values + ridge * self.top)
        return float((left.square() * self.weights).sum() / left.sum().square())

    def solved(self, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """Estimates [clients, parameters], the resolution and the amplification [clients]."""
        known = self.values > SMALLEST * self.top * len(self.values)
        gain = torch.where(known, 1 / (self.values + ridge * self.top), 0.0)
        estimate = self.back @ (gain.unsqueeze(1) * self.rotated)
        return estimate, (self.back.square() * gain).sum(1), (self.back * gain).square().sum(1)


def _without_trend(rounds: int, degree: int) -> Tensor:
    """Orthonormal rows [rounds − degree, rounds] that no polynomial in time of that degree without mean touches."""
    if not degree:
        return torch.eye(rounds, dtype=torch.float64)
    time = torch.linspace(-1, 1, rounds, dtype=torch.float64)
    curves = torch.from_numpy(np.polynomial.legendre.legvander(time.numpy(), degree))
    basis, _ = torch.linalg.qr(curves, mode="complete")
    return torch.cat([basis[:, :1], basis[:, degree + 1 :]], 1).T


def _flat(tree: Tree) -> Tensor:
    return torch.cat([value.reshape(len(value), -1) for value in tree.values()], 1)


def _cut(rows: Tensor, like: Tree) -> Tree:
    """Rows [replicas, clients, parameters] as a tree in the shapes of `like` [replicas, ...]."""
    parts = rows.split([value.shape[1:].numel() for value in like.values()], 2)
    return {
        name: part.reshape(*part.shape[:2], *value.shape[1:])
        for part, (name, value) in zip(parts, like.items(), strict=True)
    }
