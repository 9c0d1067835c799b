"""Pictures from a sum of updates: what is left of gradient inversion under secure aggregation.

Every client of the observed round takes one step on one picture; the server sees the mean update alone. There is no
victim to single out: what comes out is somebody's picture, or a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.reconstruction.base import Knowledge, sums_of
from attacks.reconstruction.first_layer import first_layer
from attacks.reconstruction.gradient_matching import GradientMatching
from fl_core.errors import check_number
from fl_core.lanes import Backend
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
        self._matching()  # checks the numbers

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
        sums = sums_of(observation, round, self.name)
        told = Knowledge(
            model=knowledge.model,
            shape=knowledge.shape,
            classes=knowledge.classes,
            examples=observation.cohorts[round].shape[1],
            lr=knowledge.lr,
        )
        found = self._matching().run(sums, told, run=run, backend=backend)
        return Candidates(images=found.selected(), chosen=torch.zeros(len(sums), dtype=torch.long))

    def _matching(self) -> GradientMatching:
        return GradientMatching(
            name=self.name,
            letter=self.letter,
            restarts=self.restarts,
            iterations=self.iterations,
            lr=self.lr,
            total_variation=self.total_variation,
        )
