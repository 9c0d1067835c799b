"""Opacus's MNIST example: what DP-SGD leaves of the accuracy, and what its accountants say of the same run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from defenses.accounting import epsilon_pld, epsilon_rdp
from experiments.benchmarks.dp_utility import BATCH, DELTA, LEVELS, STEPS, one_client
from experiments.reproduce.base import MNIST, WHOLE, Budget, Published, Reproduction, over_seeds
from experiments.studies.base import Setting, Values, rows
from fl_core.checkpoint import read_json
from fl_core.errors import check_choice, check_number
from fl_core.federation import run
from fl_core.models import accuracy
from fl_core.sampling import SamplingEvent
from fl_core.seeds import seed

RATE = BATCH / 60_000
ACCOUNTING = "accounting"
BY_PLD = {"low": 5.44, "medium": 2.31, "high": 0.84}
"""At a grid of 1e-3; finer grids give less, since every grid rounds up."""
GRID = 0.010
"""How much: 0.004, 0.010 and 0.005 (measured with dp-accounting at 1e-3 and 1e-4)."""

LONG = "eight to 35 minutes a seed on one core; the budget full measures it"
EARLIER = "earlier"


def named(level: str) -> str:
    """What a level's accuracy is called."""
    found = LEVELS[level]
    return "accuracy without noise" if found.sigma is None else f"accuracy, σ={found.sigma:g}, {found.epochs} epochs"


def named_epsilon(level: str, accountant: str) -> str:
    """What a level's ε by an accountant is called."""
    return f"ε by {accountant}, σ={LEVELS[level].sigma:g}, {LEVELS[level].epochs} epochs"


REAL = (*MNIST, *WHOLE, "model=tutorial_cnn")


