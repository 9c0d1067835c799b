"""Federations of a few hundred numbers, whose lanes are not worth measuring before each of them."""

from __future__ import annotations

import pytest

from fl_core.memory import Footprint


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_core.federation.footprint", lambda *_: Footprint(shared=0, lane=1))
