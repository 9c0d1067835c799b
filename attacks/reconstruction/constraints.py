"""What a layer's gradient and its output say of its input: linear equations, and whether there are enough of them.

A convolution with weights W [outputs, inputs, taps] has, with K [outputs, places] the loss's gradient at its output z,
∂W[o, i, t] = Σ_p K[o, p]·x[i, tap t of place p], the gradient constraints, in which all input channels share one
matrix; and W·x + b = z, the weight constraints. Source: Zhu & Blaschko 2021, R-GAP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.reconstruction.base import Shape
from attacks.reconstruction.chain import Chain, Link, chain_of

WHO = "R-GAP"


def taps(link: Link) -> Tensor:
    """Which entry of a channel each tap of the kernel reads at each place [taps, places]; the padding is entry H·W."""
    layer = link.layer
    assert isinstance(layer, nn.Conv2d)
    _, height, width = link.inputs
    padding = layer.padding
    assert not isinstance(padding, str)
    entries = torch.arange(1.0, height * width + 1, dtype=torch.float64).view(1, 1, height, width)
    read = nn.functional.unfold(entries, layer.kernel_size, layer.dilation, padding, layer.stride)[0].long() - 1
    return torch.where(read < 0, height * width, read)


def gradient_matrix(read: Tensor, entries: int, at_output: Tensor) -> Tensor:
    """One channel's gradient constraints [outputs · taps, entries]; `at_output` is K [outputs, places]."""
    outputs, (count, places) = len(at_output), read.shape
    matrix = torch.zeros(outputs, count, entries + 1, dtype=at_output.dtype)
    index, source = read.expand(outputs, count, places), at_output[:, None].expand(outputs, count, places)
    return matrix.scatter_add_(2, index, source)[..., :entries].flatten(0, 1)


def weight_matrix(read: Tensor, entries: int, weight: Tensor) -> Tensor:
    """The matrix [outputs · places, inputs · entries] of the weight constraints; `weight` [outputs, inputs, taps]."""
    outputs, inputs, count = weight.shape
    places = read.shape[1]
    matrix = torch.zeros(outputs, places, inputs, entries + 1, dtype=weight.dtype)
    index = read.T[None, :, None].expand(outputs, places, inputs, count)
    matrix.scatter_add_(3, index, weight[:, None].expand(outputs, places, inputs, count))
    return matrix[..., :entries].flatten(2).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class LayerRank:
    """How many entries of a layer's input are unknown, and how many independent equations there can be at most."""

    name: str
    unknowns: int
    gradient: int
    weight: int

    @property
    def index(self) -> int:
        """Equations beyond the unknowns; below zero the input cannot be told."""
        return self.gradient + self.weight - self.unknowns


@dataclass(frozen=True, kw_only=True)
class RankAnalysis:
    """The layers in the order in which a picture passes them."""

    layers: tuple[LayerRank, ...]

    @property
    def recoverable(self) -> bool:
        """Whether no layer lacks equations: needed for an exact recovery, and enough where they are independent."""
        return all(layer.index >= 0 for layer in self.layers)

    @property
    def verdict(self) -> str:
        """In words, for a person."""
        short = [layer for layer in self.layers if layer.index < 0]
        if not short:
            return "every layer has as many equations as unknowns"
        last = short[-1]  # the one that the recursion meets first
        return f"{last.name} has {last.unknowns} unknowns and at most {last.gradient + last.weight} equations"


def rank_analysis(model: nn.Module, shape: Shape, active: float = 1.0) -> RankAnalysis:
    """Whether a net can be recovered from one picture's gradient, by counting, before any update is seen.

    The gradient constraints of a convolution are counted by the rank of their matrix for a random K; a fully connected
    layer's determine its input by themselves. Each unit's output gives one weight constraint, where its activation can
    be inverted: of ReLUs, the share of channels that are `active`, as on a picture's even regions most fire or do not
    as a channel. Source: after the rank analysis of Zhu & Blaschko 2021,
    without its virtual constraints, by which a layer's surplus could make up for another's lack.
    """
    return rank_of(chain_of(model, shape, WHO), active)


def rank_of(chain: Chain, active: float = 1.0) -> RankAnalysis:
    """The same of a chain."""
    draw = torch.Generator().manual_seed(0)
    layers = []
    for link in chain.links:
        unknowns, weight = link.inputs.numel(), link.outputs.numel()
        if isinstance(link.layer, nn.Linear):
            layers.append(LayerRank(name=link.name, unknowns=unknowns, gradient=unknowns, weight=0))
            continue
        channels, height, width = link.inputs
        at_output = torch.randn(link.outputs[0], link.outputs[1:].numel(), generator=draw, dtype=torch.float64)
        if link.activation.kind == "relu":
            firing = int(active * len(at_output))
            at_output[firing:] = 0
            weight = firing * at_output.shape[1]
        matrix = gradient_matrix(taps(link), height * width, at_output)
        gradient = channels * int(torch.linalg.matrix_rank(matrix))
        layers.append(LayerRank(name=link.name, unknowns=unknowns, gradient=gradient, weight=min(weight, unknowns)))
    return RankAnalysis(layers=tuple(layers))
