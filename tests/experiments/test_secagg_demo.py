"""The demo over real processes: its exit codes, and that those who are killed are dead."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from defenses.secagg.parameters import Parameters, Stage
from experiments import secagg_demo


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.secagg_demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arguments", "survivors", "killed"),
    [
        (["--clients", "4", "--threshold", "2", "--kill", "3@masked,1@unmask"], "0 1 2", 2),
        (["--clients", "5", "--malicious", "--bits", "40", "--kill", "2@check"], "0 1 2 3 4", 1),
        (["--clients", "8", "--sparse", "--malicious", "--length", "50", "--kill", "6@shares"], "0 1 2 3 4 5 7", 1),
    ],
)
def test_the_survivors_sum_is_the_plain_sum_when_processes_are_killed(arguments, survivors, killed):
    ended = demo(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    said = ended.stdout.splitlines()
    assert said[1].startswith(f"{killed} of {arguments[1]} processes killed")
    assert said[-1].endswith(f"survivors ({survivors}): equal to their plain sum, word for word")
    assert "not killed" not in ended.stdout


@pytest.mark.heavy
def test_too_few_processes_left_is_no_sum_and_exit_code_1():
    ended = demo("--clients", "4", "--kill", "0@masked,1@shares")
    assert ended.returncode == 1
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == "no sum: 2 clients are left at the stage masked, of 3 that it takes"
    assert re.search(r"^shares +3  1 ", ended.stdout, re.MULTILINE)


@pytest.mark.heavy
def test_a_sum_that_is_not_the_plain_one_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(secagg_demo, "vector", lambda parameters, *_: np.zeros(parameters.length))
    assert secagg_demo.main(["--clients", "2", "--length", "3"]) == 1
    assert capsys.readouterr().out.endswith("survivors (0 1): NOT equal to their plain sum\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clients", "1"], "--clients is 1; it must be a whole number at least 2 and at most 256"),
        (["--clients", "x"], "argument --clients: invalid int value: 'x'; --help lists what is allowed"),
        (["--nonsense"], "unrecognized arguments: --nonsense; --help lists what is allowed"),
        (["--bits", "63"], "bits is 63; it must be a whole number at least 1 and at most 62"),
        (["--threshold", "0"], "threshold is 0; it must be a whole number at least 1"),
        (["--threshold", "9"], "threshold is 9; it must be a whole number at least 1 and at most 8"),
        (["--malicious", "--threshold", "5"], "against a malicious server take at least 6"),
        (["--sparse", "--threshold", "5"], "--threshold is for the complete graph"),
        (["--sparse", "--clients", "3"], "no graph of 3 clients is sparser"),
        (["--kill", "8@keys"], "--kill 8@keys: the client is '8'; it must be 0 to 7"),
        (["--kill", "1"], "--kill 1: the stage is ''; allowed: keys, masked, shares, unmask"),
        (["--kill", "1@share"], "did you mean 'shares'?"),
        (["--kill", "1@check"], "allowed: keys, masked, shares, unmask"),
        (["--kill", "1@keys,1@masked"], "--kill names client 1 twice"),
        (["--timeout", "0"], "--timeout is 0.0; it must be a number above 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--length", "0"], "--length is 0"),
        (["--length", "100000000"], "at most 1e+07"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        secagg_demo.main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1


def test_kills_are_read_as_they_are_written():
    parameters = Parameters.complete(8, 10, 32, malicious=True)
    kills = secagg_demo.kills_of("3@masked,5@check", parameters)
    assert kills == {3: Stage.MASKED, 5: Stage.CHECK}
    assert secagg_demo.kills_of("", parameters) == {}
