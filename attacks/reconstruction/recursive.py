"""R-GAP: one picture, layer by layer from the loss back to the pixels (Zhu & Blaschko 2021).

For a layer z = W·x with the gradient δ of its output, both z = W·x (the weights' equations) and ∂W = δ⊗x (the
gradient's) are linear in the layer's input x. Once z and δ are known, x is their least-squares solution, the activation
before it is undone, and δ goes one layer back. It starts at the logits, whose δ is softmax − one-hot. The equations'
rank says beforehand whether a network can be recovered.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from attacks.reconstruction.base import Knowledge, Reconstruction, Shape, Updates, check_fits
from attacks.reconstruction.labels import infer_labels
from attacks.reconstruction.verification import check_one_step, verified
from fl_core.architectures import side_by_side
from fl_core.errors import InputError
from fl_core.optimizers import Tree
from fl_core.seeds import generator
from fl_core.views import Server

_ACTIVATIONS: dict[Any, str] = {
    nn.LeakyReLU: "leaky_relu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    F.leaky_relu: "leaky_relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
_AFFINE = {operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "div"}


@dataclass(frozen=True, kw_only=True)
class Link:
    """A step of a chain: its `kind`, a layer's `name` and module, and an activation's or a constant's `number`."""

    kind: str
    name: str = ""
    layer: nn.Module | None = None
    number: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Equations:
    """Of a layer: how many numbers enter it, and the rank of the equations for them."""

    name: str
    unknown: int
    rank: int

    @property
    def enough(self) -> bool:
        return self.rank >= self.unknown


class _Tracer(fx.Tracer):
    """Which takes a layer of one's own that is a linear layer or a convolution as one, as torch's are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear | nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def chain_of(model: nn.Module) -> list[Link]:
    """The steps of a model that is a chain of convolutions, linear layers and invertible activations.

    Constants added to pixels or multiplied with them belong to it, too. InputError, in a line, for any other model.
    """
    try:
        graph = _Tracer(autowrap_functions=(side_by_side,)).trace(model)
    except Exception as error:
        raise InputError(
            f"R-GAP cannot follow {type(model).__name__}: its forward pass is not a fixed chain"
        ) from error
    layers = dict(model.named_modules())
    links: list[Link] = []
    before: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "output":
            break
        if node.op != "placeholder":
            if before not in node.all_input_nodes or len(node.all_input_nodes) != 1:
                raise InputError(f"R-GAP needs a chain of layers; {node.name} takes more than the step before it")
            links.append(_link(node, layers))
        before = node
    weighted = [link for link in links if link.kind in ("conv", "linear")]
    if not weighted or links[-1].kind != "linear":
        raise InputError("R-GAP needs a chain that ends in a linear layer, whose outputs are the logits")
    if len({link.name for link in weighted}) < len(weighted):
        raise InputError("R-GAP needs a chain in which each layer is used once")
    return links


def _link(node: fx.Node, layers: dict[str, nn.Module]) -> Link:
    what: Any = node.target
    if node.op == "call_module":
        layer = layers[str(node.target)]
        if isinstance(layer, nn.Linear):
            return Link(kind="linear", name=str(node.target), layer=layer)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
            return Link(kind="conv", name=str(node.target), layer=layer)
        if isinstance(layer, nn.Flatten | nn.Identity):
            return Link(kind="flatten")
        if type(layer) in _ACTIVATIONS:
            return Link(kind=_ACTIVATIONS[type(layer)], number=getattr(layer, "negative_slope", 0.0))
        what = type(layer).__name__
    elif node.target in _AFFINE and isinstance(node.args[1], int | float):
        return Link(kind=_AFFINE[node.target], number=float(node.args[1]))
    elif node.target in _ACTIVATIONS:
        slope = node.kwargs.get("negative_slope", node.args[1] if len(node.args) > 1 else 0.01)
        return Link(kind=_ACTIVATIONS[node.target], number=float(slope))  # type: ignore[arg-type]
    elif node.target in ("flatten", torch.flatten, side_by_side):
        return Link(kind="flatten")
    raise InputError(
        f"R-GAP cannot undo {getattr(what, '__name__', what)}; it takes convolutions, linear layers, "
        "LeakyReLU, sigmoid and tanh"
    )


def _forward(link: Link, value: Tensor, sent: Tree) -> Tensor:
    """One step on one example [1, ...]."""
    if link.kind in ("conv", "linear"):
        return _apply(link, value, sent[f"{link.name}.weight"], sent.get(f"{link.name}.bias"))
    steps: dict[str, Any] = {
        "flatten": lambda: value.flatten(1) if link.kind == "flatten" and value.ndim > 2 else value,
        "leaky_relu": lambda: F.leaky_relu(value, link.number),
        "sigmoid": lambda: value.sigmoid(),
        "tanh": lambda: value.tanh(),
        "add": lambda: value + link.number,
        "sub": lambda: value - link.number,
        "mul": lambda: value * link.number,
        "div": lambda: value / link.number,
    }
    done: Tensor = steps[link.kind]()
    return done


def _apply(link: Link, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    layer = link.layer
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(value, weight, bias, layer.stride, layer.padding, layer.dilation)
    return F.linear(value, weight, bias)


def _undo(link: Link, value: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """An activation's or a constant's input and the loss's gradient there, from its output `value` and `delta`."""
    if link.kind == "leaky_relu":
        slope = torch.where(value >= 0, torch.ones_like(value), torch.full_like(value, link.number))
        return value / slope, delta * slope
    if link.kind == "sigmoid":
        inside = value.clamp(1e-12, 1 - 1e-12)
        return inside.logit(), delta * inside * (1 - inside)
    if link.kind == "tanh":
        inside = value.clamp(-1 + 1e-12, 1 - 1e-12)
        return inside.atanh(), delta * (1 - inside.square())
    number = link.number
    if link.kind in ("add", "sub"):
        return value - (number if link.kind == "add" else -number), delta
    return (value / number, delta * number) if link.kind == "mul" else (value * number, delta / number)


