"""What a client could have noticed of the model that it was sent, before it answers with an update.

Three things that a client can compute from the model, a benign model of the same code, and its own examples:

- D-SNR, the disaggregation signal-to-noise ratio of Garov et al. 2024 ("Hiding in Plain Sight", as in their released
  code): of a weight's per-example gradients the longest over the sum of all others, the largest over weights. Above 1
  one example outweighs the rest of the batch together. It is inf where one example alone has a gradient.
- The parameters: how far each variable's entries are distributed from the benign model's (two-sample Kolmogorov-Smirnov
  distance, less what chance makes of it), how much of a weight's rank is missing, as where rows are multiples of each
  other, how many of its rows are all zeros, and its largest entry over the benign model's largest.
- The architecture: variables that the benign model does not have, or has in another shape.

`Limits` turns them into a verdict. Benign models pass or fail it, too: what share of them fails is to be measured, with
models as they are after as much training as there will be (see `experiment=malicious_reconstruction`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fl_core.errors import InputError, check_number
from fl_core.models import ClassificationLosses
from fl_core.optimizers import Tree
from fl_core.per_example import example_gradients
from fl_core.rules import Outer

NOTHING = 1e-4  # of the largest singular value: a direction that a weight does not have


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is taken for a tampered model: scores above these."""

    d_snr: float = 1.0
    distance: float = 0.02
    deficient: float = 0.05
    silent: float = 0.05
    extreme: float = 20.0

    def __post_init__(self) -> None:
        for name in ("d_snr", "distance", "deficient", "silent", "extreme"):
            check_number(f"limits.{name}", getattr(self, name), minimum=0)


@dataclass(frozen=True, kw_only=True)
class Detectability:
    """A model's scores, and in words what is over its limit.

    `d_snr` is by weight, and so are `deficient` and `silent`, shares of a weight's rank and rows; `distance` in [0, 1]
    and `extreme`, the largest entry over the benign model's largest, are by variable that both models have; `added` are
    variables that the benign model has not, or not in that shape.
    """

    d_snr: Mapping[str, float]
    distance: Mapping[str, float]
    deficient: Mapping[str, float]
    silent: Mapping[str, float]
    extreme: Mapping[str, float]
    added: Mapping[str, tuple[int, ...]]
    limits: Limits = field(default_factory=Limits)

    def worst(self, score: str) -> float:
        """The largest of a score over layers; 0 where there is none."""
        return max(getattr(self, score).values(), default=0.0)

    @property
    def words(self) -> tuple[str, ...]:
        """What a client could say against the model; empty for one that it would train."""
        said = {
            "d_snr": "one example outweighs all others",
            "distance": "entries are not distributed as in a benign model",
            "deficient": "rows depend on each other",
            "silent": "rows are all zeros",
            "extreme": "entries are far too large",
        }
        found = []
        for score, what in said.items():
            over = {name: value for name, value in getattr(self, score).items() if value > getattr(self.limits, score)}
            if over:
                name = max(over, key=lambda one: over[one])
                found.append(f"{what} ({name}: {over[name]:.3g})")
        if self.added:
            found.append(f"the architecture has more variables ({', '.join(self.added)})")
        return tuple(found)

    @property
    def noticed(self) -> bool:
        """Whether anything is over its limit, so that the client would not train this model."""
        return bool(self.words)


def detect(
    sent: Tree, model: nn.Module, reference: Tree, examples: tuple[Tensor, Tensor], limits: Limits | None = None
) -> Detectability:
    """The scores of the parameters `sent` [...] with the code `model`, beside a benign `reference` [...].

    `examples` are a client's own batch: pictures [batch, channels, height, width] and labels [batch], at least two.
    The reference is a new model of the agreed code, or better the last round's.
    """
    pictures, labels = examples
    if len(pictures) < 2:
        raise InputError("a ratio between examples takes at least two of them; give detect a batch")
    lengths = _lengths(sent, model, pictures, labels)
    d_snr = {name: _outweighs(value) for name, value in lengths.items()}
    shared = {name: value for name, value in reference.items() if name in sent and sent[name].shape == value.shape}
    weights = {name: value.flatten(1) for name, value in sent.items() if value.dim() > 1 and len(value) > 1}
    return Detectability(
        d_snr=d_snr,
        distance={
            name: max(ks_distance(sent[name], it) - chance_distance(it.numel()), 0) for name, it in shared.items()
        },
        deficient={name: _deficient(value) for name, value in weights.items()},
        silent={name: float((value == 0).all(1).double().mean()) for name, value in weights.items()},
        extreme={
            name: float(sent[name].abs().max() / value.abs().max().clamp(min=1e-12)) for name, value in shared.items()
        },
        added={name: tuple(value.shape) for name, value in sent.items() if name not in shared},
        limits=limits or Limits(),
    )


def ks_distance(first: Tensor, second: Tensor) -> float:
    """The largest difference of two samples' distribution functions (Kolmogorov-Smirnov), in [0, 1]."""
    one, two = (value.detach().flatten().double().sort().values for value in (first, second))
    at = torch.cat([one, two])
    under = [torch.searchsorted(values, at, right=True).double() / len(values) for values in (one, two)]
    return float((under[0] - under[1]).abs().max())


def chance_distance(entries: int, chance: float = 1e-6) -> float:
    """What the distance of two samples of one distribution exceeds with about this chance, each of so many entries."""
    return math.sqrt(-math.log(chance / 2) / entries)


def _lengths(sent: Tree, model: nn.Module, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of each weight the length of every example's gradient [batch], float64."""
    found = {}
    for name, value in example_gradients(ClassificationLosses(model), sent, (pictures, labels)).items():
        if sent[name].dim() > 1:
            # The length of a product of two vectors is that of their lengths.
            parts = (value.slope, value.seen) if isinstance(value, Outer) else (value,)
            found[name] = torch.stack([part.detach().flatten(1).double().norm(dim=1) for part in parts]).prod(0)
    return found


def _outweighs(lengths: Tensor) -> float:
    """The longest over the sum of the others; 0 where no example has any length."""
    longest = float(lengths.max())
    others = float(lengths.sum()) - longest
    if longest == 0:
        return 0.0
    return longest / others if others > 0 else float("inf")


def _deficient(rows: Tensor) -> float:
    """The share of a matrix's rank that is missing: 0 for full rank, as random weights have."""
    rows = rows.double()
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    squares = torch.linalg.eigvalsh(gram)
    return float((squares <= NOTHING**2 * squares[-1]).double().mean())
