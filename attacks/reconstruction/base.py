"""What a reconstruction attack reads, what it was told, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fl_core.errors import InputError, check_number
from fl_core.models import variables_of
from fl_core.optimizers import Tree
from fl_core.views import Observation, SecureServer, Server, require_view

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What an observer saw of each victim: `sent` [victims, ...], the model that it got, and `moved`, what came back.

    A victim is a client, whose update `moved` [victims, ...] is; or a whole cohort, and `moved` is its mean update.
    `view` is the view's name. Both hold the model's variables by name, those that stay with a client aside.
    """

    view: str
    sent: Tree
    moved: Tree

    def __len__(self) -> int:
        return len(next(iter(self.moved.values())))

    def gradient(self, lr: float | None = None) -> Tree:
        """The mean gradient [victims, ...] of one local step at rate `lr`; None leaves the positive factor unknown."""
        return {name: -value / (1.0 if lr is None else lr) for name, value in self.moved.items()}

    def to(self, device: torch.device | str) -> Updates:
        """On another device."""
        sent, moved = ({name: value.to(device) for name, value in tree.items()} for tree in (self.sent, self.moved))
        return Updates(view=self.view, sent=sent, moved=moved)

    def ordered(self, model: nn.Module) -> Updates:
        """In the order of the model's variables, which a file need not keep."""
        names = variables_of(model)
        sent, moved = ({name: tree[name] for name in names if name in tree} for tree in (self.sent, self.moved))
        return Updates(view=self.view, sent=sent, moved=moved)

    def select(self, victims: slice | Tensor) -> Updates:
        """Those of some victims."""
        sent, moved = ({name: value[victims] for name, value in tree.items()} for tree in (self.sent, self.moved))
        return Updates(view=self.view, sent=sent, moved=moved)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the attacker was told besides the updates. No field is ever read off the truth behind its back.

    `model`, `shape` and `classes` say what was trained on what; `examples` how many pictures are behind each update.
    `labels` [victims, examples] are theirs, None where they are to be inferred. `lr` and `steps` are those of local
    training, in which each step takes the next examples / steps-th of an epoch's pictures, for `epochs`; an `lr` of
    None leaves the update's length without meaning. `clip_norm` and `noise`, the standard deviation in a coordinate of
    the update, are the defence as an adaptive attacker knows it. `public` [pictures, ...] in [0, 1] and
    `public_labels` [pictures] are the attacker's own data.
    """

    model: nn.Module
    shape: Shape
    classes: int
    examples: int = 1
    labels: Tensor | None = None
    lr: float | None = None
    steps: int = 1
    epochs: int = 1
    clip_norm: float | None = None
    noise: float = 0.0
    public: Tensor | None = None
    public_labels: Tensor | None = None

    def __post_init__(self) -> None:
        check_number("batch_size", self.examples, minimum=1, integer=True)
        check_number("steps", self.steps, minimum=1, integer=True)
        check_number("epochs", self.epochs, minimum=1, integer=True)
        check_number("noise", self.noise, minimum=0)
        if self.lr is not None:
            check_number("lr", self.lr, above=0)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, above=0)
        if self.examples % self.steps:
            raise InputError(
                f"{self.examples} pictures cannot be split over {self.steps} steps an epoch; make it a multiple"
            )
        if self.labels is not None and self.labels.shape[1:] != (self.examples,):
            raise InputError(
                f"labels are {list(self.labels.shape)}; with {self.examples} pictures behind an update they must be "
                f"[victims, {self.examples}]"
            )

    def told(self) -> str:
        """The same in words, for a table."""
        pictures = "one picture" if self.examples == 1 else f"{self.examples} pictures"
        steps = "one step" if self.steps * self.epochs == 1 else f"{self.steps * self.epochs} local steps"
        parts = [
            "the model",
            f"{steps} on {pictures}",
            "no labels" if self.labels is None else "the labels",
            *([] if self.lr is None else ["the learning rate"]),
            *([] if self.clip_norm is None and not self.noise else ["the defence"]),
            *([] if self.public is None else [f"{len(self.public)} public pictures"]),
        ]
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What was recovered of each victim.

    `images` [victims, restarts, examples, channels, height, width]; a picture of NaN is one that the attack has no
    answer for, and counts as a failure. `labels` [victims, restarts, examples] are the labels that go with them, −1
    where there is none. `objective` [victims, restarts] is the attacker's own, the lower the better, inf for a restart
    that failed. `evaluations` [victims] is what was spent: gradients of the model on a victim's whole batch, all
    restarts together. `method` names the attack that answered each victim; `exact` [victims] says whether the
    attacker, who checked, found that its answer explains the update to rounding.
    """

    images: Tensor
    labels: Tensor
    objective: Tensor
    evaluations: Tensor
    method: tuple[str, ...]
    exact: Tensor

    @property
    def chosen(self) -> Tensor:
        """The restart [victims] that the attacker picks, by its own objective."""
        return self.objective.argmin(1)

    def selected(self) -> Tensor:
        """The attacker's answer [victims, examples, channels, height, width]."""
        return self.images[torch.arange(len(self.images)), self.chosen]

    def selected_labels(self) -> Tensor:
        """The labels of that answer [victims, examples]."""
        return self.labels[torch.arange(len(self.labels)), self.chosen]


