"""What a server gets that says of clients that they dropped out.

It says of all but m clients that they dropped out, and has the sum of m: a threshold is the fewest that it gets. It
says to some that the victim did and to others that it did not, and has the victim's own vector where both groups are
large enough (`two_stories`). And where clients add noise in shares, those of the dropped ones are missing, so that what
is left guarantees less than was promised: by how much, and what it takes to keep the promise.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import norm
from torch import Tensor

from attacks.metrics import bootstrap_over_replicas, clopper_pearson
from attacks.reconstruction.fully_connected import LayerKnowledge, layer_input
from attacks.reconstruction.prior import LinearPrior, linear_prior
from defenses.accounting import smallest_noise
from defenses.discrete_gaussian import rho_for
from defenses.noise import cut
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import seeded
from defenses.secagg.refusals import Aborted
from experiments.studies import dropout_figure, two_stories
from experiments.studies.base import Setting, Study, Values
from experiments.studies.dropout_figure import EACH, EACH_NOISY, FOR_ALL, FOR_THRESHOLD, NONE
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
    to_all,
    updates_of,
    words,
)
from experiments.table import Page
from fl_core.architectures import MLP
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_number
from fl_core.models import initial_parameters
from fl_core.optimizers import Tree
from fl_core.seeds import seed

PUBLIC = 200  # of the test pictures, for the mean of an update
SHOWN = 5  # victims in the figure
NO_HASH = bytes(32)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A protocol: its threshold, and whether clients sign what they were told against a malicious server."""

    name: str
    threshold: int
    malicious: bool = False


