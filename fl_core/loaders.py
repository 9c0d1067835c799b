"""Pictures from files: torchvision's data sets, parquet, .npz and folders, all ending in the same ImageSet.

Every loader returns (pool, test) and raises InputError, one line that names the file and the cure, for input that is
missing, damaged, empty, of the wrong size, type or range, or whose labels do not fit. Mirage never unpickles a file;
torchvision does for CIFAR, after it has checked the file's checksum.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_core.data import Choice, ImageSet, Reader, Source, in_words, pool_and_test
from fl_core.errors import InputError, check_choice, check_flag

Array = np.ndarray[Any, Any]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "emnist": "EMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")
MOST_CLASSES = 100_000
"""A larger label is no class number where nothing says how many classes there are."""


def torchvision_set(
    name: str, path: str, split: str | None = None, download: bool = False, **choice: Any
) -> tuple[ImageSet, ImageSet]:
    """A torchvision data set by name, read from (or downloaded to) the folder `path`: (pool, test).

    `split` is EMNIST's (Cohen et al. 2017, table II) and null elsewhere. EMNIST's files hold their pictures with rows
    and columns exchanged, and the labels of `letters` start at 1; here pictures are upright and labels start at 0.
    """
    check_choice("data.name", name, TORCHVISION)
    check_flag("data.download", download)
    if name == "emnist":
        check_choice("data.split", split, EMNIST_SPLITS)
    elif split is not None:
        raise InputError(f"data.split is {split!r}, but only emnist has splits; set data.split=null")
    import torchvision.datasets

    options = {"split": split} if name == "emnist" else {}
    first = 1 if split == "letters" else 0

    def part(train: bool) -> Source:
        where = f"{name} ({'train' if train else 'test'})"
        cure = f"put torchvision's files into data.path={path}, or delete damaged ones and set data.download=true"
        with reading(f"{where} cannot be read", cure):
            loaded = getattr(torchvision.datasets, TORCHVISION[name])(
                str(path), train=train, download=download, **options
            )
            pixels, labels = np.asarray(loaded.data), np.asarray(loaded.targets)
        if name == "emnist":
            pixels = pixels.transpose(0, 2, 1)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        names = tuple(loaded.classes)[first:]
        return _source(labels, reader(pixels), where, count=len(pixels), names=names, first=first, cure=cure)

    return pool_and_test(part(True), part(False), Choice(**choice))


def parquet(
    path: str,
    test_path: str | None = None,
    image_column: str | None = None,
    label_column: str = "label",
    owner_column: str | None = None,
    names: Sequence[str] | None = None,
    **choice: Any,
) -> tuple[ImageSet, ImageSet]:
    """Parquet in the Hugging Face layout (a struct column with the encoded `bytes`, an integer label): (pool, test).

    `image_column` is found by its type where it is not given; `names` are the classes' names in label order;
    `owner_column` holds each example's owner, a string or a whole number.
    """
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        raise InputError(f"data.names is {names!r}; it must be a list with the name of every class, or null")

    def source(file: str) -> Source:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        if not Path(file).is_file():
            raise InputError(f"{file} is not a file; set data.path (and data.test_path) to a parquet file")
        with reading(f"{file} is not a readable parquet file", "replace it"):
            table = pq.read_table(file).combine_chunks()
        column = image_column or next(
            (field.name for field in table.schema if pa.types.is_struct(field.type) or pa.types.is_binary(field.type)),
            None,
        )
        needed = [(column, "data.image_column"), (label_column, "data.label_column")]
        for name, option in needed + ([(owner_column, "data.owner_column")] if owner_column is not None else []):
            if name not in table.column_names:
                raise InputError(f"{file} has the columns {', '.join(table.column_names)}; set {option} to one of them")
        if not len(table):
            raise InputError(f"{file} is empty; replace it")
        encoded = table[column]
        if pa.types.is_struct(encoded.type):
            if "bytes" not in {field.name for field in encoded.type}:
                raise InputError(
                    f"{file}: the column {column} has no field `bytes` with the encoded image; set data.image_column"
                )
            encoded = pc.struct_field(encoded, "bytes")
        if not (pa.types.is_binary(encoded.type) or pa.types.is_large_binary(encoded.type)):
            raise InputError(
                f"{file}: the column {column} holds {encoded.type}, no encoded images; set data.image_column"
            )
        return _source(
            _column(table[label_column], file, label_column, "data.label_column"),
            lambda rows: decode([(_bytes_of(encoded[int(row)].as_py()), f"{file}, row {row}") for row in rows]),
            file,
            count=len(table),
            names=names,
            owners=None
            if owner_column is None
            else _column(table[owner_column], file, owner_column, "data.owner_column"),
            field=f"the column {label_column}",
            cure="correct the file, or set data.label_column (or data.owner_column) to another column",
        )

    return _both(source, path, test_path, Choice(**choice))


def npz(path: str, test_path: str | None = None, **choice: Any) -> tuple[ImageSet, ImageSet]:
    """A file of numpy.savez: `images`, `labels`, and where wanted `classes` and `owners`: (pool, test).

    `images` are uint8 (0 to 255) or floats in [0, 1], of the shape [examples, height, width], [examples, height,
    width, channels] or [examples, channels, height, width] with 1 or 3 channels. `labels` [examples] are whole
    numbers from 0, `classes` their names in that order, `owners` [examples] strings or whole numbers.
    """

    def source(file: str) -> Source:
        arrays = _arrays(file)
        pixels = channels_first(arrays["images"], file)
        names = arrays.get("classes")
        if names is not None and (names.ndim != 1 or names.dtype.kind not in "Uiu"):
            raise InputError(f"{file}: `classes` is {_kind(names)}; save a flat array with the name of every class")
        return _source(
            arrays["labels"],
            reader(pixels),
            file,
            count=len(pixels),
            names=None if names is None else names.tolist(),
            owners=arrays.get("owners"),
            cure="save the file again",
        )

    return _both(source, path, test_path, Choice(**choice))


def folder(path: str, test_path: str | None = None, by_owner: bool = False, **choice: Any) -> tuple[ImageSet, ImageSet]:
    """Pictures at class/picture, or with `by_owner` at owner/class/picture, below the folder `path`: (pool, test)."""
    check_flag("data.by_owner", by_owner)

    def source(root: str) -> Source:
        layout = "owner/class/picture" if by_owner else "class/picture"
        if not Path(root).is_dir():
            raise InputError(f"{root} is not a folder; set data.path (and data.test_path) to one of {layout}")
        holders = _sub_folders(Path(root)) if by_owner else [Path(root)]
        found = [
            (holder.name, kind.name, file)
            for holder in holders
            for kind in _sub_folders(holder)
            for file in sorted(kind.iterdir())
            if file.suffix.lower() in IMAGE_ENDINGS
        ]
        names, labels = np.unique([kind for _, kind, _ in found], return_inverse=True)
        if len(names) < 2:
            raise InputError(
                f"{root} has {len(names)} sub-folders with pictures ({', '.join(IMAGE_ENDINGS)}) in the layout "
                f"{layout}; it must have at least 2 classes, or set data.by_owner={str(not by_owner).lower()}"
            )
        files = [file for _, _, file in found]
        return _source(
            labels,
            lambda rows: decode([(files[int(row)], str(files[int(row)])) for row in rows]),
            root,
            count=len(files),
            names=names.tolist(),
            owners=np.array([holder for holder, _, _ in found]) if by_owner else None,
        )

    return _both(source, path, test_path, Choice(**choice))


def _both(
    source: Callable[[str], Source], path: str, test_path: str | None, choice: Choice
) -> tuple[ImageSet, ImageSet]:
    """Pool and test from one source or two; where classes are only numbered, one of the two may lack the last ones."""
    train = source(str(path))
    test = source(str(test_path)) if test_path is not None else None
    if test is not None:
        fewer, more = sorted((train.names, test.names), key=len)
        if more == tuple(map(str, range(len(more)))) and fewer == more[: len(fewer)]:
            train, test = replace(train, names=more), replace(test, names=more)
    return pool_and_test(train, test, choice)


def _source(
    labels: Array,
    read: Reader,
    where: str,
    *,
    count: int,
    names: Sequence[Any] | None = None,
    first: int = 0,
    owners: Array | None = None,
    field: str = "`labels`",
    cure: str = "",
) -> Source:
    """A Source whose labels and owners were checked against the number of pictures and of classes.

    Stored labels start at `first`; without `names` the classes are numbered.
    """

    def check(holds: bool, wrong: str) -> None:
        if not holds:
            raise InputError(f"{where}: {wrong}; {cure}")

    check(
        labels.ndim == 1 and labels.dtype.kind in "iu",
        f"{field} holds {_kind(labels)}, but must hold whole numbers, one for every image",
    )
    check(len(labels) == count, f"{field} holds {len(labels)} labels for {count} pictures")
    check(count > 0, "it holds no picture")
    low, high = int(labels.min()), int(labels.max())
    check(low >= first, f"{field} has the label {low}, but labels start at {first}")
    known = tuple(map(str, names)) if names else tuple(map(str, range(min(high + 1, MOST_CLASSES))))
    check(len(set(known)) == len(known), f"two classes have the same name among {', '.join(known[:20])}")
    check(high - first < len(known), f"{field} has the label {high}, but there are only {len(known)} names of classes")
    labels = labels.astype(np.int64) - first
    if owners is None:
        return Source(labels, read, known, where)
    check(
        owners.ndim == 1 and owners.dtype.kind in "Uiu",
        f"the owners are {_kind(owners)}, but must be strings or whole numbers, one for every image",
    )
    check(len(owners) == count, f"there are {len(owners)} owners for {count} pictures")
    there, numbers = np.unique(owners, return_inverse=True)
    return Source(labels, read, known, where, numbers, tuple(map(str, there.tolist())))


def _column(column: Any, file: str, name: str, option: str) -> Array:
    """A parquet column of whole numbers, or of strings, as an array [rows]; no value may be missing."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise InputError(
            f"{file}: the column {name} must hold whole numbers or strings, one for every image, but lacks "
            f"{column.null_count}; correct the file or set {option}"
        )
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy())
    return np.array(column.to_pylist())


