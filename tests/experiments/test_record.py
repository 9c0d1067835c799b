"""What a results folder keeps."""

from __future__ import annotations

import json
import lzma

import numpy as np
import pytest

from experiments import collect, record
from fl_core.errors import InputError

MANIFEST = dict.fromkeys(record.NAMED, "x") | {"points": [{"hash": "1"}]}
POINT = {"base": 2, "rows": [{"metric": "square", "value": 0.1 + 0.2, "low": None, "high": 1e-17}]}


def test_numbers_come_back_exactly_and_pictures_in_eight_bits(tmp_path):
    pictures = np.random.default_rng(0).random((2, 3, 4, 4))
    curve = np.random.default_rng(1).random((5, 2)).tolist()
    point = POINT | {
        "shown": {"truth": pictures.tolist(), "curve": curve, "ragged": [[[1, 2], [3]]], "lost": [[[None]]]}
    }
    record.write(tmp_path, MANIFEST, points=[point])
    (found,) = record.read(tmp_path).points
    assert np.abs(np.array(found["shown"].pop("truth")) - pictures).max() <= 0.5 / 255 + 1e-12
    point["shown"].pop("truth")
    assert found == point
    assert list(found["rows"][0]) == ["metric", "value", "low", "high"], "columns keep their order"


def test_a_table_of_three_axes_keeps_its_numbers(tmp_path):
    tables = {"counts": [[[12, 5], [7, 1]], [[3, 4], [0, 9]]], "thrice": [[[12.5, 5], [7, 1]]] * 3}
    record.write(tmp_path, MANIFEST, points=[POINT | {"shown": tables}])
    assert record.read(tmp_path).points[0]["shown"] == tables


def test_pictures_that_went_through_once_are_the_same_the_second_time(tmp_path):
    pictures = np.random.default_rng(0).random((2, 1, 8, 8)).tolist()
    for name, point in (("first", POINT | {"shown": pictures}), ("second", None)):
        record.write(tmp_path / name, MANIFEST, points=[point or record.read(tmp_path / "first").points[0]])
    assert record.read(tmp_path / "first").points == record.read(tmp_path / "second").points


@pytest.mark.parametrize(
    ("manifest", "kept", "said"),
    [
        (None, None, "holds no manifest.json"),
        (b"{", None, "manifest.json is damaged"),
        (b"{}", None, "holds no record.json.xz"),
        (b"{}", b"rubbish", "record.json.xz is damaged"),
        (b"{}", lzma.compress(b'{"cells": [{}], "points": []}'), "record.json.xz is damaged, or of another version"),
        (b"{}", lzma.compress(b'{"cells": ["x"], "points": []}'), "record.json.xz is damaged, or of another version"),
        (b"[]", lzma.compress(b'{"cells": [], "points": [{}]}'), "manifest.json is not that of record.json.xz"),
        (b"{}", lzma.compress(b'{"cells": [], "points": [{}]}'), "manifest.json is not that of record.json.xz"),
        (json.dumps(MANIFEST).encode(), lzma.compress(b'{"cells": [], "points": [{}, {}]}'), "is not that of record"),
        (json.dumps(MANIFEST).encode(), lzma.compress(b'{"cells": [], "points": []}'), "is not that of record"),
    ],
)
def test_a_folder_without_a_whole_record_is_refused(tmp_path, manifest, kept, said):
    for name, content in (("manifest.json", manifest), (record.FILE, kept)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        record.read(tmp_path)


def test_a_file_in_place_of_a_folder_is_not_called_damaged(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("text")
    with pytest.raises(InputError, match=r"README\.md holds no manifest\.json; name a folder"):
        record.read(file)


def test_the_examples_with_pictures_are_those_of_the_first_attack_that_ran():
    names = ["gradient ascent", "LiRA", "BaVarIA"]
    assert collect.first_ranked(names, {"BaVarIA": [], "LiRA": []}) == "LiRA"
    assert collect.first_ranked(names, {}) == ""
