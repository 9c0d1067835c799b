"""What is moved to make a picture: its pixels, or the weights of a network that paints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.reconstruction.base import Shape
from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.seeds import generator


class Parametrisation(Protocol):
    """Makes a lane's variables, from numbers that seed it, and its pictures from them."""

    def start(self, run: int, victim: int, restart: int, pictures: int, shape: Shape) -> tuple[Tree, Tree]:
        """One lane's variables [...] and what it adds to the lane's context."""
        ...

    def pixels(self, variables: Tree, context: Tree) -> Tensor:
        """[pictures, channels, height, width], for one lane."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pixels(Parametrisation):
    """The pixels themselves, from uniform noise in [0, 1]."""

    def start(self, run: int, victim: int, restart: int, pictures: int, shape: Shape) -> tuple[Tree, Tree]:
        drawn = torch.rand(pictures, *shape, generator=generator(run, "restart", victim, restart))
        return {"pixels": drawn}, {}

    def pixels(self, variables: Tree, context: Tree) -> Tensor:
        return variables["pixels"]


@dataclass(frozen=True, kw_only=True)
class DeepImagePrior(Parametrisation):
    """An untrained network that paints each picture from fixed noise (Ulyanov et al. 2018); nothing was learned before.

    From noise [width, ⌈height/4⌉, ⌈width/4⌉] of its own a picture goes through two doublings with a 3x3 convolution
    each, leaky rectified and normalised over its channels, and a last convolution into a sigmoid. All pictures of a
    lane share the network. Its weights are the variables.
    """

    width: int = 32

    def __post_init__(self) -> None:
        check_number("attack.reconstruction.parametrisation.width", self.width, minimum=4, integer=True)

    def start(self, run: int, victim: int, restart: int, pictures: int, shape: Shape) -> tuple[Tree, Tree]:
        if min(shape[1:]) < 4:
            raise InputError(f"pictures are {shape[1]}x{shape[2]}; a deep image prior needs at least 4x4 pixels")
        draw = generator(run, "restart", victim, restart)
        small = (-(-shape[1] // 4), -(-shape[2] // 4))
        noise = torch.rand(pictures, self.width, *small, generator=draw)
        variables: Tree = {}
        for place, (come, go) in enumerate(
            ((self.width, self.width), (self.width, self.width), (self.width, shape[0]))
        ):
            reach = (come * 9) ** -0.5
            variables[f"weight{place}"] = (2 * torch.rand(go, come, 3, 3, generator=draw) - 1) * reach * 3**0.5
            variables[f"bias{place}"] = torch.zeros(go)
        return variables, {"noise": noise, "frame": torch.zeros(shape[1:])}

    def pixels(self, variables: Tree, context: Tree) -> Tensor:
        hidden = context["noise"]
        for place in range(2):
            hidden = hidden.repeat_interleave(2, 2).repeat_interleave(2, 3)
            hidden = F.conv2d(hidden, variables[f"weight{place}"], variables[f"bias{place}"], padding=1)
            hidden = hidden - hidden.mean((1, 2, 3), keepdim=True)
            hidden = hidden / (hidden.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
            hidden = F.leaky_relu(hidden, 0.1)
        high, wide = context["frame"].shape
        painted = F.conv2d(hidden, variables["weight2"], variables["bias2"], padding=1)
        return painted[..., :high, :wide].sigmoid()


def merged_epochs(pixels: Tensor, epochs: int) -> Tensor:
    """The pictures [lanes, pictures, ...] of [lanes, epochs · pictures, ...]: means of those that go together.

    Each epoch's pictures are assigned to the first epoch's by the least squared distance (Dimitrov et al. 2022, 4.3).
    """
    found = []
    for lane in pixels.unflatten(1, (epochs, -1)):
        first = lane[0]
        aligned = [first]
        for other in lane[1:]:
            cost = (first.flatten(1)[:, None] - other.flatten(1)[None]).square().sum(2)
            _, columns = linear_sum_assignment(cost.cpu().numpy())
            aligned.append(other[torch.from_numpy(columns).to(other.device)])
        found.append(torch.stack(aligned).mean(0))
    return torch.stack(found)
