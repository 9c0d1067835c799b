"""The peers of the speed benchmark on 500 drawn pictures; those that are not installed are skipped.

`MIRAGE_BENCH_PYTHON` names the interpreter that has them, if it is neither this one nor `.venv/bench`'s.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from defenses.base import Defense
from experiments.benchmarks.peers import measure, plain, problem
from experiments.benchmarks.peers.problem import Problem, Settings, Stopwatch, problem_of
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import McMahanCNN
from fl_core.federation import Federation, run
from fl_core.models import initial_parameters
from fl_core.participation import Uniform
from fl_core.sampling import Shuffled
from fl_core.seeds import seed
from fl_core.state import State
from tests.pictures import write_bars

TINY = ["--width", "4", "--clients", "10", "--cohort", "4", "--lr", "0.2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    return [
        "--train",
        write_bars(folder / "train.parquet", 400, 0),
        "--test",
        write_bars(folder / "test.parquet", 100, 1),
    ]


@pytest.fixture
def tiny(files: list[str]) -> Settings:
    return Settings(train=files[1], test=files[3], clients=10, cohort=4, lr=0.1, rounds=2)


@pytest.fixture(autouse=True)
def threads() -> Any:
    """The peers set torch's threads for their process, which here is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_result_says_what_was_played_how_long_it_took_and_how_well(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain.main([*files, *TINY, "--rounds", "2", "--warmup", "1", "--evaluate"])
    found = last_line(capsys)
    assert found["peer"] == "plain"
    assert found["parameters"] == 26_714
    assert [len(found[key]) for key in ("seconds", "warmup_seconds", "accuracy", "evaluation_seconds")] == [2, 1, 3, 3]
    assert min(found["seconds"] + found["warmup_seconds"] + found["evaluation_seconds"]) > 0
    assert found["settings"]["lr"] == 0.2
    assert found["settings"]["threads"] == 1
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_without_evaluation_only_the_last_round_is_tested(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plain.main([*files, *TINY, "--rounds", "1"])
    found = last_line(capsys)
    assert found["accuracy"][0] is None
    assert 0 <= found["accuracy"][1] <= 1
    assert len(found["evaluation_seconds"]) == 1


def test_evaluation_is_in_no_rounds_time(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def pass_time(seconds: float) -> float:
        now[0] += seconds
        return 0.5

    monkeypatch.setattr(problem.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Problem, "accuracy", lambda *_: pass_time(100.0))
    watch = Stopwatch(problem_of(dataclasses.replace(tiny, evaluate=True)))
    watch.start()
    for seconds in (1.0, 2.0, 3.0):
        pass_time(seconds)
        watch.lap(lambda: torch.nn.Identity())
    assert watch.seconds == [1.0, 2.0, 3.0]
    assert watch.evaluation_seconds == [100.0] * 3


def test_every_picture_has_one_client_and_a_client_meets_each_of_its_own_once(tiny: Settings) -> None:
    played = problem_of(tiny)
    assert sorted(torch.cat(list(played.held)).tolist()) == list(range(400))
    batches = played.batches(3, round=0)
    assert [len(batch) for batch in batches] == [10] * 4
    assert sorted(torch.cat(batches).tolist()) == sorted(played.held[3].tolist())
    assert len(set(played.cohort(0))) == 4
    assert played.cohort(0) != played.cohort(1)


def test_plain_trains_the_same_model_as_the_engine(tiny: Settings) -> None:
    """In double precision, where rounding flips no max-pool."""
    single = problem_of(tiny)
    pool = dataclasses.replace(single.pool, images=single.pool.images.double())
    played = dataclasses.replace(single, pool=pool)
    model = played.model().double()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for round in range(3):
        plain.play_round(played, model, round)
    federation = Federation(
        model=model,
        data=pool,
        owners=played.owners,
        members=torch.ones(1, len(pool), dtype=torch.bool),
        sizes=torch.full((10,), 40),
        algorithm=FedAvg(sampler=Shuffled(local_epochs=1, batch_size=10), lr=tiny.step_size),
        defense=Defense(),
        rounds=3,
        run=tiny.seed,
        replica_ids=[0],
        participation=Uniform(tiny.cohort),
        backend="loop",
    )
    # Initial weights are drawn in single precision, and would be others in double.
    start = State(round=0, model={name: value.unsqueeze(0) for name, value in before.items()})
    final = run(federation, state=start).model
    for name, value in model.named_parameters():
        torch.testing.assert_close(final[name][0], value.detach(), rtol=0, atol=1e-6)
        assert (value - before[name]).abs().max() > 1e-3, name


def test_everybody_starts_from_the_engines_weights(tiny: Settings) -> None:
    played = problem_of(tiny)
    drawn = initial_parameters(McMahanCNN((1, 28, 28), 10, width=4), seed(tiny.seed, "model", 0))
    for name, value in played.model().named_parameters():
        assert torch.equal(value, drawn[name]), name


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--warmup", "0"], "--warmup is 0"),
        (["--lr", "0"], "--lr is 0.0"),
        (["--cohort", "11"], "participation.cohort is 11"),
        (["--test", "nowhere.parquet"], "nowhere.parquet is not a file"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    files: list[str], capsys: pytest.CaptureFixture[str], changes: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        plain.main([*files, *TINY, *changes])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_width_without_a_chosen_learning_rate_needs_one(files: list[str]) -> None:
    with pytest.raises(SystemExit):
        plain.main([*files, "--width", "5"])


def test_a_peer_that_fails_is_an_error_with_its_own_words(files: list[str]) -> None:
    with pytest.raises(RuntimeError, match="--rounds is 0"):
        measure("plain", [*files, *TINY, "--rounds", "0"])


def interpreter(package: str) -> str:
    """An interpreter that has the package; skips the test where there is none."""
    bench = Path(__file__).parents[2] / ".venv" / "bench" / "bin" / "python"
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    for python in (os.environ.get("MIRAGE_BENCH_PYTHON", ""), str(bench), sys.executable):
        if Path(python).is_file() and subprocess.run([python, "-c", look]).returncode == 0:
            return python
    pytest.skip(f"{package} is not installed")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("peer", "package", "options", "processes"),
    [
        ("plain", "torch", [], 1),
        ("pfl_peer", "pfl", ["--processes", "1"], 1),
        ("pfl_peer", "pfl", ["--processes", "2"], 2),
        ("flower_peer", "flwr", [], None),  # as many as there are cores
    ],
)
def test_a_peer_learns_and_reports_in_the_same_form(
    files: list[str], peer: str, package: str, options: list[str], processes: int | None
) -> None:
    """From chance, one in ten, to nearly all of a problem that is easy by construction."""
    found = measure(peer, [*files, *TINY, "--rounds", "19", "--evaluate", *options], interpreter(package))
    assert found["parameters"] == 26_714
    assert len(found["seconds"]) == 19
    assert min(found["seconds"]) > 0
    assert found["accuracy"][-1] >= 0.9, found["accuracy"]
    assert found["accuracy"][0] < found["accuracy"][-1]
    assert found["versions"].get(package)
    assert processes is None or found["configured"]["processes"] == processes
