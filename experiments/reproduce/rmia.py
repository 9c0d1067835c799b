"""RMIA with one, two and four reference models, offline, on CIFAR-10 (Zarifzadeh et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from experiments.cell import Cell
from experiments.reproduce.base import Budget, Published, Reproduction
from experiments.reproduce.lira import CPU_DIFFERS, CPU_POPULATION, FULL_DIFFERS, FULL_POPULATION, SMOKE_POPULATION
from experiments.reproduce.membership import READS, cell_of, leaks
from experiments.studies.base import Setting, Values

REFERENCES = (1, 2, 4)


def _offline(references: int) -> str:
    return f"{references} reference{'s' * (references > 1)}"


@dataclass(frozen=True, kw_only=True)
class RMIAOffline(Reproduction):
    """RMIA with one, two and four references, none of them trained on the example."""

    reads: ClassVar[tuple[str, ...]] = READS
    title: ClassVar[str] = "RMIA, offline"
    source: ClassVar[str] = (
        'Zarifzadeh, Liu and Shokri 2024, "Low-Cost High-Power Membership Inference Attacks" (ICML), Tables 1 and 2; '
        "users' numbers: issue 151 of github.com/privacytrustlab/ml_privacy_meter"
    )
    protocol: ClassVar[str] = (
        "WRN28-2 on half of CIFAR-10's 50,000 training pictures; an example's references are models that were not "
        "trained on it; γ = 2, a = 0.3; the target's AUC and TPR at FPR 0.01%. An example is asked about once "
        "here; the paper's tables do not say how often, and the users asked twice."
    )
    published: ClassVar[tuple[Published, ...]] = (
        Published(what="1 reference: AUC", value=0.6864, tolerance=0.0043, digits=4, remembered=True),
        Published(what="2 references: AUC", value=0.7013, tolerance=0.0037, digits=4, remembered=True),
        Published(what="4 references: AUC", value=0.7102, tolerance=0.0037, digits=4),
        Published(what="4 references, as users report: AUC", value=0.6467, digits=4),
        Published(what="1 reference: TPR at FPR 0.01%", value=1.19, unit="%", digits=2, remembered=True),
        Published(what="2 references: TPR at FPR 0.01%", value=1.71, unit="%", digits=2, remembered=True),
        Published(what="4 references: TPR at FPR 0.01%", value=2.91, unit="%", digits=2),
        Published(what="4 references, as users report: TPR at FPR 0.01%", value=0.73, unit="%", digits=2),
    )
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=(*SMOKE_POPULATION, "replicas=12", "attack.fpr=1e-4"),
            differs="scikit-learn's digits and a CNN of two convolutions",
        ),
        "cpu": Budget(
            overrides=(*CPU_POPULATION, "attack.fpr=1e-4"), differs=f"{CPU_DIFFERS}; 64 targets, 1,000 public pictures"
        ),
        "full": Budget(
            overrides=(*FULL_POPULATION, "signals.public=10000", "replicas=16", "attack.fpr=1e-4"),
            differs=FULL_DIFFERS,
        ),
    }

    def points(self) -> list[Values]:
        return [{"part": "CIFAR-10"}]

    def cell(self, point: Values, setting: Setting) -> Cell:
        """The sweep's cell that trains the models and attacks with each number of references."""
        rmia = {"_target_": "attacks.membership.rmia.RMIA", "online": False, "gamma": 2.0, "offline_a": 0.3}
        return cell_of(setting, {f"rmia_{count}": rmia | {"references": count} for count in REFERENCES})

    def measure(self, point: Values, setting: Setting) -> Values:
        found = leaks(self.cell(point, setting))
        rows = []
        for count in REFERENCES:
            for reported in ("", ", as users report")[: 1 + (count == 4)]:
                for metric, kind in (("AUC", "auc"), ("TPR at FPR 0.01%", "1e-4")):
                    what = f"{_offline(count)}{reported}: {metric}"
                    rows.append(found.row(what, f"rmia_{count}", kind, percent=kind == "1e-4"))
        return {"rows": [*rows, found.accuracy()]}
