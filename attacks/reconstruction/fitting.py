"""Many guesses descend an objective together: victims times restarts are lanes of the one training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from attacks.reconstruction.objectives import Objective, Same
from fl_core.checkpoint import load_tensors, save_tensors
from fl_core.errors import InputError, check_number
from fl_core.lanes import Backend, descend
from fl_core.optimizers import Optimizer, Tree
from fl_core.recorded import Recordings


@runtime_checkable
class Settles(Protocol):
    """An optimizer whose variables are proposals, and which can say what it holds for good."""

    def settled(self, variables: Tree, slots: Tree) -> Tree:
        """The variables [lanes, ...] that it holds for good, in place of those it proposes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a descent ends. It is looked at every `part` iterations, and takes `iterations` at most.

    A lane is stopped once its objective is at most `enough`, or has not become `patience` times its own size better in
    a part (0: never for that). After each part of the first half of the way, the worse restarts of a victim go until a
    `keep`-th is left in the end (1: all stay).
    """

    iterations: int = 400
    part: int = 100
    enough: float = 0.0
    patience: float = 0.0
    keep: float = 1.0

    def __post_init__(self) -> None:
        check_number("attack.reconstruction.iterations", self.iterations, minimum=1, integer=True)
        check_number("attack.reconstruction.part", self.part, minimum=1, integer=True)
        check_number("attack.reconstruction.enough", self.enough, minimum=0)
        check_number("attack.reconstruction.patience", self.patience, minimum=0, below=1)
        check_number("attack.reconstruction.keep", self.keep, above=0, maximum=1)

    def survivors(self, done: int, restarts: int) -> int:
        """How many restarts of a victim go on after `done` iterations."""
        way = min(1.0, 2 * done / self.iterations)
        left: float = restarts * self.keep**way
        return max(1, round(left))


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The best that each lane came by: `variables` [lanes, ...], its `objective` [lanes], and what it cost.

    A lane that never had a finite objective has inf. `iterations` [lanes] are those that it took before it stopped.
    """

    variables: Tree
    objective: Tensor
    iterations: Tensor


Consensus = Callable[[Tree, Tensor], Tree]
"""From the lanes' variables and who is still moving [lanes, bool], what the context gets anew for the next part."""


@dataclass
class _State:
    """All of a descent between two parts. `slots` are those of the lanes that still move, in the lanes' order."""

    variables: Tree
    slots: Tree
    best: Tree
    objective: Tensor
    last: Tensor
    iterations: Tensor
    moving: Tensor
    done: int = 0

    def tensors(self) -> Tree:
        trees = {"variables": self.variables, "slots": self.slots, "best": self.best}
        found = {f"{tree}/{name}": value for tree, values in trees.items() for name, value in values.items()}
        return found | {name: getattr(self, name) for name in ("objective", "last", "iterations", "moving")}

    @classmethod
    def read(cls, path: Path, device: torch.device) -> tuple[_State, dict[str, object]]:
        stored, facts = load_tensors(path)
        trees: dict[str, Tree] = {"variables": {}, "slots": {}, "best": {}}
        plain: Tree = {}
        for name, value in stored.items():
            tree, _, inner = name.partition("/")
            (trees[tree] if inner else plain)[inner or name] = value.to(device)
        done = facts["done"]
        assert isinstance(done, int)
        state = cls(
            **trees,
            objective=plain["objective"],
            last=plain["last"],
            iterations=plain["iterations"],
            moving=plain["moving"],
            done=done,
        )
        return state, facts