def _system(link: Link, shape: torch.Size, delta: Tensor, weight: Tensor) -> Tensor:
    """The matrix [equations, inputs] of a layer's weights' equations, then its gradient's, for inputs of `shape`."""
    unknown = shape.numel()
    every = torch.eye(unknown, dtype=weight.dtype).view(unknown, *shape[1:])
    forward = _apply(link, every, weight, None).flatten(1)
    if isinstance(link.layer, nn.Linear):
        return torch.cat([forward.T, torch.einsum("o,ui->oiu", delta[0], every).flatten(0, 1)])
    # ∂W is linear in x for a fixed δ: the gradient in W of ⟨δ, W∗x⟩, for every unit vector x.
    layer = link.layer
    assert isinstance(layer, nn.Conv2d)
    padding = layer.padding
    if isinstance(padding, str):
        raise InputError(f"R-GAP needs the padding of {link.name} as numbers, not {padding!r}")
    kernel = (weight.shape[2], weight.shape[3])
    windows = F.unfold(every, kernel, layer.dilation, padding, layer.stride)  # [unknown, inputs·k·k, places]
    gradient = torch.einsum("op,uqp->oqu", delta[0].flatten(1), windows)
    return torch.cat([forward.T, gradient.flatten(0, 1)])


def recoverable(model: nn.Module, shape: Shape, seed: int = 0) -> list[Equations]:
    """Whether R-GAP can recover a picture of `shape` from the model, as it stands: the rank of each layer's equations.

    From the first layer to the last but one, for a random picture with label 0: beforehand, without any update. The
    picture can be recovered where each layer has `enough`.
    """
    net = copy.deepcopy(model).double()
    links = chain_of(net)
    sent = {name: value.detach() for name, value in net.named_parameters()}
    values = [torch.rand(1, *shape, generator=generator(seed, "picture for ranks"), dtype=torch.float64)]
    values[0].requires_grad_()
    for link in links:
        values.append(_forward(link, values[-1], sent))
    deltas = torch.autograd.grad(F.cross_entropy(values[-1], torch.tensor([0])), values)
    found = []
    for place, link in enumerate(links):
        if link.kind not in ("conv", "linear"):
            continue
        system = _system(link, values[place].shape, deltas[place + 1], sent[f"{link.name}.weight"])
        norms = system.norm(dim=1, keepdim=True)
        rank = int(torch.linalg.matrix_rank(system / norms.clamp(min=1e-300)))
        found.append(Equations(name=link.name, unknown=values[place].numel(), rank=rank))
    return found


