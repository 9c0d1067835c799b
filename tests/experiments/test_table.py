"""One table in three forms, and when an entry may be called the best."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.table import (
    PACKAGES,
    PAGE_OF_LINES,
    Number,
    Table,
    as_csv,
    as_latex,
    as_markdown,
    page_csv,
    page_latex,
    page_markdown,
    tex,
)

ROOT = Path(__file__).parents[2]

APART = [["a", Number(value=0.9, low=0.85, high=0.95)], ["b", Number(value=0.7, low=0.6, high=0.8)], ["c", "—"]]


def test_the_best_is_marked_only_where_intervals_separate():
    assert Table(heads=["attack", "AUC"], lines=APART, best={"AUC": "highest"}).marked() == {(0, 1)}
    assert Table(heads=["attack", "AUC"], lines=APART, best={"AUC": "lowest"}).marked() == {(1, 1)}
    close = [APART[0], ["b", Number(value=0.7, low=0.6, high=0.86)]]
    assert Table(heads=["attack", "AUC"], lines=close, best={"AUC": "highest"}).marked() == set()
    assert Table(heads=["attack", "AUC"], lines=APART[:1], best={"AUC": "highest"}).marked() == set()
    touching = [APART[0], ["b", Number(value=0.8, low=0.7, high=0.85)]]
    assert Table(heads=["attack", "AUC"], lines=touching, best={"AUC": "highest"}).marked() == set()


def test_what_reads_the_same_is_not_marked():
    lines = [["a", Number(value=0.99996, low=0.9999, high=1.0)], ["b", Number(value=0.9995, low=0.9994, high=0.9998)]]
    assert Table(["attack", "SSIM"], lines, {"SSIM": "highest"}).marked() == set()
    finer = [[name, Number(value=one.value, low=one.low, high=one.high, digits=5)] for name, one in lines]
    assert Table(["attack", "SSIM"], finer, {"SSIM": "highest"}).marked() == {(0, 1)}


def test_a_page_holds_text_and_tables_in_three_forms():
    page = ["# A page", Table(["attack", "AUC"], APART), "and\nmore", Table(["x"], [["1"]])]
    assert page_markdown(page).startswith("# A page\n\n| attack | AUC |")
    assert page_latex(page).count(r"\begin{tabular}") == 2
    assert "% and\n% more\n" in page_latex(page)
    lines = list(csv.DictReader(page_csv(page).splitlines()))
    assert [(line["table"], line["line"], line["column"]) for line in lines] == [
        ("1", "1", "attack"), ("1", "1", "AUC"), ("1", "2", "attack"), ("1", "2", "AUC"), ("1", "3", "attack"),
        ("1", "3", "AUC"), ("2", "1", "x"),
    ]  # fmt: skip
    assert (lines[1]["entry"], lines[1]["low"], lines[1]["high"]) == ("0.9", "0.85", "0.95")


def test_small_and_large_numbers_keep_their_significant_digits():
    shown = [
        str(Number(value=value, digits=3, significant=True)) for value in (0.0, 1.2345, 0.00012, 1234567.0, 4321.0)
    ]
    assert shown == ["0", "1.23", "1.2·10⁻⁴", "1.2·10⁶", "4,321"]
    beyond = [Number(value=value, significant=True) for value in (math.inf, -math.inf, math.nan)]
    assert [str(one) for one in beyond] == ["∞", "-∞", "—"]


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


def test_a_bound_on_epsilon_and_powers_are_what_latex_can_read():
    assert tex("ε̂ ≥ 1 at 2¹⁰, 2²⁰") == r"$\hat\varepsilon$ $\ge$ 1 at 2$^{10}$, 2$^{20}$"
    small = Number(value=-1.2e-4, low=-0.5, high=3.0, significant=True)
    assert tex(str(small)) == r"$-$1.2$\cdot$10$^{-4}$ [$-$0.5, 3]"
    assert tex("DP-SGD at 1e-05, 2016-17") == "DP-SGD at 1e-05, 2016-17", "a hyphen stays one"


def test_a_long_table_goes_on_over_pages_with_its_heads_and_long_text_is_broken_into_lines():
    lines = [[str(line), "because " * 10] for line in range(PAGE_OF_LINES + 1)]
    short, long = (as_latex(Table(["line", "why"], some)).splitlines() for some in (lines[:-1], lines))
    assert short[0] == r"\begin{tabular}{r>{\raggedright\arraybackslash}p{0.25\linewidth}}"
    assert long[0] == short[0].replace("tabular", "longtable")
    assert long[1:6] == [r"\toprule", r"line & why \\", r"\midrule", r"\endhead", r"\bottomrule"]
    assert long[-1] == r"\end{longtable}"


def test_a_first_column_without_entries_is_left_out():
    table = Table(["variant", "AUC"], [["", APART[0][1]], ["", APART[1][1]]], {"AUC": "highest"})
    assert as_markdown(table).splitlines()[0] == "| AUC |"
    assert as_latex(table).splitlines()[:3] == [r"\begin{tabular}{r}", r"\toprule", r"AUC \\"]
    assert r"\textbf{0.900 [0.850, 0.950]} \\" in as_latex(table).splitlines()


def test_committed_tables_hold_nothing_that_latex_cannot_read():
    files = [path for path in (ROOT / "results").rglob("*.tex") if "runs" not in path.parts]
    assert len(files) > 20
    for path in files:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("%")]
        assert "\n".join(lines).isascii(), path
        assert sum(line.count("{") - line.count("}") - line.count(r"\{") + line.count(r"\}") for line in lines) == 0, (
            path
        )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_committed_tables_are_typeset(tmp_path):
    files = [path for path in sorted((ROOT / "results").rglob("*.tex")) if "runs" not in path.parts]
    body = "\n".join(rf"\tiny\input{{{path}}}\newpage" for path in files)
    start = rf"\documentclass{{article}}\usepackage[a3paper,landscape]{{geometry}}{PACKAGES}"
    (tmp_path / "all.tex").write_text(f"{start}\n\\begin{{document}}\n{body}\n\\end{{document}}\n")
    ran = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, capture_output=True
    )
    said = ran.stdout.decode(errors="replace")
    assert ran.returncode == 0, said[-2000:]
    assert "Missing character" not in said
    assert "too high" not in said, "a table is longer than a page"


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
