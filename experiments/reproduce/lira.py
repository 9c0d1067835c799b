"""LiRA's Table I and how its parts add up, Table II (Carlini et al. 2022), on CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import MembershipKnowledge
from attacks.membership.lira import likelihood_ratios
from attacks.membership.observed import Signals, require_shadows
from experiments.cell import Cell
from experiments.reproduce.base import CIFAR10, JPEG, WHOLE, Budget, Published, Reproduction
from experiments.reproduce.membership import ALONE, READS, cell_of, leaks
from experiments.studies.base import Setting, Values

Array = NDArray[np.float64]

RATES = ("attack.fpr=0.001", "attack.fprs=[1e-5]")

CPU_POPULATION = (
    *ALONE, *CIFAR10, "data.limit=3200", "data.test_limit=1000", "model.width=16",
    "sampler=shuffled", "sampler.local_epochs=20", "sampler.batch_size=32", "algorithm.lr=0.01",
    "algorithm.momentum=0.9", "rounds=1", "replicas=64", "shard=8", "backend=loop", "signals.queries=4",
    "signals.public=1000",
)  # fmt: skip
"""64 models of a small CNN, with the epochs, batches and rate of experiment=lira_cifar.

The 16-model smoke test and RMIA ask the same replicas.
"""

FULL_POPULATION = (
    *ALONE, *CIFAR10, *WHOLE, "model=wrn28_2", "model.norm=batch",
    "sampler=shuffled", "sampler.local_epochs=1", "sampler.batch_size=256", "algorithm.lr=0.1",
    "algorithm.momentum=0.9", "algorithm.weight_decay=5e-4", "schedule@client_schedule=cosine", "rounds=100",
    "augmentation=flip_and_shift", "backend=loop", "signals.public=1000",
)  # fmt: skip

SMOKE_POPULATION = (
    *ALONE, "data=digits", "data.limit=300", "rounds=1", "sampler.local_epochs=40", "sampler.batch_size=16", "shard=16",
    "backend=vmap", "signals.queries=2", "attack.resamples=100",
)  # fmt: skip

CPU_DIFFERS = (
    f"{JPEG}, 1,600 of 3,200 pictures a model in place of 25,000 of 50,000, a CNN of two convolutions "
    "trained for 20 epochs without augmentation in place of a WRN28-2"
)

FULL_DIFFERS = (
    "an epoch is a round, so momentum starts anew in each; the rate falls along half a cosine to nothing and the last "
    "weights are attacked, where the authors' code stops at a fifth of the rate and averages the weights over steps"
)


@dataclass(frozen=True, kw_only=True)
class PerExampleThreshold:
    """Minus the loss, less the middle between its means over IN and OUT shadows (Sablayrolles et al. 2019, MALT)."""

    name: ClassVar[str] = "loss threshold, per example"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Scores [examples] in nats. Raises InputError without shadows."""
        shadows = require_shadows(self.name, signals, knowledge)
        inside, outside = shadows.loss.means()
        scores: Array = (inside[0] + outside[0]) / 2 - signals.loss[0, 0]
        return scores


