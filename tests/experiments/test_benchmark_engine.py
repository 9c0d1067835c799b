"""The engine's benchmark: what it measures is paired as it says, and its page comes from the record alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch

from experiments.benchmarks import ceiling, engine, shadows, tries
from fl_core.data import ImageSet
from fl_core.federation import run


def made_up() -> list[dict[str, Any]]:
    """Every contender's seconds in two repeats: the machine is twice as slow in the second."""
    seconds = {"plain": 1.0, "pfl": 0.9, "Flower": 3.0, "Mirage": 0.5}
    rows = []
    for width in engine.WIDTHS:
        for place, name in enumerate(engine.CONTENDERS):
            base = seconds[name.split(",")[0].split()[0]] + 0.01 * place
            rows.append(
                {
                    "width": width,
                    "contender": name,
                    "seconds": [base, 2 * base],
                    "accuracy": [0.95, 0.95],
                    "failed": None,
                    "versions": {"pfl": "1.0", "torch": "2"},
                }
            )
    return rows


def test_ratios_compare_each_family_s_best_with_mirage_s_best_repeat_by_repeat():
    found = engine.ratios(made_up())
    assert [(one["width"], one["peer"]) for one in found] == [
        (width, peer)
        for width in engine.WIDTHS
        for peer in ("plain loop, 1 thread", "pfl, 1 process", "Flower, 2 actors")
    ]
    for one in found:
        assert one["mirage"] == "Mirage, loop, 1 process"
        assert one["ratios"][0] == pytest.approx(one["ratios"][1]), "a slow repeat is slow for both"
    pfl = found[1]
    assert pfl["ratios"][0] == pytest.approx(0.91 / 0.54)
    assert (pfl["goal"], pfl["reached"]) == (1.5, median(pfl["ratios"]) >= 1.5)
    assert found[2]["reached"] is (median(found[2]["ratios"]) >= 4)


def test_a_peer_that_cannot_run_is_named_with_its_reason_and_has_no_ratio(monkeypatch):
    def measure(peer: str, arguments: list[str], python: str, timeout: float) -> dict[str, Any]:
        assert python == sys.executable
        if peer == "pfl_peer":
            raise RuntimeError("it failed:\nModuleNotFoundError: No module named 'pfl'")
        return {"seconds": [3.0, 1.0, 2.0], "accuracy": [None, 0.9], "versions": {"torch": "2"}, "configured": {}}

    monkeypatch.setattr(engine, "measure", measure)
    rows = engine.measure_rounds(["--train", "a"], sys.executable, repeats=2, rounds=3)
    pfl = [row for row in rows if row["contender"].startswith("pfl")]
    assert all(row["failed"] == "ModuleNotFoundError: No module named 'pfl'" for row in pfl)
    assert all(row["seconds"] == [2.0, 2.0] for row in rows if row not in pfl)
    assert not [one for one in engine.ratios(rows) if one["peer"].startswith("pfl")]
    page = engine.peers_markdown({"peers": rows, "measured": {"peers": {"repeats": 2}}, "rounds": 3})
    assert "| pfl, 2 processes | not measured | – | not measured | – |" in page
    assert "- pfl, 2 processes could not run: ModuleNotFoundError" in page


def test_seconds_to_the_target_are_those_of_the_rounds_that_it_took(monkeypatch):
    def measure(peer: str, arguments: list[str], python: str, timeout: float) -> dict[str, Any]:
        assert "--evaluate" in arguments
        slow = peer == "plain"
        accuracy = [0.9, 0.95, 0.96 if slow else 0.975, 0.96 if slow else 0.98]
        return {"seconds": [1.0, 2.0, 3.0], "warmup_seconds": [9.0], "accuracy": accuracy}

    monkeypatch.setattr(engine, "measure", measure)
    found = engine.measure_to_target([], sys.executable, made_up(), seeds=2)
    ours = next(one for one in found if one["contender"].startswith("Mirage"))
    assert ours["runs"][0] == {"seed": 0, "rounds": 3, "seconds": 2.0 + 1.0 + 2.0, "seconds_cold": 9.0 + 1.0 + 2.0}
    never = next(one for one in found if one["contender"].startswith("plain"))
    assert [run["rounds"] for run in never["runs"]] == [None, None]
    page = engine.peers_markdown(
        {"peers": made_up(), "to_target": found, "measured": {"peers": {"repeats": 2}}, "rounds": 3}
    )
    assert "(2 of 2 seeds never did)" in page


@pytest.mark.heavy
def test_shards_in_processes_train_the_plain_loop_s_models():
    record = shadows.measure_study(shadows.digit_federations(4, 1), repeats=1, workers=2)
    assert record["same"], record["largest_difference"]
    assert record["shards"] == 4
    assert set(record["ratios"]) == {"plain, 1 thread", "plain, 2 threads"}
    assert record["against"] in record["ratios"]
    page = shadows.shadows_markdown([record])
    assert f"{record['largest_difference']:.0e}" in page


def test_every_idea_takes_a_real_step():
    torch.manual_seed(0)
    for idea in ("plain", *tries.IDEAS):
        if idea != "torch.compile":
            step = tries.step_of(tries.PROBLEMS[0], idea)
            step()
            assert tries.per_step(step, 0.0) > 0
    record = {
        "problem": "a",
        "batch": 10,
        "plain_seconds": [0.001, 0.003, 0.002],
        "first_call_seconds": {"torch.compile": 31.0},
        "cores": 2,
        "ratios": {"bf16": [0.5, 0.7, 0.6], "threads": [1.0], "processes": [2.0]},
    }
    page = tries.tries_markdown([record])
    assert "| a, batch 10 | 2.00 | 0.60 [0.50, 0.70] | 1.00 [1.00, 1.00] | 2.00 [2.00, 2.00] |" in page
    assert "| bf16 | 2 threads | 2 processes × 1 thread |" in page


def test_a_goal_below_what_the_cores_can_do_is_out_of_reach():
    # A 5x5 convolution and its kernel's gradient, the second convolution, the linear layers, by hand.
    first, second, linear = 784 * 25 * 4, 196 * 25 * 4 * 8, 49 * 8 * 64 + 64 * 10
    assert ceiling.round_operations(4) == 600 * 10 * 2 * (2 * first + 3 * second + 3 * linear)
    assert ceiling.product_rate(0.05) > 1e8
    record = {"cores": 2, "operations": {"4": 10**9, "16": 10**11}, "rates": [9e10, 1e11, 2e11]}
    best = {4: {"Mirage": [0.02], "Flower": [0.3, 0.4, 0.5]}, 16: {"Flower": [3.6]}}
    page = ceiling.ceiling_markdown(record, engine.WIDTHS, best)
    assert "| 27k parameters | 1.0 | 0.01 | 0.02 | 50% | 0.10 |" in page
    assert "| 417k parameters | 100.0 | 1.00 | – | – | 0.90, out of reach |" in page


@pytest.mark.heavy
def test_in_double_precision_the_engine_and_a_plain_loop_come_to_the_same_federations():
    federation = shadows.digit_federations(2, 4, shards=1).federation
    data = federation.data
    doubled = ImageSet(data.images.double(), data.labels, data.classes)
    federation = replace(federation, model=federation.model.double(), data=doubled, backend="vmap")
    ours, plain = run(federation).model, shadows.train_plain(federation)
    assert max(float((ours[name] - plain[name]).abs().max()) for name in ours) < 1e-7
