"""The study of differencing: what its regimes must show at any size, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from experiments.studies import differencing_rounds
from experiments.studies.base import Performance, build, rows
from experiments.studies.differencing import Differences
from experiments.sweep import resolved

TINY = [
    "experiment=secagg_differencing",
    "model.hidden=[6]",
    "study.rounds=[8,30]",
    "study.clients=12",
    "study.cohort=6",
    "study.batch=3",
    "study.examples=4",
    "study.public=40",
    "study.pretraining=1",
    "study.replicas=2",
    "study.fpr=0.1",
    "study.resamples=100",
]


def made(*more: str) -> Performance:
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        return build(resolved(compose("config", overrides=[*TINY, *more])))


def measured(ready: Performance, **wanted: Any) -> list[dict[str, Any]]:
    points = [point for point in ready.points if all(point[name] == value for name, value in wanted.items())]
    assert points
    return [point | ready.study.measure(point, ready.setting) for point in points]


def value(found: list[dict[str, Any]], rounds: int, metric: str, **wanted: Any) -> float:
    (row,) = rows(found, rounds=rounds, metric=metric, **wanted)
    return float(row["value"])


def test_a_model_that_stands_still_gives_every_update_away_unless_cohorts_are_batches():
    found = measured(made("study.regimes.still.schemes=[uniform,batches]"), regime="still")
    assert value(found, 30, "error", scheme="uniform") < 1e-3
    assert value(found, 30, "rank", scheme="uniform") == 12
    assert value(found, 8, "error", scheme="uniform") > 0.1
    assert value(found, 30, "rank", scheme="batches") == 4
    assert value(found, 30, "resolution", scheme="batches") == pytest.approx(1 / 3, abs=0.01)
    assert value(found, 30, "error", scheme="batches") > 0.5
    assert value(found, 30, "batch error", scheme="batches") < 1e-3
    masked, bare = (value(found, 30, "auc", scheme="uniform", source=one) for one in ("recovered", "unmasked"))
    assert masked == pytest.approx(bare, abs=0.01)


def test_a_model_that_moves_leaves_an_error_that_minibatches_enlarge():
    ready = made("study.regimes.batched.batch_size=2")
    slow, batched = (measured(ready, regime=name, scheme="uniform") for name in ("late", "batched"))
    assert value(slow, 30, "drift") < value(batched, 30, "drift")
    assert value(slow, 30, "error") < value(batched, 30, "error")


def test_noise_in_shares_is_scored_against_the_updates_without_it():
    ready = made()
    study = ready.study
    assert isinstance(study, Differences)
    point = next(point for point in ready.points if point["epsilon"] == 128 and point["scheme"] == "uniform")
    played = differencing_rounds.play(study, ready.setting, point, 0)
    defense = played.federation.defense
    clip = defense.clip_norm  # type: ignore[attr-defined]
    for round in (0, 29):
        sent = torch.cat([value[0].flatten(1) for value in played.seen.updates[round].values()], 1)
        clean = played.clean[round]
        assert clean.shape == sent.shape
        assert float(clean.norm(dim=1).max()) <= clip * (1 + 1e-5)
        noise = sent - clean
        share = defense.noise_multiplier * clip / 6**0.5  # type: ignore[attr-defined]
        assert float(noise.std()) == pytest.approx(share, rel=0.1)  # 6 x 466 draws: relative deviation .013
        assert float(noise.mean()) == pytest.approx(0, abs=0.1 * share)
    found = measured(ready, regime="noisy", epsilon=8, scheme="uniform")
    assert found[0]["noise_multiplier"] > 1
    assert 0.5 < found[0]["ceiling"] <= 1


def test_a_point_s_record_depends_on_no_other_point():
    few = {"schemes": ["uniform"], "epsilons": ["null"]}
    short = [f"study.regimes.{name}.{field}=[{','.join(value)}]" for name in ("late",) for field, value in few.items()]
    wanted = {"regime": "late", "scheme": "uniform"}
    assert measured(made(*short), **wanted) == measured(made(), **wanted)


@pytest.mark.heavy
def test_the_study_runs_from_the_command_line_and_is_the_same_with_two_workers(here, mirage):
    short = [*TINY, "study.rounds=[8,12]", "~study.regimes.batched", "~study.regimes.fast", "~study.regimes.late"]
    short += ["study.regimes.early.schemes=[uniform]", "study.regimes.noisy.epsilons=[8]"]
    mirage(*short, "workers=1")
    out = Path("results/secagg_differencing")
    first = {name: (out / name).read_bytes() for name in ("figure.png", "figure.pdf", "data.csv", "table.md")}
    found = list(csv.DictReader((out / "data.csv").read_text().splitlines()))
    assert {row["regime"] for row in found} == {"still", "early", "noisy"}
    (here / "results").rename(here / "before")
    mirage(*short, "workers=2")
    assert {name: (out / name).read_bytes() for name in first} == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["study.rounds=[]"], "study.rounds is empty"),
        (["study.rounds=[3]"], "an entry of study.rounds is 3"),
        (["study.cohort=7"], "participation.cohort is 7, no multiple of participation.batch, 3"),
        (["study.cohort=12"], "participation.cohort is 12, but there are only 11 clients beside"),
        (["study.regimes.late.model=old"], "study.regimes.late.model is 'old'; allowed: initial, trained"),
        (["study.regimes.late.server_lr=0"], "study.regimes.late.server_lr is 0"),
        (["study.regimes.late.schemes=[cyclic]"], "an entry of study.regimes.late.schemes is 'cyclic'"),
        (["study.regimes.noisy.batch_size=2"], "study.regimes.noisy has noise and a batch_size"),
        (["+study.regimes.late.rate=2"], "it must have model, server_lr, batch_size, schemes, epsilons, and no more"),
        (["study.examples=40"], "study.clients x 2 x study.examples is 960, but half of the pool"),
        (["study.fpr=0.001"], "study.fpr is 0.001, too small"),
        (["rounds=5"], "secagg_differencing does not read rounds"),
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
