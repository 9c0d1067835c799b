"""What pictures are like, whatever the update says: terms that an objective adds, for one lane."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from attacks.reconstruction.simulation import Moments
from fl_core.errors import check_number
from fl_core.optimizers import Tree


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A lane's guess: `pixels` [pictures, channels, height, width], and the moments before each normalisation layer.

    With pictures of their own for each of `epochs`, the epochs' pictures follow one another.
    """

    pixels: Tensor
    moments: Moments = field(default_factory=dict)
    epochs: int = 1


class Regulariser(Protocol):
    """`__call__(guess, context) -> []`, of which the objective takes `weight` times."""

    @property
    def weight(self) -> float:
        """How many times the objective takes it; 0 leaves it out."""
        ...

    def __call__(self, guess: Guess, context: Tree) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class _Weighted:
    weight: float

    def __post_init__(self) -> None:
        check_number(f"the weight of {type(self).__name__}", self.weight, minimum=0)


@dataclass(frozen=True, kw_only=True)
class TotalVariation(_Weighted):
    """The mean absolute difference of neighbouring pixels, across plus down (Geiping et al. 2020)."""

    def __call__(self, guess: Guess, context: Tree) -> Tensor:
        across = (guess.pixels[..., 1:] - guess.pixels[..., :-1]).abs().mean()
        down = (guess.pixels[..., 1:, :] - guess.pixels[..., :-1, :]).abs().mean()
        return across + down


@dataclass(frozen=True, kw_only=True)
class Length(_Weighted):
    """The mean squared distance of pixels from grey (the ℓ2 prior of Yin et al. 2021, about the middle)."""

    def __call__(self, guess: Guess, context: Tree) -> Tensor:
        return (guess.pixels - 0.5).square().mean()


@dataclass(frozen=True, kw_only=True)
class BatchNormStatistics(_Weighted):
    """Moments before each batch normalisation close to those that the attacker knows (Yin et al. 2021, eq. 6).

    Each layer's squared distance counts over the known moments' own square.
    """

    def __call__(self, guess: Guess, context: Tree) -> Tensor:
        missed = [
            (seen - context[f"{what}/{name}"]).square().sum()
            / context[f"{what}/{name}"].square().sum().clamp(min=1e-12)
            for name, moments in guess.moments.items()
            for what, seen in zip(("mean", "variance"), moments, strict=True)
            if f"{what}/{name}" in context
        ]
        return torch.stack(missed).mean() if missed else guess.pixels.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class GroupConsistency(_Weighted):
    """The mean squared distance from the mean over a victim's restarts (Yin et al. 2021, eq. 9).

    The mean is taken anew every part of the descent, of the pictures as they stand then: restarts of one label are not
    registered to one another first, as theirs are.
    """

    def __call__(self, guess: Guess, context: Tree) -> Tensor:
        return (guess.pixels - context["consensus"]).square().mean()


@dataclass(frozen=True, kw_only=True)
class SameEveryEpoch(_Weighted):
    """Epochs whose pictures are alike, in whatever order: the mean picture of each against that of every other.

    Dimitrov et al. 2022, section 4.3, with the mean of the pixels, and of their squares, for the order-invariant maps.
    """

    def __call__(self, guess: Guess, context: Tree) -> Tensor:
        epochs = guess.pixels.unflatten(0, (guess.epochs, -1))
        maps = torch.stack([epochs.mean(1), epochs.square().mean(1)])
        return (maps - maps.mean(1, keepdim=True)).square().mean()
