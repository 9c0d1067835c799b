"""The benchmark of growth: exponents of known laws, points that are what they say, and a record that reads back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import growth
from experiments.benchmarks.growth import BY_NAME, LINES, MIB, assess, compare, exponent
from experiments.figures import save
from fl_core.errors import InputError


def made(name: str, value: int, **changed: Any) -> dict[str, Any]:
    """A point whose seconds and memory are in proportion to its value."""
    point = {
        "name": name, "value": value, "seconds": [0.9 * value, 1.0 * value, 1.2 * value], "warmup_seconds": 9.0,
        "memory": 2 * MIB * value, "data_bytes": 640, "parameters": 1000 * value, "lanes": 4, "tiles": 1,
        "lane_bytes": 3 * MIB // 2, "budget": 8 * MIB,
    }  # fmt: skip
    return point | changed


def record(quick: bool = False, **changed: Any) -> dict[str, Any]:
    lines = [
        assess(line, [made(line.name, value, **changed) for value in (line.quick if quick else line.values)])
        for line in LINES
    ]
    return {"repeats": 3, "quick": quick, "threads": 1, "lines": lines}


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 1.5])
def test_exponent_of_a_power_law_is_its_power(power: float) -> None:
    x = [10, 30, 100, 300]
    assert exponent(x, [7 * one**power for one in x]) == pytest.approx(power)


def test_exponent_is_the_upper_points_own() -> None:
    x = [1, 10, 100, 1000, 10_000]
    assert exponent(x, [5, 5, 100, 1000, 10_000]) == pytest.approx(1)
    # By hand: deviations of log10 x are -1, 0, 1 and log10 y is 0, 0, 3.
    assert exponent([1, 10, 100], [1, 1, 1000]) == pytest.approx(1.5)


def test_no_exponent_without_two_points_or_of_a_cost_that_was_not_seen() -> None:
    assert exponent([10], [1.0]) is None
    assert exponent([1, 10, 100], [0, 1, 2]) is None
    assert exponent([0.1, 1, 10, 100], [0, 1, 10, 100]) == pytest.approx(1)  # too small below the upper points alone


def test_seconds_are_by_replica_and_memory_of_a_large_model_by_lane() -> None:
    replicas, parameters = made("replicas-vmap", 4), made("parameters-vmap", 8)
    assert growth.seconds_of(replicas) == pytest.approx([0.9, 1.0, 1.2])
    assert growth.memory_of(replicas) == 8
    assert growth.x_of(replicas) == 4
    assert growth.seconds_of(parameters) == pytest.approx([7.2, 8.0, 9.6])
    assert growth.memory_of(parameters) == 4
    assert growth.x_of(parameters) == 8000


def test_verdict_follows_the_numbers() -> None:
    line = BY_NAME["cohort-whole"]
    found = assess(line, [made(line.name, value) for value in line.values])
    assert found["exponents"] == {"seconds": pytest.approx(1), "memory": pytest.approx(1)}
    assert found["verdict"].count("exponent 1.00 where 1 is expected: as expected") == 2
    assert "from 10 to 1,000 clients a round, seconds a round from 10 to 1e+03" in found["verdict"]

    slow = [made(line.name, value, seconds=[value**1.3], memory=5) for value in line.values]
    verdict = assess(line, slow)["verdict"]
    assert "exponent 1.30 where 1 is expected: steeper than expected" in verdict
    assert "exponent 0.00 where 1 is expected: less steep than expected" in verdict

    tiled = [made("cohort", value, tiles=10, memory=12 * MIB) for value in line.values]
    assert assess(BY_NAME["cohort"], tiled)["verdict"].endswith("at last 10 tiles, and 1.5 times the budget")


def test_too_few_points_and_no_expectation_are_not_judged() -> None:
    assert "expected" not in assess(BY_NAME["cohort"], [made("cohort", 100), made("cohort", 300)])["verdict"]
    clients = assess(BY_NAME["clients"], [made("clients", value) for value in (10, 100, 1000)])
    assert clients["verdict"].count("is expected") == 1
    assert "exponent 1.00 where 0 is expected: steeper" in clients["verdict"]


def test_lines_are_compared_at_their_last_point() -> None:
    first = assess(BY_NAME["replicas-loop"], [made("replicas-loop", 4), made("replicas-loop", 256)])
    last = made("replicas-vmap", 256, seconds=[64.0], memory=1024 * MIB)
    second = assess(BY_NAME["replicas-vmap"], [made("replicas-vmap", 4), last])
    assert compare(first, second) == "vmap against loop, at 256: 0.25 times the seconds, 2.0 times the memory"


LANES = {
    "clients": 10, "cohort": 100, "cohort-whole": 100, "replicas-loop": 5, "replicas-vmap": 5, "parameters-loop": 4,
    "parameters-vmap": 4,
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_a_point_is_the_federation_that_it_says(line: growth.Line) -> None:
    point = growth.play(line, line.quick[0], repeats=2)
    assert set(point) == set(made(line.name, 1))
    assert json.loads(json.dumps(point)) == point
    assert len(point["seconds"]) == 2
    assert min(point["seconds"]) > 0
    assert point["lanes"] == LANES[line.name]
    assert point["parameters"] == (6890 if line.panel == "parameters" else 1898)
    assert point["budget"] == growth.federation_of(line, line.quick[0], 1).memory


@pytest.mark.heavy
def test_a_small_budget_cuts_a_cohort_into_tiles() -> None:
    tiled, whole = (growth.play(BY_NAME[name], 300, repeats=1) for name in ("cohort", "cohort-whole"))
    assert tiled["lanes"] == whole["lanes"] == 300
    assert tiled["tiles"] == -(-300 // (tiled["budget"] // tiled["lane_bytes"])) > 1
    assert whole["tiles"] == 1


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a child's own peak")
def test_memory_of_a_point_is_not_the_peak_of_who_started_it() -> None:
    held = np.ones(700 * MIB, dtype=np.uint8)  # more than a process takes that imports torch
    point = growth.measure(BY_NAME["clients"], 10, repeats=1)
    assert held[-1] == 1
    assert 0 < point["memory"] < 100 * MIB


def test_every_point_is_measured_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []

    def measure(line: growth.Line, value: int, repeats: int) -> dict[str, Any]:
        calls.append((line.name, value, repeats))
        return made(line.name, value)

    monkeypatch.setattr(growth, "measure", measure)
    found = growth.measure_growth(3, quick=True)
    assert calls == [(line.name, value, 3) for line in LINES for value in line.quick]
    assert found == record(quick=True)
    assert "hardware" not in found
    calls.clear()
    assert growth.measure_growth(3, quick=False) == record()
    assert calls == [(line.name, value, 3) for line in LINES for value in line.values]
    with pytest.raises(InputError, match="--repeats is 0"):
        growth.measure_growth(0, quick=True)


def test_a_point_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"participation\.cohort is 1001"):
        growth.measure(BY_NAME["cohort"], 1001, repeats=1)


def test_table_has_a_row_for_every_point_and_every_verdict() -> None:
    found = record()
    text = growth.growth_markdown(found)
    assert text.startswith("## How the cost of a round grows\n")
    assert text.count("\n| ") == sum(len(line.values) for line in LINES) + 2 * len(growth.PANELS)
    assert "| vmap | 16 | 1 [0.9, 1.2] | 32.0 | 4 | 1 | 8,192 | 1,536 |" in text
    assert "| loop | 2,000 | 2 [1.8, 2.4] | 4.0 | 4 | 1 | 1,024 | 1,536 |" in text
    for line in found["lines"]:
        assert f"- {line['label']}: {line['verdict']}.\n" in text
    assert text.count(" against ") == 3
    assert "--quick" not in text
    assert "--quick" in growth.growth_markdown(record(quick=True))


@pytest.mark.parametrize("quick", [False, True])
def test_figure_is_the_same_bytes_again(tmp_path: Path, quick: bool) -> None:
    for again in ("a", "b"):
        save(growth.figures(record(quick))["growth"], tmp_path / again, "growth")
    for name in ("growth.png", "growth.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_figure_shows_every_point_and_leaves_out_memory_that_was_not_seen() -> None:
    from experiments.benchmarks.growth_figure import draw

    seen, unseen = draw(record()), draw(record(memory=0))
    left, right = seen.axes[:4], seen.axes[4:]
    assert [axes.get_xlabel() for axes in left] == [words.unit for words in growth.PANELS.values()]
    assert list(right[0].lines[0].get_ydata()) == [20, 200, 2000, 20_000]
    assert list(left[0].lines[0].get_ydata()) == [10, 100, 1000, 10_000]
    assert all(not len(axes.lines[0].get_ydata()) for axes in unseen.axes[4:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--point", "client:10"], "did you mean 'clients'?"),
        (["--point", "clients:ten"], "--point is 'clients:ten'; VALUE must be a whole number at least 1"),
        (["--point", "clients:0"], "--point is 'clients:0'"),
        (["--point", "cohort:2000"], "participation.cohort is 2000"),
        (["--repeats", "0"], "--repeats is 0"),
    ],
)
def test_what_cannot_be_played_is_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        growth.main(options)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_alone_it_writes_its_circumstances_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "measure", lambda line, value, _: made(line.name, value))
    growth.main(["--quick", "--repeats", "3", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "growth.json").read_text())
    assert found["command"] == "python -m experiments.benchmarks.growth --repeats 3 --quick"
    assert found["hardware"]["processor"]
    assert found["versions"]["python"] == sys.version.split()[0]
    text = (tmp_path / "growth.md").read_text()
    assert text.endswith(growth.growth_markdown(found))
    assert found["command"] in text
    names = {f"growth.{kind}" for kind in ("json", "md", "png", "pdf", "csv")}
    assert {path.name for path in tmp_path.iterdir()} == names