def _arrays(file: str) -> dict[str, Array]:
    if not Path(file).is_file():
        raise InputError(f"{file} is not a file; set data.path (and data.test_path) to a file of numpy.savez")
    cure = "save it again with numpy.savez, as plain arrays without Python objects"
    with reading(f"{file} is not a readable .npz file", cure):
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InputError(f"{file} is not an .npz file but one bare array; {cure}")
        with loaded:
            wanted = [name for name in loaded.files if name in ("images", "labels", "classes", "owners")]
            arrays: dict[str, Array] = {name: loaded[name] for name in wanted}
            names = ", ".join(loaded.files) or "none"
    if not {"images", "labels"} <= set(arrays):
        raise InputError(f"{file} has the arrays {names}; it needs `images` and `labels`, so save it again with both")
    return arrays


def channels_first(images: Array, file: str) -> Array:
    """The stored `images` as [examples, 1 or 3, height, width], with type and range checked."""
    if not images.size:
        raise InputError(f"{file}: `images` is empty (shape {in_words(images.shape)}); save it again with pictures")
    if images.dtype != np.uint8:
        if images.dtype.kind != "f":
            raise InputError(f"{file}: `images` is {_kind(images)}; save it as uint8 or as floats in [0, 1]")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"{file}: `images` holds floats from {low:g} to {high:g}; they must lie in [0, 1], "
                "so scale them or save uint8"
            )
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first != last:
            return images if first else images.transpose(0, 3, 1, 2)
    raise InputError(
        f"{file}: `images` has the shape {in_words(images.shape)}; it must be examples x height x width, "
        "with 1 or 3 channels before or after height x width (and it must be clear which are the channels)"
    )


