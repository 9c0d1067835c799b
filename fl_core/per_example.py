"""Every example's own gradient, from one pass over the whole batch.

`vmap` over examples turns a convolution into as many small ones. Here the batch stays whole, forward and back, as in
training without a rule; on the way each layer's input and the gradient of its output are kept, and an example's
gradient of a weight is a product of its two (Goodfellow 2015 for linear layers, Rochette et al. 2019 for convolutions;
Yousefpour et al. 2021 do so with hooks on modules). A linear layer's product is not even taken: see `rules.Outer`.

That is right as long as no example's loss depends on another example, and every variable is used by a layer whose
product is known. So each call of torch in the forward pass is looked at: `_LAYERS` may use variables, and of the rest
only what `_apart` knows to keep examples apart may run. A model that calls anything else goes by `by_vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from fl_core.optimizers import Tree
from fl_core.rules import Gradients, Outer

Losses = Callable[..., Tensor]
Inputs = tuple[Tensor | Tree, ...]


def example_gradients(losses: Losses, variables: Tree, inputs: Inputs) -> Gradients:
    """Gradients [batch, ...] of each example's loss, for variables [...] and inputs [batch, ...] of one lane.

    `losses(variables, *inputs) -> [batch]` is to give each example its loss whatever the others are. The numbers are
    those of `by_vmap` to float tolerance.
    """
    variables = {name: value.detach().requires_grad_() for name, value in variables.items()}
    inputs = tree_map(_settled, inputs)
    try:
        with torch.enable_grad(), _Watch(variables) as watch:
            loss = losses(variables, *inputs)
        return _products(loss, watch.uses, variables)
    except _Unknown:
        return by_vmap(losses, variables, inputs)


def stacked_example_gradients(losses: Losses, variables: Tree, inputs: Inputs) -> Gradients:
    """The same [lanes, batch, ...] for variables [lanes, ...] and inputs [lanes, batch, ...]."""
    variables = {name: value.detach().requires_grad_() for name, value in variables.items()}
    # GroupNorm under `vmap` fails on one lane with its channels last.
    inputs = tree_map(lambda value: _settled(value.contiguous()), inputs)
    uses: list[_Use] = []

    def one_lane(mine: Tree, inputs: Inputs) -> Tensor:
        with _Watch(mine) as watch:
            loss = losses(mine, *inputs)
        uses.extend(watch.uses)
        return loss

    try:
        with torch.enable_grad():
            loss = vmap(one_lane)(variables, inputs)
        return _products(loss, uses, variables)
    except _Unknown:
        found: Tree = vmap(lambda mine, inputs: by_vmap(losses, mine, inputs))(variables, inputs)
        return found


def by_vmap(losses: Losses, variables: Tree, inputs: Inputs) -> Tree:
    """The gradients [batch, ...] of one lane for any `losses`, each example by itself."""

    def alone(variables: Tree, inputs: Inputs) -> Tensor:
        return losses(variables, *tree_map(lambda value: value.unsqueeze(0), inputs))[0]

    fixed = {name: value.detach() for name, value in variables.items()}
    found: Tree = vmap(grad(alone), in_dims=(None, 0))(fixed, inputs)
    return found


def _settled(value: Tensor) -> Tensor:
    """With the usual strides where an axis of length 1 allows several: they decide which kernels run, and so the bits.

    One channel is such an axis, and the same pictures have other strides in a worker process.
    """
    return value.flatten().view(value.shape) if value.is_contiguous() else value


# The forward pass


class _Unknown(Exception):
    """A call after which an example's gradient is not known to be a product of what its layers saw."""


@dataclass(frozen=True)
class _Use:
    """A layer at work: its input and its output, of all lanes together, and the variables by their part in it.

    `lanes` is the axis of the lanes in either, None without lanes. `call` are the layer's arguments by name.
    """

    layer: str
    seen: Tensor
    made: Tensor
    lanes: tuple[int | None, int | None]
    names: dict[str, str]
    call: dict[str, Any]


