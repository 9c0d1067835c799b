"""Models of one's own, by the name of what makes them: `package.module:factory`."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fl_core.architectures import Shape
from fl_core.errors import InputError


def from_path(shape: Shape, classes: int, factory: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A model of one's own: what the callable at `package.module:factory` returns.

    The callable is given `shape` and `classes`, each where its signature names it, and `options` by keyword; it may
    need nothing else. The current folder is searched first. The model must be an nn.Module that maps pixels in [0, 1]
    [batch, *shape] to logits [batch, classes], the same ones every time. All its parameters are trained, and
    initialised anew for every replica, so each layer that has any needs a `reset_parameters()`, as torch's have;
    pre-trained weights are not kept. Anything else is an InputError.
    """
    who = f"model.factory={factory}"
    model = built(shape, classes, factory, options)
    _check_parameters(model, who)
    check_outputs(model, shape, classes, who)
    return model


def built(
    shape: Shape,
    classes: int | None,
    factory: str,
    options: Mapping[str, Any] | None = None,
    *,
    field: str = "model.factory",
    more: str = "model.options",
) -> nn.Module:
    """What the callable at `package.module:factory` returns, an nn.Module that nothing else is known of; InputError.

    `field` and `more` are the options that named it and its arguments. Without `classes` it is not told how many.
    """
    who = f"{field}={factory}"
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"{more} is {options!r}; it must be arguments by name, as in {more}.width=64")
    build, options = _find(factory, field), dict(options or {})
    try:
        named = set(inspect.signature(build).parameters)
    except (TypeError, ValueError):  # some callables written in C have none to read
        named = set()
    offered = (("shape", shape), ("classes", classes))
    given = {name: value for name, value in offered if name in named and value is not None}
    for name in options.keys() & given.keys():
        raise InputError(f"{who} is given {name} by the data; take {name} out of {more}")
    try:
        model = build(**given, **options)
    except Exception as error:
        raise InputError(
            f"{who} failed ({_reason(error)}); its arguments besides shape and classes come from {more}"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{who} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _find(factory: object, field: str) -> Callable[..., Any]:
    module, _, name = str(factory).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise InputError(f"{field} is {factory!r}; it must be package.module:factory, as in my_models:build")
    if not {"", os.getcwd()} & set(sys.path):  # `python -m` puts it there, an installed command does not
        sys.path.insert(0, os.getcwd())
    try:
        found: Callable[..., Any] | None = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{field} is {factory!r}, but {module} cannot be imported ({_reason(error)}); it must be in the "
            "current folder or installed"
        ) from error
    if not callable(found):
        problem = "has no" if found is None else "cannot call its"
        raise InputError(f"{field} is {factory!r}, but {module} {problem} {name!r}; name a function or a class")
    return found


def _check_parameters(model: nn.Module, who: str) -> None:
    if next(model.parameters(), None) is None:
        raise InputError(f"{who} returned a model without parameters; there is nothing to train")
    for layer_name, layer in model.named_modules():
        place = f"{layer_name} ({type(layer).__name__})" if layer_name else type(layer).__name__
        own = list(layer.parameters(recurse=False))
        if own and not callable(getattr(layer, "reset_parameters", None)):
            raise InputError(
                f"{who}: {place} has parameters but no reset_parameters(), so replicas would all start from the same "
                "ones; define it"
            )
        if any(is_lazy(value) for value in own):
            raise InputError(f"{who}: {place} is lazy; give it its size")
        if not all(value.requires_grad for value in own):
            raise InputError(f"{who}: {place} is frozen, but the federation trains every parameter; unfreeze it")


@torch.no_grad()
def check_outputs(model: nn.Module, shape: Shape, classes: int, who: str) -> None:
    """Ask a copy twice, in training mode: the model's own statistics stay, and randomness (dropout) shows."""
    pixels = torch.linspace(0, 1, 2 * shape[0] * shape[1] * shape[2]).view(2, *shape)
    try:
        with torch.random.fork_rng(devices=[]):
            trial = copy.deepcopy(model).train()
            first, second = trial(pixels), trial(pixels)
    except Exception as error:
        raise InputError(f"{who} cannot take pixels {[2, *shape]} ({_reason(error)})") from error
    if not isinstance(first, Tensor) or first.shape != (2, classes):
        got = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise InputError(f"{who} maps pixels {[2, *shape]} to {got}; it must give logits {[2, classes]}")
    if not first.isfinite().all():
        raise InputError(f"{who} gives logits that are not finite")
    if not torch.equal(first, second):
        raise InputError(f"{who} gives other logits for the same pixels; switch its randomness (dropout?) off")


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
