"""From what was sampled and how much noise was added to ε, and from ε back to the noise.

The accountant that counts here is the privacy loss distribution (PLD) of dp-accounting: Koskela, Jälkö & Honkela
2020 for the idea, Doroshenko, Ghazi, Kamath, Kumar & Manurangsi 2022 ("Connect the Dots") for the discretisation,
which rounds so that every ε and δ is an upper bound at any width of its grid. Opacus's RDP and PRV accountants stand
beside it as cross-checks.

What neighbours are follows from what was drawn, and is never chosen for its ε; see `Event`.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from dp_accounting import NeighboringRelation, dp_event, rdp
from dp_accounting.pld import pld_pmf, privacy_loss_distribution, privacy_loss_mechanism
from scipy.optimize import brentq
from scipy.stats import norm

from fl_core.errors import InputError, check_choice, check_number
from fl_core.sampling import SamplingEvent

Unit = Literal["example", "client"]
Relation = Literal["add or remove", "replace", "zero out"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """`steps` in each of which a unit takes part with the chance `rate`, and who its neighbours are.

    - `add or remove`: the unit is there or not. With a rate below 1 each step draws by independent coins (Poisson).
    - `zero out`: the unit is drawn as ever, but adds nothing; the same distributions, and the only choice where the
      number that is drawn is fixed and everybody is in.
    - `replace`: another unit takes its place, so that sums differ by twice the clip. With a rate below 1 each step
      draws a fixed number without replacement. Its loss is that of Zhu, Dong & Wang 2022, Theorem 11: the Poisson
      one's at twice the clip, towards removal where the loss is positive, and mirrored. It also covers Poisson coins
      with a replaced unit, by the same convexity (Balle, Barthe & Gaboardi 2018, Theorem 2).
    """

    relation: Relation
    rate: float
    steps: int

    def __post_init__(self) -> None:
        check_choice("the relation", self.relation, get_args(Relation))
        check_number("the sampling rate", self.rate, minimum=0, maximum=1)
        check_number("the number of steps", self.steps, minimum=0, integer=True)


AnyEvent = Event | SamplingEvent

# Each (relation of sums, rate, steps) once, in order: what the accountants compose. A relation of sums is the clips by
# which they differ.
Steps = tuple[tuple[int, float, int], ...]


def event_of(event: AnyEvent) -> Event:
    """What an accountant may claim for an example: amplification by Poisson coins, and none by shuffling.

    A shuffled epoch visits an example once, in a batch that the other examples' order decides. Whoever knows the order
    sees one Gaussian step a visit; the number of examples counts as known, so that neighbours replace one.
    """
    if isinstance(event, Event):
        return event
    if event.sampler == "poisson":
        return Event(relation="add or remove", rate=event.rate, steps=event.steps)
    return Event(relation="replace", rate=1.0, steps=event.steps)


EPSILON_RANGE = (0.05, 500.0)

# Below this δ the mass that the discretisation moves to infinity (1e-15 a composition) starts to show.
SMALLEST_DELTA = 1e-12

# The grid's width, as a share of the spread that one step adds to the privacy loss: ε then comes out less
# than 1e-4 of itself too high, whether it is .05 or 500.
_GRID_SHARE = 0.01
_GRID_POINTS = 100_000

# Less noise than this counts as none: one full-batch step at it has an ε of half a million.
LEAST_NOISE = 1e-3

# How far under its target a calibrated ε may lie, relatively. ε moves at least as fast as the noise does, so
# the noise is then within the same share of the smallest one: half of the 0.1% that is promised.
_SLACK = 5e-4


def epsilon_pld(noise_multiplier: float, events: Sequence[AnyEvent], delta: float) -> float:
    """ε at `delta` of the Gaussian steps in `events`, composed; neighbours are those of the events.

    An upper bound, less than 1e-4 of itself above the truth (3e-4 at rates near 1e-4); inf without noise (below 0.001),
    0 if nothing is ever drawn. Raises InputError for a negative noise multiplier or a δ outside [1e-12, 1). Source:
    Doroshenko et al. 2022, through dp-accounting.
    """
    steps = composable(events)
    _check(noise_multiplier, delta)
    return _epsilon(noise_multiplier, steps, delta)


def epsilon_rdp(noise_multiplier: float, events: Sequence[AnyEvent], delta: float) -> float:
    """The same ε by a Rényi accountant: fast and looser (8% to 15% at ε from 2 to 8); a cross-check.

    Opacus's, or dp-accounting's where a fixed number is drawn without replacement. Raises what `epsilon_pld` raises.
    Source: Mironov, Talwar & Zhang 2019, and Wang, Balle & Kasiviswanathan 2019, Theorem 27; converted as by Balle et
    al. 2020.
    """
    if any(clips == 2 and rate < 1 for clips, rate, _ in composable(events)):
        return _epsilon_without_replacement(noise_multiplier, events, delta)
    from opacus.accountants import RDPAccountant  # here, because importing Opacus takes seconds

    return _epsilon_opacus(RDPAccountant(), noise_multiplier, events, delta)


def epsilon_prv(noise_multiplier: float, events: Sequence[AnyEvent], delta: float) -> float:
    """The same ε by Opacus's PRV accountant, to an absolute error of 0.01; a cross-check.

    Its time and memory grow with ε: seconds at 10, most of a minute at 100, gigabytes beyond. Raises what `epsilon_pld`
    raises, and InputError where a fixed number is drawn without replacement. Source: Gopi, Lee & Wutschitz 2021.
    """
    if any(clips == 2 and rate < 1 for clips, rate, _ in composable(events)):
        raise InputError("the PRV accountant covers no draw without replacement; use the PLD or the Rényi accountant")
    from opacus.accountants import PRVAccountant  # here, because importing Opacus takes seconds

    return _epsilon_opacus(PRVAccountant(), noise_multiplier, events, delta)


def calibrate(epsilon: float, delta: float, events: Sequence[AnyEvent]) -> float:
    """The smallest noise multiplier with `epsilon_pld` at most `epsilon`; up to 0.1% larger, never smaller.

    `events` are those of one client. 0 if they draw nothing; 0.001, the least noise considered, if even that is enough.
    Raises InputError for ε outside [0.05, 500] and δ outside [1e-12, 1).
    """
    check_number("epsilon", epsilon, minimum=EPSILON_RANGE[0], maximum=EPSILON_RANGE[1])
    _check(0.0, delta)
    return _calibrate(float(epsilon), float(delta), composable(events))


def calibrate_worst(epsilon: float, delta: float, per_client: Sequence[Sequence[AnyEvent]]) -> float:
    """The noise multiplier that keeps every client at `epsilon`: the largest of `calibrate` over the clients.

    Clients of the same size are accounted once, and those whom the answer so far already covers cost one
    evaluation each. Raises what `calibrate` raises, and InputError if there is no client.
    """
    if not per_client:
        raise InputError("no client's events were given; noise is calibrated for at least one client")
    worst = 0.0
    distinct = {composable(events): events for events in per_client}
    for steps in sorted(distinct, key=lambda each: _spread(1.0, each), reverse=True):
        if worst == 0.0 or _epsilon(worst, steps, delta) > epsilon:
            worst = max(worst, calibrate(epsilon, delta, distinct[steps]))
    return worst


def loss_distribution(noise_multiplier: float, events: Sequence[AnyEvent]) -> Any | None:
    """dp-accounting's PrivacyLossDistribution of the composed `events`, or None if they guarantee nothing.

    Pessimistic (δ(ε) is never below the truth) and for both directions: one unit added, one removed. Where
    nothing is ever drawn it is the distribution that is always 0. Raises InputError for a negative noise multiplier.
    """
    steps = composable(events)
    check_number("noise_multiplier", noise_multiplier, minimum=0)
    if not steps:
        return privacy_loss_distribution.identity()
    return _compose(noise_multiplier, steps) if noise_multiplier >= LEAST_NOISE else None


def check_promise(epsilon: float, delta: float, noise_multiplier: float | None) -> None:
    """Raise InputError for numbers of a defence that promise nothing, or that no noise is calibrated to."""
    if noise_multiplier is None and epsilon != math.inf:
        check_number("defense.epsilon", epsilon, above=0, infinite=True)
        low, high = EPSILON_RANGE
        if not low <= epsilon <= high:
            raise InputError(f"defense.epsilon is {epsilon:g}; noise is calibrated from {low} to {high:g}, or inf")
    check_number("defense.delta", delta, above=0, below=1)
    if noise_multiplier is not None:
        check_number("defense.noise_multiplier", noise_multiplier, above=0)


def _check(noise_multiplier: float, delta: float) -> None:
    check_number("noise_multiplier", noise_multiplier, minimum=0)
    check_number("delta", delta, minimum=SMALLEST_DELTA, below=1)


def composable(events: Sequence[AnyEvent]) -> Steps:
    """How many `steps` at each (clips by which sums differ, rate), in order, without those that draw nothing."""
    steps: dict[tuple[int, float], int] = {}
    for event in map(event_of, events):
        if event.rate > 0 and event.steps > 0:
            key = (2 if event.relation == "replace" else 1, float(event.rate))
            steps[key] = steps.get(key, 0) + event.steps
    return tuple(sorted((clips, rate, count) for (clips, rate), count in steps.items()))


@functools.lru_cache(maxsize=1024)  # every view of a table asks for the same few
def _epsilon(noise_multiplier: float, steps: Steps, delta: float) -> float:
    if not steps:
        return 0.0
    if noise_multiplier < LEAST_NOISE:
        return math.inf
    distribution = _compose(noise_multiplier, steps)
    # At ε = 0 both directions have the same δ, so this test spares the search below a walk over all losses.
    if distribution.get_delta_for_epsilon(0.0) <= delta:
        return 0.0
    return float(distribution.get_epsilon_for_delta(delta))


def _epsilon_opacus(accountant: Any, noise_multiplier: float, events: Sequence[AnyEvent], delta: float) -> float:
    steps = composable(events)
    _check(noise_multiplier, delta)
    if not steps:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    accountant.history = [(noise_multiplier / clips, rate, count) for clips, rate, count in steps]
    with warnings.catch_warnings():
        # At a small or a large ε the best Rényi order lies at the end of Opacus's list: looser still, and valid.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return float(accountant.get_epsilon(delta))


def _compose(noise_multiplier: float, steps: Steps) -> Any:
    """The PLD of all the steps; dp-accounting is untyped, hence Any."""
    interval = _grid_width(noise_multiplier, steps)
    composed: Any = None
    for clips, rate, count in steps:
        noise, repeats = noise_multiplier / clips, count
        if rate == 1:  # such steps compose to a single one exactly; that leaves nothing to convolve
            noise, repeats = noise / math.sqrt(count), 1
        if clips == 2 and rate < 1:
            part = _without_replacement(noise, rate, interval)
        else:
            part = privacy_loss_distribution.from_gaussian_mechanism(
                noise, sampling_prob=rate, value_discretization_interval=interval
            )
        if repeats > 1:
            part = part.self_compose(repeats)
        composed = part if composed is None else composed.compose(part)
    return composed


def _without_replacement(noise: float, rate: float, interval: float) -> Any:
    """The PLD of one draw of a fixed number, `noise` over the distance of replaced neighbours; see `Event`."""

    def loss(towards: Any) -> Any:
        return privacy_loss_mechanism.GaussianPrivacyLoss(noise, sampling_prob=rate, adjacency_type=towards)

    removed = loss(privacy_loss_mechanism.AdjacencyType.REMOVE)
    added = loss(privacy_loss_mechanism.AdjacencyType.ADD)
    last = math.ceil(removed.connect_dots_bounds().epsilon_upper / interval)
    positive, negative = interval * np.arange(0, last + 1), interval * np.arange(-last, 0)
    deltas = np.concatenate([added.get_delta_for_epsilon(negative), removed.get_delta_for_epsilon(positive)])
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, -last, last, deltas)
    return privacy_loss_distribution.PrivacyLossDistribution(pmf)


def _epsilon_without_replacement(noise_multiplier: float, events: Sequence[AnyEvent], delta: float) -> float:
    _check(noise_multiplier, delta)
    if noise_multiplier == 0:
        return math.inf
    accountant = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    for clips, rate, count in composable(events):
        gaussian: Any = dp_event.GaussianDpEvent(noise_multiplier / clips)
        if rate < 1:
            gaussian = dp_event.SampledWithoutReplacementDpEvent(10**9, math.ceil(rate * 10**9), gaussian)
        accountant.compose(gaussian, count)
    return float(accountant.get_epsilon(delta))


def _spread(noise_multiplier: float, steps: Steps) -> float:
    """About the μ of the Gaussian mechanism that these steps come to; sets the grid and the first guess.

    A step's Kullback-Leibler divergence is at most q/2σ² (convexity) and at most log(1 + q²(e^(1/σ²) − 1))
    (the Rényi divergence of order 2), and a Gaussian mechanism's is μ²/2.
    """
    divergence = 0.0
    for clips, rate, count in steps:
        inverse = (clips / noise_multiplier) ** 2
        divergence += count * min(rate * inverse / 2, math.log1p(rate**2 * math.expm1(min(inverse, 700.0))))
    return math.sqrt(2 * divergence)


def _grid_width(noise_multiplier: float, steps: Steps) -> float:
    """The width of the grid of privacy losses.

    A grid of width h adds at most h²/4 a step to the variance of the loss, so h is chosen against the spread
    that a step has. At low rates a step's rare losses reach far beyond that spread; the grid then gets
    coarser, to stay small.
    """
    composed = sum(1 if rate == 1 else count for _, rate, count in steps)
    width = _GRID_SHARE * _spread(noise_multiplier, steps) / math.sqrt(composed)
    farthest = max(
        0.5 * (clips / noise_multiplier) ** 2 + 10 * clips / noise_multiplier + math.log(rate)
        for clips, rate, _ in steps
    )
    return max(width, farthest / _GRID_POINTS)


@functools.lru_cache(maxsize=1024)
def _calibrate(epsilon: float, delta: float, steps: Steps) -> float:
    if not steps:
        return 0.0
    return smallest_noise(lambda noise: _epsilon(noise, steps, delta), epsilon, _first_guess(epsilon, delta, steps))


def smallest_noise(epsilon_of: Callable[[float], float], epsilon: float, guess: float = 0.0) -> float:
    """The smallest noise multiplier, to 0.1% on the safe side, at which `epsilon_of(noise)` is at most `epsilon`.

    `epsilon_of` falls as the noise grows, at least as fast as 1/noise does. `guess` is a logarithm to start from.
    """

    def miss(log_noise: float) -> float:
        return math.log(max(epsilon_of(math.exp(log_noise)), 1e-9) / epsilon)

    # Secant steps on log ε against log σ, inside a bracket, which end on a σ that passes. They aim between the target
    # and the slack beneath it. The slope of −1.5 is only where the secants start.
    aim, least = -_SLACK / 2, math.log(LEAST_NOISE)
    noise, slope = guess, -1.5
    fails, passes = -math.inf, math.inf
    previous: tuple[float, float] | None = None
    while passes - fails > _SLACK:
        missed = miss(noise)
        if missed > 0:
            fails = noise
        else:
            passes = noise
            if missed >= -_SLACK or noise <= least:
                break
        if previous is not None and math.isfinite(missed) and noise != previous[0]:
            slope = min((missed - previous[1]) / (noise - previous[0]), -0.5)
        previous = (noise, missed) if math.isfinite(missed) else None
        step = (aim - missed) / slope if math.isfinite(missed) else 1.0
        noise = max(noise + min(max(step, -1.0), 1.0), least)
        if not fails < noise < passes:
            noise = (fails + passes) / 2
    return math.exp(passes)


def _first_guess(epsilon: float, delta: float, steps: Steps) -> float:
    """log σ at which the run's rough μ meets a Gaussian mechanism's at this ε and δ, ε ≈ μ²/2 + μ·z."""
    tail = max(float(norm.isf(delta)), 0.0)
    wanted = math.sqrt(tail**2 + 2 * epsilon) - tail
    low, high = math.log(LEAST_NOISE), math.log(1e6)
    if _spread(math.exp(low), steps) <= wanted:
        return low
    return float(brentq(lambda noise: _spread(math.exp(noise), steps) - wanted, low, high, xtol=1e-3))
