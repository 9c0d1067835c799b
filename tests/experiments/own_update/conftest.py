"""A folder with a deployment's files, and the command that attacks its update."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments import attack_update
from tests.experiments.own_update.deployment import NETS, USUAL, make


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a client's update of one step at rate 0.1 on one digit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_nets.py").write_text(NETS)
    make()
    yield tmp_path
    sys.modules.pop("own_nets", None)


@pytest.fixture
def mirage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call the command line in this process, with the usual options and those given."""

    def call(*arguments: str, **changed: str | None) -> None:
        usual = [f"{name}={value}" for name, value in (USUAL | changed).items() if value is not None]
        monkeypatch.setattr(sys, "argv", ["attack_update.py", *usual, *arguments])
        attack_update.main()

    return call
