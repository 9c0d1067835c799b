"""iDLG's Table 1: how often the label of one picture is read off its gradient, by DLG and by iDLG."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.metrics import clopper_pearson
from attacks.reconstruction.labels import infer_label_from_weights
from attacks.reconstruction.presets import dlg, idlg
from experiments.reproduce.base import MNIST, Budget, Published, Reproduction
from experiments.reproduce.inversion import (
    DIGITS,
    NormalPixels,
    Standardised,
    first_pictures,
    psnr_row,
    shared_gradients,
    shown,
    told,
)
from experiments.studies.base import Setting, Values
from experiments.studies.tampering import row
from fl_core.architectures import LeNet
from fl_core.errors import check_number
from fl_core.models import initial_parameters
from fl_core.seeds import seed

ABSENT = "the data set is not at hand"
LINE_SEARCH = "our L-BFGS takes back a step that does not descend; theirs takes every step"


@dataclass(frozen=True, kw_only=True)
class LabelAccuracy(Reproduction):
    """`experiments` models, each new, with one picture each; DLG descends for `iterations` gradients at most.

    iDLG's label needs no descent; its picture is descended to as well, for the first `pictures` of them.
    """

    experiments: int
    iterations: int
    pictures: int

    title: ClassVar[str] = "Labels from one gradient (iDLG, Table 1)"
    source: ClassVar[str] = "Zhao, Mopuri and Bilen 2020, iDLG, Table 1, and their released code"
    protocol: ClassVar[str] = (
        "1000 times a new LeNet (sigmoid, all weights and biases uniform in [−0.5, 0.5]) and one training picture in "
        "[0, 1]; pixels and DLG's label logits start from N(0, 1); L-BFGS at rate 1, 300 calls of up to 20 iterations. "
        "DLG's label is the largest of the logits that the descent ends with, iDLG's the class whose row of the output "
        "layer's gradient has the smallest sum."
    )
    published: ClassVar[tuple[Published, ...]] = tuple(
        Published(what=f"{data}, {attack}", value=value, unit="% of labels", digits=1, tolerance=0.05)
        for data, plain in (("MNIST", 89.9), ("CIFAR-100", 83.3), ("LFW", 79.1))
        for attack, value in (("DLG", plain), ("iDLG", 100.0))
    )
    skipped: ClassVar[Mapping[str, str]] = {
        one.what: ABSENT for one in published if one.what.startswith(("CIFAR", "LFW"))
    }
    apart: ClassVar[Mapping[str, str]] = {"MNIST, DLG": LINE_SEARCH}
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=DIGITS,
            options={"experiments": 12, "iterations": 300, "pictures": 4},
            differs="scikit-learn's 8x8 digits, 12 models, 300 gradients",
        ),
        "cpu": Budget(
            overrides=(*MNIST, "data.limit=2000"),
            options={"experiments": 150, "iterations": 6000, "pictures": 10},
            differs="",
        ),
        "full": Budget(
            overrides=(*MNIST, "data.limit=2000"),
            options={"experiments": 1000, "iterations": 6000, "pictures": 1000},
            differs="",
        ),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("experiments", "iterations", "pictures"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)

    def points(self) -> list[Values]:
        return [{"attack": "DLG"}, {"attack": "iDLG"}]

    def measure(self, point: Values, setting: Setting) -> Values:
        data = setting.pool  # in an order of its own, drawn by the data's seed
        truth = first_pictures(data, self.experiments)
        model = Standardised(LeNet(data.shape, len(data.classes)))
        starts = [initial_parameters(model, seed(setting.seed, "model", one)) for one in range(self.experiments)]
        sent = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
        updates, knowledge = shared_gradients(model, sent, truth), told(model, data, truth, labels=False)
        settings: Values = {"iterations": self.iterations, "restarts": 1, "parametrisation": NormalPixels()}
        settings |= {"enough": 1e-10, "patience": 0.01}  # of a descent that is done, or stands still
        if point["attack"] == "DLG":
            found = dlg(**settings).run(updates, knowledge, run=setting.seed, device=setting.device)
            return {
                "rows": [
                    self._share("MNIST, DLG", found.selected_labels(), truth.labels),
                    psnr_row("PSNR of DLG's pictures, dB", found, truth),
                ],
                "shown": shown(found, truth),
            }
        labels = infer_label_from_weights(updates.gradient(1.0), "inner.head.weight")
        some = slice(0, self.pictures)
        own = dataclasses.replace(truth, images=truth.images[some], labels=truth.labels[some])
        found = idlg(**settings).run(updates.select(some), knowledge, run=setting.seed, device=setting.device)
        return {
            "rows": [
                self._share("MNIST, iDLG", labels.unsqueeze(1), truth.labels),
                psnr_row("PSNR of iDLG's pictures, dB", found, own),
            ],
            "shown": shown(found, own),
        }

    @staticmethod
    def _share(metric: str, labels: Tensor, true: Tensor) -> Values:
        right = clopper_pearson(int((labels == true).sum()), true.numel())
        whole = dataclasses.replace(right, value=100 * right.value, low=100 * right.low, high=100 * right.high)
        return row(whole, metric=metric, samples=f"{len(true)} models and pictures")
