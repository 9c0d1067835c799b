"""Replicas are trained once: what another question about them costs, and what an attacker may know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from attacks.membership.observed import Signals
from experiments import replicas, store, tasks
from experiments.cell import Cell, build
from experiments.execute import execute
from experiments.pieces import Gallery, audited, shadows_of
from experiments.sweep import resolved
from fl_core.checkpoint import load_tensors
from fl_core.errors import InputError
from fl_core.partition import draw_members, withhold

SMALL = [
    "data.limit=160",
    "data.test_limit=60",
    "rounds=2",
    "replicas=4",
    "shard=2",
    "canaries=0.1",
    "sampler.local_epochs=1",
    "attack.victims=0",
    "attack.resamples=100",
    "attack.membership={lira:{_target_:attacks.membership.lira.LiRA}}",
    "attack.fpr=0.1",
    "backend=vmap",
    "workers=1",
]


def cell(*overrides: str) -> Cell:
    with initialize_config_module("conf", version_base="1.3"):
        return build(resolved(compose("config", overrides=[*SMALL, *overrides])))


def stored() -> dict[str, dict]:
    runs = [json.loads(path.read_text()) for path in Path("results/runs").glob("*/manifest.json")]
    return {run["hash"]: run for run in runs}


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("replicas were trained again")

        monkeypatch.setattr(replicas, "train", refuse)

    return forbid


def test_another_attack_another_group_and_another_rate_train_nothing(here, no_training):
    execute(cell("signals.view=server"))
    before = stored()
    no_training()
    more = "+attack.membership.per_example={_target_:attacks.membership.lira.LiRA,fixed_variance:false}"
    execute(cell("signals.view=server", "attack.fpr=0.2", "about=1", more))
    after = stored()
    assert len(before) == 2
    assert len(after) == 3, "one more cell, on the same replicas"
    (population,) = {run["hash"] for run in before.values() if "view" in run}
    assert all(run["replicas"] == [population] for run in after.values() if "replicas" in run)


def test_the_signals_of_an_interrupted_shard_are_the_same_bytes(here, monkeypatch):
    made = cell("signals.view=server")
    whole, parts = Path("whole"), Path("parts")
    for folder in (whole, parts):
        folder.mkdir()
    tasks.train(made.targets.config, whole, 0)
    saved = replicas.save_tensors

    def stop(path: Path, *rest: object) -> None:
        saved(path, *rest)
        if path.name.endswith("checkpoint.safetensors"):
            raise KeyboardInterrupt

    monkeypatch.setattr(replicas, "save_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        tasks.train(made.targets.config, parts, 0)
    monkeypatch.setattr(replicas, "save_tensors", saved)
    assert list(parts.glob("train-0.seen-*"))
    tasks.train(made.targets.config, parts, 0)
    name = "train-0.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert not list(parts.glob("train-0.seen-*"))


def test_each_target_is_scored_by_the_others_and_never_by_itself(here):
    made = cell()
    assert [shadows_of(made, target) for target in range(4)] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    few = cell("attack.references=2")
    assert [shadows_of(few, target) for target in range(4)] == [[1, 2], [2, 3], [0, 3], [0, 1]]
    assert audited(made) == ([0, 1], [2, 3])


def test_complementary_pairs_split_every_example_and_leave_together(here):
    made = cell("design=pairs")
    members = made.targets.members
    assert torch.equal(members[0::2], ~members[1::2])
    assert [shadows_of(made, target) for target in range(4)] == [[2, 3], [2, 3], [0, 1], [0, 1]]
    with pytest.raises(InputError, match=r"design=pairs needs membership=0\.5"):
        cell("design=pairs", "membership=0.3")
    with pytest.raises(InputError, match="an even first_replica"):
        draw_members(range(1, 5), 10, 0.5, 0, design="pairs")


def test_shadows_that_differ_are_replicas_of_their_own_and_serve_all_targets(here):
    made = cell("attack.shadows={held:0.5,replicas:6}")
    execute(made)
    assert made.shadows is not None
    assert made.shadows.config["first_replica"] == 4
    assert shadows_of(made, 3) == list(range(6))
    held = made.shadows.members.any(0)
    assert 0.3 < held.float().mean() <= 0.5, "what the attacker does not hold, no shadow is trained on"
    assert made.targets.members.any(0).float().mean() > 0.8
    gallery = Gallery.of(made, store.RUNS)
    assert gallery.targets.replicas == 4
    assert gallery.shadows.replicas == 6
    assert len(stored()) == 3
    (folder,) = [one for one, run in stored().items() if "replicas" in run]
    rows = json.loads((store.RUNS / folder / "leakage.json").read_text())["rows"]
    assert {row["knowledge"].split("recipe, ")[1] for row in rows if row["attack"] == "LiRA"} == {
        "shadow replicas with held = 0.5, replicas = 6"
    }


def test_what_is_asked_of_shadows_cannot_differ_in_their_candidates(here):
    for changes in ("{seed:1}", "{canaries:0.2}", "{clients:3}", "{attack:{fpr:0.2}}"):
        with pytest.raises(InputError, match="which shadows share with the target"):
            cell(f"attack.shadows={changes}")
    with pytest.raises(InputError, match=r"a field of attack\.shadows"):
        cell("attack.shadows={heldd:0.5}")
    with pytest.raises(InputError, match="name what differs"):
        cell("attack.shadows=half")
    with pytest.raises(InputError, match=r"attack\.references"):
        cell("attack.references=4")


def test_withheld_examples_are_the_same_in_all_replicas_and_leave_no_client_empty():
    owners = torch.arange(100) % 4
    left = withhold(owners, 0.3, run=0)
    assert int((left >= 0).sum()) == 30
    assert torch.equal(left, withhold(owners, 0.3, run=0))
    assert torch.equal(withhold(owners, 1.0, run=0), owners)
    with pytest.raises(InputError, match="clients without an example; raise it"):
        withhold(owners, 0.01, run=0)


def test_an_attack_that_the_view_does_not_serve_is_an_error_and_a_note_where_asked(here):
    wide = "+attack.membership.wide={_target_:tests.experiments.test_replicas.Wide}"
    with pytest.raises(InputError, match=r"needs the view server; it was given released_model.*signals\.view=server"):
        cell(wide)
    masked = [wide, "signals.view=server", "defense=secagg"]
    with pytest.raises(InputError, match=r"secure aggregation hides each client's update; drop it with"):
        cell(*masked)
    execute(cell(*masked, "attack.refused=note"))
    (folder,) = [one for one, run in stored().items() if "replicas" in run]
    rows = json.loads((store.RUNS / folder / "leakage.json").read_text())["rows"]
    refused = [row for row in rows if row["attack"] == "wide"]
    assert refused
    assert all(row["value"] is None and "refused: wide needs the view server" in row["note"] for row in refused)


class Wide:
    """An attack that needs a server's view."""

    name = "wide"

    def __init__(self) -> None:
        from attacks.membership.observed import ServerSignals

        self.needs = ServerSignals


class Peeking:
    """An attack that scores by what it is shown besides signals, to see that it is shown no more than it may."""

    name = "peeking"
    needs = Signals

    def run(self, signals: Signals, knowledge) -> np.ndarray:
        assert type(signals) is Signals, "a wider recording is narrowed to what the attack needs"
        assert signals.replicas == 1
        assert type(knowledge.shadows.signals) is Signals
        return np.arange(len(signals.labels), dtype=float)


def test_an_attack_sees_its_own_view_even_where_a_wider_one_was_recorded(here):
    peek = "+attack.membership.peek={_target_:tests.experiments.test_replicas.Peeking}"
    execute(cell("signals.view=server", peek))
    (population,) = [one for one, run in stored().items() if "view" in run]
    tensors, _ = load_tensors(store.RUNS / population / "signals.safetensors")
    assert "signals.client_product" in tensors
