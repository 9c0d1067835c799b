"""DLG and the attack of Wang et al. on one CIFAR-10 picture, as breaching's notebooks run them, and DLG's own LeNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.objectives import Distance
from attacks.reconstruction.presets import dlg
from experiments.reproduce.base import JPEG, Budget, Published, Reproduction
from experiments.reproduce.inversion import (
    COLOUR,
    DIGITS,
    STANDARD,
    NormalPixels,
    Standardised,
    first_pictures,
    in_parts,
    psnr_row,
    seen_and_told,
    shown,
    standardised,
)
from experiments.studies.base import Setting, Values
from experiments.studies.clients import initial
from fl_core.architectures import ConvNet, LeNet
from fl_core.errors import check_number

LENET = "DLG, LeNet of Zhu et al."


@dataclass(frozen=True, kw_only=True)
class DeepLeakage(Reproduction):
    """The first `victims` test pictures, one by one; `iterations` of DLG's and `wang_iterations` of Wang's descent.

    The ConvNet has `width` channels in its first layer; `at_once` victims are descended to together.
    """

    victims: int
    width: int
    iterations: int
    wang_iterations: int
    lenet_iterations: int
    at_once: int = 10

    title: ClassVar[str] = "Deep leakage from one gradient (DLG)"
    source: ClassVar[str] = (
        "breaching's notebooks on Zhu et al. 2019 (DLG) and Wang et al. 2019 (Beyond inferring class representatives)"
    )
    protocol: ClassVar[str] = (
        "one CIFAR-10 picture, a new ConvNet of width 64 whose batch normalisation uses its running statistics, one "
        "gradient; squared distance and L-BFGS at rate 1: DLG 1200 calls with the label as a variable, Wang 400 calls "
        "with pixels in their range and a total variation. Here several pictures, one by one, and their mean."
    )
    published: ClassVar[tuple[Published, ...]] = (
        Published(what="DLG, ConvNet", value=23.41, unit="dB", sense="at least", digits=2),
        Published(what="Wang et al., ConvNet", value=24.06, unit="dB", sense="at least", digits=2),
    )
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=DIGITS,
            options={"victims": 2, "width": 4, "iterations": 60, "wang_iterations": 60, "lenet_iterations": 200},
            differs="scikit-learn's 8x8 digits, enlarged to 16x16, a width of 4 and 60 gradients",
        ),
        "cpu": Budget(
            overrides=(*COLOUR, "data.limit=2000"),
            options={
                "victims": 5, "width": 16, "iterations": 1200, "wang_iterations": 400, "lenet_iterations": 4000,
                "at_once": 5,
            },
            differs=f"{JPEG}, the first 5 test pictures, a width of 16, an iteration is one gradient",
        ),
        "full": Budget(
            overrides=(*COLOUR, "data.limit=2000"),
            options={
                "victims": 100, "width": 64, "iterations": 24000, "wang_iterations": 8000, "lenet_iterations": 6000,
            },
            differs="",
        ),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("victims", "iterations", "wang_iterations", "lenet_iterations", "at_once"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        check_number("study.width", self.width, minimum=4, integer=True)

    def points(self) -> list[Values]:
        return [{"case": one.what} for one in self.published] + [{"case": LENET}]

    def measure(self, point: Values, setting: Setting) -> Values:
        data, case = setting.test, point["case"]
        if min(data.shape[1:]) < 9:  # the ConvNet's least
            data = dataclasses.replace(data, images=data.images.repeat_interleave(2, 2).repeat_interleave(2, 3))
        truth = first_pictures(data, self.victims)
        if case == LENET:
            model = Standardised(LeNet(data.shape, len(data.classes)))
        else:
            inner = ConvNet(data.shape, len(data.classes), width=self.width, norm="batch")
            model = standardised(inner, data.shape, evaluated=True)
        start = initial(model, setting.seed, torch.device("cpu"))
        updates, knowledge = seen_and_told(model, start, data, truth, labels=False)
        attack, differs = self._attack(case)
        found = in_parts(
            attack, updates, knowledge, run=setting.seed, device=setting.device, at_once=self.at_once
        )  # fmt: skip
        about: Values = {"differs": differs} if differs else {}
        return {"rows": [psnr_row(case, found, truth, **about)], "shown": shown(found, truth)}

    def _attack(self, case: str) -> tuple[GradientMatching, str]:
        settings: dict[str, Any] = {"restarts": 1, "enough": 1e-10}
        if case == LENET:
            return dlg(iterations=self.lenet_iterations, parametrisation=NormalPixels(), **settings), ""
        settings["parametrisation"] = STANDARD
        if case == "DLG, ConvNet":
            return dlg(iterations=self.iterations, **settings), ""
        wang = GradientMatching(
            name="Wang et al.", letter="A", optimizer="lbfgs", lr=1.0, iterations=self.wang_iterations,
            distance=Distance(measure="squared"), total_variation=1e-3, **settings,
        )  # fmt: skip
        return (
            wang,
            "our total variation at its usual weight; the label inferred; pixels cut at the end",
        )
