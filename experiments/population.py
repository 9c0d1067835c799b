"""A population: the replicas of one configuration, which are trained and read once, whoever attacks them later."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.membership.observed import KINDS
from attacks.membership.reading import queries_of
from defenses.base import Defense
from experiments import store, tensorboard_log
from experiments.configuration import make, read_data
from fl_core.aggregation import Krum
from fl_core.algorithms.fedavg import FedAvg
from fl_core.augmentation import Augmentation
from fl_core.data import ImageSet, class_number
from fl_core.errors import InputError, check_choice, check_number
from fl_core.federation import Federation, public_sizes
from fl_core.fleet import Fleet, Synchronous
from fl_core.lanes import BACKENDS
from fl_core.memory import GIB
from fl_core.models import PRECISIONS, statistics_of
from fl_core.participation import Participation
from fl_core.partition import DESIGNS, NOBODY, draw_members, plant_canaries, plant_rarity, split, withhold
from fl_core.plan import Plan
from fl_core.tampering import Tampering
from fl_core.views import MaliciousServer, Recorder, ReleasedModel, SecureServer, Server

FREE = ("name", "title", "client_names", "workers", "executor", "debug", "tensorboard")
"""Fields that change no result, and so no hash."""

ASKED = ("attack", "about", "against", "target_accuracy", "study")
"""Fields that say what is asked of replicas, and change none of them."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """Everything that training and reading the replicas needs.

    `config` is the resolved configuration, `hash` the name under which the replicas are stored. `canary`, `rare` and
    `owners` are [examples], `members` [replicas, examples]; `defense` is not calibrated yet.
    """

    config: dict[str, Any]
    hash: str
    device: torch.device
    pool: ImageSet
    test: ImageSet
    canary: Tensor
    rare: Tensor
    owners: Tensor
    members: Tensor
    sizes: Tensor
    model: nn.Module
    algorithm: FedAvg
    participation: Participation
    fleet: Fleet
    augmentation: Augmentation | None
    defense: Defense
    tamper: Tampering | None

    @property
    def replicas(self) -> int:
        """How many there are."""
        return len(self.members)

    @property
    def public(self) -> ImageSet | None:
        """The attacker's own examples: the first of the test set, on which no replica trains."""
        count = min(self.config["signals"]["public"], len(self.test))
        return self.test.select(torch.arange(count, device=self.test.labels.device)) if count else None

    @property
    def view(self) -> type[ReleasedModel]:
        """What is shown of a replica: what was asked for, or what masks leave of it."""
        wanted: type[ReleasedModel] = KINDS[self.config["signals"]["view"]].view
        return SecureServer if self.defense.masks and issubclass(wanted, Server) else wanted

    def shards(self) -> list[range]:
        """Replicas that are trained together; fixed by the configuration, so no worker count changes a number."""
        size = self.config["shard"]
        return [range(start, min(start + size, self.replicas)) for start in range(0, self.replicas, size)]

    def federation(self, rows: range) -> Federation:
        """That of the replicas in `rows` of `members`."""
        first = self.config["first_replica"]
        return Federation(
            model=self.model,
            data=self.pool,
            owners=self.owners,
            members=self.members[list(rows)],
            sizes=self.sizes,
            algorithm=self.algorithm,
            defense=self.defense,
            rounds=self.config["rounds"],
            run=self.config["seed"],
            replica_ids=range(first + rows.start, first + rows.stop),
            participation=self.participation,
            fleet=self.fleet,
            augmentation=self.augmentation,
            precision=self.config["precision"],
            backend=self.config["backend"],
            tamper=self.tamper,
            memory=None if self.config["memory"] == "auto" else int(self.config["memory"] * GIB),
        )

    def recorder(self) -> Recorder:
        """A new recorder of what this view shows, in the rounds that `signals.rounds` asks for."""
        return Recorder(self.view, self.config["signals"]["rounds"])

    def calibrated(self) -> Population:
        """The same population with its defence ready: noise calibrated to what its own samplers draw."""
        return dataclasses.replace(self, defense=self.defense.prepare(self.plan()))

    def plan(self) -> Plan:
        """What is public of all replicas' rounds."""
        return self.federation(range(self.replicas)).plan


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """The examples of a configuration and whose they are.

    `canary`, `rare` and `owners` are [examples]; the owner `NOBODY` (-1) marks an example that no client holds.
    """

    pool: ImageSet
    test: ImageSet
    fingerprint: str
    canary: Tensor
    rare: Tensor
    owners: Tensor


