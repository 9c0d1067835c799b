"""The training loop: many copies of one small problem, side by side.

A lane is one copy: its own variables, its own examples, its own noise. The clients of a cohort, the replicas of a
federation, the shadow models of a membership attack and the restarts of a reconstruction are all lanes, and `descend`
is the one loop that moves them. Two backends give the same numbers to float tolerance:

- `vmap` stacks the lanes on a leading axis: best on a GPU, and on a CPU for tiny models;
- `loop` takes one lane at a time, in place: best for a CPU that is busy with each model alone;
- `auto` runs the first steps both ways, keeps the faster for this kind of problem, and wastes no step on it.

Either way the arithmetic of a step is recorded once and replayed; see `recorded`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from fl_core.errors import InputError, check_choice
from fl_core.optimizers import Optimizer, Tree
from fl_core.per_example import example_gradients, stacked_example_gradients
from fl_core.recorded import Recordings
from fl_core.rules import ExampleRule, Gradients, Input, Step, apply

Backend = Literal["auto", "vmap", "loop"]
BACKENDS = ("auto", "vmap", "loop")
Losses = Callable[..., Tensor]
"""`losses(variables, *inputs) -> [batch]`, for one lane."""


@dataclass(frozen=True)
class Batch:
    """The inputs of one step: each has a leading [lanes, batch]; `mask` [lanes, batch] is 1 for real examples.

    An input is a tensor or a tree of them. `active` [lanes] is False for a lane that takes no step now; None means
    that all do.
    """

    inputs: tuple[Input, ...]
    mask: Tensor
    active: Tensor | None = None


class Feed(Protocol):
    """Hands out batches. `one` gives a single lane's batch without padding, or None where that lane is idle."""

    @property
    def steps(self) -> int:
        """How many steps the lane with the longest plan takes."""
        ...

    def stacked(self, step: int) -> Batch:
        """All lanes' batches of a step [lanes, batch, ...]; its mask is 0 in padding."""
        ...

    def one(self, step: int, lane: int) -> Batch | None:
        """The batch of one lane [1, batch, ...] without padding; None where that lane is idle."""
        ...


_T = TypeVar("_T", Tree, Gradients)
_Find = Callable[["_Problem", Tree, Tensor, tuple[Input, ...]], _T]


@dataclass(frozen=True)
class _Problem:
    """What stays the same over the steps."""

    losses: Losses
    feed: Feed
    optimizer: Optimizer
    rule: ExampleRule | None
    generators: Sequence[torch.Generator]
    statistics: frozenset[str]
    recordings: Recordings
    channels_last: bool
    kept: Tree
    at_once: int | None

    def moving(self, variables: Tree) -> Tree:
        """The variables that descend; the others are statistics, which the forward pass itself keeps."""
        return {name: value for name, value in variables.items() if name not in self.statistics}

    def mean_loss(self, variables: Tree, mask: Tensor, inputs: tuple[Input, ...]) -> Tensor:
        return (self.losses(variables, *inputs) * mask).sum() / mask.sum().clamp(min=1)

    def gradients(self, find: _Find[_T], variables: Tree, mask: Tensor, inputs: tuple[Input, ...]) -> _T:
        """`find`'s gradients of the variables that descend, replayed where its operations are known."""
        if self.statistics:  # which the forward pass changes in place, so it cannot be checked by running it twice
            return find(self, variables, mask, inputs)
        names: list[str] = list(variables)

        def function(*values: Tensor) -> _T:
            rest = iter(values[len(names) :])
            return find(self, dict(zip(names, values, strict=False)), next(rest), _each(inputs, lambda _: next(rest)))

        flat = [*variables.values(), mask]
        for value in inputs:
            flat.extend([value] if isinstance(value, Tensor) else value.values())
        found: _T = self.recordings.run((find.__name__, *names), function, flat)
        return found


def _stacked_mean(problem: _Problem, variables: Tree, mask: Tensor, inputs: tuple[Input, ...]) -> Tree:
    leaves = _leaves(variables)
    if len(mask) == 1:  # GroupNorm under `vmap` fails on one lane with its channels last
        inputs = _each(inputs, Tensor.contiguous)
    return _gradients(vmap(problem.mean_loss)(leaves, mask, inputs), leaves)


def _stacked_examples(problem: _Problem, variables: Tree, _: Tensor, inputs: tuple[Input, ...]) -> Gradients:
    """Per-example gradients [lanes, batch, ...]."""
    return stacked_example_gradients(problem.losses, variables, inputs)


def _mean(problem: _Problem, variables: Tree, _: Tensor, inputs: tuple[Input, ...]) -> Tree:
    """One lane's; its batch has no padding."""
    leaves = _leaves(problem.moving(variables))
    return _gradients(problem.losses(variables | leaves, *inputs).mean(), leaves)


def _examples(problem: _Problem, variables: Tree, _: Tensor, inputs: tuple[Input, ...]) -> Gradients:
    """One lane's per-example gradients [batch, ...]."""
    return example_gradients(problem.losses, variables, inputs)


