"""mixup: clients train on mixtures of their pictures, never on one alone.

Zhang et al. 2018 ("mixup: Beyond Empirical Risk Minimization"), for each batch:
    λ ~ Beta(α, α),   π a random order of the batch
    x_i ← λ x_i + (1 − λ) x_π(i),   y_i ← λ y_i + (1 − λ) y_π(i),   with labels as chances
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from defenses.accounting import Unit
from defenses.base import Defense
from defenses.statements import NoGuarantee
from fl_core.errors import check_number
from fl_core.lanes import Batch, Feed
from fl_core.plan import Plan
from fl_core.rules import BatchRule
from fl_core.seeds import seed


@dataclass(frozen=True, kw_only=True)
class Mixup(Defense):
    """Train on mixtures of two of a batch's pictures and labels, in the share λ ~ Beta(`alpha`, `alpha`) a batch.

    A batch of one example is left as it is. A mixed row is made of two examples: where another defence clips rows, an
    example has part in more than one of them.
    """

    alpha: float

    name = "mixup"

    def __post_init__(self) -> None:
        check_number("defense.alpha", self.alpha, above=0)

    def batch_rule(self) -> MixedBatches:
        return MixedBatches(self.alpha)

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(
            reason="a mixture of two examples holds both of them, and no noise hides them", unit=unit, view=view
        )


@dataclass(frozen=True)
class MixedBatches(BatchRule):
    """Mixes each lane's batches, with a lane's draws from its own seed."""

    alpha: float

    def feed(self, feed: Feed, seeds: Sequence[int], classes: int) -> MixedFeed:
        return MixedFeed(feed, self.alpha, seeds, classes)


class MixedFeed:
    """A feed whose pictures and labels are mixed, of (pictures [lanes, batch, ...], labels).

    Labels come out as chances [lanes, batch, classes]; they may go in as such. A lane's real rows have to come before
    its padding, which stays as it is. What a step draws for a lane depends on the lane's seed, the step and the number
    of real rows, so that a lane alone sees what it sees in a stack.
    """

    def __init__(self, feed: Feed, alpha: float, seeds: Sequence[int], classes: int) -> None:
        self._feed, self._alpha, self._seeds, self._classes = feed, alpha, seeds, classes

    @property
    def steps(self) -> int:
        """As many as without mixing."""
        return self._feed.steps

    def stacked(self, step: int) -> Batch:
        """All lanes' mixed batches [lanes, batch, ...]."""
        return self._mixed(self._feed.stacked(step), step, self._seeds)

    def one(self, step: int, lane: int) -> Batch | None:
        """One lane's mixed batch [1, batch, ...]; None where the lane is idle."""
        batch = self._feed.one(step, lane)
        return None if batch is None else self._mixed(batch, step, [self._seeds[lane]])

    def _mixed(self, batch: Batch, step: int, seeds: Sequence[int]) -> Batch:
        pictures, labels = batch.inputs
        assert isinstance(pictures, Tensor)
        assert isinstance(labels, Tensor)
        chances = labels if labels.is_floating_point() else F.one_hot(labels, self._classes).to(pictures.dtype)
        shares = torch.ones(len(seeds))
        partners = torch.arange(batch.mask.shape[1]).repeat(len(seeds), 1)
        for lane, (one, count) in enumerate(zip(seeds, batch.mask.sum(1).int().tolist(), strict=True)):
            if count > 1:
                shares[lane], partners[lane, :count] = self.draw(one, step, count)
        shares, partners = shares.to(pictures), partners.to(pictures.device)
        rows = torch.arange(len(seeds), device=pictures.device)[:, None], partners

        def mixture(values: Tensor) -> Tensor:
            share = shares.view(-1, *[1] * (values.dim() - 1))
            return share * values + (1 - share) * values[rows]

        return Batch((mixture(pictures), mixture(chances)), batch.mask, batch.active)

    def draw(self, lane_seed: int, step: int, count: int) -> tuple[float, Tensor]:
        """λ, and each row's partner [count]: what one lane's batch of `count` real rows is mixed with in `step`."""
        draw = np.random.default_rng(seed(lane_seed, "mixup", round=step))
        return float(draw.beta(self._alpha, self._alpha)), torch.from_numpy(draw.permutation(count))
