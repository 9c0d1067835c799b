"""Results that nobody measured, to draw pages from: a sweep of any size, and a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.collect import CellResult, Exposed, Probed
from experiments.html.page import page
from experiments.record import Record
from experiments.scoring import Row
from fl_core.views import VIEWS

ATTACKS = {
    "LiRA": "released_model",
    "RMIA": "released_model",
    "FedMIA": "server",
    "blind (label only)": "released_model",
}
METRICS = ("auc", "tpr", "balanced_accuracy")
CLASSES = ("zero", "one", "two", "three", "four")
GROUPS = ("canary", "ordinary", *(f"class {name}" for name in CLASSES))
EPSILONS = (1.0, 8.0, 64.0, None)


def hash_of(number: int) -> str:
    return f"{number:016x}"


def cell(
    number: int,
    epsilon: float | None,
    variant: str = "",
    *,
    attacks: dict[str, str] = ATTACKS,
    groups: tuple[str, ...] = GROUPS,
    classes: tuple[str, ...] = CLASSES,
    bound: float = 0.4,
    blind: float = 0.5,
    pictures: int = 4,
) -> CellResult:
    """A cell that leaks the more the larger ε is; its run is `hash_of(number)`. `blind` is what blind attacks score."""
    draw = np.random.default_rng(number)
    told = "the defence, the training recipe, shadow replicas on the same distribution"
    reached = 0.95 if epsilon is None else 0.5 + 0.05 * np.log10(1 + epsilon)
    rows = []
    for attack, view in attacks.items():
        for group in groups:
            for metric in METRICS:
                value = (blind if attack.startswith("blind") else reached) + 0.01 * float(draw.random())
                rows.append(
                    Row(
                        question="membership", attack=attack, view=view, knowledge=told, group=group, metric=metric,
                        value=value, low=value - 0.02, high=value + 0.02, samples="24 replicas",
                        ceiling=None if epsilon is None else min(1.0, reached + 0.2),
                    )
                )  # fmt: skip
    low, high = reached - 0.01, reached + 0.01
    rows.append(
        Row(question="utility", attack="", view="", knowledge="", group="test", metric="accuracy", value=reached,
            low=low, high=high, samples="24 replicas")
    )  # fmt: skip
    told = "B: the update, the model"
    rows.append(
        Row(question="reconstruction", attack="inverting gradients", view="server", knowledge=told, group="victims",
            metric="psnr", value=20 * reached, low=20 * low, high=20 * high, samples="4 victims")
    )  # fmt: skip
    guarantees = {
        f"{view}/example": {
            "view": view, "unit": "example", "epsilon": epsilon,
            "promise": f"one example is protected with ε = {epsilon}." if epsilon else "one example has no guarantee.",
        }
        for view in VIEWS
    }  # fmt: skip
    ranked = [{"example": 10 * number + one, "gap": 9.0 - one} for one in range(pictures)]
    images = draw.random((pictures, 1, 8, 8))
    return CellResult(
        manifest={"hash": hash_of(number), "config": CONFIG},
        facts={
            "epsilon": epsilon, "defense": "dp_sgd", "delta": 1e-4, "fpr": 0.01, "examples": 100, "parameters": 10,
            "classes": list(classes), "noise_multiplier": None,
        },
        rows=tuple(rows),
        roc={},
        audits=(
            {"attack": "LiRA", "view": "released_model", "epsilon": bound, "ceiling": 3.0, "correct": 9, "guesses": 12,
             "confidence": 0.95, "targets": 12, "canaries": 24, "note": ""},
        ),
        vulnerable={attack: ranked for attack in attacks if not attack.startswith("blind")},
        account={"guarantees": guarantees, "protects": "example"},
        accuracy=((reached,),),
        probed=Probed(
            true=images,
            true_labels=tuple(one % len(classes) for one in range(pictures)),
            found=(images + 0.1 * draw.random(images.shape)).clip(0, 1),
            found_labels=tuple(0 for _ in range(pictures)),
            psnr=tuple(20.0 + one if one else None for one in range(pictures)),
        ),
        exposed=Exposed(
            images=images,
            labels=tuple(one % len(classes) for one in range(pictures)),
            planted=tuple(one == 0 for one in range(pictures)),
        ),
        variant=variant,
    )  # fmt: skip


CONFIG = {
    "clients": 5,
    "rounds": 20,
    "replicas": 24,
    "membership": 0.5,
    "canaries": 0.05,
    "about": None,
    "client_names": None,
    **{name: {"_target_": f"somewhere.{name}"} for name in ("model", "algorithm", "data", "partition")},
}


def sweep(cells: list[CellResult], title: str = "A made sweep", failed: tuple[dict[str, str], ...] = ()) -> Record:
    """A sweep's record."""
    told = [
        {"run": one.manifest["hash"], "epsilon": one.label(), "seconds": 1.5, "revision": "0" * 12,
         "hardware": {"processor": "a made one", "cores": 2}}
        for one in cells
    ]  # fmt: skip
    return Record(manifest=manifest(title) | {"cells": told, "failed": list(failed)}, cells=tuple(cells), points=())


def study(records: list[dict[str, Any]], title: str = "A made study") -> Record:
    """A study's record; what is not `rows` or pictures is the point."""
    points = [
        {
            "hash": hash_of(number), "seconds": 1.5, "revision": "0" * 12, "hardware": {"cores": 2},
            "point": {name: value for name, value in record.items() if name not in ("rows", "shown")},
        }
        for number, record in enumerate(records)
    ]  # fmt: skip
    config = {"study": {"_target_": "tests.experiments.studies.squares.Squares", "delta": 1e-5}}
    return Record(manifest=manifest(title) | {"points": points, "config": config}, cells=(), points=tuple(records))


def manifest(title: str) -> dict[str, Any]:
    return {
        "name": "made",
        "title": title,
        "command": "python -m experiments.run experiment=made",
        "seed": 0,
        "replicas": 24,
        "seconds": 9.5,
        "versions": {"torch": "2.11"},
        "config": CONFIG,
    }


def study_records() -> list[dict[str, Any]]:
    """Attacks on pictures behind defences of several strengths, with the blind guesses of each point."""
    draw = np.random.default_rng(0)
    truth = draw.random((3, 1, 8, 8))
    made = []
    for attack in ("DLG", "iDLG"):
        for defence, epsilon, psnr in (("none", None, 30.0), ("dp", 1.0, 6.0), ("dp", 64.0, 15.0)):
            rows = [
                {"by": by, "view": "server", "metric": metric, "value": scale * value, "low": scale * (value - 1),
                 "high": scale * (value + 1)}
                for by, value in ((attack, psnr), ("blind (mean image)", 11.0))
                for metric, scale in (("psnr", 1.0), ("ssim", 0.03))
            ]  # fmt: skip
            shown = {"truth": truth.tolist(), "found": (0.5 * truth + 0.5 * draw.random(truth.shape)).tolist()}
            made.append({"attack": attack, "defence": defence, "epsilon": epsilon, "rows": rows, "shown": shown})
    return made


def written(found: Record, folder: Path) -> Path:
    """The page of a record, in that folder."""
    path = folder / "report.html"
    path.write_text(page(found, "python -m experiments.report results/made"))
    return path
