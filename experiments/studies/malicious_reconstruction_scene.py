"""What a malicious server plays in the study, attack by attack, and how what it reads is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from attacks.pictures import psnr
from attacks.reconstruction.fishing import Fishing
from attacks.reconstruction.fully_connected import LayerKnowledge, layer_input
from attacks.reconstruction.imprint import (
    Imprint,
    ImprintKnowledge,
    Imprints,
    Kind,
    Ruler,
    empirical,
    projection,
    ruler,
    trap_ruler,
)
from attacks.reconstruction.label_flip import FlipKnowledge, LabelFlip, purity
from attacks.reconstruction.loki import Loki
from attacks.reconstruction.traps import TrapWeights, fitted_scaling, split_rows, split_ruler
from experiments.studies.tampering import Array, seen_by_server, to_all, updates_of
from fl_core.architectures import CNN, MLP
from fl_core.data import ImageSet
from fl_core.models import initial_parameters
from fl_core.optimizers import Tree
from fl_core.seeds import seed
from fl_core.views import MaliciousServer

DENSE, SPARSE, SIGNS, TRAPS, LOKI = "imprint, dense", "imprint, sparse", "traps by sign", "traps by threshold", "LOKI"
FISHING, DEEP, FLIP = "fishing", "fishing, CNN", "label flip"
LAYERS = (DENSE, SPARSE, SIGNS, TRAPS, LOKI)
ATTACKS = (*LAYERS, FISHING, DEEP, FLIP)
GAIN = 8.0
LARGEST = 999.0  # what stands for an infinite number in a record
ONE = 0.9999  # the purity at which a server takes a gradient for one example's
SINGLE = LayerKnowledge(weight="hidden.0.weight", bias="hidden.0.bias", shape=(1, 1, 1))


def row_ruler(data: ImageSet, public: Tensor, bins: int, run: int) -> Ruler:
    """One random measure, and thresholds at the quantiles of `public` pictures."""
    row = projection(data.shape, run)
    return ruler(row, bins, empirical(row, public))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An attack that reads a layer: what each client is sent, and what the server makes of the sum.

    `sent` [...] is one model for all, or [clients, ...] where `split` says that each gets its own.
    """

    attack: Imprint | Loki | TrapWeights
    ruler: Ruler
    model: nn.Module
    sent: Tree
    split: bool

    @property
    def length(self) -> int:
        """The coordinates of a client's update."""
        whole = {name: value[0] for name, value in self.sent.items()} if self.split else self.sent
        return sum(value.numel() for value in whole.values())

    def to(self, dtype: torch.dtype) -> Layer:
        """The same in another precision."""
        return replace(self, model=self.model.to(dtype), sent={name: it.to(dtype) for name, it in self.sent.items()})

    def sent_to(self, clients: slice, cohort: int) -> Tree:
        """What some clients of the cohort are sent [clients, ...]."""
        each = self.sent if self.split else to_all(self.sent, cohort)
        return {name: value[clients] for name, value in each.items()}

    def updates(self, data: ImageSet, plan: list[list[Tensor]], lr: float, at: slice | None = None) -> Tree:
        """The updates [clients, ...] of the clients `at`, all of them unless said."""
        at = at or slice(0, len(plan))
        return updates_of(self.model, self.sent_to(at, len(plan)), data, plan[at], lr)

    def summed(self, data: ImageSet, plan: list[list[Tensor]], lr: float) -> Tree:
        """The sum [1, ...] of all clients' updates in floating point, one client at a time."""
        total: Tree = {}
        for client in range(len(plan)):
            for name, value in self.updates(data, plan, lr, slice(client, client + 1)).items():
                total[name] = total[name].add_(value) if name in total else value.clone()
        return total

    def read(self, total: Tree, clients: int, data: ImageSet, error: float = 0.0) -> Imprints:
        """The server's answer to a sum [1, ...]."""
        sent = {name: value[None] for name, value in self.sent_to(slice(0, clients), clients).items()}
        knowledge = ImprintKnowledge(ruler=self.ruler, shape=data.shape, error=error)
        return self.attack.run(seen_by_server(total, sent), knowledge)

    def scores(
        self,
        answer: Imprints,
        pictures: Tensor,
        clients: int,
        estimate: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Array:
        """PSNR [pictures] of what a unit that each picture fires says of it, the best by the truth, in dB, not capped.

        The pictures are client by client. Of one that fires no unit the answer is black, or what `estimate` makes of
        nothing at all.
        """
        fires = self.ruler.fires(pictures)
        lane = torch.zeros(len(pictures), dtype=torch.long)
        if self.split:
            lane = torch.arange(clients).repeat_interleave(len(pictures) // clients)
        picture, unit = fires.nonzero(as_tuple=True)
        found, deviation = answer.pictures[lane[picture], unit], answer.deviation[lane[picture], unit]
        blank, none = torch.zeros_like(pictures), torch.full((len(pictures),), torch.inf)
        if estimate:
            found, blank = estimate(found.to(pictures), deviation), estimate(blank, none)
        best = psnr(blank.clamp(0, 1), pictures)
        fired = fires.any(1).numpy()
        best[fired] = -np.inf
        np.maximum.at(best, picture.numpy(), psnr(found.to(pictures).clamp(0, 1), pictures[picture]))
        return best

    def alone(self, pictures: Tensor, clients: int) -> Array:
        """Which pictures are alone in some unit, of the sum or of their client's own [pictures]."""
        groups = clients if self.split else 1
        fires = self.ruler.fires(pictures).unflatten(0, (groups, -1))
        lone: Array = (fires & (fires.sum(1, keepdim=True) == 1)).any(2).flatten().numpy()
        return lone


def layer(
    name: str, data: ImageSet, public: Tensor, bins: int, hidden: int, run: int, *, clients: int = 1, crowd: int = 16
) -> Layer:
    """The attack called `name` with `bins` units, for a sum over `clients` of `crowd` pictures all together."""
    shape, classes = data.shape, len(data.classes)
    if name in (SIGNS, TRAPS):
        if name == SIGNS:
            rows = split_rows(shape, bins, run)
            rule = split_ruler(rows, fitted_scaling(rows, public[:2048], 1 / crowd))
        else:
            rule = trap_ruler(projection(shape, run, bins), public)
        model: nn.Module = MLP(shape, classes, hidden=(bins,))
        traps = TrapWeights()
        start = initial_parameters(model, seed(run, "model"))
        return Layer(attack=traps, ruler=rule, model=model, sent=traps.plant(start, rule), split=False)
    rule, inner = row_ruler(data, public, bins, run), MLP(shape, classes, hidden=(hidden,))
    if name == LOKI:
        loki = Loki(clients=clients, bins=bins, kind="sparse", gain=GAIN)
        model = loki.model(inner, shape, classes)
        start = initial_parameters(model, seed(run, "model"))
        return Layer(attack=loki, ruler=rule, model=model, sent=loki.plant(start, rule, shape), split=True)
    kind: Kind = "dense" if name == DENSE else "sparse"
    imprint = Imprint(bins=bins, kind=kind, gain=float(bins) if kind == "dense" else GAIN)
    model = imprint.model(inner, shape, classes)
    start = initial_parameters(model, seed(run, "model"))
    return Layer(attack=imprint, ruler=rule, model=model, sent=imprint.plant(start, rule), split=False)


# Attacks that isolate one example


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """One example that was isolated: its PSNR off the first layer (nan where there is none to read), the cosine of what
    is left with its own gradient below the output layer, the honest gradient's with its own, and the rounds."""

    decibels: float
    cosine: float
    honest: float
    rounds: int


def network(name: str, data: ImageSet, hidden: int) -> nn.Module:
    """The perceptron of one hidden layer, or the small CNN."""
    shape, classes = data.shape, len(data.classes)
    return CNN(shape, classes, width=8) if name == "CNN" else MLP(shape, classes, hidden=(hidden,))


def mean_gradient(model: nn.Module, sent: Tree, data: ImageSet, held: Tensor) -> Tree:
    """The mean gradient [...] over clients' rows `held` [clients, pictures], from the sum of their updates."""
    moved = updates_of(model, to_all(sent, len(held)), data, [[rows] for rows in held])
    return {name: -value.sum(0) / len(held) for name, value in moved.items()}


def below(gradient: Tree) -> Tensor:
    """What is below the output layer, as one vector."""
    return torch.cat([value.flatten() for name, value in gradient.items() if not name.startswith("head")]).double()


def cosine(first: Tensor, second: Tensor) -> float:
    """How far two vectors [entries] point along one line, in [0, 1]; their signs do not matter."""
    return float(torch.cosine_similarity(first, second, 0).abs())


def fish(kind: str, data: ImageSet, held: Tensor, hidden: int, run: int, trial: int) -> Isolation:
    """Fish one example out of the clients' rows `held` [clients, pictures]."""
    model = network(kind, data, hidden)
    start = initial_parameters(model, seed(run, "model"))
    attack = Fishing(target=trial % len(data.classes))
    direction = attack.direction(start, seed(run, "direction", trial))
    catch = attack.run(lambda sent: mean_gradient(model, sent, data, held), start, held.numel(), direction)
    # What each example would pass alone through the row: with p = 1 less with p = 0.
    rows, left = held.flatten(), below(catch.gradient)
    cast = [attack.cast(start, direction, cutoff) for cutoff in (-torch.inf, None)]
    own = [
        below(mean_gradient(model, cast[0], data, row.view(1, 1)))
        - below(mean_gradient(model, cast[1], data, row.view(1, 1)))
        for row in rows
    ]
    alike = [cosine(left, each) for each in own]
    one = int(np.argmax(alike))
    decibels = np.nan
    if kind != "CNN":
        found, _ = layer_input({name: value[None] for name, value in catch.gradient.items()}, _first(data))
        decibels = float(psnr(found.clamp(0, 1), data.images[rows[[one]]])[0])
    honest = below(mean_gradient(model, start, data, held))
    single = below(mean_gradient(model, start, data, rows[one].view(1, 1)))
    return Isolation(decibels=decibels, cosine=alike[one], honest=cosine(honest, single), rounds=catch.rounds)


def flip(data: ImageSet, held: Tensor, hidden: int, run: int) -> tuple[Array, int]:
    """PSNR [pictures] of the first client's, by exchanging every pair of classes, and how many rounds that took.

    The server keeps what its purity takes for one example's. A picture of which nothing came out has -inf.
    """
    model = network("perceptron", data, hidden)
    start = initial_parameters(model, seed(run, "model"))
    clients = len(held)
    plan = [[rows] for rows in held]
    plain = updates_of(model, to_all(start, clients), data, plan)
    others = {name: value[1:].sum(0) for name, value in plain.items()}
    total = {name: (value + plain[name][0])[None] for name, value in others.items()}
    mine = data.images[held[0]]
    best, rounds = np.full(len(mine), -np.inf), 1
    for first, second in combinations(range(len(data.classes)), 2):
        attack = LabelFlip(first=first, second=second)
        rounds += 1
        changed = updates_of(model, to_all(attack.flipped(start), 1), data, plan[:1])
        seen = _two_rounds(
            total, {name: (value + changed[name][0])[None] for name, value in others.items()}, start, clients
        )
        left = attack.run(seen, FlipKnowledge()).gradient
        if float(purity(left["hidden.0.weight"])[0]) < ONE:
            continue
        found, _ = layer_input(left, _first(data))
        best = np.maximum(best, psnr(found.clamp(0, 1).expand_as(mine), mine))
    return best, rounds


def _first(data: ImageSet) -> LayerKnowledge:
    return replace(SINGLE, shape=data.shape)


def _two_rounds(first: Tree, second: Tree, sent: Tree, clients: int) -> MaliciousServer:
    """What the server saw of two rounds, sums [1, ...]."""
    one = seen_by_server(first, {name: value[None] for name, value in to_all(sent, clients).items()})
    return replace(
        one, sums={0: first, 1: second}, sent=one.sent | {1: one.sent[0]}, cohorts=one.cohorts | {1: one.cohorts[0]}
    )