def reader(pixels: Array) -> Reader:
    """Reads stored uint8 (0 to 255) or float (0 to 1) pixels [examples, channels, height, width]."""
    scale = 255 if pixels.dtype == np.uint8 else 1
    return lambda rows: torch.from_numpy(pixels[rows].astype(np.float32) / scale)


def decode(encoded: list[tuple[io.BytesIO | Path, str]]) -> Tensor:
    """Pictures of one size as pixels [pictures, 1 or 3, height, width] in [0, 1]; the second entry says where."""
    from PIL import Image

    pictures: list[Array] = []
    for data, where in encoded:
        with reading(f"{where} is not a readable picture", "replace or remove it"), Image.open(data) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{where} has more than 8 bits a pixel (mode {image.mode}); save it with 8")
            pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        if pictures and pixels.shape != pictures[0].shape:
            raise InputError(
                f"{where} has the size {in_words(pixels.shape)}, the first picture "
                f"{in_words(pictures[0].shape)}; make all pictures one size"
            )
        pictures.append(pixels)
    stacked = np.stack(pictures)
    return reader(stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2))(np.arange(len(stacked)))


@contextmanager
def reading(wrong: str, cure: str) -> Iterator[None]:
    """What another library raises on a damaged file, whichever of its many errors that is, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
        raise InputError(f"{wrong} ({reason}); {cure}") from error


def _sub_folders(root: Path) -> list[Path]:
    return sorted(inner for inner in root.iterdir() if inner.is_dir())


def _bytes_of(stored: bytes | None) -> io.BytesIO:
    return io.BytesIO(stored or b"")


def _kind(array: Array) -> str:
    return f"{array.dtype} of shape {in_words(array.shape) or 'a single number'}"
