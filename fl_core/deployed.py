"""A deployment's artefacts: its model, and the files that hold one's variables; nothing is unpickled.

A state is a tree of variables by the model's own names. It comes from .safetensors, from .npz, or from Flower's
objects; where arrays have no names they are in the order of the model's `state_dict`, as Flower's clients send them.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fl_core.architectures import Shape
from fl_core.errors import InputError
from fl_core.factories import built, check_outputs
from fl_core.models import check_trainable, statistics_of
from fl_core.optimizers import Tree

ENDINGS = (".safetensors", ".npz")
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
MOST_NAMED = 3
"""So many names are told where more do not fit."""


# The model


def deployed_model(
    shape: Shape,
    classes: int | None,
    factory: str,
    options: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[nn.Module, int]:
    """The model at `package.module:factory`, taking pixels in [0, 1], and its number of classes.

    `shape` and `classes` are given to the factory where it names them; without `classes` they are counted off its
    output. With `mean` and `std` [channels] it gets (pixels − mean) / std. Unlike `from_path`, layers may be frozen or
    have no `reset_parameters`: the variables come from a file. InputError for anything that is no such model.
    """
    model = built(shape, classes, factory, options, field="model", more="options")
    check_trainable(model)
    _normalise(model, shape, mean, std)
    who = f"model={factory}"
    if classes is None:
        classes = _count_classes(model, shape, who)
    check_outputs(model, shape, classes, who)
    return model, classes


def _normalise(model: nn.Module, shape: Shape, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """By a hook, so that the variables keep the names that the files have."""
    if mean is None and std is None:
        return
    parts = []
    for name, given, usual in (("mean", mean, 0.0), ("std", std, 1.0)):
        values = [usual] * shape[0] if given is None else given
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in (1, shape[0]):
            raise InputError(f"{name} is {given!r}; it must be a list of one number, or of {shape[0]}, one a channel")
        if not all(isinstance(one, int | float) and (name == "mean" or one > 0) for one in values):
            raise InputError(f"{name} is {given!r}; it must hold numbers{' above 0' if name == 'std' else ''}")
        parts.append(torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def normalised(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pixels, *rest = inputs
        centre, spread = (part.to(pixels) for part in parts)
        return (pixels - centre) / spread, *rest

    model.register_forward_pre_hook(normalised)


@torch.no_grad()
def _count_classes(model: nn.Module, shape: Shape, who: str) -> int:
    was = model.training
    try:
        scores = model.eval()(torch.full((1, *shape), 0.5))
    except Exception as error:
        raise InputError(f"{who} cannot take pixels {[1, *shape]} ({_line(error)}); is shape right?") from error
    finally:
        model.train(was)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != 1:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"{who} maps pixels {[1, *shape]} to {got}; it must give logits [1, classes]")
    return scores.shape[1]


# Files and objects


def read_state(path: Path, model: nn.Module, option: str) -> Tree:
    """The arrays in the file that `option` names, by the model's names where the file has none; InputError."""
    if path.suffix.lower() in PICKLED:
        code = (
            "import sys, torch; from safetensors.torch import save_file; "
            "state = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
            "save_file({name: value.clone().contiguous() for name, value in state.items()}, sys.argv[2])"
        )
        line = shlex.join(["python", "-c", code, str(path), str(path.with_suffix(".safetensors"))])
        raise InputError(f"{option} is {path}, a pickle, which can run code when read; convert it with: {line}")
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{option} is {path}; it must be a file of one of the kinds {', '.join(ENDINGS)}")
    if not path.is_file():
        raise InputError(f"{option} is {path}, which is not a file")
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # these libraries raise many kinds
        raise InputError(f"{option} is {path}, which is damaged or of another kind ({_line(error)})") from error
    return _named(arrays, model, f"{option}={path}")


