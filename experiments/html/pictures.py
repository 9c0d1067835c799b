"""Pictures on a page: true beside recovered ones, the most exposed examples, each stored once and within a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attacks.pictures import completed, failed, psnr
from experiments.collect import CellResult, Probed
from experiments.reconstruction_figure import caption

BASE = Path(__file__).with_name("base.css")
"""What all of Mirage's pages look like."""

Pixels = np.ndarray[Any, Any]


def png(pixels: Tensor) -> bytes:
    """A picture [channels, height, width] in [0, 1]; one of NaN comes out grey."""
    values = (torch.nan_to_num(pixels, nan=0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(buffer, format="png")
    return buffer.getvalue()


def data_address(image: bytes) -> str:
    """A PNG as an address that needs no network."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


@dataclass
class Album:
    """Pictures by number, each once. `add` answers None when `budget`, in characters, is spent."""

    budget: int
    addresses: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, pixels: Pixels) -> int | None:
        """The number of a picture [channels, height, width] in [0, 1]."""
        address = data_address(png(torch.as_tensor(np.asarray(pixels, dtype=np.float32))))
        if address in self._numbers:
            return self._numbers[address]
        if len(address) > self.budget:
            return None
        self.budget -= len(address)
        self._numbers[address] = len(self.addresses)
        self.addresses.append(address)
        return self._numbers[address]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A true picture and what was made of it, [channels, height, width] each; NaN where nothing was.

    `truth` is None where the result does not hold it.
    """

    truth: Pixels | None
    found: Pixels
    words: str


@dataclass(frozen=True, kw_only=True)
class Wall:
    """The pairs of one cell or point; `label` tells it from the others, `run` is its hash."""

    label: str
    run: str
    pairs: Sequence[Pair]


def hung(walls: Sequence[Wall], album: Album) -> tuple[list[dict[str, Any]], int]:
    """The walls as plain values, with numbers of the album's pictures, and how many pairs found no room there.

    Every wall's first pair comes before any wall's second one.
    """
    pairs: list[list[dict[str, Any]]] = [[] for _ in walls]
    left_out = 0
    for place in range(max((len(wall.pairs) for wall in walls), default=0)):
        for wall, mine in zip(walls, pairs, strict=True):
            if place >= len(wall.pairs):
                continue
            pair = wall.pairs[place]
            truth = None if pair.truth is None else album.add(pair.truth)
            found = album.add(pair.found)
            if found is None or (pair.truth is not None and truth is None):
                left_out += 1
            else:
                mine.append({"truth": truth, "found": found, "words": pair.words})
    made = [
        {"label": wall.label, "run": wall.run, "pairs": mine} for wall, mine in zip(walls, pairs, strict=True) if mine
    ]
    return made, left_out


def of_cells(cells: Sequence[CellResult]) -> list[Wall]:
    """What the reconstruction attack made of each cell's victims, by the attacker's own choice of a restart."""
    return [
        Wall(label=named(cell), run=cell.manifest["hash"], pairs=_pairs(cell.probed, cell.facts["classes"]))
        for cell in cells
        if cell.probed is not None
    ]


def _pairs(shown: Probed, names: Sequence[str]) -> list[Pair]:
    found = zip(shown.true, shown.found, shown.psnr, shown.true_labels, shown.found_labels, strict=True)
    return [
        Pair(
            truth=truth,
            found=made if size is not None else np.full_like(made, np.nan),
            words=f"{caption(size)}, label “{names[label]}” {'found' if label == inferred else 'missed'}",
        )
        for truth, made, size, label, inferred in found
    ]


def named(cell: CellResult) -> str:
    """A cell by what sets it apart: "dp_sgd + clip, ε = 8"."""
    return ", ".join(filter(None, [cell.variant, f"ε = {cell.label()}"]))


def exposed(cells: Sequence[CellResult], album: Album) -> list[dict[str, Any]]:
    """The examples that each attack finds best in each cell, as plain values.

    An item is the example's number and its gap; where the run keeps its picture, that one's number in the album (None
    where it found no room), the label that it was trained with, and 1 for a canary.
    """
    made = []
    for cell in cells:
        names, shown = cell.facts["classes"], cell.exposed
        kept: dict[int, tuple[int | None, str, int]] = {}
        if shown is not None:
            examples = [one["example"] for one in cell.vulnerable[cell.first_ranked()]]
            for example, image, label, planted in zip(examples, shown.images, shown.labels, shown.planted, strict=True):
                kept[example] = album.add(image), names[label], int(planted)
        for attack, ranked in cell.vulnerable.items():
            items = [[one["example"], float(f"{one['gap']:.3g}"), *kept.get(one["example"], ())] for one in ranked]
            made.append({"cell": named(cell), "run": cell.manifest["hash"], "attack": attack, "items": items})
    return made


TRUTHS = ("truth", "true", "original")
"""What a study calls the pictures that an attack was after."""


def of_record(record: Mapping[str, Any], label: str, run: str) -> list[Wall]:
    """The walls of a study's record: one for every list of pictures beside those called `truth`."""
    walls = []
    for group in _groups(record):
        truth = next((group[name] for name in TRUTHS if name in group), None)
        for name, found in group.items():
            if name in TRUTHS or not _is_pictures(found):
                continue
            shown = label if name in ("found", "recovered") else f"{label} · {name}" if label else name
            made, true = _floats(found), _floats(truth) if truth is not None else None
            if true is None or true.shape != made.shape:
                pairs = [Pair(truth=None, found=one, words="") for one in made]
            else:
                lost, decibels = failed(made), psnr(completed(made), true)
                words = [caption(None if no else float(size)) for no, size in zip(lost, decibels, strict=True)]
                pairs = [Pair(truth=t, found=f, words=w) for t, f, w in zip(true, made, words, strict=True)]
            walls.append(Wall(label=shown, run=run, pairs=pairs))
    return walls


def _groups(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The record's values that hold lists of pictures by name, however deep."""
    for value in record.values():
        if isinstance(value, dict):
            if any(_is_pictures(one) for one in value.values()):
                yield value
            else:
                yield from _groups(value)


def _is_pictures(value: Any) -> bool:
    """Whether this is a list of pictures [channels, height, width] with one or three channels."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 4 and value.shape[1] in (1, 3)
    shape: list[int] = []
    while isinstance(value, list) and value:
        shape.append(len(value))
        value = value[0]
    return len(shape) == 4 and shape[1] in (1, 3) and not isinstance(value, list)


def _floats(pixels: Any) -> Pixels:
    """Pictures whose missing pixels (None) are NaN."""
    return np.array(pixels, dtype=float)