_fastest: dict[tuple[object, ...], Literal["vmap", "loop"]] = {}
_TRIAL_STEPS = 3  # the first warms up, the others are timed
_HOPELESS = 1.1  # a backend that is so many times slower in a timed step is tried no longer


def descend(
    variables: Tree,
    losses: Losses,
    feed: Feed,
    optimizer: Optimizer,
    *,
    rule: ExampleRule | None = None,
    generators: Sequence[torch.Generator] = (),
    backend: Backend = "auto",
    on_step: Callable[[int], object] | None = None,
    statistics: Collection[str] = (),
    recordings: Recordings | None = None,
    channels_last: bool = False,
    kept: Tree | None = None,
    examples_at_once: int | None = None,
    slots: Tree | None = None,
    span: tuple[int, int] | None = None,
) -> Tree:
    """Minimise each lane's loss over the feed's steps and return the new variables [lanes, ...]; the old ones stay.

    Without a rule a step follows the gradient of the mean loss over the lane's real examples; with one it follows
    the rule's, of the per-example gradients, of which a lane has `examples_at_once` in memory (None: the whole batch).
    `kept` [lanes, ...] is what the rule keeps from step to step; it changes in place. `on_step` is called with each
    finished step's number where the backend goes step by step, and at the end otherwise.

    `statistics` names variables that `losses` updates in place by itself (BatchNorm's running means). They mix the
    examples of a batch, so that they go with no rule, nor with the padded batches of `vmap`: `auto` takes `loop`, and
    the rest raises InputError.

    `slots` [lanes, ...] is what the optimizer keeps, which changes in place; None begins anew. With it and a `span` of
    steps, [from, to), a descent can be cut into parts that come to the same (None: all of the feed's steps).

    `recordings` are those of the same losses from an earlier call, in which they may go on. With `channels_last`,
    `loop` on a CPU lays convolution kernels out so, for pictures that lie so too; see `models.takes_channels_last`.
    """
    check_choice("backend", backend, BACKENDS)
    if statistics:
        if rule is not None or backend == "vmap":
            raise InputError(
                "BatchNorm mixes the examples of a batch: no example's gradient stands alone, for a defence to clip, "
                "and a padded batch is another batch; use norm=group, or no such defence and backend=loop"
            )
        backend = "loop"
    variables = {name: value.detach().clone() for name, value in variables.items()}
    problem = _Problem(
        losses=losses,
        feed=feed,
        optimizer=optimizer,
        rule=rule,
        generators=generators,
        statistics=frozenset(statistics),
        recordings=recordings or Recordings(),
        channels_last=channels_last,
        kept={} if kept is None else kept,
        at_once=examples_at_once,
    )
    slots = optimizer.slots(problem.moving(variables)) if slots is None else slots
    start, stop = span or (0, feed.steps)
    if backend == "auto":
        backend, start = _choose(problem, variables, slots, start, stop)
    _run(backend, problem, variables, slots, start, stop, on_step)
    return variables


def _run(
    backend: Literal["vmap", "loop"],
    problem: _Problem,
    variables: Tree,
    slots: Tree,
    start: int,
    stop: int,
    on_step: Callable[[int], object] | None = None,
) -> None:
    run = _run_stacked if backend == "vmap" else _run_one_by_one
    run(problem, variables, slots, start, stop, on_step)


def _choose(
    problem: _Problem, variables: Tree, slots: Tree, start: int, stop: int
) -> tuple[Literal["vmap", "loop"], int]:
    """Time the first steps both ways, as real progress; remember the answer for problems of the same size."""
    first = next(iter(variables.values()))
    lanes = first.shape[0]
    if lanes == 1 and problem.rule is None:
        return "loop", start
    kind = (
        first.device.type,
        torch.get_num_threads(),
        lanes,
        tuple(tuple(value.shape[1:]) for value in variables.values()),
        # To a power of two: a Poisson batch has a new width every time, and that is no new kind of problem.
        *(_size(problem.feed.stacked(start)) if stop > start else ()),
        type(problem.rule),
    )
    if kind in _fastest:
        return _fastest[kind], start
    if stop - start < 2 * _TRIAL_STEPS:
        return ("loop" if first.device.type == "cpu" else "vmap"), start
    seconds: dict[Literal["vmap", "loop"], float] = {}
    step = start
    for backend in ("loop", "vmap"):
        for trial in range(_TRIAL_STEPS):
            _synchronize(first.device)
            began = time.perf_counter()
            _run(backend, problem, variables, slots, step, step + 1)
            _synchronize(first.device)
            seconds[backend] = min(seconds.get(backend, float("inf")), time.perf_counter() - began)
            step += 1
            if trial and seconds[backend] > _HOPELESS * seconds["loop"]:
                break
    _fastest[kind] = min(seconds, key=lambda backend: seconds[backend])
    return _fastest[kind], step


