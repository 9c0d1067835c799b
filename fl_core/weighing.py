"""What each client's update counts in a round's sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_core.aggregation import weights
from fl_core.cohort import Cohort

if TYPE_CHECKING:
    from fl_core.federation import Federation


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """What the updates of a round's seats count [replicas, seats]; an empty seat's counts 0.

    `weights` are the clients' own, none above `largest_weight`, which is public. A replica's sum of updates times
    weights is divided by its one of `divisors` [replicas]: the sum of its weights, or a number that was known before
    where they are `public`. `shares` are weights over divisors, times what staleness leaves of them; no client's is
    above `largest_share`.
    """

    shares: Tensor
    weights: Tensor
    divisors: Tensor
    public: bool
    largest_weight: int
    largest_share: float


def weigh(federation: Federation, cohort: Cohort) -> Weighing:
    """Public weights under a defence that asks for them, and otherwise those of the clients who are there."""
    if federation.defense.public_shares:
        return _in_public(federation, cohort)
    clients, present = cohort.clients.clamp(min=0), cohort.present
    weighting = federation.algorithm.weighting
    # Real sizes, or under a guarantee public ones.
    guarded = federation.defense.public_sizes
    sizes = federation.sizes[clients] if guarded else federation.held_counts.gather(1, clients)
    each = present.double() * (1 if weighting == "uniform" else sizes)
    shares = weights(weighting, sizes, present) * cohort.factors
    return Weighing(
        shares=shares,
        weights=each,
        divisors=each.sum(1),
        public=False,
        largest_weight=largest_weight(federation),
        largest_share=float(shares.max()) if shares.numel() else 0.0,
    )


def largest_weight(federation: Federation) -> int:
    """The most that a client's weight can be, whoever is a member: one, or how many examples a client can have."""
    defense = federation.defense
    if defense.public_shares or federation.algorithm.weighting == "uniform":
        return 1
    return int(federation.sizes.max()) if defense.public_sizes else federation.most_examples


def _in_public(federation: Federation, cohort: Cohort) -> Weighing:
    clients, present = cohort.clients.clamp(min=0), cohort.present
    each, shares = federation.public_weights, federation.public_shares
    return Weighing(
        shares=(shares[clients] * present).float() * cohort.factors,
        weights=each[clients] * present,
        divisors=torch.full((len(clients),), federation.public_divisor, dtype=torch.float64),
        public=True,
        largest_weight=1,
        largest_share=float(shares.max()),
    )
