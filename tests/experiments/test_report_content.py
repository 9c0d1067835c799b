"""Results that are unusual and legal make a page, too; those that hold nothing are one line."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.html import words
from experiments.html.page import of_study, page
from experiments.html.pictures import of_record
from fl_core.errors import InputError
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
