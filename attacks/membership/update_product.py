"""Membership from a sum of updates: does the sum lean towards the update that the target would have sent?

A server knows the global model, so it can compute what a client with the target's data sends. Under secure aggregation
it sees only the mean over the cohort, S = (u₁ + … + uₙ)/n. In a larger cohort the others' updates are more noise, and
no more than that: their sum has a mean and a covariance, which public data tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks.membership.population import Population
from fl_core.errors import InputError
from fl_core.optimizers import Tree
from fl_core.views import SecureServer, Server, require_view

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TargetKnowledge:
    """What the attacker has besides its observation.

    `targets` [replicas, ...] is the update that each replica's target would send. `population` is what public data tell
    of other clients' updates. `noise` is the standard deviation that a defence adds to each coordinate of the sum of
    the updates seen (the sum, not the mean). `alternatives` [replicas, ...], where they are given, are the updates of
    whoever has the target's place if the target is not there.
    """

    targets: Tree
    population: Population | None = None
    noise: float = 0.0
    alternatives: Tree | None = None


@dataclass(frozen=True, kw_only=True)
class InnerProduct:
    """⟨S, target⟩ over the target's length; as a `cosine`, over the length of S too. It needs no public data.

    `seat` is whose update is attacked: None is the sum; a number is that seat's own update, for a server without
    secure aggregation.
    """

    cosine: bool = False
    seat: int | None = None

    @property
    def name(self) -> str:
        """What tables call it; a cosine is one by name."""
        return "cosine" if self.cosine else "inner product"

    @property
    def needs(self) -> type[SecureServer]:
        """The view that shows sums, or each seat's update where one is attacked."""
        return SecureServer if self.seat is None else Server

    def run(self, observation: SecureServer, knowledge: TargetKnowledge, *, round: int = 0) -> Scores:
        """Scores [replicas], higher for likelier members. Raises InputError for a view that does not show the sum."""
        mean, _ = _seen(self.name, observation, self.needs, self.seat, round)
        target = _flat(knowledge.targets)
        length = target.norm(dim=1) * (mean.norm(dim=1) if self.cosine else 1)
        return _scores((mean * target).sum(1) / length.clamp(min=1e-30))


@dataclass(frozen=True, kw_only=True)
class MatchedFilter:
    """The Gaussian likelihood-ratio test of a sum, given the population's mean m and covariance Σ.

    The others' sum is taken as N((n−1)m, (n−1)Σ + noise²·I). Against a fresh draw in the target's place the score is
    the test's linear part, ⟨C⁻¹(u − m), n(S − m)⟩ over √⟨C⁻¹(u − m), u − m⟩ with C = (n − ½)Σ + noise²·I, so that
    non-members of all targets score alike and one threshold serves. Against a known alternative u′ it is the whole
    log-likelihood ratio, ⟨C⁻¹(u − u′), nS − (n−1)m − (u + u′)/2⟩ with C = (n − 1)Σ + noise²·I, in nats.

    `seat` as for `InnerProduct`.
    """

    seat: int | None = None

    name = "matched filter"

    @property
    def needs(self) -> type[SecureServer]:
        """The view that shows sums, or each seat's update where one is attacked."""
        return SecureServer if self.seat is None else Server

    def run(self, observation: SecureServer, knowledge: TargetKnowledge, *, round: int = 0) -> Scores:
        """Scores [replicas], higher for likelier members.

        Raises InputError without a population, for a view that does not show the sum, and for a known alternative in a
        sum of one without noise, which is no test at all: the sum is the answer.
        """
        mean, cohort = _seen(self.name, observation, self.needs, self.seat, round)
        population = knowledge.population
        if population is None:
            raise InputError(f"{self.name} needs the population's mean and covariance, from public updates")
        target, total = _flat(knowledge.targets), cohort * mean
        if knowledge.alternatives is None:
            filters = matched_filters(target, population, cohort, knowledge.noise)
            return _scores((filters * (total - cohort * population.mean)).sum(1))
        if cohort == 1 and not knowledge.noise:
            raise InputError(f"{self.name} between two known updates needs others or noise beside them")
        other = _flat(knowledge.alternatives)
        filtered = population.solve(target - other, cohort - 1, knowledge.noise)
        between = (cohort - 1) * population.mean + (target + other) / 2
        return _scores((filtered * (total - between)).sum(1))


def matched_filters(targets: Tensor, population: Population, cohort: int, noise: float = 0.0) -> Tensor:
    """What each of `targets` [targets, parameters] weighs the centred sum of updates with, of the same shape."""
    apart = targets - population.mean
    filtered = population.solve(apart, cohort - 0.5, noise)
    return filtered / (filtered * apart).sum(1, keepdim=True).clamp(min=1e-30).sqrt()


def _seen(
    attack: str, observation: SecureServer, needs: type[SecureServer], seat: int | None, round: int
) -> tuple[Tensor, int]:
    """What is attacked, a mean of updates [replicas, parameters], and over how many it is."""
    require_view(attack, observation, needs)
    if seat is None:
        return _flat(observation.sums[round]), observation.cohorts[round].shape[1]
    assert isinstance(observation, Server)
    return _flat({name: value[:, seat] for name, value in observation.updates[round].items()}), 1


def _flat(tree: Tree) -> Tensor:
    """A tree [replicas, ...] as rows [replicas, parameters]."""
    return torch.cat([value.reshape(len(value), -1) for value in tree.values()], 1)


def _scores(values: Tensor) -> Scores:
    found: Scores = values.double().cpu().numpy()
    return found
