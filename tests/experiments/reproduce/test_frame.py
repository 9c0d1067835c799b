"""What a reproduction is made of: verdicts, budgets, the command, and the summary of all."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from experiments import record
from experiments.reproduce import __main__ as command
from experiments.reproduce import base, summary
from experiments.reproduce.base import BUDGETS, JPEG, Published, judge, over_seeds, verdict_table, verdicts
from experiments.reproduce.idlg import ABSENT, LINE_SEARCH, LabelAccuracy
from experiments.studies.base import build, make_study
from experiments.table import as_markdown
from fl_core.errors import InputError

AS_PUBLISHED = ""
REPRODUCTIONS = command.reproductions()


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


def verdict(value, low, high, budget=AS_PUBLISHED, **published):
    one = Published(what="a number", value=10.0, **published)
    return judge(one, {"metric": "a number", "value": value, "low": low, "high": high}, budget).verdict


def study(**fields):
    return LabelAccuracy(**({"budget": "cpu", "experiments": 2, "iterations": 3, "pictures": 1} | fields))


def record_of(*rows):
    return [{"attack": "DLG", "rows": [{"low": None, "high": None} | row for row in rows]}]


@pytest.mark.parametrize(
    ("sense", "low", "high", "expected"),
    [
        ("equal", 9, 11, "matched"), ("equal", 10.5, 11, "missed"), ("equal", 8, 9.5, "missed"),
        ("at least", 9, 11, "matched"), ("at least", 20, 21, "matched"), ("at least", 8, 9.5, "missed"),
        ("at most", 9, 11, "matched"), ("at most", 1, 2, "matched"), ("at most", 10.5, 11, "missed"),
    ],
)  # fmt: skip
def test_a_number_is_matched_in_the_interval_or_beyond_it_in_the_claims_sense(sense, low, high, expected):
    assert verdict((low + high) / 2, low, high, sense=sense) == expected


@pytest.mark.parametrize(("sense", "value"), [("equal", 10.4), ("equal", 9.6), ("at least", 9.6), ("at most", 10.4)])
def test_the_tolerance_widens_the_published_number_on_both_sides(sense, value):
    assert verdict(value, None, None, sense=sense) == "missed"
    assert verdict(value, None, None, sense=sense, tolerance=0.5) == "matched"


def test_a_value_without_an_interval_is_its_own():
    assert verdict(10.0, None, None) == "matched"
    assert verdict(10.01, None, None) == "missed"


def test_what_differs_from_the_protocol_is_scaled_down_and_no_verdict_on_the_paper():
    published = Published(what="a number", value=10.0)
    row = {"metric": "a number", "value": 10.0, "low": 9, "high": 11, "note": "seen twice"}
    ours = judge(published, row | {"differs": "a smaller model"}, "fewer pictures")
    assert (ours.verdict, ours.why) == ("scaled down", "a smaller model; seen twice")
    assert ours.in_full == "fewer pictures; a smaller model; seen twice"
    assert judge(published, row | {"differs": "a smaller model"}, AS_PUBLISHED).verdict == "scaled down"
    assert verdict(3.0, 2, 4, budget="fewer pictures") == "scaled down"


def test_what_was_not_measured_is_not_attempted_and_says_why():
    rows = record_of({"metric": "MNIST, DLG", "value": None, "note": "it ran out of time"})
    found = {one.what: one for one in verdicts(study(), rows)}
    assert len(found) == len(LabelAccuracy.published)
    assert {one.verdict for one in found.values()} == {"not attempted"}
    assert found["MNIST, DLG"].why == "it ran out of time"
    assert found["LFW, DLG"].why == ABSENT
    assert found["MNIST, iDLG"].why == "no part of the budget cpu"


def test_lines_keep_the_papers_order_and_end_with_what_was_measured_beside_them():
    rows = record_of(
        {"metric": "PSNR", "value": 30.0},
        {"metric": "MNIST, iDLG", "value": 100.0},
        {"metric": "MNIST, DLG", "value": 50.0},
    )
    lines = verdicts(study(), rows)
    assert [line.what for line in lines[:-1]] == [one.what for one in LabelAccuracy.published]
    assert [line.verdict for line in lines[:2]] == ["scaled down", "matched"]
    assert (lines[-1].what, lines[-1].verdict) == ("PSNR", "")


def test_a_number_from_memory_is_marked():
    published = Published(what="a number", value=0.5, unit="dB", remembered=True, sense="at least", digits=1)
    line = judge(published, {"metric": "a number", "value": 0.7}, AS_PUBLISHED)
    assert "| ≥ 0.5 dB [m] | 0.7 |" in as_markdown(verdict_table([line]))


@pytest.mark.parametrize(("tolerance", "shown"), [(0.05, "0.5 dB"), (0.26, "0.5 ± 0.26 dB")])
def test_a_tolerance_beyond_rounding_is_shown(tolerance, shown):
    published = Published(what="a number", value=0.5, unit="dB", tolerance=tolerance, digits=1)
    line = judge(published, {"metric": "a number", "value": 0.7}, AS_PUBLISHED)
    assert f"| {shown} |" in as_markdown(verdict_table([line]))


def test_a_value_that_no_paper_prints_is_marked_and_counted_apart():
    lines = [
        judge(Published(what=what, value=1.0, computed=computed), {"metric": what, "value": 1.0}, AS_PUBLISHED)
        for what, computed in (("printed", False), ("known", True))
    ]
    assert "| known | 1.000 [c] |" in as_markdown(verdict_table(lines))
    drawn = base.published_and_ours(lines, "two numbers")
    assert [one.get_text() for one in drawn.axes[0].get_yticklabels()] == ["printed (matched)", "known [c] (matched)"]
    plt.close(drawn)
    (counted,) = summary.glance([("one", line) for line in lines]).lines
    assert counted[:6] == ["one", "1", "", "", "", "1 of 1"]


def test_what_sets_one_number_apart_is_no_match_whatever_the_budget():
    lines = verdicts(study(), record_of({"metric": "MNIST, DLG", "value": 89.9, "note": LINE_SEARCH}))
    assert (lines[0].verdict, lines[0].why) == ("scaled down", LINE_SEARCH)
    for kind in REPRODUCTIONS.values():
        assert set(kind.apart) <= {one.what for one in kind.published}


def test_the_interval_over_seeds_holds_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(0)
    found = [over_seeds("a number", draw.normal(size=3).tolist()) for _ in range(2000)]
    held = sum(row["low"] <= 0 <= row["high"] for row in found)
    assert abs(held / 2000 - 0.95) < 0.02  # four standard deviations: a false alarm in 16,000 seeds
    assert "low" not in over_seeds("a number", [1.0])


@pytest.mark.parametrize(("kind", "expected"), [("png", "matched"), ("jpeg", "scaled down")])
def test_a_full_budget_on_pictures_saved_again_as_jpeg_is_no_match(tmp_path, kind, expected):
    encoded = io.BytesIO()
    Image.new("L", (28, 28)).save(encoded, kind)
    for part in ("train", "test"):
        table = pa.table({"image": pa.array([{"bytes": encoded.getvalue()}] * 2), "label": [0, 1]})
        pq.write_table(table, tmp_path / f"mnist-{part}.parquet")
    config = command.configuration("idlg", LabelAccuracy, "full", tmp_path)
    lines = verdicts(make_study(config["study"]), record_of({"metric": "MNIST, iDLG", "value": 100.0}))
    assert lines[1].verdict == expected
    assert (lines[1].budget == JPEG) == (kind == "jpeg")


def test_a_figure_shows_the_sense_of_a_claim_names_every_axis_and_counts_in_whole_numbers():
    claims = [
        Published(what="share", value=0.5), Published(what="loudness", value=40.0, unit="dB", sense="at least"),
        Published(what="losses", value=3, unit="bits", sense="at most", digits=0),
        Published(what="worse ones", value=0, sense="at most", digits=0),
    ]  # fmt: skip
    rows = [{"metric": one.what, "value": one.value, "low": None, "high": None} for one in claims]
    lines = [judge(one, row, AS_PUBLISHED) for one, row in zip(claims, rows, strict=True)]
    drawn, alone = base.published_and_ours(lines, ""), base.published_and_ours(lines[3:], "")
    told = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert told == ["published", "published: at most", "published: at least", "ours, 95% interval"]
    assert [axes.get_xlabel() for axes in drawn.axes] == ["no unit", "PSNR (dB)", "bits"]
    (axes,) = alone.axes
    alone.canvas.draw()
    assert axes.get_xlabel() == "count"
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert axes.get_xlim()[0] > -1
    plt.close("all")


def test_an_unknown_budget_of_a_study_is_refused():
    with pytest.raises(InputError, match="budget"):
        study(budget="gpu")


@pytest.mark.parametrize("arguments", [["nothing"], ["idlg", "--budget", "huge"], ["idlg", "--budgt"]])
def test_an_unknown_name_budget_or_option_is_one_line_and_code_2(here, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert arguments[-1] in said
    assert not list(here.iterdir())


def test_there_is_a_reproduction_in_every_module_that_is_no_part_of_the_frame():
    assert {"idlg", "dlg", "inverting_gradients", "robbing_the_fed", "spear"} <= REPRODUCTIONS.keys()


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_each_states_its_source_its_protocol_and_three_budgets(name):
    kind = REPRODUCTIONS[name]
    assert tuple(kind.budgets) == BUDGETS
    assert kind.title
    assert len(kind.source) > 10
    assert len(kind.protocol) > 40
    named = [one.what for one in kind.published]
    assert named
    assert len(named) == len(set(named))
    assert set(kind.skipped) <= set(named)


@pytest.mark.parametrize("name", REPRODUCTIONS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_each_budget_composes_and_builds(name, budget):
    config = command.configuration(name, REPRODUCTIONS[name], budget, Path("a folder"))
    study = make_study(config["study"])  # where files are read, the table's own tests bring them
    assert isinstance(study, base.Reproduction)
    assert study.points()
    if budget == "smoke":
        assert build(config).points
        assert "a folder" not in json.dumps(config)


def test_all_goes_through_every_reproduction(here, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(command, "perform", lambda config, *_: seen.append(config["name"]))
    command.main(["all", "--budget", "smoke"])
    assert seen == [f"reproduce/{name}-smoke" for name in REPRODUCTIONS]


def test_all_leaves_out_what_has_no_files_and_says_so(here, monkeypatch, capsys):
    seen: list[str] = []
    monkeypatch.setattr(command, "perform", lambda config, *_: seen.append(config["name"]))
    monkeypatch.setattr(command.summary, "write", lambda folder: folder)
    for part, data in itertools.product(("train", "test"), ("mnist", "cifar10")):
        (here / f"{data}-{part}.parquet").touch()
    command.main(["all", "--budget", "full", "--data", str(here)])
    assert {f"reproduce/{name}-full" for name in REPRODUCTIONS} - set(seen) == {"reproduce/fedmia-full"}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "fedmia is left out" in said
    assert "cifar100-train.parquet" in said


def test_where_no_file_is_there_nothing_is_left_out_and_the_folder_is_asked_for(here):
    made = {name: command.configuration(name, kind, "cpu", here / "no") for name, kind in REPRODUCTIONS.items()}
    with pytest.raises(InputError, match="which is not there; name its folder, as in --data=FOLDER"):
        command.left_out(made)


@pytest.mark.parametrize("folder", ["a b", "a=b,c", "{x}", "it's", 'say "so"', "back\\slash"])
def test_the_folder_of_the_files_may_have_any_name(folder):
    config = command.configuration("idlg", LabelAccuracy, "cpu", Path(folder))
    assert config["data"]["path"] == f"{folder}/mnist-train.parquet"


def test_the_summary_counts_verdicts_and_leaves_smoke_out(tmp_path):
    rows = ({"metric": "MNIST, DLG", "value": 95.0}, {"metric": "MNIST, iDLG", "value": 100.0})
    for name, budget in (("idlg", "cpu"), ("idlg-smoke", "smoke")):
        options = {"budget": budget, "experiments": 2, "iterations": 3, "pictures": 1}
        manifest = {
            "config": {"study": {"_target_": "experiments.reproduce.idlg.LabelAccuracy", **options}},
            "points": [{"hardware": {"cores": 2, "processor": "a processor"}}],
            "seconds": 3.2, "command": "the command",
        }  # fmt: skip
        record.write(tmp_path / name, dict.fromkeys(record.NAMED, "") | manifest, points=record_of(*rows))
    page = summary.write(tmp_path).read_text()
    assert "1 matched, 0 missed, 1 scaled down, 4 not attempted" in page
    assert "Made by `the command` (2 cores, a processor, 3 s over all points)" in page
    lines = (tmp_path / "verdicts.csv").read_text().splitlines()
    assert len(lines) == 1 + len(LabelAccuracy.published)
    assert (tmp_path / "verdicts.tex").exists()
