"""What the studies of malicious servers share: a cohort's local step, the way of its updates into a sum, and rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.metrics import Interval, clopper_pearson, mean_interval
from attacks.pictures import EXACT_DB, RECOGNISED_DB, psnr
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
from defenses.secagg.encoding import signed, wrapped
from defenses.secagg.keys import Context
from defenses.secagg.masks import Words, word_type
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import aggregate, seeded
from experiments.studies.base import Values
from fl_core.data import ImageSet
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import ExampleFeed
from fl_core.seeds import Generators, generator, seed
from fl_core.views import MaliciousServer

Array = np.ndarray[Any, np.dtype[np.float64]]


# The cohort


def drawn(data: ImageSet, count: int, run: int, trial: int) -> Tensor:
    """`count` different rows of `data` at random; one trial's do not depend on the others."""
    return torch.randperm(len(data), generator=generator(run, "cohort", trial))[:count]


def to_all(model: Tree, clients: int) -> Tree:
    """One model [...] sent to every client [clients, ...]."""
    return {name: value.expand(clients, *value.shape) for name, value in model.items()}


def updates_of(model: nn.Module, sent: Tree, data: ImageSet, plan: Sequence[Sequence[Tensor]], lr: float = 1.0) -> Tree:
    """The updates [clients, ...] of plain local descent from `sent` [clients, ...] on the batches `plan[client][step]`.

    This is the engine's own training loop, with rows of `data` for batches.
    """
    feed = ExampleFeed(data.images, data.labels, plan)
    trained = descend(sent, ClassificationLosses(model), feed, SGD(lr=lr), backend="loop")
    return {name: trained[name] - sent[name] for name in sent}


def flat(tree: Tree) -> Tensor:
    """[clients, d] of a tree [clients, ...], in its order; `defenses.noise.cut` undoes it."""
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

    def error(self, shares: int, rounded: int | None = None) -> float:
        """The deviation that rounding and noise make in a coordinate of the sum of `shares` vectors, at most.

        Of these `rounded` were rounded (None: all); a vector of zeros lies on the grid, and still gets its noise.
        """
        noise = self.grid.sigma if self.grid else 0.0
        return self.step * math.sqrt((shares if rounded is None else rounded) / 4 + shares * noise**2)

    def epsilon(self, shares: int, delta: float) -> float | None:
        """What one round guarantees a client where `shares` shares of the noise are in what is seen; None: nothing."""
        return epsilon_concentrated(self.grid.rho_with(shares), delta) if self.grid else None


def words(steps: Tensor, bits: int) -> list[Words]:
    """Signed whole numbers [clients, d] modulo 2^bits, as the masking protocol takes them."""
    return list(wrapped(steps, bits).numpy().view(word_type(bits)))


def clipped(vectors: Tensor, norm: float = 1.0) -> Tensor:
    """`vectors` [clients, d], none longer than `norm`."""
    return vectors * clip_factors(torch.linalg.vector_norm(vectors, dim=1), norm)[:, None]


def masked_sum(
    steps: Tensor,
    parameters: Parameters,
    contexts: Context | Sequence[Context],
    run: int,
    trial: int,
    drops: Mapping[int, Stage] | None = None,
) -> Tensor:
    """The masking protocol's sum [d], int64, of signed grid steps [clients, d]. Raises Aborted as `aggregate` does."""
    secret = seed(run, "masking", trial).to_bytes(32, "little")
    vectors = words(steps, parameters.bits)
    done = aggregate(
        vectors, parameters=parameters, contexts=contexts, random=seeded(secret), drops=drops, keep_masked=False
    )
    return signed(torch.from_numpy(done.total.astype(np.int64)), parameters.bits)


def seen_by_server(total: Tree, sent: Tree) -> MaliciousServer:
    """What a malicious server saw of round 0: the sum [1, ...], and what it had sent out [1, clients, ...]."""
    clients = next(iter(sent.values())).shape[1]
    blank: dict[str, Any] = {field.name: {} for field in fields(MaliciousServer)}
    shown = {"sums": {0: total}, "sent": {0: sent}, "cohorts": {0: torch.arange(clients)[None]}}
    return MaliciousServer(**(blank | shown))


# Rows


def row(interval: Interval | None, **about: Any) -> Values:
    """A measured number with its 95% interval; None where there is no number to give, and a `note` says why."""
    value, low, high = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    return {**about, "value": value, "low": low, "high": high}


def plain(value: float | None, **about: Any) -> Values:
    """A number that was computed and not estimated, without an interval."""
    return {**about, "value": value, "low": None, "high": None}


def decibels(recovered: Tensor, truth: Tensor) -> Array:
    """PSNR [pictures], of pixels cut to [0, 1], at most EXACT_DB, which says exact."""
    return np.minimum(psnr(recovered.clamp(0, 1), truth), EXACT_DB)


def picture_rows(found: Array, **about: Any) -> list[Values]:
    """The mean PSNR of independent victims' pictures, and the shares that are recognised and that are exact."""
    rows = [row(mean_interval(found), metric="psnr", **about)]
    for metric, least in (("recognised", RECOGNISED_DB), ("exact", EXACT_DB)):
        rows.append(row(clopper_pearson(int((found >= least).sum()), len(found)), metric=metric, **about))
    return rows


def as_plain(pictures: Tensor) -> list[Any]:
    """Pictures for a record: pixels cut to [0, 1], in thousandths."""
    found: list[Any] = (pictures.clamp(0, 1) * 1000).round().div(1000).tolist()
    return found


def blind_guesses(truth: Tensor, public: Tensor) -> dict[str, Tensor]:
    """What needs no server at all: the public pictures' mean, and of them the nearest to the truth (picked by it)."""
    mean = public.mean(0, keepdim=True).expand_as(truth)
    flat_truth, flat_public = truth.flatten(1).double(), public.flatten(1).double()
    squares = flat_public.square().sum(1) - 2 * flat_truth @ flat_public.T
    return {"mean image": mean, "nearest public image": public[squares.argmin(1)]}