def _size(batch: Batch) -> tuple[int, int]:
    """About how many examples a lane has in a batch, and how many numbers all lanes have."""
    inputs = sum(value.numel() for value in tree_leaves(batch.inputs))
    return batch.mask.shape[1].bit_length(), inputs.bit_length()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _run_stacked(
    problem: _Problem,
    variables: Tree,
    slots: Tree,
    start: int,
    stop: int,
    on_step: Callable[[int], object] | None,
) -> None:
    def examples(mask: Tensor, inputs: tuple[Input, ...]) -> Gradients:
        if not mask.shape[1]:
            return {name: value.new_zeros(value.shape[0], 0, *value.shape[1:]) for name, value in variables.items()}
        return problem.gradients(_stacked_examples, variables, mask, inputs)

    told = Step(variables, problem.generators, problem.kept)
    for step in range(start, stop):
        batch = problem.feed.stacked(step)
        with _idle_lanes_unchanged(batch.active, (variables, slots, problem.kept)):
            if problem.rule is None:
                gradients = problem.gradients(_stacked_mean, variables, batch.mask, batch.inputs)
            else:
                gradients = apply(problem.rule, examples, batch.mask, batch.inputs, told, problem.at_once)
            with torch.no_grad():
                problem.optimizer.step(variables, gradients, slots, step)
        if on_step is not None:
            on_step(step)


@contextmanager
def _idle_lanes_unchanged(active: Tensor | None, trees: Sequence[Tree]) -> Iterator[None]:
    """What happens inside changes nothing of a lane that is not active, bit for bit; None means that all are."""
    if active is None:
        yield
        return
    before = [{name: value.clone() for name, value in tree.items()} for tree in trees]
    yield
    for tree, old in zip(trees, before, strict=True):
        for name, value in tree.items():
            value.copy_(torch.where(active.view(-1, *[1] * (value.dim() - 1)), value, old[name]))


def _run_one_by_one(
    problem: _Problem,
    variables: Tree,
    slots: Tree,
    start: int,
    stop: int,
    on_step: Callable[[int], object] | None,
) -> None:
    beside = problem.channels_last and problem.rule is None and next(iter(variables.values())).device.type == "cpu"
    for lane in range(next(iter(variables.values())).shape[0]):
        stored = [{name: value[lane] for name, value in tree.items()} for tree in (variables, slots)]
        mine, my_slots = [_own(tree, beside) for tree in stored]
        moving = problem.moving(mine)
        one = slice(lane, lane + 1)
        told = Step(
            {name: value.unsqueeze(0) for name, value in mine.items()},
            problem.generators[one],
            {name: value[one] for name, value in problem.kept.items()},
        )

        def examples(mask: Tensor, inputs: tuple[Input, ...], mine: Tree = mine) -> Gradients:
            # An empty batch has no loss to differentiate; its copies [0, ...] are the gradients' shape.
            inner = _each(inputs, lambda leaf: leaf[0])
            found = problem.gradients(_examples, mine, mask[0], inner) if mask.shape[1] else _copies(mine, 0)
            beside: Gradients = tree_map(lambda leaf: leaf.unsqueeze(0), found)
            return beside

        for step in range(start, stop):
            batch = problem.feed.one(step, lane)
            if batch is None:
                continue
            if problem.rule is not None:
                found = apply(problem.rule, examples, batch.mask, batch.inputs, told, problem.at_once)
                gradients = {name: value[0] for name, value in found.items()}
            elif batch.mask.shape[1]:
                inputs = _each(batch.inputs, lambda value: value[0])
                gradients = problem.gradients(_mean, mine, batch.mask[0], inputs)
            else:
                gradients = {name: torch.zeros_like(value) for name, value in moving.items()}
            with torch.no_grad():
                problem.optimizer.step(moving, gradients, my_slots, step)
        for tree, used in zip(stored, (mine, my_slots), strict=True):
            for name, value in tree.items():
                value.copy_(used[name])
    if on_step is not None and stop > start:
        on_step(stop - 1)


def _own(tree: Tree, channels_last: bool) -> Tree:
    """One lane's tree in memory of its own: where it lies in a stack must not choose among a CPU's kernels.

    Convolution kernels are faster there with channels last.
    """
    return {
        name: value.clone(
            memory_format=torch.channels_last if channels_last and value.dim() == 4 else torch.contiguous_format
        )
        for name, value in tree.items()
    }


def _leaves(variables: Tree) -> Tree:
    """The same values, in the same storage, as places where gradients end."""
    return {name: value.detach().requires_grad_() for name, value in variables.items()}


def _copies(variables: Tree, count: int) -> Tree:
    """One lane's variables [count, ...], an example's own copy each, without taking memory."""
    return {name: value.expand(count, *value.shape) for name, value in variables.items()}


def _gradients(losses: Tensor, leaves: Tree) -> Tree:
    """Each leaf's gradient of the losses' sum, where lanes share no leaf.

    Plain autograd around `vmap` gives the numbers of `torch.func.grad` inside it, in less time and without importing
    torch's compiler, which takes seconds.
    """
    found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _each(inputs: tuple[Input, ...], change: Callable[[Tensor], Tensor]) -> tuple[Input, ...]:
    return tuple(
        change(value) if isinstance(value, Tensor) else {name: change(leaf) for name, leaf in value.items()}
        for value in inputs
    )
