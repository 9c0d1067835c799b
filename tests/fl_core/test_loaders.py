"""Every loader ends in the same ImageSet, or in one line that names the file and says what to change."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.loaders import folder, parquet

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


# Owners


def owned(path: Path, owners: Any, labels: list[int] = LABELS) -> str:
    write_levels(path, labels)
    pq.write_table(pq.read_table(path).append_column("writer", owners), path)
    return str(path)


@pytest.mark.parametrize("kind", ["strings", "numbers", "dictionary"])
def test_an_owner_column_says_whose_each_picture_is(kind: str, tmp_path: Path):
    writers = ["zoe", "amy", "bob", "zoe", "amy", "bob", "zoe", "amy", "bob", "zoe"]
    numbered = {"zoe": 7, "amy": 70, "bob": 8}
    column = {
        "strings": pa.array(writers),
        "numbers": pa.array([numbered[writer] for writer in writers], pa.int32()),
        "dictionary": pa.array(writers).dictionary_encode(),
    }[kind]
    path = owned(tmp_path / "a.parquet", column)
    pool, test = parquet(path, path, owner_column="writer")
    for part in (pool, test):
        assert part.owner_names == (("7", "8", "70") if kind == "numbers" else ("amy", "bob", "zoe"))
        stored = [column[row].as_py() for row in levels(part)]
        assert [part.owner_names[owner] for owner in part.owners.tolist()] == list(map(str, stored))


def test_owners_of_no_chosen_example_are_not_named(tmp_path: Path):
    owners = pa.array([f"writer {label}" for label in LABELS])
    pool, test = parquet(owned(tmp_path / "a.parquet", owners), owner_column="writer", classes=[2, 1])
    names = set(pool.owner_names) | set(test.owner_names)
    assert names == {"writer 1", "writer 2"}
    for part in (pool, test):
        assert [part.owner_names[owner] for owner in part.owners] == [f"writer {(2, 1)[one]}" for one in part.labels]


def test_without_an_owner_column_nobody_is_named(tmp_path: Path):
    pool, _ = parquet(owned(tmp_path / "a.parquet", pa.array(list("abcdefghij"))))
    assert pool.owners is None
    assert pool.owner_names == ()


@pytest.mark.parametrize(
    "owners",
    [pa.array([0.5] * 10), pa.array([None] + ["x"] * 9), pa.array([b"x"] * 10)],
    ids=["float", "null", "bytes"],
)
def test_owners_that_are_no_names_are_refused(owners: pa.Array, tmp_path: Path):
    path = owned(tmp_path / "a.parquet", owners)
    assert_refused(lambda: parquet(path, owner_column="writer"), path, "data.owner_column")
    assert_refused(lambda: parquet(path, owner_column="author"), "image, label, writer", "data.owner_column")


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


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_pictures_of_more_than_8_bits_are_refused_instead_of_clipped(mode: str, tmp_path: Path):
    file = io.BytesIO()
    dtype = {"I;16": np.uint16, "F": np.float32}[mode]
    Image.fromarray(np.full((6, 4), 700, dtype)).save(file, {"I;16": "PNG", "F": "TIFF"}[mode])
    path = write(tmp_path / "a.parquet", [file.getvalue()] * 6, pa.array([0, 1] * 3))
    assert_refused(lambda: parquet(path), "more than 8 bits a pixel", path)


def test_a_folder_by_owner_has_an_owner_a_sub_folder_and_a_class_below(tmp_path: Path):
    for owner, levels_of in {"eve": {"bee": [1, 2], "ant": [3]}, "ann": {"bee": [4], "cow": [5]}, "none": {}}.items():
        (tmp_path / "a" / owner).mkdir(parents=True)
        fill(tmp_path / "a" / owner, **levels_of)
    pool, test = folder(str(tmp_path / "a"), str(tmp_path / "a"), by_owner=True)
    for part in (pool, test):
        assert part.classes == ("ant", "bee", "cow")
        assert part.owner_names == ("ann", "eve")
        found = {
            level: (part.owner_names[owner], part.classes[label])
            for level, owner, label in zip(levels(part), part.owners.tolist(), part.labels.tolist(), strict=True)
        }
        assert found == {1: ("eve", "bee"), 2: ("eve", "bee"), 3: ("eve", "ant"), 4: ("ann", "bee"), 5: ("ann", "cow")}


def test_the_wrong_folder_layout_names_the_option(tmp_path: Path):
    flat = fill(tmp_path / "flat", x=[1, 2], y=[3])
    assert_refused(lambda: folder(flat, by_owner=True), flat, "owner/class/picture", "data.by_owner=false")
    deep = str(tmp_path / "deep")
    for owner in "ab":
        (tmp_path / "deep" / owner).mkdir(parents=True)
        fill(tmp_path / "deep" / owner, x=[1, 2], y=[3])
    assert_refused(lambda: folder(deep), deep, "class/picture", "data.by_owner=true")
    assert_refused(lambda: folder(deep, by_owner="yes"), "data.by_owner is 'yes'; allowed: true, false")


def test_a_picture_that_cannot_be_opened_is_refused_by_name(tmp_path: Path):
    root = fill(tmp_path / "a", x=[1, 2, 3], y=[4, 5, 6])
    (tmp_path / "a" / "y" / "7.png").symlink_to(tmp_path / "gone.png")
    assert_refused(lambda: folder(root), str(Path("y") / "7.png"))
