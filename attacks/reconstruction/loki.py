"""LOKI: each client is sent kernels of its own before the imprint layer, so that a sum keeps the clients apart.

Zhao et al. 2024, "LOKI: Large-scale Data Reconstruction Attack against Federated Learning through Model Manipulation",
IEEE S&P. A convolution in front of the layer has a block of kernels for each client. The model that client i is sent
hands the picture on in block i, as it is, and has zeros in all other blocks. The layer's columns behind zeros
get a gradient of zero, so that in the sum the columns of block i are client i's alone, whatever the masks: as if each
client had an imprint layer to itself. A block of zeros stays so through any number of local steps, as the rectifier
after the convolution has no slope at 0.

A bias would be summed over all clients, so the layer has none: each block has one more channel that is always 1, and
its columns' gradient is the client's own Σ g. (The authors' demonstration scales what it finds to [0, 1] instead.) The
kernels are `scale` times the identity and the columns 1/`scale` of the rows, their convolutional scaling factor: the
kernels then hardly move in local training, and the layer's gradient is so long that a unit is off after the step that
used it. Later steps' pictures do not blur it, and of n pictures a step in k bins those of step s (from 0) come out with
the chance (1 − 1/k)^((s + 1)·n − 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.reconstruction.imprint import WEIGHT, Imprinted, ImprintKnowledge, Imprints, Kind, Ruler, Shape, read_off
from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.views import MaliciousServer, require_view

SWITCH, SWITCH_BIAS = "switch.weight", "switch.bias"
KINDS: tuple[Kind, ...] = ("dense", "sparse")


class Switched(Imprinted):
    """An imprint layer behind a convolution with a block of kernels for each of `clients`, rectified.

    A block has a channel for each of the picture's, and one more. The kernels are 1x1, which is all that an identity
    takes. The layer's weight is [bins, clients·(channels + 1)·height·width].
    """

    def __init__(
        self, inner: nn.Module, shape: Shape, classes: int, bins: int, kind: Kind, gain: float, clients: int
    ) -> None:
        super().__init__(inner, shape, classes, bins, kind, gain)
        channels, height, width = shape
        self.switch = nn.Conv2d(channels, clients * (channels + 1), 1)
        self.imprint = nn.Linear(clients * (channels + 1) * height * width, bins, bias=False)
        # Units that stay off or on after their step may not move the logits together, or later pictures have no loss.
        self.weighing = self.weighing / bins

    def measured(self, pixels: Tensor) -> Tensor:
        units: Tensor = self.imprint(self.switch(pixels).relu().flatten(1))
        return units


def alone_in_time(bins: int, pictures: int, steps: int) -> float:
    """The chance that a client's picture comes out of `steps` local steps on `pictures` each, at a large scale."""
    return sum((1 - 1 / bins) ** ((step + 1) * pictures - 1) for step in range(steps)) / steps


@dataclass(frozen=True, kw_only=True)
class Loki:
    """The attack on a sum over `clients`, each with an imprint layer's `bins` to itself."""

    clients: int
    bins: int
    kind: Kind = "sparse"
    gain: float = 8.0
    scale: float = 1000.0

    name: ClassVar[str] = "LOKI"
    needs: ClassVar[type[MaliciousServer]] = MaliciousServer
    letter: ClassVar[str] = "G"

    def __post_init__(self) -> None:
        check_number("attack.clients", self.clients, minimum=1, integer=True)
        check_number("attack.bins", self.bins, minimum=2, integer=True)
        check_choice("attack.kind", self.kind, KINDS)
        check_number("attack.gain", self.gain, above=0)
        check_number("attack.scale", self.scale, above=0)

    def model(self, inner: nn.Module, shape: Shape, classes: int) -> Switched:
        """The architecture that the clients are sent."""
        return Switched(inner, shape, classes, self.bins, self.kind, self.gain, self.clients)

    def plant(self, sent: Tree, ruler: Ruler, shape: Shape) -> Tree:
        """What each client is sent [clients, ...]: `sent` [...] with the layer, and the client's own kernels.

        All but the kernels is one model, expanded and not copied.
        """
        if ruler.bins != self.bins:
            raise InputError(f"the ruler has {ruler.bins} bins and the imprint layer {self.bins}; make them alike")
        channels, height, width = shape
        reach = ruler.high - ruler.low if self.kind == "sparse" else torch.full_like(ruler.low, ruler.spread)
        reach = self.scale * self.gain * reach[:, None]
        always = (-ruler.low[:, None] / (height * width)).expand(-1, height * width)
        block = torch.cat([ruler.rows, always], 1) / reach
        one = sent | {WEIGHT: block.repeat(1, self.clients).to(sent[WEIGHT])}
        each = {name: value.expand(self.clients, *value.shape) for name, value in one.items()}
        kernels = torch.zeros(self.clients, self.clients, channels + 1, channels)
        kernels[range(self.clients), range(self.clients), :channels] = self.scale * torch.eye(channels)
        biases = torch.zeros(self.clients, self.clients, channels + 1)
        biases[range(self.clients), range(self.clients), channels] = self.scale
        each[SWITCH] = kernels.flatten(1, 2)[..., None, None].to(sent[SWITCH])
        each[SWITCH_BIAS] = biases.flatten(1).to(sent[SWITCH_BIAS])
        return each

    def run(self, observation: MaliciousServer, knowledge: ImprintKnowledge, *, round: int = 0) -> Imprints:
        """The pictures of each client [replicas · clients, bins, ...], replica by replica, in the cohort's order.

        Raises InputError for a view without the sum and its own broadcast, a round that was not recorded, a cohort of
        another size, or a sum that is not finite.
        """
        require_view(self.name, observation, MaliciousServer)
        if round not in observation.sums:
            raise InputError(f"round {round} was not recorded; recorded: {sorted(observation.sums)}")
        if observation.cohorts[round].shape[-1] != self.clients:
            raise InputError(
                f"the cohort has {observation.cohorts[round].shape[-1]} clients, and there are kernels for "
                f"{self.clients}; make them alike"
            )
        channels, height, width = knowledge.shape
        size = height * width
        found = observation.sums[round][WEIGHT].unflatten(-1, (self.clients, (channels + 1) * size))
        found = found.transpose(1, 2).flatten(0, 1)  # [replicas · clients, bins, columns of a block]
        planted = observation.sent[round][WEIGHT][:, 0].unflatten(-1, (self.clients, (channels + 1) * size))
        planted = planted.transpose(1, 2).flatten(0, 1)[..., channels * size :].abs().amax(-1)
        bias = found[..., channels * size :].mean(-1)  # every column of the channel says the same
        return read_off(found[..., : channels * size], bias, planted, 1, self.kind, knowledge)
