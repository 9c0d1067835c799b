"""What a page says: alarms, columns and pictures. What is unusual makes one, too; what holds nothing is one line."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import pytest

from experiments import report
from experiments.html import alarms, pictures, rows, words
from experiments.html.page import of_study, page
from experiments.html.pictures import Album, of_record
from fl_core.errors import InputError
from tests import made_results as made
from tests.experiments.report.conftest import RESULTS
from tests.made_results import study

ROW = {"metric": "psnr", "value": 1.0, "low": 0.5, "high": 2.0}


def test_epsilons_that_are_partly_words_are_listed_as_they_stand():
    found = study([{"epsilon": epsilon, "rows": [ROW]} for epsilon in ("none", 8.0)])
    content = of_study(found.points, found.manifest)
    assert "calibrated to: 8, none, at δ = 1e-05" in words.study_epsilons(content.columns, found.manifest["config"])


def test_a_study_without_any_row_has_nothing_to_explore():
    with pytest.raises(InputError, match="results/made holds no measured row"):
        page(study([{"step": 1, "rows": []}]), "the command")


@pytest.mark.parametrize("shown", [[[[]]], [[[[]]]], [[[1, 2], [3]]], [], [[[[1.0], [1.0]], [[1.0], [1.0]]]]])
def test_lists_that_are_no_pictures_of_one_or_three_channels_are_not_hung(shown: list[Any]):
    picture = [[[[0.5]]]]
    walls = of_record({"shown": {"found": picture, "other": shown}}, "a point", "0f")
    assert [wall.label for wall in walls] == ["a point"]


# Its alarms


def test_a_bound_above_the_accounted_epsilon_is_an_alarm():
    found = alarms.of_cells([made.cell(0, 1.0, bound=2.5), made.cell(1, None, bound=2.5)], ())
    (broken,) = [one for one in found if one.level == "broken"]
    assert "ε ≥ 2.5, above the accounted 1 (LiRA)" in broken.words


def test_an_attack_is_below_blind_only_where_the_intervals_part():
    fine = alarms.of_cells([made.cell(0, None, blind=0.94)], ())
    assert fine == []
    found = alarms.of_cells([made.cell(0, None, "clip", blind=1.02)], ())
    assert [one.words for one in found] == ["LiRA", "RMIA", "FedMIA"]
    assert {one.level for one in found} == {"blind"}
    assert len(found[0].where) == 6, "three metrics of canaries and ordinary examples; single classes are left out"
    assert found[0].where[0].startswith("clip, ε = ∞, AUC on canary: [0.9")


def test_a_study_has_alarms_of_its_own():
    records = made.study_records()
    records[1]["rows"].append({"metric": "epsilon", "auditor": "two worlds", "value": 3.0, "accounted": 1.0})
    records[2]["failure"] = "the matrix is singular"
    found = alarms.of_points(records, made.study(records).manifest)
    assert [one.level for one in found] == ["broken", "failed", "blind", "blind"]
    assert "two worlds shows ε ≥ 3, above the accounted 1" in found[0].words
    assert found[1].words == "the matrix is singular"
    assert [one.words for one in found[2:]] == ["DLG", "iDLG"]
    assert found[2].where[0].startswith("attack DLG, defence dp, ε 1.0, PSNR, dB: [5, 7] against [10, 12]")


def test_alarms_stand_at_the_head_of_the_page(opened, tmp_path):
    failed = ({"run": made.hash_of(9), "cell": "defense.epsilon=3", "error": "the worker died"},)
    page = opened(
        made.written(made.sweep([made.cell(0, 1.0, bound=2.5, blind=0.9)], failed=failed), tmp_path), drawn=False
    )
    told = page.locator("#alarms li").all_inner_texts()
    assert told[0].startswith("CONTRADICTION")
    assert told[1] == "FAILED defense.epsilon=3: the worker died"
    assert "LiRA 6" in told[2]
    assert "1 contradiction, 1 failed, 3 below blind" in page.locator(".facts").first.inner_text()


# Its columns and pictures


def test_columns_give_back_the_rows_and_runs_of_equal_entries_are_packed():
    cells = [made.cell(number, epsilon) for number, epsilon in enumerate(made.EPSILONS)]
    columns = {column["name"]: column for column in rows.of_cells(cells)}
    assert "lengths" in columns["run"]
    assert "lengths" not in columns["value"]
    measured = [row for cell in cells for row in [*cell.rows, None]]  # and each cell's audit
    attacks = rows.entries(columns["attack"])
    assert len(attacks) == len(measured)
    for row, attack, value in zip(measured, attacks, rows.entries(columns["value"]), strict=True):
        assert attack == ("one-run audit by LiRA" if row is None else row.attack)
        assert value == pytest.approx(0.4 if row is None else row.value, rel=1e-4)
    assert rows.distinct(columns["epsilon"]) == [1.0, 8.0, 64.0]
    assert columns["epsilon"]["missing"] == "∞"
    assert "variant" not in columns, "a column without any entry is left out"


def test_pictures_are_kept_once_and_every_cell_has_some_within_the_budget():
    cells = [made.cell(number, 1.0, str(number)) for number in range(5)]
    walls = pictures.of_cells(cells)
    everything, left_out = pictures.hung(walls, Album(10**6))
    assert left_out == 0
    assert [len(wall["pairs"]) for wall in everything] == [4] * 5
    album = Album(5000)
    few, left_out = pictures.hung(walls, album)
    assert len(few) == 5
    assert sum(len(wall["pairs"]) for wall in few) + left_out == 20
    assert sum(map(len, album.addresses)) <= 5000
    twice = Album(10**6)
    assert pictures.hung([walls[0], walls[0]], twice)[0][1]["pairs"] == pictures.hung([walls[0]], twice)[0][0]["pairs"]
    assert len(twice.addresses) == 8 - 0


# The command


def test_the_command_writes_the_page_beside_the_record_and_says_where(tmp_path, monkeypatch, capsys):
    for file in ("record.json.xz", "manifest.json"):
        shutil.copy(RESULTS / "shadow_number" / file, tmp_path / file)
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    report.main([str(tmp_path)])
    assert capsys.readouterr().out == f"Open: {tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(("missing", "said"), [("record", "holds no manifest.json"), ("plotly", "mirage-fl[report]")])
def test_what_is_missing_is_said_in_one_line_and_nothing_is_written(missing, said, tmp_path, monkeypatch, capsys):
    if missing == "plotly":
        for file in ("record.json.xz", "manifest.json"):
            shutil.copy(RESULTS / "shadow_number" / file, tmp_path / file)
        monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(SystemExit) as stopped:
        report.main([str(tmp_path)])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
