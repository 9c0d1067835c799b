"""Example-level differential privacy in the clients' own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from defenses.accounting import Unit, calibrate_worst, check_promise
from defenses.base import Defense
from defenses.clipping import Clipping, How, check_quantile_noise, quantile_noise
from defenses.rules import CLIP, ClipAndNoise
from defenses.statements import Gaussians, NoGuarantee, PrivacyStatement
from fl_core.errors import check_number
from fl_core.optimizers import Tree
from fl_core.plan import Plan


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """DP-SGD (Abadi et al. 2016, Algorithm 1) in every local step: clip each example's gradient, sum, add noise.

    Formal guarantee: everything that a client sends is (epsilon, delta)-DP for one of its examples, by composition of
    Gaussian mechanisms over all steps of all rounds in which the client takes part. It holds against whoever sees the
    updates, since the noise is in them before they leave the client. With Poisson batches neighbours add or remove one
    example, and the batch denominator and the sampling rate come from public sizes. With shuffled batches neighbours
    replace one example by another, nothing is amplified, and the clients' sizes count as known.

    `noise_multiplier` is the noise's standard deviation over `clip_norm`; left out, `prepare` calibrates it to
    `epsilon`. An `epsilon` of inf means no defence at all: neither clipping nor noise. With `clipping=adaptive` each
    client follows the `quantile` of its gradients' lengths from `clip_norm` on, by a noisy count with deviation
    `quantile_noise`, and noise is added to the gradients so that both together cost what is accounted.
    """

    epsilon: float = math.inf
    delta: float
    clip_norm: float
    noise_multiplier: float | None = None
    clipping: How = "flat"
    quantile: float = 0.5
    quantile_rate: float = 0.2
    quantile_noise: float | None = None

    name = "dp_sgd"
    public_sizes = True

    def __post_init__(self) -> None:
        check_promise(self.epsilon, self.delta, self.noise_multiplier)
        _ = self.clip  # it checks its own numbers
        if self.quantile_noise is not None:
            check_number("defense.quantile_noise", self.quantile_noise, above=0)

    @property
    def reduces_examples(self) -> bool:  # type: ignore[override]
        """Whether it clips at all: an ε of inf without a noise multiplier is no defence."""
        return self.private

    @property
    def clip(self) -> Clipping:
        """How long an example's gradient may be."""
        return Clipping(norm=self.clip_norm, how=self.clipping, quantile=self.quantile, rate=self.quantile_rate)

    def prepare(self, plan: Plan) -> Defense:
        if self.noise_multiplier is not None:
            check_quantile_noise(self.clip, self.noise_multiplier, self.quantile_noise)
            return self
        if math.isinf(self.epsilon):
            return Defense()
        sigma = calibrate_worst(self.epsilon, self.delta, [[event] for event in dict.fromkeys(plan.sampling)])
        check_quantile_noise(self.clip, sigma, self.quantile_noise)
        return replace(self, noise_multiplier=sigma)

    def client_state(self) -> Tree:
        return {CLIP: torch.tensor(float(self.clip_norm))} if self.clip.adaptive else {}

    def example_rule(self, expected_batch: float) -> ClipAndNoise:
        sigma = self._sigma()
        if not self.clip.adaptive:
            return ClipAndNoise(self.clip, sigma, expected_batch)
        noise, count = quantile_noise(sigma, expected_batch, self.quantile_noise)
        return ClipAndNoise(self.clip, noise, expected_batch, count)

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        if unit != "example":
            return NoGuarantee(
                reason="the noise hides one example, not everything that a client holds", unit=unit, view=view
            )
        sigma = self._sigma()
        each = [Gaussians(sigma, event) for event in dict.fromkeys(plan.sampling)]
        worst = max(each, key=lambda one: one.epsilon(self.delta))
        return PrivacyStatement.of(worst, delta=self.delta, unit=unit, view=view)

    def _sigma(self) -> float:
        if self.noise_multiplier is None:
            raise RuntimeError("prepare() has not calibrated the noise yet")
        return self.noise_multiplier
