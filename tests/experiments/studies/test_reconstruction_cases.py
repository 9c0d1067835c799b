"""The study of gradient inversion's classic cases: it measures what a case says, and judges it by its goal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from experiments.studies.base import Performance, build
from experiments.sweep import resolved
from experiments.table import page_markdown
from fl_core.errors import InputError

NET = "{model: Net, attack: iDLG, victims: 3, settings: {iterations: 250, restarts: 2}, goal: 40, of: median}"
BATCH = (
    "{model: Net, trained: true, attack: inverting gradients, victims: 2, examples: 2, labels: true, "
    "settings: {iterations: 5}, goal: 99}"
)
STEPS = "{model: Net, attack: inverting gradients, victims: 2, epochs: 3, lr: 0.01, settings: {iterations: 5}}"


def made(**cases: str) -> Performance:
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        config: dict[str, Any] = resolved(compose("config", overrides=["experiment=reconstruction", "data=digits"]))
    import yaml

    study = config["study"] | {
        "cases": {name: yaml.safe_load(case) for name, case in cases.items()},
        "models": {"Net": {"_target_": "fl_core.architectures.LeNet", "_partial_": True}},
        "training_epochs": 1,
        "gallery": 20,
    }
    return build(config | {"study": study})


@pytest.mark.heavy
def test_cases_are_measured_judged_and_drawn(tmp_path: Path):
    ready = made(exact=NET, batch=BATCH, steps=STEPS)
    records = [point | ready.study.measure(point, ready.setting) for point in ready.points]
    named = [{row["metric"]: row for row in reversed(record["rows"]) if row["by"][:5] != "blind"} for record in records]
    assert named[0]["psnr_median"]["value"] > 60
    assert named[0]["psnr"]["view"] == "server"
    assert "no labels" in named[0]["psnr"]["knowledge"]
    assert "the labels" in named[1]["psnr"]["knowledge"]
    assert "one step on 2 pictures" in named[1]["psnr"]["knowledge"]
    assert "3 local steps on one picture" in named[2]["psnr"]["knowledge"]
    # Two restarts of 250 at one gradient each; four of five at one; four of five at three local steps each.
    assert [one["evaluations"]["value"] for one in named] == [500, 20, 60]
    numbers, *_ = page_markdown(ready.study.table(records)).split("PSNR of guesses")
    lines = {line.split(" | ")[0]: line for line in numbers.splitlines()}
    assert " yes " in lines["| exact"]
    assert " no " in lines["| batch"]
    ready.study.figure(records, "a title").savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{model: Nat, attack: iDLG, victims: 3}", "study.cases.a.model"),
        ("{model: Net, attack: iGLD, victims: 3}", "iGLD"),
        ("{model: Net, attack: iDLG, victims: 0}", "victims"),
        ("{model: Net, attack: iDLG, victims: 3, batch: 2}", "has batch"),
        ("{model: Net, attack: iDLG, victims: 3, settings: {iterations: 0}}", "iterations"),
        ("{model: Net, attack: iDLG, victims: 90000}", "90000"),
    ],
)
def test_bad_cases_are_refused_before_anything_is_measured(wrong: str, said: str):
    with pytest.raises(InputError, match=said):
        made(a=wrong)