def from_flower(record: Any, model: nn.Module) -> Tree:
    """The variables in Flower's `ArrayRecord`, its older `Parameters`, or a list of arrays; flwr is not imported.

    A record made of a `state_dict` has names; one made of a list has numbers, and a list nothing but its order, which
    is that of the model's `state_dict`. `fitting` checks it, and safetensors' `save_file` makes of it what
    `experiments.attack_update` reads. InputError where neither names nor order can be made out.
    """
    if hasattr(record, "to_numpy_ndarrays") and hasattr(record, "keys"):
        arrays = dict(zip(record.keys(), record.to_numpy_ndarrays(), strict=True))
        return _named(arrays, model, "the ArrayRecord")
    if hasattr(record, "tensors"):  # Parameters: each array as the bytes of a .npy file
        try:
            record = [np.load(io.BytesIO(one), allow_pickle=False) for one in record.tensors]
        except Exception as error:
            raise InputError(f"the Parameters hold something else than arrays of numpy ({_line(error)})") from error
    if not isinstance(record, Sequence) or not all(isinstance(one, np.ndarray) for one in record):
        raise InputError(f"{type(record).__name__} is no ArrayRecord, Parameters or list of numpy's arrays")
    return _named({str(place): one for place, one in enumerate(record)}, model, "the list of arrays")


def _named(arrays: Mapping[str, np.ndarray[Any, Any]], model: nn.Module, where: str) -> Tree:
    """Arrays under numbers (`0`, or numpy's `arr_0`) get the model's names."""
    bad = [name for name, value in arrays.items() if value.dtype.kind not in "fiub"]
    if bad:
        raise InputError(f"{where}: {bad[0]} holds {arrays[bad[0]].dtype}, no numbers")
    found = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    places = {name: re.fullmatch(r"(?:arr_)?(\d+)", name) for name in found}
    if not found or not all(places.values()):
        return found
    ordered = sorted(found, key=lambda name: int(places[name][1]))  # type: ignore[index]
    whole = list(model.state_dict())
    trained = [name for name, _ in model.named_parameters()]
    counted = [name for name in whole if not name.endswith("num_batches_tracked")]
    for names in (whole, counted, trained):
        if len(names) == len(ordered):
            return {name: found[place] for name, place in zip(names, ordered, strict=True)}
    raise InputError(
        f"{where} holds {len(ordered)} arrays without names; the model's state_dict has {len(whole)} "
        f"({len(trained)} of them parameters)"
    )


# Whether they fit


def fitting(state: Tree, model: nn.Module, where: str, partial: bool = False) -> Tree:
    """The variables of `state` in the model's order and precision; InputError where names, shapes or values are bad.

    Running statistics may be missing, and where `partial`, parameters too. Buffers that are neither (BatchNorm's
    `num_batches_tracked`) are left out.
    """
    statistics, parameters = statistics_of(model), dict(model.named_parameters())
    variables = parameters | {name: value for name, value in model.named_buffers() if name in statistics}
    ignored = model.state_dict().keys() - variables.keys()
    missing = [name for name in parameters if name not in state]
    unexpected = [name for name in state if name not in variables and name not in ignored]
    if unexpected or (missing and not partial) or len(missing) == len(parameters):
        told = [
            f"{len(names)} {kind} ({', '.join(names[:MOST_NAMED])}{', ...' if len(names) > MOST_NAMED else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        hint = ""
        if unexpected and all(name.partition(".")[2] in model.state_dict() for name in unexpected):
            hint = f"; the names have {unexpected[0].partition('.')[0]}. before the model's own: take it away"
        elif missing and not unexpected and len(missing) < len(parameters):
            hint = "; set partial=true if only a part of the model is sent"
        raise InputError(f"{where} does not fit the model: {' and '.join(told)}{hint}")
    found: Tree = {}
    for name, value in variables.items():
        if name not in state:
            continue
        given = state[name]
        if given.shape != value.shape:
            raise InputError(
                f"{where} does not fit the model: {name} is {list(given.shape)}, and in the model {list(value.shape)}"
            )
        found[name] = given.to(value.dtype)
        if not bool(torch.isfinite(found[name]).all()):
            raise InputError(f"{where} holds NaN or infinite values, first in {name}; nothing can be made of it")
    return found


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
