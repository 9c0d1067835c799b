"""A model as a chain of linear layers with elementwise activations, for attacks that walk through it backwards."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from attacks.reconstruction.base import Shape
from attacks.reconstruction.first_layer import inputs_of
from fl_core.architectures import max_pool, side_by_side
from fl_core.errors import InputError

Layer = nn.Linear | nn.Conv2d

_ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", "relu": "relu", nn.ReLU: "relu",
    F.leaky_relu: "leaky_relu", nn.LeakyReLU: "leaky_relu",
    F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", "sigmoid": "sigmoid", nn.Sigmoid: "sigmoid",
    F.tanh: "tanh", torch.tanh: "tanh", "tanh": "tanh", nn.Tanh: "tanh",
}  # fmt: skip
_KEEPS_VALUES = (torch.flatten, torch.reshape, "flatten", "view", "reshape", "contiguous", nn.Flatten, nn.Identity)
_AFFINE = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
           "add", "sub", "mul", "div")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Activation:
    """An elementwise function: its name, and the slope below zero of a ReLU (0) or a leaky one."""

    kind: str = "identity"
    slope: float = 1.0

    def inverse(self, value: Tensor) -> Tensor:
        """What went in. Values a hair outside the range are moved inside; a ReLU's zero gives zero."""
        edge = torch.finfo(value.dtype).eps
        if self.kind == "sigmoid":
            return torch.logit(value, eps=edge)
        if self.kind == "tanh":
            return torch.atanh(value.clamp(edge - 1, 1 - edge))
        if self.kind == "leaky_relu":
            return torch.where(value < 0, value / self.slope, value)
        return value.clamp(min=0) if self.kind == "relu" else value

    def derivative(self, value: Tensor) -> Tensor:
        """The derivative where `value` came out."""
        if self.kind == "sigmoid":
            return (value * (1 - value)).clamp(min=0)
        if self.kind == "tanh":
            return (1 - value.square()).clamp(min=0)
        return torch.where(value > 0, torch.ones_like(value), self.slope)

    @property
    def kinked(self) -> bool:
        """Whether the derivative jumps at zero."""
        return self.kind in ("relu", "leaky_relu")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A layer, the shapes of its input and its output without the batch, and the activation after it."""

    name: str
    layer: Layer
    inputs: torch.Size
    outputs: torch.Size
    activation: Activation = Activation()

    @property
    def weight(self) -> str:
        """The name of its weight in the model."""
        return f"{self.name}.weight"

    @property
    def bias(self) -> str | None:
        """The name of its bias, if it has one."""
        return None if self.layer.bias is None else f"{self.name}.bias"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The links from the picture to the logits. A pixel enters the first as scale·pixel + shift [pixels], float64."""

    links: tuple[Link, ...]
    scale: Tensor
    shift: Tensor

    def pixels(self, entered: Tensor) -> Tensor:
        """Pixels in [0, 1] of what entered the first layer, both [..., pixels]."""
        return (entered - self.shift) / self.scale


class _Tracer(fx.Tracer):
    """Sees through the user's modules down to torch's own layers, subclasses of which stay whole, too."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(side_by_side, max_pool))

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, Layer) or super().is_leaf_module(module, qualified_name)


class _Recorder(fx.Interpreter):
    """Runs the traced model and keeps each node's value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def chain_of(model: nn.Module, shape: Shape, who: str) -> Chain:
    """The model as a chain, or an InputError in `who`'s name that says which operation is none of one.

    Fully connected and convolutional layers, each used once, with identity, ReLU, leaky ReLU, sigmoid or tanh between
    them; flattening; and before the first a normalisation, each pixel by itself and linearly.
    """
    graph, recorded = _traced(model, shape, who)
    modules = dict(graph.named_modules())
    links: list[Link] = []
    before: list[fx.Node] = []  # the nodes in front of the first layer
    flow: fx.Node | None = None
    for node in graph.graph.nodes:
        value = recorded.values[node]
        from_picture = [one for one in node.all_input_nodes if one is flow or one in before or _carries(one, recorded)]
        if node.op == "placeholder":
            flow = node
            continue
        if node.op == "output":
            if node.args[0] is not flow or not links or links[-1].activation.kind != "identity" or value.ndim != 2:
                raise InputError(f"{who} needs a model whose last operation is a fully connected layer to the logits")
            break
        if not isinstance(value, Tensor) or node.op == "get_attr":
            continue  # a shape, or a constant
        if not from_picture:
            continue
        called, operation = _called(node, modules)
        if from_picture != [flow] or node.args[0] is not flow:
            raise InputError(f"{who} needs a plain chain of layers; {operation} takes more than the last one's output")
        entered = recorded.values[flow]
        if called in (nn.Linear, nn.Conv2d):
            links.append(_link(node.target, modules[node.target], entered, value, links, who))
        elif called in _ACTIVATIONS and links and links[-1].activation.kind == "identity":
            links[-1] = _followed(links[-1], _activation(node, _ACTIVATIONS[called], modules))
        elif called in _AFFINE and not links and value.shape == entered.shape:
            _check_constant(node, graph, operation, who)
        elif called not in _KEEPS_VALUES and called is not side_by_side and not _is_idle_dropout(called, node, modules):
            raise InputError(
                f"{who} needs convolutions, fully connected layers, activations and flattening alone; {operation} is "
                "none of these"
            )
        flow = node
        if not links:
            before.append(node)
    scale, shift = _pixel_map(graph, shape, links[0].name)
    if (scale == 0).any():
        raise InputError(f"{who} needs a model that takes all pixels; some are multiplied by zero")
    return Chain(links=tuple(links), scale=scale, shift=shift)


