"""That what is drawn from a record is held to it, and what counts as the same drawing."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import figures, paper, record
from experiments.figures import COLUMN


def pdf(path: Path, height: float = 1.0, word: str = "0.5 dB") -> Path:
    """A PDF of one line of that height, in points, and one word."""
    figure = plt.figure(figsize=(1, 1))
    figure.add_artist(plt.Line2D([0, 1], [0.5, 0.5 + height / 72]))
    figure.text(0.1, 0.1, word)
    figure.savefig(path, metadata={"CreationDate": None})
    plt.close(figure)
    return path


@pytest.mark.parametrize("height", [1.0, 1.0005, 0.9995])
def test_a_pdf_whose_coordinates_round_the_other_way_is_current(tmp_path: Path, height: float):
    assert paper.same(pdf(tmp_path / "old.pdf"), pdf(tmp_path / "new.pdf", height))


def test_a_minus_before_a_zero_is_no_difference(tmp_path: Path):
    old, new = tmp_path / "old.pdf", tmp_path / "new.pdf"
    old.write_bytes(b"stream\n0 0 m\n504 0 l\n(-0 dB) Tj\nendstream")
    new.write_bytes(b"stream\n0 -0 m\n504 -0.0 l\n(-0 dB) Tj\nendstream")
    assert paper.same(old, new)


@pytest.mark.parametrize(
    "drawn",
    [
        b"0 0 m\n504 0.002 l\n(0 dB) Tj",  # moved
        b"0 0 m\n504 0 l\n(-0 dB) Tj",  # another label
        b"0 0 m\n504 0 l\n(1e-9 dB) Tj",
        b"0 0 m\n504 0 c\n(0 dB) Tj",  # another operator
        b"0 0 m\n504 0 l\n(0 dB) Tj\nS",  # one more
        b"0 0 m\n504 0 l",  # one less
    ],
)
def test_another_drawing_is_stale(tmp_path: Path, drawn: bytes):
    old, new = tmp_path / "old.pdf", tmp_path / "new.pdf"
    old.write_bytes(b"stream\n0 0 m\n504 0 l\n(0 dB) Tj\nendstream")
    new.write_bytes(b"stream\n" + drawn + b"\nendstream")
    assert not paper.same(old, new)


def test_a_pdf_with_a_moved_line_or_another_number_is_stale(tmp_path: Path):
    old = pdf(tmp_path / "old.pdf")
    assert not paper.same(old, pdf(tmp_path / "new.pdf", height=1.01))
    assert not paper.same(old, pdf(tmp_path / "new.pdf", word="0.5001 dB"))


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
    manifest = dict.fromkeys(record.NAMED, "x") | {"title": "Squares", "name": "squares", "config": {"study": study}}
    manifest["points"] = [{"hash": "1"}]
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


def test_a_figure_that_is_no_longer_drawn_is_named_and_left_where_it_is(tmp_path: Path, monkeypatch):
    def draw(folder: Path, out: Path) -> list[str]:
        figures.remove(out, "front")
        return []

    monkeypatch.setattr(paper, "draw", draw)
    for name in ("front.png", "notes.txt"):
        (tmp_path / name).touch()
    assert paper.stale(tmp_path) == ["front.png"]
    assert (tmp_path / "front.png").exists()


def test_a_figure_s_parts_stand_at_rounded_places_since_the_layout_differs_in_its_last_digits():
    figure = plt.figure(figsize=(COLUMN, 3), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    top.subplots(1, 2)[0].set_title("an attack")
    image = bottom.subplots().imshow([[0.0, 1.0]])
    bottom.colorbar(image)
    first = figures.encoded(figure, "pdf")
    places = [axes.get_position(original=True).get_points() for axes in figure.axes]
    places += [part.bbox_relative.get_points() for part in figure.subfigs]
    assert all((place == place.round(6)).all() and not np.signbit(place).any() for place in places)
    assert len({place.tobytes() for place in places}) == 6, "laid out"
    assert figures.encoded(figure, "pdf") == first, "and once"
    plt.close(figure)
