"""What a results folder keeps, and that what is drawn from it is held to it."""

from __future__ import annotations

import json
import lzma
import zlib

import numpy as np
import pytest

from experiments import collect, paper, record
from fl_core.errors import InputError

POINT = {"base": 2, "rows": [{"metric": "square", "value": 0.1 + 0.2, "low": None, "high": 1e-17}]}


def test_numbers_come_back_exactly_and_pictures_in_eight_bits(tmp_path):
    pictures = np.random.default_rng(0).random((2, 3, 4, 4))
    curve = np.random.default_rng(1).random((5, 2)).tolist()
    point = POINT | {
        "shown": {"truth": pictures.tolist(), "curve": curve, "ragged": [[[1, 2], [3]]], "lost": [[[None]]]}
    }
    record.write(tmp_path, {"title": "x"}, points=[point])
    (found,) = record.read(tmp_path).points
    assert np.abs(np.array(found["shown"].pop("truth")) - pictures).max() <= 0.5 / 255 + 1e-12
    point["shown"].pop("truth")
    assert found == point
    assert list(found["rows"][0]) == ["metric", "value", "low", "high"], "columns keep their order"


def test_pictures_that_went_through_once_are_the_same_the_second_time(tmp_path):
    pictures = np.random.default_rng(0).random((2, 1, 8, 8)).tolist()
    for name, point in (("first", POINT | {"shown": pictures}), ("second", None)):
        record.write(tmp_path / name, {}, points=[point or record.read(tmp_path / "first").points[0]])
    assert record.read(tmp_path / "first").points == record.read(tmp_path / "second").points


@pytest.mark.parametrize(
    ("manifest", "kept", "said"),
    [
        (None, None, "holds no manifest.json"),
        (b"{", None, "manifest.json is damaged"),
        (b"{}", None, "holds no record.json.xz"),
        (b"{}", b"rubbish", "record.json.xz is damaged"),
        (b"{}", lzma.compress(b'{"cells": [{}], "points": []}'), "record.json.xz is damaged, or of another version"),
    ],
)
def test_a_folder_without_a_whole_record_is_refused(tmp_path, manifest, kept, said):
    for name, content in (("manifest.json", manifest), (record.FILE, kept)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        record.read(tmp_path)


def test_the_examples_with_pictures_are_those_of_the_first_attack_that_ran():
    rows = [{"attack": "gradient ascent"}, {"attack": "LiRA"}, {"attack": "BaVarIA"}]
    assert collect.first_ranked(rows, {"BaVarIA": [], "LiRA": []}) == "LiRA"


def test_pdfs_are_compared_by_what_they_draw_and_other_files_by_their_bytes(tmp_path):
    def pdf(name, content, level):
        path = tmp_path / f"{name}.pdf"
        path.write_bytes(b"%PDF\nstream\n" + zlib.compress(content, level) + b"\nendstream\n" + bytes([48 + level]))
        return path

    drawn = b"0 0 m 1 1 l S\n" * 100
    assert paper.same(pdf("a", drawn, 1), pdf("b", drawn, 9))
    assert not paper.same(pdf("a", drawn, 1), pdf("b", drawn + b"2 2 l", 1))
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "b.md").write_text("x ")
    assert not paper.same(tmp_path / "a.md", tmp_path / "b.md")
    assert not paper.same(tmp_path / "missing.md", tmp_path / "b.md")


def test_a_folder_that_was_edited_by_hand_is_named_and_left_as_it_is(tmp_path, capsys):
    study = {"_target_": "tests.experiments.studies.squares.Squares", "bases": [2]}
    manifest = {"title": "Squares", "name": "squares", "config": {"study": study}}
    row = {"metric": "square", "value": 4.0, "low": 3.0, "high": 5.0}
    record.write(tmp_path, json.loads(json.dumps(manifest)), points=[{"base": 2, "rows": [row]}])
    paper.main([str(tmp_path)])
    paper.main([str(tmp_path), "--check"])
    (tmp_path / "table.md").write_text("4.1")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        paper.main([str(tmp_path), "--check"])
    assert stopped.value.code == paper.STALE
    assert f"not current: {tmp_path / 'table.md'}" in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == "4.1"
