"""Pictures that are stored as arrays: numpy's .npz, and torchvision's own files, made here in their formats."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets

from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.loaders import npz, torchvision_set

LABELS = [2, 0, 1, 1, 2, 0, 2, 1, 0, 2]


def assert_refused(load: Callable[[], object], *needed: str) -> None:
    with pytest.raises(InputError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    for part in needed:
        assert part in message


# .npz


def pictures(count: int = 10) -> np.ndarray:
    """[count, 6, 5] uint8; picture i holds i in its first pixel and a mark at (4, 2), so that an exchange shows."""
    images = np.zeros((count, 6, 5), dtype=np.uint8)
    images[:, 0, 0] = np.arange(count)
    images[:, 4, 2] = 255
    return images


def save(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def rows(part: ImageSet) -> list[int]:
    return (part.images[:, 0, 0, 0] * 255).round().long().tolist()


COLOUR = np.stack([pictures(), pictures() * 0, pictures() // 255 * 51], -1)

LAYOUTS = {
    "NHW": (pictures(), 1),
    "NHWC, grey": (pictures()[..., None], 1),
    "NCHW, grey": (pictures()[:, None], 1),
    "NHWC": (COLOUR, 3),
    "NCHW": (COLOUR.transpose(0, 3, 1, 2), 3),
    "float64": (COLOUR / 255, 3),
    "float16": ((pictures() / 255).astype(np.float16), 1),
}


@pytest.mark.parametrize(("images", "channels"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_an_npz_gives_the_same_upright_pictures(images: np.ndarray, channels: int, tmp_path: Path):
    path = save(tmp_path / "a.npz", images=images, labels=np.array(LABELS))
    pool, test = npz(path, test_fraction=0.3)
    assert sorted(rows(pool) + rows(test)) == list(range(10))
    for part in (pool, test):
        assert part.images.dtype == torch.float32
        assert part.shape == (channels, 6, 5)
        assert part.labels.tolist() == [LABELS[row] for row in rows(part)]
        assert part.images[:, 0, 4, 2].unique().tolist() == [1.0]
        assert part.images[:, 0, 2, 4].unique().tolist() == [0.0]
        if channels == 3:
            assert part.images[:, 1].unique().tolist() == [0.0]
            assert part.images[:, 2, 4, 2].unique().tolist() == pytest.approx([0.2])


def test_an_npz_names_its_classes_and_owners(tmp_path: Path):
    owners = np.array(["zoe", "amy"] * 5)
    arrays = {"images": pictures(), "labels": np.array(LABELS, np.uint8), "classes": np.array(["ant", "bee", "cow"])}
    path = save(tmp_path / "a.npz", owners=owners, **arrays)
    pool, test = npz(path, path, classes=["cow", "ant"])
    for part in (pool, test):
        assert part.classes == ("cow", "ant")
        assert part.owner_names == ("amy", "zoe")
        for row, label, owner in zip(rows(part), part.labels.tolist(), part.owners.tolist(), strict=True):
            assert LABELS[row] == (2, 0)[label]
            assert owners[row] == part.owner_names[owner]
    numbered = save(tmp_path / "b.npz", owners=np.array([30, 4] * 5), **arrays)
    assert npz(numbered)[0].owner_names == ("4", "30")


def test_an_npz_s_test_part_may_lack_the_last_classes_only_if_they_are_numbered(tmp_path: Path):
    names = {"classes": np.array(["ant", "bee"])}
    whole = save(tmp_path / "a.npz", images=pictures(), labels=np.array(LABELS))
    part = save(tmp_path / "b.npz", images=pictures(4), labels=np.array([0, 1, 1, 0]))
    named = save(tmp_path / "c.npz", images=pictures(4), labels=np.array([0, 1, 1, 0]), **names)
    pool, test = npz(whole, part)
    assert pool.classes == test.classes == ("0", "1", "2")
    assert npz(part, whole)[0].classes == ("0", "1", "2")
    assert_refused(lambda: npz(whole, named), named, "other classes", whole)
    assert_refused(lambda: npz(named, part), part, "other classes", named)


GOOD: dict[str, Any] = {"images": pictures(), "labels": np.array(LABELS)}
FLOATS = pictures() / 255.0


def with_pixel(value: float) -> np.ndarray:
    images = FLOATS.copy()
    images[7, 3, 3] = value
    return images


WRONG = {
    "no images": ({"images": None}, ("has the arrays labels", "`images`")),
    "no labels": ({"labels": None}, ("has the arrays images", "`labels`")),
    "empty": ({"images": pictures(0), "labels": np.array([], np.int64)}, ("`images` is empty",)),
    "no pixels": ({"images": pictures()[:, :0]}, ("`images` is empty", "10x0x5")),
    "flat pictures": ({"images": pictures().reshape(10, 30)}, ("10x30", "examples x height x width")),
    "two channels": ({"images": COLOUR[..., :2]}, ("10x6x5x2", "1 or 3 channels")),
    "channels twice": ({"images": COLOUR[:, :3]}, ("10x3x5x3", "clear which are the channels")),
    "int pixels": ({"images": pictures().astype(np.int64)}, ("int64", "uint8", "[0, 1]")),
    "bool pixels": ({"images": pictures() > 0}, ("bool", "uint8")),
    "0 to 255 as floats": ({"images": pictures() * 1.0}, ("from 0 to 255", "[0, 1]")),
    "just above 1": ({"images": with_pixel(1.001)}, ("to 1.001",)),
    "below 0": ({"images": with_pixel(-0.5)}, ("from -0.5",)),
    "NaN": ({"images": with_pixel(np.nan)}, ("nan",)),
    "infinite": ({"images": with_pixel(np.inf)}, ("to inf",)),
    "too few labels": ({"labels": np.array(LABELS[:9])}, ("9 labels for 10 pictures",)),
    "one label": ({"labels": np.array(3)}, ("`labels` holds int64 of shape a single number",)),
    "one-hot labels": ({"labels": np.eye(10, dtype=int)}, ("10x10", "one for every image")),
    "float labels": ({"labels": np.array(LABELS) + 0.5}, ("`labels` holds float64", "whole numbers")),
    "text labels": ({"labels": np.array(list("abcabcabca"))}, ("`labels` holds <U1", "whole numbers")),
    "bool labels": ({"labels": np.array(LABELS) > 0}, ("`labels` holds bool", "whole numbers")),
    "negative label": ({"labels": np.array(LABELS) - 1}, ("the label -1", "start at 0")),
    "huge label": ({"labels": np.array(LABELS) + 2**62}, (f"the label {2 + 2**62}",)),
    "unnamed label": ({"classes": np.array(["ant", "bee"])}, ("the label 2", "only 2 names")),
    "classes alike": ({"classes": np.array(["ant", "bee", "ant"])}, ("same name", "ant, bee, ant")),
    "classes nested": ({"classes": np.array([["ant", "bee", "cow"]])}, ("`classes` is <U3 of shape 1x3",)),
    "too few owners": ({"owners": np.array(["x"] * 9)}, ("9 owners for 10 pictures",)),
    "float owners": ({"owners": np.zeros(10)}, ("the owners are float64",)),
}


@pytest.mark.parametrize(("change", "needed"), WRONG.values(), ids=WRONG)
def test_an_npz_that_cannot_be_used_is_refused(change: dict[str, Any], needed: tuple[str, ...], tmp_path: Path):
    arrays = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    path = save(tmp_path / "a.npz", **arrays)
    assert_refused(lambda: npz(path), path, *needed)


def test_an_npz_with_python_objects_is_refused_and_nothing_in_it_runs(tmp_path: Path):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (ran,)

    labels = np.array([Trap()] * 10, dtype=object)
    path = save(tmp_path / "a.npz", images=pictures(), labels=labels)
    assert_refused(lambda: npz(path), path, "without Python objects")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()))
    assert_refused(lambda: npz(str(tmp_path / "b.npz")), "b.npz is not a readable .npz file")
    assert not ran.exists()
    pickle.loads(pickle.dumps(Trap()))
    assert ran.exists(), "the trap works"


def test_a_damaged_npz_is_refused(tmp_path: Path):
    whole = Path(save(tmp_path / "a.npz", **GOOD)).read_bytes()
    broken = {
        "nothing": b"",
        "half": whole[: len(whole) // 2],
        "flipped": whole[:150] + bytes([whole[150] ^ 1]) + whole[151:],
        "text": b"label,image\n",
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        assert_refused(lambda path=path: npz(str(path)), f"{path} is not a readable .npz file")
    np.save(tmp_path / "bare.npy", pictures())
    assert_refused(lambda: npz(str(tmp_path / "bare.npy")), "bare.npy", "one bare array")
    assert_refused(lambda: npz(str(tmp_path / "none.npz")), "none.npz is not a file", "data.path")


def test_an_npz_s_test_part_of_another_size_is_refused(tmp_path: Path):
    train = save(tmp_path / "a.npz", **GOOD)
    test = save(tmp_path / "b.npz", images=pictures()[:, :5], labels=np.array(LABELS))
    assert_refused(lambda: npz(train, test), test, "1x5x5", "1x6x5")


# torchvision: MNIST's kin


FILES = {"mnist": "MNIST/raw/{}", "fashion_mnist": "FashionMNIST/raw/{}", "emnist": "EMNIST/raw/emnist-{split}-{}"}


def write_idx(root: Path, name: str, train: list[int], test: list[int], split: str = "", upright: bool = True) -> str:
    """torchvision's files in the idx format (big-endian sizes, then bytes); picture i has level i at (0, 1)."""
    for labels, part in ((train, "train"), (test, "test" if split else "t10k")):
        stem = root / FILES[name].format(part, split=split)
        stem.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((len(labels), 28, 28), dtype=np.uint8)
        pixels[:, 0, 1] = np.arange(len(labels))
        pixels = pixels if upright else pixels.transpose(0, 2, 1)
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, *pixels.shape)
        Path(f"{stem}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
        Path(f"{stem}-labels-idx1-ubyte").write_bytes(header + bytes(labels))
    return str(root)


def idx_rows(part: ImageSet) -> list[int]:
    """The row that each picture was written in, from the level that is its only mark."""
    levels = part.images[:, 0, 0, 1]
    assert torch.equal(part.images.sum((1, 2, 3)), levels)
    return (levels * 255).round().long().tolist()


@pytest.mark.parametrize(("name", "five"), [("mnist", "5 - five"), ("fashion_mnist", "Sandal")])
def test_mnist_and_fashion_mnist_are_read_from_their_own_files(name: str, five: str, tmp_path: Path):
    train, test = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [7, 1, 3, 3]
    pool, held_out = torchvision_set(name, write_idx(tmp_path, name, train, test), classes=[3, five, 1])
    assert pool.shape == held_out.shape == (1, 28, 28)
    assert pool.classes[1] == five
    for part, labels in ((pool, train), (held_out, test)):
        found = idx_rows(part)
        assert sorted(found) == [row for row, label in enumerate(labels) if label in (3, 5, 1)]
        assert part.labels.tolist() == [[3, 5, 1].index(labels[row]) for row in found]


@pytest.mark.parametrize(
    ("split", "classes", "some"),
    [
        ("balanced", 47, {10: "A", 36: "a", 46: "t"}),
        ("byclass", 62, {9: "9", 10: "A", 35: "Z", 36: "a", 61: "z"}),
        ("bymerge", 47, {10: "A", 36: "a", 46: "t"}),
        ("letters", 26, {0: "a", 25: "z"}),
        ("digits", 10, {0: "0", 9: "9"}),
        ("mnist", 10, {0: "0", 9: "9"}),
    ],
)
def test_emnist_stands_upright_and_its_labels_start_at_0(
    split: str, classes: int, some: dict[int, str], tmp_path: Path
):
    first = 1 if split == "letters" else 0
    train = [first, classes - 1 + first, *(label + first for label in some)]
    root = write_idx(tmp_path, "emnist", train, train[::-1], split, upright=False)
    pool, test = torchvision_set("emnist", root, split=split)
    assert len(pool.classes) == classes
    assert {number: pool.classes[number] for number in some} == some
    for part, labels in ((pool, train), (test, train[::-1])):
        assert part.labels.tolist() == [labels[row] - first for row in idx_rows(part)]


def test_the_option_split_is_emnist_s_own(tmp_path: Path):
    assert_refused(lambda: torchvision_set("emnist", str(tmp_path)), "data.split is None", "balanced, byclass")
    assert_refused(lambda: torchvision_set("emnist", "", split="letter"), "did you mean 'letters'")
    assert_refused(lambda: torchvision_set("mnist", "", split="digits"), "only emnist has splits", "data.split=null")
    assert_refused(lambda: torchvision_set("mnist", "", download="no"), "data.download is 'no'")


def test_missing_torchvision_files_name_the_option_to_download(tmp_path: Path):
    for name in ("mnist", "fashion_mnist", "emnist", "cifar10", "cifar100"):
        split = "digits" if name == "emnist" else None
        assert_refused(
            lambda name=name, split=split: torchvision_set(name, str(tmp_path), split=split),
            f"{name} (train) cannot be read",
            f"data.path={tmp_path}",
            "data.download=true",
        )
    assert_refused(lambda: torchvision_set("mnits", str(tmp_path)), "data.name is 'mnits'", "did you mean 'mnist'")


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("kept", [0, 3, 9])
def test_a_cut_off_idx_file_is_refused(file: str, kept: int, tmp_path: Path):
    root = write_idx(tmp_path, "mnist", [0, 1, 2], [0, 1, 2])
    damaged = tmp_path / "MNIST" / "raw" / file
    damaged.write_bytes(damaged.read_bytes()[:kept])
    part = "train" if file.startswith("train") else "test"
    assert_refused(lambda: torchvision_set("mnist", root), f"mnist ({part}) cannot be read", root)


def test_an_idx_file_that_ends_inside_a_picture_is_refused(tmp_path: Path):
    root = write_idx(tmp_path, "mnist", [0, 1, 2], [0, 1, 2])
    damaged = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert_refused(lambda: torchvision_set("mnist", root), "mnist (train) cannot be read")


@pytest.mark.parametrize(
    ("name", "split", "labels", "needed"),
    [
        ("mnist", "", [0, 10], ("the label 10", "only 10 names")),
        ("fashion_mnist", "", [0, 255], ("the label 255", "only 10 names")),
        ("emnist", "letters", [1, 27], ("the label 27", "only 26 names")),
        ("emnist", "letters", [1, 0], ("the label 0", "start at 1")),
    ],
)
def test_an_idx_label_that_is_no_class_is_refused(
    name: str, split: str, labels: list[int], needed: tuple[str, ...], tmp_path: Path
):
    root = write_idx(tmp_path, name, labels, [1, 1], split)
    assert_refused(lambda: torchvision_set(name, root, split=split or None), f"{name} (train)", root, *needed)


def test_idx_files_with_more_labels_than_pictures_are_refused(tmp_path: Path):
    root = write_idx(tmp_path, "mnist", [0, 1, 2], [0, 1, 2])
    write_idx(tmp_path / "other", "mnist", [0, 1, 2, 3], [0])
    name = "MNIST/raw/train-labels-idx1-ubyte"
    (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert_refused(lambda: torchvision_set("mnist", root), "mnist (train)", "4 labels for 3 pictures")


# torchvision: CIFAR


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch, batch: dict[str, Any] | None = None) -> str:
    """CIFAR's files with 4 pictures a batch, and their checksums in the place of the real ones.

    Every file holds labels 0 to 3; picture i of a batch has 10 * i in its red corner, and 51 in a blue pixel.
    """
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    pixels = np.zeros((4, 3, 32, 32), dtype=np.uint8)
    pixels[:, 0, 0, 0] = 10 * np.arange(4)
    pixels[:, 2, 1, 5] = 51
    usual = {"data": pixels.reshape(4, -1), "labels" if name == "cifar10" else "fine_labels": [0, 1, 2, 3]}
    if name == "cifar100":
        usual["coarse_labels"] = [9, 9, 9, 9]
    folder = root / kind.base_folder
    folder.mkdir()

    def put(file: str, content: Any) -> str:
        data = pickle.dumps(content)
        (folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for part in ("train_list", "test_list"):
        sums = [[file, put(file, usual if batch is None else batch)] for file, _ in getattr(kind, part)]
        monkeypatch.setattr(kind, part, sums)
    count = {"cifar10": 10, "cifar100": 100}[name]
    meta = {**kind.meta, "md5": put(kind.meta["filename"], {kind.meta["key"]: [f"thing {i}" for i in range(count)]})}
    monkeypatch.setattr(kind, "meta", meta)
    return str(root)


@pytest.mark.parametrize(("name", "batches"), [("cifar10", 5), ("cifar100", 1)])
def test_cifar_is_read_in_colour_with_its_fine_labels(name: str, batches: int, tmp_path: Path, monkeypatch):
    pool, test = torchvision_set(name, write_cifar(tmp_path, name, monkeypatch))
    assert (len(pool), len(test)) == (4 * batches, 4)
    assert len(pool.classes) == {"cifar10": 10, "cifar100": 100}[name]
    for part in (pool, test):
        assert part.shape == (3, 32, 32)
        assert torch.equal((part.images[:, 0, 0, 0] * 255).round(), 10.0 * part.labels)
        assert part.images[:, 2, 1, 5].unique().tolist() == pytest.approx([0.2])
        assert part.images[:, 1].max() == 0


def test_a_cifar_file_whose_checksum_is_wrong_is_refused_before_it_is_unpickled(tmp_path: Path, monkeypatch):
    root = write_cifar(tmp_path, "cifar10", monkeypatch)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    damaged = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert_refused(lambda: torchvision_set("cifar10", root), "cifar10 (train) cannot be read", root)


def test_cifar_with_labels_that_do_not_fit_is_refused(tmp_path: Path, monkeypatch):
    pixels = np.zeros((4, 3072), dtype=np.uint8)
    for number, (labels, needed) in enumerate(
        [([0, 1, 2, 10], "the label 10"), ([0, 1, -1, 2], "the label -1"), ([0, 1, 2], "15 labels for 20 pictures")]
    ):
        inner = tmp_path / str(number)
        inner.mkdir()
        root = write_cifar(inner, "cifar10", monkeypatch, {"data": pixels, "labels": labels})
        assert_refused(lambda root=root: torchvision_set("cifar10", root), "cifar10 (train)", needed, root)
