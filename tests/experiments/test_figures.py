"""Every figure of a results folder can be printed: its width, its letters, its fonts, and its lines in grey."""

from __future__ import annotations

import importlib
import re
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from experiments import figure, holdings, paper, record
from experiments.figure_data import DECORATION
from experiments.figures import COLUMN, PAGE, STYLE, encoded
from experiments.front_figure import front, undominated
from experiments.leakage_figure import leakage_vs_epsilon
from experiments.studies.base import make_study
from experiments.sweep_paper import figures_of
from fl_core.checkpoint import read_json

RESULTS = Path(__file__).resolve().parents[2] / "results"
FOLDERS = [one.relative_to(RESULTS) for one in paper.all_folders(RESULTS) if list(one.glob("*.pdf"))]
POINTS_AN_INCH = 72


def figures(folder: Path) -> list[Figure]:
    found: list[Figure] = []
    if (folder / record.FILE).exists():
        kept = record.read(folder)
        title = str(kept.manifest["title"])
        if kept.cells:
            found += [one for one in figures_of(kept.cells, title).values() if one is not None]
        else:
            found.append(make_study(kept.manifest["config"]["study"]).figure(kept.points, title))
    for file in folder.glob("*.json") if folder.name == paper.BENCHMARKS else ():
        module = importlib.import_module(f"experiments.benchmarks.{file.stem}")
        found += (module.figures(read_json(file)) if hasattr(module, "figures") else {}).values()
    if (folder / holdings.RECORD).exists():
        kept_deals = read_json(folder / holdings.RECORD)["deals"]
        found.append(holdings.draw([holdings.deal_of(one) for one in kept_deals]))
    return found


def looks(axes: Axes) -> list[tuple[str, tuple[object, ...], str]]:
    """Of each named series: its name, its marker and stroke, and its colour."""
    found, parts = [], set()
    for container in axes.containers:
        parts |= set(container.get_children())
        if isinstance(container, ErrorbarContainer):
            found.append((container.lines[0].get_gid() or container.get_label(), container.lines[0]))
    drawn = (line for line in axes.lines if len(line.get_xydata()))
    lines = [line for line in drawn if line not in parts and line.get_label() != DECORATION]
    found += [(line.get_gid() or line.get_label(), line) for line in lines]
    # What is predicted is a line through the marks of its own series, which are told apart.
    shown = [(name, line) for name, line in found if name and not name.startswith("_")]
    return [(name, _in_grey(line), line.get_color()) for name, line in shown if not name.endswith(", predicted")]


def _in_grey(line: Line2D) -> tuple[object, ...]:
    marker = line.get_marker()
    hollow = marker not in ("None", None, "") and same_color(line.get_markerfacecolor(), "white")
    return marker, hollow, line.get_linestyle() == "None", str(line._unscaled_dash_pattern)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_figures_are_as_wide_as_a_column_or_page_with_letters_of_six_points_and_lines_told_apart_in_grey(folder):
    drawn = figures(RESULTS / folder)
    assert drawn
    for one in drawn:
        assert one.get_figwidth() in (COLUMN, PAGE)
        assert one.get_figheight() <= 9.5
        small = [text.get_text() for text in one.findobj(Text) if text.get_text() and text.get_fontsize() < 6]
        assert not small
        for axes in one.axes:
            told: dict[tuple[object, ...], tuple[str, str]] = {}
            for name, look, color in looks(axes):
                other, its = told.setdefault(look, (name, color))
                assert other == name or same_color(color, its), f"{name} and {other} differ in colour alone"
        plt.close(one)


