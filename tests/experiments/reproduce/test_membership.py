"""The membership reproductions: every number gets a verdict, orders hold on digits, published protocols build."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from experiments import record
from experiments.reproduce.__main__ import configuration, reproductions
from experiments.reproduce.base import Judged, Reproduction, verdicts
from experiments.reproduce.shokri import by_class
from experiments.studies.base import build
from experiments.studies.perform import perform

NAMES = ("fedmia", "lira", "lira_16_models", "rmia", "shokri")
FULL_AND_CPU = [(name, budget) for name in NAMES for budget in ("cpu", "full")]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


def kind_of(name: str) -> type[Reproduction]:
    return reproductions()[name]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Judged]]]:
    """The lines of each reproduction that was measured so far, by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("smoke"))
        yield Smoke()


class Smoke(dict[str, list[Judged]]):
    """Measures a smoke budget when its lines are first asked for."""

    def __missing__(self, name: str) -> list[Judged]:
        kind = kind_of(name)
        folder = perform(configuration(name, kind, "smoke", Path(), ["workers=1"]), [], "test")
        found = record.read(folder)
        study = build(found.manifest["config"]).study
        assert isinstance(study, Reproduction)
        self[name] = verdicts(study, found.points)
        assert (folder / "figure.png").stat().st_size > 10_000
        return self[name]


def ends(lines: list[Judged], what: str) -> tuple[float, float, float]:
    """Value and both ends of a line's interval."""
    (row,) = (line.row for line in lines if line.what == what and line.row is not None)
    return row["value"], row["low"], row["high"]


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_every_published_number_has_a_verdict_and_a_reason(name: str, measured: dict[str, list[Judged]]) -> None:
    told = [line for line in measured[name] if line.published is not None]
    assert [line.published for line in told] == list(kind_of(name).published)
    assert {line.verdict for line in told} <= {"scaled down", "not attempted"}
    assert all(line.in_full for line in told)
    assert any(line.row is not None for line in measured[name])


@pytest.mark.heavy
def test_online_beats_offline_and_both_beat_one_threshold_for_all(measured: dict[str, list[Judged]]) -> None:
    lines = measured["lira_16_models"]
    online, offline, threshold = (
        ends(lines, f"WRN28-2, {variant}: AUC")
        for variant in ("online, fixed variance", "offline, fixed variance", "global threshold")
    )
    assert online[1] > offline[0] > threshold[2]
    assert (
        ends(lines, "WRN28-2, online, fixed variance: TPR at FPR 0.1%")[1]
        > ends(lines, "WRN28-2, online: TPR at FPR 0.1%")[2]
    )


@pytest.mark.heavy
def test_the_loss_does_not_tell_which_client_held_a_picture_and_comparing_clients_does(
    measured: dict[str, list[Judged]],
) -> None:
    lines = measured["fedmia"]
    alone, series = ends(lines, "loss: AUC"), ends(lines, "loss series: AUC")
    assert alone[0] < 0.55
    assert series[1] > alone[2]
    for attack in ("FedMIA-I", "FedMIA-II"):
        assert ends(lines, f"{attack}: AUC")[1] > series[2]


@pytest.mark.heavy
def test_a_rate_that_the_non_members_cannot_show_is_not_attempted(measured: dict[str, list[Judged]]) -> None:
    (line,) = (line for line in measured["lira"] if line.what == "LiRA, TPR at FPR 0.001%")
    assert line.verdict == "not attempted"
    assert "100,000 non-members" in line.why
    (line,) = (line for line in measured["rmia"] if line.what == "4 references: TPR at FPR 0.01%")
    assert line.verdict == "not attempted"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that have the layout of CIFAR-10 and CIFAR-100, and one picture again and again."""
    folder = tmp_path_factory.mktemp("pictures")
    encoded = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(encoded, "png")
    for (data, label, classes), (part, count) in itertools.product(
        (("cifar10", "label", 10), ("cifar100", "fine_label", 100)), (("train", 1200), ("test", 200))
    ):
        image = pa.array([{"bytes": encoded.getvalue()}] * count)
        table = pa.table({"img": image, label: np.arange(count) % classes})
        pq.write_table(table, folder / f"{data}-{part}.parquet")
    return folder


@pytest.mark.parametrize(("name", "budget"), FULL_AND_CPU)
def test_the_other_budgets_compose_and_build(name: str, budget: str, pictures: Path) -> None:
    made = build(configuration(name, kind_of(name), budget, pictures))
    cells = [made.study.cell(point, made.setting) for point in made.points]  # type: ignore[attr-defined]
    assert len({cell.hash for cell in cells}) == len(cells)
    if budget == "full" and name.startswith("lira"):
        assert cells[0].config["augmentation"]["shift"] == 4
        assert cells[0].targets.replicas == {"lira": 256, "lira_16_models": 16}[name]


def test_the_cpu_budgets_of_three_tables_share_their_replicas(pictures: Path) -> None:
    hashes = set()
    for name in ("lira", "lira_16_models", "rmia"):
        made = build(configuration(name, kind_of(name), "cpu", pictures))
        hashes |= {made.study.cell(point, made.setting).targets.hash for point in made.points}  # type: ignore[attr-defined]
    assert len(hashes) == 1


@pytest.mark.parametrize("name", NAMES)
def test_published_numbers_are_named_once_and_only_they_are_skipped(name: str) -> None:
    kind = kind_of(name)
    named = [one.what for one in kind.published]
    assert len(set(named)) == len(named)
    assert set(kind.skipped) <= set(named)


def test_precision_and_recall_are_counted_in_each_class() -> None:
    members = np.array([[True, True, False, True, False]])
    called = np.array([[True, False, True, False, False]])
    precision, recall = by_class(called, members, np.array([0, 0, 0, 1, 1]))
    np.testing.assert_allclose(precision, [[0.5, 0.5]])  # nobody of class 1 was called a member
    np.testing.assert_allclose(recall, [[0.5, 0.0]])
