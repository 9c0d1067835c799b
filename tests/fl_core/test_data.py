"""Every loader ends in the same ImageSet, or in one line that says what to change."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fl_core.data import ImageSet, digits, folder, parquet, torchvision_set
from fl_core.errors import InputError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist-test.parquet"


def picture(level: int, size: tuple[int, int] = (6, 4), mode: str = "L", kind: str = "PNG") -> bytes:
    """An encoded picture, `size` (height, width), all of one `level`: its content tells which it is."""
    pixels = np.full(size, level, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write(path: Path, images: Any, labels: Any, *, column: str = "image", label: str = "label") -> str:
    if isinstance(images, list) and all(isinstance(one, bytes | None) for one in images):
        images = pa.array(
            [{"bytes": one, "path": None} for one in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    pq.write_table(pa.table({column: images, label: labels}), path)
    return str(path)


def write_levels(path: Path, labels: list[int], **options: Any) -> str:
    """Row i is the picture of level i."""
    return write(path, [picture(row) for row in range(len(labels))], pa.array(labels, pa.int64()), **options)


def levels(part: ImageSet) -> list[int]:
    """The level of each picture, which is the row that it was written in."""
    assert (part.images.amax((1, 2, 3)) == part.images.amin((1, 2, 3))).all()
    return (part.images[:, 0, 0, 0] * 255).round().long().tolist()


def assert_refused(load: Any, *needed: str) -> None:
    with pytest.raises(InputError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    for part in needed:
        assert part in message


# Digits, and what is chosen of a source


def test_digits_are_8x8_grey_pixels_between_0_and_1():
    pool, test = digits()
    assert len(pool) + len(test) == 1797
    assert len(test) == round(0.2 * 1797)
    for part in (pool, test):
        assert part.shape == (1, 8, 8)
        assert part.images.dtype == torch.float32
        assert part.images.min() == 0
        assert part.images.max() == 1
        assert part.labels.unique().tolist() == list(range(10))
        assert part.classes == tuple("0123456789")


def test_the_seed_chooses_the_split_and_no_example_is_in_both_parts():
    pool, test = digits(seed=3)
    again, _ = digits(seed=3)
    other, _ = digits(seed=4)
    assert torch.equal(pool.images, again.images)
    assert not torch.equal(pool.images, other.images)
    both = torch.cat([pool.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) >= 1790, "scikit-learn's own few twins apart, every digit is there once"


def test_limits_take_that_many_and_keep_the_order():
    pool, test = digits(limit=100, test_limit=50)
    assert (len(pool), len(test)) == (100, 50)
    whole, whole_test = digits()
    assert torch.equal(pool.images, whole.images[:100])
    assert torch.equal(test.images, whole_test.images[:50])


def test_select_and_relabel_keep_the_rest():
    pool, _ = digits()
    part = pool.select(torch.tensor([5, 2]))
    assert torch.equal(part.images, pool.images[[5, 2]])
    assert torch.equal(part.labels, pool.labels[[5, 2]])
    flipped = part.relabel(torch.tensor([1, 1]))
    assert torch.equal(flipped.images, part.images)
    assert flipped.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "needed"),
    [
        ({"classes": ["cat", "3"]}, ("data.classes names 'cat'", "10 classes")),
        ({"classes": [3, 10]}, ("data.classes names 10", "0 to 9")),
        ({"classes": [3, -1]}, ("data.classes names -1",)),
        ({"classes": [3]}, ("at least two different classes",)),
        ({"classes": [3, "3"]}, ("at least two different classes",)),
        ({"limit": 0}, ("data.limit is 0",)),
        ({"test_limit": 1.5}, ("data.test_limit is 1.5",)),
        ({"test_fraction": 1.0}, ("data.test_fraction is 1.0",)),
    ],
)
def test_a_choice_that_means_nothing_is_refused(wrong: dict[str, Any], needed: tuple[str, ...]):
    assert_refused(lambda: digits(**wrong), *needed)


# Parquet

LABELS = [2, 0, 1, 1, 2, 0, 2, 1, 0, 2]
NAMES = ["ant", "bee", "cow"]


def test_parquet_keeps_each_picture_with_its_label(tmp_path: Path):
    pool, test = parquet(write_levels(tmp_path / "a.parquet", LABELS), test_fraction=0.3)
    assert (len(pool), len(test)) == (7, 3)
    assert pool.shape == (1, 6, 4)
    assert sorted(levels(pool) + levels(test)) == list(range(10))
    for part in (pool, test):
        assert part.labels.tolist() == [LABELS[row] for row in levels(part)]
        assert part.classes == ("0", "1", "2")


@pytest.mark.parametrize("chosen", [["cow", "ant"], [2, 0], ["cow", 0]])
def test_classes_are_chosen_by_name_or_number_and_renumbered_in_that_order(chosen, tmp_path: Path):
    path = write_levels(tmp_path / "a.parquet", LABELS)
    pool, test = parquet(path, path, names=NAMES, classes=chosen)
    assert pool.classes == test.classes == ("cow", "ant")
    for part in (pool, test):
        assert sorted(levels(part)) == [row for row, label in enumerate(LABELS) if label != 1]
        assert part.labels.tolist() == [{2: 0, 0: 1}[LABELS[row]] for row in levels(part)]


def test_parquet_limits_each_part(tmp_path: Path):
    path = write_levels(tmp_path / "a.parquet", LABELS)
    pool, test = parquet(path, path, limit=4, test_limit=2)
    assert (len(pool), len(test)) == (4, 2)


def test_a_column_of_plain_bytes_and_other_names_are_found(tmp_path: Path):
    images = pa.array([picture(row) for row in range(10)], pa.binary())
    path = write(tmp_path / "a.parquet", images, pa.array(LABELS, pa.uint8()), column="img", label="fine")
    pool, _ = parquet(path, label_column="fine")
    assert pool.labels.tolist() == [LABELS[row] for row in levels(pool)]


def test_a_file_of_many_row_groups_is_one_table(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write_levels(path, LABELS)
    pq.write_table(pq.read_table(path), path, row_group_size=3)
    pool, _ = parquet(str(path))
    assert pool.labels.tolist() == [LABELS[row] for row in levels(pool)]


def test_colour_pictures_have_three_channels_in_their_order(tmp_path: Path):
    file = io.BytesIO()
    pixels = np.zeros((4, 5, 3), dtype=np.uint8)
    pixels[:, :, 0], pixels[1, 2, 2] = 255, 51
    Image.fromarray(pixels).save(file, "PNG")
    path = write(tmp_path / "a.parquet", [file.getvalue()] * 6, pa.array([0, 1] * 3))
    pool, _ = parquet(path)
    assert pool.shape == (3, 4, 5)
    assert pool.images[0, 0].unique().tolist() == [1.0]
    assert pool.images[0, 1].unique().tolist() == [0.0]
    assert pool.images[0, 2, 1, 2] == pytest.approx(0.2)


def test_palettes_and_transparency_become_colours(tmp_path: Path):
    for mode in ("P", "RGBA"):
        path = write(tmp_path / f"{mode}.parquet", [picture(60, mode=mode)] * 6, pa.array([0, 1] * 3))
        pool, _ = parquet(path)
        assert pool.shape == (3, 6, 4)
        assert levels(pool)[0] == 60


def test_the_test_file_may_lack_the_last_class(tmp_path: Path):
    pool, test = parquet(write_levels(tmp_path / "a.parquet", LABELS), write_levels(tmp_path / "b.parquet", [0, 1, 1]))
    assert pool.classes == test.classes == ("0", "1", "2")


def test_parquet_that_is_none_is_refused(tmp_path: Path):
    assert_refused(lambda: parquet(str(tmp_path / "none.parquet")), "none.parquet is not a file", "data.path")
    (tmp_path / "text.parquet").write_text("label,image\n")
    assert_refused(lambda: parquet(str(tmp_path / "text.parquet")), "text.parquet is not a readable parquet file")
    whole = write_levels(tmp_path / "a.parquet", LABELS)
    (tmp_path / "half.parquet").write_bytes(Path(whole).read_bytes()[:300])
    assert_refused(lambda: parquet(str(tmp_path / "half.parquet")), "half.parquet is not a readable parquet file")


def test_a_wrong_column_is_refused_with_the_columns_there_are(tmp_path: Path):
    path = write_levels(tmp_path / "a.parquet", LABELS)
    assert_refused(lambda: parquet(path, image_column="img"), "image, label", "data.image_column")
    assert_refused(lambda: parquet(path, label_column="fine"), "image, label", "data.label_column")
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"x": [1.0], "label": [0]}), plain)
    assert_refused(lambda: parquet(str(plain)), "x, label", "data.image_column")


@pytest.mark.parametrize("column", ["label", "name"])
def test_an_image_column_that_holds_no_bytes_is_refused(column: str, tmp_path: Path):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [picture(0)] * 6, "name": ["x"] * 6, "label": [0, 1] * 3})
    pq.write_table(table, path)
    assert_refused(lambda: parquet(str(path), image_column=column), str(path), column)


def test_a_struct_without_bytes_is_refused(tmp_path: Path):
    images = pa.array([{"path": "x.png"}] * 4)
    path = write(tmp_path / "a.parquet", images, pa.array([0, 1] * 2))
    assert_refused(lambda: parquet(path), "column image", "`bytes`")


BAD = {"text": b"no picture", "nothing": b"", "null": None, "half": picture(9, kind="JPEG")[:200]}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_an_undecodable_picture_is_named_with_its_row(bad: bytes | None, tmp_path: Path):
    images = [picture(row) if row != 7 else bad for row in range(10)]
    path = write(tmp_path / "a.parquet", images, pa.array(LABELS))
    assert_refused(lambda: parquet(path), f"{path}, row 7 is not a readable picture")


@pytest.mark.parametrize("other", [picture(0, size=(6, 5)), picture(0, mode="RGB")], ids=["size", "colour"])
def test_pictures_of_different_sizes_are_refused(other: bytes, tmp_path: Path):
    images = [picture(row) for row in range(9)] + [other]
    path = write(tmp_path / "a.parquet", images, pa.array(LABELS))
    assert_refused(lambda: parquet(path, path), path, "make all pictures one size")


@pytest.mark.parametrize("other", [picture(0, size=(6, 5)), picture(0, mode="RGB")], ids=["size", "colour"])
def test_a_test_set_of_another_picture_size_is_refused(other: bytes, tmp_path: Path):
    train = write_levels(tmp_path / "a.parquet", LABELS)
    test = write(tmp_path / "b.parquet", [other] * 6, pa.array([0, 1, 2] * 2))
    assert_refused(lambda: parquet(train, test), test)


@pytest.mark.parametrize(
    ("labels", "needed"),
    [
        (pa.array([0, 1, 2, 3]), ("label 3", "only 3 names")),
        (pa.array([0, 1, 2, -1]), ("label -1", "labels start at 0")),
        (pa.array([0.0, 1.0, 2.0, 1.0]), ("whole numbers",)),
        (pa.array(["a", "b", "a", "b"]), ("whole numbers",)),
        (pa.array([0, 1, None, 1]), ("whole numbers", "one for every image")),
    ],
)
def test_labels_that_are_no_class_are_refused(labels: pa.Array, needed: tuple[str, ...], tmp_path: Path):
    path = write(tmp_path / "a.parquet", [picture(row) for row in range(4)], labels)
    assert_refused(lambda: parquet(path, names=NAMES), path, *needed)


def test_an_empty_file_is_refused(tmp_path: Path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = write(tmp_path / "a.parquet", pa.array([], kind), pa.array([], pa.int64()))
    assert_refused(lambda: parquet(path), f"{path} is empty")


def test_too_few_pictures_to_hold_some_out_are_refused(tmp_path: Path):
    path = write_levels(tmp_path / "a.parquet", [0, 1, 2, 2])
    assert_refused(lambda: parquet(path, names=NAMES, test_fraction=0.99), "too few to hold some out")


def test_classes_without_an_example_are_refused(tmp_path: Path):
    train = write_levels(tmp_path / "a.parquet", LABELS)
    test = write_levels(tmp_path / "b.parquet", [2, 2])
    assert_refused(lambda: parquet(train, test, names=NAMES, classes=["ant", "bee"]), test, "no example", "ant, bee")


@pytest.mark.skipif(not REAL.is_file(), reason="needs the real images beside the repository")
def test_real_mnist_pictures_come_with_their_labels():
    pool, test = parquet(str(REAL), str(REAL), classes=[3, 8], limit=40, test_limit=10)
    assert pool.shape == (1, 28, 28)
    assert (len(pool), len(test)) == (40, 10)
    assert pool.classes == ("3", "8")
    table = pq.read_table(REAL)
    label_of = {
        np.asarray(Image.open(io.BytesIO(image["bytes"]))).tobytes(): label
        for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
        if label in (3, 8)
    }
    for image, label in zip(pool.images, pool.labels.tolist(), strict=True):
        assert label_of[(image[0] * 255).round().byte().numpy().tobytes()] == (3, 8)[label]


# Folders


def fill(root: Path, **classes: list[int]) -> str:
    for name, rows in classes.items():
        (root / name).mkdir(parents=True)
        for row in rows:
            (root / name / f"{row}.png").write_bytes(picture(row))
    return str(root)


def test_a_folder_has_a_class_a_sub_folder(tmp_path: Path):
    root = fill(tmp_path / "a", bee=[0, 1, 2, 3], ant=[10, 11, 12, 13])
    (tmp_path / "a" / "notes.txt").write_text("not a class")
    (tmp_path / "a" / "ant" / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "a" / "bee" / "4.JPG").write_bytes(picture(4, kind="JPEG"))
    pool, test = folder(root, test_fraction=0.25)
    assert pool.classes == ("ant", "bee")
    assert sorted(levels(pool) + levels(test)) == [0, 1, 2, 3, 4, 10, 11, 12, 13]
    for part in (pool, test):
        assert part.labels.tolist() == [0 if level >= 10 else 1 for level in levels(part)]


def test_a_folder_s_test_part_is_its_own(tmp_path: Path):
    pool, test = folder(fill(tmp_path / "a", x=[0, 1], y=[2]), fill(tmp_path / "b", x=[7], y=[8, 9]))
    assert sorted(levels(pool)) == [0, 1, 2]
    assert sorted(levels(test)) == [7, 8, 9]


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path):
    assert_refused(lambda: folder(str(tmp_path / "none")), "none is not a folder", "data.path")
    one = fill(tmp_path / "one", only=[1, 2])
    assert_refused(lambda: folder(one), one, "1 sub-folders with pictures", "at least 2")
    two, others = fill(tmp_path / "two", x=[1], y=[2]), fill(tmp_path / "others", x=[1], z=[2])
    assert_refused(lambda: folder(two, others), others, "other classes")
    bad = fill(tmp_path / "bad", x=[1, 2, 3], y=[4, 5, 6])
    (tmp_path / "bad" / "y" / "5.png").write_text("no picture")
    assert_refused(lambda: folder(bad), str(Path("y") / "5.png"), "not a readable picture")


def test_a_picture_that_cannot_be_opened_is_refused_by_name(tmp_path: Path):
    root = fill(tmp_path / "a", x=[1, 2, 3], y=[4, 5, 6])
    (tmp_path / "a" / "y" / "7.png").symlink_to(tmp_path / "gone.png")
    assert_refused(lambda: folder(root), str(Path("y") / "7.png"))


# torchvision


def write_mnist(root: Path, train: list[int], test: list[int]) -> str:
    """MNIST's own files (idx: big-endian sizes, then bytes); picture i has level i in its second pixel."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, labels in (("train", train), ("t10k", test)):
        pixels = np.zeros((len(labels), 28, 28), dtype=np.uint8)
        pixels[:, 0, 1] = np.arange(len(labels))
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, *pixels.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + bytes(labels))
    return str(root)


