"""The benchmark of fleets: times from known histories, verdicts that numbers carry, a page from the record alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import fleets
from experiments.benchmarks.fleets import COMPARED, FLEETS, History, Study, compare, summary, to_target
from experiments.benchmarks.fleets_figure import band, draw
from experiments.figures import encoded
from fl_core.errors import InputError

HISTORY = History(
    accuracy=[[0.5, 0.9, 0.8, 0.95], [0.5, 0.6, 0.7, 0.8]],
    ended=[[10.0, 25.0, 30.0, 50.0], [11.0, 22.0, 33.0, 44.0]],
    asked=[[10, 4, 4, 2], [10, 10, 10, 10]],
    lost=[{"before": 2, "after": 1, "late": 5}, {"before": 0, "after": 0, "late": 4}],
    staleness=[1.5, 0.5],
)


def arrivals(*seconds: float | None) -> list[dict[str, Any]]:
    """A fleet's replicas that reach the target after these seconds, 50 s a round of 10 turns."""
    return [
        {
            "seconds": one,
            "rounds": None if one is None else int(one // 50),
            "turns": None if one is None else int(one // 5),
            "lost": {"before": 0.04, "after": 0.03, "late": 0.125},
            "staleness": 0.0,
            "final_accuracy": 0.94,
            "last_second": 3000.0,
        }
        for one in seconds
    ]


def record(**changed: tuple[float | None, ...]) -> dict[str, Any]:
    """A study of six replicas in which every fleet takes as long as the synchronous one, but for those named."""
    plain = (1000.0, 1100.0, 1200.0, 1300.0, 1400.0, 1500.0)
    replicas = {name: arrivals(*changed.get(name.replace("-", "_"), plain)) for name in FLEETS}
    curves = {"accuracy": [[0.5, 0.9, 0.94]] * 6, "ended": [[50.0, 1000.0 + row, 3000.0] for row in range(6)]}
    return {
        "command": "python -m a.made.up",
        "revision": "abc",
        "wall_seconds": 12.3,
        "hardware": {"processor": "a processor"},
        "versions": {"torch": "2"},
        "study": {"replicas": 6, "target": 0.93, "learning_rates": [0.1, 0.4], "proximal_terms": [0.01]},
        "problem": {
            "clients": 100, "alpha": 0.5, "width": 8, "local_epochs": 5, "batch_size": 10, "client_turns": 600,
            "sent_parameters": 6_603_710,
        },
        "devices": {"example_seconds": 0.1},
        "seeds": {"reported": 0, "tuning": 1},
        "deadline": 45.5,
        "trials": [{"lr": 0.1, "diverged": False}, {"lr": 0.8, "diverged": True}],
        "fleets": [
            {
                "name": name, "words": words, "lr": 0.4, "mu": 0.01 if name == "fedprox" else 0.0, "curves": curves,
                "replicas": replicas[name], **summary(replicas[name]),
            }
            for name, words in FLEETS.items()
        ],
        "comparisons": [compare(name, against, replicas) for name, against in COMPARED],
    }  # fmt: skip


def test_seconds_rounds_and_turns_are_those_of_the_first_arrival() -> None:
    first, second = to_target(HISTORY, 0.9)
    assert (first["seconds"], first["rounds"], first["turns"]) == (25.0, 2, 14)
    assert first["lost"] == {"before": 0.1, "after": 0.05, "late": 0.25}
    assert (first["staleness"], first["final_accuracy"], first["last_second"]) == (1.5, 0.95, 50.0)
    assert (second["seconds"], second["rounds"], second["turns"]) == (None, None, None)
    assert second["lost"]["late"] == 0.1
    assert [one["seconds"] for one in to_target(HISTORY, 0.8)] == [25.0, 44.0]


def test_replicas_that_never_arrive_are_named_and_are_in_no_mean() -> None:
    found = summary(to_target(HISTORY, 0.9))
    assert found["never"] == [1]
    assert found["seconds"] == {"value": 25.0, "low": 25.0, "high": 25.0}
    assert found["final_accuracy"]["value"] == pytest.approx(0.875), "the final accuracy is everybody's"
    nobody = summary(to_target(HISTORY, 0.99))
    assert nobody["never"] == [0, 1]
    assert nobody["seconds"] is nobody["rounds"] is nobody["turns"] is None


@pytest.mark.parametrize(
    ("ours", "verdict", "factor"),
    [
        ((50, 55, 60, 65, 70, 75), "sooner", 2.0),
        ((200, 220, 240, 260, 280, 300), "later", 0.5),
        ((50, 55, 60, 260, 280, 300), "not told apart", 1.0),
        ((50, 55, 60, 65, 70, None), "a replica never arrived", None),
    ],
)
def test_verdict_is_that_of_the_ratios_paired_by_replica(
    ours: tuple[float | None, ...], verdict: str, factor: float | None
) -> None:
    replicas = {"fedbuff": arrivals(*ours), "synchronous": arrivals(100, 110, 120, 130, 140, 150)}
    found = compare("fedbuff", "synchronous", replicas)
    assert found["verdict"] == verdict
    assert (found["ratio"] and found["ratio"]["value"]) == (factor and pytest.approx(factor))
    few = {name: arrivals(*[one["seconds"] for one in each[:5]]) for name, each in replicas.items()}
    assert compare("fedbuff", "synchronous", few)["verdict"] == "too few replicas"


def test_page_says_what_the_record_holds() -> None:
    page = fleets.markdown(record(fedbuff=(500, 550, 600, 650, 700, 750), deadline=(900, None, 1000, 1100, 1200, None)))
    assert page.startswith("# Virtual seconds to 93% under six fleets\n")
    assert "`python -m a.made.up`" in page
    assert "1 of 2 trials diverged (at 0.8)" in page
    assert "chosen on seed 1" in page
    assert "reported is seed 0" in page
    assert "| FedBuff (10 busy, buffer 4) | 0.4 | 625 [" in page
    assert "| partial work (FedProx) | 0.4, μ 0.01 | 1250 [" in page
    assert "| deadline (late ones dropped) | 0.4 | 1050 [" in page
    assert "| 2 of 6: 1, 5 |" in page
    assert "| 4.0% / 3.0% / 12.5% | 0.00 | 0.940 [0.940, 0.940] |" in page
    assert "sooner: FedBuff (10 busy, buffer 4) 2.00 [2.00, 2.00]" in page
    assert "a replica never arrived: deadline (late ones dropped);" in page
    assert "Against deadline (late ones dropped): a replica never arrived: partial work (FedAvg)." in page
    assert "not told apart: partial work (FedProx) 1.00 [1.00, 1.00]." in page


def test_no_fleet_is_praised_where_all_are_alike() -> None:
    said = fleets.reading(record())
    assert "sooner" not in said
    assert "later" not in said
    assert said.count("1.00 [1.00, 1.00]") == len(COMPARED)


def test_curves_step_at_the_ends_of_rounds() -> None:
    curves = {"accuracy": [[0.1, 0.3, 0.5], [0.2, 0.4, 0.8]], "ended": [[10.0, 20.0, 60.0], [15.0, 40.0, 50.0]]}
    seconds, (low, middle, high) = band(curves)
    assert (seconds[0], seconds[-1]) == (15.0, 50.0), "from where all have played to where the first is done"
    assert (middle[0], middle[-1]) == (pytest.approx(0.15), pytest.approx(0.55))
    assert (low[-1], high[-1]) == (pytest.approx(0.425), pytest.approx(0.675))
    assert np.interp(30.0, seconds, middle) == pytest.approx(0.25), "the second replica is still in its first round"


def test_figure_is_the_same_bytes_again_and_counts_who_never_arrived() -> None:
    found = record(deadline=(900, None, 1000, 1100, 1200, None), fedbuff=(None,) * 6)
    for kind in ("png", "pdf"):
        assert encoded(draw(found), kind) == encoded(draw(found), kind)
    words = [text.get_text() for text in draw(found).axes[1].texts]
    assert words == ["2 of 6 never", "6 of 6 never"]


def test_every_fleet_has_the_same_devices_and_about_the_same_turns() -> None:
    budget = 200
    played = {name: fleets.federation(name, run=3, replicas=1, budget=budget, lr=0.1, deadline=40.0) for name in FLEETS}
    devices = [one.fleet.devices for one in played.values()]
    assert all(one == devices[0] for one in devices)
    assert all((one.owners == played["fedbuff"].owners).all() for one in played.values())
    for name, one in played.items():
        asked = sum(len(one.turn(0, round).asked) for round in range(one.rounds))
        # FedBuff's losses are chance: with 8% of 200 turns, 40 off would be ten standard deviations.
        assert abs(asked - budget) <= (40 if name == "fedbuff" else fleets.ASKED / 2), name
    slow, fast = played["synchronous"], played["over-selection"]
    assert [len(one.turn(0, 0).asked) for one in (slow, fast)] == [10, 13]
    assert played["deadline"].turn(0, 0).ended <= 40.0


def test_messages_take_the_seconds_of_the_large_model() -> None:
    model = fleets.small_model()
    bytes_sent = 4 * sum(one.numel() for one in model.parameters())
    assert bytes_sent / (fleets.phones(model).download * 1e6) == pytest.approx(4 * 6_603_710 / 5.3e6)


def test_tuning_takes_the_soonest_of_those_that_arrive_and_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = {0.1: 40.0, 0.2: 20.0, 0.4: None, 0.8: "training diverged in round 3: lower algorithm.lr (now 0.8)"}

    def play(played: Any) -> History:
        second = reached[played.algorithm.lr]
        if isinstance(second, str):
            raise InputError(second)
        second = 30.0 * played.algorithm.mu if hasattr(played.algorithm, "mu") else second
        accuracy = 0.0 if second is None else 1.0
        return History([[accuracy]], [[5.0 if second is None else second]], [[10]], [{"late": 0}], [0.0])

    monkeypatch.setattr(fleets, "play", play)
    study = Study(replicas=1, rounds=3, tuning_replicas=1, proximal_terms=(1.0, 0.1))
    deadline, chosen, trials = fleets.tune(study, budget=30)
    assert deadline > 0
    assert chosen["synchronous"] == {"lr": 0.2, "mu": 0.0}, "0.4 is sooner at its end, but never arrives"
    assert chosen["fedprox"] == {"lr": 0.2, "mu": 0.1}
    assert sum(trial["diverged"] for trial in trials) == 5
    reached |= dict.fromkeys((0.1, 0.2, 0.4), reached[0.8])
    with pytest.raises(InputError, match="every trial of synchronous diverges"):
        fleets.tune(study, budget=30)


@pytest.mark.heavy
def test_quick_run_writes_a_record_a_page_and_figures(tmp_path: Path) -> None:
    fleets.main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "fleets.json").read_text())
    assert found["command"] == "python -m experiments.benchmarks.fleets --replicas 2 --rounds 4 --quick"
    assert {one["name"]: one["played_rounds"] for one in found["fleets"]} == {
        "synchronous": 4, "over-selection": 3, "deadline": 4, "partial": 4, "fedprox": 4, "fedbuff": 9,
    }  # fmt: skip
    by_name = {one["name"]: one for one in found["fleets"]}
    assert by_name["fedbuff"]["staleness"] > 0
    assert by_name["over-selection"]["lost"]["late"] > 0
    assert by_name["synchronous"]["lost"]["late"] == 0
    assert (tmp_path / "fleets.md").read_text() == fleets.markdown(found), "the page comes from the file alone"
    for kind in ("png", "pdf"):
        assert (tmp_path / f"fleets.{kind}").read_bytes() == encoded(draw(found), kind)
    assert found["hardware"]["processor"]


@pytest.mark.parametrize(("option", "words"), [("--replicas", "--replicas is 0"), ("--rounds", "--rounds is 0")])
def test_what_cannot_be_played_is_one_line(option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        fleets.main([option, "0"])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