@dataclass(frozen=True, kw_only=True)
class UnscaledLiRA:
    """LiRA's two Gaussians on the loss in place of the logit-scaled confidence; each example has its own."""

    name: ClassVar[str] = "LiRA on the loss"
    needs: ClassVar[type[Signals]] = Signals

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Log-likelihood ratios [examples] in nats. Raises InputError without shadows, IN and OUT."""
        shadows = require_shadows(self.name, signals, knowledge)
        scores: Array = likelihood_ratios(signals.loss[0], shadows.loss, False)[0]
        return scores


STEPS = {
    "loss alone": "loss",
    "offline: per-example thresholds": "calibrated",
    "offline: + logit scaling": "offline",
    "offline: + multiple queries": "offline_queries",
    "online: per-example thresholds": "per_example",
    "online: + Gaussian likelihood": "unscaled",
    "online: + logit scaling": "one_query",
    "online: + multiple queries": "online",
}
"""The attack of the cell that stands for each line of Table II."""


@dataclass(frozen=True, kw_only=True)
class LiRATables(Reproduction):
    """`fixed_variance`: one variance for all examples, which the paper advises under 64 shadows."""

    fixed_variance: bool
    every_query: bool = True

    reads: ClassVar[tuple[str, ...]] = READS
    title: ClassVar[str] = "LiRA: Tables I and II"
    source: ClassVar[str] = (
        'Carlini et al. 2022, "Membership Inference Attacks From First Principles" (IEEE S&P), Tables I and II'
    )
    protocol: ClassVar[str] = (
        "WRN28-2 on a random 25,000 of CIFAR-10's 50,000 training pictures, 256 shadows, augmentation by flips and "
        "shifts, every model in turn the target of the others."
    )
    published: ClassVar[tuple[Published, ...]] = (
        Published(what="LiRA, TPR at FPR 0.1%", value=8.4, unit="%", tolerance=0.05, digits=1),
        Published(what="LiRA, TPR at FPR 0.001%", value=2.2, unit="%", tolerance=0.05, digits=1),
        Published(what="LiRA, balanced accuracy", value=0.638, tolerance=0.0005),
        Published(what="LiRA, AUC", value=0.720, tolerance=0.0005),
        Published(what="CIFAR-100: LiRA, TPR at FPR 0.1%", value=27.6, unit="%", digits=1),
        Published(what="CIFAR-100: LiRA, TPR at FPR 0.001%", value=11.2, unit="%", digits=1),
        Published(what="CIFAR-100: LiRA, balanced accuracy", value=0.826),
        Published(what="CIFAR-100: LiRA, AUC", value=0.925),
        Published(what="loss alone, TPR at FPR 0.1%", value=0.0, unit="%", tolerance=0.05, digits=1, remembered=True),
        *(
            Published(what=f"{step}, TPR at FPR 0.1%", value=value, unit="%", tolerance=0.05, digits=1)
            for step, value in (
                ("offline: per-example thresholds", 1.3),
                ("offline: + logit scaling", 4.7),
                ("offline: + multiple queries", 7.1),
                ("online: per-example thresholds", 1.7),
                ("online: + Gaussian likelihood", 1.9),
                ("online: + logit scaling", 5.6),
                ("online: + multiple queries", 8.4),
            )
        ),
    )
    skipped: ClassVar[Mapping[str, str]] = {
        one.what: "no CIFAR-100 at hand" for one in published if one.what.startswith("CIFAR-100")
    }
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=(*SMOKE_POPULATION, *RATES, "replicas=8"),
            options={"fixed_variance": True},
            differs="scikit-learn's digits and 8 models",
        ),
        "cpu": Budget(
            overrides=(*CPU_POPULATION, *RATES),
            options={"fixed_variance": True, "every_query": False},
            differs=f"{CPU_DIFFERS}; 63 shadows, and one variance for all examples",
        ),
        "full": Budget(
            overrides=(*FULL_POPULATION, *RATES, "replicas=256", "signals.queries=18"),
            options={"fixed_variance": False},
            differs=FULL_DIFFERS,
        ),
    }

    def points(self) -> list[Values]:
        return [{"part": "CIFAR-10"}]

    def attacks(self) -> dict[str, Values]:
        """The attacks of both tables by name, each as the configuration has it."""
        lira = {"_target_": "attacks.membership.lira.LiRA", "fixed_variance": self.fixed_variance}
        return {
            "loss": {"_target_": "attacks.membership.threshold.LossThreshold"},
            "calibrated": {"_target_": "attacks.membership.calibration.DifficultyCalibration"},
            "per_example": {"_target_": f"{__name__}.PerExampleThreshold"},
            "unscaled": {"_target_": f"{__name__}.UnscaledLiRA"},
            "offline": lira | {"online": False},
            "offline_queries": lira | {"online": False, "every_query": True},
            "one_query": lira,
            "online": lira | {"every_query": True},
        }

    def cell(self, point: Values, setting: Setting) -> Cell:
        """The sweep's cell that trains the models and runs all attacks."""
        return cell_of(setting, self.attacks())

    def measure(self, point: Values, setting: Setting) -> Values:
        found = leaks(self.cell(point, setting))
        whole, without = ("online", "") if self.every_query else ("one_query", "; the models never saw such copies")
        told = "" if self.every_query else "one query an example: the models were trained without augmentation"
        queries = f"{setting.config['signals']['queries']} queries an example{without}"
        return {
            "rows": [
                found.row("LiRA, TPR at FPR 0.1%", whole, "0.001", percent=True, note=told),
                found.row("LiRA, TPR at FPR 0.001%", whole, "1e-5", percent=True, note=told),
                found.row("LiRA, balanced accuracy", whole, "balanced_accuracy", note=told),
                found.row("LiRA, AUC", whole, "auc", note=told),
                *(
                    found.row(
                        f"{step}, TPR at FPR 0.1%", attack, "0.001", percent=True,
                        note=queries if "queries" in step else "",
                    )
                    for step, attack in STEPS.items()
                ),
                found.accuracy(),
            ]
        }  # fmt: skip
