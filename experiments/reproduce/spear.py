"""SPEAR: whole batches read off a fully connected ReLU layer, exactly, up to how many pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.metrics import clopper_pearson
from attacks.pictures import EXACT_DB
from attacks.reconstruction.spear import Spear
from experiments.reconstruction_scores import Answers
from experiments.reproduce.base import JPEG, Budget, Published, Reproduction
from experiments.reproduce.inversion import (
    COLOUR,
    DIGITS,
    first_pictures,
    seen_and_told,
    shown,
)
from experiments.studies.base import Setting, Values
from experiments.studies.clients import initial
from experiments.studies.tampering import plain, row
from fl_core.architectures import MLP
from fl_core.errors import check_number

LARGEST = "largest batch recovered exactly"


@dataclass(frozen=True, kw_only=True)
class ExactBatches(Reproduction):
    """`tries` batches of test pictures of each size in `batches`, whose layer of `width` units gives them away or not.

    At most `samples` sets of rows are tried for a batch. A batch is recovered where each of its pictures is exact.
    """

    batches: Sequence[int]
    tries: int
    samples: int
    width: int

    title: ClassVar[str] = "Exact batches from a ReLU layer (SPEAR)"
    source: ClassVar[str] = "Dimitrov et al. 2024, SPEAR: Exact gradient inversion of batches"
    protocol: ClassVar[str] = (
        "the gradient of one batch at a new perceptron (here of three layers, the first of 400 units), the batch's "
        "size known, no labels; sets of rows are sampled until the batch explains the gradient. A size counts as "
        "recovered where at least half of its batches are, to 100 dB each picture."
    )
    published: ClassVar[tuple[Published, ...]] = (
        Published(what=LARGEST, value=25, unit="pictures", sense="at least", digits=0),
    )
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=DIGITS,
            options={"batches": [2, 4], "tries": 4, "samples": 2**14, "width": 100},
            differs="scikit-learn's 8x8 digits, 100 units, batches up to 4",
        ),
        "cpu": Budget(
            overrides=(*COLOUR, "data.limit=2000"),
            options={"batches": [2, 4, 8, 12, 16], "tries": 8, "samples": 2**21, "width": 400},
            differs=f"{JPEG}, at most 2^21 sets of rows a batch (raised from 2^16 on these batches), batches up to 16",
        ),
        "full": Budget(
            overrides=(*COLOUR, "data.limit=2000"),
            options={"batches": [2, 4, 8, 16, 20, 24, 25, 28], "tries": 20, "samples": 2**26, "width": 400},
            differs="",
        ),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for size in self.batches:
            check_number("study.batches", size, minimum=1, integer=True)
        for name in ("tries", "samples", "width"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)

    def points(self) -> list[Values]:
        return [{"batches": list(self.batches)}]

    def measure(self, point: Values, setting: Setting) -> Values:
        data = setting.test
        model = MLP(data.shape, len(data.classes), hidden=(self.width, 100))
        start = initial(model, setting.seed, torch.device("cpu"))
        attack, rows, largest, kept = Spear(samples=self.samples), [], 0, {}
        for size in point["batches"]:
            truth = first_pictures(data, self.tries, size)
            updates, knowledge = seen_and_told(model, start, data, truth, labels=False)
            found = attack.run(updates, knowledge, run=setting.seed)
            answers = Answers.of(found, truth)
            exact = (answers.psnr[:, 0] >= EXACT_DB).all(1)
            share = clopper_pearson(int(exact.sum()), self.tries)
            seen = f"{int(found.exact.sum())} verified by the attacker"
            rows.append(row(share, metric=f"batches of {size} recovered", samples=f"{self.tries} batches", note=seen))
            if share.value >= 0.5:
                largest, kept = size, shown(found, truth)
        rows.append(plain(largest, metric=LARGEST, samples=f"{self.tries} batches of each size"))
        return {"rows": rows, "shown": kept} if kept else {"rows": rows}
