"""Pictures come the same out of every kind of file, and a file that holds none is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fl_core.errors import InputError
from fl_core.picture_files import pictures

SHAPE = (3, 4, 5)


@pytest.fixture
def stored() -> np.ndarray:
    """Six pictures [pictures, height, width, channels]."""
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


def encoded(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def test_every_kind_gives_the_same_pixels(stored, tmp_path: Path):
    labels = np.arange(6) % 2
    pixels = torch.from_numpy(stored.transpose(0, 3, 1, 2).copy()).float() / 255
    (tmp_path / "folder/deeper").mkdir(parents=True)
    for place, picture in enumerate(stored):
        (tmp_path / f"folder/deeper/{place}.png").write_bytes(encoded(picture))
    (tmp_path / "folder/notes.txt").write_text("no picture")
    np.savez(tmp_path / "p.npz", images=stored, labels=labels)
    np.savez(tmp_path / "bare.npz", images=stored)
    save_file({"images": pixels, "labels": torch.from_numpy(labels)}, tmp_path / "p.safetensors")
    for name, labelled in (("folder", False), ("p.npz", True), ("bare.npz", False), ("p.safetensors", True)):
        found, numbers = pictures(tmp_path / name, SHAPE, "public")
        torch.testing.assert_close(found, pixels, msg=name)
        assert (numbers is not None) == labelled
        assert numbers is None or numbers.tolist() == labels.tolist()
        assert len(pictures(tmp_path / name, SHAPE, "public", most=2)[0]) == 2
    rows = pa.table({"image": [{"bytes": encoded(one), "path": None} for one in stored], "label": labels})
    pq.write_table(rows, tmp_path / "p.parquet")
    found, numbers = pictures(tmp_path / "p.parquet", SHAPE, "public")  # in an order of its own
    order = [int((pixels - one).abs().flatten(1).sum(1).argmin()) for one in found]
    assert sorted(order) == list(range(6))
    torch.testing.assert_close(found, pixels[order])
    assert numbers.tolist() == labels[order].tolist()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.npz", "public is .*nowhere.npz, which is neither a file nor a folder"),
        ("empty", "holds no picture"),
        ("words.txt", "it must be a folder, or .parquet, .npz or .safetensors"),
        ("damaged.npz", "which cannot be read"),
        ("damaged.safetensors", "which cannot be read"),
        ("other.npz", "which has no `images`"),
        ("large.npz", "with pictures of 3x6x6; shape=3x4x5"),
        ("bright.npz", r"must lie in \[0, 1\]"),
        ("labels.npz", "`labels` must be whole numbers, one for each of 2 pictures"),
    ],
)
def test_what_holds_no_such_pictures_is_named_in_one_line(name, says, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for damaged in ("words.txt", "damaged.npz", "damaged.safetensors"):
        (tmp_path / damaged).write_text("words")
    np.savez(tmp_path / "other.npz", pixels=np.zeros((2, 3, 4, 5), dtype=np.uint8))
    np.savez(tmp_path / "large.npz", images=np.zeros((2, 3, 6, 6), dtype=np.uint8))
    np.savez(tmp_path / "bright.npz", images=np.full((2, 3, 4, 5), 3.0))
    np.savez(tmp_path / "labels.npz", images=np.zeros((2, 3, 4, 5), dtype=np.uint8), labels=np.arange(3))
    with pytest.raises(InputError, match=says) as caught:
        pictures(tmp_path / name, SHAPE, "public")
    assert "\n" not in str(caught.value)
