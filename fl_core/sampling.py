"""Which examples a client uses at which step, and the event that an accountant may compose for it.

The sampler that draws the batches also names the event, so that what is accounted is what was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SamplingEvent:
    """How one example of one client is drawn over a whole run; all numbers are public.

    `rate` is the chance that a step draws the example (Poisson), or 1 for a sampler without amplification;
    `steps` is the number of steps in which it could be drawn, over all rounds.
    """

    sampler: Literal["poisson", "shuffled"]
    rate: float
    steps: int
