"""What each defence leaves of a reconstruction: every attack against every defence, over ε where there is one.

Victims are clients with a few pictures that take one step from a model that they all were sent; under secure
aggregation a victim is a cohort of such clients, and what is seen is its mean update. Attackers are told the model, the
rate and how many pictures there are, no labels and no pictures; the adaptive one knows the defence as well. Each has
the same budget of gradients.

How a success is bounded: an attacker who has to name a victim's picture in a gallery of G is right by chance with κ =
1/G, and after an (ε, δ)-private release at most as often as the trade-off curve allows at κ (Hayes et al. 2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

from attacks.reconstruction.base import Reconstruction
from attacks.reconstruction.presets import prior_alone
from defenses.base import Defense
from defenses.clip import Clip
from defenses.composed import composed
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.dp_sgd import DPSGD
from defenses.heuristics import KBit, Pruning, Sign
from defenses.secagg.defense import SecAgg
from defenses.soteria import Soteria
from defenses.statements import NoGuarantee
from experiments.reconstruction_scores import Public, Truth, score
from experiments.studies import reconstruction_vs_defence_figure
from experiments.studies.base import Setting, Study, Values
from experiments.studies.clients import initial, trained
from experiments.studies.reconstruction_figure import aligned
from experiments.studies.reconstructions import ATTACKS, blank
from experiments.studies.tampering import as_plain
from experiments.studies.victims import Victims, drawn, median_length
from experiments.table import Page
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice, check_number

KEPT = (
    "psnr", "psnr_oracle", "psnr_gap", "psnr_median", "ssim", "identified", "label_recall", "exact", "failed",
    "recognised", "verified", "evaluations",
)  # fmt: skip
"""Of the rows that a score has, those that the study keeps."""

SHOWN = 8  # victims whose pictures are kept for the figure


@dataclass(frozen=True, kw_only=True)
class ReconstructionVsDefence(Study):
    """`attacks` on each of `victims`, whose clients hold `examples` pictures each, under every defence.

    `epsilons` are those of example DP, client DP and noise in shares under masks, all at `delta` for this one round;
    `pruned` the shares that pruning sets to zero, `bits` those of quantisation (1: signs), `soteria` the share of
    features that it hides. `cohort` clients are summed under secure aggregation. The model is trained for `epochs` on
    public pictures first (0: it is new). Clips are at the median length of an update on public pictures. A gallery has
    `gallery` pictures. `restarts` and `iterations` are every iterative attack's budget.
    """

    attacks: Sequence[str]
    victims: int
    examples: int
    cohort: int
    epsilons: Sequence[float]
    pruned: Sequence[float]
    bits: Sequence[int]
    soteria: Sequence[float]
    epochs: int
    lr: float
    delta: float
    gallery: int
    restarts: int
    iterations: int

    reads: ClassVar[tuple[str, ...]] = ("data", "model")
    grid: ClassVar[tuple[str, ...]] = ("attacks", "epsilons", "pruned", "bits", "soteria")

    def __post_init__(self) -> None:
        for name in self.attacks:
            check_choice("an entry of study.attacks", name, ATTACKS)
        for name, minimum in (
            ("victims", 2), ("examples", 1), ("cohort", 2), ("epochs", 0), ("gallery", 2), ("restarts", 1),
            ("iterations", 1),
        ):  # fmt: skip
            check_number(f"study.{name}", getattr(self, name), minimum=minimum, integer=True)
        for epsilon in self.epsilons:
            check_number("an entry of study.epsilons", epsilon, minimum=0.05, maximum=500)
        for share in (*self.pruned, *self.soteria):
            check_number("an entry of study.pruned or study.soteria", share, above=0, below=1)
        for bits in self.bits:
            check_number("an entry of study.bits", bits, minimum=1, maximum=16, integer=True)
        check_number("study.lr", self.lr, above=0)
        check_number("study.delta", self.delta, above=0, below=1)

    def check(self, setting: Setting) -> None:
        needed = self.victims * self.examples * self.cohort
        if len(setting.pool) < max(needed, self.gallery):
            raise InputError(
                f"{self.victims} cohorts of {self.cohort} clients hold {needed} pictures, a gallery {self.gallery}; "
                f"the pool has {len(setting.pool)}: lower them or raise data.limit"
            )
        setting.make("model", shape=setting.pool.shape, classes=len(setting.pool.classes))

    def points(self) -> list[Values]:
        defended: list[Values] = [
            {"defence": "none", "strength": None, "epsilon": None},
            {"defence": "clipping", "strength": None, "epsilon": None},
            *({"defence": "pruning", "strength": share, "epsilon": None} for share in self.pruned),
            *({"defence": "quantisation", "strength": bits, "epsilon": None} for bits in self.bits),
            *({"defence": "Soteria", "strength": share, "epsilon": None} for share in self.soteria),
            *({"defence": "example DP", "strength": None, "epsilon": float(one)} for one in self.epsilons),
            *({"defence": "client DP", "strength": None, "epsilon": float(one)} for one in self.epsilons),
            {"defence": "secure aggregation", "strength": None, "epsilon": None},
            *({"defence": "secure aggregation", "strength": None, "epsilon": float(one)} for one in self.epsilons),
        ]
        return [point | {"attack": attack} for point in defended for attack in self.attacks]

    def measure(self, point: Values, setting: Setting) -> Values:
        victims, public = self._scene(point, setting)
        attack = ATTACKS[point["attack"]](restarts=self.restarts, iterations=self.iterations)
        updates = victims.updates(attack.name)
        knowledge = victims.knowledge(public=public, adaptive=attack.name == "adaptive")
        told: dict[str, Any] = {"run": setting.seed, "device": setting.device}
        note = ""
        try:
            found = attack.run(updates, knowledge, **told)
        except InputError as error:  # an attack that cannot be mounted on such an update is a failure, and says why
            found, note = blank(victims.images), str(error)
        prior = prior_alone(restarts=1, iterations=min(self.iterations, 200)).run(updates, knowledge, **told)
        rows = score(
            found,
            Truth(images=victims.images, labels=victims.labels, others=self._others(victims)),
            Public(images=public.images, labels=public.labels),
            attack=attack.name,
            view=updates.view,
            knowledge=f"{attack.letter}: {knowledge.told()}",
            prior=prior,
        )
        return {
            "rows": [self._bounded(row, point, victims) for row in rows if row["metric"] in KEPT],
            "failure": note,
            "shown": self._shown(found, victims),
        }

    def _scene(self, point: Values, setting: Setting) -> tuple[Victims, ImageSet]:
        """The victims under the point's defence, and the attacker's pictures."""
        pool, public = setting.pool, setting.test
        model = setting.make("model", shape=pool.shape, classes=len(pool.classes))
        if self.epochs:
            start = trained(model, public, self.epochs, self.lr, setting.seed)
        else:
            start = initial(model, setting.seed, torch.device("cpu"))
        clients = self.cohort if point["defence"] == "secure aggregation" else 1
        rows = drawn(pool, self.victims, clients, self.examples, setting.seed)
        plain = Victims(model=model, start=start, pool=pool, rows=rows, lr=self.lr, run=setting.seed)
        defense = self._defense(point, median_length(plain, public))
        return dataclasses.replace(plain, defense=defense).prepared(), public

    def _defense(self, point: Values, length: float) -> Defense:
        """The point's; `length` is the median one of an update, and over the rate that of a gradient."""
        strength, epsilon = point["strength"], point["epsilon"]
        private: dict[str, Any] = {"epsilon": epsilon, "delta": self.delta, "clip_norm": length}
        match point["defence"]:
            case "none":
                return Defense()
            case "clipping":
                return Clip(unit="client", clip_norm=length)
            case "pruning":
                return Pruning(share=strength)
            case "quantisation":
                return Sign() if strength == 1 else KBit(bits=strength)
            case "Soteria":
                return Soteria(share=strength)
            case "example DP":
                return DPSGD(epsilon=epsilon, delta=self.delta, clip_norm=length / self.lr)
            case "client DP":
                return DPFedAvg(**private, noise_by="clients")
        masks = SecAgg(clip=8 * length)
        if epsilon is None:
            return masks
        shares = DPFedAvgShares(**private, bits=24)
        return composed({"dp": shares, "masks": SecAgg()})

    def _others(self, victims: Victims) -> torch.Tensor | None:
        """The pictures beside the victims' own in the gallery."""
        own = set(victims.rows.flatten().tolist())
        count = self.gallery - len(own)
        rest = [row for row in range(len(victims.pool)) if row not in own][: max(count, 0)]
        return victims.pool.images[rest] if rest else None

    def _bounded(self, row: Values, point: Values, victims: Victims) -> Values:
        """The row as a study's, with the ceiling on naming a picture where the defence has one."""
        kept = {name: row[name] for name in ("attack", "view", "metric", "value", "low", "high", "note")}
        kept["by"] = kept.pop("attack")  # a blind guess stands beside the point's attack
        ceiling = None
        if row["metric"] == "identified" and row["value"] is not None and point["epsilon"] is not None:
            stated = victims.promised(row["view"])
            size = max(self.gallery, victims.rows.numel())
            if not isinstance(stated, NoGuarantee) and stated.mechanism is not None:
                kappa = victims.rows.flatten(1).shape[1] / size
                ceiling = float(stated.mechanism.trade_off().tpr_at(kappa))
        return kept | {"ceiling": ceiling}

    @staticmethod
    def _shown(found: Reconstruction, victims: Victims) -> Values:
        truth = victims.images[:SHOWN, 0]
        answer = aligned(found, victims.images)[:: victims.images.shape[1]][:SHOWN]
        failed = ~torch.isfinite(answer).flatten(1).all(1)
        return {
            "truth": as_plain(truth),
            "found": [
                None if bad else one for bad, one in zip(failed.tolist(), as_plain(answer.nan_to_num(0.5)), strict=True)
            ],
        }

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return reconstruction_vs_defence_figure.draw(records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return reconstruction_vs_defence_figure.table(records)
