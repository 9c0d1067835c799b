"""What a new user is told: the list of commands, and each one's help."""

from __future__ import annotations

import importlib
import re
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from experiments import __main__ as experiments
from experiments import run
from experiments.__main__ import ROOT, commands, first_sentence

OWN = {f"experiments.{name}": told for name, told in commands(ROOT).items()}
BENCHMARKS = {f"experiments.benchmarks.{name}": told for name, told in commands(ROOT / "benchmarks").items()}


def test_the_commands_are_listed_with_what_they_say_of_themselves(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments"])
    experiments.main()
    printed = capsys.readouterr().out
    assert {"experiments.run", "experiments.report", "experiments.holdings", "experiments.attack_update"} <= set(OWN)
    assert "experiments.secagg_client" not in OWN
    for name, told in OWN.items():
        assert name in printed
        assert 10 < len(told) < 120
        assert told in re.sub(r"\s+", " ", printed)
    assert len(BENCHMARKS) >= 12
    for name in BENCHMARKS:
        assert name.rpartition(".")[2] in printed


def test_what_a_command_says_of_itself_is_its_docstring_s_first_sentence():
    assert first_sentence('"""Draw it: `python -m x`.\n\nMore. """') == "Draw it"
    assert first_sentence('"""Two parts: one,\nand two. Then more."""') == "Two parts: one, and two"


def test_a_word_after_it_is_answered_with_the_command_that_was_meant(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments", "report", "results/mine"])
    with pytest.raises(SystemExit) as stopped:
        experiments.main()
    assert stopped.value.code == 2
    assert "python -m experiments.report" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*OWN, *BENCHMARKS])
def test_every_command_has_a_help_with_an_example_that_explains_its_options(name: str, capsys, monkeypatch):
    module = importlib.import_module(f"{name}.__main__" if (ROOT / name.partition(".")[2]).is_dir() else name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    GlobalHydra.instance().clear()
    code = 0
    try:
        module.main()
    except SystemExit as stopped:
        code = stopped.code
    assert not code
    printed = capsys.readouterr().out
    assert f"python -m {name}" in printed
    options = printed.partition("\noptions:\n")[2]
    for line in re.split(r"\n  (?=-)", options) if options else []:
        assert len(line.split(maxsplit=1)) == 2, line
        words = re.sub(r"^(-\S+,? ?)+([A-Z_:]+|\{[^}]*\})?( \[[^]]*\])?", "", line.strip())
        assert len(words.strip()) > 3, f"{name}: {line}"


def test_the_help_of_run_fits_a_screen_and_a_half_and_names_every_group(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run", "--help", "clients=7"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert len(lines) < 70
    assert max(map(len, lines)) <= 120
    for name in (
        "experiment      alice_and_bob",
        "defense         clip",
        "reconstruction@attack.reconstruction=",
        "7, 20: of",
    ):
        assert name in printed
    GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("report", [], "the following arguments are required: folders"),
        ("figure", ["leakge", "results/x"], "invalid choice: 'leakge'"),
    ],
)
def test_a_bad_option_is_one_line(command: str, arguments: list[str], said: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"experiments.{command}").main(arguments)
    line = capsys.readouterr().err
    assert stopped.value.code == 2
    assert line.startswith("mirage: ")
    assert said in line
    assert line.count("\n") == 1
