"""Trap weights in the model's own first layer: nothing is added to the architecture (Boenisch et al. 2023).

"When the Curious Abandon Honesty", section 5: half of a row's weights, drawn at random, are negative, and the others
are the same numbers with the other sign, scaled down by a factor below 1. On most pictures the negative half outweighs
the other one, so that a rectified unit fires rarely, and what one picture alone fires holds that picture, x = ∂W/∂b.
The thresholds are zero. `imprint.trap_ruler` gives each random row a threshold instead, which takes public pictures for
each; here they fit one number, the scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.reconstruction.imprint import ImprintKnowledge, Imprints, Ruler, Shape, read_off
from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.seeds import generator
from fl_core.views import MaliciousServer, require_view


def split_rows(shape: Shape, bins: int, run: int) -> Tensor:
    """Rows [bins, pixels] of about unit length, half negative and half positive, before the latter are scaled down.

    The positive half are the negative half's sizes in another order, so that an even grey picture measures 0.
    """
    pixels = shape[0] * shape[1] * shape[2]
    if pixels % 2:
        raise InputError(f"pictures of {pixels} pixels have no two halves of equal size; trap weights need an even one")
    draw = generator(run, "trap weights")
    sizes = (torch.randn(bins, pixels // 2, generator=draw) / pixels**0.5).abs()
    order = torch.rand(bins, pixels // 2, generator=draw).argsort(1)
    both = torch.cat([-sizes, sizes.gather(1, order)], 1)
    found: Tensor = both.gather(1, torch.rand(bins, pixels, generator=draw).argsort(1)).double()
    return found


def fitted_scaling(rows: Tensor, public: Tensor, share: float) -> float:
    """The scaling at which a picture of `public` [pictures, ...] fires a unit with the chance `share`.

    A unit fires where scaling · (its positive part of the picture) exceeds its negative part.
    """
    check_number("share", share, above=0, below=1)
    pixels = public.flatten(1).double()
    against, towards = pixels @ rows.clamp(max=0).T.neg(), pixels @ rows.clamp(min=0).T
    found = (against / towards.clamp(min=1e-12)).flatten()
    return float(found.kthvalue(max(1, round(share * len(found)))).values)


def split_ruler(rows: Tensor, scaling: float) -> Ruler:
    """The rows with their positive half scaled down by `scaling`; a unit fires above 0."""
    check_number("attack.scaling", scaling, above=0)
    scaled = torch.where(rows > 0, scaling * rows, rows)
    highest = scaled.clamp(min=0).sum(1) + 1
    return Ruler(
        rows=scaled, low=torch.zeros(len(rows)).double(), high=highest, spread=float(scaled.norm(dim=1).mean())
    )


@dataclass(frozen=True, kw_only=True)
class TrapWeights:
    """Traps in a fully connected first layer of rectified units, called `weight` and `bias`.

    A pixel enters the layer as `scale`·pixel + `shift`, as in the models of `fl_core.architectures`. It needs as many
    units as the ruler has rows, and one local step.
    """

    weight: str = "hidden.0.weight"
    bias: str = "hidden.0.bias"
    scale: float = 2.0
    shift: float = -1.0

    name: ClassVar[str] = "trap weights"
    needs: ClassVar[type[MaliciousServer]] = MaliciousServer
    letter: ClassVar[str] = "G"
    """A data-enhanced manipulator (Carletti et al. 2025): the scaling, or the thresholds, are fitted to public data."""

    def plant(self, sent: Tree, ruler: Ruler) -> Tree:
        """The parameters that the clients are sent: `sent` [...] with the first layer's replaced by `ruler`'s."""
        if self.weight not in sent or sent[self.weight].shape != ruler.rows.shape:
            shape = tuple(sent[self.weight].shape) if self.weight in sent else "missing"
            raise InputError(f"{self.weight} is {shape} and the traps are {tuple(ruler.rows.shape)}; make them alike")
        # A unit fires as it does at any length of its row, and new weights of the same size are the least conspicuous.
        size = self.scale * float(sent[self.weight].std() / ruler.rows.std())
        rows, low = size * ruler.rows, size * ruler.low
        # row · (scale·x + shift) / scale − shift/scale · Σ row is row · x.
        return sent | {
            self.weight: (rows / self.scale).to(sent[self.weight]),
            self.bias: (-self.shift / self.scale * rows.sum(1) - low).to(sent[self.bias]),
        }

    def run(self, observation: MaliciousServer, knowledge: ImprintKnowledge, *, round: int = 0) -> Imprints:
        """Read the pictures off the sum of `round`, as `Imprint.run` does of its layer."""
        require_view(self.name, observation, MaliciousServer)
        if round not in observation.sums:
            raise InputError(f"round {round} was not recorded; recorded: {sorted(observation.sums)}")
        total, sent = observation.sums[round], observation.sent[round]
        bias = total[self.bias]
        weight = (total[self.weight] - self.shift * bias[..., None]) / self.scale  # of a layer that takes pixels
        clients = observation.cohorts[round].shape[-1]
        return read_off(weight, bias, sent[self.bias].abs().amax(1), clients, "traps", knowledge)