@dataclass(frozen=True, kw_only=True)
class RecursiveGradients:
    """One picture behind an update of one local step of a chain (`chain_of`). The output layer needs a bias."""

    name: ClassVar[str] = "R-GAP"
    needs: ClassVar[type[Server]] = Server
    letter: ClassVar[str] = "B"

    def run(self, updates: Updates, knowledge: Knowledge, **_: Any) -> Reconstruction:
        """Not cut to [0, 1]. Raises InputError for a batch, several steps, and models that are no such chain."""
        check_fits(updates, knowledge.model)
        check_one_step(knowledge, self.name)
        if knowledge.examples != 1:
            raise InputError(f"R-GAP needs one picture behind an update, and was told of {knowledge.examples}")
        links = chain_of(knowledge.model)
        if f"{links[-1].name}.bias" not in updates.moved:
            raise InputError("R-GAP needs an output layer with a bias here, whose gradient starts the recursion")
        labels = infer_labels(updates, knowledge)
        dtype = next(iter(updates.moved.values())).dtype
        images = torch.stack(
            [
                self._recover(
                    links,
                    {name: value[victim].double() for name, value in updates.sent.items()},
                    {name: -value[victim].double() for name, value in updates.moved.items()},
                    labels[victim],
                    knowledge.shape,
                )
                for victim in range(len(updates))
            ]
        )
        return verified(updates, knowledge, images.to(dtype), labels, self.name, torch.zeros(len(updates)))

    def _recover(self, links: list[Link], sent: Tree, gradient: Tree, label: Tensor, shape: Shape) -> Tensor:
        """One picture [1, channels, height, width]."""
        probe = torch.full((1, *shape), 0.5, dtype=torch.float64)
        shapes = [probe.shape]
        for link in links:
            probe = _forward(link, probe, sent)
            shapes.append(probe.shape)
        head = links[-1]
        slope = gradient[f"{head.name}.bias"]
        value = (slope @ gradient[f"{head.name}.weight"] / (slope @ slope))[None]
        logits = _forward(head, value, sent)
        delta = logits.softmax(1) - F.one_hot(label, logits.shape[1])
        factor = (slope @ delta[0]) / (delta[0] @ delta[0])  # the rate, where it is not known
        delta = delta @ sent[f"{head.name}.weight"]
        for place in range(len(links) - 2, -1, -1):
            link = links[place]
            if link.kind == "flatten":
                value, delta = value.view(shapes[place]), delta.view(shapes[place])
            elif link.kind in ("conv", "linear"):
                weight, bias = sent[f"{link.name}.weight"], sent.get(f"{link.name}.bias")
                known = value if bias is None else value - bias.view(1, -1, *[1] * (value.ndim - 2))
                moved = (gradient[f"{link.name}.weight"] / factor).flatten()
                system = _system(link, shapes[place], delta, weight)
                target = torch.cat([known.flatten(), moved])
                # The gradient's equations are as many orders smaller as δ is: each equation counts alike.
                size = system.norm(dim=1)
                kept = size > 1e-12 * size.max()
                system, target = system[kept] / size[kept, None], target[kept] / size[kept]
                before = torch.linalg.lstsq(system, target[:, None]).solution.view(shapes[place])
                delta = _back(link, shapes[place], delta, weight)
                value = before
            else:
                value, delta = _undo(link, value, delta)
        return value


def _back(link: Link, shape: torch.Size, delta: Tensor, weight: Tensor) -> Tensor:
    """The loss's gradient at a layer's input, from that at its output."""
    blank = torch.zeros(shape, dtype=weight.dtype, requires_grad=True)
    return torch.autograd.grad(_apply(link, blank, weight, None), blank, delta)[0]
