"""Noise on integers that clients add in shares, and what their sum then guarantees.

The distributed discrete Gaussian mechanism of Kairouz, Liu & Steinke 2021 (KLS21): each client clips its update to
`clip_norm`, rounds it at random to a grid, and adds discrete Gaussian noise. Everything is an integer, so the sum can
be taken under secure aggregation's masks, and only the sum has to carry enough noise. The sampler, and the step from
concentrated differential privacy (zCDP) to (ε, δ), are those of Canonne, Kamath & Steinke 2020 (CKS20).

`plan` fits the grid, the noise and the guarantee together. It works in two units: that of the values, and grid steps,
which are `granularity` values long. No random rotation is done before rounding, so the grid has to cover the worst
case in which one coordinate holds all of every client's update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from defenses.accounting import EPSILON_RANGE
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


def sum_divergence(sigma: float, clients: int) -> float:
    """τ = 10 Σ_{k=1}^{n−1} exp(−2π²σ²·k/(k+1)): how far a sum of n shares is from being one discrete Gaussian.

    `sigma` is a share's, in grid steps. log(P[sum = x] / P[N_ℤ(0, nσ²) = x]) lies within ±τ/2 at every x. Raises
    InputError below σ = 1/2, where this is not proven. Source: KLS21, theorem 1 and what it rests on.
    """
    check_number("sigma", sigma, minimum=LEAST_SHARE)
    check_number("clients", clients, minimum=1, integer=True)
    rate = 2 * (math.pi * sigma) ** 2
    exact = np.arange(1, min(clients, _EXACT_TERMS + 1), dtype=np.float64)
    total = float(np.exp(-rate * exact / (exact + 1)).sum())
    # The terms fall as k grows, so the last one stands in, from above, for those that follow it.
    beyond = max(clients - 1 - _EXACT_TERMS, 0)
    return 10 * (total + beyond * math.exp(-rate * _EXACT_TERMS / (_EXACT_TERMS + 1)))


def concentrated(sensitivity: float, sigma: float, clients: int, dimension: int) -> float:
    """ρ for which one release of the sum of `clients` shares is ρ-zCDP; `sensitivity` (L2) and `sigma` in grid steps.

    Formal guarantee. Neighbours differ in one client's integer vector, of L2 norm at most Δ, being replaced by zeros;
    its share of noise stays. With μ = Δ/(√n σ), and Δ₁ = min{√d Δ, Δ²} bounding the L1 norm (of integers |x| ≤ x²),

        ρ = min{ μ²/2 + τd,  (μ² + 2τΔ₁/(√n σ) + τ²d)/2 }.

    The Rényi divergences of order α are at most αμ²/2 + τd and α/2 times the second bracket (KLS21, proposition 14);
    each is at most αρ for all α ≥ 1. The first follows from shares being sub-Gaussian and `sum_divergence` bounding a
    change of measure, the second from the triangle inequality of zCDP, coordinate by coordinate. The paper's third
    form (μ + τ√d)²/2 is never below the second. Its theorem 1 has τd/2 under the root of ε² = 2ρ in the first form;
    the divergence supports 2τd, which is used here.

    To an attacker who knows m of the shares (colluding clients), n is `clients` − m; to one who sees the sum of those
    who did not drop out, n is their number. Over rounds ρ adds up, also when rounds are chosen adaptively.
    """
    check_number("sensitivity", sensitivity, minimum=0)
    check_number("dimension", dimension, minimum=1, integer=True)
    tau = sum_divergence(sigma, clients)
    total = math.sqrt(clients) * sigma
    mu = sensitivity / total
    lengths = min(math.sqrt(dimension), sensitivity) * mu
    return min(mu**2 / 2 + tau * dimension, (mu**2 + 2 * tau * lengths + tau**2 * dimension) / 2)


def epsilon_concentrated(rho: float, delta: float) -> float:
    """The ε at `delta` that ρ-zCDP implies: the least αρ + log(1 − 1/α) + log(1/(δα))/(α − 1) over α > 1.

    Every α gives a valid ε; the best solves ρ(α − 1)² + log α = log(1/δ). Source: CKS20, proposition 12 and
    corollary 13.
    """
    check_number("rho", rho, minimum=0)
    check_number("delta", delta, above=0, below=1)
    if rho == 0:
        return 0.0
    room = -math.log(delta)

    def slope(log_excess: float) -> float:  # in log(α − 1)
        excess = math.exp(log_excess)
        return rho * excess**2 + math.log1p(excess) - room

    high = 0.5 * math.log(room / rho)  # there ρ(α − 1)² alone is log(1/δ)
    low = high
    while slope(low) > 0:
        low -= 2.0
    excess = math.exp(float(brentq(slope, low, high))) if low < high else math.exp(high)
    return max((1 + excess) * rho - math.log1p(1 / excess) + (room - math.log1p(excess)) / excess, 0.0)


def rho_for(epsilon: float, delta: float) -> float:
    """The largest ρ with `epsilon_concentrated(ρ, delta)` at most `epsilon`; at most 1e-6 of itself less, never more.

    Raises InputError for ε outside [0.05, 500]. Divided by the number of rounds it is what one round may spend.
    """
    check_number("epsilon", epsilon, minimum=EPSILON_RANGE[0], maximum=EPSILON_RANGE[1])
    check_number("delta", delta, above=0, below=1)
    room = -math.log(delta)

    def beyond(log_excess: float) -> float:  # the ε at which this α is the best one falls as α grows
        excess = math.exp(log_excess)
        best = (room - math.log1p(excess)) / excess**2
        return (1 + 2 * excess) * best - math.log1p(1 / excess) - epsilon

    high = math.log(math.expm1(room))  # there the best ρ is 0
    low = high
    while beyond(low) <= 0:
        low -= 2.0
    excess = math.exp(float(brentq(beyond, low, high)))
    exact = (epsilon + math.log1p(1 / excess) - (room - math.log1p(excess)) / excess) / (1 + excess)
    return exact * (1 - 5e-7)


def granularity_for(bits: int, clients: int, clip_norm: float, sigma_total: float, spread: float = SPREAD) -> float:
    """γ for which the sum of `clients` rounded, noised updates fits into a signed integer of `bits` bits.

    `sigma_total` is the standard deviation of the summed noise, in the unit of the values, as γ and `clip_norm` are.
    The grid covers every client's update in one coordinate, rounded up, and `spread` standard deviations of noise:
    n(C/γ + 1) + spread·σ_total/γ = 2^(bits−1) − 1. What is left to chance is `overflow_bound`. Raises InputError if
    the integer is too small for two grid steps a client.
    """
    check_number("bits", bits, minimum=2, maximum=LARGEST_BITS, integer=True)
    check_number("clients", clients, minimum=1, integer=True)
    check_number("clip_norm", clip_norm, above=0)
    check_number("sigma_total", sigma_total, minimum=0)
    check_number("spread", spread, above=0)
    largest = (1 << (bits - 1)) - 1
    if largest < 2 * clients:
        raise InputError(
            f"a sum of {bits} bits holds no two grid steps from each of {clients} clients; it needs at least "
            f"{(2 * clients + 1).bit_length() + 1} bits: raise bits or lower the number of clients"
        )
    return (clients * clip_norm + spread * sigma_total) / (largest - clients)


def overflow_bound(
    *, bits: int, granularity: float, sigma: float, clients: int, clip_norm: float, dimension: int
) -> float:
    """A bound on the chance that any of the `dimension` coordinates of one round's sum leaves `bits` signed bits.

    `sigma` is a client's, in grid steps. The updates alone never exceed n(C/γ + 1); a discrete Gaussian is
    sub-Gaussian with its σ² (CKS20), so the noise exceeds the room r that is left with a chance of at most
    2d·exp(−r²/2nσ²). An overflow wraps around and spoils the sum; it costs no privacy, as wrapping comes after noise.
    """
    room = 2 ** (bits - 1) - 1 - clients * (clip_norm / granularity + 1)
    return 1.0 if room <= 0 else min(2 * dimension * math.exp(-(room**2) / (2 * clients * sigma**2)), 1.0)


@dataclass(frozen=True, kw_only=True)
class NoisePlan:
    """A grid, the noise on it, and what one round of it guarantees; made by `plan`.

    Lengths with "in grid steps" times `granularity` are in the unit of the values.
    """

    granularity: float
    sigma: float  # of one client's share, in grid steps
    sensitivity: float  # the most that one client's rounded update can be long (L2), in grid steps
    tau: float  # `sum_divergence`
    overflow: float  # `overflow_bound` of one round
    rho: float  # one round is ρ-zCDP against the sum, if all clients' shares are in it
    noise_multiplier: float
    clip_norm: float
    clients: int
    dimension: int
    bits: int
    beta: float

    def rho_with(self, shares: int) -> float:
        """One round's ρ if only `shares` of the planned shares of noise count: the others dropped out or collude."""
        check_number("shares", shares, minimum=1, maximum=self.clients, integer=True)
        return concentrated(self.sensitivity, self.sigma, shares, self.dimension)

    def epsilon(self, rounds: int, delta: float) -> float:
        """ε at `delta` over `rounds` rounds, each with all clients' shares."""
        check_number("rounds", rounds, minimum=0, integer=True)
        return epsilon_concentrated(rounds * self.rho, delta)


