"""What a results folder keeps of its stored runs: `results/<name>/record.json.xz` and `manifest.json`.

Figures, tables, reports and exports read these two files and nothing else, so that a clone without `results/runs/` can
draw everything again; a comparison reads the manifest and the CSV of rows that was drawn. They are written once, when a
sweep or a study ends. Pictures are kept in 8 bits, as they are shown; every number at full precision.
"""

from __future__ import annotations

import base64
import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.collect import CellResult, ordered
from fl_core.checkpoint import write_bytes, write_json
from fl_core.errors import InputError

FILE = "record.json.xz"
PIXELS = "8-bit pixels"
NAMED = {"name", "title", "command", "seed", "seconds", "versions", "config"}
"""What every manifest holds."""
LEAST_SIDE = 4
"""Pixels of a picture's side at least; what is smaller is kept as numbers."""

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One results folder: its manifest, and the `cells` of a sweep or the `points` of a study (a point's own values and
    what was measured there, together); the other is empty."""

    manifest: Values
    cells: tuple[CellResult, ...]
    points: tuple[Values, ...]


def write(
    folder: Path, manifest: Mapping[str, Any], *, cells: Sequence[Values] = (), points: Sequence[Values] = ()
) -> None:
    """Put down a sweep's `cells` (`collect.stored`) or a study's `points`, and the manifest that names their runs."""
    text = json.dumps({"cells": _packed(list(cells)), "points": _packed(list(points))})
    write_bytes(folder / FILE, lzma.compress(text.encode(), preset=9))
    write_json(folder / "manifest.json", dict(manifest))


def read(folder: Path) -> Record:
    """What stands in a results folder; InputError where it holds none, or a damaged one."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        such = next(iter(sorted(folder.glob(f"*/{FILE}"))), Path("results/leakage_vs_epsilon", FILE)).parent
        raise InputError(
            f"{folder} holds no manifest.json; name a folder that a sweep or a study wrote, such as {such}"
        ) from None
    except (OSError, ValueError):
        raise InputError(f"{folder}/manifest.json is damaged; run the sweep again") from None
    try:
        found = _unpacked(json.loads(lzma.decompress((folder / FILE).read_bytes())))
        cells, points = tuple(ordered(found["cells"])), tuple(found["points"])
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {FILE}; run the sweep again to have one") from None
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / FILE} is damaged, or of another version of Mirage; run the sweep again") from None
    if not _of(manifest, cells, points):
        raise InputError(f"{folder}/manifest.json is not that of {FILE} beside it; run the sweep again")
    return Record(manifest=manifest, cells=cells, points=points)


def _of(manifest: Any, cells: Sequence[CellResult], points: Sequence[Values]) -> bool:
    """Whether a manifest has what figures and pages say of a folder, and names these runs: the two files are written
    one after the other."""
    if not isinstance(manifest, dict) or not set(manifest) >= NAMED or not (cells or points):
        return False
    if cells:
        named = sorted(str(one["run"]) for one in manifest.get("cells", ()))
        return named == sorted(str(cell.manifest["hash"]) for cell in cells)
    return len(manifest.get("points", ())) == len(points)


def _packed(value: Any) -> Any:
    """`value` with every array that is a picture, or several, in 8 bits."""
    if isinstance(value, Mapping):
        return {name: _packed(inner) for name, inner in value.items()}
    if not isinstance(value, list | tuple):
        return value
    pixels = _pictures(value)
    if pixels is None:
        return [_packed(inner) for inner in value]
    bits = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return {PIXELS: base64.b64encode(bits.tobytes()).decode(), "shape": list(bits.shape)}


def _pictures(value: Sequence[Any]) -> np.ndarray[Any, Any] | None:
    inner: Any = value
    for _ in range(3):
        if not isinstance(inner, list | tuple) or not inner:
            return None
        inner = inner[0]
    try:
        found = np.array(value, dtype=float)
    except (TypeError, ValueError):  # ragged, or not all numbers
        return None
    # [..., channels, height, width]: a table of numbers with three axes has to keep them.
    pictured = found.ndim >= 3 and found.shape[-3] in (1, 3) and min(found.shape[-2:]) >= LEAST_SIDE
    return found if pictured and np.isfinite(found).all() else None


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if PIXELS in value:
        bits = np.frombuffer(base64.b64decode(value[PIXELS]), dtype=np.uint8)
        return (bits.reshape(value["shape"]) / 255).tolist()
    return {name: _unpacked(inner) for name, inner in value.items()}
