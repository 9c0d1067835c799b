"""Client-level differential privacy without a word about sampling: noise that is correlated over the rounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from defenses.accounting import Event, Unit, calibrate, check_promise
from defenses.base import Defense
from defenses.clip import clipped
from defenses.clipping import Clipping, How
from defenses.dp_fedavg import check_sums
from defenses.factorisation import BandedSquareRoot, Factorisation
from defenses.factorisation import Tree as BinaryTree
from defenses.noise import standard_normal
from defenses.statements import Gaussians, NoGuarantee, PrivacyStatement
from fl_core.defended import Senders, Summed
from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.plan import Pattern, Plan

_PAST = "past noise/"


@dataclass(frozen=True)
class Correlated(Gaussians):
    """All rounds together as one Gaussian step."""

    words: str = ""

    def sampler(self) -> str:
        return self.words


@dataclass(frozen=True, kw_only=True)
class DPFTRL(Defense):
    """DP-FTRL (Kairouz et al. 2021; Denisov et al. 2022): the server adds noise to the sum of all rounds so far.

    What a round adds to that sum is a round's sum with noise that takes back some of the earlier rounds'.
    `factorisation` says which: `tree` (binary tree aggregation) or `banded` (the banded square root of Kalinin &
    Lampert 2024). `band` is the banded one's width; left out, `prepare` takes the one that leaves the least error for
    this plan. Where clients take part in every round independent noise, which is band 1, is best of them.

    Formal guarantee: what a participant sees, or anyone of the models, is (epsilon, delta)-DP for one client whose
    updates become zero in all the rounds in which it takes part, whoever else does and however they were chosen, as
    long as no data were: the whole run is one Gaussian mechanism. A server that sums the updates itself is promised
    nothing.

    `noise_multiplier` is the noise's standard deviation over the sensitivity of the whole run; left out, `prepare`
    calibrates it to `epsilon`. An `epsilon` of inf is no defence at all.
    """

    epsilon: float = math.inf
    delta: float
    clip_norm: float
    noise_multiplier: float | None = None
    factorisation: Literal["tree", "banded"] = "banded"
    band: int | None = None
    weight_cap: float | None = None
    clipping: How = "flat"
    rounds: int | None = None
    sensitivity: float | None = None

    name = "dp_ftrl"
    public_sizes = True
    public_shares = True
    protects = "client"

    def __post_init__(self) -> None:
        check_promise(self.epsilon, self.delta, self.noise_multiplier)
        check_choice("defense.factorisation", self.factorisation, ("tree", "banded"))
        check_choice("defense.clipping", self.clipping, ("flat", "per_layer"))
        if self.band is not None:
            check_number("defense.band", self.band, minimum=1, integer=True)
            if self.factorisation == "tree":
                raise InputError("defense.band is set, but a tree has none; set factorisation=banded, or leave it out")
        if self.weight_cap is not None:
            check_number("defense.weight_cap", self.weight_cap, above=0)
        _ = self.clip  # it checks its own numbers

    @property
    def clip(self) -> Clipping:
        """How long a client's update may be."""
        return Clipping(norm=self.clip_norm, how=self.clipping)

    def check(self, plan: Plan) -> None:
        check_sums(self.name, plan)
        if self.band is not None and self.band > plan.rounds:
            raise InputError(f"defense.band is {self.band}, but there are only {plan.rounds} rounds; lower it")
        if self.sensitivity is not None and self._noise().worst(list(plan.patterns)) > self.sensitivity * (1 + 1e-9):
            raise InputError(
                f"defense={self.name} was prepared for clients that come less often; prepare it for this plan"
            )

    def prepare(self, plan: Plan) -> Defense:
        if self.noise_multiplier is None and math.isinf(self.epsilon):
            return Defense()
        replace(self, sensitivity=None).check(plan)
        sigma = self.noise_multiplier
        if sigma is None:
            sigma = calibrate(self.epsilon, self.delta, [Event(relation="zero out", rate=1.0, steps=1)])
        band = self.band
        if self.factorisation == "banded" and band is None:
            band = least_error(plan.rounds, plan.patterns)
        ready = replace(self, noise_multiplier=sigma, band=band, rounds=plan.rounds)
        return replace(ready, sensitivity=ready._noise().worst(list(plan.patterns)))

    def _noise(self) -> Factorisation:
        if self.rounds is None:
            raise RuntimeError("prepare() has not planned the noise yet")
        if self.factorisation == "tree":
            return BinaryTree(rounds=self.rounds)
        return BandedSquareRoot(rounds=self.rounds, band=self.band or 1)

    def server_state(self, message: Tree) -> Tree:
        memory = self._noise().memory
        return {_PAST + name: value.new_zeros(memory, *value.shape) for name, value in message.items() if memory}

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        return clipped(self.clip, updates, senders)

    def on_sum(self, total: Tree, summed: Summed) -> Tree:
        if self.sensitivity is None or self.noise_multiplier is None:
            raise RuntimeError("prepare() has not planned the noise yet")
        noise, scale = self._noise(), self.noise_multiplier * self.sensitivity * self.clip_norm * summed.largest_share
        added = {name: torch.zeros_like(value) for name, value in total.items()}
        for key, coefficient in noise.fresh(summed.round):
            for name, value in standard_normal(total, summed.draws(f"correlated {key}")).items():
                added[name].add_(value, alpha=coefficient * scale)
        for name, value in added.items():
            past = summed.kept.get(_PAST + name)
            if past is not None:
                for back, coefficient in noise.past(summed.round):
                    value.add_(past[:, back - 1], alpha=coefficient)
                summed.kept[_PAST + name] = torch.cat([value[:, None], past[:, :-1]], 1)
        return {name: value + added[name] for name, value in total.items()}

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        if view not in ("released_model", "participant"):
            return NoGuarantee(reason="the server adds the noise itself, to what it has seen", unit=unit, view=view)
        if self.noise_multiplier is None or self.sensitivity is None:
            raise RuntimeError("prepare() has not calibrated the noise yet")
        self.check(plan)
        event = Event(relation="zero out" if unit == "client" else "replace", rate=1.0, steps=1)
        how = "a tree's noise" if self.factorisation == "tree" else f"noise correlated over {self.band} rounds"
        if self.band == 1:
            how = "independent noise"
        words = f"{how} in {plan.rounds} rounds, at most {plan.turns} of them a client's, without amplification"
        return PrivacyStatement.of(
            Correlated(self.noise_multiplier, event, words=words), delta=self.delta, unit=unit, view=view
        )


def least_error(rounds: int, patterns: Sequence[Pattern] | frozenset[Pattern]) -> int:
    """The band with the least root-mean-square error of the prefixes, at equal privacy, among 1, 2, 4, ... and the
    smallest gap between a client's rounds."""
    gaps = [later - earlier for pattern in patterns for earlier, later in itertools.pairwise(pattern)]
    bands = {2**power for power in range(rounds.bit_length())} | {min(gaps, default=rounds), rounds}
    return min(
        sorted(band for band in bands if 1 <= band <= rounds),
        key=lambda band: BandedSquareRoot(rounds=rounds, band=band).rms_error(list(patterns)),
    )