class _Watch(TorchFunctionMode):
    """Looks at every call of torch inside it; raises _Unknown at the first that it cannot vouch for."""

    def __init__(self, variables: Tree) -> None:
        super().__init__()
        self.uses: list[_Use] = []
        self._names = {id(value): name for name, value in variables.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if not isinstance(found, Tensor):
            if name not in _QUESTIONS:
                raise _Unknown(name)
        elif name in _LAYERS:
            self._note(name, dict(zip(_LAYERS[name].arguments, args, strict=False)) | kwargs, found)
        elif self._names.keys() & set(map(id, tree_leaves((args, kwargs)))) or not _apart(name, found, args, kwargs):
            raise _Unknown(name)
        return found

    def _note(self, layer: str, call: dict[str, Any], made: Tensor) -> None:
        names = {part: self._names[id(call[part])] for part in ("weight", "bias") if id(call.get(part)) in self._names}
        tensors = {part for part, value in call.items() if isinstance(value, Tensor)}
        if tensors != {"input", *names} or not _known(layer, call):
            raise _Unknown(layer)
        (seen, seen_lane), (made, made_lane) = _physical(call["input"].detach()), _physical(made)
        self.uses.append(_Use(layer, seen, made, (seen_lane, made_lane), names, call))


def _known(layer: str, call: dict[str, Any]) -> bool:
    axes: int = call["input"].dim()
    if layer != "conv2d":
        return axes == 2 or layer == "group_norm"
    plain = call.get("groups", 1) == 1 and set(_pair(call.get("dilation", 1))) == {1}
    return plain and axes == 4 and not isinstance(call.get("padding", 0), str)


def _physical(value: Tensor) -> tuple[Tensor, int | None]:
    """A tensor with its lanes, where `vmap` shows it without, and their axis."""
    if torch._C._functorch.is_batchedtensor(value):
        return torch._C._functorch.get_unwrapped(value), torch._C._functorch.maybe_get_bdim(value)
    return value, None


# Calls that keep row i of what they make to row i of what they are given, by how many tensors they take and how their
# axes are named. A tensor without a row for each example is a constant: no call in these lists makes one of examples.
_ALONE = {
    "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "elu", "silu", "softplus", "exp", "neg", "square", "flatten",
    "view", "reshape", "contiguous", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
}  # fmt: skip
_TOGETHER = {"add", "sub", "mul", "div", "__radd__", "__rsub__", "__rmul__"}
_ALONG = {"mean", "sum", "softmax", "log_softmax", "unsqueeze", "squeeze", "gather"}
_QUESTIONS = {"__get__", "size", "dim", "numel", "__len__", "is_floating_point"}


def _apart(name: str, found: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of torch that uses no variable is known to keep examples apart."""
    if name == "custom_function_call":
        return bool(getattr(args[0], "keeps_examples_apart", False))
    given = [value for value in args if isinstance(value, Tensor)]
    rows = [value for value in given if value.dim() and value.shape[0] == found.shape[:1].numel()]
    if name in _TOGETHER:
        constants = [value for value in given if value.dim() == 0 or value.shape[0] == 1]
        aligned = all(value.dim() in (0, found.dim()) for value in given)
        return aligned and len(rows) + len(constants) >= len(given)
    if not given or len(rows) < len(given):
        return False
    if name in _ALONG:
        axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
        most = max(found.dim(), given[0].dim())
        several = axes if isinstance(axes, (tuple, list)) else [axes]
        return all(isinstance(axis, int) and axis % most for axis in several)
    in_place = name != "avg_pool2d" and any(value is True for value in (*args, *kwargs.values()))
    return name in _ALONE and not in_place


# From what the layers saw to gradients


def _products(loss: Tensor, uses: list[_Use], variables: Tree) -> Gradients:
    """Each variable's gradients [batch, ...] for losses [batch], or [lanes, batch, ...] for losses [lanes, batch]."""
    if not uses:
        raise _Unknown("no layer")
    slopes = torch.autograd.grad(loss.sum(), [use.made for use in uses], allow_unused=True)
    found: dict[str, Tensor | Outer] = {}
    with torch.no_grad():
        for use, slope in zip(uses, slopes, strict=True):
            if slope is None:  # the layer ran where autograd does not follow, or for nothing
                raise _Unknown(use.layer)
            seen, slope = (_rows(value, lane) for value, lane in zip((use.seen, slope), use.lanes, strict=True))
            if len(slope) != loss.numel() or len(seen) != loss.numel():
                raise _Unknown(use.layer)
            parts = _LAYERS[use.layer].product(seen.to(slope.dtype), slope, use.call)
            for part, name in use.names.items():
                value = _shaped(parts[part], variables[name].dtype, loss.shape)
                found[name] = _whole(found[name]) + _whole(value) if name in found else value
    lead, own = loss.shape, {name: value.shape[loss.dim() - 1 :] for name, value in variables.items()}
    return {name: found[name] if name in found else loss.new_zeros(*lead, *own[name]) for name in variables}


def _shaped(value: Tensor | Outer, kind: torch.dtype, lead: torch.Size) -> Tensor | Outer:
    shaped: Tensor | Outer = tree_map(lambda part: part.to(kind).unflatten(0, lead), value)
    return shaped


def _whole(value: Tensor | Outer) -> Tensor:
    return value.whole() if isinstance(value, Outer) else value


def _rows(value: Tensor, lane: int | None) -> Tensor:
    """[lanes * batch, ...], or [batch, ...] as it is without lanes."""
    return value if lane is None else value.movedim(lane, 0).flatten(0, 1)


def _linear(seen: Tensor, slope: Tensor, _: dict[str, Any]) -> Gradients:
    return {"weight": Outer(slope, seen), "bias": slope}


def _group_norm(seen: Tensor, slope: Tensor, call: dict[str, Any]) -> Gradients:
    normal = F.group_norm(seen, call["num_groups"], eps=call.get("eps", 1e-5))
    return {"weight": (normal * slope).flatten(2).sum(2), "bias": slope.flatten(2).sum(2)}


def _conv2d(seen: Tensor, slope: Tensor, call: dict[str, Any]) -> Gradients:
    (high, wide), (stride, along) = call["weight"].shape[2:], _pair(call.get("stride", 1))
    padding, places = _pair(call.get("padding", 0)), slope.shape[2] * slope.shape[3]
    examples, made, channels = len(slope), slope.shape[1], seen.shape[1]
    # The kernel's gradient is a product over places of windows and slopes. A grouped convolution takes the windows as
    # it goes; with few channels, or fewer places than channels, it is faster to lay them out first (measured on a CPU).
    if channels > 4 and places > channels and max(high, wide) > 1:
        kernel = slope.new_empty(1).expand(examples * made, channels, high, wide)
        weight = torch.ops.aten.convolution_backward(
            slope.reshape(1, -1, *slope.shape[2:]), seen.reshape(1, -1, *seen.shape[2:]), kernel, None,
            [stride, along], padding, [1, 1], False, [0, 0], examples, [False, True, False],
        )[1]  # fmt: skip
    else:
        padded = F.pad(seen, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else seen
        if slope.shape[3] >= 16 or high * wide == 1:
            windows = padded.unfold(2, high, stride).unfold(3, wide, along).permute(0, 1, 4, 5, 2, 3)
        else:  # rows too short to copy one by one
            index = _windows(*padded.shape[1:], high, wide, stride, along, padded.device)
            windows = padded.flatten(1).index_select(1, index)
        weight = slope.flatten(2) @ windows.reshape(examples, -1, places).transpose(1, 2)
    return {"weight": weight.view(examples, made, channels, high, wide), "bias": slope.flatten(2).sum(2)}


@lru_cache(maxsize=256)
def _windows(
    channels: int, height: int, width: int, high: int, wide: int, stride: int, along: int, device: torch.device
) -> Tensor:
    """Where each entry of each window lies in a picture: [channels * high * wide * places]."""
    picture = torch.arange(channels * height * width, device=device).view(channels, height, width)
    return picture.unfold(1, high, stride).unfold(2, wide, along).permute(0, 3, 4, 1, 2).reshape(-1)


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


@dataclass(frozen=True)
class _Layer:
    """The product of what a layer saw and the slope of what it made; the names of its arguments, in order."""

    product: Callable[[Tensor, Tensor, dict[str, Any]], Gradients]
    arguments: tuple[str, ...]


_LAYERS = {
    "conv2d": _Layer(_conv2d, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    "linear": _Layer(_linear, ("input", "weight", "bias")),
    "group_norm": _Layer(_group_norm, ("input", "num_groups", "weight", "bias", "eps")),
}
