"""Atomic files: after a crash a file is either the old one or the new one, never half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fl_core.errors import InputError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name, flush it to the disk, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON with sorted names, whole or not at all; `read_json` takes it back."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read back what `write_json` wrote; InputError where the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged ({_brief(error)}); delete it and run again") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any] | None = None) -> None:
    """Write tensors and a few facts (JSON) as one safetensors file, atomically.

    The order of the names is kept too, which the format alone does not: noise is drawn in a tree's order.
    """
    # One entry: the format writes several in any order, and the same content must be the same bytes.
    metadata = {"mirage": json.dumps({"facts": facts or {}, "order": list(tensors)}, sort_keys=True)}
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(whole, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read back what `save_tensors` wrote; InputError where the file is missing or damaged."""
    with _opened(path) as (file, ours):
        order = ours.get("order") or list(file.keys())
        return {name: file.get_tensor(name).clone() for name in order}, ours.get("facts", {})


def load_facts(path: Path) -> dict[str, Any]:
    """The facts alone, without reading the tensors; errors as `load_tensors`."""
    with _opened(path) as (_, ours):
        facts: dict[str, Any] = ours.get("facts", {})
        return facts


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file, and what `save_tensors` put beside the tensors."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file, json.loads((file.metadata() or {}).get("mirage", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged ({_brief(error)}); delete it and run again") from error


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def all_finite(tensors: dict[str, Tensor]) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())
