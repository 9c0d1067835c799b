"""Example-level differential privacy in the clients' own steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defenses.accounting import EPSILON_RANGE, NoGuarantee, PrivacyStatement, Unit, calibrate_worst, epsilon_pld
from defenses.base import Defense
from defenses.clipping import clip_factors, norms
from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.sampling import SamplingEvent


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """DP-SGD (Abadi et al. 2016, Algorithm 1) in every local step: clip each example's gradient, sum, add noise.

    Formal guarantee: with Poisson batches, everything that a client sends is (epsilon, delta)-DP for adding or
    removing one of its examples, by composition of subsampled Gaussian mechanisms over all steps of all rounds. It
    holds against whoever sees the updates, since the noise is in them before they leave the client. The batch
    denominator and the sampling rate come from public sizes.

    `noise_multiplier` is the noise's standard deviation over `clip_norm`; left out, `prepare` calibrates it to
    `epsilon`. An `epsilon` of inf means no defence at all: neither clipping nor noise.
    """

    epsilon: float
    delta: float
    clip_norm: float
    noise_multiplier: float | None = None

    name = "dp_sgd"
    needs_poisson = True
    public_sizes = True

    def __post_init__(self) -> None:
        if self.noise_multiplier is None and self.epsilon != math.inf:
            check_number("defense.epsilon", self.epsilon, above=0, infinite=True)
            low, high = EPSILON_RANGE
            if not low <= self.epsilon <= high:
                raise InputError(
                    f"defense.epsilon is {self.epsilon:g}; noise is calibrated from {low} to {high:g}, or inf"
                )
        check_number("defense.delta", self.delta, above=0, below=1)
        check_number("defense.clip_norm", self.clip_norm, above=0)
        if self.noise_multiplier is not None:
            check_number("defense.noise_multiplier", self.noise_multiplier, above=0)

    def prepare(self, events: Sequence[SamplingEvent]) -> Defense:
        if self.noise_multiplier is not None:
            return self
        if math.isinf(self.epsilon):
            return Defense()
        sigma = calibrate_worst(self.epsilon, self.delta, [[event] for event in dict.fromkeys(events)])
        return replace(self, noise_multiplier=sigma)

    def example_rule(self, expected_batch: float) -> ClipAndNoise:
        if self.noise_multiplier is None:
            raise RuntimeError("prepare() has not calibrated the noise yet")
        return ClipAndNoise(self.clip_norm, self.noise_multiplier, expected_batch)

    def guarantee(self, view: str, unit: Unit, events: Sequence[SamplingEvent]) -> PrivacyStatement | NoGuarantee:
        if unit != "example":
            return NoGuarantee(
                reason="the noise hides one example, not everything that a client holds", unit=unit, view=view
            )
        if self.noise_multiplier is None:
            raise RuntimeError("prepare() has not calibrated the noise yet")
        worst = max(dict.fromkeys(events), key=lambda event: (event.steps * event.rate**2, event.rate))
        return PrivacyStatement(
            epsilon=max(epsilon_pld(self.noise_multiplier, [event], self.delta) for event in dict.fromkeys(events)),
            delta=self.delta,
            unit=unit,
            relation="add or remove one example",
            accountant="PLD",
            sampler=f"Poisson, rate {worst.rate:.4g}, {worst.steps} steps",
            view=view,
        )


@dataclass(frozen=True)
class ClipAndNoise:
    """The rule inside a step: clip each example's gradient, sum, add Gaussian noise, divide by a public number."""

    clip_norm: float
    noise_multiplier: float
    expected_batch: float

    def on_examples(self, gradients: Tree, mask: Tensor, generators: Sequence[torch.Generator]) -> Tree:
        """The step's gradient [lanes, ...] from per-example ones [lanes, batch, ...]; padded rows count for nothing.

        Each lane draws its noise for all its parameters at once, in the order of the tree, from its own generator.
        """
        factors = clip_factors(norms(gradients, 2), self.clip_norm) * mask
        noise = self._noise(gradients, generators)
        return {
            name: (torch.einsum("lb,lb...->l...", factors, value) + noise[name]) / self.expected_batch
            for name, value in gradients.items()
        }

    def _noise(self, gradients: Tree, generators: Sequence[torch.Generator]) -> Tree:
        shapes = {name: value.shape[2:] for name, value in gradients.items()}
        first = next(iter(gradients.values()))
        flat = first.new_empty(len(generators), sum(shape.numel() for shape in shapes.values()))
        for row, draw in zip(flat, generators, strict=True):
            torch.randn(row.shape, generator=draw, out=row)
        parts = (flat * (self.noise_multiplier * self.clip_norm)).split([s.numel() for s in shapes.values()], 1)
        return {
            name: part.unflatten(1, shape) if shape else part[:, 0]
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
