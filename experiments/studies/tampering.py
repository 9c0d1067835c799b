"""What the studies of malicious servers share: a cohort's local step, the way of its updates into a sum, and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.metrics import Interval, Pictures, clopper_pearson, mean_interval, psnr
from defenses.clipping import clip_factors
from defenses.discrete_gaussian import (
    BETA,
    NoisePlan,
    discrete_gaussian,
    epsilon_concentrated,
    granularity_for,
    round_to_grid,
)
from defenses.discrete_gaussian import (
    plan as noise_plan,
)
from experiments.scoring import EXACT_DB
from fl_core.data import ImageSet
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import ExampleFeed
from fl_core.seeds import Generators, seed

RECOGNISED_DB = 25.0
"""A picture recovered at this many dB or more is taken for the true one, by eye and by any search among pictures."""


# The cohort


def updates_of(model: nn.Module, sent: Tree, data: ImageSet, plan: Sequence[Sequence[Tensor]], lr: float) -> Tree:
    """The updates [clients, ...] of plain local descent from `sent` [clients, ...] on the batches `plan[client][step]`.

    This is the engine's own training loop, with rows of `data` for batches.
    """
    feed = ExampleFeed(data.images, data.labels, plan)
    trained = descend(sent, ClassificationLosses(model), feed, SGD(lr=lr), backend="loop")
    return {name: trained[name] - sent[name] for name in sent}


def to_all(model: Tree, clients: int) -> Tree:
    """One model [...] sent to every client [clients, ...]."""
    return {name: value.expand(clients, *value.shape) for name, value in model.items()}


def flat(tree: Tree) -> Tensor:
    """[clients, d] of a tree [clients, ...], in its order."""
    return torch.cat([value.flatten(1) for value in tree.values()], 1)


# The way into the sum


@dataclass(frozen=True, kw_only=True)
class Channel:
    """How vectors of `clients` clients become whole numbers modulo 2^`bits`, and their sum a vector again.

    Each client clips its vector to `clip_norm` and rounds it at random to a grid in which the sum cannot overflow. With
    a `noise_multiplier`, the deviation of the sum's noise over the clip, it adds its share of discrete Gaussian noise.
    """

    clients: int
    length: int
    bits: int
    clip_norm: float = 1.0
    noise_multiplier: float = 0.0

    @cached_property
    def grid(self) -> NoisePlan | None:
        """The noise's own plan; None without noise."""
        if not self.noise_multiplier:
            return None
        return noise_plan(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            clients=self.clients,
            dimension=self.length,
            bits=self.bits,
        )

    @cached_property
    def step(self) -> float:
        """The length of a grid step."""
        return self.grid.granularity if self.grid else granularity_for(self.bits, self.clients, self.clip_norm, 0.0)

    def encode(self, vectors: Tensor, run: int, trial: int) -> Tensor:
        """`vectors` [clients, d] as signed grid steps, int64 [clients, d], each with its share of the noise.

        A client draws from `run`, `trial` and its own number alone.
        """
        draws = Generators([seed(run, "share", trial, 0, client) for client in range(len(vectors))])
        steps = round_to_grid(vectors, self.step, self.clip_norm, BETA, draws)
        if self.grid:
            for row, draw in zip(steps, draws, strict=True):
                row += discrete_gaussian(row.shape, self.grid.sigma, draw)
        return steps

    def decode(self, steps: Tensor) -> Tensor:
        """Signed grid steps [...] in the unit of the vectors, float64."""
        return steps.double() * self.step

    def error(self, clients: int) -> float:
        """The deviation of a coordinate of the sum of so many that is rounding and noise, at most."""
        noise = self.grid.sigma if self.grid else 0.0
        return self.step * (clients * (0.25 + noise**2)) ** 0.5

    def epsilon(self, shares: int, delta: float) -> float | None:
        """What one round guarantees a client where `shares` shares of the noise are in what is seen; None: nothing."""
        return epsilon_concentrated(self.grid.rho_with(shares), delta) if self.grid else None


def words(steps: Tensor, bits: int) -> np.ndarray[Any, Any]:
    """Signed whole numbers modulo 2^bits, as the masking protocol takes them."""
    residues = (steps & ((1 << bits) - 1)).numpy()
    return residues.astype(np.uint32 if bits <= 32 else np.uint64)


def signed(residues: np.ndarray[Any, Any], bits: int) -> Tensor:
    """The whole numbers in [−2^(bits−1), 2^(bits−1)) that `residues` modulo 2^bits stand for, int64."""
    half = 1 << (bits - 1)
    whole = torch.from_numpy(residues.astype(np.int64))
    return ((whole + half) & ((1 << bits) - 1)) - half


def clipped(vectors: Tensor, norm: float) -> Tensor:
    """`vectors` [clients, d], none longer than `norm`."""
    return vectors * clip_factors(torch.linalg.vector_norm(vectors, dim=1), norm)[:, None]


# Rows


def row(interval: Interval | None, **about: Any) -> dict[str, Any]:
    """A measured number with its 95% interval; None where there is no number to give, and `note` says why."""
    value, low, high = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    return {**about, "value": value, "low": low, "high": high}


def decibels(recovered: Pictures, truth: Pictures) -> np.ndarray[Any, Any]:
    """PSNR of each picture [pictures], at most EXACT_DB, which says exact; pixels are cut to [0, 1] first."""
    if isinstance(recovered, torch.Tensor):
        recovered = recovered.clamp(0, 1)
    return np.minimum(psnr(recovered, truth), EXACT_DB)


def picture_rows(found: np.ndarray[Any, Any], **about: Any) -> list[dict[str, Any]]:
    """The mean PSNR of independent victims, and how many pictures are recognised and how many exact."""
    rows = [row(mean_interval(found), metric="psnr", **about)]
    for metric, least in (("recognised", RECOGNISED_DB), ("exact", EXACT_DB)):
        rows.append(row(clopper_pearson(int((found >= least).sum()), len(found)), metric=metric, **about))
    return rows


def blind_rows(truth: Tensor, public: Tensor, **about: Any) -> list[dict[str, Any]]:
    """What needs no server at all: the public pictures' mean, and the one of them that is nearest to the truth."""
    mean = public.mean(0, keepdim=True).expand_as(truth)
    squares = truth.flatten(1).square().sum(1)[:, None] + public.flatten(1).square().sum(1)[None]
    nearest = (squares - 2 * truth.flatten(1) @ public.flatten(1).T).argmin(1)
    return [
        row(mean_interval(decibels(guess, truth)), metric="psnr", server=name, **about)
        for name, guess in (("blind: mean image", mean), ("blind: nearest public image", public[nearest]))
    ]
