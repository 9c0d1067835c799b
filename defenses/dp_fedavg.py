"""Client-level differential privacy: no one can tell whether a client took part, whatever it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from defenses.accounting import Event, Unit, calibrate, check_promise
from defenses.base import Defense
from defenses.clip import SHORT, UPDATE_CLIP, check_adaptive, clipped
from defenses.clipping import Clipping, How, check_quantile_noise, quantile_noise
from defenses.noise import standard_normal
from defenses.statements import Gaussians, Mechanism, NoGuarantee, PrivacyStatement
from fl_core.defended import Senders, Summed
from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.plan import Plan

NoiseBy = Literal["server", "clients"]


@dataclass(frozen=True, kw_only=True)
class DPFedAvg(Defense):
    """DP-FedAvg (McMahan et al. 2018, Algorithm 1): clip each client's update, sum with public weights, add noise.

    `noise_by` is whom the clients trust:

    - `server`: it sees their updates, and adds the noise before it uses the sum. Protects against whoever sees models.
    - `clients`: each adds all the noise to its own update. Protects against the server too, at √cohort times the noise.

    For noise in shares, which only the sum carries, see `dp_fedavg_shares`.

    Formal guarantee: what the views named above see is (epsilon, delta)-DP for one client. Neighbours follow from the
    participation: with Poisson clients one is added or removed, with cohorts drawn without replacement one is replaced
    by another, and both amplify for those who never learn who took part (see `drawn`). With all others one client's
    updates become zero, and nothing is amplified: the rounds it really takes part in are composed. The sum's
    denominator is the expected cohort's public weight, whoever comes. A round without anybody releases noise alone. As
    an example is a part of what its client holds, it is protected too, with neighbours that replace all of that.

    `noise_multiplier` is the noise's standard deviation over the most that one client adds to what the noise is added
    to; left out, `prepare` calibrates it to `epsilon` against the view above that sees the most. An `epsilon` of inf is
    no defence at all. `weight_cap` is the number of examples from which on a client has full weight
    (`algorithm.weighting=by_examples`).
    """

    epsilon: float = math.inf
    delta: float
    clip_norm: float
    noise_by: NoiseBy = "server"
    noise_multiplier: float | None = None
    weight_cap: float | None = None
    clipping: How = "flat"
    quantile: float = 0.5
    quantile_rate: float = 0.2
    quantile_noise: float | None = None

    name = "dp_fedavg"
    public_sizes = True
    public_shares = True
    protects = "client"

    def __post_init__(self) -> None:
        check_promise(self.epsilon, self.delta, self.noise_multiplier)
        check_choice("defense.noise_by", self.noise_by, ("server", "clients"))
        _ = self.clip  # it checks its own numbers
        for name, value in (("weight_cap", self.weight_cap), ("quantile_noise", self.quantile_noise)):
            if value is not None:
                check_number(f"defense.{name}", value, above=0)
        if self.noise_by == "clients" and self.clip.adaptive:
            raise InputError(
                "defense.clipping is adaptive, which needs a server that is trusted with the lengths; set "
                "noise_by=server, or clipping=flat or per_layer"
            )

    @property
    def clip(self) -> Clipping:
        """How long a client's update may be."""
        return Clipping(norm=self.clip_norm, how=self.clipping, quantile=self.quantile, rate=self.quantile_rate)

    @property
    def sealed(self) -> bool:  # type: ignore[override]
        """Whether the noise is in the updates, so that they must not change any more."""
        return self.noise_by == "clients"

    def check(self, plan: Plan) -> None:
        check_sums(self.name, plan)
        if self.clip.adaptive:
            check_adaptive(plan)
        if self.noise_multiplier is not None:
            check_quantile_noise(self.clip, self.noise_multiplier, self.quantile_noise)

    def prepare(self, plan: Plan) -> Defense:
        if self.noise_multiplier is None and math.isinf(self.epsilon):
            return Defense()
        ready = self
        if self.noise_multiplier is None:
            # Against the view that sees the most of those that are promised something.
            trusted = self.noise_by == "server"
            event = drawn(plan, "client", "participant") if trusted else in_the_open(plan, "client")
            ready = replace(self, noise_multiplier=calibrate(self.epsilon, self.delta, [event]))
        ready.check(plan)
        return ready

    def server_state(self, message: Tree) -> Tree:
        return {UPDATE_CLIP: torch.tensor(float(self.clip_norm))} if self.clip.adaptive else {}

    def broadcast(self, kept: Tree) -> Tree:
        return {name: value for name, value in kept.items() if name == UPDATE_CLIP}

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        found = clipped(self.clip, updates, senders)
        if self.noise_by == "server":
            return found
        noise, scale = standard_normal(found, senders.generators), self._sigma() * self.clip_norm
        return {name: value + scale * noise[name] for name, value in found.items()}

    def on_sum(self, total: Tree, summed: Summed) -> Tree:
        if self.noise_by != "server":
            return total
        draws, sigma = standard_normal(total, summed.draws(f"of round {summed.round}")), self._sigma()
        clip: float | torch.Tensor = self.clip_norm
        if self.clip.adaptive:
            total = dict(total)
            clip = summed.kept[UPDATE_CLIP]
            sigma, count = quantile_noise(sigma, 1 / summed.largest_share, self.quantile_noise)
            share = total.pop(SHORT) + 0.5 + count * summed.largest_share * draws[SHORT]
            summed.kept[UPDATE_CLIP] = self.clip.follow(clip, share)
        scale = torch.as_tensor(sigma * summed.largest_share * clip)
        return {
            name: value + scale.to(value).view(-1, *[1] * (value.dim() - 1)) * draws[name]
            for name, value in total.items()
        }

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        found = self._mechanism(view, unit, plan)
        if isinstance(found, NoGuarantee):
            return found
        return PrivacyStatement.of(found, delta=self.delta, unit=unit, view=view)

    def _mechanism(self, view: str, unit: Unit, plan: Plan) -> Mechanism | NoGuarantee:
        sigma, models = self._sigma(), view in ("released_model", "participant")
        if self.noise_by == "server":
            if models:
                return Gaussians(sigma, drawn(plan, unit, view))
            return NoGuarantee(reason="the server adds the noise itself, to what it has seen", unit=unit, view=view)
        # Each update is noisy by itself. A sum has the noise of all, of which a participant knows its own.
        others = plan.cohort - (view == "participant")
        if view in ("server", "malicious_server") or not (plan.exact and plan.even) or others < 1:
            return Gaussians(sigma, in_the_open(plan, unit))
        return Gaussians(sigma * math.sqrt(others), drawn(plan, unit, view) if models else in_the_open(plan, unit))

    def _sigma(self) -> float:
        if self.noise_multiplier is None:
            raise RuntimeError("prepare() has not calibrated the noise yet")
        return self.noise_multiplier