@dataclass(frozen=True, kw_only=True)
class OpacusMNIST(Reproduction):
    """The `levels` of noise with `seeds` seeds each, and what the accountants say of all of them.

    `epochs` is how many each is trained (None: as published) and `steps` are an epoch's, in Poisson batches of `batch`
    on average. `earlier` names a record of `experiments.benchmarks.dp_utility`, whose seeds count too where it is
    there: its runs are of the same protocol, and take hours.
    """

    levels: Sequence[str]
    seeds: int
    epochs: int | None = None
    batch: int = BATCH
    steps: int = STEPS
    earlier: str | None = None

    title = "DP-SGD on MNIST (Opacus's example)"
    source = (
        "Opacus, examples/mnist_README.md: accuracies are means of ten runs ± their deviation, which is the tolerance "
        "here. Its ε is stated as 6.86, 2.91 and 1.16, in some versions as 7.10, 3.01 and 1.19, which are those of "
        "batches of 256. ε by the privacy loss distribution is a check of our own, on a grid of 1e-3"
    )
    protocol = (
        "the CNN of 26,010 parameters, SGD without momentum, Poisson batches of 240 of 60,000 pictures on average, 250 "
        "steps an epoch, δ = 1e-5; as a federation of one client whose round is an epoch. Opacus converted Rényi DP to "
        "ε by Mironov (2017), Proposition 3; our accountant's conversion (Balle et al. 2020) is tighter, and stands "
        "beside it. Pixels enter as 2x − 1, not by MNIST's mean and deviation."
    )
    published = (
        *(
            Published(
                what=named(name), value=100 * level.published, unit="%", tolerance=100 * level.spread, digits=2
            )
            for name, level in LEVELS.items()
        ),
        *(
            Published(
                what=named_epsilon(name, "RDP"), value=level.published_rdp, unit="ε", tolerance=0.005, digits=2
            )
            for name, level in LEVELS.items() if level.published_rdp is not None
        ),
        *(
            Published(
                what=named_epsilon(name, "PLD"), value=value, unit="ε", computed=True, tolerance=GRID + 0.005, digits=2
            )
            for name, value in BY_PLD.items()
        ),
    )  # fmt: skip
    budgets: ClassVar = {
        "smoke": Budget(
            overrides=("data=digits", "model=cnn", "model.width=4"),
            options={"levels": ["none", "high"], "seeds": 1, "epochs": 1, "batch": 60, "steps": 20},
            differs="8x8 digits, a smaller CNN, one epoch of 20 steps",
        ),
        "cpu": Budget(
            overrides=REAL,
            options={"levels": ["none"], "seeds": 1, "earlier": "results/benchmarks/dp_utility.json"},
            differs="",
        ),
        "full": Budget(overrides=REAL, options={"levels": list(LEVELS), "seeds": 10}, differs=""),
    }

    reads: ClassVar[tuple[str, ...]] = ("data", "model")
    grid: ClassVar[tuple[str, ...]] = ("budget", "levels", "seeds")

    def __post_init__(self) -> None:
        super().__post_init__()
        for level in self.levels:
            check_choice("an entry of study.levels", level, LEVELS)
        for name in ("seeds", "batch", "steps"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        if self.epochs is not None:
            check_number("study.epochs", self.epochs, minimum=1, integer=True)

    def check(self, setting: Setting) -> None:
        setting.make("model", shape=setting.pool.shape, classes=len(setting.pool.classes))

    def points(self) -> list[Values]:
        seeds = [{"level": level, "seed": number} for number in range(self.seeds) for level in self.levels]
        before = [{"level": EARLIER, "seed": None}] if self.earlier else []
        return [*seeds, *before, {"level": ACCOUNTING, "seed": None}]

    def measure(self, point: Values, setting: Setting) -> Values:
        name = point["level"]
        if name == ACCOUNTING:
            return {"rows": accounted()}
        if name == EARLIER:
            return {"rows": before(Path(str(self.earlier)))}
        level, pool = LEVELS[name], setting.pool.to(setting.device)
        model = setting.make("model", shape=pool.shape, classes=len(pool.classes))
        number = seed(setting.seed, f"Opacus's example, {name}", point["seed"])
        federation = one_client(model, pool, level, number, self.epochs or level.epochs, self.batch, self.steps)
        found = 100 * float(accuracy(model, run(federation).model, setting.test.to(setting.device)))
        return {"rows": [{"metric": named(name), "value": found}]}

    def measured(self, records: Sequence[Values]) -> list[Values]:
        """The mean over seeds of each level's accuracy, and ε as it is: that is computed from the published σ."""
        found: list[Values] = []
        for level in LEVELS:
            each = rows(records, metric=named(level))
            if not each:
                found.append({"metric": named(level), "value": None, "samples": 0, "note": LONG})
                continue
            mean = over_seeds(named(level), [row["value"] for row in each])
            revisions = [row["revision"] for row in each if "revision" in row]
            if revisions:
                made = ", ".join(sorted(set(revisions)))
                mean["note"] += f", {len(revisions)} of them of {self.earlier} (revision {made})"
            found.append(mean)
        return found + rows(records, level=ACCOUNTING)


def before(file: Path) -> list[Values]:
    """The accuracies of whole runs in a record of the benchmark, each with its revision; none where there is no such
    file."""
    if not file.exists():
        return []
    record = read_json(file)
    return [
        {"metric": named(made["level"]), "value": 100 * made["accuracy"], "revision": record["revision"]}
        for made in record["runs"]
        if made["epochs"] == LEVELS[made["level"]].epochs
    ]


def accounted() -> list[Values]:
    """ε of each noisy level as published: Opacus's older conversion, ours of the same Rényi DP, and PLD."""
    found: list[Values] = []
    for name, level in LEVELS.items():
        if level.sigma is None:
            continue
        event = [SamplingEvent(sampler="poisson", rate=RATE, steps=level.epochs * STEPS)]
        values = {
            named_epsilon(name, "RDP"): epsilon_mironov(level.sigma, RATE, level.epochs * STEPS, DELTA),
            named_epsilon(name, "PLD"): epsilon_pld(level.sigma, event, DELTA),
            named_epsilon(name, "RDP, tighter conversion"): epsilon_rdp(level.sigma, event, DELTA),
        }
        found += [
            {"metric": metric, "value": value, "note": "computed", "as_published": True}
            for metric, value in values.items()
        ]
    return found


def epsilon_mironov(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """ε at `delta` of Poisson-sampled Gaussian steps: the least ρ(α) + log(1/δ)/(α − 1) over Opacus's orders α.

    Source: Mironov 2017, "Rényi Differential Privacy", Proposition 3.
    """
    from opacus.accountants import RDPAccountant  # here, because importing Opacus takes seconds
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = np.array(RDPAccountant.DEFAULT_ALPHAS)
    rho = np.array(compute_rdp(q=rate, noise_multiplier=noise_multiplier, steps=steps, orders=orders.tolist()))
    return float((rho + math.log(1 / delta) / (orders - 1)).min())
