"""Sweeps in which attacks are missing, refused or without a number: they are drawn as far as they go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from experiments import figure, record, sweep_paper, tables
from experiments.collect import CellResult, ordered
from experiments.html.page import page
from experiments.record import Record
from experiments.variants_figure import by_variant
from experiments.views_figure import by_view, views_of
from fl_core.errors import InputError

RESULTS = Path(__file__).parents[2] / "results"


@cache
def kept(name: str) -> Record:
    return record.read(RESULTS / name)


def without_attacks(cell: CellResult) -> CellResult:
    """The cell of a sweep from which every membership attack was taken out."""
    rows = tuple(row for row in cell.rows if row.question != "membership")
    return replace(cell, rows=rows, roc={}, audits=(), vulnerable={}, exposed=None)


def first_refused(cell: CellResult) -> CellResult:
    """The cell under a view that does not serve the first attack (attack.refused=note)."""
    first = cell.attacks()[0]
    rows = tuple(
        replace(row, value=None, low=None, high=None, note="refused: it needs updates") if row.attack == first else row
        for row in cell.rows
    )
    return replace(
        cell,
        rows=rows,
        roc={name: one for name, one in cell.roc.items() if name != first},
        vulnerable={name: one for name, one in cell.vulnerable.items() if name != first},
    )


def without_numbers(cell: CellResult) -> CellResult:
    rows = tuple(replace(row, value=None, low=None, high=None) for row in cell.rows)
    return replace(cell, rows=rows, roc={})


def without_accuracy(cell: CellResult) -> CellResult:
    return replace(cell, rows=tuple(row for row in cell.rows if row.question != "utility"), accuracy=())


def changed(name: str, change: Callable[[CellResult], CellResult]) -> Record:
    found = kept(name)
    return replace(found, cells=tuple(map(change, found.cells)))


@pytest.mark.parametrize("change", [without_attacks, first_refused, without_numbers])
@pytest.mark.parametrize("name", ["alice_and_bob", "leakage_by_round"])
def test_a_sweep_is_drawn_whatever_its_attacks_could_not_say(name, change, tmp_path: Path):
    found = changed(name, change)
    assert {"table.csv", "table.md"} <= set(sweep_paper.draw(found, tmp_path))
    assert str(found.manifest["title"]) in page(found, "a command")


def test_the_headline_attack_is_the_first_that_the_view_serves():
    cells = kept("alice_and_bob").cells
    first, second = cells[0].attacks()[:2]
    assert tables.headline_attack(cells) == first
    assert tables.headline_attack([first_refused(cell) for cell in cells]) == second


def test_cells_of_one_defence_that_differ_by_its_options_have_names_of_their_own():
    one = kept("alice_and_bob").cells[0]

    def clipped(norm: float) -> dict[str, Any]:
        config = one.manifest["config"]
        manifest = one.manifest | {"config": config | {"defense": config["defense"] | {"clip_norm": norm}}}
        leakage = {"cell": one.facts, "rows": [vars(row) for row in one.rows], "roc": one.roc, "audits": one.audits}
        leakage |= {"vulnerable": one.vulnerable, "account": one.account}
        return {"manifest": manifest, "leakage": leakage, "accuracy": one.accuracy, "probed": None, "exposed": None}

    named = [cell.variant for cell in ordered([clipped(0.5), clipped(2.0)])]
    assert named == ["defense.clip_norm = 0.5", "defense.clip_norm = 2.0"]


def test_a_huge_sweep_has_no_figure_of_several_pages():
    one = kept("alice_and_bob").cells[0]
    cells = [replace(one, variant=f"rounds = {number}") for number in range(500)]
    assert by_variant(cells, "many") is None
    two = [replace(cell, rows=(*cell.rows, replace(cell.rows[0], view="server"))) for cell in cells]
    assert len(views_of(two)) == 2
    assert by_view(two, "many", "canary") is None


@pytest.mark.parametrize("kind", figure.KINDS)
def test_a_figure_about_attacks_of_a_sweep_without_any_is_refused_in_words(kind):
    with pytest.raises(InputError, match="no membership attack" if kind != "field" else "have no AUC"):
        figure.draw(changed("leakage_by_round", without_attacks), kind)


def test_one_attack_s_figure_does_without_a_model_s_accuracy():
    drawn = figure.draw(changed("alice_and_bob", without_accuracy), "leakage")
    assert drawn.axes
    plt.close(drawn)


def test_one_attack_s_figure_without_any_number_is_refused_in_words():
    with pytest.raises(InputError, match="has no number in this sweep"):
        figure.draw(changed("alice_and_bob", without_numbers), "leakage")
