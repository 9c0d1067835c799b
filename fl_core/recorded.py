"""A step's arithmetic, recorded once and replayed without the machinery that found it.

`vmap` and autograd decide anew at every step which operations to run, a large part of a small model's step. A function
of tensors alone always comes to the same list for inputs of the same layout, so it is written down once and replayed:
the same operations on the same kernels, hence the same numbers, bit for bit. The first calls of a layout run plainly,
one is recorded, and the next must agree with its replay before replays are trusted; a function that looks at values, or
that does not agree, runs plainly for good.
"""

from __future__ import annotations

import hashlib
import io
import operator
import pickle
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

Function = Callable[..., Any]
"""Of tensors, to any tree of tensors."""

Layout = tuple[Hashable, ...]

_MOST_MODELS = 32


class Unrecordable(Exception):
    """A function whose operations do not follow from the layouts of its inputs alone."""


class _Recorder(TorchDispatchMode):
    """Writes every operation of torch that runs inside it into a graph."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: list[Tensor] = []
        self._nodes: Any = WeakTensorKeyDictionary()
        for number, value in enumerate(inputs):
            self._know(value, self.graph.placeholder(f"input_{number}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps the method below in its compiler, whose import takes seconds

    def _know(self, value: Tensor, node: fx.Node) -> None:
        self._nodes[value] = node
        node.meta["layout"] = layout(value)

    def node(self, value: Any) -> Any:
        """What stands for a value in the graph; a tensor that no recorded operation made is a constant."""
        if not isinstance(value, Tensor):
            return value
        if value not in self._nodes:
            with self.graph.inserting_before():
                self._know(value, self.graph.placeholder(f"constant_{len(self.constants)}"))
            self.constants.append(value)
        return self._nodes[value]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _depends_on_values(func, args):
            raise Unrecordable(f"{func} depends on values")
        kwargs = kwargs or {}
        node = self.graph.call_function(func, tree_map(self.node, tuple(args)), tree_map(self.node, kwargs))
        found = func(*args, **kwargs)
        if isinstance(found, Tensor):
            self._know(found, node)
        elif isinstance(found, (tuple, list)):
            for number, one in enumerate(found):
                if isinstance(one, Tensor):
                    self._know(one, self.graph.call_function(operator.getitem, (node, number)))
        return found


def _depends_on_values(func: Any, args: Any) -> bool:
    """Whether an operation hands out values (`item`, `equal`), or its output's shape follows from them (`nonzero`)."""
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


_MAY_DO_NOTHING = {
    getattr(torch.ops.aten, name).default for name in ("permute", "view", "_unsafe_view", "expand", "detach")
}


def record(function: Function, inputs: Sequence[Tensor]) -> tuple[Any, Function]:
    """What `function(*inputs)` returns, and a replay of it for other inputs of the same layout.

    Raises Unrecordable where the function's operations follow from values, or two inputs are one tensor.
    """
    if len({id(value) for value in inputs}) < len(inputs):
        raise Unrecordable("one tensor stands for two inputs, which another call need not repeat")
    recorder = _Recorder(inputs)
    with recorder:
        found = function(*inputs)
    graph = recorder.graph
    leaves, shape = tree_flatten(found)
    graph.output(tuple(recorder.node(value) for value in leaves))
    for node in list(graph.nodes):  # views that change nothing are a quarter of all operations
        if node.target in _MAY_DO_NOTHING and node.args[0].meta["layout"] == node.meta["layout"]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    constants = tuple(reversed(recorder.constants))  # each stands before the one that was found before it
    forward = fx.GraphModule({}, graph).forward
    return found, lambda *values: tree_unflatten(forward(*constants, *values), shape)


def layout(value: Tensor) -> Layout:
    """What decides which operations run on a tensor, its values aside."""
    return value.shape, value.stride(), value.dtype, value.device


@dataclass
class _Plain:
    """A layout that is not replayed: not yet, or never once its `calls` are past the one to record."""

    calls: int = 0


class Recordings:
    """The replays of a few functions, by the layouts of their inputs.

    The call numbered `record_at` of a layout is the one recorded: what that costs comes back after some twenty replays.
    """

    def __init__(self, record_at: int = 8) -> None:
        self._record_at = record_at
        self._known: dict[Layout, Function | _Plain] = {}
        self._trusted: set[Layout] = set()

    def run(self, name: Hashable, function: Function, inputs: Sequence[Tensor]) -> Any:
        """`function(*inputs)`, replayed where that is known to be the same; `name` tells functions apart."""
        key = (name, *[layout(value) for value in inputs])
        known = self._known.setdefault(key, _Plain())
        if not isinstance(known, _Plain):
            if key in self._trusted:
                with torch.no_grad():
                    return known(*inputs)
            found = function(*inputs)
            with torch.no_grad():
                agree = all(map(_same, tree_leaves(found), tree_leaves(known(*inputs))))
            if agree:
                self._trusted.add(key)
            else:
                self._known[key] = _Plain(calls=self._record_at)
            return found
        known.calls += 1
        if known.calls != self._record_at:
            return function(*inputs)
        try:
            found, self._known[key] = record(function, inputs)
        except Unrecordable:
            return function(*inputs)
        return found


def _same(one: Tensor, other: Tensor) -> bool:
    if one.device.type == "cpu":
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=1e-3, atol=1e-5)  # some of a GPU's kernels add in no fixed order


_models: OrderedDict[bytes, Recordings] = OrderedDict()


def recordings_of(model: nn.Module, run: str, precision: str = "float32") -> Recordings:
    """The recordings of a model's training step in a precision, kept in this process from one job to the next.

    They are found again by everything that the model holds but its parameters' values. Code of one's own can change
    under a model that looks the same (in a notebook, say), so such a model's are kept for one `run` alone. A model
    that cannot be pickled has fresh ones every time.
    """
    file = io.BytesIO()
    try:
        _WithoutParameters(file).dump(model)
    except Exception:  # pickle raises whatever an object's own methods raise
        return Recordings()
    ours = all(type(layer).__module__.partition(".")[0] in ("torch", "fl_core") for layer in model.modules())
    key = hashlib.sha256(file.getvalue() + f"/{precision}/{'' if ours else run}".encode()).digest()
    found = _models.setdefault(key, Recordings())
    _models.move_to_end(key)
    while len(_models) > _MOST_MODELS:
        _models.popitem(last=False)
    return found


class _WithoutParameters(pickle.Pickler):
    """Writes a parameter's layout in the place of its values."""

    def persistent_id(self, value: Any) -> Any:
        return str(layout(value)) if isinstance(value, nn.Parameter) else None