class ReconstructionAttack(Protocol):
    """A reconstruction attack: pictures from updates.

    `run` and the `victims`' numbers seed whatever is random. It raises
    InputError where it cannot be mounted at all: on such a model, or with so little knowledge.
    """

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def letter(self) -> str:
        """A to H: what the attacker is told and what it changes, in the taxonomy of Carletti et al. 2025."""
        ...

    @property
    def run(self) -> Callable[..., Reconstruction]:
        """`run(updates, knowledge, **options)`; what an attack has no use for it ignores."""
        ...


# From an observation


def updates_of(observation: Observation, round: int, attack: str) -> Updates:
    """Each client's update of a round, for an `attack` that needs the server's view: replica by replica."""
    require_view(attack, observation, Server)
    assert isinstance(observation, Server)
    _check_recorded(observation.updates, round)
    updates, models = _of_the_model(observation.updates[round]), _of_the_model(observation.models[round])
    cohort = next(iter(updates.values())).shape[1]
    return Updates(
        view=observation.view,
        sent={name: value.repeat_interleave(cohort, 0) for name, value in models.items()},
        moved={name: value.flatten(0, 1) for name, value in updates.items()},
    )


def sums_of(observation: Observation, round: int, attack: str) -> Updates:
    """Each replica's mean update of a round, for an `attack` that is content with sums: a victim is a cohort."""
    require_view(attack, observation, SecureServer)
    assert isinstance(observation, SecureServer)
    _check_recorded(observation.sums, round)
    sums, models = _of_the_model(observation.sums[round]), _of_the_model(observation.models[round])
    return Updates(view=observation.view, sent=models, moved=sums)


def _check_recorded(recorded: dict[int, Tree], round: int) -> None:
    if round not in recorded:
        raise InputError(f"round {round} was not recorded; recorded: {sorted(recorded)}")


def _of_the_model(tree: Tree) -> Tree:
    """Without what an algorithm sends beside the model (SCAFFOLD's controls), whose names have a `/`."""
    return {name: value for name, value in tree.items() if "/" not in name}


def check_fits(updates: Updates, model: nn.Module) -> None:
    """Raise InputError unless names, shapes and values are such that an attack can work with them.

    A layer that stays with its client need not be there.
    """
    shapes = {name: tuple(value.shape) for name, value in variables_of(model).items()}
    given = {name: tuple(value.shape[1:]) for name, value in updates.moved.items()}
    expected = {name: shape for name, shape in shapes.items() if name in updates.sent}
    different = [name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)]
    if different or not given:
        first = min(different, default="every parameter")
        raise InputError(
            f"the update does not fit the model: {first} is {given.get(first, 'missing')}, and in the model "
            f"{expected.get(first, 'missing')}"
        )
    for what, tree in (("model", updates.sent), ("update", updates.moved)):
        bad = [name for name, value in tree.items() if not torch.isfinite(value).all()]
        if bad:
            raise InputError(
                f"the {what} holds NaN or infinite values, first in {bad[0]}; nothing can be reconstructed from it"
            )
    still = torch.stack([(value == 0).flatten(1).all(1) for value in updates.moved.values()]).all(0)
    if still.any():
        first_still = int(still.nonzero()[0])
        raise InputError(
            f"update {first_still} is all zeros: that client took no step, so there is nothing to reconstruct"
        )
