"""A cell: one configuration made into a federation, an observer, attacks and a defence."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn

from defenses.base import Defense
from defenses.composed import Composed
from defenses.statements import require_guarantee
from experiments import store
from experiments.executor import Executor
from fl_core.algorithms.fedavg import FedAvg
from fl_core.augmentation import Augmentation
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice, check_number
from fl_core.federation import Federation, public_sizes
from fl_core.fleet import Fleet
from fl_core.lanes import BACKENDS
from fl_core.memory import GIB
from fl_core.models import PRECISIONS, statistics_of
from fl_core.participation import Participation
from fl_core.partition import NOBODY, draw_members, plant_canaries, plant_rarity, split
from fl_core.plan import Plan
from fl_core.views import VIEWS

FREE = ("name", "title", "client_names", "workers", "executor", "debug")
"""Fields that change no result, and so no hash."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything that a cell's tasks need. `config` is the resolved configuration, `hash` the stored run's name.

    `canary` and `owners` are [examples], `members` [replicas, examples]; `defense` is not calibrated yet.
    """

    config: dict[str, Any]
    hash: str
    device: torch.device
    pool: ImageSet
    test: ImageSet
    canary: Tensor
    owners: Tensor
    members: Tensor
    sizes: Tensor
    model: nn.Module
    algorithm: FedAvg
    participation: Participation
    fleet: Fleet
    augmentation: Augmentation | None
    defense: Defense
    membership_attacks: dict[str, Any]
    reconstruction: Any
    executor: Executor

    @property
    def replicas(self) -> int:
        return len(self.members)

    @property
    def delta(self) -> float | None:
        """The δ of the defence's guarantee; None where nothing is guaranteed (at ε = ∞ there is no defence)."""
        return self.defense.delta if self.defense.private else None

    @property
    def candidates(self) -> Tensor:
        """Whose membership is in question [examples]: one client's examples, or everybody's."""
        about = self.config["about"]
        return self.owners != NOBODY if about is None else self.owners == about

    def shards(self) -> list[range]:
        """Replicas that are trained together; fixed by the configuration, so no worker count changes a number."""
        size = self.config["shard"]
        return [range(start, min(start + size, self.replicas)) for start in range(0, self.replicas, size)]

    def federation(self, replicas: range) -> Federation:
        return Federation(
            model=self.model,
            data=self.pool,
            owners=self.owners,
            members=self.members[list(replicas)],
            sizes=self.sizes,
            algorithm=self.algorithm,
            defense=self.defense,
            rounds=self.config["rounds"],
            run=self.config["seed"],
            replica_ids=replicas,
            participation=self.participation,
            fleet=self.fleet,
            augmentation=self.augmentation,
            precision=self.config["precision"],
            backend=self.config["backend"],
            memory=None if self.config["memory"] == "auto" else int(self.config["memory"] * GIB),
        )

    def calibrated(self) -> Cell:
        """The same cell with its defence ready: noise calibrated to what its own samplers draw."""
        return dataclasses.replace(self, defense=self.defense.prepare(self.plan()))

    def plan(self) -> Plan:
        """What is public of all replicas' rounds."""
        return self.federation(range(self.replicas)).plan


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """The examples of a configuration and whose they are.

    `canary` and `owners` are [examples]; the owner `NOBODY` (-1) marks an example that no client holds.
    """

    pool: ImageSet
    test: ImageSet
    fingerprint: str
    canary: Tensor
    owners: Tensor


def who_holds_what(config: Mapping[str, Any]) -> Holdings:
    """Read the data, plant the canaries and the rarity, and deal everything out to the clients."""
    run, rarity = config["seed"], config["rarity"]
    check_number("seed", run, minimum=0, integer=True)
    true, test, fingerprint = read_data(config["data"])
    pool, canary = plant_canaries(true, config["canaries"], run)
    owners = split(make(config["partition"]), pool, config["clients"], run)
    if rarity is not None:
        if not isinstance(rarity, Mapping) or set(rarity) != {"label", "client"}:
            raise InputError(f"rarity is {rarity!r}; write rarity={{label:7,client:0}}, or rarity=null for none")
        owners = plant_rarity(pool, owners, rarity["label"], rarity["client"], run, true.labels)
    return Holdings(pool=pool, test=test, fingerprint=fingerprint, canary=canary, owners=owners)


