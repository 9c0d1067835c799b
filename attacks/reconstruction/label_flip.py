"""Isolation by a label flip: two rounds, the second with two rows of the output layer exchanged, and their difference.

The features' gradient of an example with label y is E_p[W] − W_y. Exchange the rows (and biases) of classes c and d,
and E_p[W] is what it was: the same rows have the same chances. W_y is not, where y is c or d: it is as if those labels
had been flipped. So below the output layer the difference of the two rounds' gradients is, exactly,

    Σ_{y=c} J·(W_c − W_d) + Σ_{y=d} J·(W_d − W_c)        (J: the features' derivative)

over all examples of the batch. If no example has label d and one has label c, it is that one's alone, however many
others there are; the rank of a linear layer's gradient says so. In a sum over clients only the victim is sent the
exchanged model in the second round: the others compute what they had computed in the first one, and cancel. No model
has to be dead for that, as in `inconsistency`, and nobody is sent an odd one: it is a model with two classes exchanged.

It takes two rounds on the same batch, with the same clients, and gradients without noise. Isolating chosen clients'
gradients is what Carletti et al. 2025 file under gradient isolation, letter H (Boenisch et al. 2023, "Reconstructing
Individual Data Points in Federated Learning Hardened with Differential Privacy and Secure Aggregation": there the other
clients are the server's own). The exchange of rows as written above is derived here and is not taken from a paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.views import MaliciousServer, require_view


@dataclass(frozen=True, kw_only=True)
class FlipKnowledge:
    """What the server knows besides its observation: the victim's weight in the sum, and the rate of its one step."""

    weight: float = 1.0
    lr: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Isolated:
    """What the flip changed of the gradient [replicas, ...]: below the output layer the flipped examples' part.

    An example's part is J·(W_c − W_d) over the batch's size. `purity` says whether it is one example's.
    """

    gradient: Tree


@dataclass(frozen=True, kw_only=True)
class LabelFlip:
    """Exchange classes `first` and `second` of the output layer, called `weight` and `bias`."""

    first: int
    second: int
    weight: str = "head.weight"
    bias: str = "head.bias"

    name: ClassVar[str] = "label flip"
    needs: ClassVar[type[MaliciousServer]] = MaliciousServer
    letter: ClassVar[str] = "H"
    """An active client manipulator (Carletti et al. 2025): it changes the model, and needs the same clients twice."""

    def __post_init__(self) -> None:
        check_number("attack.first", self.first, minimum=0, integer=True)
        check_number("attack.second", self.second, minimum=0, integer=True)
        if self.first == self.second:
            raise InputError(f"attack.first and attack.second are both {self.first}; two classes are exchanged")

    def flipped(self, model: Tree) -> Tree:
        """`model` [...] with the two rows exchanged, on the axis of classes."""
        found = dict(model)
        for name, axis in ((self.weight, -2), (self.bias, -1)):
            if (
                name not in model
                or model[name].dim() < -axis
                or model[name].shape[axis] <= max(self.first, self.second)
            ):
                raise InputError(f"{name} has no classes {self.first} and {self.second}; name the output layer's own")
            order = torch.arange(model[name].shape[axis])
            order[[self.first, self.second]] = order[[self.second, self.first]]
            found[name] = model[name].index_select(axis, order)
        return found

    def broadcast(self, model: Tree, cohort: int, seat: int) -> tuple[Tree, Tree]:
        """What each client is sent in the two rounds [replicas, cohort, ...], of a `model` [replicas, ...].

        The first round's is the model for all, and the second's the same but at `seat`.
        """
        plain = {name: value.unsqueeze(1).expand(-1, cohort, *value.shape[1:]) for name, value in model.items()}
        second = {name: value.clone() if name in (self.weight, self.bias) else value for name, value in plain.items()}
        for name, value in self.flipped(model).items():
            if name in (self.weight, self.bias):
                second[name][:, seat] = value
        return plain, second

    def run(
        self, observation: MaliciousServer, knowledge: FlipKnowledge, *, rounds: tuple[int, int] = (0, 1)
    ) -> Isolated:
        """The difference of two rounds' sums, the second of them the flipped one.

        Raises InputError for a view without the sum and its own broadcast, rounds that were not recorded, and cohorts
        that differ, in which nothing cancels.
        """
        require_view(self.name, observation, MaliciousServer)
        for round in rounds:
            if round not in observation.sums:
                raise InputError(f"round {round} was not recorded; recorded: {sorted(observation.sums)}")
        plain, second = (observation.sums[round] for round in rounds)
        if not torch.equal(observation.cohorts[rounds[0]], observation.cohorts[rounds[1]]):
            raise InputError("the two rounds have different cohorts; only the same clients' updates cancel")
        factor = knowledge.weight * knowledge.lr
        # An update is minus the rate times the gradient.
        gradient = {name: (value - second[name]) / -factor for name, value in plain.items()}
        return Isolated(gradient=gradient)


def purity(weight: Tensor) -> Tensor:
    """How much of a linear layer's gradient [lanes, units, inputs] is one example's: 1 is all of it, [lanes].

    An example's own has rank 1; this is the largest singular value's share of the squared length. Zeros have 0.
    """
    squares = torch.linalg.svdvals(weight.double()).square()
    found: Tensor = squares[:, 0] / squares.sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    return found
