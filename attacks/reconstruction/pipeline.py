"""Algebra before optimisation: exact attacks in turn, and whatever they leave to an attack that searches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.reconstruction.base import (
    Knowledge,
    Reconstruction,
    ReconstructionAttack,
    Updates,
    check_fits,
)
from attacks.reconstruction.fully_connected import FullyConnected
from attacks.reconstruction.rank import check_examples
from attacks.reconstruction.recursive import RecursiveGradientAttack
from attacks.reconstruction.spear import Spear
from fl_core.errors import InputError
from fl_core.views import Server


@dataclass(frozen=True, kw_only=True)
class Explained(Reconstruction):
    """An answer, and `reasons`: for each exact attack that did not answer every victim, why, in a line."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The `exact` attacks in order, each on the victims that are left, then `fallback`.

    An exact attack's answer is taken only where it explains the update to rounding (`exact`), so that a wrong one costs
    time alone. Without a fallback, what is left stays NaN. `method` names the attack that answered each victim.
    """

    fallback: ReconstructionAttack | None = None
    exact: tuple[ReconstructionAttack, ...] = (FullyConnected(), Spear(), RecursiveGradientAttack())

    name: ClassVar[str] = "exact first"
    needs: ClassVar[type[Server]] = Server

    @property
    def letter(self) -> str:
        """The most that any of its attacks is told."""
        attacks = [*self.exact, *([] if self.fallback is None else [self.fallback])]
        return max((attack.letter for attack in attacks), default="B")

    def run(
        self, updates: Updates, knowledge: Knowledge, *, victims: Sequence[int] | None = None, **options: Any
    ) -> Explained:
        """`options` go to the fallback, `victims` to whichever attack draws at random.

        Raises InputError for an update that does not fit, and without a fallback for a batch size that the update's
        rank contradicts: with one, the update may be no plain gradient, as a pruned one is not.
        """
        check_fits(updates, knowledge.model)
        if self.fallback is None:
            check_examples(updates, knowledge)
        numbers = list(range(len(updates)) if victims is None else victims)
        reasons: list[str] = []
        answers: list[tuple[Tensor, Reconstruction]] = []
        left = torch.arange(len(updates))
        spent = torch.zeros(len(updates))
        for attack in self.exact:
            if not len(left):
                break
            try:
                mine = [numbers[place] for place in left]
                found = attack.run(updates.select(left), _told(knowledge, left), victims=mine)
            except InputError as error:
                reasons.append(f"{attack.name}: {error}")
                continue
            spent[left] += found.evaluations.to(spent)
            if found.exact.any():
                answers.append((left[found.exact], _rows(found, found.exact, spent[left[found.exact]])))
            missed = int((~found.exact).sum())
            if missed:
                reasons.append(
                    f"{attack.name}: its answer does not explain {missed} of {len(left)} updates to rounding"
                )
            left = left[~found.exact]
        if len(left):
            answers.append((left, self._rest(updates, knowledge, left, numbers, spent, options)))
        return _joined(answers, tuple(reasons))

    def _rest(
        self,
        updates: Updates,
        knowledge: Knowledge,
        left: Tensor,
        numbers: list[int],
        spent: Tensor,
        options: dict[str, Any],
    ) -> Reconstruction:
        if self.fallback is not None:
            mine = [numbers[place] for place in left]
            found = self.fallback.run(updates.select(left), _told(knowledge, left), victims=mine, **options)
            return _rows(found, torch.ones(len(left), dtype=torch.bool), spent[left] + found.evaluations.to(spent))
        return Reconstruction(
            images=torch.full((len(left), 1, knowledge.examples, *knowledge.shape), torch.nan),
            labels=torch.full((len(left), 1, knowledge.examples), -1),
            objective=torch.full((len(left), 1), torch.inf),
            evaluations=spent[left],
            method=("none",) * len(left),
            exact=torch.zeros(len(left), dtype=torch.bool),
        )


def _told(knowledge: Knowledge, victims: Tensor) -> Knowledge:
    """What is known of some victims."""
    if knowledge.labels is None:
        return knowledge
    return dataclasses.replace(knowledge, labels=knowledge.labels[victims])


def _rows(found: Reconstruction, kept: Tensor, evaluations: Tensor) -> Reconstruction:
    return Reconstruction(
        images=found.images[kept],
        labels=found.labels[kept],
        objective=found.objective[kept],
        evaluations=evaluations,
        method=tuple(name for name, keep in zip(found.method, kept.tolist(), strict=True) if keep),
        exact=found.exact[kept],
    )


def _joined(answers: list[tuple[Tensor, Reconstruction]], reasons: tuple[str, ...]) -> Explained:
    """The answers in the victims' order, with as many restarts as the longest has: the others' are failed ones."""
    order = torch.cat([victims for victims, _ in answers]).argsort()
    restarts = max(found.objective.shape[1] for _, found in answers)

    def filled(values: Tensor, nothing: float) -> Tensor:
        missing = restarts - values.shape[1]
        rest = torch.full_like(values[:, :1], nothing).expand(-1, missing, *values.shape[2:])
        return torch.cat([values, rest], 1)

    founds = [found for _, found in answers]
    dtype = torch.float64 if any(found.images.dtype == torch.float64 for found in founds) else torch.float32
    names = [name for found in founds for name in found.method]
    return Explained(
        images=torch.cat([filled(found.images.to(dtype), torch.nan) for found in founds])[order],
        labels=torch.cat([filled(found.labels, -1) for found in founds])[order],
        objective=torch.cat([filled(found.objective.double(), torch.inf) for found in founds])[order],
        evaluations=torch.cat([found.evaluations for found in founds])[order],
        method=tuple(names[place] for place in order.tolist()),
        exact=torch.cat([found.exact for found in founds])[order],
        reasons=reasons,
    )