def words(drawn: Figure) -> list[tuple[str, Bbox, bool]]:
    """What is written in a figure as it is saved, where, and whether upright or flat; ticks beyond their axis aside.

    The place is that of the words alone, without an annotation's line.
    """
    with plt.style.context(STYLE):
        drawn.dpi = plt.rcParams["savefig.dpi"]
        drawn.canvas.draw()
    unseen: set[Text] = set()
    for axes in drawn.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            edge = 1e-9 * (1 + abs(low) + abs(high))
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            beyond = [tick for tick in ticks if not low - edge <= tick.get_loc() <= high + edge]
            unseen |= {label for tick in beyond for label in (tick.label1, tick.label2)}
            if not axes.axison or not axes.get_visible():
                unseen |= {
                    axis.label,
                    axis.offsetText,
                    *(label for tick in ticks for label in (tick.label1, tick.label2)),
                }
        if not axes.get_visible():
            unseen |= set(axes.findobj(Text))
    shown = [one for one in drawn.findobj(Text) if one.get_visible() and one.get_text().strip() and one not in unseen]
    return [(one.get_text(), Text.get_window_extent(one), one.get_rotation() % 90 == 0) for one in shown]


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_no_word_of_a_figure_is_cut_off_at_its_edge_or_lies_on_another(folder):
    for one in figures(RESULTS / folder):
        written, edge = words(one), one.bbox.padded(0.5)
        assert not [text for text, box, _ in written if not (edge.contains(*box.min) and edge.contains(*box.max))]
        flat = [(text, box.padded(-1)) for text, box, straight in written if straight and min(box.size) > 2]
        assert not [(text, other) for (text, box), (other, its) in combinations(flat, 2) if box.overlaps(its)]
        plt.close(one)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_committed_pdfs_embed_truetype_fonts_and_fit_the_page_and_their_numbers_lie_beside_them(folder):
    found = sorted((RESULTS / folder).glob("*.pdf"))
    assert found
    for path in found:
        text = path.read_bytes()
        assert b"/FontFile2" in text
        assert b"/Type3" not in text
        (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", text)
        assert float(width) <= PAGE * POINTS_AN_INCH + 0.1
        assert path.with_suffix(".png").is_file()
        assert path.with_suffix(".csv").read_text().count("\n") > 1


def test_the_front_holds_what_no_other_beats_in_both():
    utility, leaked = [0.9, 0.8, 0.8, 0.5, 0.95, 0.4], [0.6, 0.5, 0.7, 0.5, 0.9, 0.2]
    assert undominated(utility, leaked) == [5, 1, 0, 4]
    generator = np.random.default_rng(0)
    x, y = generator.random((2, 40))
    for i in range(40):
        beaten = any(x[j] >= x[i] and y[j] <= y[i] for j in range(40) if j != i)
        assert (i in undominated(x, y)) == (not beaten)


@pytest.mark.parametrize("name", ["leakage_vs_epsilon", "membership_by_view_cifar10"])
def test_a_front_names_the_epsilon_of_every_point_where_it_covers_no_mark(name):
    cells = record.read(RESULTS / name).cells
    drawn = front(cells, "", attack="LiRA")
    assert drawn is not None
    written = words(drawn)
    for axes in drawn.axes:
        names = [text for text in axes.texts if isinstance(text, Annotation)]
        assert {text.get_text() for text in names} == {cell.label() for cell in cells}
        assert {text.get_text() for text in names} <= {text for text, _, _ in written}
        marks = [container.lines[0] for container in axes.containers if isinstance(container, ErrorbarContainer)]
        centres = [one for line in marks for one in axes.transData.transform(line.get_xydata())]
        boxes = [Text.get_window_extent(text).padded(-1) for text in names]
        assert not [text for text, box in zip(names, boxes, strict=True) if any(box.contains(*one) for one in centres)]
    plt.close(drawn)


def test_a_figure_over_epsilon_has_panels_for_what_was_measured_alone():
    (cell,) = record.read(RESULTS / "lira_cifar").cells
    drawn = leakage_vs_epsilon([cell], "")
    assert [axes.get_title("left") for axes in drawn.axes] == [
        "a  Membership", "b  Membership, few false alarms", "c  Utility",
    ]  # fmt: skip
    assert all(axes.get_xlabel() for axes in drawn.axes)
    told = drawn.legends[0].get_texts()
    assert [text.get_text().split(", ")[0] for text in told] == [
        "LiRA", "BaVarIA", "loss threshold", "blind (label only)",
    ]  # fmt: skip
    plt.close(drawn)


def test_one_attack_is_drawn_under_its_view_with_ceiling_audit_blind_guesses_and_utility(tmp_path, capsys):
    out = tmp_path / "new" / "rmia.png"
    asked = "--attack rmia --view released_model --group canary --metric tpr --out"
    figure.main(["leakage", str(RESULTS / "leakage_vs_epsilon"), *asked.split(), str(out)])
    listed = out.with_suffix(".csv").read_text()
    rows = record.read(RESULTS / "leakage_vs_epsilon").cells[0].rows
    (mine,) = [row for row in rows if (row.attack, row.metric, row.group) == ("RMIA", "tpr", "canary")]
    assert f",RMIA,-0.301029995664,0.5,,,{mine.value:.12g},,{mine.low:.12g}," in listed
    for series in ("ceiling that ε allows", "blind (label only)", "accounted", "most this audit can show"):
        assert series in listed
    assert "Utility" in listed
    assert capsys.readouterr().out.split() == [
        "Open:",
        *(str(out.with_suffix(one)) for one in (".png", ".pdf", ".csv")),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("leakage leakage_vs_epsilon --attack nobody", "--attack is 'nobody'; name one of LiRA; loss threshold"),
        ("leakage leakage_vs_epsilon --attack li", "--attack is 'li'; name one of LiRA; LiRA, offline"),
        ("leakage leakage_vs_epsilon --view server", "--view is 'server'; this sweep has attacks for released_model"),
        ("leakage leakage_vs_epsilon --group nobody", "--group is 'nobody'; of LiRA this sweep has canary, ordinary"),
        ("leakage leakage_vs_epsilon --metric psnr", "--metric is 'psnr'; of LiRA this sweep has auc"),
        (
            "leakage leakage_vs_epsilon --metric tpr_at_1e-05",
            "has no number in this sweep: needs ≥ 100,000",
        ),
        ("leakage leakage_vs_epsilon --variant x", "--variant is 'x'; this sweep has no variants"),
        ("leakage leakage_by_round", "all cells are at ε = ∞; draw `field`, or choose a cell with --variant"),
        ("leakage leakage_vs_epsilon --out it.svg", "--out is it.svg; a figure is written as .png, .pdf, .csv"),
        ("field leakage_vs_epsilon", "these cells do not differ by one number"),
        ("field leakage_by_round --field clients", "--field is 'clients'; in numbers these cells differ by rounds"),
        ("front lira_cifar", "fewer than three cells"),
        ("roc secagg_imprint", "secagg_imprint is a study and no sweep"),
        ("roc nowhere", "holds no manifest.json"),
    ],
)
def test_what_a_sweep_does_not_have_is_one_line_and_writes_nothing(arguments, said, tmp_path, capsys):
    kind, folder, *more = arguments.split()
    with pytest.raises(SystemExit) as stopped:
        figure.main([kind, str(RESULTS / folder), "--out", str(tmp_path / "it"), *more])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("leakage_by_round", "rounds"),
        ("leakage_by_cohort", "participation.cohort"),
        ("leakage_by_heterogeneity", "partition.alpha"),
        ("shadow_number", "attack.references"),
    ],
)
def test_a_sweep_over_one_number_is_drawn_over_it(name, field):
    cells = record.read(RESULTS / name).cells
    drawn = figure.draw(record.read(RESULTS / name), "field", field=field)
    panel = drawn.axes[0]
    wanted = [cell.row("membership", "auc", "LiRA", "canary") for cell in cells]
    line = next(one for one in panel.containers if str(one.get_label()).startswith("LiRA")).lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [row.value for row in wanted if row is not None])
    assert np.all(np.diff(line.get_xdata()) > 0)
    columns = {axes.get_subplotspec().colspan.start: axes for axes in drawn.axes if axes.get_visible()}
    assert len({axes.get_xlabel() for axes in columns.values()} - {""}) == 1
    assert all(axes.get_xlabel() for axes in columns.values()), "each column's lowest panel names the axis"
    plt.close(drawn)


def test_a_sweep_at_one_epsilon_seen_from_several_sides_is_drawn_by_variant_with_each_attacks_view():
    drawn = figures_of(record.read(RESULTS / "gradient_ascent").cells, "")
    assert drawn["by_view"] is drawn["by_view_ordinary"] is None
    by_variant = drawn["by_variant"]
    assert by_variant is not None
    told = {text.get_text() for text in by_variant.legends[0].get_texts()}
    assert {"LiRA (released model)", "average sum cosine (sums)", "blind (label only)"} <= told
    assert by_variant.axes[0].get_yticklabels()[1].get_text() == "tamper = GradientAscent,\ntamper.groups = 1"
    plt.close("all")


def test_a_pdf_of_greek_letters_and_formulas_has_no_bitmap_font():
    drawn = figure.draw(record.read(RESULTS / "leakage_vs_epsilon"), "leakage")
    drawn.axes[0].set_title(r"$(1-1/k)^{n-1}$ at ε = ∞")
    pdf = encoded(drawn, "pdf")
    plt.close(drawn)
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
