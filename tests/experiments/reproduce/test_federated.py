"""The federated, private and secure-aggregation reproductions: closed forms, protocols and every budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from defenses.clip import Clip
from defenses.composed import Composed
from experiments.benchmarks.dp_utility import DELTA, STEPS
from experiments.reproduce import aerni, fedavg, one_run_audit, opacus_mnist, secagg_cost
from experiments.reproduce.__main__ import configuration, main, reproductions
from experiments.reproduce.aerni import Measured, difference, matched
from experiments.reproduce.base import BUDGETS, Reproduction, verdicts
from experiments.studies import base
from experiments.studies.base import Performance, build
from experiments.studies.planted import CraftedGradients, numbered
from experiments.table import page_markdown
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import MLP
from fl_core.checkpoint import write_json
from fl_core.data import ImageSet
from fl_core.federation import federate, initial_state, run
from fl_core.sampling import Shuffled

OURS: dict[str, type[Reproduction]] = {
    "fedavg": fedavg.Rounds,
    "opacus_mnist": opacus_mnist.OpacusMNIST,
    "one_run_audit": one_run_audit.OneRunAudit,
    "secagg_cost": secagg_cost.Traffic,
    "aerni": aerni.MatchedUtility,
}


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()
    plt.close("all")


def ready(name: str, budget: str) -> Performance:
    return build(configuration(name, OURS[name], budget, Path("data")))


def blank(count: int, shape: tuple[int, int, int]) -> ImageSet:
    """Pictures of the real sets' sizes that take no memory."""
    names = tuple(map(str, range(10)))
    return ImageSet(torch.zeros(1, *shape).expand(count, *shape), torch.arange(count) % 10, names)


# Budgets


@pytest.mark.heavy
@pytest.mark.parametrize("name", OURS)
def test_the_smoke_budget_gives_every_published_number_a_verdict(name: str):
    made = ready(name, "smoke")
    assert isinstance(made.study, Reproduction)
    records = [point | made.study.measure(point, made.setting) for point in made.points]
    lines = verdicts(made.study, records)
    assert [line.what for line in lines if line.published] == [one.what for one in made.study.published]
    assert all(line.verdict and line.why for line in lines if line.published)
    assert all(line.verdict != "not attempted" for line in lines if line.published and line.row)
    assert any(line.row for line in lines)
    told = page_markdown(made.study.table(records))
    assert all(one.what in told for one in made.study.published)
    assert made.study.figure(records, made.study.title).axes


@pytest.mark.parametrize("budget", ["cpu", "full"])
@pytest.mark.parametrize("name", OURS)
def test_the_other_budgets_compose_and_build(name: str, budget: str, monkeypatch: pytest.MonkeyPatch):
    def sizes(config: dict[str, Any]) -> tuple[ImageSet, ImageSet, str]:
        shape, whole = ((1, 28, 28), 60_000) if "mnist" in config["path"] else ((3, 32, 32), 50_000)
        return blank(config["limit"] or whole, shape), blank(config["test_limit"] or 10_000, shape), "sizes alone"

    monkeypatch.setattr(base, "read_data", sizes)
    made = ready(name, budget)
    assert set(OURS[name].budgets) == set(BUDGETS)
    assert len(made.runs) == len(made.points) > 0


def test_all_of_them_are_found_by_their_names():
    assert {name: reproductions()[name] for name in OURS} == OURS


def test_a_folder_without_the_files_is_refused_with_the_option_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        main(["opacus_mnist", "--data", str(tmp_path)])
    assert stopped.value.code == 2
    assert "mnist-train.parquet is not a file; give the folder that holds it with --data" in capsys.readouterr().err


@pytest.mark.heavy
def test_the_command_writes_the_table_and_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    main(["secagg_cost", "--budget", "smoke", "--workers", "1"])
    written = {path.name for path in Path("results/reproduce/secagg_cost-smoke").iterdir()}
    assert {"table.md", "data.csv", "figure.png", "figure.pdf", "manifest.json", "record.json.xz"} <= written


# FedAvg


def test_the_running_best_crosses_between_two_rounds():
    assert fedavg.crossing([0.5, 0.7, 0.6, 0.9], 0.8) == pytest.approx(3.5)  # from 0.7, the best so far, to 0.9
    assert fedavg.crossing([0.9], 0.8) == 1.0
    assert fedavg.crossing([0.5, 0.8], 0.8) == 2.0
    assert fedavg.crossing([0.5, 0.7], 0.8) is None


def test_a_seed_that_did_not_get_there_counts_with_all_its_rounds():
    study = fedavg.Rounds(budget="cpu", cells={"IID, E=1, B=10": 2}, rounds=60)
    cell = "IID, E=1, B=10"
    records = [{"cell": cell, "rows": [{"metric": cell, "value": value}]} for value in (30.0, None)]
    first, *others = verdicts(study, records)
    assert first.row is not None
    assert first.row["value"] == 45.0
    assert "1 did not get there" in first.why
    assert (first.row["low"], first.verdict) == (None, "missed")  # 30 alone would be under the published 34
    assert [line.verdict for line in others] == ["not attempted"] * 3


# Opacus


@pytest.mark.parametrize(("sigma", "epochs", "told"), [(0.7, 45, 6.86), (1.1, 60, 2.91), (1.3, 15, 1.16)])
def test_the_older_conversion_gives_the_epsilon_that_opacus_printed(sigma: float, epochs: int, told: float):
    found = opacus_mnist.epsilon_mironov(sigma, opacus_mnist.RATE, epochs * STEPS, DELTA)
    assert round(found, 2) == told


