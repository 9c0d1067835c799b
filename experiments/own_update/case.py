"""The update, read from its files, and what the attacker was told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call

from attacks.reconstruction.base import Knowledge, Updates
from attacks.reconstruction.labels import output_bias
from attacks.reconstruction.simulation import Simulation
from experiments.configuration import resolve_device
from experiments.own_update.options import Options
from fl_core.deployed import deployed_model, fitting, read_state
from fl_core.errors import InputError
from fl_core.models import statistics_of
from fl_core.optimizers import Tree
from fl_core.picture_files import pictures
from fl_core.seeds import generator

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
    statistics = statistics_of(model)
    moved = moved_by(given, sent, options.update_is, statistics)
    model.load_state_dict(sent, strict=False)
    model.eval()  # or asking it something would move its statistics; attacks train a copy
    factor = 1.0
    if options.lr is None and options.update_is != "gradient":
        factor = natural_length(moved, sent, model, options, classes)
        moved = {name: value if name in statistics else value * factor for name, value in moved.items()}
    public = None
    if options.public is not None:
        public, _ = pictures(Path(options.public), options.shape, "public", PUBLIC)
    case = Case(
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
            clip_norm=None if options.clip_norm is None else options.clip_norm * factor,
            noise=options.noise * factor,
            public=public,
        ),
        device=device,
    )
    _try_training(case, options.model)
    return case


def natural_length(moved: Tree, sent: Tree, model: nn.Module, options: Options, classes: int) -> float:
    """What makes of an update at an unknown rate about a gradient; a positive factor that means nothing else.

    The output bias's gradient is, of a class that is not in the batch, its mean chance; so the update over the chance
    is the rate, for at least classes − pictures of them, which have the largest. Counts of labels need that. Without
    such a bias the factor makes the length 1, so that nothing underflows.
    """
    gradient = {name: -value.unsqueeze(0) for name, value in moved.items()}
    trained = [name for name, _ in model.named_parameters() if name in moved]
    length = float(torch.cat([moved[name].flatten().double() for name in trained]).norm())
    try:
        bias = gradient[output_bias({name: gradient[name] for name in trained}, classes)][0]
    except InputError:
        return 1 / length
    blind = torch.rand(256, *options.shape, generator=generator(options.seed, "pictures for a rate"))
    with torch.no_grad():
        chances = functional_call(model, sent, (blind,)).softmax(1).mean(0)
    absent = max(1, classes - options.batch_size)
    rate = float((bias / chances.clamp(min=1e-6)).topk(absent).values.median())
    return 1 / rate if rate > 0 else 1 / length


def _try_training(case: Case, factory: str) -> None:
    """One evaluation, stacked as the attacks do it; InputError where the model cannot be trained so."""
    knowledge = case.knowledge
    simulation = Simulation.of(
        knowledge.model.to(case.device), knowledge.steps, knowledge.epochs, knowledge.lr if knowledge.lr else 1.0
    )
    sent = {name: value[0].to(case.device) for name, value in case.updates.sent.items()}
    grey = torch.full((1, knowledge.examples, *knowledge.shape), 0.5, device=case.device)
    labels = torch.zeros(1, knowledge.examples, dtype=torch.long, device=case.device)
    try:
        torch.func.vmap(lambda pixels, known: simulation(sent, pixels, known)[0])(grey, labels)
    except Exception as error:
        each = knowledge.examples // knowledge.steps
        raise InputError(
            f"model={factory} cannot be trained on {each} picture(s) a step, stacked by torch.func.vmap "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        ) from error


def moved_by(given: Tree, sent: Tree, kind: str, statistics: frozenset[str]) -> Tree:
    """The update new − sent, out of what came back; InputError where nothing moved, or it is of another `kind`.

    Running statistics that did not come back are taken as still, so that an attack has the model's own.
    """
    trained = [name for name in given if name not in statistics]
    if kind == "model":
        moved = {name: value - sent[name] for name, value in given.items() if name in sent}
        if not any(moved[name].any() for name in trained):
            raise InputError("the update equals the global model: that client took no step, or it is the same file")
        if _cosine(moved, sent, trained) < -ALIKE:
            raise InputError("update_is=model, but the update is no model near the global one; is it a difference?")
    else:
        moved = {name: -value if kind == "gradient" else value for name, value in given.items() if name in sent}
        if not any(moved[name].any() for name in trained):
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