def build(config: Mapping[str, Any], here: bool = True) -> Cell:
    """Check a resolved configuration and make its cell; InputError says what cannot be used. Trains nothing.

    A cell that runs on another machine than this one (`here` is false) is only good for its checks and its hash.
    """
    config = dict(config)
    _check(config)
    if not here:
        check_choice("device (of the machines that run the cells)", config["device"], ("cpu", "cuda"))
    device = resolve_device(config["device"] if here else "cpu")
    held = who_holds_what(config)
    pool, canary, owners, run = held.pool, held.canary, held.owners, config["seed"]
    model = make(config["model"], shape=pool.shape, classes=len(pool.classes))
    algorithm = make(
        config["algorithm"],
        sampler=make(config["sampler"]),
        schedule=make(config["client_schedule"]),
        server_schedule=make(config["server_schedule"]),
        aggregator=make(config["aggregator"]),
    )
    defense = make(config["defense"]).for_model(model)
    largest = int(torch.bincount(owners[owners != NOBODY]).max())
    if algorithm.sampler.batch(largest) > largest:
        raise InputError(
            f"sampler.batch_size is {algorithm.sampler.batch_size}, but no client has more than {largest} examples; "
            "lower it or give the clients more"
        )
    victims = config["attack"]["victims"]
    ordinary = int((~canary & (owners != NOBODY)).sum())
    if victims > ordinary:
        raise InputError(f"attack.victims is {victims}, but there are only {ordinary} ordinary examples")
    if victims and defense.masks:
        raise InputError(
            f"attack.victims is {victims}, but the probe inverts single updates, and defense={defense.name} hides them "
            "from the server; set attack.victims=0"
        )
    if config["about"] is not None:
        check_number("about", config["about"], minimum=0, maximum=config["clients"] - 1, integer=True)
    hashed = {name: value for name, value in config.items() if name not in FREE}
    hashed |= {"device": device.type if here else config["device"], "model code": _own_code(model)}
    cell = Cell(
        config=config,
        hash=store.run_hash(hashed, held.fingerprint),
        device=device,
        pool=pool.to(device),
        test=held.test.to(device),
        canary=canary,
        owners=owners,
        members=draw_members(config["replicas"], len(pool), config["membership"], run, owners),
        sizes=public_sizes(owners, config["clients"], config["membership"]),
        model=model.to(device),
        algorithm=algorithm,
        participation=make(config["participation"]),
        fleet=make(config["fleet"]),
        augmentation=make(config["augmentation"]),
        defense=defense,
        membership_attacks={name: make(one) for name, one in config["attack"]["membership"].items()},
        reconstruction=make(config["attack"]["reconstruction"]),
        executor=make(config["executor"]),
    )
    for part in defense.parts if isinstance(defense, Composed) else (defense,):
        units = {"example": len(pool), "client": config["clients"]}[part.protects]
        if part.private and part.delta is not None and part.delta >= 1 / units:
            raise InputError(
                f"defense.delta is {part.delta:g}; it must be below one over the number of {part.protects}s, "
                f"1/{units} = {1 / units:.2g}"
            )
    plan = cell.federation(range(1)).plan  # it checks what goes together
    defense.check(plan)
    if config["against"] is not None:
        require_guarantee(defense.prepare(plan).guarantee(config["against"], defense.protects, plan), defense.name)
    alone = victims or defense.private or defense.reduces_examples
    if statistics_of(model) and (alone or config["backend"] == "vmap"):
        raise InputError(
            "BatchNorm mixes the examples of a batch: no example's gradient stands alone, for a defence to clip or the "
            "probe to invert, and a padded batch is another batch; set model.norm=group, or defense=none "
            "attack.victims=0 backend=loop"
        )
    return cell


def _own_code(model: nn.Module) -> str:
    """The source of a model that is not Mirage's, as part of its run's hash; empty for Mirage's own."""
    kinds = {type(layer) for layer in model.modules()}
    own = sorted((kind for kind in kinds if kind.__module__.split(".")[0] not in ("torch", "fl_core")), key=repr)
    try:
        return "\n".join(inspect.getsource(kind) for kind in own)
    except (OSError, TypeError):
        return ""


def _check(config: dict[str, Any]) -> None:
    """Ranges of the plain fields, once, here."""
    for name, minimum in (("clients", 1), ("rounds", 1), ("replicas", 4), ("shard", 1)):
        check_number(name, config[name], minimum=minimum, integer=True)
    check_number("seed", config["seed"], minimum=0, integer=True)
    check_number("membership", config["membership"], above=0, below=1)
    check_number("canaries", config["canaries"], minimum=0, below=1)
    check_choice("backend", config["backend"], BACKENDS)
    check_choice("precision", config["precision"], PRECISIONS)
    if config["against"] is not None:
        check_choice("against", config["against"], VIEWS)
    if config["workers"] != "auto":
        check_number("workers (or auto)", config["workers"], minimum=1, integer=True)
    if config["target_accuracy"] is not None:
        check_number("target_accuracy", config["target_accuracy"], above=0, maximum=1)
    if config["memory"] != "auto":
        check_number("memory (GiB, or auto)", config["memory"], above=0)
    attack = config["attack"]
    check_number("attack.victims", attack["victims"], minimum=0, integer=True)
    check_number("attack.fpr", attack["fpr"], above=0, below=1)
    check_number("attack.resamples", attack["resamples"], minimum=100, integer=True)
    check_choice("attack.audit_with", attack["audit_with"], attack["membership"])
    check_number("attack.audit_fraction", attack["audit_fraction"], above=0, maximum=1)


def resolve_device(name: str) -> torch.device:
    """cpu, cuda, or auto: CUDA where there is one."""
    check_choice("device", name, ("cpu", "cuda", "auto"))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA device here; use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def make(config: Mapping[str, Any], **more: Any) -> Any:
    """The object that a configuration group describes; bad values come back as one InputError."""
    try:
        factory = instantiate({**config, "_partial_": True, "_convert_": "all"})
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):  # a nested object's own
            raise error.__cause__ from None
        raise InputError(" ".join(str(error).split())) from error
    options = inspect.signature(factory.func).parameters
    if not any(option.kind is option.VAR_KEYWORD for option in options.values()):
        for name in factory.keywords:
            check_choice(f"an option of {config['_target_']}", name, options)
    return factory(**more)


def read_data(config: Mapping[str, Any]) -> tuple[ImageSet, ImageSet, str]:
    """The pool, the test set and the checksum of their content, by the group `data`; read once a process."""
    return _data(_freeze(config))


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((name, _freeze(inner)) for name, inner in value.items())
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


@lru_cache(maxsize=2)
def _data(frozen: tuple[tuple[str, Any], ...]) -> tuple[ImageSet, ImageSet, str]:
    """The pool, the test set and the checksum of their content; read once a process."""
    pool, test = make({name: list(value) if isinstance(value, tuple) else value for name, value in frozen})
    digest = hashlib.blake2b(digest_size=16)
    for part in (pool, test):
        digest.update(part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
        if part.owners is not None:
            digest.update(part.owners.numpy().tobytes())
    return pool, test, digest.hexdigest()
