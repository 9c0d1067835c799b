"""Pictures from a sum of updates: what is left of gradient inversion under secure aggregation.

Every client of the observed round takes one step on one picture; the server sees the mean update alone. There is no
victim to single out: what comes out is somebody's picture, or a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacks.reconstruction.first_layer import first_layer
from attacks.reconstruction.gradient_matching import Objective, fit
from attacks.reconstruction.labels import infer_label_counts
from fl_core.errors import check_number
from fl_core.lanes import Backend
from fl_core.optimizers import SignedAdam, Tree
from fl_core.seeds import generator
from fl_core.views import SecureServer, require_view


@dataclass(frozen=True, kw_only=True)
class SumKnowledge:
    """What the attacker was told: the model's code, the picture's shape, the classes and the local learning rate."""

    model: nn.Module
    shape: tuple[int, int, int]
    classes: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Pictures recovered from each replica's sum: `images` [replicas, candidates, channels, height, width] in [0, 1].

    `chosen` [replicas] is the candidate that the attacker trusts most, by what it can see.
    """

    images: Tensor
    chosen: Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Each row of a fully connected first layer, weight gradient over bias gradient (Phong et al. 2017, section 3.1).

    A row whose unit is active for one picture of the cohort alone gives that picture exactly; otherwise it gives a
    mixture, whose weights add up to 1 and may be negative. The attacker trusts, among the rows that stay in [0, 1] up
    to `tolerance`, the one with the fewest pixels that are not black, as a mixture lights up what any of its pictures
    does. That is what it expects of drawings on black, such as digits. Where no row stays in the range (noise sees to
    that), it takes the one of the largest bias gradient.
    """

    tolerance: float = 0.02
    black: float = 1e-3

    name = "rows"
    needs = SecureServer
    letter = "C"

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, minimum=0)
        check_number("black", self.black, minimum=0)

    def run(self, observation: SecureServer, knowledge: SumKnowledge, *, round: int = 0) -> Candidates:
        """Raises InputError for a view without sums, and for a model whose first layer does not take the pixels."""
        require_view(self.name, observation, SecureServer)
        first = first_layer(knowledge.model, knowledge.shape)
        total = observation.sums[round]
        slope = total[first.bias]  # [replicas, rows]; the sign and scale of an update cancel in the quotient
        inputs = total[first.weight] / torch.where(slope == 0, torch.inf, slope).unsqueeze(2)
        pixels = first.pixels(inputs)
        outside = (pixels - pixels.clamp(0, 1)).abs().mean(2)
        plausible = (outside <= self.tolerance) & (slope != 0)
        lit = (pixels.abs() > self.black).double().mean(2)
        steep = slope.abs() / slope.abs().amax(1, keepdim=True).clamp(min=1e-30)
        trust = torch.where(plausible, 2 - lit, torch.where(plausible.any(1, keepdim=True), 0.0, steep))
        return Candidates(images=pixels.unflatten(2, knowledge.shape).clamp(0, 1).cpu(), chosen=trust.argmax(1).cpu())


@dataclass(frozen=True, kw_only=True)
class InvertingSums:
    """As many pictures as clients, whose mean gradient points where the sum points (after Geiping et al. 2020, eq. 4).

    They are fitted together, with the labels that the sum's output bias gives away. The restart is picked by the
    attacker's objective, and its first picture is the attacker's choice: it has no reason to prefer another.
    """

    restarts: int = 1
    iterations: int = 400
    lr: float = 0.1
    total_variation: float = 1e-2

    name = "inverting sums"
    needs = SecureServer
    letter = "C"

    def __post_init__(self) -> None:
        check_number("restarts", self.restarts, minimum=1, integer=True)
        check_number("iterations", self.iterations, minimum=1, integer=True)
        check_number("lr", self.lr, above=0)
        check_number("total_variation", self.total_variation, minimum=0)

    def run(
        self,
        observation: SecureServer,
        knowledge: SumKnowledge,
        *,
        round: int = 0,
        run: int = 0,
        backend: Backend = "auto",
    ) -> Candidates:
        """Attack each replica's sum of `round`; `run` seeds the restarts. Raises InputError for a view without sums."""
        require_view(self.name, observation, SecureServer)
        sent, total = observation.models[round], observation.sums[round]
        names = [name for name, _ in knowledge.model.named_parameters()]
        gradient = {name: total[name] / -knowledge.lr for name in names}
        replicas, cohort = observation.cohorts[round].shape
        labels = self._labels(sent, gradient, knowledge, cohort)
        start = torch.stack(
            [
                torch.rand(cohort, *knowledge.shape, generator=generator(run, "restart of a sum", replica, restart))
                for replica in range(replicas)
                for restart in range(self.restarts)
            ]
        )
        images, missed = fit(
            Objective(knowledge.model, self.total_variation),
            ({name: sent[name] for name in names}, gradient, labels),
            start.unflatten(0, (replicas, self.restarts)),
            SignedAdam(lr=self.lr, steps=self.iterations),
            backend=backend,
        )
        best = images[torch.arange(replicas), missed.argmin(1)]
        return Candidates(images=best, chosen=torch.zeros(replicas, dtype=torch.long))

    def _labels(self, sent: Tree, gradient: Tree, knowledge: SumKnowledge, cohort: int) -> Tensor:
        """The labels behind each sum, in rising order [replicas, cohort]."""
        dummies = torch.rand(256, *knowledge.shape, generator=generator(0, "pictures for label counts"))
        rows = []
        for replica in range(len(next(iter(sent.values())))):
            mine = {name: value[replica] for name, value in sent.items()}
            with torch.no_grad():
                chances = functional_call(knowledge.model, mine, (dummies,)).softmax(1).mean(0)
            own = {name: value[replica : replica + 1] for name, value in gradient.items()}
            counts = infer_label_counts(own, chances, cohort)[0]
            rows.append(torch.arange(knowledge.classes).repeat_interleave(counts))
        return torch.stack(rows)