def _traced(model: nn.Module, shape: Shape, who: str) -> tuple[fx.GraphModule, _Recorder]:
    model = copy.deepcopy(model).eval()  # a trial run must not move running statistics
    try:
        graph = fx.GraphModule(model, _Tracer().trace(model))
        recorder = _Recorder(graph)
        first = next(model.parameters())
        with torch.no_grad():
            recorder.run(torch.full((1, *shape), 0.5).to(first))
    except Exception as error:  # the user's own code may raise anything at a symbolic value
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{who} cannot follow this model's operations one by one ({reason})") from error
    return graph, recorder


def _carries(node: fx.Node, recorded: _Recorder) -> bool:
    """Whether the node's value depends on the picture and is a tensor."""
    if node.op == "placeholder":
        return True
    return isinstance(recorded.values.get(node), Tensor) and any(
        _carries(one, recorded) for one in node.all_input_nodes
    )


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[Any, str]:
    """What the node calls, as the tables above name it, and how to name it to a person."""
    if node.op != "call_module":
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return node.target, str(name)
    layer = modules[str(node.target)]
    known = next((kind for kind in (nn.Linear, nn.Conv2d) if isinstance(layer, kind)), type(layer))
    return known, f"{type(layer).__name__} ({node.target})"


def _link(name: Any, layer: Any, entered: Tensor, value: Tensor, links: list[Link], who: str) -> Link:
    if any(link.layer is layer for link in links):
        raise InputError(f"{who} needs each layer used once; {name} is used again")
    if isinstance(layer, nn.Linear) and entered.ndim != 2:
        raise InputError(f"{who} needs fully connected layers over the whole picture; {name} works on parts of it")
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            raise InputError(f"{who} needs convolutions over all channels; {name} has {layer.groups} groups")
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise InputError(f"{who} needs convolutions padded with a number of zeros; {name} is padded otherwise")
    return Link(name=name, layer=layer, inputs=entered.shape[1:], outputs=value.shape[1:])


def _followed(link: Link, activation: Activation) -> Link:
    return Link(name=link.name, layer=link.layer, inputs=link.inputs, outputs=link.outputs, activation=activation)


def _activation(node: fx.Node, kind: str, modules: dict[str, nn.Module]) -> Activation:
    if kind != "leaky_relu":
        return Activation(kind=kind, slope=0.0)
    if node.op == "call_module":
        return Activation(kind=kind, slope=float(modules[str(node.target)].negative_slope))  # type: ignore[arg-type]
    slope: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
    return Activation(kind=kind, slope=float(slope))


def _check_constant(node: fx.Node, graph: fx.GraphModule, operation: str, who: str) -> None:
    """The other operand may be a number or a buffer, but nothing that is trained."""
    for one in node.all_input_nodes:
        if one.op == "get_attr" and any(one.target == name for name, _ in graph.named_parameters()):
            raise InputError(
                f"{who} needs a normalisation of pixels that is not trained; {operation} uses {one.target}"
            )


def _is_idle_dropout(called: Any, node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return called is nn.Dropout and bool(modules[str(node.target)].p == 0)


def _pixel_map(graph: fx.GraphModule, shape: Shape, first: str) -> tuple[Tensor, Tensor]:
    """Scale and shift [pixels], float64, of the affine map in front of the layer `first`."""
    shades = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, *shape).to(next(graph.parameters()))
    entered = inputs_of(graph, {first: graph.get_submodule(first)}, shades)[first][0].double().flatten(1)
    return entered[1] - entered[0], entered[0]
