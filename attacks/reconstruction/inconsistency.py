"""Eluding secure aggregation: one client gets the model, all others one whose gradients are zero.

Pasquini, Francati & Ateniese 2022, "Eluding Secure Aggregation in Federated Learning via Model Inconsistency". In the
others' model the last hidden layer of rectified units is dead: its biases are so low that no unit fires on any picture.
Nothing below it gets a gradient, and the weights above it see zeros. So their updates are zero, the masks cancel as
ever, and the sum is the victim's own update. Only the biases above the dead layer still move; what the others add there
is the number of their examples of each class.

It needs nothing of the masks but that clients with different models can be summed, which a hash of the model in the key
derivation prevents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.views import MaliciousServer, require_view


@dataclass(frozen=True, kw_only=True)
class InconsistencyKnowledge:
    """What the server knows besides its observation: the victim's seat in the cohort and its weight in the sum."""

    seat: int
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Unmasked:
    """The victim's update [replicas, ...], and the names of the variables in which the others' updates are, too."""

    update: Tree
    shared: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelInconsistency:
    """Kill the rectified units whose biases are called `biases` in every model but the victim's.

    They are the last hidden layer's, or its norm's, and those of any layer that goes round it; `above` names what is
    behind them and has no zero gradient, the output layer's bias. They are lowered by `margin`, far more than a layer's
    inputs can make up for.
    """

    biases: Sequence[str]
    above: Sequence[str] = ("head.bias",)
    margin: float = 1e4

    name: ClassVar[str] = "model inconsistency"
    needs: ClassVar[type[MaliciousServer]] = MaliciousServer
    letter: ClassVar[str] = "F"
    """An active manipulator (Carletti et al. 2025): it changes the model, and needs no data."""

    def __post_init__(self) -> None:
        check_number("attack.margin", self.margin, above=0)

    def broadcast(self, model: Tree, cohort: int, seat: int, crafted: Tree | None = None) -> Tree:
        """What each client is sent [replicas, cohort, ...]: the `model` [replicas, ...] killed, and at `seat` unharmed.

        A `crafted` model [replicas, ...] goes to the victim instead, such as one with an imprint layer.
        """
        missing = [name for name in self.biases if name not in model]
        if missing or not self.biases:
            raise InputError(
                f"the model has no {', '.join(missing) or 'biases named'}; name its last hidden layer's bias"
            )
        dead = model | {name: model[name] - self.margin for name in self.biases}
        sent = {name: value.unsqueeze(1).repeat_interleave(cohort, 1) for name, value in dead.items()}
        for name, value in (crafted or model).items():
            sent[name][:, seat] = value
        return sent

    def run(self, observation: MaliciousServer, knowledge: InconsistencyKnowledge, *, round: int = 0) -> Unmasked:
        """Take the sum of `round` for the victim's update.

        Raises InputError for a view without the sum and its own broadcast, and where the others were sent a model that
        lives, so that the sum is theirs, too.
        """
        require_view(self.name, observation, MaliciousServer)
        if round not in observation.sums:
            raise InputError(f"round {round} was not recorded; recorded: {sorted(observation.sums)}")
        others = torch.arange(observation.cohorts[round].shape[-1]) != knowledge.seat
        if any((observation.sent[round][name][:, others] > -self.margin / 2).any() for name in self.biases):
            raise InputError("some client besides the victim was sent a model that is not dead; the sum is its, too")
        total = observation.sums[round]
        return Unmasked(
            update={name: value / knowledge.weight for name, value in total.items()},
            shared=tuple(name for name in total if name in self.above),
        )
