"""Grids of recovered pictures: what stands where, and how a failure looks."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from experiments.collect import Probed
from experiments.reconstruction_figure import Line, caption, grid, reconstructions
from fl_core.errors import InputError

TRUTH = np.random.default_rng(0).random((4, 3, 8, 8))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def hatched(axes):
    return any(isinstance(patch, Rectangle) and patch.get_hatch() for patch in axes.patches)


def panels(figure, columns):
    axes = figure.get_axes()
    return [axes[start : start + columns] for start in range(0, len(axes), columns)]


def test_captions_say_exact_decibels_or_failed():
    assert [caption(decibels) for decibels in (np.inf, 20.4, None, 150.0)] == ["exact", "20 dB", "failed", "exact"]


def test_a_grid_shows_lines_in_their_order_and_crosses_out_what_was_not_recovered():
    recovered = TRUTH + 2.0
    recovered[1] = np.nan
    words = ["", "failed", "", ""]
    lines = [
        Line(title="true", pictures=TRUTH, captions=list("abcd")),
        Line(title="made", pictures=recovered, captions=words),
    ]
    first, second = panels(grid(lines, "a title", most=3), 3)
    assert [one.get_xlabel() for one in first] == ["a", "b", "c"]
    assert [first[0].get_ylabel(), second[0].get_ylabel()] == ["true", "made"]
    np.testing.assert_array_equal(first[2].get_images()[0].get_array(), TRUTH[2].transpose(1, 2, 0))
    assert (second[0].get_images()[0].get_array() == 1).all(), "pixels are cut to what can be shown"
    assert [hatched(one) for one in second] == [False, True, False]
    assert not second[1].get_images()
    assert second[1].get_xlabel() == "failed"
    assert not any(hatched(one) for one in first)


def test_a_shorter_line_leaves_its_places_empty_and_bad_lines_are_refused():
    lines = [Line(title=name, pictures=TRUTH[:n], captions=["x"] * n) for name, n in (("true", 4), ("few", 2))]
    _, second = panels(grid(lines, ""), 4)
    assert [one.get_visible() for one in second] == [True, True, False, False]
    with pytest.raises(InputError, match="one caption each"):
        Line(title="bad", pictures=TRUTH, captions=["x"])
    with pytest.raises(InputError, match="at least one line"):
        grid([], "")


def test_the_figure_of_a_sweep_shows_the_attackers_choice_under_the_truth_and_whether_the_label_is_right():
    probed = Probed(
        true=TRUTH,
        true_labels=(0, 1, 2, 3),
        found=TRUTH + 0.1,
        found_labels=(0, 1, 2, 0),
        psnr=(20.0, 20.0, None, np.inf),
    )
    cell = SimpleNamespace(probed=probed, facts={"classes": list("abcd")}, label=lambda: "8")
    first, second = panels(reconstructions([cell], "a title"), 4)
    assert [one.get_xlabel() for one in first] == list("abcd")
    assert [one.get_xlabel() for one in second] == ["20 dB\na ✓", "20 dB\nb ✓", "failed\nc ✓", "exact\na ✗"]
    assert [hatched(one) for one in second] == [False, False, True, False]
    assert second[0].get_ylabel() == "ε = 8"
    assert reconstructions([SimpleNamespace(probed=None, facts={"classes": []})], "a title") is None
