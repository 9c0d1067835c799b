"""What lanes take while they train, measured on a few of them, so that a run never dies of memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fl_core.algorithms.fedavg import FedAvg
from fl_core.lanes import Backend, descend
from fl_core.models import ClassificationLosses, statistics_of, variables_of
from fl_core.optimizers import Tree
from fl_core.recorded import Recordings
from fl_core.rules import ExampleRule
from fl_core.sampling import ExampleFeed
from fl_core.seeds import Generators

GIB = 2**30
_PICTURES = 8
_LOST = 1.5
"""Resident memory over the tensors' own, of stacked lanes: kernels' scratch space, and gaps between freed blocks."""


class _Peak(TorchDispatchMode):
    """Adds up the tensors that are alive, operation by operation, of those that were made inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `recorded`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)
        }
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in given:
                storage = value.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return found


class Footprint(NamedTuple):
    """Bytes of a stack of lanes: `shared` once, however many they are, and `lane` for each.

    `example` of a lane's are those of one example of its batch; they come again with each that is at work at once.
    """

    shared: int
    lane: int
    example: int = 0

    def lanes(self, budget: float) -> int:
        """How many lanes fit into a budget of bytes, at least one."""
        return max(1, int((budget - self.shared) // self.lane))

    def examples(self, budget: float, batch: float) -> int | None:
        """How many of a batch's examples to have at work at once, where one lane alone is too much; None: all."""
        beyond = self.shared + self.lane - budget
        if beyond <= 0 or not self.example:
            return None
        return max(1, math.ceil(batch) - math.ceil(beyond / self.example))


def footprint(
    model: nn.Module,
    shape: tuple[int, ...],
    batch: float,
    algorithm: FedAvg,
    rule: ExampleRule | None = None,
    backend: Backend = "auto",
    kept: Tree | None = None,
) -> Footprint:
    """What lanes of `model` take that train on batches of `batch` pictures of `shape` as `algorithm` has them.

    One and two lanes take a step, on the batch itself or, of a large one, on 4 and 8 pictures, and what its tensors
    take is extended to more. A lane also has what it was sent, and after its steps its update, which the server copies
    once. `kept` is what one lane keeps for its rule. Of `auto` it is what stacked lanes take, which is the more. Whole
    federations are set beside it in results/benchmarks/engine.md.
    """
    stacked = backend != "loop" and not statistics_of(model)
    pictures = max(1, math.ceil(batch))

    def takes(lanes: int) -> tuple[int, int]:
        def bytes_of(count: int) -> int:
            return step_bytes(model, shape, lanes, count, algorithm, rule, stacked, kept)

        few = min(pictures, _PICTURES)
        most = bytes_of(few)
        if few == 1 or (pictures <= _PICTURES and rule is None):
            return most, 0
        example = (most - bytes_of(few // 2)) // (few - few // 2)
        return most + (pictures - few) * example, example

    (one, example), (two, _) = takes(1), takes(2)
    size = sum(value.numel() * value.element_size() for value in variables_of(model).values())
    lost = _LOST if stacked else 1.0
    lane = max(two - one + size, 4 * size)
    return Footprint(
        shared=int(lost * max(2 * one - two, 0)), lane=int(lost * lane), example=int(lost * max(example, 0))
    )


def step_bytes(
    model: nn.Module,
    shape: tuple[int, ...],
    lanes: int,
    pictures: int,
    algorithm: FedAvg,
    rule: ExampleRule | None,
    stacked: bool,
    kept: Tree | None = None,
) -> int:
    """The most that the tensors of one step of `lanes` on `pictures` each take together, beside what was sent."""
    replica = {name: value.unsqueeze(0) for name, value in variables_of(model).items()}
    broadcast = algorithm.broadcast(replica, algorithm.server_state(replica))
    sent = {name: value.expand(lanes, *value.shape[1:]) for name, value in broadcast.items()}
    mine = {name: value[0] for name, value in algorithm.client_state(replica, lanes).items()}
    start, optimizer = algorithm.local(algorithm.lr, sent, mine)
    like = next(iter(start.values()))
    images = torch.zeros(pictures, *shape, dtype=like.dtype, device=like.device)
    labels = torch.zeros(pictures, dtype=torch.long, device=like.device)
    with _Peak() as peak:
        descend(
            start,
            ClassificationLosses(model),
            ExampleFeed(images, labels, [[torch.arange(pictures)] * 2] * lanes),
            optimizer,
            rule=rule,
            generators=Generators([0] * lanes, like.device),
            backend="vmap" if stacked else "loop",
            statistics=statistics_of(model),
            kept={name: value.expand(lanes, *value.shape).clone() for name, value in (kept or {}).items()},
            recordings=Recordings(record_at=1),  # the step that is checked takes the most
        )
    return int(peak.bytes)


def memory_budget(device: torch.device) -> int:
    """Bytes that lanes may take together: a fixed 2 GiB on a CPU, whatever the machine; 40% of a GPU's memory."""
    if device.type == "cuda":
        return int(0.4 * torch.cuda.get_device_properties(device).total_memory)
    return 2 * GIB
