"""How far an answer can be trusted, by the attacker's eyes; and how it scores, where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attacks.metrics import label_recall
from attacks.pictures import BLIND, EXACT_DB, Array, completed, match, psnr
from attacks.reconstruction.base import Reconstruction
from attacks.reconstruction.simulation import Simulation, parameters_among
from attacks.similarity import ssim
from experiments.own_update.case import Case
from experiments.own_update.options import Options
from fl_core.errors import InputError
from fl_core.picture_files import pictures
from fl_core.seeds import generator

UNRELATED = 32
"""So many draws of unrelated pictures say what misfit means nothing."""


def misfit(case: Case, guessed: Tensor, labels: Tensor) -> Tensor:
    """1 − the cosine [guesses] of the observed update and that of guesses [guesses, examples, ...] with their labels.

    0 explains the update up to its length; what unrelated pictures have is the yardstick. inf for a guess of NaN.
    """
    knowledge = case.knowledge
    model = knowledge.model.to(case.device)
    simulation = Simulation.of(model, knowledge.steps, knowledge.epochs, knowledge.lr)
    updates = case.updates.to(case.device)
    names = parameters_among(model, updates.moved)
    sent = {name: value[0] for name, value in updates.sent.items()}
    observed = torch.cat([-updates.moved[name][0].flatten().double() for name in names])
    found = []
    for pixels, known in zip(guessed.to(case.device), labels.to(case.device), strict=True):
        if not bool(torch.isfinite(pixels).all()) or int(known.min()) < 0:
            found.append(torch.inf)
            continue
        gradient, _ = simulation(sent, pixels, known)
        own = torch.cat([gradient[name].flatten().double() for name in names])
        length = float(own.norm() * observed.norm())
        found.append(1.0 if length == 0 else max(0.0, 1 - float(own @ observed) / length))
    return torch.tensor(found)


def unrelated(case: Case, seed: int) -> dict[str, Tensor]:
    """Blind guesses [draws, examples, ...] that never saw the update, by name."""
    knowledge = case.knowledge
    count, draw = knowledge.examples, generator(seed, "unrelated pictures")
    if knowledge.public is None:
        return {
            "grey": torch.full((1, count, *knowledge.shape), BLIND),
            "noise": torch.rand(UNRELATED, count, *knowledge.shape, generator=draw),
        }
    rows = torch.randint(len(knowledge.public), (UNRELATED, count), generator=draw)
    return {
        "the mean public picture": knowledge.public.mean(0).expand(1, count, *knowledge.shape),
        "random public pictures": knowledge.public[rows],
    }


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The answer's misfit beside those of blind guesses, by their name, and how many restarts came to the same."""

    misfit: float
    blind: dict[str, list[float]]
    restarts: int
    agree: int

    @property
    def nothing(self) -> float:
        """The least misfit of any blind guess: what is no evidence at all."""
        return min(value for values in self.blind.values() for value in values)

    @property
    def share(self) -> float:
        """The answer's misfit over that: 0 explains the update, 1 is what knows nothing of it."""
        return self.misfit / self.nothing if self.nothing > 0 else np.inf

    def in_words(self) -> str:
        """What to make of the answer, in one sentence."""
        if not np.isfinite(self.misfit):
            return "No attack came to an answer."
        if self.share > 0.8:
            return "No better than pictures that never saw the update: this answer is a guess."
        if self.share > 0.1:
            return "Better than pictures that never saw the update, but far from explaining it: take it as a hint."
        explains = "It explains the update far better than any picture that never saw it"
        if self.restarts == 1:
            return f"{explains}; whether other pictures would do as well, a single restart cannot say."
        if self.agree == 1:
            return f"{explains}, but no other restart came to the same: take it as a hint."
        return f"{explains}, and {self.agree} of {self.restarts} restarts came to the same."


SAME_DB = 20.0
"""Restarts whose pictures are this alike came to the same."""


def trust(case: Case, answer: Reconstruction, seed: int) -> Trust:
    """By the attacker's own eyes."""
    pictures_, labels = answer.selected(), answer.selected_labels()
    missed = float(misfit(case, pictures_, labels)[0])
    known = labels[0].clamp(min=0)
    blind = {
        name: misfit(case, guesses, known.expand(len(guesses), -1)).tolist()
        for name, guesses in unrelated(case, seed).items()
    }
    agree = 0
    if np.isfinite(missed):
        for other in answer.images[0]:
            if bool(torch.isfinite(other).all()):
                aligned = other[torch.from_numpy(match(other, pictures_[0]))]
                agree += bool(np.median(psnr(aligned, pictures_[0])) >= SAME_DB)
    return Trust(misfit=missed, blind=blind, restarts=answer.images.shape[1], agree=agree)


# How it scores: the only place that the truth comes to


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of the true pictures, each with the one assigned to it: `psnr` [pictures] in dB, 100 at most, and `ssim`.

    `blind` is the PSNR of a guess without the update, `hindsight` that of the restart with the best mean, which no
    attacker can tell. `ssim` is None for pictures too small for it. `order` [pictures] are the answer's places;
    `label_recall` is the share of labels found, None where the truth has none.
    """

    truth: Tensor
    order: list[int]
    psnr: list[float]
    ssim: list[float] | None
    blind: list[float]
    hindsight: list[float]
    label_recall: float | None


def truth_of(options: Options) -> tuple[Tensor, Tensor | None] | None:
    """The true pictures and, where given, labels; None without a truth; InputError where it does not fit."""
    if options.truth is None:
        return None
    truth, labels = pictures(Path(options.truth), options.shape, "truth")
    if len(truth) != options.batch_size:
        raise InputError(f"truth has {len(truth)} pictures, and batch_size is {options.batch_size}; make them alike")
    return truth, labels


def scores(truth: Tensor, labels: Tensor | None, case: Case, answer: Reconstruction) -> Scores:
    """The answer beside the true pictures; grey stands for a picture that there is no answer for."""

    def aligned(restart: Tensor) -> tuple[list[int], Array]:
        order = match(restart, truth)
        return order.tolist(), completed(restart[torch.from_numpy(order)])

    def decibels(pictures: Array | Tensor) -> list[float]:
        return [float(value) for value in np.minimum(psnr(pictures, truth), EXACT_DB)]

    order, found = aligned(answer.selected()[0])
    every = [decibels(aligned(restart)[1]) for restart in answer.images[0]]
    public = case.knowledge.public
    guess = torch.full_like(truth, BLIND) if public is None else public.mean(0).expand_as(truth)
    recall = None
    if labels is not None:
        recall = float(label_recall(answer.selected_labels().numpy(), labels.unsqueeze(0).numpy())[0])
    return Scores(
        truth=truth,
        order=order,
        psnr=decibels(found),
        ssim=ssim(found, truth).tolist() if min(truth.shape[2:]) >= 3 else None,
        blind=decibels(guess),
        hindsight=max(every, key=lambda values: sum(values)),
        label_recall=recall,
    )
