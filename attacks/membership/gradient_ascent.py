"""Membership by provocation: the server makes the model forget the targets, and watches who brings them back.

Nasr et al. 2019, "Comprehensive Privacy Analysis of Deep Learning" (section II-C, active attacks): before it sends the
model out, the server climbs the loss of the targets, W ← W + γ ∂L/∂W. A client that holds a target descends its loss
again, and fast, since its gradient is steep there; the loss of a target that nobody holds stays up. The paper feeds
what is seen to a classifier trained on known members; here the score needs none.

Round after round a target that nobody holds climbs faster, until its gradients are all that the model learns from. So
here a target is let be while its loss is above a ceiling, which the paper does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.base import Bools, Ints, MembershipKnowledge
from attacks.membership.observed import MaliciousServerSignals, Signals, require_signals
from attacks.membership.series import SMALLEST_LENGTH
from attacks.membership.signals import loss
from fl_core.errors import InputError, check_choice, check_number
from fl_core.models import ClassificationLosses, statistics_of
from fl_core.optimizers import Tree

Measure = Literal["loss", "gradient"]


@dataclass(frozen=True, kw_only=True)
class GradientAscent:
    """Climbs in every round from `start` on, at the rate γ = `rate` on the mean loss of the round's targets.

    All candidates are targets, dealt into `groups` by their number: round r climbs for those of group r mod `groups`
    whose loss is below the `ceiling`, in nats (2.3 is what guessing costs among ten classes; None is no ceiling). An
    example's score is the mean over its group's rounds of the negated `loss` under what came back, or of the negated
    logarithm of the length of its `gradient` there.
    """

    rate: float = 1.0
    groups: int = 1
    start: int = 0
    ceiling: float | None = 2.3
    measure: Measure = "loss"

    name: ClassVar[str] = "gradient ascent"
    needs: ClassVar[type[Signals]] = MaliciousServerSignals

    def __post_init__(self) -> None:
        check_number("gradient ascent rate", self.rate, above=0)
        check_number("gradient ascent groups", self.groups, minimum=1, integer=True)
        check_number("gradient ascent start", self.start, minimum=0, integer=True)
        if self.ceiling is not None:
            check_number("gradient ascent ceiling", self.ceiling, above=0)
        check_choice("gradient ascent measure", self.measure, ("loss", "gradient"))

    def tampering(self, model: nn.Module, images: Tensor, labels: Tensor) -> Ascent:
        """What the federation's `tamper` is to be, for the candidates `images` [examples, ...]."""
        return Ascent(self, model, images, labels)

    def climbed(self, rounds: Ints, examples: int) -> Bools:
        """Which round was for whom [rounds, examples]."""
        turn: Bools = np.arange(examples) % self.groups == (rounds % self.groups)[:, None]
        return turn & (rounds >= self.start)[:, None]

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Scores [examples], in nats.

        Raises InputError for a view that does not show what came back, and where no round that was read climbed for an
        example.
        """
        require_signals(self.name, signals, self.needs)
        assert isinstance(signals, MaliciousServerSignals)
        values = -loss(signals.returned_confidence[0])
        if self.measure == "gradient":
            values = -np.log(np.maximum(signals.returned_norm[0].astype(np.float64), SMALLEST_LENGTH))
        climbed = self.climbed(np.asarray(signals.rounds), values.shape[1])
        counts = climbed.sum(axis=0)
        if not counts.all():
            raise InputError(
                f"no recorded round climbed for {int((counts == 0).sum())} of {counts.size} targets; record more, "
                f"start earlier (start is {self.start}) or make fewer groups (groups is {self.groups})"
            )
        scores: NDArray[np.float64] = np.where(climbed, values, 0.0).sum(axis=0) / counts
        return scores


@dataclass(frozen=True)
class Ascent:
    """The climb itself, a `fl_core.tampering.Tampering` for the candidates `images` [examples, ...] and `labels`."""

    attack: GradientAscent
    model: nn.Module
    images: Tensor
    labels: Tensor

    def tamper(self, round: int, sent: Tree) -> Tree:
        """The parameters [replicas, ...] after one step up the mean loss of the round's targets.

        The model is asked in evaluation mode. Variables that are not sent (a client's own layers) are the module's.
        """
        climbs = self.attack.climbed(np.array([round]), len(self.labels))[0]
        if not climbs.any():
            return {}
        device = next(iter(sent.values())).device
        rows = torch.from_numpy(climbs)
        images, labels = self.images[rows].to(device), self.labels[rows].to(device)
        training = self.model.training
        losses, statistics = ClassificationLosses(self.model), statistics_of(self.model)
        self.model.eval()
        own = {name: value.detach() for name, value in self.model.state_dict().items()}
        names = [name for name, _ in self.model.named_parameters() if name in sent]
        changed = {name: sent[name].clone() for name in names}
        for replica in range(len(changed[names[0]])):
            fixed = own | {name: sent[name][replica] for name in statistics if name in sent}
            leaves = {name: changed[name][replica].detach().requires_grad_() for name in names}
            for part, truth in zip(images.split(PART), labels.split(PART), strict=True):
                each = losses(fixed | leaves, part, truth)
                below = 1.0 if self.attack.ceiling is None else (each.detach() < self.attack.ceiling).to(each)
                slopes = torch.autograd.grad((each * below).sum() / len(labels), list(leaves.values()))
                for name, slope in zip(names, slopes, strict=True):
                    changed[name][replica] += self.attack.rate * slope
        self.model.train(training)
        return changed


PART = 1024
"""The most targets whose losses are differentiated at once."""
