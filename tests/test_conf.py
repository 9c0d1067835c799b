"""conf/ says what each of its options is, and holds none that nothing reads."""

from __future__ import annotations

import ast
import dataclasses
import sys
import textwrap
import types
from pathlib import Path

import pytest

from experiments.own_update.options import Options
from experiments.studies.base import Study
from tests.conf_files import CONF, conf_files, read, undocumented
from tests.conf_reads import parsed, resolved, sources, unread_fields, unread_of_studies, unread_options, unused

FILES = conf_files()
(CONFIG,) = [one for one in FILES if one.file == CONF / "config.yaml"]
(ATTACK_UPDATE,) = [one for one in FILES if one.file == CONF / "attack_update.yaml"]
STUDIES = {
    resolved(option.target)
    for one in FILES
    for option in one.options
    if option.path.startswith("study.") and option.path.count(".") == 1 and option.target is not None
}


def test_every_option_is_explained_where_it_is_defined():
    assert undocumented(FILES) == []


def test_every_file_begins_with_what_it_is():
    for one in FILES:
        assert one.header.replace("# @package _global_", "").strip("# \n"), one.file


def test_every_option_of_a_target_is_one_that_it_takes_and_reads():
    assert len([option for one in FILES for option in one.options if option.target]) > 300
    assert unread_options(option for one in FILES for option in one.options) == []


def test_every_field_of_the_configuration_is_read_by_something():
    assert unread_fields(CONFIG, [parsed(path) for path in sources("experiments")]) == []


def test_every_option_of_an_own_update_is_read_by_something():
    names = {option.path.replace("global", "global_") for option in ATTACK_UPDATE.options}
    assert names | {"changes"} == {field.name for field in dataclasses.fields(Options)}
    for name in names - {"debug"}:  # which is looked for before anything is read
        assert unused(Options, name) == ""


def test_every_study_reads_all_that_it_says():
    assert len(STUDIES) >= 10
    assert all(issubclass(kind, Study) for kind in STUDIES)
    assert unread_of_studies(STUDIES) == []


def conf_of(tmp_path: Path, text: str, name: str = "planted.yaml"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return read(path)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with a defence that looks at `keenness` only to check it, and a function that ignores `colour`."""
    (tmp_path / "planted.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass

            @dataclass(frozen=True, kw_only=True)
            class Rounding:
                step: float
                keenness: int

                def __post_init__(self):
                    assert self.keenness > 0

                def on_update(self, value):
                    return value / self.step

            def painted(size, colour):
                return size
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("planted")
    del sys.modules["planted"]


def test_an_option_that_a_target_does_not_read_is_reported(planted, tmp_path: Path):
    text = "_target_: planted.Rounding\nstep: 1\nkeenness: 3\nwidth: 4\n"
    assert unread_options(conf_of(tmp_path, text).options) == [
        "planted.yaml: keenness is not read by Rounding",
        "planted.yaml: width is no option of Rounding",
    ]
    text = "_target_: planted.painted\nsize: 1\ncolour: 3\n"
    assert unread_options(conf_of(tmp_path, text).options) == ["planted.yaml: colour is not read by painted"]


def test_a_field_that_nothing_looks_up_is_reported(tmp_path: Path):
    config = conf_of(
        tmp_path, "rounds: 1 # many\nattack: # how\n  fpr: 0.1 # rate\n  fprr: 0.2 # typo\nidle: 3 # left\n"
    )
    code = """
        def _check(config):
            assert config["idle"] > 0 and config["attack"]["fprr"]

        def score(cell):
            attack = cell.config["attack"]
            return attack["fpr"], cell.config.get("rounds")
    """
    found = unread_fields(config, [ast.parse(textwrap.dedent(code))])
    assert found == ["planted.yaml: attack.fprr is not read", "planted.yaml: idle is not read"]


def test_an_option_without_a_comment_is_reported(tmp_path: Path):
    text = """\
    # A file's header explains none of its options.
    _target_: planted.Rounding
    step: 0.1
    name: "a # in a string"
    # on the line above
    width: 3
    both: {inner: 1, other: 2} # `inner` is named here
    """
    assert undocumented([conf_of(tmp_path, text)]) == [
        "planted.yaml: step",
        "planted.yaml: name",
        "planted.yaml: both.other",
    ]
