"""Clipping: no one example, and no one client, moves the model further than a stated length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.rules import Gradients, Outer

How = Literal["flat", "per_layer", "adaptive"]
HOWS = ("flat", "per_layer", "adaptive")


def norms(tree: Gradients, lead: int) -> Tensor:
    """Euclidean norms over all leaves together, keeping the first `lead` axes."""
    whole: Tensor = torch.linalg.vector_norm(torch.stack([_norm(value, lead) for value in tree.values()]), dim=0)
    return whole


def _norm(value: Tensor | Outer, lead: int) -> Tensor:
    if isinstance(value, Outer):
        return _norm(value.slope, lead) * _norm(value.seen, lead)
    # A reshape, since a parameter may be a single number, without an axis of its own to flatten.
    row = value.reshape(*value.shape[:lead], math.prod(value.shape[lead:]))
    length: Tensor = torch.linalg.vector_norm(row, dim=-1)
    return length


def clip_factors(lengths: Tensor, clip_norm: float | Tensor) -> Tensor:
    """What to multiply each gradient by so that its norm is at most `clip_norm`; a zero gradient stays zero."""
    if isinstance(clip_norm, Tensor):
        return clip_norm / torch.maximum(lengths, clip_norm)
    return clip_norm / lengths.clamp(min=clip_norm)


def layers(names: Sequence[str]) -> list[list[str]]:
    """The names of one layer's variables together, in order: all of a name but its last part is the layer's."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """How long a gradient or an update may be, over all its variables together: `norm` at most.

    - `flat` scales the whole.
    - `per_layer` scales each of L layers to norm/√L, so that the whole is no longer than `norm` (McMahan et al. 2018).
    - `adaptive` starts at `norm` and follows the `quantile` of the lengths: after each step or round the clip is
      multiplied by exp(−`rate`·(b − `quantile`)), b being the share that was no longer than the clip (Andrew et al.
      2021, section 2).
    """

    norm: float
    how: How = "flat"
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        check_choice("defense.clipping", self.how, HOWS)
        check_number("defense.clip_norm", self.norm, above=0)
        check_number("defense.quantile", self.quantile, above=0, below=1)
        check_number("defense.quantile_rate", self.rate, above=0)

    @property
    def adaptive(self) -> bool:
        """Whether the clip moves, so that lengths have to be counted."""
        return self.how == "adaptive"

    def factors(self, tree: Gradients, lead: int, clip: float | Tensor | None = None) -> tuple[Tree, Tensor]:
        """What to multiply each variable by, and who was short enough already: both with the first `lead` axes.

        `clip` is where an adaptive norm stands, to be broadcast over these axes.
        """
        clip = self.norm if clip is None else clip
        if self.how != "per_layer":
            lengths = norms(tree, lead)
            factor = clip_factors(lengths, clip)
            return dict.fromkeys(tree, factor), lengths <= clip
        groups = layers(list(tree))
        share = clip / math.sqrt(len(groups))
        found: Tree = {}
        short: list[Tensor] = []
        for group in groups:
            lengths = norms({name: tree[name] for name in group}, lead)
            found |= dict.fromkeys(group, clip_factors(lengths, share))
            short.append(lengths <= share)
        return {name: found[name] for name in tree}, torch.stack(short).all(0)

    def follow(self, clip: Tensor, share: Tensor) -> Tensor:
        """The next clip after `share` of the lengths were no longer than this one."""
        return clip * torch.exp(-self.rate * (share.to(clip) - self.quantile))


def scaled(tree: Tree, factors: Tree) -> Tree:
    """Each variable [lead, ...] times its factor [lead]."""
    return {
        name: value * factors[name].view(*factors[name].shape, *[1] * (value.dim() - factors[name].dim()))
        for name, value in tree.items()
    }


def quantile_noise(noise_multiplier: float, expected: float, asked: float | None) -> tuple[float, float]:
    """How an adaptive clip splits its noise: deviations of the clipped sum, in clips, and of the count below the clip.

    Each unit adds ±½ to a count, which is released with deviation σ_b, and its clipped vector to a sum with deviation
    z_Δ; both together are one Gaussian mechanism of `noise_multiplier` z where z⁻² = z_Δ⁻² + (2σ_b)⁻² (Andrew et al.
    2021, Theorem 1). σ_b is `asked`, or else a twentieth of the `expected` number of units, and at least z.
    """
    count = max(expected / 20, noise_multiplier) if asked is None else asked
    return (noise_multiplier**-2 - (2 * count) ** -2) ** -0.5, count


def check_quantile_noise(clip: Clipping, noise_multiplier: float, asked: float | None) -> None:
    """Raise InputError where a count of so little noise alone would cost more than the mechanism may."""
    if clip.adaptive and asked is not None and 2 * asked <= noise_multiplier:
        raise InputError(
            f"defense.quantile_noise is {asked:g}; it must be above half the noise multiplier {noise_multiplier:.4g}, "
            "or the count alone costs more than ε; raise it, or leave it out"
        )
