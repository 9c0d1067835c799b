"""The code in CONTRIBUTING.md works as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks.base import MembershipKnowledge
from attacks.metrics import auc
from experiments.studies import base, paper
from fl_core.defended import Senders
from tests.plans import plan
from tests.signals import signals_of

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(), re.DOTALL)


def defined_in(block: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("contributed")
    monkeypatch.setitem(sys.modules, "contributed", module)  # dataclasses look their module up
    exec(block, module.__dict__)
    return module


def test_the_attack_finds_members_whose_outputs_are_surer(monkeypatch: pytest.MonkeyPatch):
    margin = defined_in(BLOCKS[0], monkeypatch).Margin()
    rng = np.random.default_rng(0)
    labels, members = rng.integers(0, 4, 400), rng.random(400) < 0.5
    outputs = rng.standard_normal((400, 4))
    outputs[np.arange(400), labels] += 3 * members
    assert auc(margin.run(signals_of(outputs[None], labels), MembershipKnowledge()), members) > 0.9


def test_the_defence_rounds_updates_and_promises_nothing(monkeypatch: pytest.MonkeyPatch):
    rounding = defined_in(BLOCKS[1], monkeypatch).Rounding(step=0.5)
    assert rounding.on_update({"w": torch.tensor([[[0.7, -0.2]]])}, Senders({}, [], 1.0))["w"].tolist() == [
        [[0.5, 0.0]]
    ]
    assert rounding.guarantee("server", "example", plan()).epsilon == np.inf
    assert rounding.example_rule(4.0) is None


def test_the_study_measures_draws_and_prints(monkeypatch: pytest.MonkeyPatch):
    kind = defined_in(BLOCKS[2], monkeypatch).Rounding
    study = kind(steps=[0.5, 2.0])
    data = {"_target_": "fl_core.data.digits", "limit": 50}
    setting = base.Setting(seed=0, device=torch.device("cpu"), config={"data": data})
    records = [point | study.measure(point, setting) for point in study.points()]
    small, large = (row["value"] for row in base.rows(records, metric="shift"))
    assert 0 < small < large
    assert [line[0] for line in study.table(records)[0].lines] == ["0.5", "2"]
    assert study.figure(records, "rounding").axes[0].get_title() == "rounding"
    assert paper.as_csv(records).splitlines()[0] == "step,metric,value,low,high"
