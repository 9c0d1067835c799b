"""A cell: one configuration made into replicas, an observer, attacks, and what its defence guarantees."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.membership.observed import KINDS, refusal
from attacks.reconstruction.gradient_matching import GradientMatching
from defenses.base import Defense
from defenses.composed import Composed
from defenses.statements import require_guarantee
from experiments import population, store
from experiments.configuration import altered, make, resolve_device
from experiments.executor import Executor
from experiments.population import ASKED, FREE, Population
from fl_core.errors import InputError, check_choice, check_flag, check_list, check_number
from fl_core.partition import NOBODY
from fl_core.views import VIEWS

KEPT = ("data", "canaries", "rarity", "seed", "signals", "attack", "clients", "partition", "first_replica")
"""What an attacker's shadows have in common with the target: they are asked about the same candidates."""

REFUSED = ("error", "note")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything that a cell's tasks need. `config` is the resolved configuration, `hash` the stored run's name.

    `targets` are the replicas under attack, and one another's shadows unless the attacker's `shadows` are replicas of
    its own. `refused` says for an attack that the view does not serve why not.
    """

    config: dict[str, Any]
    hash: str
    targets: Population
    shadows: Population | None
    membership_attacks: dict[str, Any]
    refused: dict[str, str]
    reconstruction: GradientMatching
    executor: Executor

    @property
    def device(self) -> torch.device:
        """Where its tasks compute."""
        return self.targets.device

    @property
    def defense(self) -> Defense:
        """The targets' defence, its noise still to be made before `calibrated`."""
        return self.targets.defense

    @property
    def populations(self) -> list[Population]:
        """All that are trained: the targets, and the shadows where they are replicas of their own."""
        return [self.targets] if self.shadows is None else [self.targets, self.shadows]

    @property
    def possible(self) -> list[str]:
        """The membership attacks that the view serves."""
        return [name for name in self.membership_attacks if name not in self.refused]

    @property
    def delta(self) -> float | None:
        """The δ of the defence's guarantee; None where nothing is guaranteed (at ε = ∞ there is no defence)."""
        return self.defense.delta if self.defense.private else None

    @property
    def candidates(self) -> Tensor:
        """Whose membership is in question [examples]: one client's examples, or everybody's."""
        about, owners = self.config["about"], self.targets.owners
        return owners != NOBODY if about is None else owners == about

    def calibrated(self) -> Cell:
        """The same cell with its targets' defence ready: noise calibrated to what its own samplers draw."""
        return dataclasses.replace(self, targets=self.targets.calibrated())


def build(config: Mapping[str, Any], here: bool = True) -> Cell:
    """Check a resolved configuration and make its cell; InputError says what cannot be used. Trains nothing.

    A cell that runs on another machine than this one (`here` is false) is only good for its checks and its hash.
    """
    config = dict(config)
    _check(config)
    if not here:
        check_choice("device (of the machines that run the cells)", config["device"], ("cpu", "cuda"))
    device = resolve_device(config["device"] if here else "cpu")
    named = device.type if here else config["device"]
    targets = population.build(config, device, named)
    shadows = _shadows(config, device, named)
    attacks = {name: make(one) for name, one in config["attack"]["membership"].items()}
    _check_attacks(config, targets)
    for name in config["attack"]["audit_with"]:
        check_choice("attack.audit_with", name, attacks)
    plan = targets.federation(range(1)).plan
    if config["against"] is not None:
        defense = targets.defense
        require_guarantee(defense.prepare(plan).guarantee(config["against"], defense.protects, plan), defense.name)
    asked = {name: config[name] for name in ASKED}
    parts = {"asked": asked, "targets": targets.hash, "shadows": shadows.hash if shadows else None}
    return Cell(
        config=config,
        hash=store.run_hash(parts, ""),
        targets=targets,
        shadows=shadows,
        membership_attacks=attacks,
        refused=_refused(config, targets, attacks),
        reconstruction=make(config["attack"]["reconstruction"]),
        executor=make(config["executor"]),
    )


def _shadows(config: dict[str, Any], device: torch.device, named: str) -> Population | None:
    """The attacker's own replicas, where they differ from the target; numbered after the targets."""
    changes = config["attack"]["shadows"]
    if changes is None:
        return None
    if not isinstance(changes, Mapping):
        raise InputError(
            f"attack.shadows is {changes!r}; name what differs from the target, as in attack.shadows={{held:0.5}}, or "
            "set null: the targets are then one another's shadows"
        )
    for name in changes:
        if name in KEPT + ASKED + FREE:
            raise InputError(
                f"attack.shadows sets {name}, which shadows share with the target; it may set what they are trained "
                "with, such as held, model, algorithm, sampler, rounds, defense and replicas"
            )
    theirs = altered(config, changes, "attack.shadows")
    theirs["first_replica"] = config["first_replica"] + config["replicas"] + config["replicas"] % 2
    return population.build(theirs, device, named)


