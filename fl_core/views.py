"""Who sees what. An adversary's view is a type: what it does not show does not exist on the observation.

| view | who | sees |
| --- | --- | --- |
| released_model | anyone, afterwards | the final model |
| participant | a client | every global model it is sent |
| server | an honest-but-curious server | each client's update, its weight, the cohort, the global models |
| secure_server | the same under secure aggregation | the sum, its weight, the cohort, who dropped out, the models |
| malicious_server | a secure_server that also chooses what it sends | as that, plus its own broadcast to each client |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fl_core.cohort import Cohort
from fl_core.errors import InputError
from fl_core.optimizers import Tree


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """The final model's parameters [replicas, ...]."""

    view: ClassVar[str] = "released_model"
    model: Tree


@dataclass(frozen=True, kw_only=True)
class Participant(ReleasedModel):
    """Also the global model sent out in each recorded round: models[round] is [replicas, ...]."""

    view: ClassVar[str] = "participant"
    models: dict[int, Tree]


@dataclass(frozen=True, kw_only=True)
class SecureServer(Participant):
    """Also the weighted sum over each recorded round's cohort [replicas, ...] and who was in it [replicas, cohort].

    `divisors` [replicas] are what the sum was divided by already: the cohort's total weight (how many clients, or how
    many examples), or a number that was public before. `dropped` [replicas, most] were asked, but are not in the sum.
    Where replicas have cohorts of different sizes, −1 stands for nobody. A round without updates has no sum, and an
    attempt at one that failed is not shown: who came to it was decided by clocks and coins.
    """

    view: ClassVar[str] = "secure_server"
    sums: dict[int, Tree]
    divisors: dict[int, Tensor]
    cohorts: dict[int, Tensor]
    dropped: dict[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class Server(SecureServer):
    """Also each client's own update [replicas, cohort, ...], its weight, and the round whose global model it had.

    Weights and versions are [replicas, cohort]; the version is the round itself unless the fleet is asynchronous.
    """

    view: ClassVar[str] = "server"
    updates: dict[int, Tree]
    weights: dict[int, Tensor]
    versions: dict[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class MaliciousServer(SecureServer):
    """Also what it sent to each client of each recorded round [replicas, cohort, ...], which it chose itself.

    The engine's sends one model to all (`Federation.tamper`), which is then in `models`, too; studies play others.
    """

    view: ClassVar[str] = "malicious_server"
    sent: dict[int, Tree]


Observation = ReleasedModel
VIEWS: dict[str, type[ReleasedModel]] = {
    kind.view: kind for kind in (ReleasedModel, Participant, SecureServer, Server, MaliciousServer)
}


def require_view(attack: str, observation: Observation, needs: type[ReleasedModel]) -> None:
    """Raise InputError where the observation does not show what the attack needs."""
    if not isinstance(observation, needs):
        hidden = ": secure aggregation hides each client's update" if isinstance(observation, SecureServer) else ""
        raise InputError(
            f"{attack} needs the view {needs.view}; it was given {observation.view}, which does not show that{hidden}"
        )


@dataclass
class Recorder:
    """Keeps what one view shows of a running federation, and drops the rest unseen.

    `rounds` limits the rounds kept (None keeps all). Everything is kept on the CPU.
    """

    view: type[ReleasedModel] = ReleasedModel
    rounds: Sequence[int] | None = None
    _kept: dict[str, dict[int, object]] = field(default_factory=dict)
    _final: Tree | None = None

    def mask(self) -> None:
        """Narrow the view to what secure aggregation leaves of it, before the first round."""
        if issubclass(self.view, Server):
            self.view = SecureServer

    def _shows(self, needed: type[ReleasedModel], round: int) -> bool:
        return issubclass(self.view, needed) and (self.rounds is None or round in self.rounds)

    def _keep(self, needed: type[ReleasedModel], name: str, round: int, value: Tree | Tensor) -> None:
        if self._shows(needed, round):
            copy = value.detach().clone().cpu() if isinstance(value, Tensor) else _to_cpu(value)
            self._kept.setdefault(name, {})[round] = copy

    def broadcast(self, round: int, model: Tree) -> None:
        """Take the `model` [replicas, ...] that a round sends out, and all that goes with it."""
        self._keep(Participant, "models", round, model)

    def asked(self, round: int, cohort: Cohort, weights: Tensor) -> None:
        """Take who is in a round, who was lost, and the `weights` [replicas, seats] of their updates."""
        self._keep(SecureServer, "cohorts", round, cohort.clients)
        self._keep(SecureServer, "dropped", round, cohort.dropped)
        if self._shows(MaliciousServer, round):
            model, seats = self._kept["models"][round], cohort.clients.shape[1]
            assert isinstance(model, dict)
            # One model for all seats, without a copy for each.
            each = {name: value.unsqueeze(1).expand(-1, seats, *value.shape[1:]) for name, value in model.items()}
            self._kept.setdefault("sent", {})[round] = each
        self._keep(Server, "versions", round, cohort.versions)
        self._keep(Server, "weights", round, weights)

    def received(self, round: int, tile: tuple[slice, slice], updates: Tree) -> None:
        """A part of the cohort's updates [rows, seats, ...]; the whole is put together here."""
        if not self._shows(Server, round):
            return
        cohort = self._kept["cohorts"][round]
        assert isinstance(cohort, Tensor)
        whole = self._kept.setdefault("updates", {}).setdefault(round, {})
        assert isinstance(whole, dict)
        for name, value in updates.items():
            if name not in whole:
                whole[name] = torch.zeros(*cohort.shape, *value.shape[2:], dtype=value.dtype)
            whole[name][tile] = value.detach().cpu()

    def summed(self, round: int, total: Tree, divisors: Tensor) -> None:
        """Take a round's sum [replicas, ...] before the server adds noise, and what it was divided by [replicas]."""
        self._keep(SecureServer, "sums", round, total)
        self._keep(SecureServer, "divisors", round, divisors)

    def kept(self, round: int) -> Tree:
        """What was seen of one round as plain tensors, for a run that may be interrupted; `restore` takes it back."""
        found: Tree = {}
        for name, rounds in self._kept.items():
            value = rounds.get(round)
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, dict):
                found |= {f"{name}/{inner}": tensor for inner, tensor in value.items()}
        return found

    def restore(self, round: int, kept: Tree) -> None:
        """Take back what `kept` gave of a round."""
        for name, value in kept.items():
            field, _, inner = name.partition("/")
            rounds = self._kept.setdefault(field, {})
            if inner:
                tree = rounds.setdefault(round, {})
                assert isinstance(tree, dict)
                tree[inner] = value
            else:
                rounds[round] = value

    def finished(self, model: Tree) -> None:
        """Take the final model [replicas, ...], which every view shows."""
        self._final = _to_cpu(model)

    def observation(self) -> Observation:
        """What the view showed, once the federation has finished."""
        if self._final is None:
            raise RuntimeError("the federation has not finished")
        names = {name for kind in self.view.__mro__ for name in getattr(kind, "__annotations__", {})} - {
            "view",
            "model",
        }
        return self.view(model=self._final, **{name: self._kept.get(name, {}) for name in names})


def _to_cpu(tree: Tree) -> Tree:
    return {name: torch.clone(value.detach()).cpu() for name, value in tree.items()}
