"""The benchmark of gradient matching: its contenders' objectives and counts, and its page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.benchmarks import reconstruction
from experiments.benchmarks.peers import mirage_matching, plain_matching
from experiments.benchmarks.peers.matching import Answer, Contender, Request, problem_of
from experiments.benchmarks.reconstruction import BREACHING, OURS, PLAIN, Way

REQUESTS = [
    Request(model="lenet", check=True),
    Request(model="cnn", check=True, total_variation=0.5),
    Request(model="cnn", check=True, measure="squared"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: f"{one.model}-{one.measure}")
def test_both_have_one_objective_with_one_gradient(request_: Request):
    ours, plain = mirage_matching.play(request_), plain_matching.play(request_)
    assert ours["objective"] == pytest.approx(plain["objective"], rel=1e-5)
    mine, theirs = torch.tensor(ours["gradient"]), torch.tensor(plain["gradient"])
    assert theirs.norm() > 0
    assert (mine - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_both_take_the_iterations_they_are_asked_for(optimizer: Any):
    request = Request(model="cnn", measure="squared", optimizer=optimizer, victims=2, restarts=3, iterations=5)
    for play in (mirage_matching.play, plain_matching.play):
        found = play(request)
        assert found["iterations"] == 2 * 3 * 5
        assert found["seconds"] > 0


def test_the_plain_loop_comes_closer_to_the_gradient():
    request = Request(model="cnn", iterations=60, total_variation=0.0)
    problem = problem_of(request)
    observed, label = problem.gradients[0], problem.labels[0]
    reached, _ = plain_matching.descend(request, problem.model, observed, label, problem.start)
    before, after = (
        plain_matching.objective(request, problem.model, observed, label, pixels).item()
        for pixels in (problem.start, reached)
    )
    assert after < 0.5 * before


class Scripted(Contender):
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self, peer: str, answer: Answer) -> None:
        self.peer, self.asked, self._answer = peer, [], answer

    def ask(self, request: Request) -> None:
        self.asked.append(request)

    def answer(self) -> Answer:
        return self._answer


def test_another_objective_ends_the_program():
    same = {"objective": 1.0, "gradient": [1.0, 2.0]}
    request = Request(model="cnn")
    assert reconstruction.check_same(request, Scripted(OURS, same), Scripted(PLAIN, same)) == 0
    for other in ({"objective": 1.1, "gradient": [1.0, 2.0]}, {"objective": 1.0, "gradient": [1.0, 2.1]}):
        with pytest.raises(RuntimeError, match="different objectives on cnn"):
            reconstruction.check_same(request, Scripted(OURS, other), Scripted(PLAIN, same))


def test_two_processes_share_our_restarts_and_have_one_each_of_a_peers():
    answer = {"seconds": 2.0, "iterations": 30}
    ours, plain = ([Scripted(peer, answer), Scripted(peer, answer)] for peer in (OURS, PLAIN))
    two, request = Way(processes=2), Request(model="cnn", restarts=5)
    assert reconstruction.rate(ours, request, two) == 30
    assert [one.asked[0].restarts for one in ours] == [3, 2]
    assert reconstruction.rate(ours, replace(request, restarts=1, victims=4), two) == 30
    assert [one.asked[1].victims for one in ours] == [2, 2]
    assert reconstruction.rate(ours, replace(request, restarts=1), two) is None
    assert reconstruction.rate(plain, replace(request, restarts=1), two) == 30
    assert reconstruction.rate(plain, replace(request, restarts=1), Way(threads=2)) == 15
    assert plain[0].asked[-1].threads == 2


def test_a_way_that_is_hopeless_in_a_trial_is_left_out():
    class Slow(Scripted):
        def answer(self) -> Answer:
            return {"seconds": 4.0 if self.asked[-1].threads > 1 else 1.0, "iterations": 5}

    ways = (Way(), Way(threads=2), Way(processes=2))
    team = [Slow(PLAIN, {}), Slow(PLAIN, {})]
    assert reconstruction.worthwhile(team, Request(model="cnn"), ways) == [Way(), Way(processes=2)]
    assert [asked.iterations for asked in team[0].asked] == [3, 3, 3, 10, 10, 10]


def row(measure: str, optimizer: str, ours: float) -> dict[str, Any]:
    one = {"1 thread": [100.0, 200.0], "2 processes": [150.0, 220.0]}
    rates = {
        PLAIN: {"1x1": one},
        BREACHING: {"1x1": {"1 thread": [50.0, 100.0], "2 processes": [40.0, 40.0]}},
        OURS: {"1x1": {"1 thread": [90.0, 90.0]}, "1x16": {"1 thread": [300.0, 300.0], "2 processes": [ours, ours]}},
    }
    return {
        "name": f"LeNet: {measure}, {optimizer}", "model": "lenet", "measure": measure, "optimizer": optimizer,
        "iterations": 9, "apart": {"Mirage": 1e-7}, "rates": rates,
    }  # fmt: skip


def test_the_page_judges_ratios_of_the_fastest_ways():
    record: dict[str, Any] = {
        "command": "", "revision": "", "hardware": {"processor": "", "cores": 2}, "device": "cpu", "repeats": 2,
        "versions": {"torch": "", "python": ""}, "failed": "no breaching here",
        "rows": [row("cosine", "adam", 660.0), row("squared", "adam", 400.0), row("squared", "lbfgs", 400.0)],
    }  # fmt: skip
    page = reconstruction.markdown(record)
    assert "restarts on LeNet: reached, 3.7 [3.0, 4.4]" in page  # 660 over 150 and over 220
    assert "| 9.9 [6.6, 13.2] |" in page  # 660 over breaching's 50 and 100
    assert "| torch.optim.LBFGS | 7.50 [5.00, 10.00] | 7.50 [5.00, 10.00] | 0.00 |" in page
    assert "15x on a GPU: not measured" in page
    assert "could not run: no breaching here" in page
    slow = record | {"rows": [row("cosine", "adam", 500.0)]}
    assert "on LeNet: missed, 2.8" in reconstruction.markdown(slow)


@pytest.mark.heavy
def test_the_program_writes_its_record_and_says_why_breaching_cannot_run(tmp_path: Path):
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\necho no breaching >&2\nexit 1\n")
    empty.chmod(0o755)
    reconstruction.main(["--quick", "--repeats", "1", "--out", str(tmp_path), "--python", str(empty)])
    record = json.loads((tmp_path / "reconstruction.json").read_text())
    assert [row["iterations"] for row in record["rows"]] == [4, 4]
    assert record["failed"] == "breaching_matching ended: no breaching"
    assert (tmp_path / "reconstruction.md").read_text() == reconstruction.markdown(record)


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--repeats", "0"], "--repeats"), (["--python", "/no"], "--python /no"), (["--device", "tpu"], "--device")],
)
def test_bad_input_is_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        reconstruction.main(options)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
