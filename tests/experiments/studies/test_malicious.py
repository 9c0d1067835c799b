"""The studies of malicious servers, tiny, on the digits: what each of them is to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from attacks.reconstruction.imprint import alone
from experiments.studies.base import Performance, Values, build
from experiments.sweep import resolved
from fl_core.errors import InputError

INCONSISTENCY = [
    "experiment=secagg_inconsistency",
    "study.clients=[3,6]",
    "study.batch_clients=[6]",
    "study.noisy_clients=4",
    "study.noise_multipliers=[0.01,1.0]",
    "study.trials=4",
    "study.hidden=24",
    "study.batch=4",
    "study.bins=32",
]
DROPOUT = [
    "experiment=secagg_dropout",
    "study.clients=6",
    "study.survivors=[1,3,5,6]",
    "study.trials=4",
    "study.hidden=24",
    "study.bits=24",
]
IMPRINT = [
    "experiment=secagg_imprint",
    "study.clients=[1,4]",
    "study.batch=16",
    "study.bins=[64]",
    "study.cohort=4",
    "study.cohort_batch=4",
    "study.units=64",
    "study.bits=[10,16,24]",
    "study.noise_multipliers=[0.0003,1.0]",
    "study.steps=[1,4]",
    "study.trials=4",
    "study.hidden=16",
]
ALL = {"secagg_inconsistency": INCONSISTENCY, "secagg_dropout": DROPOUT, "secagg_imprint": IMPRINT}


def made(overrides: Sequence[str]) -> Performance:
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        return build(resolved(compose("config", overrides=list(overrides))))


def measured(overrides: Sequence[str], **wanted: Any) -> list[Values]:
    """The rows of all points that have the `wanted` values, each with its point's."""
    study = made(overrides)
    points = [point for point in study.points if all(point.get(name) == value for name, value in wanted.items())]
    assert points
    return [point | row for point in points for row in study.study.measure(point, study.setting)["rows"]]


def value(rows: list[Values], **wanted: Any) -> float:
    (found,) = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    return found["value"]


def test_two_models_give_the_victim_away_whole_and_the_hash_ends_the_round():
    rows = measured(INCONSISTENCY, part="pictures", clients=6)
    two, one, each = "sum, two models", "sum, one model", "each update"
    assert value(rows, metric="cosine", server=two) > 0.9999
    assert value(rows, metric="cosine", server=one) < 0.8
    assert value(rows, metric="psnr", server=two) > 50
    assert value(rows, metric="psnr", server=two) == pytest.approx(value(rows, metric="psnr", server=each), abs=6)
    assert value(rows, metric="psnr", server=one) < 25
    assert value(rows, metric="label", server=two) == 1
    for variant, reason in (("honest-but-curious", "bad share"), ("malicious", "bad seal")):
        server = f"sum, two models, hashed ({variant})"
        assert value(rows, metric="aborted", server=server) == 1
        (note,) = [row["note"] for row in rows if row["server"] == server]
        assert f"6 clients refused ({reason})" in note


def test_a_crafted_model_for_the_victim_gives_away_what_the_crowd_would_hide():
    rows = measured(INCONSISTENCY, part="batches")
    assert value(rows, metric="recovered", server="sum, two models") == pytest.approx(alone("sparse", 32, 4), abs=0.2)
    assert value(rows, metric="recovered", server="sum, one model") < value(rows, server="sum, two models")


def test_dead_clients_noise_stays_in_the_sum():
    rows = measured(INCONSISTENCY, part="noise", noise_multiplier=1.0)
    for server in ("sum, two models", "sum, one model"):
        assert value(rows, metric="epsilon", server=server) == pytest.approx(4.7, abs=0.1)
        assert abs(value(rows, metric="cosine", server=server)) < 0.1
    assert value(rows, metric="epsilon", server="each update") > 9
    quiet = measured(INCONSISTENCY, part="noise", noise_multiplier=0.01)
    two, each = (value(quiet, metric="psnr", server=server) for server in ("sum, two models", "each update"))
    # Four shares instead of one are 6 dB, of which the prior evens out some.
    assert each - 10 < two < each - 1


def test_a_threshold_is_the_fewest_that_a_server_gets_and_noise_is_planned_for_them():
    rows = measured(DROPOUT, part="survivors")
    for server, least in {"no threshold": 1, "half": 3, "two thirds": 5, "two thirds, signed": 5}.items():
        for survivors in (1, 3, 5, 6):
            accepted = value(rows, metric="a sum", server=server, survivors=survivors)
            assert accepted == (survivors >= least)
    assert value(rows, metric="psnr", server="no noise", survivors=1) > 60
    assert value(rows, metric="psnr", server="no noise", survivors=6) < 25
    epsilon = {
        (row["server"], row["survivors"]): row["value"] for row in rows if row["metric"] == "epsilon" and row["value"]
    }
    assert 7.9 < epsilon["noise for all", 6] <= 8 < epsilon["noise for all", 5] < epsilon["noise for all", 1]
    assert 7.9 < epsilon["noise for the threshold", 5] <= 8 < epsilon["noise for the threshold", 3]
    assert epsilon["each update, noise for all", 6] == epsilon["noise for all", 1]
    for name in ("noise for all", "noise for the threshold"):
        for survivors in (1, 3, 5, 6):
            ceiling = value(rows, metric="auc ceiling", server=name, survivors=survivors)
            found = value(rows, metric="auc", server=name, survivors=survivors)
            assert found < ceiling + 0.15  # of four cohorts


