"""What noise leaves to an attacker who rebuilds a record, and what an average without noise leaks.

Reconstruction robustness (ReRo; Balle, Cherubin & Hayes 2022): an attacker who would succeed with chance κ
from the prior alone succeeds with at most some γ(κ) once the release is seen, whatever "success" means. Four
ceilings on γ follow, from tight to loose: the trade-off curve, by the privacy loss distribution or by
sampling (Hayes, Mahloujifar & Balle 2023; Kaissis et al. 2023), Rényi divergences, and (ε, δ).

Beside them stand the floor on the mean squared error of unbiased attacks (Guo, Karrer, Chaudhuri & van der
Maaten 2022), and what the mean of clients' updates tells without any noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

from defenses.accounting import LEAST_NOISE, AnyEvent, composable
from defenses.bounds import Rates, tpr_gaussian, trade_off_pld
from fl_core.errors import InputError, check_choice, check_number

Floats = npt.NDArray[np.float64]

Relation = Literal["add_or_remove", "replace"]

# Samples drawn at once: half a megabyte an array.
_CHUNK = 65_536

# So many samples must reach the top κ for the threshold, and the standard error with it, to mean anything.
_LEAST_IN_TOP = 100

# Beyond this, rounding spoils Opacus's series; divergences only fall with more noise, so stopping here is safe.
_MOST_NOISE_OF_SERIES = 1e4


def rero_pld(kappa: float, noise_multiplier: float, events: Sequence[AnyEvent]) -> float:
    """The tight ceiling on the chance of reconstruction: `trade_off_pld` read at the prior chance `kappa`.

    The curve bounds both tests, so it lies on or above the one that counts here (record in against record
    out). 1 without noise; for many κ, keep the curve and read `tpr_at`. Raises InputError for κ outside
    [0, 1] and a negative noise multiplier. Source: Hayes et al. 2023; Kaissis et al. 2023.
    """
    check_number("kappa", kappa, minimum=0, maximum=1)
    return float(trade_off_pld(noise_multiplier, events).tpr_at(float(kappa)))


@dataclass(frozen=True, kw_only=True)
class SampledCeiling:
    """A ceiling estimated from `samples` draws, with its standard error."""

    value: float
    standard_error: float
    samples: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The two-sided normal interval, kept inside [0, 1]; raises InputError unless 0 < confidence < 1."""
        check_number("confidence", confidence, above=0, below=1)
        reach = float(norm.isf((1 - confidence) / 2)) * self.standard_error
        return max(self.value - reach, 0.0), min(self.value + reach, 1.0)


def rero_monte_carlo(
    kappa: float,
    noise_multiplier: float,
    events: Sequence[AnyEvent],
    rng: np.random.Generator,
    *,
    samples: int = 100_000,
) -> SampledCeiling:
    """The same ceiling by sampling: an estimate, and a check of `rero_pld`, but no guarantee.

    Releases are drawn from Q, the run without the record; P is the run with it, and r = P/Q. With t the r
    that the top κ of them reach, γ = P(r ≥ t) = 1 − E_Q[r; r < t]. Hayes et al. average r over the top κ,
    where its variance can be endless; the mass below t is the same number and its terms never exceed t. With
    the threshold's own spread counted, the squared standard error is Var_Q[min(r, t)] / samples.

    Time is samples × steps (about 0.3 s for 10 million on one core), memory 8 bytes a sample and a few chunks
    of half a megabyte. Raises InputError for κ outside (0, 1), a noise multiplier below 0.001,
    draws without replacement, and fewer than 100 samples in the top κ.
    Source: Hayes et al. 2023 (blow-up function of DP-SGD's dominating pair, by Monte Carlo).
    """
    check_number("kappa", kappa, above=0, below=1)
    check_number("noise_multiplier", noise_multiplier, minimum=LEAST_NOISE)
    check_number("samples", samples, minimum=1, integer=True)
    if kappa * samples < _LEAST_IN_TOP:
        raise InputError(
            f"{samples} samples leave {kappa * samples:.3g} in the top kappa = {kappa:g}; at least {_LEAST_IN_TOP} "
            f"must lie there: use {math.ceil(_LEAST_IN_TOP / kappa)} samples or more"
        )
    ratios = _log_ratios(noise_multiplier, events, rng, samples)
    above = math.floor(kappa * samples)
    threshold = np.partition(ratios, samples - above)[samples - above]
    # E_Q[r] = 1 keeps t near 1/κ at most, so nothing overflows here however large single ratios are.
    capped = np.exp(np.minimum(ratios, threshold))
    value = 1 - float(np.mean(capped)) + kappa * math.exp(threshold)
    return SampledCeiling(
        value=min(max(value, kappa), 1.0),
        standard_error=float(np.std(capped, ddof=1)) / math.sqrt(samples),
        samples=samples,
    )


