"""Aerni, Zhang and Tramèr 2024: heuristics against DP-SGD of the same accuracy, on the most exposed examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.membership.lira import lira_scores
from attacks.membership.signals import scaled_confidence
from attacks.metrics import bootstrap_over_replicas, tpr_at_fpr
from defenses.base import Defense
from defenses.clip import Clip
from defenses.dp_sgd import DPSGD
from defenses.heuristics import KBit, Pruning, RandomNoise, TopK
from defenses.mixup import Mixup
from defenses.statements import PrivacyStatement
from experiments.reproduce.base import CIFAR10, MNIST, WHOLE, Budget, Published, Reproduction
from experiments.studies.base import Setting, Values
from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import InputError, check_choice, check_number
from fl_core.federation import Federation, federate, run
from fl_core.models import accuracy, logits
from fl_core.partition import plant_canaries
from fl_core.sampling import Poisson
from fl_core.seeds import seed

HEURISTICS: Mapping[str, Defense] = {
    "pruning": Pruning(share=0.9),
    "top_k": TopK(keep=0.01),
    "k_bit": KBit(bits=3),
    "random_noise": RandomNoise(std=0.003),
    "clip": Clip(unit="example", clip_norm=1.0),
    "mixup": Mixup(alpha=1.0),
}
"""Each at one setting, chosen beforehand."""

NONE, PRIVATE = "none", "DP-SGD"
CHOOSING, ACCURACY = "accuracy where it chooses", "accuracy"
COUNT = "heuristics that leak less than DP-SGD"
RESAMPLES = 300


def gap(heuristic: str) -> str:
    """What a heuristic's leakage beyond DP-SGD's is called."""
    return f"{heuristic}: TPR beyond DP-SGD's"


@dataclass(frozen=True, kw_only=True)
class MatchedUtility(Reproduction):
    """A federation of `clients` under each defence: `replicas` that are reported, and `selecting` others that are not.

    The others choose: of DP-SGD's settings (`noise_multipliers` by `dp_lrs`) the one with the most noise that is, on
    them and on half of the test pictures, no less accurate than the heuristic. The share `canaries` of the pool is
    mislabelled; LiRA is asked about these alone, with shadows that are defended as their target is.
    """

    replicas: int
    selecting: int
    noise_multipliers: Sequence[float]
    dp_lrs: Sequence[float]
    heuristics: Sequence[str] = tuple(HEURISTICS)
    rounds: int = 30
    clients: int = 2
    batch: int = 16
    lr: float = 0.3
    canaries: float = 0.1
    clip_norm: float = 1.0
    delta: float = 1e-5
    fpr: float = 0.001

    title = "Heuristics against DP-SGD of the same accuracy (Aerni et al. 2024)"
    source = (
        "Aerni, Zhang and Tramèr 2024, “Evaluations of Machine Learning Privacy Defenses are Misleading”, abstract: of "
        "five heuristics none is competitive with DP-SGD that is tuned for utility, whose ε says nothing"
    )
    protocol = (
        "a model's membership leakage on its mislabelled examples, by LiRA with shadows of the same defence: TPR at an "
        "FPR of 0.1%; each heuristic beside the DP-SGD with the most noise that is at least as accurate. Here that "
        "setting is chosen on replicas and test pictures that are not reported, and the heuristics are those that act "
        "in a federation; the paper's five (HAMP, RelaxLoss, SELENA, DFKD, SSL) change how one model is trained. The "
        "rate of those without DP was chosen on another draw of pictures and another seed. A difference is of the same "
        "replicas, with a 95% interval over them."
    )
    published = (
        Published(what=COUNT, value=0, sense="at most", digits=0),
        *(Published(what=gap(name), value=0.0, unit="TPR", sense="at least", digits=3) for name in HEURISTICS),
    )
    budgets: ClassVar = {
        "smoke": Budget(
            overrides=("data=digits", "data.limit=300", "model=mlp", "model.hidden=[32]"),
            options={
                "replicas": 6, "selecting": 2, "noise_multipliers": [0.1, 1.0], "dp_lrs": [0.5],
                "heuristics": ["pruning", "mixup"], "rounds": 5, "fpr": 0.05,
            },
            differs="8x8 digits, a perceptron, six models, FPR of 5%",
        ),
        "cpu": Budget(
            overrides=(
                *MNIST, "data.limit=1000", "data.test_limit=4000", "model=mlp",
                "model.hidden=[64]",
            ),
            options={
                "replicas": 44, "selecting": 8, "noise_multipliers": [0.05, 0.1, 0.2, 0.4, 0.8], "dp_lrs": [0.1, 0.3],
                "rounds": 20, "lr": 0.03,
            },
            differs="1000 MNIST pictures of which half are trained on, a perceptron, 44 models, two clients",
        ),
        "full": Budget(
            overrides=(
                *CIFAR10, *WHOLE, "model=wrn16_4",
            ),
            options={
                "replicas": 64, "selecting": 4, "noise_multipliers": [0.1, 0.2, 0.4, 0.8], "dp_lrs": [1.0, 2.0, 4.0],
                "rounds": 100, "batch": 128, "lr": 0.1, "canaries": 0.01,
            },
            differs="heuristics that act in a federation, of two clients",
        ),
    }  # fmt: skip

    reads: ClassVar[tuple[str, ...]] = ("data", "model")
    grid: ClassVar[tuple[str, ...]] = ("budget", "noise_multipliers", "dp_lrs", "lr", "heuristics", "fpr")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.heuristics:
            check_choice("an entry of study.heuristics", name, HEURISTICS)
        for noise in self.noise_multipliers:
            check_number("an entry of study.noise_multipliers", noise, above=0)
        for lr in self.dp_lrs:
            check_number("an entry of study.dp_lrs", lr, above=0)
        check_number("study.replicas", self.replicas, minimum=4, integer=True)
        check_number("study.selecting", self.selecting, minimum=1, integer=True)

    def check(self, setting: Setting) -> None:
        rows = round(self.canaries * len(setting.pool)) * self.replicas / 2
        if self.fpr * rows < 2:
            raise InputError(
                f"an FPR of {self.fpr:g} needs {2 / self.fpr:.0f} canaries outside their models, and about {rows:.0f} "
                "are; raise study.replicas or study.canaries"
            )
        for point in self.points():
            self.federation(point, setting)

    def points(self) -> list[Values]:
        plain = [{"defence": name, "noise_multiplier": None, "lr": self.lr} for name in (NONE, *self.heuristics)]
        private = [
            {"defence": PRIVATE, "noise_multiplier": float(noise), "lr": float(lr)}
            for noise in self.noise_multipliers
            for lr in self.dp_lrs
        ]
        return plain + private

    def federation(self, point: Values, setting: Setting) -> Federation:
        """The replicas under a defence; their coins, canaries and first weights are the same under all."""
        run_seed = seed(setting.seed, "matched utility")
        data, _ = plant_canaries(setting.pool, self.canaries, run_seed)
        return federate(
            setting.make("model", shape=data.shape, classes=len(data.classes)),
            data.to(setting.device),
            clients=self.clients,
            rounds=self.rounds,
            replicas=self.replicas + self.selecting,
            membership=0.5,
            run=run_seed,
            algorithm=FedAvg(sampler=Poisson(batch_size=self.batch), lr=point["lr"]),
            defense=self.defense(point),
            backend="vmap",
        )

    def defense(self, point: Values) -> Defense:
        """What a point is about."""
        name, noise = point["defence"], point["noise_multiplier"]
        if name == PRIVATE:
            return DPSGD(delta=self.delta, clip_norm=self.clip_norm, noise_multiplier=noise)
        return Defense() if name == NONE else HEURISTICS[name]

    def measure(self, point: Values, setting: Setting) -> Values:
        federation = self.federation(point, setting)
        _, canary = plant_canaries(setting.pool, self.canaries, federation.run)
        last, kept = run(federation).model, self.replicas
        test = setting.test.to(setting.device)
        half = len(test) // 2
        choosing, reported = test.select(torch.arange(half)), test.select(torch.arange(half, len(test)))
        part = {name: value[:kept] for name, value in last.items()}
        others = {name: value[kept:] for name, value in last.items()}
        asked = federation.data.select(torch.nonzero(canary).flatten())
        labels = asked.labels.cpu().numpy()
        seen = scaled_confidence(logits(federation.model, part, asked.images).numpy(), labels)
        members = federation.members[:kept, canary].numpy()
        scores = [
            lira_scores(seen[target], np.delete(seen, target, 0), np.delete(members, target, 0))
            for target in range(kept)
        ]
        stated = self.defense(point).guarantee("released_model", "example", federation.plan)
        epsilon = stated.epsilon if isinstance(stated, PrivacyStatement) else None
        return {
            "rows": [
                {"metric": name, "value": float(accuracy(federation.model, lanes, pictures).mean())}
                for name, lanes, pictures in ((CHOOSING, others, choosing), (ACCURACY, part, reported))
            ]
            + [
                {"metric": "epsilon", "value": epsilon if epsilon is not None and np.isfinite(epsilon) else None},
            ],
            "scores": np.round(scores, 4).tolist(),
            "members": members.astype(int).tolist(),
        }  # fmt: skip

    def measured(self, records: Sequence[Values]) -> list[Values]:
        """Each heuristic's TPR beyond that of the DP-SGD which was chosen for it, and each setting's own TPR."""
        settings = [Measured.of(record) for record in records]
        private = [one for one in settings if one.name == PRIVATE]
        found, less = [], 0
        for name in self.heuristics:
            (heuristic,) = (one for one in settings if one.name == name)
            chosen = matched(heuristic, private)
            value, low, high = difference(heuristic, chosen, self.fpr)
            less += high < 0
            says = "leaks more" if low > 0 else "leaks less" if high < 0 else "no difference shown"
            short = " (no setting of DP-SGD is as accurate)" if chosen.choosing < heuristic.choosing else ""
            beside = f"accuracy {heuristic.accuracy:.3f}, and {chosen.accuracy:.3f} of {chosen.words}{short}"
            found.append(
                {
                    "metric": gap(name), "value": value, "low": low, "high": high, "samples": self.replicas,
                    "note": f"{says}; {beside}",
                }
            )  # fmt: skip
        told = {"note": f"of {len(found)} that were tried; less is where the whole interval lies below zero"}
        return [{"metric": COUNT, "value": less, "samples": self.replicas, **told}, *found, *self.own(settings)]

    def own(self, settings: Sequence[Measured]) -> list[Values]:
        """The TPR of each setting by itself."""
        found = []
        for one in settings:
            tpr = bootstrap_over_replicas(one.scores, one.members, fpr=self.fpr, resamples=RESAMPLES).tpr
            found.append(
                {
                    "metric": f"{one.words}: TPR at FPR {self.fpr:g}", "value": tpr.value, "low": tpr.low,
                    "high": tpr.high, "samples": self.replicas, "note": f"accuracy {one.accuracy:.3f}",
                }
            )  # fmt: skip
        return found


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A setting: its accuracy on the replicas that choose and on those that are reported, and the latter's scores."""

    name: str
    noise: float
    words: str
    choosing: float
    accuracy: float
    scores: NDArray[np.float64]
    members: NDArray[np.bool_]

    @classmethod
    def of(cls, record: Values) -> Measured:
        """From a point of the record."""
        values: dict[str, Any] = {row["metric"]: row["value"] for row in record["rows"]}
        words = record["defence"]
        if record["noise_multiplier"] is not None:
            epsilon = values["epsilon"]
            told = "ε without a bound" if epsilon is None else f"ε = {epsilon:.0f}"
            words = f"DP-SGD with σ = {record['noise_multiplier']:g}, rate {record['lr']:g} ({told})"
        return cls(
            name=record["defence"],
            noise=record["noise_multiplier"] or 0.0,
            words=words,
            choosing=values[CHOOSING],
            accuracy=values[ACCURACY],
            scores=np.array(record["scores"]),
            members=np.array(record["members"], dtype=bool),
        )


def matched(heuristic: Measured, private: Sequence[Measured]) -> Measured:
    """Of those that are as accurate where the choice is made, the one with the most noise; else the most accurate."""
    able = [one for one in private if one.choosing >= heuristic.choosing]
    if not able:
        return max(private, key=lambda one: one.choosing)
    return max(able, key=lambda one: (one.noise, one.choosing))


def difference(first: Measured, second: Measured, fpr: float) -> tuple[float, float, float]:
    """The TPR of `first` beyond that of `second` at `fpr`, with the 95% percentile interval over replicas.

    Both are of the same replicas, which are drawn together.
    """
    if not np.array_equal(first.members, second.members):
        raise InputError("the replicas of two defences hold different examples; measure them with the same seed")

    def beyond(rows: NDArray[np.int64]) -> float:
        members = first.members[rows].ravel()
        one, other = (tpr_at_fpr(each.scores[rows].ravel(), members, fpr) for each in (first, second))
        return one - other

    replicas = len(first.scores)
    draw = np.random.default_rng(0)
    drawn = [beyond(draw.integers(replicas, size=replicas)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return beyond(np.arange(replicas)), float(low), float(high)
