"""From a configuration's plain values to the objects and data that they name."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice


def resolve_device(name: str) -> torch.device:
    """cpu, cuda, or auto: CUDA where there is one."""
    check_choice("device", name, ("cpu", "cuda", "auto"))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA device here; use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def make(config: Mapping[str, Any], **more: Any) -> Any:
    """The object that a configuration group describes; bad values come back as one InputError."""
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise InputError(f"{config!r} describes nothing; give the fields of an option of conf/, with its _target_")
    try:
        factory = instantiate({**config, "_partial_": True, "_convert_": "all"})
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):  # a nested object's own
            raise error.__cause__ from None
        raise InputError(" ".join(str(error).split())) from error
    options = inspect.signature(factory.func).parameters
    closed = not any(option.kind is option.VAR_KEYWORD for option in options.values())
    if closed:
        for name in factory.keywords:
            check_choice(f"an option of {config['_target_']}", name, options)
    try:
        return factory(**more)
    except TypeError as error:
        unknown = re.search("unexpected keyword argument '([^']*)'", str(error))
        if closed or unknown is None or unknown.group(1) not in factory.keywords:
            raise
        raise InputError(f"{config['_target_']} has no option {unknown.group(1)}; take it out") from None


def altered(config: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`config` with `changes` in it, group by group; a group that names a `_target_` is replaced as a whole.

    `where` the changes stand, for the InputError on a field that the configuration does not have.
    """
    found = dict(config)
    for name, value in changes.items():
        check_choice(f"a field of {where}", name, config)
        inner = config[name]
        whole = not (isinstance(inner, Mapping) and isinstance(value, Mapping)) or "_target_" in value
        found[name] = value if whole else altered(inner, value, f"{where}.{name}")
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as one dictionary of dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def read_data(config: Mapping[str, Any]) -> tuple[ImageSet, ImageSet, str]:
    """The pool, the test set and the checksum of their content, by the group `data`; read once a process."""
    return _data(_freeze(config))


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((name, _freeze(inner)) for name, inner in value.items())
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


@lru_cache(maxsize=2)
def _data(frozen: tuple[tuple[str, Any], ...]) -> tuple[ImageSet, ImageSet, str]:
    """The pool, the test set and the checksum of their content; read once a process."""
    pool, test = make({name: list(value) if isinstance(value, tuple) else value for name, value in frozen})
    digest = hashlib.blake2b(digest_size=16)
    for part in (pool, test):
        digest.update(part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
        if part.owners is not None:
            digest.update(part.owners.numpy().tobytes())
    return pool, test, digest.hexdigest()