def rero_renyi(kappa: float, orders: Sequence[float], divergences: Sequence[float]) -> float:
    """The ceiling min over α of (κ e^ρ(α))^((α − 1)/α), at most 1, from Rényi divergences ρ(α) in nats.

    `divergences`[k] is that of `orders`[k], record in from record out; inf is allowed and adds nothing.
    Raises InputError for κ outside [0, 1], an order that is not above 1, a negative divergence, and lists
    that are empty or differ in length. Source: Balle, Cherubin & Hayes 2022 (RDP implies ReRo).
    """
    check_number("kappa", kappa, minimum=0, maximum=1)
    if not orders or len(orders) != len(divergences):
        raise InputError(
            f"there are {len(orders)} Rényi orders and {len(divergences)} divergences; "
            "there must be one divergence for every order, and at least one"
        )
    least = 0.0  # the logarithm of the ceiling
    for order, divergence in zip(orders, divergences, strict=True):
        check_number("a Rényi order", order, above=1)
        check_number("a Rényi divergence", divergence, minimum=0, infinite=True)
        if kappa > 0:
            least = min(least, (math.log(kappa) + divergence) * (order - 1) / order)
        elif math.isfinite(divergence):
            return 0.0
    return math.exp(least)


def rero_rdp(kappa: float, noise_multiplier: float, events: Sequence[AnyEvent]) -> float:
    """`rero_renyi` of the composed `events`, over the orders that Opacus's accountant goes through.

    Looser than `rero_pld`, and quick. 1 without noise (below 0.001), κ if nothing is ever drawn. Raises
    InputError for κ outside [0, 1] and a negative noise multiplier.
    Source: Balle et al. 2022, with the divergences of Mironov, Talwar & Zhang 2019.
    """
    check_number("kappa", kappa, minimum=0, maximum=1)
    check_number("noise_multiplier", noise_multiplier, minimum=0)
    if not composable(events):
        return float(kappa)
    if noise_multiplier < LEAST_NOISE:
        return 1.0
    steps = _coins(noise_multiplier, events)
    from opacus.accountants import RDPAccountant  # here, because importing Opacus takes seconds
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = [float(order) for order in RDPAccountant.DEFAULT_ALPHAS]
    total = np.zeros(len(orders))
    for noise, rate, count in steps:
        total += compute_rdp(q=rate, noise_multiplier=min(noise, _MOST_NOISE_OF_SERIES), steps=count, orders=orders)
    # With hardly any divergence at all, rounding can leave it a hair below 0.
    return rero_renyi(kappa, orders, np.maximum(total, 0.0).tolist())


def rero_epsilon_delta(kappa: float, epsilon: float, delta: float) -> float:
    """The ceiling that (ε, δ) alone puts on the chance of reconstruction: min(1, κ e^ε + δ).

    This is the published form, which needs (ε, δ) in one direction only; where both hold,
    `tpr_epsilon_delta` is a little lower near 1. Raises InputError for κ or δ outside [0, 1] and a negative
    ε; ε may be inf. Source: Balle et al. 2022 for δ = 0; with δ by the definition of (ε, δ).
    """
    check_number("kappa", kappa, minimum=0, maximum=1)
    check_number("epsilon", epsilon, minimum=0, infinite=True)
    check_number("delta", delta, minimum=0, maximum=1)
    # e^ε overflows past 709; κ = 0 stays at δ then, and any other κ is at 1 long before.
    return min(kappa * math.exp(min(epsilon, 700.0)) + delta, 1.0)


