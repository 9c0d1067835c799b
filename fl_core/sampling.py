"""Which examples a client uses at which step, and the event that an accountant may compose for it.

The sampler that draws the batches also names the event, so that what is accounted is what was done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fl_core.augmentation import looked_at
from fl_core.errors import InputError, check_number
from fl_core.lanes import Batch


@dataclass(frozen=True, kw_only=True)
class SamplingEvent:
    """How one example of one client is drawn over a whole run; all numbers are public.

    `rate` is the chance that a step draws the example (Poisson), or 1 for a sampler without amplification;
    `steps` is the number of steps in which it could be drawn, over all rounds.
    """

    sampler: Literal["poisson", "shuffled"]
    rate: float
    steps: int


class Sampler(Protocol):
    """Draws a client's batches for one round. `size` is the client's public number of examples.

    `from_public_sizes` says that how often an example is drawn follows from it, and not from the real number.
    """

    from_public_sizes: ClassVar[bool]

    def batch(self, size: int) -> int:
        """Examples a step, on average where chance decides."""
        ...

    def steps(self, size: int) -> int:
        """Local steps a round."""
        ...

    def draw(self, examples: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
        """A round's batches, each some entries of `examples` [n]."""
        ...

    def event(self, size: int, rounds: int) -> SamplingEvent:
        """What an accountant may compose for one example over the `rounds` in which its client takes part."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Epochs:
    """What every sampler is told. `local_steps`, where it is given, takes the place of `local_epochs`."""

    local_epochs: int = 1
    batch_size: int | None
    local_steps: int | None = None

    def __post_init__(self) -> None:
        check_number("sampler.local_epochs", self.local_epochs, minimum=1, integer=True)
        if self.batch_size is not None:
            check_number("sampler.batch_size", self.batch_size, minimum=1, integer=True)
        if self.local_steps is not None:
            check_number("sampler.local_steps", self.local_steps, minimum=1, integer=True)

    def batch(self, size: int) -> int:
        """Examples a step of a client with `size` of them; without a batch size, all of them."""
        return max(size, 1) if self.batch_size is None else self.batch_size

    def steps(self, size: int) -> int:
        """Local steps a round of a client with `size` examples."""
        return self.local_steps or math.ceil(max(size, 1) / self.batch(size)) * self.local_epochs


@dataclass(frozen=True, kw_only=True)
class Shuffled(_Epochs):
    """Every epoch visits each example once, in a fresh order; the last batch of an epoch may be smaller.

    Without a batch size every step takes all of the client's examples, as gradient descent does.
    """

    from_public_sizes: ClassVar[bool] = False

    def draw(self, examples: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
        """Batches of entries of `examples` [n]; none at all for a client without examples."""
        if not len(examples):
            return []
        batches: list[Tensor] = []
        while len(batches) < self.steps(len(examples)):
            order = examples[torch.randperm(len(examples), generator=generator)]
            batches.extend(order.split(self.batch(len(examples))))
        return batches[: self.steps(len(examples))]

    def event(self, size: int, rounds: int) -> SamplingEvent:
        """Its visits to one example, without amplification by sampling."""
        epoch = math.ceil(max(size, 1) / self.batch(size))
        visits = math.ceil(self.steps(size) / epoch)
        return SamplingEvent(sampler="shuffled", rate=1.0, steps=visits * rounds)


@dataclass(frozen=True, kw_only=True)
class Poisson(_Epochs):
    """Every step draws each example by its own coin; batches have `batch_size` examples on average and may be empty.

    The rate is batch_size / size and an epoch has ceil(size / batch_size) steps, from the public size: neither
    depends on how many examples the client really holds.
    """

    from_public_sizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is None:
            raise InputError("sampler.batch_size is null; Poisson batches need a size, at least 1")

    def draw(self, examples: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
        """Batches of entries of `examples` [n], some of them perhaps empty."""
        event = self.event(size, rounds=1)
        drawn = torch.rand(event.steps, len(examples), generator=generator) < event.rate
        return [examples[step] for step in drawn]

    def event(self, size: int, rounds: int) -> SamplingEvent:
        """The Poisson event, with the public rate and number of steps."""
        rate = min(1.0, self.batch(size) / max(size, 1))
        return SamplingEvent(sampler="poisson", rate=rate, steps=self.steps(size) * rounds)


class ExampleFeed:
    """Serves batches by row number from images [examples, channels, height, width] and labels [examples].

    `plan[lane][step]` holds the row numbers of that lane's step. A lane whose plan is shorter than the others' idles
    at the end; an empty batch inside the plan is a real step on no example (a DP step on noise alone). `looks` are
    planned alike, [examples, 3] a step, where pictures are augmented; see `augmentation`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        plan: Sequence[Sequence[Tensor]],
        looks: Sequence[Sequence[Tensor]] | None = None,
    ) -> None:
        self._images, self._labels, self._plan, self._looks = images, labels, plan, looks
        self._lengths = [len(batches) for batches in plan]
        self.steps = max(self._lengths, default=0)

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Row numbers and mask [steps, lanes, widest batch] and activity [steps, lanes], sent to the device once."""
        empty = torch.empty(0, dtype=torch.long)
        rows = [batches[step] if step < len(batches) else empty for step in range(self.steps) for batches in self._plan]
        sizes = torch.tensor([len(row) for row in rows], dtype=torch.long).view(self.steps, len(self._plan))
        widths = sizes.amax(1).tolist()
        mask = torch.arange(max(widths)) < sizes[..., None]
        index = torch.zeros(mask.shape, dtype=torch.long)
        index[mask] = torch.cat(rows)
        active = torch.arange(self.steps)[:, None] < torch.tensor(self._lengths)
        device = self._images.device
        return index.to(device), mask.to(device, self._images.dtype), active.to(device), widths

    @cached_property
    def _stacked_looks(self) -> Tensor:
        """Looks [steps, lanes, widest batch, 3], beside `_rows`."""
        index, mask, _, _ = self._rows
        looks = torch.zeros(*index.shape, 3, dtype=torch.int8)
        steps = [lane[step] for step in range(self.steps) for lane in self._looks or () if step < len(lane)]
        looks[mask.cpu() > 0] = torch.cat(steps)
        return looks.to(index.device)

    def _pictures(self, rows: Tensor, looks: Tensor | None) -> Tensor:
        return self._images[rows] if looks is None else looked_at(self._images, rows, looks)

    def stacked(self, step: int) -> Batch:
        """Inputs (images [lanes, batch, ...], labels [lanes, batch]), padded to the widest lane of this step."""
        index, mask, active, widths = self._rows
        rows = index[step, :, : widths[step]].contiguous()
        idle = min(self._lengths) <= step
        real = mask[step, :, : widths[step]].contiguous()
        looks = None if self._looks is None else self._stacked_looks[step, :, : widths[step]]
        return Batch((self._pictures(rows, looks), self._labels[rows]), real, active[step] if idle else None)

    def one(self, step: int, lane: int) -> Batch | None:
        """The same for one lane [1, batch, ...], without padding."""
        if step >= self._lengths[lane]:
            return None
        index = self._plan[lane][step].to(self._images.device)
        looks = None if self._looks is None else self._looks[lane][step].to(index.device)
        images, labels = self._pictures(index, looks), self._labels[index]
        return Batch((images.unsqueeze(0), labels.unsqueeze(0)), images.new_ones(1, len(index)))