def variants(clients: int) -> list[Variant]:
    """From no threshold at all to the one that Bonawitz et al. 2017 ask for against a malicious server."""
    two_thirds = 2 * clients // 3 + 1
    return [
        Variant(name="no threshold", threshold=1),
        Variant(name="half", threshold=clients // 2),
        Variant(name="two thirds", threshold=two_thirds),
        Variant(name="two thirds, signed", threshold=two_thirds, malicious=True),
    ]


@dataclass(frozen=True, kw_only=True)
class Dropout(Study):
    """Cohorts of `clients` with one picture each, of whom the server lets `survivors` be in the sum.

    Each point is `trials` cohorts with a victim each. Noise in shares is planned for `epsilon` with everybody's share,
    and again with those of the threshold of two thirds. The model is a perceptron of one hidden layer of `hidden`
    units; updates are clipped to `clip_norm` and rounded so that a sum takes `bits` bits.
    """

    clients: int = 20
    survivors: Sequence[int] = (1, 2, 3, 5, 7, 10, 14, 17, 20)
    trials: int = 30
    epsilon: float = 8.0
    delta: float = 1e-5
    hidden: int = 64
    bits: int = 20
    clip_norm: float = 1.0

    grid: ClassVar[tuple[str, ...]] = ("survivors",)

    def __post_init__(self) -> None:
        for name in ("clients", "hidden"):
            check_number(f"study.{name}", getattr(self, name), minimum=3, integer=True)
        check_number("study.trials", self.trials, minimum=2, integer=True)
        for count in self.survivors:
            check_number("study.survivors", count, minimum=1, maximum=self.clients, integer=True)
        check_number("study.epsilon", self.epsilon, above=0)
        check_number("study.delta", self.delta, above=0, below=1)
        check_number("study.clip_norm", self.clip_norm, above=0)

    def check(self, setting: Setting) -> None:
        if len(setting.pool) < 2 * self.clients:
            raise InputError(
                f"{self.clients} clients and as many non-members need {2 * self.clients} pictures, and the pool has "
                f"{len(setting.pool)}; lower study.clients or raise data.limit"
            )
        _ = self.channels(1)  # they check their own numbers

    def points(self) -> list[Values]:
        return [
            *({"part": "survivors", "survivors": count} for count in self.survivors),
            *({"part": "stories", "variant": one.name} for one in variants(self.clients)),
        ]

    def measure(self, point: Values, setting: Setting) -> Values:
        model = MLP(setting.pool.shape, len(setting.pool.classes), hidden=(self.hidden,))
        start = initial_parameters(model, seed(setting.seed, "model"))
        if point["part"] == "stories":
            variant = next(one for one in variants(self.clients) if one.name == point["variant"])
            return {"rows": self._stories(variant, model, start, setting)}
        return self._survivors(point["survivors"], model, start, setting)

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return dropout_figure.draw(self, records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return dropout_figure.table(self, records)

    @property
    def planned(self) -> int:
        """How many survivors the careful plan counts on: the threshold against a malicious server."""
        return variants(self.clients)[-1].threshold

    def channels(self, length: int) -> dict[str, Channel]:
        """Without noise, with noise that promises `epsilon` with all shares, and with those of `planned` clients."""
        guess = math.log(1 / (2 * rho_for(self.epsilon, self.delta)) ** 0.5)

        def channel(noise_multiplier: float) -> Channel:
            return Channel(
                clients=self.clients,
                length=length,
                bits=self.bits,
                clip_norm=self.clip_norm,
                noise_multiplier=noise_multiplier,
            )

        def planned_for(shares: int) -> Channel:
            def epsilon_of(noise_multiplier: float) -> float:
                promised = channel(noise_multiplier).epsilon(shares, self.delta)
                assert promised is not None
                return promised

            return channel(smallest_noise(epsilon_of, self.epsilon, guess))

        return {NONE: channel(0.0), FOR_ALL: planned_for(self.clients), FOR_THRESHOLD: planned_for(self.planned)}

    # All but some are said to have dropped out

    def _survivors(self, count: int, model: MLP, start: Tree, setting: Setting) -> Values:
        known = setting.test.select(torch.arange(min(PUBLIC, len(setting.test))))
        channels = self.channels(sum(value.numel() for value in start.values()))
        scene = _Scene(
            model=model,
            start=start,
            pool=setting.pool,
            prior=linear_prior(setting.test.images),
            mean=clipped(_updates(model, start, known, torch.arange(len(known))), self.clip_norm).mean(0).double(),
            seen={name: (channel, count) for name, channel in channels.items()}
            | {EACH: (channels[NONE], 1), EACH_NOISY: (channels[FOR_ALL], 1)},
        )
        trials = [self._trial(scene, count, setting.seed, trial) for trial in range(self.trials)]
        truth = torch.stack([one.truth for one in trials])
        rows = []
        for name, (channel, shares) in scene.seen.items():
            rows += picture_rows(decibels(torch.stack([one.pictures[name] for one in trials]), truth), server=name)
            scores = np.stack([one.scores[name] for one in trials])
            summary = bootstrap_over_replicas(scores, np.stack([one.members[name] for one in trials]), fpr=1.0)
            rows.append(row(summary.auc, metric="auc", server=name))
            rows.append(plain(channel.epsilon(shares, self.delta), metric="epsilon", server=name))
            if channel.grid:  # of a Gaussian mechanism μ = √2ρ, AUC = Φ(μ/√2)
                ceiling = float(norm.cdf(math.sqrt(channel.grid.rho_with(shares))))
                rows.append(plain(ceiling, metric="auc ceiling", server=name))
        for name, guess in blind_guesses(truth, setting.test.images).items():
            rows += picture_rows(decibels(guess, truth), server=name)
        for variant in variants(self.clients):
            ends = [one.ends[variant.name] for one in trials]
            told = Counter(end for end in ends if end)
            note = "; ".join(f"{times} times {end}" for end, times in told.most_common())
            rows.append(row(clopper_pearson(ends.count(""), len(ends)), metric="a sum", server=variant.name, note=note))
        shown = {name: as_plain(torch.stack([one.pictures[name] for one in trials[:SHOWN]])) for name in scene.seen}
        return {"rows": rows, "pictures": shown | {"truth": as_plain(truth[:SHOWN])}}

    def _trial(self, scene: _Scene, count: int, run: int, trial: int) -> _Trial:
        """One cohort; the victim and those who sit after it survive."""
        clients, seat, shape = self.clients, trial % self.clients, scene.pool.shape
        held = drawn(scene.pool, 2 * clients, run, trial)  # the second half are candidates that are no members
        vectors = clipped(_updates(scene.model, scene.start, scene.pool, held), self.clip_norm)
        survivors = {(seat + step) % clients for step in range(count)}
        drops = {client: Stage.MASKED for client in range(clients) if client not in survivors}
        free = Parameters.complete(clients, vectors.shape[1], self.bits, 1)
        centred = vectors.double() - scene.mean
        centred = centred / centred.norm(dim=1, keepdim=True)
        pictures, scores, members, ends = {}, {}, {}, {}
        for name, (channel, shares) in scene.seen.items():
            steps = channel.encode(vectors[:clients], run, trial)
            if name in (EACH, EACH_NOISY):
                inside, seen = {seat}, steps[seat]
            else:
                inside = survivors
                seen = masked_sum(steps, free, free.context(trial, NO_HASH), run, trial, drops)
            if name == NONE:
                ends = {one.name: self._end(one, steps, drops, run, trial) for one in variants(clients)}
            vector, error = channel.decode(seen), channel.error(shares)
            told = LayerKnowledge(weight="hidden.0.weight", bias="hidden.0.bias", shape=shape, error=error)
            found = layer_input(cut(vector[None], to_all(scene.start, 1)), told)
            pictures[name] = scene.prior.estimate(*found)[0].float()
            scores[name] = (centred @ (vector - shares * scene.mean)).numpy()
            members[name] = np.isin(np.arange(2 * clients), sorted(inside))
        return _Trial(truth=scene.pool.images[held[seat]], pictures=pictures, scores=scores, members=members, ends=ends)

    def _end(self, variant: Variant, steps: Tensor, drops: dict[int, Stage], run: int, trial: int) -> str:
        """How the round ends: empty for a sum."""
        clients, length = steps.shape
        parameters = Parameters.complete(clients, length, self.bits, variant.threshold, malicious=variant.malicious)
        try:
            masked_sum(steps, parameters, parameters.context(trial, NO_HASH), run, trial, drops)
        except Aborted as abort:
            return f"aborted: {abort}"
        return ""

    # Two stories about the victim

    def _stories(self, variant: Variant, model: MLP, start: Tree, setting: Setting) -> list[Values]:
        """In how many rounds the server has the victim's own vector, to the bit; and why not."""
        exact, reasons = 0, Counter[str]()
        for trial in range(self.trials):
            clients, seat = self.clients, trial % self.clients
            held = drawn(setting.pool, clients, setting.seed, trial)
            vectors = clipped(_updates(model, start, setting.pool, held), self.clip_norm)
            channel = Channel(clients=clients, length=vectors.shape[1], bits=self.bits, clip_norm=self.clip_norm)
            sent = words(channel.encode(vectors, setting.seed, trial), self.bits)
            parameters = Parameters.complete(
                clients, channel.length, self.bits, variant.threshold, malicious=variant.malicious
            )
            others = [client for client in range(clients) if client != seat]
            ending = two_stories.tell(
                sent,
                victim=seat,
                parameters=parameters,
                context=parameters.context(trial, NO_HASH),
                believers=others[: clients // 2 - 1],
                random=seeded(hashlib.sha256(f"{setting.seed}/{trial}".encode()).digest()),
            )
            if ending.vector is not None:
                exact += bool((ending.vector == sent[seat]).all())
            elif ending.refusals:
                refused = Counter(str(one.reason) for one in ending.refusals.values())
                reasons["; ".join(f"{times} clients refuse ({why})" for why, times in sorted(refused.items()))] += 1
            else:
                reasons[
                    f"{ending.self_shares} and {ending.key_shares} shares of two secrets that take {variant.threshold}"
                ] += 1
        note = "; ".join(f"{times} times {why}" for why, times in reasons.most_common())
        return [row(clopper_pearson(exact, self.trials), metric="own vector", server=variant.name, note=note)]


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What all cohorts of a point share; `mean` [d] is that of public pictures' updates.

    `seen` says, by what the server sees, how vectors travel and how many of them are in it.
    """

    model: MLP
    start: Tree
    pool: ImageSet
    prior: LinearPrior
    mean: Tensor
    seen: dict[str, tuple[Channel, int]]


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One cohort: the victim's picture and what was made of it, everyone's scores, by what the server sees."""

    truth: Tensor
    pictures: dict[str, Tensor]
    scores: dict[str, np.ndarray]
    members: dict[str, np.ndarray]
    ends: dict[str, str]


def _updates(model: MLP, start: Tree, data: ImageSet, held: Tensor) -> Tensor:
    """The updates [pictures, d] of clients with one of these rows of `data` each."""
    return flat(updates_of(model, to_all(start, len(held)), data, [[one] for one in held.split(1)]))
