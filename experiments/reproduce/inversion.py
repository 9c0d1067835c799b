"""What the reproductions of gradient inversion share: gradients as the papers share them, their inputs, and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.metrics import mean_interval
from attacks.reconstruction.base import Knowledge, Reconstruction, Shape, Updates
from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.parametrisation import Pixels
from experiments.reconstruction_scores import Answers, Truth
from experiments.reproduce.base import CIFAR10
from experiments.studies.base import Values
from experiments.studies.reconstruction_figure import aligned
from experiments.studies.tampering import as_plain, row
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.models import ClassificationLosses, statistics_of
from fl_core.optimizers import Tree
from fl_core.seeds import generator

SHOWN = 6  # pictures of the report's gallery, a point

COLOUR = (*CIFAR10, "data.test_limit=null")
DIGITS = ("data=digits",)
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training pictures
UNIT = 0.25  # what a step of 1 on standardised pixels is on pixels in [0, 1]


class Standardised(nn.Module):
    """`inner`, which moves pixels to [-1, 1] by itself, on (pixels - mean) / deviation instead, as a paper's code has.

    `mean` and `deviation` are [channels]. An `evaluated` one stays in evaluation mode, so that batch normalisation
    uses its running statistics while gradients are taken.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, inner: nn.Module, mean: Sequence[float] = (0.0,), deviation: Sequence[float] = (1.0,), *,
        evaluated: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inner, self.evaluated = inner, evaluated
        for name, value in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Standardised:
        """The module itself, in the mode asked for; an `evaluated` one stays in evaluation mode."""
        return super().train(mode and not self.evaluated)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        scores: Tensor = self.inner(((pixels - self.mean) / self.deviation + 1) / 2)
        return scores


def standardised(inner: nn.Module, shape: Shape, *, evaluated: bool) -> Standardised:
    """`inner` on pixels standardised as CIFAR-10's are; grey ones (the smoke budget's) by 0.5 and 0.25."""
    mean, deviation = (MEAN, DEVIATION) if shape[0] == 3 else ((0.5,), (UNIT,))
    return Standardised(inner, mean, deviation, evaluated=evaluated)


@dataclass(frozen=True, kw_only=True)
class NormalPixels(Pixels):
    """The pixels themselves, from normal noise of this mean and deviation."""

    mean: float = 0.0
    deviation: float = 1.0

    def start(self, run: int, victim: int, restart: int, pictures: int, shape: Shape) -> tuple[Tree, Tree]:
        noise = torch.randn(pictures, *shape, generator=generator(run, "restart", victim, restart))
        return {"pixels": self.mean + self.deviation * noise}, {}


STANDARD = NormalPixels(mean=0.47, deviation=UNIT)
"""Standardised pixels from N(0, 1)."""


def first_pictures(data: ImageSet, victims: int, examples: int = 1, skip: int = 0) -> Truth:
    """The first pictures of `data` after `skip`, so many a victim; InputError where there are not so many."""
    needed = skip + victims * examples
    if needed > len(data):
        raise InputError(f"{needed} pictures are needed, and there are {len(data)}; raise data.limit, data.test_limit")
    return Truth(
        images=data.images[skip:needed].unflatten(0, (victims, examples)),
        labels=data.labels[skip:needed].view(victims, examples),
    )


def to_each(model: nn.Module, start: Tree, victims: int) -> Tree:
    """The parameters of `start` [1, ...] for each of the `victims`; its running statistics go into `model`."""
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict({name: value[0] for name, value in start.items()})
    return {name: start[name].expand(victims, *start[name].shape[1:]) for name in names}


def shared_gradients(model: nn.Module, sent: Tree, truth: Truth) -> Updates:
    """What a server sees of victims that share the gradient of their mean loss: an update at rate 1, to the last bit.

    `sent` [victims, ...] are the parameters that they got.
    """
    losses, statistics = ClassificationLosses(model), {name: model.get_buffer(name) for name in statistics_of(model)}
    moved = {name: torch.empty_like(value) for name, value in sent.items()}
    for victim, (images, labels) in enumerate(zip(truth.images, truth.labels, strict=True)):
        own = {name: value[victim].detach().clone().requires_grad_() for name, value in sent.items()}
        loss = losses(own | statistics, images, labels).mean()
        for name, gradient in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
            moved[name][victim] = -gradient
    return Updates(view="server", sent=sent, moved=moved)


def told(model: nn.Module, data: ImageSet, truth: Truth, *, labels: bool) -> Knowledge:
    """What the papers tell the attacker: the model, one step at rate 1, how many pictures, and perhaps the `labels`."""
    return Knowledge(
        model=model, shape=data.shape, classes=len(data.classes), examples=truth.labels.shape[1], lr=1.0,
        labels=truth.labels if labels else None,
    )  # fmt: skip


def seen_and_told(
    model: nn.Module, start: Tree, data: ImageSet, truth: Truth, *, labels: bool
) -> tuple[Updates, Knowledge]:
    """What a server sees of victims who all got `start` [1, ...] and share gradients, and what the papers tell it."""
    sent = to_each(model, start, len(truth.labels))
    return shared_gradients(model, sent, truth), told(model, data, truth, labels=labels)


def in_parts(
    attack: GradientMatching, updates: Updates, knowledge: Knowledge, *, run: int, device: torch.device, at_once: int
) -> Reconstruction:
    """The attack on all victims, `at_once` of them at a time, so that they fit into memory."""
    found = []
    for start in range(0, len(updates), at_once):
        mine = range(start, min(start + at_once, len(updates)))
        part = slice(mine.start, mine.stop)
        labels = None if knowledge.labels is None else knowledge.labels[part]
        own = Knowledge(**(vars(knowledge) | {"labels": labels}))
        found.append(attack.run(updates.select(part), own, run=run, victims=mine, device=device))
    return Reconstruction(
        images=torch.cat([one.images for one in found]),
        labels=torch.cat([one.labels for one in found]),
        objective=torch.cat([one.objective for one in found]),
        evaluations=torch.cat([one.evaluations for one in found]),
        method=tuple(name for one in found for name in one.method),
        exact=torch.cat([one.exact for one in found]),
    )


def psnr_row(metric: str, found: Reconstruction, truth: Truth, **about: Any) -> Values:
    """The mean PSNR in dB, over victims, of the restart that the attacker picks."""
    answers = Answers.of(found, truth)
    victims, examples = truth.labels.shape
    many = "picture" if victims == 1 else "pictures"
    samples = f"{victims} {many}" if examples == 1 else f"{victims} batches of {examples}"
    return row(mean_interval(answers.likeness(answers.chosen)), metric=metric, samples=samples, **about)


def shown(found: Reconstruction, truth: Truth) -> Values:
    """The first pictures and what was made of them, for a gallery."""
    answer = aligned(found, truth.images)[:SHOWN]
    return {"truth": as_plain(truth.images.flatten(0, 1)[:SHOWN]), "found": as_plain(answer.nan_to_num(0.5))}
