"""Signals of training for attacks that read them: made by hand, or read from a small federation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.observed import ServerSignals
from attacks.membership.reading import read_signals
from defenses.base import Defense
from fl_core.data import ImageSet
from fl_core.federation import Federation, run
from fl_core.seeds import generator
from fl_core.views import Recorder, Server
from tests.federations import federation


def by_hand(
    replicas: int,
    examples: int,
    gain: float,
    seed: int,
    *,
    rounds: int = 5,
    clients: int = 6,
    rate: float = 1.0,
) -> tuple[ServerSignals, np.ndarray, np.ndarray]:
    """A server's signals, Bernoulli members [replicas, examples] and owners [examples].

    Each number is a Gaussian around the example's own difficulty; `gain` is added to a member's in the models, in
    the steps and sums, and in what its own client sent. A client takes part in a round with the chance `rate`.
    """
    rng = np.random.default_rng(seed)
    members = rng.random((replicas, examples)) < 0.5
    owners = rng.integers(0, clients, examples)
    labels = rng.integers(0, 4, examples)
    hard = rng.standard_normal(examples)
    lift = gain * members

    def per_round(by: float = 1.0) -> np.ndarray:
        return hard + by * lift[:, None] + rng.standard_normal((replicas, rounds, examples))

    def per_client() -> np.ndarray:
        own = (owners == np.arange(clients)[:, None]) * lift[:, None, None]
        values = hard + own + rng.standard_normal((replicas, rounds, clients, examples))
        return np.where(took_part[..., None], values, np.nan)

    took_part = rng.random((replicas, rounds, clients)) < rate
    ones = np.ones((replicas, rounds))
    logits = rng.standard_normal((replicas, 1, examples, 4))
    logits[:, :, np.arange(examples), labels] += (hard + lift)[:, None]
    signals = ServerSignals(
        labels=labels,
        logits=logits,
        rounds=np.arange(rounds),
        round_confidence=per_round(),
        gradient_norm=np.exp(-0.2 * per_round()),
        layer_norm=np.exp(-0.2 * per_round()),
        step_product=per_round(),
        step_norm=4 * ones,
        layer_product=per_round(),
        sum_product=per_round(),
        sum_norm=3 * ones,
        sum_layer_product=per_round(),
        client_product=per_client(),
        client_norm=np.where(took_part, 2.0, np.nan),
        client_gradient_norm=np.where(took_part[..., None], np.ones(examples), np.nan),
        client_layer_product=per_client(),
        client_confidence=per_client(),
        took_part=took_part,
    )
    return signals, members, owners


def last_of(
    signals: ServerSignals, members: np.ndarray, owners: np.ndarray | None = None
) -> tuple[Any, MembershipKnowledge]:
    """The last replica as the target, and the others as its shadows."""
    shadows = Shadows(signals=signals.select(slice(-1)), members=members[:-1])
    return signals.select([-1]), MembershipKnowledge(shadows=shadows, owners=owners)


def noise(count: int, side: int = 8, classes: int = 3, purpose: str = "noise pictures") -> ImageSet:
    """Pictures of nothing, whose gradients are nearly orthogonal."""
    draw = generator(0, purpose)
    labels = torch.randint(0, classes, (count,), generator=draw)
    return ImageSet(torch.rand(count, 1, side, side, generator=draw), labels, tuple("abcdefghij"[:classes]))


def played(members: torch.Tensor, data: ImageSet, clients: int, **changes: Any) -> Federation:
    """A federation of `members` [replicas, examples], dealt out to the clients in turn."""
    settings: dict[str, Any] = {
        "data": data,
        "owners": torch.arange(len(data)) % clients,
        "members": members,
        "sizes": torch.full((clients,), max(len(data) // clients // 2, 1)),
        "replica_ids": range(len(members)),
        "defense": Defense(),
    }
    return federation(**(settings | changes))


def seen_by_server(federated: Federation, view: Any = Server) -> Any:
    """Play a federation, and read what a view shows of all its candidates."""
    recorder = Recorder(view=view)
    run(federated, recorder)
    return signals_of_run(recorder, federated)


def signals_of_run(recorder: Recorder, federated: Federation) -> Any:
    model: nn.Module = federated.model
    return read_signals(
        recorder.observation(), model, federated.data.images, federated.data.labels, clients=len(federated.sizes)
    )