def plan(
    *,
    noise_multiplier: float,
    clip_norm: float,
    clients: int,
    dimension: int,
    bits: int,
    beta: float = BETA,
    spread: float = SPREAD,
) -> NoisePlan:
    """The finest grid that `bits` signed bits allow for the sum, with the noise and the guarantee that go with it.

    `noise_multiplier` is the summed noise's standard deviation over `clip_norm`, as in DP-FedAvg; each of the
    `clients` adds 1/√n of it. A Gaussian mechanism would be 1/(2·noise_multiplier²)-zCDP a round; `rho` is what
    rounding, which lengthens updates, and summing, which is not quite Gaussian, make of it. Its formal guarantee is
    that of `concentrated`. Raises InputError where `bits` are too few for half a grid step of noise a client.
    """
    check_number("noise_multiplier", noise_multiplier, above=0)
    granularity = granularity_for(bits, clients, clip_norm, noise_multiplier * clip_norm, spread)
    sigma = noise_multiplier * clip_norm / granularity / math.sqrt(clients)
    if sigma < LEAST_SHARE:
        # What the sum has to hold at the coarsest grid on which a share is still half a step.
        largest = clients + (clients / noise_multiplier + spread) * math.sqrt(clients) * LEAST_SHARE
        needed = math.ceil(math.log2(largest + 1)) + 1
        remedy = f"use at least {needed} bits" if needed <= LARGEST_BITS else "raise noise_multiplier"
        raise InputError(
            f"{bits} bits leave each of {clients} clients noise of {sigma:.3g} grid steps; it must be at least "
            f"{LEAST_SHARE:g} for the sum's guarantee to hold: {remedy}"
        )
    sensitivity = rounded_norm(clip_norm, granularity, dimension, beta) / granularity
    return NoisePlan(
        granularity=granularity,
        sigma=sigma,
        sensitivity=sensitivity,
        tau=sum_divergence(sigma, clients),
        overflow=overflow_bound(
            bits=bits,
            granularity=granularity,
            sigma=sigma,
            clients=clients,
            clip_norm=clip_norm,
            dimension=dimension,
        ),
        rho=concentrated(sensitivity, sigma, clients, dimension),
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        clients=clients,
        dimension=dimension,
        bits=bits,
        beta=beta,
    )