def _refused(config: dict[str, Any], targets: Population, attacks: Mapping[str, Any]) -> dict[str, str]:
    """Why the view does not serve some attacks, which is an InputError unless `attack.refused` asks for a note."""
    shown = KINDS[targets.view.view]
    found = {
        name: refusal(attack.name, shown, attack.needs)
        for name, attack in attacks.items()
        if not issubclass(shown, attack.needs)
    }
    if found and config["attack"]["refused"] == "error":
        name, why = next(iter(found.items()))
        cure = (
            f"drop it with ~attack.membership.{name}, or set attack.refused=note to list it as refused"
            if targets.defense.masks
            else f"set signals.view={attacks[name].needs.view.view}, or drop it with ~attack.membership.{name}"
        )
        raise InputError(f"{why}; {cure}")
    return found


def _check_attacks(config: dict[str, Any], targets: Population) -> None:
    defense, pool, owners = targets.defense, targets.pool, targets.owners
    victims = config["attack"]["victims"]
    ordinary = int((~targets.canary & (owners != NOBODY)).sum())
    if victims > ordinary:
        raise InputError(f"attack.victims is {victims}, but there are only {ordinary} ordinary examples")
    if victims and defense.masks:
        raise InputError(
            f"attack.victims is {victims}, but the probe inverts single updates, and defense={defense.name} hides them "
            "from the server; set attack.victims=0"
        )
    if config["about"] is not None:
        check_number("about", config["about"], minimum=0, maximum=config["clients"] - 1, integer=True)
    references, most = config["attack"]["references"], config["replicas"] - (2 if config["design"] == "pairs" else 1)
    if config["attack"]["shadows"] is not None:
        most = config["attack"]["shadows"].get("replicas", config["replicas"])
    if references is not None:
        check_number("attack.references", references, minimum=1, maximum=most, integer=True)
    for part in defense.parts if isinstance(defense, Composed) else (defense,):
        units = {"example": len(pool), "client": config["clients"]}[part.protects]
        if part.private and part.delta is not None and part.delta >= 1 / units:
            raise InputError(
                f"defense.delta is {part.delta:g}; it must be below one over the number of {part.protects}s, "
                f"1/{units} = {1 / units:.2g}"
            )


def _check(config: dict[str, Any]) -> None:
    """Ranges of the plain fields that are no population's, once, here."""
    store.check_place(config["name"])
    if not isinstance(config["title"], str):
        raise InputError(f"title is {config['title']!r}; it must be text, as in 'title=\"My study\"'")
    for name in ("save_rounds", "debug"):
        check_flag(name, config[name])
    for name in ("attack", "attack.membership", "attack.reconstruction", "executor"):
        population.check_fields(name, config["attack"][name[7:]] if "." in name else config[name])
    for name, one in config["attack"]["membership"].items():
        population.check_fields(f"attack.membership.{name}", one, f"take it out with ~attack.membership.{name}")
    names = config["client_names"]
    if names is not None and (not isinstance(names, list) or len(names) != config["clients"]):
        raise InputError(
            f"client_names is {names!r}; it must be a list of {config['clients']} names, one a client, or null"
        )
    if config["against"] is not None:
        check_choice("against", config["against"], VIEWS)
    if config["workers"] != "auto":
        check_number("workers (or auto)", config["workers"], minimum=1, integer=True)
    if config["target_accuracy"] is not None:
        check_number("target_accuracy", config["target_accuracy"], above=0, maximum=1)
    attack = config["attack"]
    check_number("attack.victims", attack["victims"], minimum=0, integer=True)
    check_number("attack.fpr", attack["fpr"], above=0, below=1)
    for name in ("fprs", "audit_with"):
        check_list(f"attack.{name}", attack[name], "with commas between its entries; [] for none")
    for rate in attack["fprs"]:
        check_number("attack.fprs", rate, above=0, below=1)
    check_number("attack.resamples", attack["resamples"], minimum=100, integer=True)
    check_number("attack.audit_fraction", attack["audit_fraction"], above=0, maximum=1)
    check_choice("attack.refused", attack["refused"], REFUSED)
