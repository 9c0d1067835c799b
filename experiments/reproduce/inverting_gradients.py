"""Inverting gradients' Table 1: mean PSNR of CIFAR-10 pictures from one gradient, by cosine and by squared distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.presets import dlg, inverting_gradients
from experiments.reproduce.base import JPEG, Budget, Published, Reproduction
from experiments.reproduce.inversion import (
    COLOUR,
    DIGITS,
    STANDARD,
    UNIT,
    first_pictures,
    in_parts,
    psnr_row,
    seen_and_told,
    shown,
    standardised,
)
from experiments.studies.base import Setting, Values
from experiments.studies.clients import initial, trained
from fl_core.architectures import LeNet
from fl_core.errors import check_number
from fl_core.models import accuracy
from fl_core.residual import ResNet

COSINE, SQUARED = "cosine + TV", "L2 + L-BFGS"
LENET, RESNET = "LeNet (Zhu)", "ResNet20-4"


@dataclass(frozen=True, kw_only=True)
class InvertingGradients(Reproduction):
    """The first `victims` (of the ResNet `residual_victims`) test pictures, one by one, by both attacks.

    `iterations` of signed Adam and `gradients` of L-BFGS; those of the ResNet are `residual_iterations` and
    `residual_gradients`. It has `width` channels in its first stage, 64 in the paper. Trained models have had
    `epochs`, the ResNet `residual_epochs`, of SGD in batches of 32 on the pool.
    """

    victims: int
    residual_victims: int
    iterations: int
    gradients: int
    residual_iterations: int
    residual_gradients: int
    width: int
    epochs: int
    residual_epochs: int
    at_once: int = 10

    title: ClassVar[str] = "Inverting gradients (Geiping et al. 2020, Table 1)"
    source: ClassVar[str] = "Geiping et al. 2020, Inverting gradients, Table 1, and their released code"
    protocol: ClassVar[str] = (
        "mean PSNR over the first 100 pictures of CIFAR-10's validation set, one gradient each, labels known, models "
        "in evaluation mode, new or trained; theirs is the cosine with total variation 1e-4, Adam on the sign at 0.1 "
        "on standardised pixels with three drops, 4000 iterations, one start from N(0, 1); the baseline is the squared "
        "distance by L-BFGS at rate 1, 500 calls of up to 20 iterations."
    )
    published: ClassVar[tuple[Published, ...]] = tuple(
        Published(
            what=f"{model}, {state}, {attack}", value=value, unit="dB", remembered=True, digits=2,
            sense="at least" if attack == COSINE else "equal",
        )
        for attack, values in ((COSINE, (18.00, 18.08, 19.83, 13.95)), (SQUARED, (46.25, 13.24, 10.29, 6.90)))
        for (model, state), value in zip(
            [(model, state) for model in (LENET, RESNET) for state in ("untrained", "trained")], values, strict=True
        )
    )  # fmt: skip
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=(*DIGITS, "data.limit=200"),
            options={
                "victims": 3, "residual_victims": 1, "iterations": 100, "gradients": 100, "residual_iterations": 20,
                "residual_gradients": 20, "width": 4, "epochs": 1, "residual_epochs": 1,
            },
            differs="scikit-learn's 8x8 digits, three pictures, at most 100 gradients, ResNet-20 of width 4",
        ),
        "cpu": Budget(
            overrides=(*COLOUR, "data.limit=2000"),
            options={
                "victims": 6, "residual_victims": 3, "iterations": 4000, "gradients": 4000,
                "residual_iterations": 200, "residual_gradients": 200, "width": 16, "epochs": 20, "residual_epochs": 2,
            },
            differs=f"{JPEG}, the first pictures of its test file, models trained on 2000 pictures",
        ),
        "full": Budget(
            overrides=(*COLOUR, "data.limit=null"),
            options={
                "victims": 100, "residual_victims": 100, "iterations": 4000, "gradients": 10000,
                "residual_iterations": 4000, "residual_gradients": 10000, "width": 64, "epochs": 120,
                "residual_epochs": 120,
            },
            differs="",
        ),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "victims", "residual_victims", "iterations", "gradients", "residual_iterations", "residual_gradients",
            "epochs", "residual_epochs", "at_once",
        ):  # fmt: skip
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        check_number("study.width", self.width, minimum=4, integer=True)

    def points(self) -> list[Values]:
        return [{"model": model, "state": state} for model in (RESNET, LENET) for state in ("trained", "untrained")]

    def measure(self, point: Values, setting: Setting) -> Values:
        residual, is_trained = point["model"] == RESNET, point["state"] == "trained"
        data = setting.test
        truth = first_pictures(data, self.residual_victims if residual else self.victims)
        build = self._resnet if residual else self._lenet
        model = build(data.shape, len(data.classes), evaluated=True)
        if is_trained:
            trainee, epochs = build(data.shape, len(data.classes), evaluated=False), self._epochs(residual)
            start = trained(trainee, setting.pool, epochs, 0.1 if residual else 0.05, setting.seed)
        else:
            start = initial(model, setting.seed, torch.device("cpu"))
        updates, knowledge = seen_and_told(model, start, data, truth, labels=True)
        differs = [f"width {self.width}, at most {self.residual_iterations} gradients"] if residual else []
        if self.width == 64:
            differs = []
        if is_trained:
            right = float(accuracy(model, start, data)[0])
            differs.append(f"plain SGD for {self._epochs(residual)} epochs, to {100 * right:.0f}% of the test set")
        made: Values = {"rows": []}
        for name, attack in self._attacks(residual).items():
            found = in_parts(
                attack, updates, knowledge, run=setting.seed, device=setting.device, at_once=self.at_once
            )  # fmt: skip
            what = f"{point['model']}, {point['state']}, {name}"
            made["rows"].append(psnr_row(what, found, truth, differs="; ".join(differs)))
            made.setdefault("shown", shown(found, truth))
        return made

    def _epochs(self, residual: bool) -> int:
        return self.residual_epochs if residual else self.epochs

    def _lenet(self, shape: tuple[int, int, int], classes: int, *, evaluated: bool) -> nn.Module:
        return standardised(LeNet(shape, classes), shape, evaluated=evaluated)

    def _resnet(self, shape: tuple[int, int, int], classes: int, *, evaluated: bool) -> nn.Module:
        inner = ResNet(shape, classes, depth=20, width=self.width, norm="batch")
        return standardised(inner, shape, evaluated=evaluated)

    def _attacks(self, residual: bool) -> dict[str, GradientMatching]:
        settings: dict[str, Any] = {"restarts": 1, "parametrisation": STANDARD}
        iterations = self.residual_iterations if residual else self.iterations
        gradients = self.residual_gradients if residual else self.gradients
        return {
            COSINE: inverting_gradients(lr=0.1 * UNIT, total_variation=1e-4 / UNIT, iterations=iterations, **settings),
            SQUARED: dlg(iterations=gradients, labels="inferred", enough=1e-10, **settings),
        }
