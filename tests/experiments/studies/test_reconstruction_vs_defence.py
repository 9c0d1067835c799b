"""The study of reconstructions against defences: it finds what it must, bounds what is bounded, and draws it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from scipy.stats import norm

from experiments.studies.base import Performance, Values, build, rows
from experiments.studies.reconstructions import ATTACKS
from experiments.sweep import resolved
from experiments.table import page_markdown
from fl_core.errors import InputError

TINY = [
    "experiment=reconstruction_vs_defence",
    "study.victims=3",
    "study.cohort=2",
    "study.gallery=20",
    "study.iterations=120",
    "study.epsilons=[500]",
    "study.attacks=[iDLG,adaptive]",
    "study.pruned=[0.9]",
    "study.bits=[1]",
    "study.soteria=[0.4]",
]


def made(*more: str) -> Performance:
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        return build(resolved(compose("config", overrides=[*TINY, *more])))


@pytest.fixture(scope="module")
def ready() -> Performance:
    return made()


@pytest.fixture(scope="module")
def records(ready: Performance) -> list[Values]:
    return [point | ready.study.measure(point, ready.setting) for point in ready.points]


def value(records: list[Values], metric: str, attack: str = "iDLG", **point) -> float:
    (found,) = rows(records, metric=metric, attack=attack, by=attack, **point)
    return found["value"]


pytestmark = pytest.mark.heavy


def test_without_a_defence_pictures_and_labels_are_found(records: list[Values]):
    assert value(records, "psnr", defence="none") > 25
    assert value(records, "identified", defence="none") == 1
    assert value(records, "label_recall", defence="none") == 1


def test_labels_outlive_pictures(records: list[Values]):
    strongest = {"defence": "client DP", "epsilon": 500.0}
    assert value(records, "psnr", **strongest) < 12
    assert value(records, "label_recall", **strongest) == 1


def test_every_bounded_point_has_its_ceiling_and_is_not_above_it_beyond_chance(records: list[Values]):
    bounded = [
        row for row in rows(records, metric="identified") if row["epsilon"] is not None and row["value"] is not None
    ]
    assert {row["defence"] for row in bounded} == {"example DP", "client DP", "secure aggregation"}
    for row in bounded:
        if not str(row["by"]).startswith("blind"):
            assert row["low"] <= row["ceiling"] <= 1
    assert all(row["ceiling"] is None for row in rows(records, defence="pruning"))


def test_the_ceiling_at_a_small_epsilon_is_the_trade_off_at_the_gallery_s_chance():
    # Full batches, one release, replacing one example: a Gaussian mechanism of two clips over the noise.
    ready = made("study.epsilons=[1]", "study.attacks=[iDLG]", "study.iterations=1")
    point = next(one for one in ready.points if one["defence"] == "example DP")
    record = point | ready.study.measure(point, ready.setting)
    (row,) = rows([record], metric="identified", by="iDLG")
    mu = 2 / ready.study._scene(point, ready.setting)[0].defense.noise_multiplier
    assert row["ceiling"] == pytest.approx(norm.cdf(norm.ppf(1 / 20) + mu), abs=2e-3)


def test_every_attack_has_the_same_budget_and_its_blind_guesses_beside_it(records: list[Values]):
    for record in records:
        mine = {row["by"] for row in record["rows"]}
        assert {"blind (mean image)", "blind (class mean)", "blind (nearest public image)"} < mine
        (spent,) = [row for row in record["rows"] if row["metric"] == "evaluations"]
        assert spent["value"] == 2 * 120


def test_the_figure_and_the_table_show_every_attack_and_defence(
    ready: Performance, records: list[Values], tmp_path: Path
):
    table = page_markdown(ready.study.table(records))
    for word in ("iDLG", "adaptive", "pruning 0.9", "signs", "Soteria 0.4", "client DP ε = 500", "blind (mean image)"):
        assert word in table
    ready.study.figure(records, "a title").savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("study.attacks=[GLD]", "GLD"),
        ("study.epsilons=[501]", "500"),
        ("study.pruned=[1.0]", "study.pruned"),
        ("study.bits=[0]", "study.bits"),
        ("study.victims=1000", "raise data.limit"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_measured(wrong: str, said: str):
    with pytest.raises(InputError, match=said) as caught:
        made(wrong)
    assert "\n" not in str(caught.value)


def test_an_attack_is_listed_under_its_own_name():
    for name, attack in ATTACKS.items():
        assert attack(restarts=2, iterations=1).name == name
