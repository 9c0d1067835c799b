"""A model's fully connected layers, and how pixels enter the first one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.reconstruction.base import Shape
from fl_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FirstLayer:
    """The names of its weight and bias, and its inputs [pixels], float64, for a `dark` and a `light` picture."""

    weight: str
    bias: str
    dark: Tensor
    light: Tensor

    def pixels(self, entered: Tensor) -> Tensor:
        """Pixels [..., pixels] of inputs of the layer [..., pixels]: 0 is black and 1 is white."""
        dark, light = (value.to(entered) for value in (self.dark, self.light))
        return (entered - dark) / (light - dark)


def inputs_of(model: nn.Module, layers: dict[str, nn.Module], pictures: Tensor) -> dict[str, list[Tensor]]:
    """What enters each of `layers` when the model sees `pictures`: one tensor a call, in the order of first calls."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda _, inputs: seen.setdefault(name, []).append(inputs[0].detach())

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(pictures)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def fully_connected_layers(model: nn.Module, shape: Shape) -> list[str]:
    """The linear layers that each picture passes once as one vector, in the order in which it does.

    A layer that is used several times or on several places of a picture has the gradients of all of them in one.
    """
    trial = copy.deepcopy(model).eval()
    layers = {name: layer for name, layer in trial.named_modules() if isinstance(layer, nn.Linear)}
    seen = inputs_of(trial, layers, torch.full((2, *shape), 0.5).to(next(trial.parameters())))
    return [name for name, calls in seen.items() if len(calls) == 1 and calls[0].ndim == 2 and len(calls[0]) == 2]


def first_layer(model: nn.Module, shape: Shape, who: str = "rows") -> FirstLayer:
    """The layer, for a model that begins with a fully connected one over all pixels, with a bias.

    The model may normalise pixels first, each by itself; the attacker runs it on known pictures to see how. Raises
    InputError, in `who`'s name, for any other model.
    """
    pixels = torch.Size(shape).numel()
    trial = copy.deepcopy(model).double().eval()
    names = [name for name, _ in trial.named_parameters()]
    layers = [(name, layer) for name, layer in trial.named_modules() if isinstance(layer, nn.Linear)]
    if not layers or layers[0][1].in_features != pixels or layers[0][1].bias is None:
        raise InputError(f"{who} need a first layer that is fully connected, with a bias, over all {pixels} pixels")
    name, layer = layers[0]
    if set(names[:2]) != {f"{name}.weight", f"{name}.bias"}:
        raise InputError(f"{who} need the fully connected layer to be the model's first one")
    # A ramp beside the shades, so that a layer which mixes pixels (and keeps even shades) is found out.
    ramp = torch.linspace(0, 1, pixels, dtype=torch.float64)
    shades = torch.stack([torch.full_like(ramp, shade) for shade in (0.0, 0.5, 1.0)] + [ramp]).view(4, *shape)
    calls = [inputs_of(trial, {name: layer}, one[None]).get(name, []) for one in shades]
    if any(len(call) != 1 for call in calls):
        raise InputError(f"{who} need a model that uses its first layer once a picture")
    dark, grey, light, ramped = (call[0].flatten() for call in calls)
    span = light - dark
    linear = torch.allclose(grey - dark, span / 2, atol=1e-6) and torch.allclose(ramped, dark + ramp * span, atol=1e-6)
    if not linear or (span == 0).any():
        raise InputError(f"{who} need a model that normalises each pixel by itself and linearly, if at all")
    return FirstLayer(weight=f"{name}.weight", bias=f"{name}.bias", dark=dark, light=light)
