"""A fully connected first layer gives its input away: x = ∂W/∂b (Phong et al. 2018; Geiping et al. 2020, section 3).

Unit i of the layer has the gradients ∂W_i = δ_i·x and ∂b_i = δ_i of one example, so any unit that took part says what
x is, and all of them together say it by least squares, x = Σ_i ∂b_i·∂W_i / Σ_i ∂b_i², which evens noise out over the
units. Several examples come out as a mean of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.reconstruction.base import Knowledge, Reconstruction, Shape, Updates, check_fits
from attacks.reconstruction.first_layer import FirstLayer, first_layer
from attacks.reconstruction.labels import infer_labels, labels_of_pictures
from attacks.reconstruction.rank import check_examples
from attacks.reconstruction.verification import check_one_step, verified
from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.views import Server


@dataclass(frozen=True, kw_only=True)
class LayerKnowledge:
    """What the attacker knows of the model: its first layer's variables, the picture's shape, and what pixels become.

    A pixel enters the layer as `scale`·pixel + `shift`; the models of `fl_core.architectures` take 2·pixel − 1. `error`
    is the standard deviation that rounding to a grid and noise leave in a coordinate of the update.
    """

    weight: str
    bias: str
    shape: Shape
    scale: float = 2.0
    shift: float = -1.0
    error: float = 0.0


def layer_input(update: Tree, knowledge: LayerKnowledge) -> tuple[Tensor, Tensor]:
    """The pictures [lanes, channels, height, width] behind updates [lanes, ...], and the deviation of a pixel [lanes].

    By least squares over the units, not cut to [0, 1]; a step's sign and length cancel. What an `error` adds to Σ ∂b²
    is taken off; where less is left than two deviations of that, the deviation is inf and the picture means nothing.
    Raises InputError for an update whose first layer did not move.
    """
    weight, bias = update[knowledge.weight], update[knowledge.bias]
    largest = bias.abs().amax(1, keepdim=True)
    if not (torch.isfinite(weight).all() and torch.isfinite(largest).all() and (largest > 0).all()):
        raise InputError(f"{knowledge.bias} did not move, or is not finite; there is nothing to divide by")
    share = bias / largest  # so that no square underflows
    whole = share.square().sum(1, keepdim=True)
    square, units = (knowledge.error / largest) ** 2, bias.shape[1]
    signal = whole - units * square
    seen = signal > 2 * (2 * units) ** 0.5 * square
    entered = torch.einsum("lu,lup->lp", share, weight) / largest / torch.where(seen, signal, whole)
    pictures: Tensor = ((entered - knowledge.shift) / knowledge.scale).unflatten(1, knowledge.shape)
    deviation = knowledge.error / knowledge.scale * whole.sqrt() / (largest * signal)
    return pictures, torch.where(seen, deviation, torch.inf)[:, 0]


@dataclass(frozen=True, kw_only=True)
class FullyConnected:
    """Read pictures off a fully connected first layer: exact for one local step.

    One picture comes out by least squares over all units. Of a batch, those pictures come out that have units to
    themselves: `agreeing` units at least whose quotients ∂W_i/∂b_i agree, as mixtures of several pictures would only by
    chance. The pixels of two agree if none is further apart than `spread`; both see no truth. What is left is NaN.
    """

    agreeing: int = 2
    spread: float | None = None

    name: ClassVar[str] = "fully connected layer"
    needs: ClassVar[type[Server]] = Server
    letter: ClassVar[str] = "B"

    def __post_init__(self) -> None:
        check_number("agreeing", self.agreeing, minimum=2, integer=True)
        if self.spread is not None:
            check_number("spread", self.spread, above=0)

    def run(self, updates: Updates, knowledge: Knowledge, **_: Any) -> Reconstruction:
        """Not cut to [0, 1]. Raises InputError for another first layer, several steps and too small a batch size."""
        check_fits(updates, knowledge.model)
        check_one_step(knowledge, self.name)
        first = first_layer(knowledge.model, knowledge.shape, "fully connected inversion and its like")
        check_examples(updates, knowledge)
        if knowledge.examples == 1:
            told = LayerKnowledge(
                weight=first.weight,
                bias=first.bias,
                shape=knowledge.shape,
                scale=1.0,
                shift=0.0,
                error=knowledge.noise,
            )
            entered = layer_input(updates.moved, told)[0].flatten(1)
            images = first.pixels(entered).unflatten(1, knowledge.shape).unsqueeze(1)
            labels = infer_labels(updates, knowledge)
        else:
            images = self._alone(updates, knowledge, first)
            labels = labels_of_pictures(updates, knowledge, images)
        return verified(updates, knowledge, images, labels, self.name, torch.zeros(len(updates)))

    def _alone(self, updates: Updates, knowledge: Knowledge, first: FirstLayer) -> Tensor:
        """The pictures with units to themselves [victims, examples, ...], NaN for the others."""
        weight, bias = updates.moved[first.weight], updates.moved[first.bias]
        double = weight.dtype == torch.float64
        spread = self.spread or (1e-7 if double else 1e-3)
        # A unit that moved by next to nothing is all rounding.
        took_part = bias.abs() > (1e-9 if double else 1e-3) * bias.abs().amax(1, keepdim=True)
        pixels = first.pixels(weight / torch.where(took_part, bias, torch.inf).unsqueeze(2))
        images = pixels.new_full((len(updates), knowledge.examples, pixels.shape[2]), torch.nan)
        for victim in range(len(updates)):
            rows = pixels[victim][took_part[victim]]
            steep = bias[victim][took_part[victim]].abs()
            same = torch.cdist(rows, rows, p=torch.inf) <= spread
            place = 0
            while place < knowledge.examples and len(rows):
                lead = int(same.sum(1).argmax())
                group = same[lead]
                if group.sum() < self.agreeing:
                    break
                members = group.nonzero().flatten()
                images[victim, place] = rows[members[steep[members].argmax()]]
                kept = (~group).nonzero().flatten()
                rows, steep, same = rows[kept], steep[kept], same[kept][:, kept]
                place += 1
        pictures: Tensor = images.unflatten(2, knowledge.shape)
        return pictures
