"""Local training that the attacker has to guess: it tries several recipes and believes the one that explains most."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.reconstruction.base import Knowledge, Reconstruction, Updates
from attacks.reconstruction.gradient_matching import GradientMatching
from fl_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A guess of how clients trained: `steps` an epoch, `epochs`, at `lr`; None leaves what the attacker was told."""

    steps: int | None = None
    epochs: int | None = None
    lr: float | None = None

    def of(self, knowledge: Knowledge) -> Knowledge:
        """What the attacker then takes to be so."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(knowledge, **given)


@dataclass(frozen=True, kw_only=True)
class Guessing:
    """`attack` under each of `recipes`; a victim's answer is that of the recipe with the least objective.

    Objectives of different recipes can be compared, as the same observed update is to be met; a squared distance tells
    recipes apart by the update's length, of which a cosine sees little. All that was tried is
    paid for in `evaluations`; `method` says which recipe answered, counted from 0. Raises InputError without recipes.
    """

    attack: GradientMatching
    recipes: Sequence[Recipe]

    def __post_init__(self) -> None:
        if not self.recipes:
            raise InputError("an attacker who guesses local training needs at least one recipe to try")

    @property
    def name(self) -> str:
        """That of the attack, and that training is guessed."""
        return f"{self.attack.name}, training guessed"

    @property
    def letter(self) -> str:
        """That of the attack."""
        return self.attack.letter

    def run(self, updates: Updates, knowledge: Knowledge, **options: Any) -> Reconstruction:
        """`options` go to the attack; a checkpoint would serve one recipe only, and is refused."""
        if options.get("checkpoint") is not None:
            raise InputError("an attack that guesses local training keeps no checkpoint; leave it out")
        tried = [self.attack.run(updates, recipe.of(knowledge), **options) for recipe in self.recipes]
        best = torch.stack([found.objective.amin(1) for found in tried]).argmin(0)

        def picked(values: Sequence[Tensor]) -> Tensor:
            chosen: Tensor = torch.stack(list(values))[best, torch.arange(len(best))]
            return chosen

        return Reconstruction(
            images=picked([found.images for found in tried]),
            labels=picked([found.labels for found in tried]),
            objective=picked([found.objective for found in tried]),
            evaluations=torch.stack([found.evaluations for found in tried]).sum(0),
            method=tuple(f"{self.name}: recipe {place}" for place in best.tolist()),
            exact=picked([found.exact for found in tried]),
        )
