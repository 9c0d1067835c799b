"""Images, whole, as one tensor: every loader ends in the same ImageSet."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_core.errors import InputError, check_choice, check_number

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


@dataclass(frozen=True)
class ImageSet:
    """Pixels [examples, channels, height, width] in [0, 1], labels [examples] and the classes' names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)

    def select(self, index: Tensor) -> ImageSet:
        return ImageSet(self.images[index], self.labels[index], self.classes)

    def relabel(self, labels: Tensor) -> ImageSet:
        return ImageSet(self.images, labels, self.classes)


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
        for name, value in (("data.limit", self.limit), ("data.test_limit", self.test_limit)):
            if value is not None:
                check_number(name, value, minimum=1, integer=True)

    def rows(self, labels: np.ndarray[Any, Any], wanted: Sequence[int], limit: int | None) -> np.ndarray[Any, Any]:
        """Row numbers of the wanted classes, shuffled by the seed, at most `limit` of them."""
        rows = np.random.default_rng(self.seed).permutation(np.flatnonzero(np.isin(labels, wanted)))
        return rows[:limit]

    def wanted(self, names: Sequence[str]) -> list[int]:
        """The chosen classes' numbers among `names`."""
        if self.classes is None:
            return list(range(len(names)))
        numbers = []
        for entry in self.classes:
            if str(entry) in names:
                numbers.append(list(names).index(str(entry)))
            elif isinstance(entry, int) and 0 <= entry < len(names):
                numbers.append(entry)
            else:
                raise InputError(
                    f"data.classes names {entry!r}; the data have {len(names)} classes: {', '.join(names[:20])} "
                    f"(or numbers 0 to {len(names) - 1})"
                )
        if len(set(numbers)) != len(numbers) or len(numbers) < 2:
            raise InputError(f"data.classes is {list(self.classes)}; name at least two different classes")
        return numbers


Reader = Callable[[np.ndarray[Any, Any]], Tensor]
"""Decodes the given rows: [rows, channels, height, width] in [0, 1]."""


@dataclass(frozen=True)
class _Source:
    """Labels at once, pixels only for the rows that are asked for."""

    labels: np.ndarray[Any, Any]
    read: Reader
    names: tuple[str, ...]
    where: str


def _split(train: _Source, test: _Source | None, choice: Choice) -> tuple[ImageSet, ImageSet]:
    """The pool and the test set that `choice` asks for."""
    wanted = choice.wanted(train.names)
    names = tuple(train.names[number] for number in wanted)
    number = np.zeros(len(train.names), dtype=np.int64)
    number[wanted] = np.arange(len(wanted))

    def take(source: _Source, rows: np.ndarray[Any, Any]) -> ImageSet:
        if not len(rows):
            raise InputError(f"{source.where} has no example of the classes {', '.join(names)}")
        return ImageSet(source.read(rows), torch.from_numpy(number[source.labels[rows]]), names)

    if test is not None:
        if test.names != train.names:
            raise InputError(f"{test.where} has other classes than {train.where}")
        pool = take(train, choice.rows(train.labels, wanted, choice.limit))
        held = take(test, choice.rows(test.labels, wanted, choice.test_limit))
        if held.shape != pool.shape:
            raise InputError(
                f"{test.where} has pictures of {_size(held.shape)}, {train.where} of {_size(pool.shape)} "
                "(channels x height x width); make them alike"
            )
        return pool, held
    rows = choice.rows(train.labels, wanted, None)
    held_out = max(1, round(len(rows) * choice.test_fraction))
    if held_out >= len(rows):
        raise InputError(f"{train.where} has {len(rows)} usable examples; that is too few to hold some out for testing")
    return take(train, rows[held_out:][: choice.limit]), take(train, rows[:held_out][: choice.test_limit])


def digits(**choice: Any) -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1797 8x8 handwritten digits, shipped with the library: (pool, test)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1)
    source = _Source(bunch.target, lambda rows: pixels[torch.from_numpy(rows)], tuple(map(str, range(10))), "digits")
    return _split(source, None, Choice(**choice))


def torchvision_set(name: str, path: str, download: bool = False, **choice: Any) -> tuple[ImageSet, ImageSet]:
    """A torchvision data set by name, read from (or downloaded to) the folder `path`: (pool, test).

    Raises InputError where the files are missing or damaged; torchvision checks their checksums.
    """
    check_choice("data.name", name, TORCHVISION)
    import torchvision.datasets

    def part(train: bool) -> _Source:
        try:
            loaded = getattr(torchvision.datasets, TORCHVISION[name])(path, train=train, download=download)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
            raise InputError(
                f"{name} cannot be read from data.path={path} ({_first_line(error)}); put torchvision's files there "
                "or allow data.download=true"
            ) from error
        pixels = np.asarray(loaded.data)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        return _Source(
            np.asarray(loaded.targets),
            lambda rows: torch.from_numpy(pixels[rows].astype(np.float32) / 255),
            tuple(loaded.classes),
            f"{name} ({'train' if train else 'test'})",
        )

    return _split(part(True), part(False), Choice(**choice))


