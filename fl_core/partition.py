"""Who holds what: owners of the examples, planted canaries and rarities, and which replica trains on which example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from fl_core.data import ImageSet, class_number
from fl_core.errors import InputError, check_choice, check_number
from fl_core.seeds import generator, seed

NOBODY = -1
"""The owner of an example that no client holds: it trains no model."""

MOST_EVEN = 1e6
"""A larger alpha changes nothing that could be seen, and far larger ones overflow."""


class Partition(Protocol):
    """Who holds which example."""

    def owners(self, data: ImageSet, clients: int, run: int) -> Tensor:
        """Each example's client [examples], int64, on the CPU; InputError where the data cannot be dealt so."""
        ...


@dataclass(frozen=True)
class IID(Partition):
    """Every client gets an equal share, drawn uniformly; sizes differ by at most one."""

    def owners(self, data: ImageSet, clients: int, run: int) -> Tensor:
        order = torch.randperm(len(data), generator=generator(run, "partition"))
        owners = torch.empty(len(data), dtype=torch.long)
        owners[order] = torch.arange(len(data)) % clients
        return owners


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partition):
    """Each class is split over the clients in Dirichlet(alpha) shares (Hsu et al. 2019); a small alpha is uneven."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_number("partition.alpha", self.alpha, above=0, maximum=MOST_EVEN)

    def owners(self, data: ImageSet, clients: int, run: int) -> Tensor:
        labels = data.labels.cpu()
        rng = np.random.default_rng(seed(run, "partition"))
        owners = torch.empty(len(labels), dtype=torch.long)
        for label in labels.unique().tolist():
            mine = torch.from_numpy(rng.permutation(torch.nonzero(labels == label).flatten().numpy()))
            ends = (np.cumsum(rng.dirichlet([self.alpha] * clients)) * len(mine)).round().astype(int)[:-1]
            for client, part in enumerate(torch.tensor_split(mine, ends.tolist())):
                owners[part] = client
        return owners


@dataclass(frozen=True, kw_only=True)
class Shards(Partition):
    """Examples sorted by class are cut into equal shards; each client gets `shards_per_client` of them at random.

    McMahan et al. 2017, section 3: "pathological", since two shards are the examples of about two classes. Sizes of
    shards differ by at most one.
    """

    shards_per_client: int = 2

    def __post_init__(self) -> None:
        check_number("partition.shards_per_client", self.shards_per_client, minimum=1, integer=True)

    def owners(self, data: ImageSet, clients: int, run: int) -> Tensor:
        shards = clients * self.shards_per_client
        if shards > len(data):
            raise InputError(
                f"partition.shards_per_client is {self.shards_per_client}, which makes {shards} shards for {clients} "
                f"clients, but there are only {len(data)} examples; lower it or clients"
            )
        draw = generator(run, "partition")
        order = torch.randperm(len(data), generator=draw)  # so that chance says which of a class share a shard
        order = order[data.labels.cpu()[order].argsort(stable=True)]
        holder = torch.randperm(shards, generator=draw) % clients
        owners = torch.empty(len(data), dtype=torch.long)
        for shard, part in enumerate(order.tensor_split(shards)):
            owners[part] = holder[shard]
        return owners


@dataclass(frozen=True, kw_only=True)
class QuantitySkew(Partition):
    """Clients differ in how much they hold, not in what: sizes in Dirichlet(alpha) shares, classes as in the pool.

    Quantity skew of Li et al. 2022 (Federated Learning on Non-IID Data Silos). Every client first gets `minimum`
    examples, and the shares are those of the rest.
    """

    alpha: float = 0.5
    minimum: int = 10

    def __post_init__(self) -> None:
        check_number("partition.alpha", self.alpha, above=0, maximum=MOST_EVEN)
        check_number("partition.minimum", self.minimum, minimum=1, integer=True)

    def owners(self, data: ImageSet, clients: int, run: int) -> Tensor:
        rest = len(data) - clients * self.minimum
        if rest < 0:
            raise InputError(
                f"partition.minimum is {self.minimum}, but {len(data)} examples are too few to give {clients} clients "
                f"that many; it must be at most {len(data) // clients}"
            )
        rng = np.random.default_rng(seed(run, "partition"))
        ends = (np.cumsum(rng.dirichlet([self.alpha] * clients)) * rest).round().astype(int)
        ends[-1] = rest
        sizes = np.diff(ends, prepend=0) + self.minimum
        owners = torch.from_numpy(np.repeat(np.arange(clients), sizes))
        return owners[torch.from_numpy(rng.permutation(len(data)))]


@dataclass(frozen=True)
class Natural(Partition):
    """Every owner that the data name (a writer, a photographer, a hospital) is a client, numbered as in the data."""

    def owners(self, data: ImageSet, clients: int, run: int) -> Tensor:
        if data.owners is None:
            raise InputError(
                "partition=natural needs data that name their owners: data=parquet with data.owner_column, data=npz "
                "with an array `owners`, or data=folder with data.by_owner=true"
            )
        if clients != len(data.owner_names):
            raise InputError(
                f"clients is {clients}, but the data have {len(data.owner_names)} owners; "
                f"set clients={len(data.owner_names)} or choose another partition"
            )
        return data.owners.cpu()


def split(partition: Partition, data: ImageSet, clients: int, run: int) -> Tensor:
    """Owners [examples] under `partition`; refuses more clients than examples, or a client left with none."""
    check_number("clients", clients, minimum=1, integer=True)
    if clients > len(data):
        raise InputError(
            f"clients is {clients}, but there are only {len(data)} examples; lower clients or raise data.limit"
        )
    owners = partition.owners(data, clients, run)
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


def plant_rarity(
    data: ImageSet, owners: Tensor, label: int | str, client: int, run: int, true_labels: Tensor | None = None
) -> Tensor:
    """Owners [examples] where `client` alone holds one example of the class `label`, and nobody holds another.

    `label` is the class's name or number. The one example is drawn uniformly from the class; the others get the owner
    `NOBODY` (-1), so that they train no model. With canaries in `data`, `true_labels` [examples] are the labels before
    they were planted: the one example is then no canary, and one that bears or hides the class trains nowhere either.
    """
    clients = int(owners.max()) + 1
    number = class_number(data.classes, label, "rarity.label")
    check_number("rarity.client", client, minimum=0, maximum=clients - 1, integer=True)
    labels = data.labels.cpu()
    truth = labels if true_labels is None else true_labels.cpu()
    proper = torch.nonzero((labels == number) & (truth == number)).flatten()
    if not len(proper):
        raise InputError(f"rarity.label names {label!r}, but the pool has no example of that class; raise data.limit")
    chosen = proper[torch.randint(len(proper), (1,), generator=generator(run, "rarity"))]
    planted = torch.where((labels == number) | (truth == number), NOBODY, owners)
    planted[chosen] = client
    empty = clients - len(planted[planted != NOBODY].unique())
    if empty:
        raise InputError(
            f"the rarity takes every example of {empty} of {clients} clients, who held the class {label!r} alone; "
            "use another rarity.label, fewer clients or another partition"
        )
    return planted


def withhold(owners: Tensor, held: float, run: int) -> Tensor:
    """Owners [examples] where only a random share `held` of the examples is left; the others' owner is `NOBODY` (-1).

    One draw for all replicas of a run: what an attacker does not have, none of its shadows is trained on.
    """
    check_number("held", held, above=0, maximum=1)
    if held == 1:
        return owners
    count = max(1, round(held * len(owners)))
    kept = torch.zeros(len(owners), dtype=torch.bool)
    kept[torch.randperm(len(owners), generator=generator(run, "held"))[:count]] = True
    left = torch.where(kept, owners, NOBODY)
    empty = len(owners[owners != NOBODY].unique()) - len(left[left != NOBODY].unique())
    if empty:
        raise InputError(f"held is {held:g}, which leaves {empty} clients without an example; raise it")
    return left


Design = Literal["coins", "pairs"]
DESIGNS: tuple[Design, ...] = get_args(Design)


def draw_members(
    replicas: int | Sequence[int],
    examples: int,
    rate: float,
    run: int,
    owners: Tensor | None = None,
    design: Design = "coins",
) -> Tensor:
    """Membership [replicas, examples]: each example joins each replica by its own coin of chance `rate`.

    `replicas` are numbers of replicas, or how many there are from 0 on. Independent coins, not an exact half: with an
    exact half, the number of other replicas that hold an example tells whether this one does. As `pairs`, replicas 2k
    and 2k + 1 share their coins and hold what the other does not, so that few replicas have every example on both
    sides; a target's partner must not be among its shadows. An example that nobody owns (-1 in `owners` [examples]) is
    a member nowhere. Raises InputError for pairs of another rate than a half.
    """
    numbers = range(replicas) if isinstance(replicas, int) else replicas
    check_number("replicas", len(numbers), minimum=1, integer=True)
    check_number("membership", rate, above=0, maximum=1)
    check_choice("design", design, DESIGNS)
    if design == "pairs" and (rate != 0.5 or len(numbers) % 2 or min(numbers) % 2):
        raise InputError(
            f"design=pairs needs membership=0.5, an even number of replicas and an even first_replica; there are "
            f"{len(numbers)} from {min(numbers)} at {rate:g}: mend that, or use design=coins"
        )

    def coins(replica: int) -> Tensor:
        if design == "coins":
            return torch.rand(examples, generator=generator(run, "membership", replica)) < rate
        shared = torch.rand(examples, generator=generator(run, "pairs", replica // 2)) < rate
        return ~shared if replica % 2 else shared

    drawn = torch.stack([coins(replica) for replica in numbers])
    return drawn if owners is None else drawn & (owners != NOBODY)
