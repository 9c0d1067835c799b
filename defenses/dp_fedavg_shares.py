"""Client-level differential privacy without a trusted server: each client adds a share of the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from defenses.accounting import Unit, check_promise, smallest_noise
from defenses.base import Defense
from defenses.bounds import TradeOff
from defenses.clipping import Clipping, How, scaled
from defenses.discrete_gaussian import (
    NoisePlan,
    concentrated,
    discrete_gaussian,
    epsilon_concentrated,
    rho_for,
    round_to_grid,
)
from defenses.discrete_gaussian import (
    plan as noise_plan,
)
from defenses.dp_fedavg import check_sums
from defenses.noise import cut
from defenses.statements import Mechanism, NoGuarantee, PrivacyStatement
from fl_core.defended import Senders
from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.plan import Plan


@dataclass(frozen=True)
class Concentrated(Mechanism):
    """`rounds` rounds that are each `rho`-zCDP."""

    rho: float
    rounds: int
    replaced: bool
    accountant: str = "zCDP"

    def relation(self, unit: Unit) -> str:
        return f"replace one {unit}" if self.replaced else f"zero out one {unit}'s part"

    def sampler(self) -> str:
        return f"{self.rounds} round{'s' * (self.rounds != 1)} without amplification"

    def epsilon(self, delta: float) -> float:
        return epsilon_concentrated(self.rounds * self.rho, delta)

    def trade_off(self) -> TradeOff:
        deltas = [10.0**-exponent for exponent in range(12, 0, -1)] + [0.2, 0.4, 0.6, 0.8]
        return TradeOff(epsilons=tuple(min(self.epsilon(delta), 700.0) for delta in deltas), deltas=tuple(deltas))


@dataclass(frozen=True, kw_only=True)
class DPFedAvgShares(Defense):
    """DP-FedAvg whose clients add the noise in shares (Kairouz, Liu & Steinke 2021): only the sum carries all of it.

    A client clips its update, rounds it to a grid and adds discrete Gaussian noise of 1/√cohort of what the sum needs.
    It is made for secure aggregation, which adds whole numbers: `bits` is the width of the sum's coordinates, and sets
    the grid. Without it (`secagg` after it in a list), the server sees each update with one share of noise alone.

    Formal guarantee: the sum is (epsilon, delta)-DP for one client whose update becomes zero, and still is against a
    participant who knows its own share. Every round in which a client takes part is composed, by concentrated DP, and
    nothing is amplified. It needs everybody's share: the cohort's size is fixed, nobody drops out, and all weights are
    equal, or InputError.

    `noise_multiplier` is the standard deviation of the sum's noise over `clip_norm`; left out, `prepare` calibrates it
    to `epsilon` against a participant. An `epsilon` of inf is no defence at all.
    """

    epsilon: float = math.inf
    delta: float
    clip_norm: float
    noise_multiplier: float | None = None
    bits: int = 20
    clipping: How = "flat"
    grid: NoisePlan | None = field(default=None, repr=False)
    exact: bool = field(default=False, repr=False)

    name = "dp_fedavg_shares"
    public_sizes = True
    public_shares = True
    protects = "client"
    sealed = True

    def __post_init__(self) -> None:
        check_promise(self.epsilon, self.delta, self.noise_multiplier)
        check_choice("defense.clipping", self.clipping, ("flat", "per_layer"))
        check_number("defense.bits", self.bits, minimum=2, maximum=62, integer=True)
        _ = self.clip  # it checks its own numbers

    @property
    def clip(self) -> Clipping:
        """How long a client's update may be, before it is rounded."""
        return Clipping(norm=self.clip_norm, how=self.clipping)

    def check(self, plan: Plan) -> None:
        check_sums(self.name, plan)
        if not plan.exact or not plan.even or plan.cohort < 2:
            raise InputError(
                f"defense={self.name} needs every client's share of the noise: a cohort of a fixed size of at least 2 "
                "(participation=everyone, fixed or uniform), fleet=ideal and algorithm.weighting=uniform"
            )
        if self.grid is not None and (self.grid.clients, self.grid.dimension) != (plan.cohort, plan.message):
            raise InputError(f"defense={self.name} was prepared for another cohort or model; prepare it for this plan")

    def prepare(self, plan: Plan) -> Defense:
        if self.noise_multiplier is None and math.isinf(self.epsilon):
            return Defense()
        replace(self, grid=None).check(plan)
        sigma = self.noise_multiplier
        if sigma is None:
            # A Gaussian's zCDP is where the search starts; the grid and the missing share ask for a little more.
            guess = math.sqrt(max(plan.turns, 1) / (2 * rho_for(self.epsilon, self.delta)))

            def epsilon_of(noise: float) -> float:
                mechanism = self._with(noise, plan)._mechanism("participant", "client", plan)
                return mechanism.epsilon(self.delta)

            sigma = smallest_noise(epsilon_of, self.epsilon, math.log(guess))
        return self._with(sigma, plan)

    def under_masks(self) -> DPFedAvgShares:
        """Sends its whole numbers in doubles, which hold them all: floats do so up to 2^23."""
        return replace(self, exact=True)

    def _with(self, noise_multiplier: float, plan: Plan) -> DPFedAvgShares:
        grid = noise_plan(
            noise_multiplier=noise_multiplier,
            clip_norm=self.clip_norm,
            clients=int(plan.cohort),
            dimension=plan.message,
            bits=self.bits,
        )
        return replace(self, noise_multiplier=noise_multiplier, grid=grid)

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        grid = self._grid()
        factors, _ = self.clip.factors(updates, 1)
        clipped = scaled(updates, factors)
        flat = torch.cat([value.flatten(1) if value.dim() > 1 else value[:, None] for value in clipped.values()], 1)
        whole = round_to_grid(flat, grid.granularity, grid.clip_norm, grid.beta, list(senders.generators))
        for row, draw in zip(whole, senders.generators, strict=True):
            row += discrete_gaussian(row.shape, grid.sigma, draw, row.device)
        values = whole.double() * grid.granularity
        return cut(values if self.exact else values.to(flat), clipped)

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        return PrivacyStatement.of(self._mechanism(view, unit, plan), delta=self.delta, unit=unit, view=view)

    def _mechanism(self, view: str, unit: Unit, plan: Plan) -> Concentrated:
        grid = self._grid()
        shares = {"server": 1, "malicious_server": 1, "participant": grid.clients - 1}.get(view, grid.clients)
        clips = 1 if unit == "client" else 2
        rho = concentrated(clips * grid.sensitivity, grid.sigma, shares, grid.dimension)
        return Concentrated(rho, plan.turns, replaced=unit == "example")

    def _grid(self) -> NoisePlan:
        if self.grid is None:
            raise RuntimeError("prepare() has not planned the noise yet")
        return self.grid
