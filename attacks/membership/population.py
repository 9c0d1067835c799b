"""What an attacker with public data knows of the updates that clients send: their mean and covariance.

There are more parameters than updates to learn from, so the covariance is probabilistic PCA's (Tipping and Bishop 1999,
eq. 8): the leading directions with a variance each, and one floor for all the others. How many lead is decided by the
likelihood of updates that the fit has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fl_core.errors import InputError

RANKS = (0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300, 500, 800, 1200, 2000)
"""How many leading directions are tried."""

LEAST_SHARE = 1e-9
"""The least floor, as a share of the largest variance: a pixel that no public picture lights has a variance of 0."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """`mean` [parameters]; `directions` [rank, parameters], orthonormal, and `variances` [rank]; the rest's `floor`."""

    mean: Tensor
    directions: Tensor
    variances: Tensor
    floor: float

    def solve(self, vectors: Tensor, copies: float, noise: float = 0.0) -> Tensor:
        """(copies · covariance + noise² · identity)⁻¹ times each of `vectors` [vectors, parameters]."""
        inside = vectors @ self.directions.T
        rest = copies * self.floor + noise**2
        return vectors / rest + (inside * (1 / (copies * self.variances + noise**2) - 1 / rest)) @ self.directions

    def with_mean(self, mean: Tensor) -> Population:
        """The same covariance around another `mean` [parameters]."""
        return replace(self, mean=mean)


def estimate(updates: Tensor, unseen: Tensor) -> Population:
    """Fit `updates` [clients, parameters]; the rank is the one under which `unseen` ones, of like shape, are likeliest.

    `unseen` must come from other examples, or the rank is fitted to chance. The mean is that of both together. Raises
    InputError for fewer than two of either.
    """
    if min(len(updates), len(unseen)) < 2:
        raise InputError(f"a covariance needs at least 2 updates and 2 unseen ones, has {len(updates)}, {len(unseen)}")
    count, parameters = updates.shape
    mean = updates.mean(0)
    centred, held = updates - mean, unseen - mean
    # The small square matrix of the two, and in double precision: squares of single-precision numbers overlap.
    values, vectors = torch.linalg.eigh((centred.double() @ centred.double().T) / count)
    values, vectors = values.flip(0), vectors.flip(1)
    most = int((values > LEAST_SHARE * values[0]).sum())
    directions = (vectors[:, :most].T.to(centred) @ centred) / (values[:most] * count).sqrt().to(centred)[:, None]
    inside = (held @ directions.T).double().square().mean(0)
    total = held.double().square().sum(1).mean()
    best, chosen = -torch.inf, (0, 0.0)
    for rank in (rank for rank in RANKS if rank < min(most, parameters)):
        others = parameters - rank
        floor = max(float(values[rank:].clamp(min=0).sum() / others), LEAST_SHARE * float(values[0]))
        spread = (inside[:rank] / values[:rank] + values[:rank].log()).sum()
        likelihood = -float(spread + (total - inside[:rank].sum()) / floor + others * torch.tensor(floor).log()) / 2
        if likelihood > best:
            best, chosen = likelihood, (rank, floor)
    rank, floor = chosen
    return Population(
        mean=torch.cat([updates, unseen]).mean(0),
        directions=directions[:rank],
        variances=values[:rank].to(centred),
        floor=floor,
    )
