"""From what was sampled and how much noise was added to ε, and from ε back to the noise.

The accountant that counts here is the privacy loss distribution (PLD) of dp-accounting, read for adding or
removing one unit: Koskela, Jälkö & Honkela 2020 for the idea, Doroshenko, Ghazi, Kamath, Kumar & Manurangsi
2022 ("Connect the Dots") for the discretisation, which rounds so that every ε and δ is an upper bound at any
width of its grid. Opacus's RDP and PRV accountants stand beside it as cross-checks.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dp_accounting.pld import privacy_loss_distribution
from scipy.optimize import brentq
from scipy.stats import norm

from fl_core.errors import InputError, check_choice, check_number
from fl_core.sampling import SamplingEvent

Unit = Literal["example", "client"]

# Each (rate, steps) once, in the order of the rates: what the accountants compose.
Steps = tuple[tuple[float, int], ...]

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


def epsilon_pld(noise_multiplier: float, events: Sequence[SamplingEvent], delta: float) -> float:
    """ε at `delta` of the Poisson-sampled Gaussian steps in `events`, composed; one unit added or removed.

    An upper bound, less than 1e-4 of itself above the truth (3e-4 at rates near 1e-4); inf without noise
    (below 0.001), 0 if nothing is ever drawn. Raises InputError for shuffled sampling, a negative noise
    multiplier or a δ outside [1e-12, 1). Source: Doroshenko et al. 2022, through dp-accounting.
    """
    steps = composable(events)
    _check(noise_multiplier, delta)
    return _epsilon(noise_multiplier, steps, delta)


def epsilon_rdp(noise_multiplier: float, events: Sequence[SamplingEvent], delta: float) -> float:
    """The same ε by Opacus's Rényi accountant: fast and looser (8% to 15% at ε from 2 to 8); a cross-check.

    Raises what `epsilon_pld` raises. Source: Mironov, Talwar & Zhang 2019; converted as by Balle et al. 2020.
    """
    from opacus.accountants import RDPAccountant  # here, because importing Opacus takes seconds

    return _epsilon_opacus(RDPAccountant(), noise_multiplier, events, delta)


def epsilon_prv(noise_multiplier: float, events: Sequence[SamplingEvent], delta: float) -> float:
    """The same ε by Opacus's PRV accountant, to an absolute error of 0.01; a cross-check.

    Its time and memory grow with ε: seconds at 10, most of a minute at 100, gigabytes beyond. Raises what
    `epsilon_pld` raises. Source: Gopi, Lee & Wutschitz 2021.
    """
    from opacus.accountants import PRVAccountant  # here, because importing Opacus takes seconds

    return _epsilon_opacus(PRVAccountant(), noise_multiplier, events, delta)


def calibrate(epsilon: float, delta: float, events: Sequence[SamplingEvent]) -> float:
    """The smallest noise multiplier with `epsilon_pld` at most `epsilon`; up to 0.1% larger, never smaller.

    `events` are those of one client. 0 if they draw nothing; 0.001, the least noise considered, if even that
    is enough. Raises InputError for ε outside [0.05, 500], δ outside [1e-12, 1) and shuffled sampling.
    """
    check_number("epsilon", epsilon, minimum=EPSILON_RANGE[0], maximum=EPSILON_RANGE[1])
    _check(0.0, delta)
    return _calibrate(float(epsilon), float(delta), composable(events))


def calibrate_worst(epsilon: float, delta: float, per_client: Sequence[Sequence[SamplingEvent]]) -> float:
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


def loss_distribution(noise_multiplier: float, events: Sequence[SamplingEvent]) -> Any | None:
    """dp-accounting's PrivacyLossDistribution of the composed `events`, or None if they guarantee nothing.

    Pessimistic (δ(ε) is never below the truth) and for both directions: one unit added, one removed. Where
    nothing is ever drawn it is the distribution that is always 0. Raises InputError for shuffled sampling and
    a negative noise multiplier.
    """
    steps = composable(events)
    check_number("noise_multiplier", noise_multiplier, minimum=0)
    if not steps:
        return privacy_loss_distribution.identity()
    return _compose(noise_multiplier, steps) if noise_multiplier >= LEAST_NOISE else None


def _check(noise_multiplier: float, delta: float) -> None:
    check_number("noise_multiplier", noise_multiplier, minimum=0)
    check_number("delta", delta, minimum=SMALLEST_DELTA, below=1)


def composable(events: Sequence[SamplingEvent]) -> Steps:
    """How many steps `events` have at each rate, rates ascending and without those that draw nothing.

    Raises InputError for shuffled sampling, a rate outside [0, 1] and a negative number of steps.
    """
    steps: dict[float, int] = {}
    for event in events:
        if event.sampler != "poisson":
            raise InputError(
                f"the sampler is {event.sampler!r}, which no accountant here covers: no amplification "
                "analysis for shuffling is implemented; use Poisson sampling, or state no ε"
            )
        check_number("the sampling rate", event.rate, minimum=0, maximum=1)
        check_number("the number of steps", event.steps, minimum=0, integer=True)
        if event.rate > 0 and event.steps > 0:
            steps[float(event.rate)] = steps.get(float(event.rate), 0) + event.steps
    return tuple(sorted(steps.items()))


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


def _epsilon_opacus(accountant: Any, noise_multiplier: float, events: Sequence[SamplingEvent], delta: float) -> float:
    steps = composable(events)
    _check(noise_multiplier, delta)
    if not steps:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    accountant.history = [(noise_multiplier, rate, count) for rate, count in steps]
    with warnings.catch_warnings():
        # At a small or a large ε the best Rényi order lies at the end of Opacus's list: looser still, and valid.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return float(accountant.get_epsilon(delta))


def _compose(noise_multiplier: float, steps: Steps) -> Any:
    """The PLD of all the steps; dp-accounting is untyped, hence Any."""
    interval = _grid_width(noise_multiplier, steps)
    composed: Any = None
    for rate, count in steps:
        # Full-batch Gaussian steps compose to a single one exactly; that leaves nothing to convolve.
        noise, repeats = (noise_multiplier / math.sqrt(count), 1) if rate == 1 else (noise_multiplier, count)
        part = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=interval
        )
        if repeats > 1:
            part = part.self_compose(repeats)
        composed = part if composed is None else composed.compose(part)
    return composed


def _spread(noise_multiplier: float, steps: Steps) -> float:
    """About the μ of the Gaussian mechanism that these steps come to; sets the grid and the first guess.

    A step's Kullback-Leibler divergence is at most q/2σ² (convexity) and at most log(1 + q²(e^(1/σ²) − 1))
    (the Rényi divergence of order 2), and a Gaussian mechanism's is μ²/2.
    """
    inverse = noise_multiplier**-2
    divergence = sum(
        count * min(rate * inverse / 2, math.log1p(rate**2 * math.expm1(min(inverse, 700.0)))) for rate, count in steps
    )
    return math.sqrt(2 * divergence)


def _grid_width(noise_multiplier: float, steps: Steps) -> float:
    """The width of the grid of privacy losses.

    A grid of width h adds at most h²/4 a step to the variance of the loss, so h is chosen against the spread
    that a step has. At low rates a step's rare losses reach far beyond that spread; the grid then gets
    coarser, to stay small.
    """
    composed = sum(1 if rate == 1 else count for rate, count in steps)
    width = _GRID_SHARE * _spread(noise_multiplier, steps) / math.sqrt(composed)
    farthest = 0.5 / noise_multiplier**2 + 10 / noise_multiplier + math.log(steps[-1][0])
    return max(width, farthest / _GRID_POINTS)


@functools.lru_cache(maxsize=1024)
def _calibrate(epsilon: float, delta: float, steps: Steps) -> float:
    """Secant steps on log ε against log σ, kept inside a bracket; ends on a σ that passes."""
    if not steps:
        return 0.0

    def miss(log_noise: float) -> float:
        reached = _epsilon(math.exp(log_noise), steps, delta)
        return math.log(max(reached, 1e-9) / epsilon)

    # Aim between the target and the slack beneath it. The slope of −1.5 is only where the secants start.
    aim, least = -_SLACK / 2, math.log(LEAST_NOISE)
    noise, slope = _first_guess(epsilon, delta, steps), -1.5
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


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """What a run guarantees to one unit against one view; words are free text, fit to print.

    `relation` says what neighbours are ("add or remove one example"), `accountant` how ε was computed
    ("PLD"), `sampler` what was composed ("Poisson, rate 0.11, 260 steps"). Raises InputError for numbers that
    are no guarantee.
    """

    epsilon: float
    delta: float
    unit: Unit
    relation: str
    accountant: str
    sampler: str
    view: str

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, minimum=0)
        check_number("delta", self.delta, minimum=0, below=1)
        check_choice("unit", self.unit, ("client", "example"))

    def in_words(self) -> str:
        """One sentence for a report."""
        return (
            f"Against the view {self.view}, one {self.unit} is protected with ε = {self.epsilon:.4g} at "
            f"δ = {self.delta:.3g} ({self.relation}), as accounted by {self.accountant} for {self.sampler}."
        )


@dataclass(frozen=True)
class NoGuarantee:
    """That a run guarantees nothing to this unit against this view, and why."""

    reason: str
    unit: Unit
    view: str

    @property
    def epsilon(self) -> float:
        """inf, so that statements with and without a guarantee sort and plot together."""
        return math.inf

    def in_words(self) -> str:
        """One sentence for a report."""
        return f"Against the view {self.view}, one {self.unit} has no guarantee (ε = ∞): {self.reason}."
