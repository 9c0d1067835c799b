"""One table in three forms, and when an entry may be called the best."""

from __future__ import annotations

import csv

import pytest

from experiments.table import Number, Table, as_csv, as_latex, as_markdown

APART = [["a", Number(value=0.9, low=0.85, high=0.95)], ["b", Number(value=0.7, low=0.6, high=0.8)], ["c", "—"]]


def test_the_best_is_marked_only_where_intervals_separate():
    assert Table(heads=["attack", "AUC"], lines=APART, best={"AUC": "highest"}).marked() == {(0, 1)}
    assert Table(heads=["attack", "AUC"], lines=APART, best={"AUC": "lowest"}).marked() == {(1, 1)}
    close = [APART[0], ["b", Number(value=0.7, low=0.6, high=0.86)]]
    assert Table(heads=["attack", "AUC"], lines=close, best={"AUC": "highest"}).marked() == set()
    assert Table(heads=["attack", "AUC"], lines=APART[:1], best={"AUC": "highest"}).marked() == set()
    touching = [APART[0], ["b", Number(value=0.8, low=0.7, high=0.85)]]
    assert Table(heads=["attack", "AUC"], lines=touching, best={"AUC": "highest"}).marked() == set()


def test_lines_are_compared_within_their_group_alone():
    lines = [[group, *line] for group in ("1", "2") for line in APART[:2]]
    table = Table(heads=["ε", "attack", "AUC"], lines=lines, best={"AUC": "highest"}, within=("ε",))
    assert table.marked() == {(0, 2), (2, 2)}
    assert Table(heads=["ε", "attack", "AUC"], lines=lines, best={"AUC": "highest"}).marked() == set()


def test_markdown_and_latex_say_the_same_and_escape_what_they_must():
    table = Table(
        heads=["at_tack|1", "AUC & ε"], lines=[["50%", APART[0][1]], ["#{x}", APART[1][1]]], best={"AUC & ε": "highest"}
    )
    assert as_markdown(table).splitlines() == [
        r"| at_tack\|1 | AUC & ε |",
        "| --- | --- |",
        "| 50% | **0.900 [0.850, 0.950]** |",
        "| #{x} | 0.700 [0.600, 0.800] |",
    ]
    assert as_latex(table).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"at\_tack$|$1 & AUC \& $\varepsilon$ \\",
        r"\midrule",
        r"50\% & \textbf{0.900 [0.850, 0.950]} \\",
        r"\#\{x\} & 0.700 [0.600, 0.800] \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_the_csv_holds_full_precision_and_the_interval_s_ends():
    table = Table(
        heads=["attack", "AUC"], lines=[["a", Number(value=1 / 3, low=0.1 + 0.2, high=0.5)], ["b", "refused"]]
    )
    first, second = csv.DictReader(as_csv(table).splitlines())
    assert float(first["AUC"]) == 1 / 3
    assert float(first["AUC, low"]) == 0.1 + 0.2
    assert (second["AUC"], second["AUC, low"]) == ("refused", "")


@pytest.mark.parametrize("printer", [as_markdown, as_latex, as_csv])
def test_an_empty_table_is_its_heads(printer):
    assert "attack" in printer(Table(heads=["attack", "AUC"], lines=[]))