def renyi_order_two(noise_multiplier: float, events: Sequence[AnyEvent], *, relation: Relation) -> float:
    """ρ₂, the Rényi divergence of order 2 in nats between runs that differ in one record; inf without noise.

    `noise_multiplier` is the noise over the clipping norm, so two different records' gradients may lie two
    clipping norms apart. Under "add_or_remove" it is exact: Σ log(1 + q²(e^(1/σ²) − 1)) over the steps.
    Under "replace" it is an upper bound, exact at q = 1 (4/σ² a step) and as q goes to 0:
    Σ log(1 + q² e^(q(1−q)/2σ²) (e^((1+q)²/σ²) + e^((1−q)²/σ²) − 2e^(−(1−q²)/σ²))). It holds because the
    mixture (1−q)N(0, σ²) + qN(x′, σ²) is nowhere below its weighted geometric mean, a multiple of N(qx′, σ²);
    the integral against that is a closed form, and is largest for opposite gradients of full length.

    Raises InputError for draws without replacement, a negative noise multiplier and another relation.
    Source: Mironov, Talwar & Zhang 2019 ("add_or_remove"); derived here ("replace").
    """
    check_number("noise_multiplier", noise_multiplier, minimum=0)
    check_choice("relation", relation, ("add_or_remove", "replace"))
    if composable(events) and noise_multiplier < 1e-100:  # its inverse square would overflow
        return math.inf
    total = 0.0
    for noise, rate, count in _coins(noise_multiplier, events):
        told_apart = relation == "replace" and noise == noise_multiplier  # or the noise counts both clips already
        log_excess = _log_excess_replace if told_apart else _log_excess_add_or_remove
        total += count * float(np.logaddexp(0.0, log_excess(rate, max(noise**-2, 1e-300))))
    return total


def mse_floor_unbiased(noise_multiplier: float, events: Sequence[AnyEvent], *, relation: Relation) -> float:
    """The least mean squared error a pixel, pixels in [0, 1], of any unbiased reconstruction: ¼ / (e^ρ₂ − 1).

    It compares a record with another that could stand in its place, so what it needs is ρ₂ of "replace".
    "add_or_remove" is the number usually quoted; that one is a floor only if the gradients of any two
    candidates are at most one clipping norm apart in full batches, and clipping allows them two.

    0 without noise (and where ρ₂ > 700), inf where nothing is ever drawn: no attack is unbiased then. It says
    nothing about biased attacks: one that always answers grey errs by ¼ a pixel at most, at any noise. Raises
    what `renyi_order_two` raises. Source: Guo et al. 2022 (Hammersley–Chapman–Robbins), each pixel's range 1.
    """
    divergence = renyi_order_two(noise_multiplier, events, relation=relation)
    if divergence > 700:
        return 0.0
    excess = math.expm1(divergence)
    return 0.25 / excess if excess > 0 else math.inf


def mu_of_random_pair(dimension: int, clients: int) -> float:
    """The μ with which a mean without noise tells which of two updates it holds: √(2d / (n − 1)).

    Model: `clients` updates, each from N(0, I) in ℝ^`dimension`, are averaged and nothing is added. The
    attacker knows two candidates, drawn likewise, and that one of them is in the mean; the other n − 1
    updates, unknown, are all the noise there is. Times n, the mean is a Gaussian around the candidate with
    covariance (n − 1)I, so that two candidates x and x′ lie μ = ‖x − x′‖/√(n − 1) apart. For a random pair
    E‖x − x′‖² = 2d, and what is returned is the root of E[μ²]: read `auc_gaussian` and `tpr_gaussian` at it
    for a pair at that distance. It grows with d/n, so a large model's mean hides nobody.

    Raises InputError for a dimension below 1 and fewer than 2 clients.
    """
    check_number("dimension", dimension, minimum=1, integer=True)
    check_number("clients", clients, minimum=2, integer=True)
    return math.sqrt(2 * dimension / (clients - 1))


