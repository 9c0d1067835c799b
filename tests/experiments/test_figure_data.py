"""What a figure's list says is what the figure shows."""

from __future__ import annotations

import csv
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.figure_data import DECORATION, as_csv, points
from experiments.figures import COLUMN, STYLE, save


def made(*shape: int, **more):
    return plt.subplots(*(shape or (1, 1)), figsize=(COLUMN, 2.0), **more)


def read(figure) -> list[dict[str, str]]:
    found = list(csv.DictReader(io.StringIO(as_csv(figure))))
    plt.close(figure)
    return found


def test_every_drawn_number_is_listed_once_with_the_ends_of_its_bars():
    figure, axes = made()
    axes.set(title="panel", xlabel="clients", ylabel="AUC")
    axes.errorbar([1, 2, 4], [0.5, 0.625, 0.75], yerr=[[0.25, 0.125, 0.5], [0.125, 0.25, 0.0]], label="LiRA")
    axes.plot([1, 2], [0.5, 0.625], color="C0")  # joins points that are listed already
    axes.plot([1, 4], [0.25, 0.375], label="RMIA")
    axes.axhline(0.5, label="chance")
    axes.axvline(3, label=DECORATION)
    axes.bar([5, 6], [0.125, 0.5], label="counts")
    axes.scatter([7], [0.875], label="one")
    found = read(figure)
    assert {(one["panel"], one["x axis"], one["y axis"]) for one in found} == {("panel", "clients", "AUC")}
    assert [(one["series"], one["x"], one["y"], one["y low"], one["y high"]) for one in found] == [
        ("LiRA", "1", "0.5", "0.25", "0.625"),
        ("LiRA", "2", "0.625", "0.5", "0.875"),
        ("LiRA", "4", "0.75", "0.25", "0.75"),
        ("counts", "5", "0.125", "", ""),
        ("counts", "6", "0.5", "", ""),
        ("RMIA", "1", "0.25", "", ""),
        ("RMIA", "4", "0.375", "", ""),
        ("chance", "", "0.5", "", ""),
        ("one", "7", "0.875", "", ""),
    ]


def test_twelve_digits_of_random_points_come_back():
    generator = np.random.default_rng(0)
    x, y, low, high = generator.random((4, 50))
    figure, axes = made()
    axes.errorbar(x, y, xerr=[low, high], yerr=[high, low])
    listed = [[float(one[name]) for name in ("x", "y", "x low", "x high", "y low", "y high")] for one in read(figure)]
    np.testing.assert_allclose(listed, np.transpose([x, y, x - low, x + high, y - high, y + low]), rtol=0, atol=1e-11)


def test_a_gap_in_a_line_is_no_point_and_keeps_bars_at_their_points():
    figure, axes = made()
    axes.errorbar([0, 1, np.nan, 3], [1, 2, np.nan, 4], yerr=[[0.5, 0.5, np.nan, 0.25]] * 2)
    assert [(one["x"], one["y low"]) for one in read(figure)] == [("0", "0.5"), ("1", "1.5"), ("3", "3.75")]


def test_a_band_stands_beside_its_line_and_a_filled_decoration_nowhere():
    figure, axes = made()
    axes.fill_between([1, 2], [0.25, 0.5], [0.75, 1], alpha=0.2)
    axes.plot([1, 2], [0.5, 0.75], label="ROC")
    axes.fill_between([1, 2], [0.5, 0.75], 1, label=DECORATION)
    found = [(one["series"], one["y"], one["y low"], one["y high"]) for one in read(figure)]
    assert found == [("ROC", "0.5", "0.25", "0.75"), ("ROC", "0.75", "0.5", "1")]


def test_names_of_ticks_stand_beside_their_numbers_unless_they_are_those_numbers():
    figure, axes = made()
    axes.plot([0.02, 0.98, 2], [1, 2, 8], linestyle="none", marker="o")
    axes.set_xticks([0, 1, 2], ["ε = 8", "ε = 32", "∞"])
    axes.set_yticks([1, 2, 8], ["1", "2", "8"])
    assert [(one["x name"], one["y name"]) for one in read(figure)] == [("ε = 8", ""), ("ε = 32", ""), ("∞", "")]


def test_panels_of_a_grid_are_called_after_the_head_of_their_column_and_row():
    figure, grid = made(2, 2)
    for axes, head in zip(grid[0], ("clip", "masks"), strict=True):
        axes.set_title(head, loc="left")
    for axes, word in zip(grid[:, 0], ("server", "sums"), strict=True):
        axes.set_ylabel(word)
    for axes in grid.flat:
        axes.plot([1], [2])
    found = [(one["panel"], one["y axis"]) for one in read(figure)]
    assert found == [("clip", "server"), ("masks", "server"), ("clip", "sums"), ("masks", "sums")]


def test_maps_are_listed_cell_by_cell_and_pictures_by_their_captions():
    figure, (left, right) = made(1, 2)
    left.imshow([[0.5, np.nan], [2.0, 3.0]], cmap="cividis")
    right.imshow(np.zeros((2, 2)), cmap="gray")
    right.set_xlabel("12 dB")
    found = read(figure)
    assert [(one["x"], one["y"], one["value"]) for one in found[:3]] == [
        ("0", "0", "0.5"), ("0", "1", "2"), ("1", "1", "3"),
    ]  # fmt: skip
    assert [one["series"] for one in found[3:]] == ["12 dB"]


def test_a_series_that_only_a_legend_names_has_that_name():
    figure, (left, right) = made(1, 2)
    (drawn,) = left.plot([1, 2], [3, 4], color="green", marker="s", linestyle="--", label="sums")
    right.plot([1, 2], [5, 6], color="green", marker="s", linestyle="--")
    figure.legend(handles=[drawn])
    assert [one["series"] for one in points(figure)] == ["sums"] * 4
    plt.close(figure)


def test_what_is_saved_is_a_column_or_a_page_wide_and_the_same_bytes_twice(tmp_path):
    def one(width=COLUMN):
        with plt.style.context(STYLE):
            figure, axes = plt.subplots(figsize=(width, 2), layout="constrained")
            axes.plot([1, 2], [3, 4], label="ε")
            axes.legend()
        return figure

    for folder in ("first", "second"):
        assert save(one(), tmp_path / folder, "it") == ["it.png", "it.pdf", "it.csv"]
    for name in ("it.png", "it.pdf", "it.csv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    wide = one(9.0)
    with pytest.raises(ValueError, match=r"9\.00 in wide; a figure is 3\.35 or 7\.0 in wide"):
        save(wide, tmp_path, "wide")
    plt.close(wide)
    assert not (tmp_path / "wide.pdf").exists()