def drawn(plan: Plan, unit: Unit, view: str) -> Event:
    """What may be composed for a client, or for an example of it, against those who never learn who took part.

    A participant knows of itself. Coins tell it nothing of others; but of a cohort without replacement that it is not
    in, the others take every seat, so that each of them is drawn with a chance of cohort / (clients − 1).

    A draw without replacement seats somebody else in the place of whom it leaves out. Where clients keep something from
    turn to turn (control variates, local layers), that other one's next updates depend on it, in rounds that are
    accounted as if nothing but one client's part in each could differ; so nothing is amplified then. Under coins the
    others' turns are the same on both sides.
    """
    event = plan.participation
    if event.kind == "poisson" and plan.ideal:
        relation: Literal["add or remove", "replace"] = "add or remove" if unit == "client" else "replace"
        return Event(relation=relation, rate=event.rate, steps=event.rounds)
    if event.kind in ("uniform", "cyclic") and event.rate < 1 and plan.exact and plan.stateless:
        drawn_from = round(plan.cohort / event.rate) - (view == "participant")
        return Event(relation="replace", rate=min(1.0, plan.cohort / drawn_from), steps=event.rounds)
    return in_the_open(plan, unit)


def in_the_open(plan: Plan, unit: Unit) -> Event:
    """The same against those who know the cohorts: every round in which the client takes part, the most of any."""
    return Event(relation="zero out" if unit == "client" else "replace", rate=1.0, steps=plan.turns)


def check_sums(name: str, plan: Plan) -> None:
    """Raise InputError where one client's part in what the server uses is not bounded by its clipped update."""
    if not plan.streams:
        raise InputError(
            f"defense={name} bounds a client's part in a weighted sum, and this aggregator is no sum; "
            "set aggregator=mean"
        )
    if not plan.synchronous:
        raise InputError(
            f"defense={name} accounts for one update a client and round, and an asynchronous fleet mixes rounds; "
            "choose a synchronous fleet"
        )
