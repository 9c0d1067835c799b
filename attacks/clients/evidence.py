"""What a round shows of its clients: a step of the global model, a sum, or each client's own update.

The three are read alike, as trees [replicas, units, ...]: a step and a sum are one unit, a cohort has a unit a seat.
Under plain averaging the step is the server's learning rate times the sum. Noise that the server adds is in the step
alone, and who took part is known of the sum alone.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad, vmap

from attacks.membership.signals import scaled_confidence
from fl_core.errors import InputError
from fl_core.models import ClassificationLosses, logits, statistics_of
from fl_core.optimizers import Tree
from fl_core.partition import NOBODY
from fl_core.views import Participant, ReleasedModel, SecureServer, Server, require_view

Scores = NDArray[np.float64]
Reads = Literal["step", "sum", "update"]

NEEDS: dict[Reads, type[Participant]] = {"step": Participant, "sum": SecureServer, "update": Server}
"""The view that shows each."""


def recorded_rounds(attack: str, observation: ReleasedModel, needs: type[Participant]) -> list[int]:
    """The rounds that the observation shows, ascending; InputError for a view that shows too little, or no round."""
    require_view(attack, observation, needs)
    assert isinstance(observation, Participant)
    if not observation.models:
        raise InputError(f"{attack} needs a recorded round, and the observation has none; record some")
    return sorted(observation.models)


def evidence(observation: Participant, reads: Reads, round: int) -> Tree:
    """What `reads` names in a round, the model's own variables alone: [replicas, units, ...].

    A step goes to the next round's model, after the last recorded round to the released one; so steps need every round
    up to the last. InputError where a round is missing between, or has no sum.
    """
    if reads == "update":
        assert isinstance(observation, Server)
        return {name: observation.updates[round][name] for name in observation.model}
    if reads == "sum":
        assert isinstance(observation, SecureServer)
        if not observation.sums[round]:
            raise InputError(f"nobody took part in round {round}, so there is no sum; leave that round out")
        return {name: observation.sums[round][name].unsqueeze(1) for name in observation.model}
    after = observation.model
    if round != max(observation.models):
        if round + 1 not in observation.models:
            raise InputError(
                f"round {round} is recorded and round {round + 1} is not, so the step between is unknown; record all "
                "rounds, or attack the sum"
            )
        after = observation.models[round + 1]
    return {name: (after[name] - observation.models[round][name]).unsqueeze(1) for name in observation.model}


def own_models(observation: Server, round: int) -> Tree:
    """The cohort's models after their local training [replicas, seats, ...]; an empty seat's is the one sent out.

    Each client started from the model of the round that its version names.
    """
    rows = torch.arange(len(observation.versions[round])).unsqueeze(1)
    numbers = sorted(observation.models)
    places = torch.tensor([numbers.index(int(one)) for one in observation.versions[round].flatten()])
    places = places.view_as(observation.versions[round])
    return {
        name: torch.stack([observation.models[number][name] for number in numbers])[places, rows] + update
        for name, update in evidence(observation, "update", round).items()
    }


def flat(tree: Tree, lead: int = 1) -> Tensor:
    """A tree [..., ...] as rows [..., parameters] after `lead` axes, float64 on the CPU."""
    return torch.cat([value.reshape(*value.shape[:lead], -1) for value in tree.values()], lead).double().cpu()


def descents(model: nn.Module, parameters: Tree, images: Tensor, labels: Tensor) -> Tensor:
    """Minus the gradient of the mean loss over examples, at each replica's parameters [replicas, ...].

    `images` [replicas, examples, channels, height, width] in [0, 1] and `labels` [replicas, examples]. Returns
    [replicas, parameters], float64, zero for variables that are no parameters (BatchNorm's statistics).
    """
    losses, fixed = ClassificationLosses(model), statistics_of(model)

    def mean_loss(own: Tree, rest: Tree, pictures: Tensor, classes: Tensor) -> Tensor:
        return losses(own | rest, pictures, classes).mean()

    own = {name: value for name, value in parameters.items() if name not in fixed}
    rest = {name: value for name, value in parameters.items() if name in fixed}
    found: Tree = vmap(grad(mean_loss))(own, rest, images, labels)
    return -flat({name: found.get(name, torch.zeros_like(value)) for name, value in parameters.items()})


def confidences(model: nn.Module, parameters: Tree, images: Tensor, labels: Tensor) -> Scores:
    """Scaled confidence in nats of examples [examples, ...] under stacked models [lanes, ...]: [lanes, examples]."""
    asked = logits(model, parameters, images).numpy()
    return np.stack([scaled_confidence(own, labels.numpy()) for own in asked])


def by_client(values: Tensor, cohort: Tensor, clients: int) -> Tensor:
    """Seats' values [replicas, seats, ...] added up by client [replicas, clients, ...]; empty seats count for nobody.

    `cohort` [replicas, seats] says who sits where. InputError for a client beyond `clients`.
    """
    outside = int(cohort.max()) if cohort.numel() else NOBODY
    if outside >= clients:
        raise InputError(f"client {outside} sent an update, but the attacker knows of {clients} clients; raise clients")
    there = cohort != NOBODY
    index = torch.where(there, cohort, clients).view(*cohort.shape, *[1] * (values.dim() - 2)).expand_as(values)
    total = values.new_zeros(len(values), clients + 1, *values.shape[2:])
    return total.scatter_add(1, index, values)[:, :clients]