@pytest.mark.heavy
def test_every_computed_epsilon_is_matched():
    study = opacus_mnist.OpacusMNIST(budget="smoke", levels=[], seeds=1)
    records = [{"level": opacus_mnist.ACCOUNTING, "seed": None, "rows": opacus_mnist.accounted()}]
    judged = {
        line.what: line.verdict for line in verdicts(study, records) if line.what.startswith("ε") and line.published
    }
    assert len(judged) == 6
    assert set(judged.values()) == {"matched"}


def test_earlier_runs_count_as_seeds_and_say_where_they_are_from(tmp_path: Path):
    file = tmp_path / "runs.json"
    whole, cut = ((15, 0.94), (15, 0.95)), ((1, 0.3),)
    runs = [{"level": "high", "epochs": epochs, "accuracy": found} for epochs, found in (*whole, *cut)]
    write_json(file, {"revision": "abc", "runs": runs})
    study = opacus_mnist.OpacusMNIST(budget="cpu", levels=[], seeds=1, earlier=str(file))
    records = [{"level": opacus_mnist.EARLIER, "seed": None, "rows": opacus_mnist.before(file)}]
    found = {line.what: line for line in verdicts(study, records)}[opacus_mnist.named("high")]
    assert found.row is not None
    assert found.row["value"] == pytest.approx(94.5)
    assert "mean of 2 seeds, 2 of them of" in found.why
    assert "revision abc" in found.why
    assert opacus_mnist.before(tmp_path / "none.json") == []


# The audit


def test_the_known_values_of_the_bound_are_matched():
    for told, digits, ours in one_run_audit.FORMS.values():
        assert round(ours, digits) == told
    assert len(one_run_audit.FORMS) == 5


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_a_crafted_gradient_lands_on_its_own_coordinate_and_an_ordinary_one_is_left(backend: Any):
    like = ImageSet(torch.rand(4, 1, 8, 8), torch.arange(4) % 3, ("a", "b", "c"))
    canaries = numbered(300, like).select(torch.tensor([0, 7, 299]))
    crafted = CraftedGradients("hidden.0.weight", torch.arange(300) + 5, 100.0)
    model = MLP(like.shape, 3, hidden=(6,))
    assert "hidden.0.weight" in dict(model.named_parameters())

    def moved(data: ImageSet, *parts: Any) -> dict[str, torch.Tensor]:
        federation = federate(
            model, data, clients=1, rounds=1, defense=Composed((*parts, Clip(unit="example", clip_norm=0.5))),
            algorithm=FedAvg(sampler=Shuffled(batch_size=None), lr=1.0), backend=backend,
        )  # fmt: skip
        first = initial_state(federation).model
        return {name: value - first[name] for name, value in run(federation).model.items()}

    found = moved(canaries, crafted)
    flat = found["hidden.0.weight"].flatten()
    expected = torch.zeros_like(flat)
    expected[[5, 12, 304]] = -0.5 / 3
    assert torch.allclose(flat, expected, atol=1e-6)
    assert all((value == 0).all() for name, value in found.items() if name != "hidden.0.weight")
    plain = moved(like)
    assert all(torch.allclose(value, plain[name], atol=1e-6) for name, value in moved(like, crafted).items())


# Secure aggregation


def test_the_papers_own_count_gives_its_published_numbers():
    for clients, length, told in secagg_cost.CASES.values():
        assert secagg_cost.counted(clients, length) == pytest.approx(told, abs=0.005)


def test_the_law_of_small_cohorts_foretells_a_larger_one():
    study = secagg_cost.Traffic(budget="smoke", cohorts=[4, 6, 8])
    setting: Any = type("Seeded", (), {"seed": 0})()
    records = [{"clients": clients} | study.measure({"clients": clients}, setting) for clients in (4, 6, 8, 24)]
    law = secagg_cost.Law.of(records[:3])
    last = {row["metric"]: row["value"] for row in records[3]["rows"]}
    assert law.bytes(24, 0) == pytest.approx(last["other bytes sent"] + last["bytes received"], rel=0.005)
    assert law.value == 4


# Heuristics


def setting_of(name: str, noise: float, choosing: float, scores: Any, members: Any) -> Measured:
    return Measured(
        name=name, noise=noise, words=name, choosing=choosing, accuracy=0.0, scores=np.array(scores, dtype=float),
        members=np.array(members, dtype=bool),
    )  # fmt: skip


def test_the_match_is_the_most_noise_that_is_as_accurate_where_the_choice_is_made():
    heuristic = setting_of("clip", 0, 0.80, [[0.0]], [[1]])
    levels = ((0.1, 0.9), (0.4, 0.81), (0.8, 0.7))
    private = [setting_of("DP-SGD", noise, choosing, [[0.0]], [[1]]) for noise, choosing in levels]
    assert matched(heuristic, private).noise == 0.4
    assert matched(setting_of("clip", 0, 0.95, [[0.0]], [[1]]), private).noise == 0.1


def test_a_difference_is_of_the_same_replicas_and_none_with_itself():
    members = np.tile([1, 0], (6, 10)).astype(bool)
    told, blind = members * 1.0, np.zeros(members.shape)
    knows, guesses = setting_of("mixup", 0, 0, told, members), setting_of("DP-SGD", 1, 0, blind, members)
    assert difference(knows, guesses, 0.1) == (1.0, 1.0, 1.0)
    assert difference(knows, knows, 0.1) == (0.0, 0.0, 0.0)
    with pytest.raises(Exception, match="different examples"):
        difference(knows, setting_of("DP-SGD", 1, 0, blind, ~members), 0.1)
