"""A fully connected first layer gives its input away: x = ∂W/∂b (Phong et al. 2018; Geiping et al. 2020, section 3).

Unit i of the layer has the gradients ∂W_i = δ_i·x and ∂b_i = δ_i of one example, so any unit that took part says what
x is, and all of them together say it by least squares, x = Σ_i ∂b_i·∂W_i / Σ_i ∂b_i², which evens noise out over the
units. Several examples come out as a mean of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.errors import InputError
from fl_core.optimizers import Tree
from fl_core.views import Server, require_view

Shape = tuple[int, int, int]


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
    """Read a client's one example off its update: exact for one local step on it.

    A server that sees sums has `layer_input` for a sum that it made one client's.
    """

    name: ClassVar[str] = "fully connected layer"
    needs: ClassVar[type[Server]] = Server
    letter: ClassVar[str] = "B"

    def run(self, observation: Server, knowledge: LayerKnowledge, *, round: int = 0) -> Tensor:
        """The pictures [replicas, cohort, channels, height, width] of the clients of `round`, as `layer_input` does."""
        require_view(self.name, observation, Server)
        if round not in observation.updates:
            raise InputError(f"round {round} was not recorded; recorded: {sorted(observation.updates)}")
        updates = observation.updates[round]
        replicas = len(updates[knowledge.bias])
        found, _ = layer_input({name: value.flatten(0, 1) for name, value in updates.items()}, knowledge)
        every: Tensor = found.unflatten(0, (replicas, -1))
        return every
