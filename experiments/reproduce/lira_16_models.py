"""LiRA's smoke test: 16 models on CIFAR-10, as its authors' code prints it, and a port of it to PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.cell import Cell
from experiments.configuration import altered
from experiments.reproduce.base import Budget, Published, Reproduction
from experiments.reproduce.lira import CPU_DIFFERS, CPU_POPULATION, FULL_DIFFERS, FULL_POPULATION, SMOKE_POPULATION
from experiments.reproduce.membership import READS, cell_of, leaks
from experiments.studies.base import Setting, Values

LIRA = "attacks.membership.lira.LiRA"
VARIANTS: dict[str, Values] = {
    "online, fixed variance": {"_target_": LIRA, "fixed_variance": True},
    "online": {"_target_": LIRA, "fixed_variance": False},
    "offline, fixed variance": {"_target_": LIRA, "online": False, "fixed_variance": True},
    "offline": {"_target_": LIRA, "online": False, "fixed_variance": False},
    "global threshold": {"_target_": "attacks.membership.threshold.LossThreshold"},
}
METRICS = {"AUC": "auc", "accuracy": "balanced_accuracy", "TPR at FPR 0.1%": "0.001"}

PRINTED: dict[str, dict[str, tuple[float, float, float]]] = {
    "WRN28-2": {
        "online, fixed variance": (0.6856, 0.6137, 5.67),
        "online": (0.6676, 0.6077, 1.69),
        "offline, fixed variance": (0.5549, 0.5537, 2.99),
        "offline": (0.5488, 0.5500, 1.30),
        "global threshold": (0.5921, 0.6044, 0.09),
    },
    "ResNet18": {
        "online, fixed variance": (0.6700, 0.6042, 4.64),
        "online": (0.6548, 0.6015, 0.68),
        "offline, fixed variance": (0.5270, 0.5380, 1.92),
        "offline": (0.5250, 0.5353, 0.41),
        "global threshold": (0.5948, 0.5869, 0.06),
    },
}
"""AUC, accuracy, and TPR at FPR 0.1% in percent; the first TPR is the middle of 5.41, a user's, and 5.93."""


def _published() -> tuple[Published, ...]:
    found = []
    for model, variants in PRINTED.items():
        for variant, values in variants.items():
            for (metric, kind), value in zip(METRICS.items(), values, strict=True):
                low_rate = kind == "0.001"
                middle = (model, variant, kind) == ("WRN28-2", "online, fixed variance", "0.001")
                found.append(
                    Published(
                        what=f"{model}, {variant}: {metric}", value=value, unit="%" if low_rate else "",
                        digits=2 if low_rate else 4, tolerance=0.26 if middle else 0.0,
                    )
                )  # fmt: skip
    return tuple(found)


MODELS: dict[str, Values] = {
    "WRN28-2": {},
    "ResNet18": {"_target_": "fl_core.residual.ResNet", "depth": 18, "width": 64, "norm": "batch"},
}
"""What each model changes of the configured one, which stands for the WRN28-2."""


@dataclass(frozen=True, kw_only=True)
class SixteenModels(Reproduction):
    """`models` are the published ones that are measured.

    An attacker has `references` shadows, the next ones after its target, and asks `every_query` or the first alone.
    """

    models: Sequence[str]
    every_query: bool
    references: int = 15

    reads: ClassVar[tuple[str, ...]] = READS
    title: ClassVar[str] = "LiRA with 16 models"
    source: ClassVar[str] = (
        "the output that stands in the README of research/mi_lira_2021 in github.com/tensorflow/privacy (WRN28-2) and "
        "of github.com/orientino/lira-pytorch (ResNet18)"
    )
    protocol: ClassVar[str] = (
        "16 models on random halves of CIFAR-10's 50,000 training pictures, 100 epochs with flips and shifts; 15 are "
        "the shadows of the last, asked with two queries. Here every model is in turn the target, and the accuracy is "
        "at the threshold that is best on the other targets where theirs is the best on the target itself."
    )
    published: ClassVar[tuple[Published, ...]] = _published()
    skipped: ClassVar[Mapping[str, str]] = {
        one.what: "16 ResNet18s take too long without a GPU; the budget full measures it"
        for one in published
        if one.what.startswith("ResNet18")
    }
    apart: ClassVar[Mapping[str, str]] = {
        one.what: "batches of 256 where the port has 128" for one in published if one.what.startswith("ResNet18")
    }
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=(*SMOKE_POPULATION, "replicas=16", "attack.fpr=0.001"),
            options={"models": ["WRN28-2"], "every_query": False},
            differs="scikit-learn's digits and a CNN of two convolutions",
        ),
        "cpu": Budget(
            overrides=(*CPU_POPULATION, "attack.fpr=0.001"),
            options={"models": ["WRN28-2"], "every_query": False},
            differs=f"{CPU_DIFFERS}; 64 targets with 15 shadows each, and one query",
        ),
        "full": Budget(
            overrides=(*FULL_POPULATION, "replicas=16", "signals.queries=2", "attack.fpr=0.001"),
            options={"models": ["WRN28-2", "ResNet18"], "every_query": True},
            differs=FULL_DIFFERS,
        ),
    }

    def points(self) -> list[Values]:
        return [{"model": model} for model in self.models]

    def cell(self, point: Values, setting: Setting) -> Cell:
        """The sweep's cell of a point's model, with its attacks."""
        more = {"every_query": True} if self.every_query else {}
        attacks = {
            f"attack_{number}": one | (more if one["_target_"] == LIRA else {})
            for number, one in enumerate(VARIANTS.values())
        }
        changed = altered(setting.config, {"model": MODELS[point["model"]]}, "study.models")
        asked = changed["attack"] | {"references": self.references}
        return cell_of(setting, attacks, model=changed["model"], attack=asked)

    def measure(self, point: Values, setting: Setting) -> Values:
        found = leaks(self.cell(point, setting))
        return {
            "rows": [
                *(
                    found.row(f"{point['model']}, {variant}: {metric}", f"attack_{at}", kind, percent=kind == "0.001")
                    for at, variant in enumerate(VARIANTS)
                    for metric, kind in METRICS.items()
                ),
                found.accuracy(),
            ]
        }
