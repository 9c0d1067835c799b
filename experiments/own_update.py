"""One update of a real deployment: what it is, who attacks it, how far its answer can be trusted, how it scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attacks.pictures import match, psnr
from attacks.reconstruction import presets
from attacks.reconstruction.base import Knowledge, Reconstruction, Updates
from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.simulation import Simulation, observed_moments, parameters_among
from experiments.configuration import resolve_device
from experiments.update_options import Options
from fl_core.deployed import deployed_model, fitting, read_state
from fl_core.errors import InputError, check_choice
from fl_core.models import statistics_of
from fl_core.optimizers import Tree
from fl_core.picture_files import pictures
from fl_core.seeds import generator

PRESETS: dict[str, Callable[..., GradientMatching]] = {
    made.__name__: made
    for made in (
        presets.inverting_gradients,
        presets.layer_weighted,
        presets.adaptive,
        presets.grad_inversion,
        presets.local_steps,
        presets.deep_image_prior,
        presets.idlg,
        presets.dlg,
    )
}

UNRELATED = 32
"""So many draws of unrelated pictures say what misfit means nothing."""

PUBLIC = 2000
"""At most so many of the attacker's own pictures are read."""

ALIKE = 0.9
"""A cosine above this between a difference and a whole model is that of a model that was taken for a difference."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the attacker holds: the update, and what was told."""

    updates: Updates
    knowledge: Knowledge
    device: torch.device


def case_of(options: Options) -> Case:
    """Read and check everything that the attacker is given; InputError."""
    device = resolve_device(options.device)
    model, classes = deployed_model(
        options.shape, options.classes, options.model, options.options, options.mean, options.std
    )
    if options.labels is not None and max(options.labels) >= classes:
        raise InputError(f"labels has {max(options.labels)}; the model has {classes} classes, numbered from 0")
    sent = fitting(read_state(Path(options.global_), model, "global"), model, "global")
    given = fitting(read_state(Path(options.update), model, "update"), model, "update", options.partial)
    moved = moved_by(given, sent, options.update_is, statistics_of(model))
    model.load_state_dict(sent, strict=False)
    public = None
    if options.public is not None:
        public, _ = pictures(Path(options.public), options.shape, "public", PUBLIC)
    return Case(
        updates=Updates(
            view="server",
            sent={name: sent[name].unsqueeze(0) for name in moved},
            moved={name: value.unsqueeze(0) for name, value in moved.items()},
        ),
        knowledge=Knowledge(
            model=model,
            shape=options.shape,
            classes=classes,
            examples=options.batch_size,
            labels=None if options.labels is None else torch.tensor([options.labels]),
            lr=1.0 if options.update_is == "gradient" else options.lr,
            steps=options.steps,
            epochs=options.epochs,
            clip_norm=options.clip_norm,
            noise=options.noise,
            public=public,
        ),
        device=device,
    )


def moved_by(given: Tree, sent: Tree, kind: str, statistics: frozenset[str]) -> Tree:
    """The update new − sent, out of what came back; InputError where nothing moved, or it is of another `kind`.

    Running statistics that did not come back are taken as still, so that an attack has the model's own.
    """
    trained = [name for name in given if name not in statistics]
    if kind == "model":
        moved = {name: value - sent[name] for name, value in given.items() if name in sent}
        if all(not moved[name].any() for name in trained):
            raise InputError("the update equals the global model: that client took no step, or it is the same file")
        if _cosine(moved, sent, trained) < -ALIKE:
            raise InputError("update_is=model, but the update is no model near the global one; is it a difference?")
    else:
        moved = {name: -value if kind == "gradient" else value for name, value in given.items() if name in sent}
        if all(not moved[name].any() for name in trained):
            raise InputError(f"the update is a {kind} of zeros: that client took no step, nothing can be made of it")
        if _cosine(given, sent, trained) > ALIKE:
            raise InputError(f"update_is={kind}, but the update looks like a whole model; set update_is=model")
    still = {name: torch.zeros_like(sent[name]) for name in statistics if name in sent}
    if kind == "gradient":
        moved = {name: moved[name] for name in trained}
    return {name: (still | moved)[name] for name in sent if name in moved or name in still}


def _cosine(first: Tree, second: Tree, names: Sequence[str]) -> float:
    one, other = (torch.cat([tree[name].flatten().double() for name in names]) for tree in (first, second))
    return float(one @ other / (one.norm() * other.norm()).clamp(min=1e-300))


# Who attacks


def attacks_for(case: Case, asked: str | Sequence[str], changes: Mapping[str, Any]) -> list[GradientMatching]:
    """The attacks, in the order in which they are tried; the first that is exact ends it."""
    if isinstance(asked, str) and asked in ("auto", "all"):
        fit = [name for name in PRESETS if _suits(name, case.knowledge, case.updates)]
        if asked == "auto":
            special = [name for name in ("local_steps", "adaptive", "grad_inversion") if name in fit]
            fit = [*special, "inverting_gradients"][:1]
        return [_changed(name, changes) for name in fit]
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        check_choice("attack", name, ("auto", "all", *PRESETS) if isinstance(asked, str) else PRESETS)
    if not names or len(set(names)) < len(names):
        raise InputError(f"attack is {names}; name each attack once, of {', '.join(PRESETS)}")
    made = [_changed(name, changes) for name in names]
    for name, one in zip(names, made, strict=True):
        if case.knowledge.lr is None and one.distance is not None and one.distance.measure == "squared":
            raise InputError(f"attack={name} compares the lengths of updates; give lr=, or choose another attack")
    return made


