"""Fixed point: real vectors as integers modulo 2^bits, in which a cohort's sum cannot overflow.

A client multiplies its update by its weight over the largest weight W that any client may have, clips every coordinate
to [−C, C], and rounds it at random to a multiple of the grid step γ = C / ⌊(2^(bits−1) − 1)/n⌋. So no coordinate is
further than (2^(bits−1) − 1)/n steps from 0, n of them add up to a signed integer of `bits` bits, and a sum modulo
2^bits is the sum. The weight itself goes beside it, as a whole number.

Where noise was added on a grid of its own (`discrete_gaussian.NoisePlan`), the integers are those of that grid: nothing
is rounded again, and the sum is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from defenses.discrete_gaussian import LARGEST_BITS, NoisePlan
from fl_core.errors import InputError, check_number

FEWEST_BITS = 2
_AT_ONCE = 1 << 15  # coordinates that a CPU rounds together: what they take stays in its cache
NOT_FINITE = "an update holds nan or inf, which no number under a mask can stand for; lower algorithm.lr"


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Vectors of at most `clients` clients, clipped to [−clip, clip] in each coordinate, in `bits` bits.

    `largest_weight` is public, and weights are whole numbers up to it, or public themselves. Raises InputError where
    the bits are too few for one grid step a client on either side of 0, or for the sum of the weights.
    """

    clients: int
    bits: int
    clip: float
    largest_weight: int = 1

    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("defense.bits", self.bits, minimum=FEWEST_BITS, maximum=LARGEST_BITS, integer=True)
        check_number("defense.clip", self.clip, above=0)
        largest = (1 << (self.bits - 1)) - 1
        needed = max(self.clients, -(-self.clients * self.largest_weight // 2))
        if largest < needed:
            raise InputError(
                f"defense.bits is {self.bits}, too few for a sum over {self.clients} clients"
                + (f" with weights up to {self.largest_weight}" if self.largest_weight > 1 else "")
                + f"; it must be at least {needed.bit_length() + 1}"
            )

    @property
    def levels(self) -> int:
        """Grid steps from 0 to the clip."""
        return int(((1 << (self.bits - 1)) - 1) // self.clients)

    @property
    def step(self) -> float:
        """γ, in the unit of an update times its weight over the largest one."""
        return self.clip / self.levels

    def encode(self, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Weighted `values` [lanes, d], weights over the largest one, as grid steps: int64 [lanes, d].

        Rounding is unbiased; lane i draws from `generators[i]` alone. Raises InputError for values that are not finite.
        """
        steps = torch.empty(values.shape, dtype=torch.int64, device=values.device)
        at_once = _AT_ONCE if values.device.type == "cpu" else max(1, values.shape[1])
        for lane, draw in zip(range(len(values)), generators, strict=True):
            for row, found in zip(values[lane].split(at_once), steps[lane].split(at_once), strict=True):
                _check_finite(row)
                scaled = (row.double() / self.step).clamp_(-self.levels, self.levels)
                floors = scaled.floor()
                coins = torch.rand(row.shape, generator=draw, device=row.device, dtype=torch.float64)
                # Compared, not added: a coin of almost 1 would round a coordinate at the clip up, and out of its range.
                found.copy_(floors.add_(coins < scaled.sub_(floors)))
        return steps

    def decode(self, total: Tensor) -> Tensor:
        """Sums of grid steps [...] (int64, signed) in the unit of what was encoded, float64."""
        return total.double() * self.step

    def worst_error(self, clients: int) -> float:
        """How far a coordinate of the decoded sum of so many may be from that of the clipped vectors, at most.

        In the weighted mean it is this times the largest weight over the sum of the weights: for equal weights, γ.
        """
        return clients * self.step

    def rms_error(self, clients: int) -> float:
        """The root of that error's mean square, at most: where all are half-way between two grid steps, it is this."""
        return math.sqrt(clients) * self.step / 2


@dataclass(frozen=True, kw_only=True)
class OnGrid:
    """Vectors that lie on the grid of a noise plan already: multiples of its granularity, in its bits."""

    grid: NoisePlan

    exact: ClassVar[bool] = True

    @property
    def bits(self) -> int:
        """The width of a sum's coordinates."""
        return self.grid.bits

    @property
    def step(self) -> float:
        """γ, in the unit of the values."""
        return self.grid.granularity

    def encode(self, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """`values` [lanes, d] as grid steps: int64 [lanes, d], without a draw.

        Raises InputError for values that are not finite, and RuntimeError for those that are no multiples.
        """
        _check_finite(values)
        scaled = values.double() / self.step
        steps = scaled.round()
        # An integer below 2^48 times a double is off by 2^-4 of a step at most when it is divided again.
        if values.numel() and float((scaled - steps).abs().max()) > 0.25:
            raise RuntimeError("an update under masks is off its noise's grid, or was rounded after it was drawn")
        return steps.long()

    def decode(self, total: Tensor) -> Tensor:
        """Sums of grid steps [...] in the unit of the values, float64."""
        return total.double() * self.step

    def worst_error(self, clients: int) -> float:
        """0: nothing is rounded."""
        return 0.0

    def rms_error(self, clients: int) -> float:
        """0: nothing is rounded."""
        return 0.0


Encoding = FixedPoint | OnGrid


def shortened(values: Tensor, step: float) -> Tensor:
    """Vectors [lanes, d] that are no longer than before, in L2, when their coordinates go to a neighbouring multiple
    of `step`: by then γ√d shorter each, or 0.

    Rounding moves a vector by less than γ√d, so that what a clip promised to noise of the server's still holds.
    """
    lengths = torch.linalg.vector_norm(values.double(), dim=1, keepdim=True)
    room = step * math.sqrt(values.shape[1])
    kept: Tensor = ((lengths - room) / lengths.clamp(min=1e-300)).clamp(min=0)
    return values.double() * kept


def wrapped(steps: Tensor, bits: int) -> Tensor:
    """Signed integers [...] (int64) modulo 2^bits, in words that wrap around: int32 for up to 32 bits, else int64."""
    if bits > 32:
        return steps & ((1 << bits) - 1)
    words = steps.to(torch.int32)
    return words if bits == 32 else words.bitwise_and_((1 << bits) - 1)


def signed(words: Tensor, bits: int) -> Tensor:
    """The integers in [−2^(bits−1), 2^(bits−1)) that words [...] modulo 2^bits stand for, int64."""
    half = 1 << (bits - 1)
    return ((words.long() + half) & ((1 << bits) - 1)) - half


def _check_finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise InputError(NOT_FINITE)