def test_mnist_is_read_from_its_own_files(tmp_path: Path):
    train, test = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [7, 1, 3, 3]
    pool, held_out = torchvision_set("mnist", write_mnist(tmp_path, train, test), classes=[3, 5, 1])
    assert pool.shape == held_out.shape == (1, 28, 28)
    assert pool.classes == ("3 - three", "5 - five", "1 - one")
    for part, labels in ((pool, train), (held_out, test)):
        rows = (part.images[:, 0, 0, 1] * 255).round().long().tolist()
        assert sorted(rows) == [row for row, label in enumerate(labels) if label in (3, 5, 1)]
        assert part.labels.tolist() == [[3, 5, 1].index(labels[row]) for row in rows]
        assert part.images[:, 0, 1].abs().max() == 0


def test_missing_torchvision_files_name_the_option_to_download(tmp_path: Path):
    for name in ("mnist", "cifar10"):
        assert_refused(
            lambda name=name: torchvision_set(name, str(tmp_path)), f"{name} cannot be read", "data.download"
        )
    assert_refused(lambda: torchvision_set("mnits", str(tmp_path)), "data.name is 'mnits'", "did you mean 'mnist'")


@pytest.mark.parametrize("kept", [0, 3, 16, 1000])
def test_a_cut_off_torchvision_file_is_refused(kept: int, tmp_path: Path):
    root = write_mnist(tmp_path, [0, 1, 2], [0, 1, 2])
    damaged = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:kept])
    assert_refused(lambda: torchvision_set("mnist", root), "mnist cannot be read")
