"""The study of cohort sizes: its sums are the engine's, its theory is what comes out, and its points stand alone."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from defenses.base import Defense
from experiments.studies import cohort_membership
from experiments.studies.base import Performance, build, rows
from experiments.studies.clients import Recipe, flat, initial, seen_sums, sums, updates
from experiments.studies.cohort import Cohort
from experiments.studies.cohort_membership import EXACT, World, noisy, world
from experiments.sweep import resolved
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import MLP
from fl_core.federation import Federation, initial_state, run
from fl_core.models import variables_of
from fl_core.sampling import Shuffled
from fl_core.views import Recorder, SecureServer
from tests.federations import pictures

TINY = [
    "experiment=secagg_cohort",
    "model.hidden=[6]",
    "study.cohorts=[1,4,40]",
    "study.targets=12",
    "study.sums=2",
    "study.bank=60",
    "study.public=40",
    "study.examples=3",
    "study.pretraining=1",
    "study.dimensions=[5]",
    "study.epsilons=[8]",
    "study.fpr=0.1",
    "study.resamples=100",
    "study.picture_cohorts=[1,3]",
    "study.victims=4",
    "study.inverted_up_to=1",
    "study.iterations=5",
]


def made(*more: str) -> Performance:
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        return build(resolved(compose("config", overrides=[*TINY, *more])))


def measure(ready: Performance, **wanted: Any) -> list[dict[str, Any]]:
    return [
        point | ready.study.measure(point, ready.setting)
        for point in ready.points
        if all(point.get(name) == value for name, value in wanted.items())
    ]


def test_a_sum_over_the_bank_is_the_sum_that_a_secure_server_of_the_engine_records():
    data = pictures(8)
    net = MLP(data.shape, 3, hidden=[5])
    recipe = Recipe(model=net, lr=0.3, local_steps=2)
    start = initial(net, 0, torch.device("cpu"))
    bank = updates(recipe, start, data, torch.arange(24).view(8, 3))
    federation = Federation(
        model=net,
        data=data,
        owners=torch.arange(24) // 3,
        members=torch.ones(1, 24, dtype=torch.bool),
        sizes=torch.full((8,), 3),
        algorithm=FedAvg(sampler=Shuffled(batch_size=None, local_steps=2), lr=0.3),
        defense=Defense(),
        rounds=1,
        run=5,
        replica_ids=[0],
        backend="loop",
    )
    recorder = Recorder(SecureServer)
    run(federation, recorder, state=dataclasses.replace(initial_state(federation), model=start))
    engine = recorder.observation()
    assert isinstance(engine, SecureServer)
    mine = seen_sums(start, sums(bank, torch.arange(8).unsqueeze(0)), 8)
    assert mine.cohorts[0].shape == engine.cohorts[0].shape
    assert list(mine.sums[0]) == list(variables_of(net))
    for name, value in engine.sums[0].items():
        assert torch.allclose(mine.sums[0][name], value, atol=1e-7)


@pytest.mark.parametrize("size", [0, 3, 200])
def test_sums_over_few_and_over_many_clients_are_the_same_arithmetic(size: int):
    bank = torch.randn(100, 7)
    drawn = torch.randint(100, (5, size))
    assert torch.allclose(sums(bank, drawn), bank[drawn].sum(1), atol=1e-4)


def test_the_known_answer_comes_out_within_its_intervals():
    ready = made("study.targets=300", "study.cohorts=[1,2,21,300]", "study.dimensions=[10]", "study.resamples=400")
    found = rows(measure(ready, kind="gaussian"), metric="auc")
    assert [row["game"] for row in found] == ["replaced", *["replaced", "pair"] * 3]
    assert {f"{row['theory']:.3f}" for row in found if row["cohort"] == 21} == {"0.684", "0.756"}
    # Seven intervals of 95%: one or none outside has a chance of 96% where they cover what they say.
    assert sum(not row["low"] - 1e-9 <= row["theory"] <= row["high"] + 1e-9 for row in found) <= 1


def tampered(ready: Performance, monkeypatch: pytest.MonkeyPatch, draw: torch.Generator) -> World:
    """A world of Gaussian updates in place of trained ones, the same for every call of `world`."""
    bank, targets = (torch.randn(count, 134, generator=draw) for count in (3000, 300))
    real = world(ready.study, ready.setting, model="initial", target="client", local_steps=1)
    study = ready.study
    assert isinstance(study, Cohort)
    gaussian = cohort_membership.Population(
        mean=torch.zeros(134), directions=torch.zeros(0, 134), variances=torch.zeros(0), floor=1.0
    )
    start = {"": torch.zeros(1, 134)}
    fake = dataclasses.replace(
        real,
        start=start,
        bank=bank,
        public=gaussian,
        targets=targets,
        inside=targets.unsqueeze(1).expand(-1, study.sums, -1),
        clip_norm=10.0,
    )
    monkeypatch.setattr(cohort_membership, "world", lambda *_, **__: fake)
    return fake


def test_theory_and_measurement_agree_with_noise_and_without_for_every_view(monkeypatch: pytest.MonkeyPatch):
    ready = made("study.targets=300", "study.cohorts=[2,30,200]", "study.resamples=400")
    tampered(ready, monkeypatch, torch.Generator().manual_seed(0))
    study = ready.study
    assert isinstance(study, Cohort)
    found = []
    for epsilon in (None, 8.0):
        record = noisy(study, ready.setting, {"model": "initial", "epsilon": epsilon})
        found += [row for row in record["rows"] if row["metric"] == "auc"]
        assert (record["noise_multiplier"] > 0) == (epsilon is not None)
    assert {row["view"] for row in found} == {"secure_server", "server"}
    missed = [row for row in found if not row["low"] - 0.005 <= row["theory"] <= row["high"] + 0.005]
    assert len(missed) <= 1, missed  # nine intervals of 95%
    for row in found:
        assert row["ceiling"] is None or row["low"] <= row["ceiling"]


def test_shares_of_the_noise_hide_less_of_an_update_the_larger_the_cohort_and_more_of_the_sum(
    monkeypatch: pytest.MonkeyPatch,
):
    ready = made("study.targets=300", "study.cohorts=[2,30,200]")
    tampered(ready, monkeypatch, torch.Generator().manual_seed(1))
    study = ready.study
    assert isinstance(study, Cohort)
    record = noisy(study, ready.setting, {"model": "initial", "epsilon": 2.0})
    areas = {
        view: [row["value"] for row in record["rows"] if row["metric"] == "auc" and row["view"] == view]
        for view in ("server", "secure_server")
    }
    assert areas["server"][0] + 0.2 < areas["server"][-1]
    assert areas["secure_server"][-1] < areas["server"][-1] - 0.2


def test_public_examples_targets_and_the_population_share_no_example(monkeypatch: pytest.MonkeyPatch):
    ready = made("study.targets=20")
    study = ready.study
    assert isinstance(study, Cohort)
    held: list[set[bytes]] = []

    def spying(recipe: Any, start: Any, examples: Any, drawn: torch.Tensor) -> torch.Tensor:
        held.append({examples.images[row].numpy().tobytes() for row in drawn.flatten().tolist()})
        return updates(recipe, start, examples, drawn)

    monkeypatch.setattr(cohort_membership, "updates", spying)
    world(study, ready.setting, model="initial", target="client", local_steps=1)
    assert len(held) == 4  # public, targets, the bank, unseen public ones
    assert sum(map(len, held)) == len(set.union(*held))


def test_an_example_among_a_client_s_is_in_the_sums_that_hold_it():
    ready = made()
    study = ready.study
    assert isinstance(study, Cohort)
    one = world(study, ready.setting, model="initial", target="example", local_steps=1)
    # The mean gradient over 3 examples: a third of it is the target's own, the rest the same size as anybody's.
    rest = 3 * one.inside - one.targets.unsqueeze(1)
    assert rest.shape == (12, 2, one.bank.shape[1])
    direction = one.targets - one.bank.mean(0)
    apart = ((rest / 2 - one.bank.mean(0)) * direction.unsqueeze(1)).sum(2) / direction.square().sum(1, keepdim=True)
    assert abs(float(apart.mean())) < 0.3
    assert one.share == 3


def test_a_point_s_record_depends_on_no_other_point():
    one, more = made("study.dimensions=[5]"), made("study.dimensions=[7,5]", "study.epsilons=[8,2]")
    wanted = {"kind": "gaussian", "dimension": 5}
    assert measure(one, **wanted) == measure(more, **wanted)
    alike = {"kind": "noise", "epsilon": 8}
    assert measure(one, **alike) == measure(more, **alike)


@pytest.mark.heavy
def test_the_study_runs_from_the_command_line_and_is_the_same_with_two_workers(here, mirage):
    mirage(*TINY, "workers=1")
    out = Path("results/secagg_cohort")
    first = {name: (out / name).read_bytes() for name in ("figure.png", "figure.pdf", "data.csv", "table.md")}
    found = list(csv.DictReader((out / "data.csv").read_text().splitlines()))
    assert {row["kind"] for row in found} == {"gaussian", "membership", "noise", "pictures"}
    for row in found:
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    exact = [row for row in found if row["cohort"] == "1" and row["attack"] == "rows" and not row["noise_epsilon"]]
    assert {row["value"] for row in exact if row["metric"] == "psnr"} == {"100.0"}
    (here / "results").rename(here / "before")
    mirage(*TINY, "workers=2")
    assert {name: (out / name).read_bytes() for name in first} == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["study.cohorts=[0]"], "an entry of study.cohorts is 0"),
        (["study.cohorts=[]"], "study.cohorts is empty"),
        (["study.cohort=[3]"], "did you mean cohorts?"),
        (["study.fpr=0.001"], "study.fpr is 0.001, which 12 targets x 2 sums without the target cannot show"),
        (["study.epsilons=[0]"], "an entry of study.epsilons is 0"),
        (["study.lr=0"], "study.lr is 0"),
        (["study.examples=4000"], "study.examples is 4000, but a target is made of test examples"),
        (["study.picture_cohorts=[5000]"], "the pool has only 1438 examples"),
        (["model.hidden=[0]"], "a width in model.hidden is 0"),
        (["clients=7"], "secagg_cohort does not read clients"),
    ],
)
def test_a_bad_input_is_one_line_and_nothing_is_measured(arguments, says, here, mirage, capsys):
    with pytest.raises(SystemExit) as stopped:
        mirage(*TINY, *arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert says in printed
    assert not list(here.iterdir())


def test_the_attacker_s_exact_mean_is_the_bank_s():
    ready = made()
    study = ready.study
    assert isinstance(study, Cohort)
    one = world(study, ready.setting, model="initial", target="client", local_steps=1)
    assert torch.equal(one.exact.mean, one.bank.mean(0))
    assert np.isfinite(flat(one.start).numpy()).all()
    assert EXACT.startswith("public data")