def _suits(name: str, knowledge: Knowledge, updates: Updates) -> bool:
    if name in ("dlg", "idlg"):
        return knowledge.lr is not None
    if name == "local_steps":
        return knowledge.epochs > 1
    if name == "adaptive":
        return knowledge.clip_norm is not None or knowledge.noise > 0
    if name == "grad_inversion":
        return bool(observed_moments(knowledge.model, updates.sent, updates.moved))
    return name != "deep_image_prior" or min(knowledge.shape[1:]) >= 4


def _changed(name: str, changes: Mapping[str, Any]) -> GradientMatching:
    """A preset with `changes`, by dotted name; InputError for those that it does not take."""
    made = PRESETS[name]()
    try:
        for field, value in changes.items():
            outer, _, inner = field.partition(".")
            allowed = [one.name for one in dataclasses.fields(made) if one.name not in ("name", "letter")]
            check_choice("an option of attack", outer, allowed)
            part = getattr(made, outer)
            if dataclasses.is_dataclass(part) != bool(inner):
                how = f"a field of it, as in attack.{outer}.NAME=..." if not inner else f"attack.{outer} itself"
                raise InputError(f"attack.{field} cannot be set; set {how}")
            if inner:
                check_choice(f"an option of attack.{outer}", inner, [one.name for one in dataclasses.fields(part)])
                value = dataclasses.replace(part, **{inner: value})
            made = dataclasses.replace(made, **{outer: value})
    except InputError as error:
        raise InputError(str(error).replace("attack.reconstruction.", "attack.")) from error
    except TypeError as error:
        raise InputError(f"attack={name} with {dict(changes)} cannot be made: {error}") from error
    return made


def attack(
    case: Case, attacks: Sequence[GradientMatching], options: Options, partial: Path, told: Callable[[int], object]
) -> tuple[Reconstruction, dict[str, dict[str, Any]]]:
    """The answer that explains the update best, by the attacker's own eyes, and what each attack came to.

    What an interrupted run left in `partial` is gone on with. `told` hears of all iterations that are done.
    """
    answers: dict[str, dict[str, Any]] = {}
    best: Reconstruction | None = None
    before = 0
    for place, one in enumerate(attacks):

        def hear(done: int, before: int = before) -> None:
            told(before + done)

        found = one.run(
            case.updates,
            case.knowledge,
            run=options.seed,
            device=case.device,
            backend=options.backend,  # type: ignore[arg-type]
            checkpoint=partial / f"{place}.safetensors",
            on_part=hear,
        )
        before += one.iterations
        missed = misfit(case, found.selected(), found.selected_labels())
        answers[one.name] = {
            "misfit": float(missed[0]),
            "objective": [float(value) for value in found.objective[0]],
            "evaluations": int(found.evaluations[0]),
            "letter": one.letter,
        }
        if best is None or answers[one.name]["misfit"] < answers[best.method[0]]["misfit"]:
            best = found
        if bool(found.exact[0]):
            best = found
            break
    assert best is not None
    return best, answers


# How far the answer can be trusted


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
            "grey": torch.full((1, count, *knowledge.shape), 0.5),
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
        if not np.isfinite(self.misfit):
            return "No attack came to an answer."
        if self.share > 0.8:
            return "No better than pictures that never saw the update: this answer is a guess."
        if self.share > 0.1:
            return "Better than pictures that never saw the update, but far from explaining it: take it as a hint."
        return "It explains the update far better than any picture that never saw it."


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
    """Of the true pictures, each with the one assigned to it: `psnr` [pictures] in dB, and of a blind guess.

    `order` [pictures] are the answer's places, `hits` how many labels were recovered, None where the truth has none.
    """

    truth: Tensor
    order: list[int]
    psnr: list[float]
    blind: list[float]
    hits: int | None


def truth_of(options: Options) -> tuple[Tensor, Tensor | None] | None:
    """The true pictures and, where given, labels; None without a truth; InputError where it does not fit."""
    if options.truth is None:
        return None
    truth, labels = pictures(Path(options.truth), options.shape, "truth")
    if len(truth) != options.batch_size:
        raise InputError(f"truth has {len(truth)} pictures, and batch_size is {options.batch_size}; make them alike")
    return truth, labels


def scores(truth: Tensor, labels: Tensor | None, case: Case, answer: Reconstruction) -> Scores:
    """The answer beside the true pictures."""
    found = answer.selected()[0]
    found = torch.where(torch.isfinite(found), found, 0.5)
    order = torch.from_numpy(match(found, truth))
    public = case.knowledge.public
    blind = torch.full_like(truth, 0.5) if public is None else public.mean(0).expand_as(truth)
    hits = None
    if labels is not None:
        counts = [torch.bincount(one.clamp(min=0), minlength=4096) for one in (labels, answer.selected_labels()[0])]
        hits = int(torch.minimum(*counts).sum())
    return Scores(
        truth=truth,
        order=order.tolist(),
        psnr=psnr(found[order], truth).tolist(),
        blind=psnr(blind, truth).tolist(),
        hits=hits,
    )
