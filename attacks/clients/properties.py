"""What does a client hold? The share of each class, from what its training does to the output layer.

All scores are estimated shares [replicas, units, classes]: a unit is a client where updates are seen one by one, and
the whole cohort where only a sum or a step is. How far they are from the truth is `total_variation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.base import Floats
from attacks.clients.evidence import NEEDS, Reads, Scores, evidence, recorded_rounds
from attacks.reconstruction.labels import infer_label_counts, output_bias
from fl_core.errors import InputError, check_choice, check_number
from fl_core.models import logits
from fl_core.optimizers import Tree
from fl_core.views import Participant, ReleasedModel, require_view

RIDGES = tuple(10.0**power for power in range(-4, 5))
"""What the regression's penalty is chosen from, in units of a standardised feature's variance."""


@dataclass(frozen=True, kw_only=True)
class PropertyKnowledge:
    """What the attacker has besides its observation.

    `images` [public, channels, height, width] in [0, 1] are public. What is read is `descent` times minus the mean
    gradient of a unit's `examples`: the learning rate times the local steps, for a step times the server's rate, too.
    `shadows` are replicas that the attacker trained, of other clients, seen through the same view, and `shares`
    [shadows, units, classes] is what they hold.
    """

    model: nn.Module
    images: Tensor | None = None
    examples: int | None = None
    descent: float | None = None
    shadows: ReleasedModel | None = None
    shares: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """Count labels in closed form: the output bias's gradient is the mean softmax minus the labels' shares.

    `reads` says from what. Each round's count is that of `infer_label_counts` (the bias form of Wainakh et al. 2022),
    with the model's mean softmax on public images; rounds are averaged. Exact for one full step of an untrained
    network, whose softmax is much the same for all pictures; a trained one's follows the label, and the bias says
    less and less.
    """

    reads: Reads

    def __post_init__(self) -> None:
        check_choice("reads", self.reads, NEEDS)

    @property
    def name(self) -> str:
        """What tables call it: with what it reads."""
        return f"label counts, {self.reads}"

    @property
    def needs(self) -> type[Participant]:
        """The narrowest view that shows what it reads."""
        return NEEDS[self.reads]

    def run(self, observation: ReleasedModel, knowledge: PropertyKnowledge) -> Scores:
        """Shares [replicas, units, classes]. Raises InputError without images, examples or descent."""
        rounds = recorded_rounds(self.name, observation, self.needs)
        assert isinstance(observation, Participant)
        if knowledge.images is None or knowledge.examples is None or knowledge.descent is None:
            raise InputError(f"{self.name} needs public images, the number of examples and the descent; give all three")
        check_number("examples", knowledge.examples, minimum=1, integer=True)
        check_number("descent", knowledge.descent, above=0)
        counted = []
        for round in rounds:
            chances = mean_chances(knowledge, observation, round)
            gradient = {
                name: -value.cpu() / knowledge.descent
                for name, value in evidence(observation, self.reads, round).items()
            }
            counted.append(
                torch.stack(
                    [
                        infer_label_counts(
                            {name: value[row] for name, value in gradient.items()}, own, knowledge.examples
                        )
                        for row, own in enumerate(chances)
                    ]
                )
            )
        shares: Scores = (torch.stack(counted).double().mean(0) / knowledge.examples).numpy()
        return shares


@dataclass(frozen=True, kw_only=True)
class OutputLayerRegression:
    """Learn from shadow clients how the output layer's change follows the labels behind it (Gu and Bai 2023, LDIA).

    Features of a unit are the output bias's change, the sums over each class's row of weights, and the mean softmax on
    public images of the model that was sent, in every round. Gu and Bai train a neural network on the layer's whole
    change; here it is a ridge regression on these, whose penalty has the least leave-one-out error. Its shares are
    moved to the simplex.
    """

    reads: Reads

    def __post_init__(self) -> None:
        check_choice("reads", self.reads, NEEDS)

    @property
    def name(self) -> str:
        """What tables call it: with what it reads."""
        return f"output layer regression, {self.reads}"

    @property
    def needs(self) -> type[Participant]:
        """The narrowest view that shows what it reads."""
        return NEEDS[self.reads]

    def run(self, observation: ReleasedModel, knowledge: PropertyKnowledge) -> Scores:
        """Shares [replicas, units, classes]. Raises InputError without shadows, or for a model without output bias."""
        rounds = recorded_rounds(self.name, observation, self.needs)
        shadows, shares = _shadows(self.name, knowledge)
        known = recorded_rounds(self.name, shadows, self.needs)
        if known != rounds:
            raise InputError(f"{self.name} was shown rounds {rounds}, but shadows of rounds {known}; record the same")
        classes = shares.shape[-1]
        if knowledge.images is None:
            raise InputError(f"{self.name} needs public images, for what a model says before training; give images")
        target, seen = (self._features(one, rounds, knowledge, classes) for one in (observation, shadows))
        if seen.shape[:2] != shares.shape[:2]:
            raise InputError(f"shadows show {seen.shape[:2]} replicas x units, but shares are {shares.shape[:2]}")
        fitted = ridge(
            seen.reshape(-1, seen.shape[-1]), shares.reshape(-1, classes), target.reshape(-1, target.shape[-1])
        )
        return to_simplex(fitted).reshape(*target.shape[:2], classes)

    def _features(
        self, observation: ReleasedModel, rounds: list[int], knowledge: PropertyKnowledge, classes: int
    ) -> NDArray[np.float64]:
        """[replicas, units, rounds · features]."""
        assert isinstance(observation, Participant)
        bias = output_bias(observation.model, classes)
        rows = [
            name
            for name, value in observation.model.items()
            if value.dim() == 3 and value.shape[1] == classes and name.rpartition(".")[0] == bias.rpartition(".")[0]
        ]
        found: list[Tensor] = []
        for round in rounds:
            seen: Tree = evidence(observation, self.reads, round)
            chances = mean_chances(knowledge, observation, round).unsqueeze(1).expand_as(seen[bias])
            found += [seen[bias], *(seen[name].sum(-1) for name in rows), chances]
        features: NDArray[np.float64] = torch.cat(found, 2).double().cpu().numpy()
        return features


@dataclass(frozen=True, kw_only=True)
class BlindShares:
    """The shadows' mean shares for every unit; it never looks at the target."""

    name: ClassVar[str] = "blind (mean share)"
    needs: ClassVar[type[ReleasedModel]] = ReleasedModel

    def run(self, observation: ReleasedModel, knowledge: PropertyKnowledge) -> Scores:
        """Shares [replicas, units, classes]. Raises InputError without shadows."""
        require_view(self.name, observation, self.needs)
        _, shares = _shadows(self.name, knowledge)
        replicas = len(next(iter(observation.model.values())))
        return np.broadcast_to(shares.mean((0, 1)), (replicas, *shares.shape[1:])).copy()


