"""The study of canaries: what is planted is sent, what is released is known, and scores have their law."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from attacks.audit.canaries import flat
from defenses.base import Defense
from defenses.composed import Composed
from defenses.dp_fedavg import DPFedAvg
from experiments.studies import audit_canaries_figure
from experiments.studies.audit_canaries import (
    AUDITS,
    KINDS,
    MECHANISMS,
    AuditCanaries,
    Scene,
    _contributions,
    made,
    played,
)
from experiments.studies.base import Performance, build, rows
from experiments.studies.planted import Planted
from experiments.sweep import resolved
from experiments.table import page_markdown
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import MLP
from fl_core.errors import InputError
from fl_core.federation import run
from fl_core.models import variables_of
from fl_core.sampling import Shuffled
from fl_core.views import Recorder, Server
from tests.federations import federation, pictures, play

TINY = ["experiment=audit_canaries", "study.runs=40", "study.canaries=4", "study.each=6", "study.rounds=2"]


def ready(*more: str) -> Performance:
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        return build(resolved(compose("config", overrides=[*TINY, *more])))


def scene(mechanism: str, kind: str, epsilon: float = 4.0, *more: str) -> Scene:
    study = ready(*more)
    assert isinstance(study.study, AuditCanaries)
    return made(study.study, mechanism, kind, epsilon, study.setting)


# What is planted


def test_a_client_whose_only_example_is_planted_sends_the_crafted_update_at_the_clip():
    model, data = MLP((1, 4, 4), 3, hidden=(5,)), pictures()
    like = variables_of(model)
    crafted = {name: torch.zeros(1, *value.shape) for name, value in like.items()}
    crafted["head.weight"][0, 1, 2] = 50.0
    owners = torch.full((len(data),), 1)
    owners[0] = 0
    parts = (
        Planted(data.images[:1], crafted),
        DPFedAvg(delta=1e-5, clip_norm=0.3, noise_multiplier=1e-9),
    )
    settings = {
        "model": model,
        "data": data,
        "owners": owners,
        "sizes": torch.tensor([1, 23]),
        "algorithm": FedAvg(sampler=Shuffled(batch_size=None), lr=0.1),
    }
    _, seen = play(federation(defense=Composed(parts), **settings))
    sent = {name: value[0, 0] for name, value in seen.updates[0].items()}
    assert sent["head.weight"][1, 2] == pytest.approx(-0.3, abs=1e-6)
    assert sum(float(value.square().sum()) for value in sent.values()) == pytest.approx(0.09, abs=1e-6)
    # The other client trains as it would without the lie.
    _, honest = play(federation(defense=Composed(parts[1:]), **settings))
    for name, value in seen.updates[0].items():
        assert torch.allclose(value[0, 1], honest.updates[0][name][0, 1], atol=1e-6)


def test_a_planted_example_is_told_by_its_picture_alone():
    data = pictures()
    plan = Planted(data.images[[3, 5]], {"w": torch.tensor([[1.0, 0.0], [0.0, 2.0]])})
    own = {"w": torch.full((1, 4, 2), 9.0)}
    found = plan.each(own, (data.images[[5, 0, 3, 1]][None], data.labels[:4][None]), None)  # type: ignore[arg-type]
    assert found["w"][0].tolist() == [[0, 2], [9, 9], [1, 0], [9, 9]]
    assert isinstance(plan, Defense)
    assert plan.guarantee("server", "example", None).epsilon == math.inf  # type: ignore[arg-type]


# What is released


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_released_is_what_the_members_add_and_noise_of_the_stated_deviation(mechanism: str, kind: str):
    one = scene(mechanism, kind)
    recorder = Recorder(view=Server)
    last = run(one.federation, recorder)
    seen = recorder.observation()
    assert isinstance(seen, Server)
    models = [*seen.models.values(), last.model]
    inside = one.federation.members[:, one.ordinary :].float()
    for round in range(2):
        released = (
            flat(models[round + 1], 1) - flat(models[round], 1)
            if one.unit == "client"
            else flat({name: value[:, 0] for name, value in seen.updates[round].items()}, 1)
        )
        parts, scale = _contributions(one, models[round])
        canaries = parts[:, -inside.shape[1] :]
        added = parts[:, : -inside.shape[1]].sum(1) + torch.einsum("rc,rcd->rd", inside, canaries)
        noise = (released * scale - added).double() / one.noise
        # 5 standard errors of the deviation of so many standard normal numbers: fails once in two million seeds.
        assert abs(noise.std().item() - 1) < 5 / math.sqrt(2 * noise.numel())
        assert canaries.norm(dim=-1).max() <= 1 + 1e-5


@pytest.mark.heavy
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_scores_of_crafted_gradients_have_the_law_of_the_gaussian_mechanism(mechanism: str):
    one = scene(mechanism, "dirac", 4.0, "study.runs=200")
    seen = played(one)
    squared = 2 / one.noise**2  # μ² after two rounds at the clip
    signs = np.where(seen.members, 1, -1)
    # N(±μ²/2, μ²): 5 standard errors of 800 scores.
    assert np.mean(seen.scores * signs) == pytest.approx(squared / 2, abs=5 * math.sqrt(squared / 800))
    assert np.var(seen.scores - squared / 2 * signs) == pytest.approx(squared, rel=5 * math.sqrt(2 / 800))
    assert one.epsilon == pytest.approx(4.0, rel=1e-3)


@pytest.mark.heavy
def test_a_third_of_the_noise_shows_in_the_audit_of_a_crafted_gradient():
    honest = scene("dp_sgd", "dirac", 4.0, "study.runs=200")
    defense = honest.federation.defense
    assert isinstance(defense, Composed)
    weaker = dataclasses.replace(defense.parts[1], noise_multiplier=honest.noise / 3)
    broken = dataclasses.replace(
        honest, federation=dataclasses.replace(honest.federation, defense=Composed((defense.parts[0], weaker)))
    )
    study = ready().study
    assert isinstance(study, AuditCanaries)
    for name in ("two worlds, Gaussian", "one run, Gaussian"):
        assert AUDITS[name](study, played(broken)).epsilon > 4.0, name
        assert AUDITS[name](study, played(honest)).epsilon <= 4.0, name  # false alarm 5%, of a fixed seed


# The study


@pytest.fixture(scope="module")
def records() -> list[dict]:
    study = ready("study.epsilons=[4,16]", "study.kinds=[blank,dirac]", "study.mechanisms=[dp_sgd]")
    return [point | study.study.measure(point, study.setting) for point in study.points]


@pytest.mark.heavy
def test_every_point_has_a_bound_of_every_auditor_under_its_ceiling(records: list[dict]):
    found = rows(records, metric="epsilon")
    assert len(found) == 4 * len(AUDITS)
    for one in found:
        assert 0 <= one["value"] <= one["ceiling"] < math.inf
        assert one["accounted"] == pytest.approx(one["epsilon"], rel=1e-3)
        assert one["trials"] == (40 if one["auditor"].startswith("two") else 160)


@pytest.mark.heavy
def test_a_point_is_the_same_alone(records: list[dict]):
    study = ready("study.epsilons=[16]", "study.kinds=[dirac]", "study.mechanisms=[dp_sgd]")
    (point,) = study.points
    again = study.study.measure(point, study.setting)
    assert again["rows"] == next(one["rows"] for one in records if (one["kind"], one["epsilon"]) == ("dirac", 16.0))


@pytest.mark.heavy
def test_the_figure_and_the_table_show_every_point(records: list[dict]):
    study = ready("study.epsilons=[4,16]", "study.kinds=[blank,dirac]", "study.mechanisms=[dp_sgd]").study
    figure = study.figure(records, "a title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a  blank", "b  crafted gradient"]
    page = page_markdown(study.table(records))
    assert sum(line.startswith("| DP-SGD") for line in page.splitlines()) == len(records)
    assert set(audit_canaries_figure.LOOKS) == set(AUDITS)
    assert set(audit_canaries_figure.WORDS) == set(KINDS)


def test_unusable_studies_are_refused():
    with pytest.raises(InputError, match=r"study.kinds.*did you mean 'dirac'"):
        ready("study.kinds=[dirak]")
    with pytest.raises(InputError, match=r"study\.runs"):
        ready("study.runs=3")
    with pytest.raises(InputError, match=r"lower study\.clients"):
        ready("study.clients=1000")
