"""Images, whole, as one tensor: every source ends in the same ImageSet. fl_core/loaders.py reads files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_core.errors import InputError, check_number


@dataclass(frozen=True)
class ImageSet:
    """Pixels [examples, channels, height, width] in [0, 1], labels [examples] and the classes' names.

    `owners` [examples] are numbers into `owner_names` where the source says who each example belongs to (a writer, a
    photographer, a hospital); None where it does not.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    owners: Tensor | None = None
    owner_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> ImageSet:
        """Pixels, labels and owners on `device`; what is there already is shared and not copied."""
        owners = None if self.owners is None else self.owners.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), owners=owners)

    def select(self, index: Tensor) -> ImageSet:
        """The examples at `index`; classes and owners keep their names and numbers, also where none is left."""
        owners = None if self.owners is None else self.owners[index]
        return replace(self, images=self.images[index], labels=self.labels[index], owners=owners)

    def relabel(self, labels: Tensor) -> ImageSet:
        """The same pictures, owners and classes with other `labels` [examples]."""
        return replace(self, labels=labels)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which part of a source to use: the classes (names or numbers, renumbered from 0), and how many examples.

    `limit` and `test_limit` take a random part, drawn with `seed`; `test_fraction` is held out where the source has
    no test part of its own.
    """

    classes: Sequence[int | str] | None = None
    limit: int | None = None
    test_limit: int | None = None
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("data.test_fraction", self.test_fraction, above=0, below=1)
        check_number("data.seed", self.seed, minimum=0, integer=True)
        for name, value in (("data.limit", self.limit), ("data.test_limit", self.test_limit)):
            if value is not None:
                check_number(name, value, minimum=1, integer=True)
        if self.classes is not None and (isinstance(self.classes, str) or not isinstance(self.classes, Sequence)):
            raise InputError(f"data.classes is {self.classes!r}; it must be a list, such as [3,5], or null for all")

    def rows(self, labels: np.ndarray[Any, Any], wanted: Sequence[int], limit: int | None) -> np.ndarray[Any, Any]:
        """Row numbers of the wanted classes, shuffled by the seed, at most `limit` of them."""
        rows = np.random.default_rng(self.seed).permutation(np.flatnonzero(np.isin(labels, wanted)))
        return rows[:limit]

    def wanted(self, names: Sequence[str]) -> list[int]:
        """The chosen classes' numbers among `names`."""
        if self.classes is None:
            return list(range(len(names)))
        numbers = [class_number(names, entry, "data.classes") for entry in self.classes]
        if len(set(numbers)) != len(numbers) or len(numbers) < 2:
            raise InputError(f"data.classes is {list(self.classes)}; name at least two different classes")
        return numbers


def class_number(names: Sequence[str], entry: object, option: str) -> int:
    """The number of the class that `entry` names, by its name first and by its number second; `option` asked."""
    if str(entry) in names:
        return list(names).index(str(entry))
    if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(names):
        return entry
    raise InputError(
        f"{option} names {entry!r}; the data have {len(names)} classes: {', '.join(names[:20])} "
        f"(or numbers 0 to {len(names) - 1})"
    )


Reader = Callable[[np.ndarray[Any, Any]], Tensor]
"""Decodes the given rows: [rows, channels, height, width] in [0, 1]."""


@dataclass(frozen=True)
class Source:
    """One part of a data set: labels and owners at once, pixels only for the rows that are asked for.

    `labels` [examples] are numbers into `names`, `owners` [examples] into `owner_names`; `where` names the source in
    messages.
    """

    labels: np.ndarray[Any, Any]
    read: Reader
    names: tuple[str, ...]
    where: str
    owners: np.ndarray[Any, Any] | None = None
    owner_names: tuple[str, ...] = ()


def pool_and_test(train: Source, test: Source | None, choice: Choice) -> tuple[ImageSet, ImageSet]:
    """The pool and the test set that `choice` asks for; without a `test` source, part of `train` is held out.

    Each set numbers the owners that it has from 0, in the order of the source's own numbers.
    """
    wanted = choice.wanted(train.names)
    names = tuple(train.names[number] for number in wanted)
    number = np.zeros(len(train.names), dtype=np.int64)
    number[wanted] = np.arange(len(wanted))

    def take(source: Source, rows: np.ndarray[Any, Any]) -> ImageSet:
        if not len(rows):
            raise InputError(f"{source.where} has no example of the classes {', '.join(names)}; set data.classes")
        labels = torch.from_numpy(number[source.labels[rows]])
        if source.owners is None:
            return ImageSet(source.read(rows), labels, names)
        there, owners = np.unique(source.owners[rows], return_inverse=True)
        owner_names = tuple(source.owner_names[owner] for owner in there)
        return ImageSet(source.read(rows), labels, names, torch.from_numpy(owners), owner_names)

    if test is not None:
        if test.names != train.names:
            raise InputError(f"{test.where} has other classes than {train.where}; make them alike")
        pool = take(train, choice.rows(train.labels, wanted, choice.limit))
        held = take(test, choice.rows(test.labels, wanted, choice.test_limit))
        if held.shape != pool.shape:
            raise InputError(
                f"{test.where} has pictures of {in_words(held.shape)}, {train.where} of {in_words(pool.shape)} "
                "(channels x height x width); make them alike"
            )
        return pool, held
    rows = choice.rows(train.labels, wanted, None)
    held_out = max(1, round(len(rows) * choice.test_fraction))
    if held_out >= len(rows):
        raise InputError(
            f"{train.where} has {len(rows)} usable examples; that is too few to hold some out for testing, "
            "so lower data.test_fraction or add pictures"
        )
    return take(train, rows[held_out:][: choice.limit]), take(train, rows[:held_out][: choice.test_limit])


def in_words(shape: Sequence[int]) -> str:
    """A shape as 28x28."""
    return "x".join(map(str, shape))


def digits(**choice: Any) -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1797 8x8 handwritten digits, shipped with the library: (pool, test)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1)
    source = Source(bunch.target, lambda rows: pixels[torch.from_numpy(rows)], tuple(map(str, range(10))), "digits")
    return pool_and_test(source, None, Choice(**choice))