def who_holds_what(config: Mapping[str, Any]) -> Holdings:
    """Read the data, plant the canaries and the rarity, and deal everything out to the clients."""
    run, rarity = config["seed"], config["rarity"]
    check_number("seed", run, minimum=0, integer=True)
    true, test, fingerprint = read_data(config["data"])
    pool, canary = plant_canaries(true, config["canaries"], run)
    owners = split(make(config["partition"]), pool, config["clients"], run)
    rare = torch.zeros_like(canary)
    if rarity is not None:
        if not isinstance(rarity, Mapping) or set(rarity) != {"label", "client"}:
            raise InputError(
                f"rarity is {rarity!r}; write 'rarity={{label:7,client:0}}' with the quotes, or rarity=null for none"
            )
        owners = plant_rarity(pool, owners, rarity["label"], rarity["client"], run, true.labels)
        rare = rare_example(pool, owners, rarity["label"])
    return Holdings(pool=pool, test=test, fingerprint=fingerprint, canary=canary, rare=rare, owners=owners)


def rare_example(pool: ImageSet, owners: Tensor, label: int | str) -> Tensor:
    """Which example [examples] is the one of its class that somebody holds."""
    return (pool.labels.cpu() == class_number(pool.classes, label, "rarity.label")) & (owners != NOBODY)


def build(config: Mapping[str, Any], device: torch.device, named: str) -> Population:
    """Check a resolved configuration and make its population; InputError says what cannot be used. Trains nothing.

    `named` is the device's name in the hash: that of the machine which runs the population.
    """
    config = dict(config)
    _check(config)
    held = who_holds_what(config)
    pool, owners, run = held.pool, withhold(held.owners, config["held"], config["seed"]), config["seed"]
    model = make(config["model"], shape=pool.shape, classes=len(pool.classes))
    participation = make(config["participation"])
    algorithm = make(
        config["algorithm"],
        sampler=make(config["sampler"]),
        schedule=make(config["client_schedule"]),
        server_schedule=make(config["server_schedule"]),
        aggregator=make(config["aggregator"]),
    )
    if isinstance(algorithm.aggregator, Krum):
        algorithm.aggregator.check(config["participation"].get("cohort") or config["clients"])
    defense = make(config["defense"]).for_model(model)
    largest = int(torch.bincount(owners[owners != NOBODY]).max())
    if algorithm.sampler.batch(largest) > largest:
        raise InputError(
            f"sampler.batch_size is {algorithm.sampler.batch_size}, but no client has more than {largest} examples; "
            "lower it or give the clients more"
        )
    queries_of(pool.images[:1], config["signals"]["queries"])  # it refuses those that a small picture has no room for
    hashed = {name: value for name, value in config.items() if name not in FREE + ASKED}
    hashed |= {"device": named, "model code": own_code(model), "what is read": fields_of(config["signals"]["view"])}
    first = config["first_replica"]
    numbers = range(first, first + config["replicas"])
    population = Population(
        config=config,
        hash=store.run_hash(hashed, held.fingerprint),
        device=device,
        pool=pool.to(device),
        test=held.test.to(device),
        canary=held.canary,
        rare=held.rare,
        owners=owners,
        members=draw_members(numbers, len(pool), config["membership"], run, owners, config["design"]),
        sizes=public_sizes(owners, config["clients"], config["membership"]),
        model=model.to(device),
        algorithm=algorithm,
        participation=participation,
        fleet=make(config["fleet"]),
        augmentation=make(config["augmentation"]),
        defense=defense,
        tamper=_tampering(config, model.to(device), pool.to(device)),
    )
    plan = population.federation(range(1)).plan  # it checks what goes together
    defense.check(plan)
    _check_deadline(population)
    alone = config["attack"]["victims"] or defense.private or defense.reduces_examples
    if statistics_of(model) and (alone or population.view is not ReleasedModel or config["backend"] == "vmap"):
        raise InputError(
            "BatchNorm mixes the examples of a batch: no example's gradient stands alone, for a defence to clip or an "
            "attack to read, and a padded batch is another batch; set model.norm=group, or defense=none "
            "attack.victims=0 signals.view=released_model backend=loop"
        )
    return population