def mean_chances(knowledge: PropertyKnowledge, observation: Participant, round: int) -> Tensor:
    """The mean softmax on public images of the models that a round sent [replicas, classes]."""
    assert knowledge.images is not None
    sent = {name: observation.models[round][name] for name in observation.model}
    return logits(knowledge.model, sent, knowledge.images).softmax(-1).mean(1)


def total_variation(guess: Floats, truth: Floats) -> Scores:
    """½ Σ|guess − truth| over the last axis: 0 where they agree, 1 where they share no class."""
    found: Scores = 0.5 * np.abs(np.asarray(guess, dtype=np.float64) - truth).sum(-1)
    return found


def ridge(features: Floats, targets: Floats, asked: Floats) -> NDArray[np.float64]:
    """Ridge regression of `targets` [rows, outputs] on standardised `features` [rows, inputs], at `asked` [.., inputs].

    The penalty is the one of `RIDGES` with the least squared leave-one-out error, which needs no refitting for a linear
    smoother H: it is a row's residual over 1 − H_ii.
    """
    centre, spread = features.mean(0), features.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    x, new, middle = (features - centre) / scale, (asked - centre) / scale, targets.mean(0)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    inside = left.T @ (targets - middle)
    best, chosen = np.inf, np.zeros(len(values))
    for penalty in RIDGES:
        shrunk = values**2 / (values**2 + penalty * len(x))
        own = ((left**2) * shrunk).sum(1) + 1 / len(x)
        error = (((targets - middle - left @ (shrunk[:, None] * inside)) / (1 - own).clip(1e-9)[:, None]) ** 2).sum()
        if error < best:
            best, chosen = error, values / (values**2 + penalty * len(x))
    fitted: NDArray[np.float64] = middle + new @ (right.T @ (chosen[:, None] * inside))
    return fitted


def to_simplex(rows: Floats) -> NDArray[np.float64]:
    """The nearest shares to each row [rows, classes]: not negative, adding up to 1 (Duchi et al. 2008, figure 1)."""
    fallen = -np.sort(-rows, axis=-1)
    over = np.cumsum(fallen, axis=-1) - 1
    kept = (fallen - over / np.arange(1, rows.shape[-1] + 1) > 0).sum(-1)
    threshold = np.take_along_axis(over, kept[:, None] - 1, -1) / kept[:, None]
    shares: NDArray[np.float64] = np.maximum(rows - threshold, 0)
    return shares


def _shadows(attack: str, knowledge: PropertyKnowledge) -> tuple[ReleasedModel, NDArray[np.float64]]:
    if knowledge.shadows is None or knowledge.shares is None:
        raise InputError(f"{attack} needs shadows and what their clients hold, and the attacker has none; train some")
    return knowledge.shadows, np.asarray(knowledge.shares, dtype=np.float64)
