"""One attack with an imprint layer, and how what it answers is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attacks.reconstruction.imprint import Imprint, ImprintKnowledge, Imprints, Ruler
from attacks.reconstruction.labels import infer_label_counts
from attacks.reconstruction.prior import LinearPrior
from experiments.studies.base import Values
from experiments.studies.tampering import Array, as_plain, decibels, seen_by_server, to_all, updates_of
from fl_core.data import ImageSet
from fl_core.optimizers import Tree

AT_ONCE = 4  # clients whose updates are in memory at a time
SHOWN = 6  # pictures in the figure


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One attack: what it sends, and how its answers compare with the truth."""

    attack: Imprint
    ruler: Ruler
    model: nn.Module
    sent: Tree
    pool: ImageSet

    @property
    def length(self) -> int:
        """The coordinates of an update."""
        return sum(value.numel() for value in self.sent.values())

    def summed(self, plan: Sequence[Sequence[Tensor]], lr: float) -> Tree:
        """The sum [1, ...] of clients' updates in floating point, a few clients at a time."""
        total: Tree = {}
        for start in range(0, len(plan), AT_ONCE):
            part = plan[start : start + AT_ONCE]
            updates = updates_of(self.model, to_all(self.sent, len(part)), self.pool, part, lr)
            for name, value in updates.items():
                total[name] = total.get(name, 0) + value.sum(0, keepdim=True)
        return total

    def read(self, total: Tree, clients: int, error: float = 0.0) -> Imprints:
        """The attack on a sum [1, ...]."""
        sent = {name: value[None] for name, value in to_all(self.sent, clients).items()}
        told = ImprintKnowledge(ruler=self.ruler, shape=self.pool.shape, error=error)
        return self.attack.run(seen_by_server(total, sent), told)

    def alone(self, pictures: Tensor) -> Array:
        """Which of the sum's `pictures` are alone in some unit."""
        fires = self.ruler.fires(pictures)
        mine: Array = (fires & (fires.sum(0) == 1)).any(1).numpy()
        return mine

    def answers(self, answer: Imprints, pictures: Tensor, prior: LinearPrior | None = None) -> tuple[Tensor, Array]:
        """What the units that each picture fires say of it, the best by the truth, and its PSNR.

        For one that fires no unit the answer is the prior's mean, or without a prior black.
        """
        picture, unit = self.ruler.fires(pictures).nonzero(as_tuple=True)
        found, shown = answer.pictures[0, unit].float(), torch.zeros_like(pictures)
        if prior:
            found = prior.estimate(found, answer.deviation[0, unit])
            shown = prior.estimate(shown, torch.full((len(shown),), torch.inf))
        each, best = decibels(found, pictures[picture]), decibels(shown, pictures)
        fired = picture.unique()
        best[fired] = -np.inf
        for place in np.argsort(each, kind="stable"):  # the best one comes last
            best[picture[place]], shown[picture[place]] = each[place], found[place]
        return shown, best

    def recovered(self, answer: Imprints, pictures: Tensor, prior: LinearPrior | None = None) -> Array:
        """The PSNR of `answers` [pictures]."""
        return self.answers(answer, pictures, prior)[1]

    def shown(self, answer: Imprints, pictures: Tensor, alone: Array, prior: LinearPrior | None = None) -> Values:
        """The first pictures that are alone, and what was made of them, for the figure."""
        chosen = np.flatnonzero(alone)[:SHOWN]
        found, _ = self.answers(answer, pictures, prior)
        return {"truth": as_plain(pictures[chosen]), "found": as_plain(found[chosen])}


@dataclass(frozen=True, kw_only=True)
class Counting:
    """How the server counts the labels behind an update or a sum.

    `chances` [classes] and `scale`, by how much clipping shortens an update, come from public pictures; `labels` are
    the truth, for the score alone.
    """

    chances: Tensor
    scale: float
    labels: Tensor
    batch: int

    def of(self, updates: Tree, held: Tensor) -> float:
        """The correlation, over updates and classes, of counted labels with those of the rows `held` [updates, n]."""
        share = self.scale * self.batch / held.shape[1]  # of a client in the mean over all the examples
        gradient = {name: -share * value for name, value in updates.items()}
        counted = infer_label_counts(gradient, self.chances, held.shape[1]).double()
        true = torch.stack([torch.bincount(self.labels[rows], minlength=len(self.chances)) for rows in held]).double()
        both = torch.stack([counted.flatten(), true.flatten()])
        correlation = float(torch.corrcoef(both)[0, 1])
        return correlation if np.isfinite(correlation) else 0.0  # the same count for all classes says nothing
