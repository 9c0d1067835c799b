"""Steinke, Nasr and Jagielski 2023: a lower bound on the ε of one training run, from its many canaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks.audit.canaries import mislabelled, quiet_coordinates
from attacks.audit.one_run import audit_one_run, one_run_ceiling, one_run_epsilon
from attacks.membership.signals import loss, scaled_confidence
from attacks.metrics import auc
from defenses.base import Defense
from defenses.composed import Composed
from defenses.dp_sgd import DPSGD
from experiments.reproduce.base import CIFAR10, JPEG, WHOLE, Budget, Published, Reproduction
from experiments.studies.base import Setting, Values, rows
from experiments.studies.planted import BITS, CraftedGradients, numbered
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_number
from fl_core.federation import Federation, initial_state, run
from fl_core.models import ClassificationLosses, initial_parameters, logits, variables_of
from fl_core.optimizers import Tree
from fl_core.per_example import stacked_example_gradients
from fl_core.rules import Outer
from fl_core.sampling import Poisson
from fl_core.seeds import generator, seed

WHITE, BLACK = "ε̂ at ε = 4, white-box", "ε̂ at ε = 4, black-box"
VIEWS = {"white-box": WHITE, "black-box": BLACK}
FORMS: dict[str, tuple[float, int, float]] = {
    "most for 100 guesses": (3.49, 2, one_run_ceiling(100, 100)),
    "most for 1000 guesses": (5.81, 2, one_run_ceiling(1000, 1000)),
    "most for 10,000 guesses": (8.11, 2, one_run_ceiling(10_000, 10_000)),
    "150 of 200 right, 1000 canaries": (0.82, 2, one_run_epsilon(1000, 200, 150, 1e-5)),
    "180 of 200 right, 1000 canaries": (1.796, 3, one_run_epsilon(1000, 200, 180, 1e-5)),
}
"""Known values of the bound, computed elsewhere, to how many digits; and ours."""

REFERENCES, MODELS = 50, 3


@dataclass(frozen=True, kw_only=True)
class OneRunAudit(Reproduction):
    """One run of DP-SGD at ε = 4 a view and seed, on `examples` pictures and `canaries` canaries, each in by a coin.

    `steps` Poisson steps draw the share `rate` of the examples each. `guessed` is the share of the canaries on whom the
    auditor says anything.
    """

    seeds: int
    examples: int
    canaries: int
    steps: int
    rate: float
    guessed: float
    lr: float = 0.5
    clip_norm: float = 1.0
    epsilon: float = 4.0
    delta: float = 1e-5

    title = "Auditing DP-SGD in one training run (Steinke et al. 2023)"
    source = (
        "Steinke, Nasr and Jagielski 2023, “Privacy Auditing with One (1) Training Run”. That the white-box bound is "
        "at least 1.8 was read in a quotation of its introduction; the bound's known values are computed"
    )
    protocol = (
        "a WideResNet on CIFAR-10 under DP-SGD at ε = 4, δ = 1e-5; canaries are in by fair coins; the auditor guesses "
        "those whose scores are highest and lowest. White-box: canaries with gradients of one coordinate, scored by "
        "how far that coordinate moved. Black-box: mislabelled canaries, scored by how far their loss fell. The share "
        "that is guessed is fixed beforehand; each bound holds with 95% confidence."
    )
    published = (
        Published(what=WHITE, value=1.8, unit="ε", remembered=True, sense="at least", digits=2),
        Published(what=BLACK, value=1.3, unit="ε", remembered=True, sense="at least", digits=2),
        *(
            Published(what=what, value=value, unit="ε", computed=True, tolerance=0.5 * 10**-digits, digits=digits)
            for what, (value, digits, _) in FORMS.items()
        ),
    )
    budgets: ClassVar = {
        "smoke": Budget(
            overrides=("data=digits", "model=mlp", "model.hidden=[32]"),
            options={
                "seeds": 1, "examples": 400, "canaries": 400, "steps": 20, "rate": 0.25, "guessed": 0.1,
            },
            differs="8x8 digits, a perceptron, 400 pictures and 400 canaries, 20 steps",
        ),
        "cpu": Budget(
            overrides=(
                *CIFAR10, "data.limit=8000", "model=cnn", "model.width=16",
            ),
            options={
                "seeds": 3, "examples": 2000, "canaries": 4000, "steps": 40, "rate": 0.25, "guessed": 0.02,
            },
            differs=f"{JPEG}, 2000 of its pictures, 4000 canaries, a CNN of two layers, 40 steps at a rate of 1/4",
        ),
        "full": Budget(
            overrides=(
                *CIFAR10, *WHOLE, "model=wrn16_4",
            ),
            options={
                "seeds": 3, "examples": 45_000, "canaries": 5000, "steps": 2500, "rate": 0.08, "guessed": 0.02,
            },
            differs=(
                "no augmentation multiplicity and no average over weights; a rate that nobody tuned; one share of "
                "guesses, fixed beforehand, where the paper reports the best of several"
            ),
        ),
    }  # fmt: skip

    reads: ClassVar[tuple[str, ...]] = ("data", "model")
    grid: ClassVar[tuple[str, ...]] = ("budget", "seeds")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "examples", "steps"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        check_number("study.canaries", self.canaries, minimum=2, maximum=2**BITS - 1, integer=True)
        check_number("study.rate", self.rate, above=0, maximum=1)
        check_number("study.guessed", self.guessed, minimum=2 / self.canaries, maximum=1)

    def check(self, setting: Setting) -> None:
        needed = self.examples + max(self.canaries, REFERENCES)
        if len(setting.pool) < needed:
            raise InputError(
                f"pictures and canaries need {needed}, and the pool has {len(setting.pool)}; raise data.limit "
                "or lower study.canaries"
            )
        self.largest(setting.make("model", shape=setting.pool.shape, classes=len(setting.pool.classes)))

    def points(self) -> list[Values]:
        runs = [{"view": view, "seed": number} for number in range(self.seeds) for view in VIEWS]
        return [*runs, {"view": "closed forms", "seed": None}]

    def federation(self, view: str, number: int, setting: Setting) -> Federation:
        """The one run: a client whose first `examples` rows are ordinary, and whose canaries come after them."""
        drawn = seed(setting.seed, f"one-run audit, {view}", number)
        order = torch.randperm(len(setting.pool), generator=generator(drawn, "pictures"))
        ordinary, rest = setting.pool.select(order[: self.examples]), setting.pool.select(order[self.examples :])
        model = setting.make("model", shape=rest.shape, classes=len(rest.classes))
        private: Defense = DPSGD(epsilon=self.epsilon, delta=self.delta, clip_norm=self.clip_norm)
        if view == "white-box":
            canaries = numbered(self.canaries, rest)
            where, coordinates = self.quiet(model, rest.select(torch.arange(REFERENCES)), drawn)
            crafted = CraftedGradients(where, coordinates.to(setting.device), 10 * self.clip_norm)
            private = Composed((crafted, private))
        else:
            canaries = mislabelled(rest.select(torch.arange(self.canaries)), drawn)
        data = ImageSet(
            torch.cat([ordinary.images, canaries.images]), torch.cat([ordinary.labels, canaries.labels]), rest.classes
        ).to(setting.device)
        members = torch.ones(1, len(data), dtype=torch.bool)
        coins = torch.rand(self.canaries, generator=generator(drawn, "audit coins"))
        members[:, self.examples :] = coins < 0.5
        size = self.examples + self.canaries // 2
        federation = Federation(
            model=model,
            data=data,
            owners=torch.zeros(len(data), dtype=torch.long),
            members=members,
            sizes=torch.tensor([size]),
            algorithm=FedAvg(
                sampler=Poisson(batch_size=round(self.rate * size), local_steps=self.steps), lr=self.lr
            ),
            defense=private,
            rounds=1,
            run=drawn,
            replica_ids=range(1),
            backend="loop" if setting.device.type == "cpu" else "vmap",
        )  # fmt: skip
        return replace(federation, defense=private.prepare(federation.plan))

    def largest(self, model: torch.nn.Module) -> str:
        """The name of the largest variable; InputError where it has no coordinate for each canary."""
        sizes = {name: value.numel() for name, value in variables_of(model).items()}
        where = max(sizes, key=lambda name: sizes[name])
        if sizes[where] < self.canaries:
            raise InputError(
                f"study.canaries is {self.canaries}, and no variable of the model has as many coordinates; the largest "
                f"has {sizes[where]}"
            )
        return where

    def quiet(self, model: torch.nn.Module, references: ImageSet, run_seed: int) -> tuple[str, Tensor]:
        """The largest variable, and of it the coordinates [canaries] that ordinary gradients move least."""
        where = self.largest(model)
        models = [initial_parameters(model, seed(run_seed, "canary model", number)) for number in range(MODELS)]
        stacked = {name: torch.stack([one[name] for one in models]) for name in models[0]}
        pictures = references.images.expand(MODELS, *references.images.shape)
        gradients = stacked_example_gradients(
            ClassificationLosses(model), stacked, (pictures, references.labels.expand(MODELS, -1))
        )
        value = gradients[where]
        own = (value.whole() if isinstance(value, Outer) else value).detach()
        return where, quiet_coordinates(own.flatten(2).flatten(0, 1), self.canaries)

    def measure(self, point: Values, setting: Setting) -> Values:
        if point["view"] not in VIEWS:
            return {
                "rows": [
                    {"metric": what, "value": ours, "note": "closed form", "as_published": True}
                    for what, (_, _, ours) in FORMS.items()
                ]
            }
        federation = self.federation(point["view"], point["seed"], setting)
        first, last = initial_state(federation).model, run(federation).model
        scores = (
            moved(federation, first, last) if point["view"] == "white-box" else self.fallen(federation, first, last)
        )
        members = federation.members[0, self.examples :].numpy()
        found = audit_one_run(scores[None], members[None], fraction=self.guessed, delta=self.delta)
        return {
            "rows": [
                {
                    "metric": VIEWS[point["view"]], "value": found.epsilon, "ceiling": found.ceiling,
                    "guesses": found.guesses, "correct": found.correct, "auc": auc(scores, members),
                }
            ]
        }  # fmt: skip

    def fallen(self, federation: Federation, first: Tree, last: Tree) -> NDArray[np.float64]:
        """How far each canary's loss [canaries] fell from the first model to the last, in nats."""
        canaries = federation.data.select(torch.arange(self.examples, len(federation.data)))
        labels = canaries.labels.cpu().numpy()
        before, after = (
            loss(scaled_confidence(logits(federation.model, model, canaries.images)[0].numpy(), labels))
            for model in (first, last)
        )
        fell: NDArray[np.float64] = before - after
        return fell

    def measured(self, records: Sequence[Values]) -> list[Values]:
        """The mean bound over seeds, each seed's a run of its own, whose bound holds by itself; the closed forms."""
        found: list[Values] = []
        for view, metric in VIEWS.items():
            each = rows(records, metric=metric)
            bounds = [row["value"] for row in each]
            right = ", ".join(f"{row['value']:.2f} by {row['correct']}/{row['guesses']}" for row in each)
            note = (
                f"{len(each)} run{'s' * (len(each) > 1)}, whose bounds each hold with 95%: {right} right guesses; "
                f"AUC {np.mean([row['auc'] for row in each]):.2f}; all right would prove {each[0]['ceiling']:.2f}"
            )
            about: Values = {"metric": metric, "view": view, "samples": len(each), "note": note}
            found.append(about | {"value": float(np.mean(bounds))})
        return found + rows(records, view="closed forms")


def moved(federation: Federation, first: Tree, last: Tree) -> NDArray[np.float64]:
    """How far each canary's own coordinate [canaries] went down from the first model to the last."""
    assert isinstance(federation.defense, Composed)
    crafted = federation.defense.parts[0]
    assert isinstance(crafted, CraftedGradients)
    before, after = (model[crafted.where][0].flatten()[crafted.coordinates].cpu().double() for model in (first, last))
    down: NDArray[np.float64] = (before - after).numpy()
    return down