def auc_of_random_pair(dimension: int, clients: int) -> float:
    """The AUC in the model of `mu_of_random_pair`, averaged over pairs instead of read at their mean distance.

    E[Φ(μ/√2)] with μ² = 2χ²_d/(n − 1) is the chance that a Student t of d degrees of freedom stays under
    √(d/(n − 1)). It is below `auc_gaussian(mu_of_random_pair(...))`, which is concave in μ². Raises likewise.
    """
    return float(student.cdf(mu_of_random_pair(dimension, clients) / math.sqrt(2), df=dimension))


def tpr_of_mean(fpr: Rates, length: float, clients: int) -> Rates:
    """The best true-positive rate at `fpr` on the mean of n updates for one of `length` ‖x‖: Φ(Φ⁻¹(F) + ‖x‖/√n).

    Model: `clients` = n updates, each from N(0, I), are summed and divided by n; a member's x, of known
    length, is there on top of them. Where x takes the place of one of the n instead, the variance inside is
    (n − 1)/n of the one outside and this holds up to terms of 1/n. LiRA tends to it as its shadows grow.

    Raises InputError for a rate outside [0, 1], a negative length and fewer than 1 client.
    """
    check_number("length", length, minimum=0)
    check_number("clients", clients, minimum=1, integer=True)
    return tpr_gaussian(fpr, length / math.sqrt(clients))


def _coins(noise_multiplier: float, events: Sequence[AnyEvent]) -> list[tuple[float, float, int]]:
    """(noise over the sums' distance, rate, steps) of Gaussian steps that coins draw, or that nothing is drawn for."""
    steps = composable(events)
    if any(clips == 2 and rate < 1 for clips, rate, _ in steps):
        raise InputError("draws without replacement are covered by rero_pld alone; use it, or Poisson events")
    return [(noise_multiplier / clips, rate, count) for clips, rate, count in steps]


def _log_ratios(noise_multiplier: float, events: Sequence[AnyEvent], rng: np.random.Generator, samples: int) -> Floats:
    """log P/Q [samples] of whole runs drawn from Q, a chunk at a time.

    A step's release is u·σ with u from N(0, 1), and its ratio is 1 − q + q e^(u/σ − 1/2σ²).
    """
    steps = _coins(noise_multiplier, events)
    ratios = np.zeros(samples)
    for start in range(0, samples, _CHUNK):
        chunk = ratios[start : start + _CHUNK]
        for noise, rate, count in steps:
            repeats = count
            if rate == 1:  # such steps compose to a single one exactly
                noise, repeats = noise / math.sqrt(count), 1
            for _ in range(repeats):
                drawn = rng.standard_normal(len(chunk)) / noise - 0.5 / noise**2
                if rate < 1:
                    drawn = np.logaddexp(math.log1p(-rate), math.log(rate) + drawn)
                chunk += drawn
    return ratios


def _log_excess_add_or_remove(rate: float, inverse: float) -> float:
    """log of q²(e^s − 1), s = 1/σ², for any s above 0."""
    return 2 * math.log(rate) + inverse + math.log(-math.expm1(-inverse))


def _log_excess_replace(rate: float, inverse: float) -> float:
    """log of q² e^(q(1−q)s/2) (e^(as) + e^(bs) − 2e^(cs)), with a = (1+q)², b = (1−q)², c = −(1−q²)."""
    near, far = -(1 - rate) * 2, -(1 + rate) * 2  # c − b and c − a
    # e^(as) is taken out of the bracket; what is left is a sum of two terms that are never negative.
    bracket = -math.expm1(far * inverse) - math.exp(-4 * rate * inverse) * math.expm1(near * inverse)
    return 2 * math.log(rate) + (rate * (1 - rate) / 2 + (1 + rate) ** 2) * inverse + math.log(bracket)
