"""The study of malicious servers' reconstructions, tiny, on the digits: what it is to show."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from attacks.reconstruction.imprint import alone
from attacks.reconstruction.loki import alone_in_time
from experiments.studies.malicious_reconstruction_noticed import NOTICED
from experiments.studies.malicious_reconstruction_scene import ATTACKS, DENSE, LOKI, SPARSE
from experiments.table import page_markdown
from fl_core.errors import InputError
from tests.experiments.studies.test_malicious import made, measured, value

TINY = [
    "experiment=malicious_reconstruction",
    "study.goal_batch=16",
    "study.goal_clients=4",
    "study.goal_trials=4",
    "study.units=64",
    "study.clients=[1,4]",
    "study.batch=8",
    "study.loki_clients=[8]",
    "study.loki_cohort=4",
    "study.loki_batch=8",
    "study.loki_units=32",
    "study.step_units=64",
    "study.steps=[1,4]",
    "study.epsilons=[8,32768]",
    "study.trials=3",
    "study.benign=2",
    "study.hidden=16",
]


def test_the_goal_is_reached_in_double_and_single_precision_and_through_masks():
    rows = measured(TINY, part="goal")
    for kind in (DENSE, SPARSE):
        for way in ("one client, float64", "masked sum"):
            share = value(rows, metric="recovered", attack=kind, way=way)
            assert share == pytest.approx(alone("dense", 64, 16), abs=0.15)
        assert value(rows, metric="least PSNR alone", attack=kind, way="one client, float64") > 200
        assert value(rows, metric="least PSNR alone", attack=kind, way="one client, float32") > 50
        assert value(rows, metric="least PSNR alone", attack=kind, way="masked sum") > 40
    for one in rows:
        if one["metric"] == "recovered":
            assert one["chance_low"] < one["expected"] < one["chance_high"]
            assert one["inside"] == (one["chance_low"] <= one["value"] <= one["chance_high"])


def test_noise_at_a_small_epsilon_leaves_the_mean_image_and_at_a_huge_one_the_pictures():
    rows = measured(TINY, part="noise")
    mean = value(rows, attack="mean image", metric="psnr")
    assert value(rows, attack=SPARSE, metric="psnr", epsilon=8) == pytest.approx(mean, abs=1)
    assert value(rows, attack=SPARSE, metric="psnr", epsilon=32768) > mean + 2
    assert value(rows, attack=SPARSE, metric="psnr", epsilon=None) > 50
    assert value(rows, attack=SPARSE, metric="recognised", epsilon=8) == 0


def test_masks_hide_pictures_from_a_layer_but_not_from_loki():
    rows = measured(TINY, part="loki")
    assert value(rows, metric="recovered", attack=LOKI) == pytest.approx(alone("sparse", 32, 8), abs=0.15)
    assert value(rows, metric="recovered", attack=SPARSE) < 0.3
    masked = measured(TINY, part="loki, masked")
    assert value(masked, metric="recovered", attack=LOKI) == pytest.approx(alone("sparse", 32, 8), abs=0.15)
    assert value(masked, metric="psnr", attack=LOKI) > 50
    steps = measured(TINY, part="steps", steps=4)
    assert value(steps, metric="recovered", attack=LOKI) == pytest.approx(alone_in_time(64, 8, 4), abs=0.15)


@pytest.mark.parametrize("clients", [1, 4])
def test_isolation_gets_one_picture_exactly_whatever_the_crowd(clients: int):
    fishing = measured(TINY, part="attack", attack="fishing", clients=clients)
    assert value(fishing, metric="caught") == 1
    assert value(fishing, metric="cosine") > 0.999 > value(fishing, metric="honest cosine")
    flips = measured(TINY, part="attack", attack="label flip", clients=clients)
    assert value(flips, metric="recovered") > 0.2
    assert value(flips, metric="psnr") > 50
    deep = measured(TINY, part="attack", attack="fishing, CNN", clients=clients)
    assert value(deep, metric="cosine") > 0.999


def test_new_models_and_label_flips_are_not_noticed_and_layers_are():
    rows = measured(TINY, part="noticed")
    noticed = {name: value(rows, model=name, metric="noticed") for name in NOTICED}
    assert noticed["benign, new"] == noticed["label flip"] == 0
    assert all(noticed[name] == 1 for name in (DENSE, SPARSE, LOKI, "fishing"))
    for name in ("traps by sign", "traps by threshold"):
        assert value(rows, model=name, metric="added") == 0


def test_the_figure_and_the_table_show_every_part(tmp_path: Path):
    performance = made(TINY)
    records = [point | performance.study.measure(point, performance.setting) for point in performance.points]
    figure = performance.study.figure(records, "tiny")
    figure.savefig(tmp_path / "figure.png")
    plt.close(figure)
    assert [axes.get_title(loc="left")[:1] for axes in figure.axes] == list("abcdefg")
    table = page_markdown(performance.study.table(records))
    assert all(f"| {name} |" in table for name in (*ATTACKS, *NOTICED))
    assert "nan" not in table
    assert "None" not in table
    assert np.isfinite([row["value"] for one in records for row in one["rows"] if row["value"] is not None]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("study.goal_clients=3", "the pictures are divided among the clients"),
        ("study.loki_clients=[800]", "a cohort needs 6400 pictures"),
        ("study.units=4096", "4096 traps need as many public pictures"),
        ("study.epsilons=[0]", "study.epsilons is 0"),
        ("study.hidden=1", "study.hidden is 1"),
    ],
)
def test_bad_input_is_one_line(change: str, message: str):
    with pytest.raises(InputError, match=message):
        made([*TINY, change])