def fit(
    objective: Objective,
    variables: Tree,
    context: Tree,
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    restarts: int,
    consensus: Consensus | None = None,
    backend: Backend = "auto",
    checkpoint: Path | None = None,
    on_part: Callable[[int], object] | None = None,
) -> Fitted:
    """Descend from `variables` [lanes, ...] in `context` [lanes, ...]; a victim's `restarts` lie together.

    Each lane's answer is the best that it had at the end of a part, by the objective. What stands in the file
    `checkpoint` is gone on with, to the same bits; it is written after each part, and removed by whoever asked for it.
    Raises InputError for a checkpoint of another descent. `on_part` is called with the iterations done.
    """
    state = _begin(variables, optimizer)
    fingerprint = _fingerprint(variables, context, f"{objective.settings} {optimizer} {schedule}")
    if checkpoint is not None and checkpoint.exists():
        state, facts = _State.read(checkpoint, state.objective.device)
        if facts.get("fingerprint") != fingerprint:
            raise InputError(f"{checkpoint} belongs to another reconstruction; delete it, or name another file")
    recordings = Recordings()
    while state.done < schedule.iterations and bool(state.moving.any()):
        stop = min(state.done + schedule.part, schedule.iterations)
        lanes = state.moving.nonzero().flatten()
        if consensus is not None:
            context = context | consensus(state.variables, state.moving)
        mine = {name: value[lanes] for name, value in context.items()}
        moved = descend(
            {name: value[lanes] for name, value in state.variables.items()},
            objective,
            Same(mine, schedule.iterations),
            optimizer,
            slots=state.slots,
            span=(state.done, stop),
            backend=backend,
            recordings=recordings,
        )
        state.iterations[lanes] += stop - state.done
        state.done = stop
        _judge(state, lanes, moved, objective, optimizer, mine)
        _stop_some(state, lanes, schedule, restarts)
        if checkpoint is not None:
            save_tensors(checkpoint, state.tensors(), {"done": state.done, "fingerprint": fingerprint})
        if on_part is not None:
            on_part(state.done)
    return Fitted(variables=state.best, objective=state.objective, iterations=state.iterations)


def _begin(variables: Tree, optimizer: Optimizer) -> _State:
    first = next(iter(variables.values()))
    lanes, device = len(first), first.device
    return _State(
        variables={name: value.clone() for name, value in variables.items()},
        slots=optimizer.slots(variables),
        best={name: value.clone() for name, value in variables.items()},
        objective=torch.full((lanes,), torch.inf, device=device),
        last=torch.full((lanes,), torch.inf, device=device),
        iterations=torch.zeros(lanes, dtype=torch.long, device=device),
        moving=torch.ones(lanes, dtype=torch.bool, device=device),
    )


def _judge(
    state: _State, lanes: Tensor, moved: Tree, objective: Objective, optimizer: Optimizer, context: Tree
) -> None:
    """Write the moved lanes back, and keep what is the best of each so far."""
    for name, value in moved.items():
        state.variables[name][lanes] = value
    held = optimizer.settled(moved, state.slots) if isinstance(optimizer, Settles) else moved
    with torch.no_grad():
        found = torch.func.vmap(objective)(held, context)[:, 0].to(state.objective.dtype)
    found = torch.where(torch.isfinite(found), found, torch.inf)
    state.last = state.objective.clone()
    better = found < state.objective[lanes]
    state.objective[lanes[better]] = found[better]
    for name, value in held.items():
        state.best[name][lanes[better]] = value[better]


def _stop_some(state: _State, lanes: Tensor, schedule: Schedule, restarts: int) -> None:
    """Take the lanes that end here out of those that move, and their slots with them."""
    stays = state.objective > schedule.enough
    if schedule.patience:
        finite = torch.isfinite(state.last)
        stays &= ~finite | (state.objective < (1 - schedule.patience) * state.last)
    rank = state.objective.view(-1, restarts).argsort(dim=1, stable=True).argsort(dim=1, stable=True).flatten()
    stays &= rank < schedule.survivors(state.done, restarts)
    state.moving = state.moving & stays
    still = state.moving[lanes]
    state.slots = {name: value[still] for name, value in state.slots.items()}


def _fingerprint(variables: Tree, context: Tree, settings: str) -> str:
    """What tells one descent from another: where it begins, what it is to meet, and how it goes there."""
    sums = [float(value.double().sum()) for tree in (variables, context) for value in tree.values()]
    return f"{settings} {sums}"