def _check_deadline(population: Population) -> None:
    """InputError where nobody's update arrives by the fleet's deadline in any round of any replica: nothing trains."""
    fleet, replicas = population.fleet, range(population.replicas)
    if not isinstance(fleet, Synchronous) or fleet.deadline is None:
        return
    played = population.federation(replicas)
    if any(len(turn.clients) for round in range(played.rounds) for turn in played.turns(round)):
        return
    patient = dataclasses.replace(fleet, target=1, deadline=None, partial=False)
    firsts = dataclasses.replace(population, fleet=patient).federation(replicas).turns(0)
    soonest = min((turn.ended for turn in firsts if len(turn.clients)), default=None)
    told = "" if soonest is None else f"; the first of round 1 would after {soonest:.3g} s"
    raise InputError(
        f"fleet.deadline is {fleet.deadline:g} s, and no client's update arrives by then in any round{told}; raise it, "
        "or set fleet.deadline=null"
    )


def fields_of(view: str) -> list[str]:
    """The names of all that is read through a view: replicas that an older Mirage read less of are read again."""
    return sorted(field.name for field in dataclasses.fields(KINDS[view]))


def _tampering(config: dict[str, Any], model: nn.Module, pool: ImageSet) -> Tampering | None:
    """What the active attack `tamper` makes of the models that are sent, or None."""
    if config["tamper"] is None:
        return None
    check_fields("tamper", config["tamper"])
    attack = make(config["tamper"])
    if not hasattr(attack, "tampering"):
        raise InputError(f"tamper is {attack.name}, which changes no model; name an active attack, or set tamper=null")
    if config["signals"]["view"] != MaliciousServer.view:
        raise InputError("tamper is a malicious server's; set signals.view=malicious_server, or tamper=null")
    found: Tampering = attack.tampering(model, pool.images, pool.labels)
    return found


def own_code(model: nn.Module) -> str:
    """The source of a model that is not Mirage's, as part of its run's hash; empty for Mirage's own."""
    kinds = {type(layer) for layer in model.modules()}
    own = sorted((kind for kind in kinds if kind.__module__.split(".")[0] not in ("torch", "fl_core")), key=repr)
    try:
        return "\n".join(inspect.getsource(kind) for kind in own)
    except (OSError, TypeError):
        return ""


GROUPS = (
    "data", "partition", "model", "participation", "fleet", "sampler", "augmentation", "algorithm", "aggregator",
    "client_schedule", "server_schedule", "defense",
)  # fmt: skip


GROUPS_ELSEWHERE = {name: f"schedule@{name}" for name in ("client_schedule", "server_schedule")}
"""What a group is called on the command line, where that is not the field's name."""


def check_fields(name: str, value: object, cure: str = "leave it as it is") -> None:
    """InputError unless what stands at `name` has fields of its own."""
    if not isinstance(value, Mapping):
        raise InputError(
            f"{name} is {value!r}, but it has fields of its own; set one of them, as in {name}.FIELD=..., or {cure}"
        )


def _check(config: dict[str, Any]) -> None:
    """Ranges of the plain fields, once, here."""
    for name in GROUPS:
        check_fields(name, config[name], f"choose an option, as in {GROUPS_ELSEWHERE.get(name, name)}=...")
    check_fields("signals", config["signals"])
    for name, minimum in (("clients", 1), ("rounds", 1), ("replicas", 4), ("shard", 1), ("first_replica", 0)):
        check_number(name, config[name], minimum=minimum, integer=True)
    check_number("seed", config["seed"], minimum=0, integer=True)
    check_number("membership", config["membership"], above=0, below=1)
    check_choice("design", config["design"], DESIGNS)
    check_number("held", config["held"], above=0, maximum=1)
    check_number("canaries", config["canaries"], minimum=0, below=1)
    tensorboard_log.check(config["tensorboard"])
    check_choice("backend", config["backend"], BACKENDS)
    check_choice("precision", config["precision"], PRECISIONS)
    if config["memory"] != "auto":
        check_number("memory (GiB, or auto)", config["memory"], above=0)
    signals = config["signals"]
    check_choice("signals.view", signals["view"], KINDS)
    check_number("signals.queries", signals["queries"], minimum=1, integer=True)
    check_number("signals.public", signals["public"], minimum=0, integer=True)
    if signals["rounds"] is not None:
        if not isinstance(signals["rounds"], list) or not signals["rounds"]:
            raise InputError(
                f"signals.rounds is {signals['rounds']!r}; list the rounds that are kept, as in [0,5], or null for all"
            )
        for round in signals["rounds"]:
            check_number("signals.rounds", round, minimum=0, maximum=config["rounds"] - 1, integer=True)
        if len(set(signals["rounds"])) < len(signals["rounds"]):
            raise InputError(f"signals.rounds is {signals['rounds']}, with a round twice; name each once")