@pytest.mark.parametrize(
    ("variant", "exact", "why"),
    [
        ("no threshold", 1, ""),
        ("half", 1, ""),
        ("two thirds", 0, "3 and 3 shares of two secrets that take 5"),
        ("two thirds, signed", 0, "6 clients refuse (inconsistent)"),
    ],
)
def test_two_stories_are_told_in_vain_above_half(variant: str, exact: int, why: str):
    (row,) = measured(DROPOUT, part="stories", variant=variant)
    assert row["value"] == exact
    assert why in row["note"]


def test_an_imprint_layer_recovers_the_closed_form_s_share_through_the_sum():
    rows = measured(IMPRINT, part="crowd")
    for clients in (1, 4):
        found = value(rows, metric="recovered", kind="dense", clients=clients)
        assert found == pytest.approx(alone("dense", 64, 16 * clients), abs=0.08)


def test_masks_fixed_point_costs_a_sparse_layer_less_than_a_dense_one():
    rows = measured(IMPRINT, part="bits")
    level = {(row["kind"], row["bits"]): row["value"] for row in rows if row["metric"] == "psnr"}
    for kind in ("dense", "sparse", "traps"):
        assert level[kind, 10] < level[kind, 16] < level[kind, 24]
    assert level["sparse", 16] > level["dense", 16] + 10
    # A step of 2 bits less is 6 dB a bit, until it is exact.
    assert level["dense", 24] - level["dense", 16] == pytest.approx(48, abs=8)


def test_noise_takes_the_pictures_and_the_server_that_sees_each_update_keeps_more():
    rows = measured(IMPRINT, part="noise")
    little, much = ({"noise_multiplier": multiplier} for multiplier in (0.0003, 1.0))
    assert value(rows, metric="recognised", kind="sparse", server="sum", **little) > 0.6
    for server in ("sum", "each update"):
        assert value(rows, metric="recognised", kind="sparse", server=server, **much) < 0.1
        assert value(rows, metric="psnr", kind="sparse", server=server, **much) == pytest.approx(
            value(rows, metric="psnr", kind="mean image", **much), abs=1
        )
    assert value(rows, metric="labels", kind="no layer", server="sum", **little) > 0.9
    epsilon = [value(rows, metric="epsilon", kind="sparse", server=server, **much) for server in ("sum", "each update")]
    assert epsilon[0] < epsilon[1]


def test_local_steps_fill_the_bins_and_identical_rows_can_be_seen():
    steps = measured(IMPRINT, part="steps")
    for kind in ("dense", "sparse", "sparse, gain 1"):
        once, often = (value(steps, metric="recovered", kind=kind, steps=steps_) for steps_ in (1, 4))
        assert once > 0.65
        assert often < once - 0.2
    rows = measured(IMPRINT, part="rows")
    cosine = {row["kind"]: row["value"] for row in rows if row["metric"] == "largest cosine"}
    assert min(cosine["dense"], cosine["sparse"]) > 0.999
    assert max(cosine["traps"], cosine["a new layer"]) < 0.8
    fired = {row["kind"]: row["value"] for row in rows if row["metric"] == "fired"}
    assert fired["traps"] == pytest.approx(1 / 64, rel=0.5)
    assert fired["a new layer"] > 0.2


@pytest.mark.heavy
@pytest.mark.parametrize("name", ALL)
def test_each_study_draws_its_figure_and_its_table(name: str, here: Path, mirage):
    mirage(*ALL[name], "workers=1", "study.trials=2")
    out = Path("results") / name
    for file in ("figure.png", "figure.pdf", "data.csv", "manifest.json"):
        assert (out / file).stat().st_size > 500
    table = (out / "table.md").read_text()
    assert "nan" not in table
    assert table.count("\n| ") > 20


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*INCONSISTENCY, "study.clients=[5000]"], "a cohort needs 5000 pictures"),
        ([*INCONSISTENCY, "study.noise_multipliers=[0]"], "study.noise_multipliers is 0"),
        ([*DROPOUT, "study.survivors=[7]"], "study.survivors is 7; it must be a whole number at least 1 and at most 6"),
        ([*DROPOUT, "data.limit=10"], "need 12 pictures, and the pool has 10"),
        ([*IMPRINT, "study.bins=[5000]"], "5000 bins need as many public pictures"),
        ([*IMPRINT, "study.steps=[200]"], "a cohort needs 3200 pictures"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(overrides: list[str], message: str):
    with pytest.raises(InputError) as caught:
        made(overrides)
    assert message in str(caught.value)