def parquet(
    path: str,
    test_path: str | None = None,
    image_column: str | None = None,
    label_column: str = "label",
    names: Sequence[str] | None = None,
    **choice: Any,
) -> tuple[ImageSet, ImageSet]:
    """Parquet in the Hugging Face layout (a struct column with the encoded `bytes`, an integer label): (pool, test).

    `image_column` is found by its type where it is not given; `names` are the classes' names in label order.
    """

    def source(file: str) -> _Source:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(file).is_file():
            raise InputError(f"{file} is not a file; set data.path to a parquet file")
        try:
            table = pq.read_table(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file} is not a readable parquet file ({_first_line(error)})") from error
        column = image_column or next(
            (field.name for field in table.schema if pa.types.is_struct(field.type) or pa.types.is_binary(field.type)),
            None,
        )
        for needed, option in ((column, "data.image_column"), (label_column, "data.label_column")):
            if needed not in table.column_names:
                raise InputError(f"{file} has the columns {', '.join(table.column_names)}; set {option} to one of them")
        encoded = table[column].combine_chunks()
        if pa.types.is_struct(encoded.type):
            if "bytes" not in {field.name for field in encoded.type}:
                raise InputError(f"{file}: the column {column} has no field `bytes` with the encoded image")
            encoded = encoded.field("bytes")
        if not (pa.types.is_binary(encoded.type) or pa.types.is_large_binary(encoded.type)):
            raise InputError(
                f"{file}: the column {column} holds {encoded.type}, no encoded images; set data.image_column"
            )
        if not pa.types.is_integer(table[label_column].type) or table[label_column].null_count:
            raise InputError(f"{file}: the column {label_column} must hold whole numbers, one for every image")
        labels = table[label_column].to_numpy()
        if not len(labels):
            raise InputError(f"{file} is empty")
        if labels.min() < 0:
            raise InputError(f"{file}: the column {label_column} has the label {labels.min()}; labels start at 0")
        known = tuple(names) if names else tuple(map(str, range(int(labels.max()) + 1)))
        if labels.max() >= len(known):
            raise InputError(f"{file} has the label {labels.max()}, but data.names has only {len(known)} names")
        return _Source(
            labels,
            lambda rows: _decode([(_bytes_of(encoded[int(row)].as_py()), f"{file}, row {row}") for row in rows]),
            known,
            file,
        )

    train = source(path)
    test = source(test_path) if test_path else None
    if test is not None and not names and len(test.names) != len(train.names):
        more = max(train.names, test.names, key=len)
        train, test = (_Source(part.labels, part.read, more, part.where) for part in (train, test))
    return _split(train, test, Choice(**choice))


def folder(path: str, test_path: str | None = None, **choice: Any) -> tuple[ImageSet, ImageSet]:
    """A folder with one sub-folder of pictures a class: (pool, test)."""

    def source(root: str) -> _Source:
        if not Path(root).is_dir():
            raise InputError(f"{root} is not a folder; set data.path to a folder with one sub-folder a class")
        found = {
            inner.name: sorted(file for file in inner.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
            for inner in sorted(Path(root).iterdir())
            if inner.is_dir()
        }
        found = {name: files for name, files in found.items() if files}
        if len(found) < 2:
            raise InputError(
                f"{root} has {len(found)} sub-folders with pictures ({', '.join(IMAGE_ENDINGS)}); at least 2"
            )
        files = [file for group in found.values() for file in group]
        labels = np.repeat(np.arange(len(found)), [len(group) for group in found.values()])
        return _Source(
            labels,
            lambda rows: _decode([(files[int(row)], str(files[int(row)])) for row in rows]),
            tuple(found),
            root,
        )

    return _split(source(path), source(test_path) if test_path else None, Choice(**choice))


def _bytes_of(stored: bytes | None) -> io.BytesIO:
    return io.BytesIO(stored or b"")


def _decode(encoded: list[tuple[io.BytesIO | Path, str]]) -> Tensor:
    """Pictures of one size as pixels [pictures, 1 or 3, height, width] in [0, 1]; the second entry says where."""
    from PIL import Image

    pictures: list[np.ndarray[Any, Any]] = []
    for data, where in encoded:
        try:
            with Image.open(data) as image:
                pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{where} is not a readable picture ({_first_line(error)})") from error
        if pictures and pixels.shape != pictures[0].shape:
            raise InputError(
                f"{where} has the size {_size(pixels.shape)}, the first picture "
                f"{_size(pictures[0].shape)}; make all pictures one size"
            )
        pictures.append(pixels)
    stacked = np.stack(pictures)
    stacked = stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked.astype(np.float32) / 255)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
