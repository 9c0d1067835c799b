"""The shadow attack of Shokri et al. 2017: the precision of a classifier that learned from shadows, on CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.metrics import mean_interval
from experiments.cell import Cell
from experiments.configuration import altered
from experiments.reproduce.base import CIFAR10, JPEG, Budget, Published, Reproduction
from experiments.reproduce.membership import ALONE, READS, cell_of, leaks
from experiments.studies.base import Setting, Values
from experiments.studies.tampering import row
from fl_core.architectures import Shape, centred

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

NETWORK = ("model=custom", f"model.factory={__name__}:TanhCNN")
SHARED = "shadows are drawn from the target's own pool; the attack sees sorted log-probabilities, and 32 hidden units"


class TanhCNN(nn.Module):
    """Two convolutions, each with max pooling, and 128 hidden units, all with tanh (section VI-B)."""

    def __init__(self, shape: Shape, classes: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(shape[0], width, 5, padding=2), nn.Tanh(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, 5, padding=2), nn.Tanh(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(width * (shape[1] // 4) * (shape[2] // 4), 128), nn.Tanh(),
            nn.Linear(128, classes),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        logits: Tensor = self.layers(centred(pixels))
        return logits


@dataclass(frozen=True, kw_only=True)
class ShadowAttack(Reproduction):
    """`sizes` are the numbers of pictures that a target trains on, each with `models` models, one another's shadows."""

    sizes: Sequence[int]
    models: int

    reads: ClassVar[tuple[str, ...]] = READS
    title: ClassVar[str] = "Shokri et al.: the shadow attack"
    source: ClassVar[str] = (
        'Shokri et al. 2017, "Membership Inference Attacks Against Machine Learning Models" (IEEE S&P), Figure 4 '
        "(CIFAR-10) and Table II (others)"
    )
    protocol: ClassVar[str] = (
        "a CNN of two convolutions with tanh, trained for 100 epochs on so many pictures of CIFAR-10; 100 shadows on "
        "other pictures; an attack classifier for each class; precision among as many members as non-members, of which "
        "the median over classes is given."
    )
    published: ClassVar[tuple[Published, ...]] = (
        *(
            Published(
                what=f"CIFAR-10, {size:,} pictures: precision", value=value, tolerance=0.005, digits=2, remembered=True
            )
            for size, value in ((2500, 0.78), (5000, 0.74), (10000, 0.72), (15000, 0.71))
        ),
        *(
            Published(what=f"{name}: precision", value=value, digits=3, remembered=True)
            for name, value in (
                ("MNIST", 0.517),
                ("Purchase, 2 classes", 0.505),
                ("Purchase, 10 classes", 0.550),
                ("Purchase, 20 classes", 0.590),
                ("Purchase, 50 classes", 0.860),
                ("Purchase, 100 classes", 0.935),
            )
        ),
    )
    skipped: ClassVar[Mapping[str, str]] = {
        **{
            f"CIFAR-10, {size} pictures: precision": "hours on two cores; the budget full measures it"
            for size in ("10,000", "15,000")
        },
        "MNIST: precision": "the target was a model of Google's prediction service, which nobody can train any more",
        **{
            one.what: "no such data at hand, and the target was a model of Google's prediction service"
            for one in published
            if one.what.startswith("Purchase")
        },
    }
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=(
                *ALONE, "data=digits", "sampler.local_epochs=60", "sampler.batch_size=16", "rounds=1", "shard=8",
                "backend=vmap", "signals.public=0", "attack.resamples=100",
            ),
            options={"sizes": [150], "models": 6},
            differs="scikit-learn's digits",
        ),
        "cpu": Budget(
            overrides=(
                *ALONE, *CIFAR10, *NETWORK, "+model.options.width=8", "data.test_limit=1000", "rounds=1", "shard=2",
                "sampler=shuffled", "sampler.local_epochs=20", "sampler.batch_size=32", "algorithm.lr=0.01",
                "algorithm.momentum=0.9", "backend=loop", "signals.public=0",
            ),
            options={"sizes": [2500, 5000], "models": 5},
            differs=(
                f"{JPEG}, 4 shadows in place of 100, 20 epochs at another rate; {SHARED}"
            ),
        ),
        "full": Budget(
            overrides=(
                *ALONE, *CIFAR10, *NETWORK, "data.test_limit=null", "rounds=1", "sampler=shuffled",
                "sampler.local_epochs=100", "sampler.batch_size=32", "algorithm.lr=0.001", "algorithm.momentum=0.9",
                "signals.public=0",
            ),
            options={"sizes": [2500, 5000, 10000, 15000], "models": 101},
            differs=SHARED,
        ),
    }  # fmt: skip

    def points(self) -> list[Values]:
        return [{"size": size} for size in self.sizes]

    def cell(self, point: Values, setting: Setting) -> Cell:
        """The sweep's cell of a point's size: twice as many pictures, of which a model trains on half."""
        classifier = {
            "_target_": "attacks.membership.shadow_classifier.ShadowClassifier",
            "classifier": "multilayer perceptron",
        }
        data = altered(setting.config, {"data": {"limit": 2 * point["size"]}}, "study.sizes")["data"]
        return cell_of(setting, {"shadow_classifier": classifier}, data=data, replicas=self.models)

    def measure(self, point: Values, setting: Setting) -> Values:
        size, found = point["size"], leaks(self.cell(point, setting))
        scores, members = found.scores("shadow_classifier")
        labels = found.cell.targets.pool.labels.cpu().numpy()
        precisions, recalls = by_class(scores > 0, members, labels)
        samples = f"{len(scores)} targets, {members.sum():,} members, {(~members).sum():,} non-members"
        rows = []
        for name, each in (("precision", precisions), ("recall", recalls)):
            note = "the paper calls it almost 1" if name == "recall" else ""
            about = {"metric": f"CIFAR-10, {size:,} pictures: {name}", "samples": samples, "note": note}
            rows.append(row(mean_interval(np.median(each, axis=1)), **about))
        accuracy = found.accuracy()
        return {"rows": [*rows, accuracy | {"metric": f"{size:,} pictures: {accuracy['metric']}"}]}


def by_class(called: Mask, members: Mask, labels: NDArray[np.int64]) -> tuple[Array, Array]:
    """Precision and recall [replicas, classes] of calling members; precision is ½ where nobody was called one.

    `called` and `members` are [replicas, examples], `labels` [examples].
    """
    precisions, recalls = [], []
    for label in np.unique(labels):
        ours = labels == label
        hits = (called & members)[:, ours].sum(1)
        said = called[:, ours].sum(1)
        precisions.append(np.where(said > 0, hits / np.maximum(said, 1), 0.5))
        recalls.append(hits / members[:, ours].sum(1))
    return np.stack(precisions, 1), np.stack(recalls, 1)
