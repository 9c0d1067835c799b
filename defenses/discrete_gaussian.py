"""Noise on integers that clients add in shares, and what their sum then guarantees.

The distributed discrete Gaussian mechanism of Kairouz, Liu & Steinke 2021 (KLS21): each client clips its update to
`clip_norm`, rounds it at random to a grid, and adds discrete Gaussian noise. Everything is an integer, so the sum can
be taken under secure aggregation's masks, and only the sum has to carry enough noise. The sampler, and the step from
concentrated differential privacy (zCDP) to (ε, δ), are those of Canonne, Kamath & Steinke 2020 (CKS20).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fl_core.errors import InputError, check_number

# From noise that is almost never anything but 0 up to where integers stop being exact in a double.
SIGMA_RANGE = (0.01, 1e14)

# Below half a grid step the divergence of a sum from one discrete Gaussian is no longer covered (KLS21).
LEAST_SHARE = 0.5

# A sum of 48 bits leaves a double 5 bits to spare, for noise drawn 37 standard deviations out.
LARGEST_BITS = 48

BETA = math.exp(-0.5)

# How many standard deviations of the summed noise the grid leaves room for; costs little, as the updates fill most.
SPREAD = 10.0

_BLOCK = 1 << 18  # proposals at a time: large enough to keep torch busy, small enough to stay in the cache
_PROPOSALS = 2.8  # for each draw still missing: between 31% (sigma 0.1) and 48% (sigma 10 and more) are accepted

_EXACT_TERMS = 1_000_000


def discrete_gaussian(
    shape: Sequence[int], sigma: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Independent integers (int64, of `shape`) with P[x] ∝ exp(−x²/2σ²); `sigma` in grid steps.

    A pure function of the generator's state on one kind of device; a million take 0.15 to 0.35 s on one CPU thread.
    Proposals come from the discrete Laplace distribution of scale ⌊σ⌋ + 1 and are thinned (CKS20, algorithms 2 and
    3, with the two acceptances of a proposal decided by one number).

    What floating point does: CKS20 compares with exact rationals, this with doubles out of a pseudorandom stream. An
    acceptance is decided to 2⁻⁵³, so one draw is within about 1e-15 of the exact distribution in total variation, and
    far out, where probabilities are that small, they are wrong in proportion. Over n clients and d coordinates that
    adds some n·d·1e-15 to δ in each round. It is meant for measuring, not for guarding data against an attacker who
    can exploit the generator.

    Raises InputError for sigma outside [0.01, 1e14].
    """
    check_number("sigma", sigma, minimum=SIGMA_RANGE[0], maximum=SIGMA_RANGE[1])
    size = math.prod(shape)
    drawn = torch.empty(size, dtype=torch.int64, device=device)
    filled = 0
    while filled < size:
        missing = size - filled
        kept = _thinned(min(_BLOCK, 16 + math.ceil(_PROPOSALS * missing)), sigma, generator, device)[:missing]
        drawn[filled : filled + len(kept)] = kept
        filled += len(kept)
    return drawn.reshape(tuple(shape))


def _thinned(count: int, sigma: float, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Those of `count` proposals that are accepted."""
    scale = math.floor(sigma) + 1
    both = torch.randint(2 * scale, (count,), generator=generator, device=device)
    negative, remainder = (both & 1).bool(), both >> 1
    chances = torch.rand((2, count), generator=generator, device=device, dtype=torch.float64)
    # Rounded down, an exponential variable is geometric: how often the discrete Laplace goes round its scale.
    magnitude = remainder + scale * torch.log1p(-chances[0]).neg_().floor_().long()
    # exp(−remainder/scale) makes the proposal discrete Laplace, the square turns that into discrete Gaussian.
    exponent = remainder.double() / -scale - (magnitude.double() / sigma - sigma / scale) ** 2 / 2
    # 0 is proposed with both signs, and counts once.
    kept = (chances[1] < exponent.exp_()) & ~(negative & (magnitude == 0))
    return torch.where(negative, -magnitude, magnitude)[kept]


def rounded_norm(clip_norm: float, granularity: float, dimension: int, beta: float = BETA) -> float:
    """How long a vector no longer than `clip_norm` may be once rounded to the grid, in the unit of the values.

    min{C² + γ²d/4 + √(2 log 1/β)·γ·(C + γ√d/2), (C + γ√d)²}^½: randomised rounding stays within it with a chance of
    at least 1 − β. At β = 0 only the second bound, which always holds. Source: KLS21, theorem 1.
    """
    check_number("clip_norm", clip_norm, above=0)
    check_number("granularity", granularity, above=0)
    check_number("dimension", dimension, minimum=1, integer=True)
    check_number("beta", beta, minimum=0, below=1)
    always = clip_norm + granularity * math.sqrt(dimension)
    if beta == 0:
        return always
    spread = math.sqrt(-2 * math.log(beta)) * granularity * (clip_norm + granularity * math.sqrt(dimension) / 2)
    return min(math.sqrt(clip_norm**2 + granularity**2 * dimension / 4 + spread), always)


def round_to_grid(
    values: Tensor, granularity: float, clip_norm: float, beta: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """`values` [lanes, d] in grid steps, each rounded at random to one of its two neighbours: int64 [lanes, d].

    A lane longer than `clip_norm` is first scaled down to it. Rounding is unbiased; a lane that comes out longer than
    `rounded_norm` is rounded afresh, which moves its mean by at most β/(1 − β)·√d grid steps in L2 norm. Lane i draws
    from `generators[i]` alone, so lanes can be grouped at will.

    Formal guarantee: a returned lane's L2 norm is at most `rounded_norm(...)/granularity`, whatever `values` are.
    Raises InputError for values that are not finite. Source: KLS21, algorithm 1.
    """
    if values.ndim != 2 or len(generators) != len(values):
        raise ValueError(f"values of shape {tuple(values.shape)} with {len(generators)} generators; want [lanes, d]")
    longest = rounded_norm(clip_norm, granularity, values.shape[1], beta) / granularity
    check_number("clip_norm / granularity", clip_norm / granularity, maximum=2.0**LARGEST_BITS)
    steps = values.double()
    if not torch.isfinite(steps).all():
        raise InputError("an update holds nan or inf, which has no place on a grid; lower the learning rate")
    lengths = torch.linalg.vector_norm(steps, dim=1, keepdim=True)
    steps = steps * (clip_norm / granularity / lengths.clamp(min=clip_norm))
    floors = steps.floor()
    fractions = steps - floors
    rounded = torch.empty_like(steps)
    pending = list(range(len(steps)))
    while pending:
        for lane in pending:
            chances = torch.rand(steps.shape[1], generator=generators[lane], device=steps.device, dtype=torch.float64)
            rounded[lane] = floors[lane] + (chances < fractions[lane])
        long = (torch.linalg.vector_norm(rounded[pending], dim=1) > longest).tolist()
        pending = [lane for lane, again in zip(pending, long, strict=True) if again]
    return rounded.long()
