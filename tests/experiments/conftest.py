"""A tiny study, the same code as the demo's with everything small."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from experiments import run

TINY = [
    "data.limit=160",
    "data.test_limit=60",
    "rounds=3",
    "replicas=4",
    "shard=2",
    "canaries=0.1",
    "sampler.local_epochs=1",
    "attack.victims=2",
    "attack.reconstruction.iterations=4",
    "attack.resamples=100",
    "attack.fpr=0.1",
]
SWEEP = ["experiment=leakage_vs_epsilon", *TINY, "defense.epsilon=8,inf"]
FILES = (
    "leakage_vs_epsilon.png",
    "leakage_vs_epsilon.pdf",
    "leakage_vs_epsilon.csv",
    "roc.png",
    "roc.csv",
    "reconstructions.png",
    "table.csv",
    "table.md",
    "table.tex",
)
STUDY = Path("results/leakage_vs_epsilon")


def contents() -> dict[str, bytes]:
    """The files of the tiny sweep's study, here."""
    return {name: (STUDY / name).read_bytes() for name in FILES}


def refusal(capsys: pytest.CaptureFixture[str], command: Callable[..., object], *arguments: str) -> str:
    """The one line that a command says where it ends with exit code 2 and nothing printed."""
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("mirage: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    return printed.err


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tiny sweep's files, made with one worker and no interruption."""
    folder = tmp_path_factory.mktemp("reference")
    before = Path.cwd()
    os.chdir(folder)
    try:
        command = [sys.executable, "-m", "experiments.run", *SWEEP, "workers=1"]
        subprocess.run(command, check=True, capture_output=True)
        return contents()
    finally:
        os.chdir(before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that results/ is the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mirage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Call the command line in this process, as `python -m experiments.run ARGUMENTS`."""

    def call(*arguments: str) -> None:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        run.main()

    yield call
    GlobalHydra.instance().clear()
