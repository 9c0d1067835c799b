"""Gradient matching: find pictures whose update is the observed one.

One attack with exchangeable parts: how updates are compared, what a picture is expected to be like, what is moved, and
by which optimizer. The published attacks are settings of it; `presets` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from attacks.reconstruction.base import Knowledge, Reconstruction, Updates, check_fits
from attacks.reconstruction.fitting import Schedule, fit
from attacks.reconstruction.labels import infer_labels
from attacks.reconstruction.lbfgs import LBFGS
from attacks.reconstruction.objectives import Distance, Objective, shared_model
from attacks.reconstruction.parametrisation import Parametrisation, Pixels, merged_epochs
from attacks.reconstruction.regularisers import (
    BatchNormStatistics,
    GroupConsistency,
    Length,
    Regulariser,
    SameEveryEpoch,
    TotalVariation,
)
from attacks.reconstruction.simulation import Simulation, observed_moments, parameters_among
from attacks.reconstruction.verification import residual, tolerance
from fl_core.errors import InputError, check_choice, check_number
from fl_core.lanes import Backend
from fl_core.optimizers import Adam, Optimizer, Tree
from fl_core.seeds import generator

Labels = Literal["inferred", "soft"]
Optimizers = Literal["adam", "lbfgs"]


@dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """Descend a distance between the guess's update and the observed one, plus what pictures are like.

    Restarts and victims are lanes. The restart is picked by the attacker's own objective, never by likeness to the
    truth. `optimizer` is `adam` (on the gradient's sign where `signed`, inside the pixels' range where `boxed`) or
    `lbfgs`. `labels` that were not told are `inferred` from the update before, or `soft`: variables like the pixels
    (Zhu et al. 2019). The weights `total_variation`, `length`, `batch_norm`, `group` and `every_epoch` are those of the
    regularisers; the last makes each epoch's pictures variables of their own. Without a `distance` the update is not
    looked at: what is left is the prior alone, the blind baseline of the others.
    """

    name: str = "inverting gradients"
    letter: str = "B"
    restarts: int = 4
    iterations: int = 400
    lr: float = 0.1
    optimizer: Optimizers = "adam"
    signed: bool = True
    boxed: bool = True
    labels: Labels = "inferred"
    distance: Distance | None = field(default_factory=Distance)
    parametrisation: Parametrisation = field(default_factory=Pixels)
    total_variation: float = 1e-2
    length: float = 0.0
    batch_norm: float = 0.0
    group: float = 0.0
    every_epoch: float = 0.0
    part: int = 100
    enough: float = 0.0
    patience: float = 0.0
    keep: float = 1.0

    def __post_init__(self) -> None:
        check_number("attack.reconstruction.restarts", self.restarts, minimum=1, integer=True)
        check_number("attack.reconstruction.lr", self.lr, above=0)
        check_choice("attack.reconstruction.optimizer", self.optimizer, ("adam", "lbfgs"))
        check_choice("attack.reconstruction.labels", self.labels, ("inferred", "soft"))
        for weight in ("total_variation", "length", "batch_norm", "group", "every_epoch"):
            check_number(f"attack.reconstruction.{weight}", getattr(self, weight), minimum=0)
        _ = self.schedule  # checks the rest
        if self.group and self.restarts < 2:
            raise InputError("attack.reconstruction.group compares restarts; give at least two, or set it to 0")

    @property
    def schedule(self) -> Schedule:
        """When each descent ends. Raises InputError for options that it cannot have."""
        return Schedule(
            iterations=self.iterations,
            part=self.part,
            enough=self.enough,
            patience=self.patience,
            keep=self.keep,
        )

    def run(
        self,
        updates: Updates,
        knowledge: Knowledge,
        *,
        run: int = 0,
        victims: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        backend: Backend = "auto",
        checkpoint: Path | None = None,
        on_part: Callable[[int], object] | None = None,
    ) -> Reconstruction:
        """Attack each victim's update. `run` and the `victims`' numbers seed the restarts.

        `checkpoint` is a file in which the descent is kept after each part, to be gone on with after a crash. Raises
        InputError for an update that does not fit the model, a zero or non-finite one, and for knowledge that is not
        enough: several local steps, or a squared distance, without the learning rate.
        """
        check_fits(updates, knowledge.model)
        self._check_knowledge(knowledge)
        updates = seen = updates.ordered(knowledge.model)
        labels = self._labels(seen, knowledge)
        updates = updates.to(device)
        names = parameters_among(knowledge.model, updates.moved)
        gradient = {name: value for name, value in updates.gradient(knowledge.lr).items() if name in names}
        count, numbers = len(updates), list(range(len(updates)) if victims is None else victims)
        simulation = Simulation.of(
            knowledge.model, knowledge.steps, knowledge.epochs, knowledge.lr, own=self.every_epoch > 0, device=device
        )
        shared = shared_model(updates, list(updates.sent))
        clip = None if knowledge.clip_norm is None else knowledge.clip_norm / (knowledge.lr or 1.0)
        objective = Objective(
            simulation, self.distance, self._regularisers(), self.parametrisation, shared=shared, clip=clip
        )
        known = {} if self.distance is None else self.distance.context(gradient, knowledge)
        if shared is None:
            known |= {f"sent/{name}": value for name, value in updates.sent.items()}
        for name, moments in observed_moments(knowledge.model, updates.sent, updates.moved).items():
            known |= {f"{what}/{name}": value for what, value in zip(("mean", "variance"), moments, strict=True)}
        if labels is not None:
            known["labels"] = labels.to(device)
        start, own = self._start(run, numbers, knowledge, next(iter(gradient.values())))
        lanes = {name: value.repeat_interleave(self.restarts, 0) for name, value in known.items()}
        fitted = fit(
            objective,
            start,
            lanes | own,
            self._optimizer(),
            self.schedule,
            restarts=self.restarts,
            consensus=self._consensus if self.group else None,
            backend=backend,
            checkpoint=checkpoint,
            on_part=on_part,
        )
        found = torch.func.vmap(self.parametrisation.pixels)(fitted.variables, lanes | own).detach()
        if self.every_epoch:
            found = merged_epochs(found, knowledge.epochs)
        pictures = found.clamp(0, 1).unflatten(0, (count, self.restarts)).cpu()
        if labels is None:
            guessed = fitted.variables["labels"].argmax(-1).unflatten(0, (count, self.restarts)).cpu()
        else:
            guessed = labels.unsqueeze(1).expand(-1, self.restarts, -1).cpu()
        objectives = fitted.objective.view(count, self.restarts).cpu()
        chosen = torch.arange(count), objectives.argmin(1)
        spent = fitted.iterations.view(count, self.restarts).sum(1) * objective.gradients
        return Reconstruction(
            images=pictures,
            labels=guessed,
            objective=objectives,
            evaluations=spent.cpu(),
            method=(self.name,) * count,
            exact=self._verified(seen, knowledge, pictures[chosen], guessed[chosen]),
        )

    def _check_knowledge(self, knowledge: Knowledge) -> None:
        if knowledge.lr is not None or self.distance is None:
            return
        if knowledge.steps * knowledge.epochs > 1:
            raise InputError(f"{self.name} simulates several local steps, and needs their learning rate (lr)")
        if self.distance.measure == "squared":
            raise InputError(f"{self.name} compares lengths, and needs the learning rate (lr), or measure=cosine")

    def _verified(self, updates: Updates, knowledge: Knowledge, pictures: Tensor, labels: Tensor) -> Tensor:
        """Whether the answers explain the updates of one step to rounding [victims]; of several it is not checked."""
        if self.distance is None or knowledge.steps * knowledge.epochs > 1:
            return torch.zeros(len(updates), dtype=torch.bool)
        return residual(updates, knowledge, pictures, labels) <= tolerance(updates)

    def _labels(self, updates: Updates, knowledge: Knowledge) -> Tensor | None:
        """[victims, examples]; None where they are variables."""
        if knowledge.labels is not None:
            if len(knowledge.labels) != len(updates):
                raise InputError(f"labels of {len(knowledge.labels)} victims, but there are {len(updates)} updates")
            return knowledge.labels
        return None if self.labels == "soft" else infer_labels(updates, knowledge)

    def _start(self, run: int, victims: Sequence[int], knowledge: Knowledge, like: Tensor) -> tuple[Tree, Tree]:
        """The lanes' first variables [lanes, ...] and their own part of the context."""
        pictures = knowledge.examples * (knowledge.epochs if self.every_epoch else 1)
        pairs = []
        for victim in victims:
            for restart in range(self.restarts):
                variables, own = self.parametrisation.start(run, victim, restart, pictures, knowledge.shape)
                if self.labels == "soft" and knowledge.labels is None:
                    draw = generator(run, "restart's labels", victim, restart)
                    variables["labels"] = torch.randn(knowledge.examples, knowledge.classes, generator=draw)
                pairs.append((variables, own))
        stacked = [
            {name: torch.stack([one[name] for one in trees]).to(like) for name in trees[0]}
            for trees in zip(*pairs, strict=True)
        ]
        return stacked[0], stacked[1]

    def _optimizer(self) -> Optimizer:
        if self.optimizer == "lbfgs":
            return LBFGS(lr=self.lr)
        box = (0.0, 1.0) if self.boxed and isinstance(self.parametrisation, Pixels) else None
        return Adam(lr=self.lr, steps=self.iterations, signed=self.signed, box=box, free=("labels",))

    def _regularisers(self) -> list[Regulariser]:
        weighed: list[Regulariser] = [
            TotalVariation(weight=self.total_variation),
            Length(weight=self.length),
            BatchNormStatistics(weight=self.batch_norm),
            GroupConsistency(weight=self.group),
            SameEveryEpoch(weight=self.every_epoch),
        ]
        return [one for one in weighed if one.weight]

    def _consensus(self, variables: Tree, moving: Tensor) -> Tree:
        """The mean [lanes, pictures, ...] over each victim's restarts that still move."""
        pixels = variables["pixels"].unflatten(0, (-1, self.restarts))
        counts = moving.to(pixels).view(*pixels.shape[:2], *[1] * (pixels.dim() - 2))
        mean = (pixels * counts).sum(1) / counts.sum(1).clamp(min=1)
        return {"consensus": mean.repeat_interleave(self.restarts, 0)}
