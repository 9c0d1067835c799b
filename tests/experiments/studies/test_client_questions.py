"""The study of questions about clients: its federations are what it says, its points stand alone, it runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from attacks.clients.participation import ExpectedUpdate
from experiments.studies import client_questions_answers
from experiments.studies.base import Performance, build, rows
from experiments.studies.client_questions import ClientQuestions
from experiments.studies.client_questions_scene import Enrolled, dealt, play
from experiments.sweep import resolved
from fl_core.participation import Everyone
from fl_core.views import Server

TINY = [
    "experiment=client_questions",
    "model.hidden=[6]",
    "study.clients=[2,4]",
    "study.at=4",
    "study.epsilons=[8]",
    "study.examples=6",
    "study.batch_size=3",
    "study.rounds=2",
    "study.local_epochs=1",
    "study.shadows=8",
    "study.replicas=8",
    "study.worlds=12",
    "study.public=60",
    "study.resamples=100",
]


def made(*more: str) -> Performance:
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        return build(resolved(compose("config", overrides=[*TINY, *more])))


def measured(ready: Performance, **wanted: Any) -> list[dict[str, Any]]:
    return [
        point | ready.study.measure(point, ready.setting)
        for point in ready.points
        if all(point.get(name) == value for name, value in wanted.items())
    ]


def test_no_two_clients_hold_the_same_record_and_a_small_alpha_makes_them_differ():
    labels = torch.arange(10).repeat(100)
    kinds = {}
    for alpha in (0.05, 1000.0):
        rows_ = dealt(labels, 8, 40, alpha, 0)
        assert len(rows_.unique()) == 8 * 40
        kinds[alpha] = np.mean([len(labels[mine].unique()) for mine in rows_])
    assert kinds[0.05] < 5
    assert kinds[1000.0] > 9


def test_a_class_that_is_used_up_gives_its_share_to_the_others():
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    assert sorted(dealt(labels, 4, 2, 0.1, 3).flatten().tolist()) == list(range(8))


def test_a_client_enrols_by_a_fair_coin_of_its_own_for_all_rounds():
    drawn = [Enrolled().draw(50, 0, replica, 0) for replica in range(100)]
    # 5000 fair coins: 4 standard errors are .028 of the share.
    assert np.mean([len(one) for one in drawn]) / 50 == pytest.approx(0.5, abs=0.028)
    for replica in range(3):
        assert torch.equal(drawn[replica], Enrolled().draw(50, 0, replica, 7))
    assert Enrolled().event(50, 7).rounds == 7
    assert Enrolled().event(50, 7).kind == "fixed"


def test_each_replica_trains_on_its_own_records_and_on_no_others():
    ready = made()
    study, setting = ready.study, ready.setting
    assert isinstance(study, ClientQuestions)
    point = {"question": "source", "clients": 3, "epsilon": None, "unit": None}
    rows_ = torch.arange(2 * 3 * 6).view(2, 3, 6)
    there = torch.ones(2, 3, 6, dtype=torch.bool)
    there[1, 2, 5] = False
    one = play(study, setting, point, setting.pool, rows_, range(2), view=Server, participation=Everyone(), there=there)
    held = [[one.federation.held(row, client).tolist() for client in range(3)] for row in range(2)]
    assert held[0] == rows_[0].tolist()
    assert held[1] == [rows_[1, 0].tolist(), rows_[1, 1].tolist(), rows_[1, 2, :5].tolist()]


def test_the_truth_goes_to_the_judge_alone_and_the_rare_class_to_nobody_else(monkeypatch: pytest.MonkeyPatch):
    ready = made()
    study = ready.study
    assert isinstance(study, ClientQuestions)
    seen: list[Any] = []

    def spying(study: Any, setting: Any, point: Any, examples: Any, rows_: Any, replicas: Any, **more: Any) -> Any:
        seen.append((examples.labels[rows_], more["there"]))
        return play(study, setting, point, examples, rows_, replicas, **more)

    monkeypatch.setattr(client_questions_answers, "play", spying)
    (record,) = measured(ready, question="existence", clients=2, epsilon=None)
    (labels, there), _ = seen
    assert (labels[:, :, :-1] != study.rare).all()
    assert (labels[:, :, -1] == study.rare).all()
    assert there[:, :, :-1].all()
    assert not there[:, 1:, -1].any()
    exists = there[:, 0, -1]
    assert 0 < int(exists.sum()) < len(exists)
    assert {row["chance"] for row in record["rows"] if row["metric"] == "auc"} == {0.5}


def test_noise_of_the_server_covers_who_sees_models_and_not_the_server():
    (record,) = measured(made(), question="participation", epsilon=8.0)
    ceilings = {row["view"]: row["ceiling"] for row in record["rows"]}
    assert ceilings["released_model"] == ceilings["participant"]
    assert 0.5 < ceilings["participant"] < 1
    assert ceilings["secure_server"] is None
    assert ceilings["none"] is None


def test_an_example_s_guarantee_covers_an_example_against_every_view():
    (record,) = measured(made(), question="existence", epsilon=8.0)
    ceilings = {row["view"]: row["ceiling"] for row in record["rows"] if row["metric"] == "auc"}
    assert ceilings["server"] == ceilings["secure_server"]
    assert 0.5 < ceilings["server"] < 1


@pytest.mark.parametrize("question", ["participation", "source", "properties", "existence"])
def test_every_view_has_a_line_a_blind_one_beside_it_and_intervals_around_their_values(question: str):
    (record,) = measured(made(), question=question, clients=2, epsilon=None)
    for row in record["rows"]:
        assert row["low"] <= row["value"] <= row["high"]
    views = {row["view"] for row in record["rows"]}
    assert (
        views
        == {
            "participation": {"released_model", "participant", "secure_server", "none"},
            "source": {"server", "secure_server", "none"},
            "properties": {"server", "secure_server", "participant", "none"},
            "existence": {"server", "secure_server", "none"},
        }[question]
    )
    assert any(row["attack"].startswith("blind") for row in record["rows"])


def test_a_point_s_record_depends_on_no_other_point():
    wanted = {"question": "source", "clients": 2}
    assert measured(made(), **wanted) == measured(made("study.clients=[2]", "study.epsilons=[8,2]"), **wanted)


def test_a_client_among_two_is_found_by_the_sum():
    # Two clients, so the sum is one client's update for half of the replicas.
    ready = made("study.shadows=40", "study.replicas=40", "study.examples=12", "study.rounds=4", "study.lr=0.5")
    (record,) = measured(ready, question="participation", clients=2, epsilon=None)
    (row,) = rows([record], attack=ExpectedUpdate(reads="sum").name, knowledge="own records")
    assert row["value"] > 0.7


@pytest.mark.heavy
def test_the_study_runs_from_the_command_line_and_a_question_is_the_same_with_two_workers(here, mirage):
    few = [*TINY, "study.clients=[2]", "study.at=2"]
    mirage(*few, "workers=1")
    out = Path("results/client_questions")
    assert all((out / name).stat().st_size for name in ("figure.png", "figure.pdf", "table.md"))
    found = list(csv.DictReader((out / "data.csv").read_text().splitlines()))
    assert {row["question"] for row in found} == {"participation", "source", "properties", "existence"}
    (here / "results").rename(here / "before")
    mirage(*few, "study.questions=[source]", "workers=2")
    again = list(csv.DictReader((out / "data.csv").read_text().splitlines()))
    assert again == [row for row in found if row["question"] == "source"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["study.questions=[who]"], "an entry of study.questions is 'who'; allowed: existence, participation"),
        (["study.clients=[1]"], "an entry of study.clients (or study.at) is 1"),
        (["study.clients=[]"], "study.clients is empty"),
        (["study.epsilons=[]"], "study.epsilons is empty"),
        (["study.epsilons=[0]"], "an entry of study.epsilons is 0"),
        (["study.shadows=2"], "study.shadows is 2"),
        (["study.batch_size=9"], "study.batch_size is 9, but a client holds 6 examples"),
        (["study.examples=400"], "and the pool has 1438"),
        (["study.public=9"], "study.public is 9, too few to have every class"),
        (["study.public=900"], "study.public is 900, and there are 359 test examples"),
        (["study.rare=10"], "study.rare is 10; the data have classes 0 to 9"),
        (["study.rounds=0"], "study.rounds is 0"),
        (["study.client=3"], "did you mean clients?"),
        (["clients=7"], "client_questions does not read clients"),
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
