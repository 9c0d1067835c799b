"""Who holds what: owners of the examples, planted canaries, and which replica trains on which example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fl_core.data import ImageSet
from fl_core.errors import InputError, check_number
from fl_core.seeds import generator, seed


class Partition(Protocol):
    """`owners(labels, clients, run)` gives each example's client [examples]."""

    def owners(self, labels: Tensor, clients: int, run: int) -> Tensor: ...


@dataclass(frozen=True)
class IID:
    """Every client gets an equal share, drawn uniformly; sizes differ by at most one."""

    def owners(self, labels: Tensor, clients: int, run: int) -> Tensor:
        order = torch.randperm(len(labels), generator=generator(run, "partition"))
        owners = torch.empty(len(labels), dtype=torch.long)
        owners[order] = torch.arange(len(labels)) % clients
        return owners


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Each class is split over the clients in Dirichlet(alpha) shares (Hsu et al. 2019); a small alpha is uneven."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_number("partition.alpha", self.alpha, above=0)

    def owners(self, labels: Tensor, clients: int, run: int) -> Tensor:
        import numpy as np

        rng = np.random.default_rng(seed(run, "partition"))
        owners = torch.empty(len(labels), dtype=torch.long)
        for label in labels.unique().tolist():
            mine = torch.from_numpy(rng.permutation(torch.nonzero(labels == label).flatten().numpy()))
            ends = (np.cumsum(rng.dirichlet([self.alpha] * clients)) * len(mine)).round().astype(int)[:-1]
            for client, part in enumerate(torch.tensor_split(mine, ends.tolist())):
                owners[part] = client
        return owners


def split(partition: Partition, data: ImageSet, clients: int, run: int) -> Tensor:
    """Owners [examples] under `partition`; refuses more clients than examples, or a client left with none."""
    check_number("clients", clients, minimum=1, integer=True)
    if clients > len(data):
        raise InputError(
            f"clients is {clients}, but there are only {len(data)} examples; lower clients or raise data.limit"
        )
    owners = partition.owners(data.labels.cpu(), clients, run)
    empty = clients - len(owners.unique())
    if empty:
        raise InputError(
            f"the partition leaves {empty} of {clients} clients without an example; use fewer clients or a larger alpha"
        )
    return owners


def plant_canaries(data: ImageSet, fraction: float, run: int) -> tuple[ImageSet, Tensor]:
    """Give a random `fraction` of the examples a wrong label; returns the data and who is a canary [examples].

    A mislabelled example is the unique, rare one: nothing else in the data teaches its label, so a model that knows
    it has memorised it.
    """
    check_number("canaries", fraction, minimum=0, below=1)
    count = round(fraction * len(data))
    draw = generator(run, "canaries")
    chosen = torch.randperm(len(data), generator=draw)[:count]
    shift = torch.randint(1, len(data.classes), (count,), generator=draw)
    labels = data.labels.clone()
    labels[chosen] = (labels[chosen] + shift.to(labels.device)) % len(data.classes)
    canary = torch.zeros(len(data), dtype=torch.bool)
    canary[chosen] = True
    return data.relabel(labels), canary


def draw_members(replicas: int, examples: int, rate: float, run: int) -> Tensor:
    """Membership [replicas, examples]: each example joins each replica by its own coin of chance `rate`.

    Independent coins, not an exact half: with an exact half, the number of other replicas that hold an example tells
    whether this one does.
    """
    check_number("replicas", replicas, minimum=1, integer=True)
    check_number("membership", rate, above=0, maximum=1)
    return torch.stack(
        [torch.rand(examples, generator=generator(run, "membership", replica)) < rate for replica in range(replicas)]
    )
