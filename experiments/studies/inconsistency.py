"""Does secure aggregation hold where the server sends different clients different models?

Pasquini et al. 2022: all but the victim get a model whose gradients are zero, so the sum is the victim's update. Every
sum here is taken by the masking protocol itself, between clients that hold the hash of the model they were sent, and
between clients that do not look. Beside it stand a server that sees each update, and one that sends the same to all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from attacks.metrics import clopper_pearson, mean_interval
from attacks.pictures import RECOVERED_DB
from attacks.reconstruction.fully_connected import LayerKnowledge, layer_input
from attacks.reconstruction.imprint import BIAS, Imprint, ImprintKnowledge, empirical, projection, ruler
from attacks.reconstruction.inconsistency import InconsistencyKnowledge, ModelInconsistency
from attacks.reconstruction.labels import infer_label_from_weights
from attacks.reconstruction.prior import LinearPrior, linear_prior
from defenses.noise import cut
from defenses.secagg.keys import model_hash
from defenses.secagg.parameters import Parameters
from defenses.secagg.refusals import Aborted
from experiments.studies import inconsistency_figure
from experiments.studies.base import Setting, Study, Values
from experiments.studies.inconsistency_figure import EACH, ONE, TWO
from experiments.studies.tampering import (
    Channel,
    as_plain,
    blind_guesses,
    clipped,
    decibels,
    drawn,
    flat,
    masked_sum,
    picture_rows,
    plain,
    row,
    seen_by_server,
    to_all,
    updates_of,
)
from experiments.table import Page
from fl_core.architectures import MLP
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_number
from fl_core.models import initial_parameters
from fl_core.optimizers import Tree
from fl_core.seeds import seed

SERVERS = (EACH, ONE, TWO)
HASHED = "sum, two models, hashed"
VARIANTS = ("honest-but-curious", "malicious")
NO_HASH = bytes(32)
SHOWN = 5  # victims in the figure


@dataclass(frozen=True, kw_only=True)
class Inconsistency(Study):
    """Cohorts of `clients` with one picture each; then of `batch_clients` with `batch` pictures each, where the victim
    gets an imprint layer of `bins` bins; then `noisy_clients` with a picture each and noise in shares, by
    `noise_multipliers`.

    Each point is `trials` cohorts with a victim each. The model is a perceptron of one hidden layer of `hidden` units.
    Updates are clipped to `clip_norm` and rounded so that a sum takes `bits` bits.
    """

    clients: Sequence[int] = (2, 5, 10, 20, 50)
    batch_clients: Sequence[int] = (2, 5, 10, 20)
    noisy_clients: int = 10
    noise_multipliers: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    trials: int = 30
    hidden: int = 64
    batch: int = 16
    bins: int = 128
    bits: int = 20
    clip_norm: float = 1.0
    delta: float = 1e-5

    grid: ClassVar[tuple[str, ...]] = ("clients", "batch_clients", "noise_multipliers")

    def __post_init__(self) -> None:
        for name in ("noisy_clients", "trials", "hidden", "bins"):
            check_number(f"study.{name}", getattr(self, name), minimum=2, integer=True)
        check_number("study.batch", self.batch, minimum=1, integer=True)
        for name in ("clients", "batch_clients"):
            for count in getattr(self, name):
                check_number(f"study.{name}", count, minimum=2, integer=True)
        for multiplier in self.noise_multipliers:
            check_number("study.noise_multipliers", multiplier, above=0)
        check_number("study.clip_norm", self.clip_norm, above=0)
        check_number("study.delta", self.delta, above=0, below=1)

    def check(self, setting: Setting) -> None:
        batches = self.batch * max(self.batch_clients, default=0)
        needed = max([*self.clients, self.noisy_clients, batches])
        if len(setting.pool) < needed:
            raise InputError(
                f"a cohort needs {needed} pictures, and the pool has {len(setting.pool)}; lower study.clients, "
                "study.batch_clients or study.batch, or raise data.limit"
            )
        for multiplier in self.noise_multipliers:
            _ = self.channel(self.noisy_clients, 1, multiplier).step  # it checks its own numbers

    def points(self) -> list[Values]:
        return [
            *({"part": "pictures", "clients": count} for count in self.clients),
            *({"part": "batches", "clients": count} for count in self.batch_clients),
            *(
                {"part": "noise", "clients": self.noisy_clients, "noise_multiplier": multiplier}
                for multiplier in self.noise_multipliers
            ),
        ]

    def measure(self, point: Values, setting: Setting) -> Values:
        if point["part"] == "batches":
            return {"rows": self._batches(point["clients"], setting)}
        return self._pictures(point["clients"], point.get("noise_multiplier", 0.0), setting)

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return inconsistency_figure.draw(self, records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return inconsistency_figure.table(self, records)

    def channel(self, clients: int, length: int, noise_multiplier: float = 0.0) -> Channel:
        """How updates of `length` coordinates of so many clients are summed under masks."""
        return Channel(
            clients=clients, length=length, bits=self.bits, clip_norm=self.clip_norm, noise_multiplier=noise_multiplier
        )

    # One picture a client

    def _pictures(self, clients: int, noise_multiplier: float, setting: Setting) -> Values:
        """What each server learns of each victim."""
        pool = setting.pool
        model = MLP(pool.shape, len(pool.classes), hidden=(self.hidden,))
        start = initial_parameters(model, seed(setting.seed, "model"))
        channel = self.channel(clients, sum(value.numel() for value in start.values()), noise_multiplier)
        prior = linear_prior(setting.test.images)
        trials = [self._trial(model, start, channel, pool, prior, setting.seed, one) for one in range(self.trials)]
        truth = torch.stack([one.truth for one in trials])
        rows = []
        for server in SERVERS:
            found = torch.stack([one.pictures[server] for one in trials])
            right = sum(one.labels[server] for one in trials)
            rows += picture_rows(decibels(found, truth), server=server)
            rows.append(row(clopper_pearson(right, self.trials), metric="label", server=server))
            cosines = torch.tensor([one.cosines[server] for one in trials])
            rows.append(row(mean_interval(cosines.double().numpy()), metric="cosine", server=server))
            shares = 1 if server == EACH else clients
            promised = channel.epsilon(shares, self.delta)
            rows.append(plain(promised, metric="epsilon", server=server))
        for name, guess in blind_guesses(truth, setting.test.images).items():
            rows += picture_rows(decibels(guess, truth), server=name)
        for variant in trials[0].ends:
            ends = Counter(one.ends[variant] for one in trials)
            aborted = clopper_pearson(self.trials - ends["a sum"], self.trials)
            note = "; ".join(f"{count} times {end}" for end, count in ends.most_common())
            rows.append(row(aborted, metric="aborted", server=f"{HASHED} ({variant})", note=note))
        shown = {server: as_plain(torch.stack([one.pictures[server] for one in trials[:SHOWN]])) for server in SERVERS}
        return {"rows": rows, "pictures": shown | {"truth": as_plain(truth[:SHOWN])}, "classes": len(pool.classes)}

    def _trial(
        self, model: MLP, start: Tree, channel: Channel, pool: ImageSet, prior: LinearPrior, run: int, trial: int
    ) -> _Trial:
        """One cohort, whose victim sits somewhere else each time."""
        clients = channel.clients
        held, seat = drawn(pool, clients, run, trial), trial % clients
        attack = ModelInconsistency(biases=["hidden.0.bias"])
        crooked = attack.broadcast({name: value[None] for name, value in start.items()}, clients, seat)
        sent = {ONE: to_all(start, clients), TWO: {name: value[0] for name, value in crooked.items()}}
        plan = [[one] for one in held.split(1)]
        vectors = {way: clipped(flat(updates_of(model, sent[way], pool, plan)), self.clip_norm) for way in sent}
        steps = {way: channel.encode(each, run, trial) for way, each in vectors.items()}
        parameters = Parameters.complete(clients, channel.length, channel.bits)
        context = parameters.context(trial, NO_HASH)
        seen = {EACH: steps[ONE][seat]}
        seen |= {way: masked_sum(each, parameters, context, run, trial) for way, each in steps.items()}
        trees = {server: cut(channel.decode(one)[None], sent[ONE]) for server, one in seen.items()}
        trees[TWO] = attack.run(seen_by_server(trees[TWO], crooked), InconsistencyKnowledge(seat=seat)).update
        errors = {EACH: channel.error(1), ONE: channel.error(clients), TWO: channel.error(clients, rounded=1)}
        label, own = int(pool.labels[held[seat]]), cut(vectors[ONE][seat : seat + 1].double(), sent[ONE])
        return _Trial(
            truth=pool.images[held[seat]],
            pictures={server: _picture(tree, errors[server], pool.shape, prior) for server, tree in trees.items()},
            labels={server: _label(tree) == label for server, tree in trees.items()},
            cosines={server: _cosine(tree, own, without=attack.above) for server, tree in trees.items()},
            ends={} if channel.grid else self._with_hashes(steps[TWO], sent[TWO], run, trial),
        )

    def _with_hashes(self, steps: Tensor, sent: Tree, run: int, trial: int) -> dict[str, str]:
        """How rounds of both variants end whose clients each have the hash of the model that they were sent."""
        clients, length = steps.shape
        hashes = [model_hash({name: value[client] for name, value in sent.items()}) for client in range(clients)]
        ends = {}
        for variant in VARIANTS:
            parameters = Parameters.complete(clients, length, self.bits, malicious=variant == "malicious")
            try:
                masked_sum(steps, parameters, [parameters.context(trial, one) for one in hashes], run, trial)
                ends[variant] = "a sum"
            except Aborted as abort:
                reasons = sorted({str(refusal.reason) for refusal in abort.refusals.values()})
                ends[variant] = f"aborted: {abort}; {len(abort.refusals)} clients refused ({', '.join(reasons)})"
        return ends

    # Several pictures a client

    def _batches(self, clients: int, setting: Setting) -> list[Values]:
        """The share of the victim's pictures that an imprint layer gives away, sent to all and sent to it alone."""
        pool, shape = setting.pool, setting.pool.shape
        imprint = Imprint(bins=self.bins, kind="sparse", gain=8.0)
        model = imprint.model(MLP(shape, len(pool.classes), hidden=(self.hidden,)), shape, len(pool.classes))
        start = initial_parameters(model, seed(setting.seed, "model"))
        measure = projection(shape, setting.seed)
        rule = ruler(measure, self.bins, empirical(measure, setting.test.images))
        planted = imprint.plant(start, rule)
        attack = ModelInconsistency(biases=["inner.hidden.0.bias", BIAS], above=["inner.head.bias"])
        channel = self.channel(clients, sum(value.numel() for value in start.values()))
        told = ImprintKnowledge(ruler=rule, shape=shape, error=channel.error(clients))
        parameters = Parameters.complete(clients, channel.length, channel.bits)
        shares: dict[str, list[float]] = {ONE: [], TWO: []}
        for trial in range(self.trials):
            held = drawn(pool, clients * self.batch, setting.seed, trial).view(clients, self.batch)
            seat = trial % clients
            one, own = ({name: value[None] for name, value in tree.items()} for tree in (start, planted))
            ways = {
                ONE: {name: value[None] for name, value in to_all(planted, clients).items()},
                TWO: attack.broadcast(one, clients, seat, crafted=own),
            }
            for way, sent in ways.items():
                updates = updates_of(
                    model, {name: value[0] for name, value in sent.items()}, pool, [[rows] for rows in held]
                )
                steps = channel.encode(clipped(flat(updates), self.clip_norm), setting.seed, trial)
                total = masked_sum(steps, parameters, parameters.context(trial, NO_HASH), setting.seed, trial)
                seen = seen_by_server(cut(channel.decode(total)[None], updates), sent)
                mine = pool.images[held[seat]]
                found = imprint.run(seen, told).pictures[0, rule.fires(mine).long().argmax(1)]
                shares[way].append(float((decibels(found, mine) >= RECOVERED_DB).mean()))
        return [
            row(mean_interval(torch.tensor(each).double().numpy()), metric="recovered", server=way)
            for way, each in shares.items()
        ]


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """What became of one victim: its picture, and by server what was made of it; by variant how the round ended."""

    truth: Tensor
    pictures: dict[str, Tensor]
    labels: dict[str, bool]
    cosines: dict[str, float]
    ends: dict[str, str]


def _picture(tree: Tree, error: float, shape: tuple[int, int, int], prior: LinearPrior) -> Tensor:
    told = LayerKnowledge(weight="hidden.0.weight", bias="hidden.0.bias", shape=shape, error=error)
    return prior.estimate(*layer_input(tree, told))[0].float()


def _cosine(tree: Tree, own: Tree, without: Sequence[str]) -> float:
    """Of the angle between a sum and the victim's own update, but for the variables that others share in any case."""
    first, second = ({name: value for name, value in one.items() if name not in without} for one in (tree, own))
    return float(torch.cosine_similarity(flat(first)[0], flat(second)[0], dim=0))


def _label(tree: Tree) -> int:
    """An update is minus a gradient."""
    return int(infer_label_from_weights({"head.weight": -tree["head.weight"]}, "head.weight"))
