"""A malicious server's reconstructions side by side: what each steals from a sum, and what a client would notice.

The layers that keep pictures apart, with LOKI's kernels in front of them or not; fishing and label flips, which isolate
one example. Beside them the goals that stand in closed form: one client's 64 pictures and 256 bins, the same through a
masked sum, and what client-level noise leaves of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import brentq
from scipy.stats import binom
from torch import Tensor

from attacks.metrics import clopper_pearson, mean_interval
from attacks.pictures import EXACT_DB, RECOGNISED_DB, RECOVERED_DB
from attacks.reconstruction.imprint import alone
from attacks.reconstruction.loki import alone_in_time
from attacks.reconstruction.prior import linear_prior
from defenses.noise import cut
from defenses.secagg.parameters import Parameters
from experiments.studies import malicious_reconstruction_figure as paper
from experiments.studies.base import Setting, Study, Values
from experiments.studies.malicious_reconstruction_noticed import NOTICED, Client
from experiments.studies.malicious_reconstruction_scene import (
    ATTACKS,
    DEEP,
    DENSE,
    FISHING,
    FLIP,
    LARGEST,
    LOKI,
    SPARSE,
    Layer,
    fish,
    flip,
    layer,
)
from experiments.studies.tampering import (
    Array,
    Channel,
    as_plain,
    blind_guesses,
    clipped,
    decibels,
    drawn,
    flat,
    masked_sum,
    plain,
    row,
)
from experiments.table import Page
from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree

NO_HASH = bytes(32)
SHOWN = 6  # pictures in the figure


@dataclass(frozen=True, kw_only=True)
class MaliciousReconstruction(Study):
    """The goal: one client's `goal_batch` pictures in `units` bins; the same in the masked sum of `goal_clients`.

    Then every attack on cohorts of `clients` with `batch` pictures each. LOKI and a layer that is not split stand side
    by side on `loki_clients` with `loki_batch` pictures each in `loki_units` bins, and on `loki_cohort` clients in
    `step_units` bins after `steps` local steps at the rate `lr`, each on pictures of its own. Noise in shares is for
    the client-level `epsilons` at `delta`, of updates clipped to `clip_norm` in sums of `bits` bits. A client looks at
    `benign` benign models of each kind, and at as many tampered ones. The trials are cohorts a point, and `hidden` is
    the perceptron's width.
    """

    goal_batch: int = 64
    goal_clients: int = 16
    goal_trials: int = 20
    units: int = 256
    clients: Sequence[int] = (1, 4, 16)
    batch: int = 16
    loki_clients: Sequence[int] = (8, 16, 64, 100)
    loki_cohort: int = 16
    loki_batch: int = 8
    loki_units: int = 32
    loki_trials: int = 2
    step_units: int = 256
    steps: Sequence[int] = (1, 2, 4, 8)
    lr: float = 0.1
    epsilons: Sequence[float] = (1.0, 8.0, 64.0, 512.0)
    noise_trials: int = 2
    delta: float = 1e-5
    clip_norm: float = 1.0
    bits: int = 24
    trials: int = 5
    benign: int = 20
    hidden: int = 64

    grid: ClassVar[tuple[str, ...]] = ("clients", "loki_clients", "steps")

    def __post_init__(self) -> None:
        for name in ("goal_batch", "goal_clients", "goal_trials", "batch", "loki_cohort", "loki_batch", "noise_trials"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        for name in ("units", "loki_units", "step_units", "loki_trials", "trials", "benign", "hidden"):
            check_number(f"study.{name}", getattr(self, name), minimum=2, integer=True)
        for name in ("clients", "loki_clients", "steps"):
            for value in getattr(self, name):
                check_number(f"study.{name}", value, minimum=1, integer=True)
        for value in self.epsilons:
            check_number("study.epsilons", value, above=0)
        for name in ("lr", "clip_norm"):
            check_number(f"study.{name}", getattr(self, name), above=0)
        check_number("study.delta", self.delta, above=0, below=1)
        if self.goal_batch % self.goal_clients:
            raise InputError(
                f"study.goal_batch is {self.goal_batch} and study.goal_clients {self.goal_clients}; the pictures are "
                "divided among the clients, so make it a multiple"
            )

    def check(self, setting: Setting) -> None:
        needed = max(
            self.goal_batch,
            self.batch * max(self.clients, default=0),
            self.loki_batch * max(self.loki_clients, default=0),
            self.loki_batch * self.loki_cohort * max(self.steps, default=0),
        )
        if len(setting.pool) < needed:
            raise InputError(
                f"a cohort needs {needed} pictures, and the pool has {len(setting.pool)}; lower the study's clients, "
                "batches or steps, or raise data.limit"
            )
        if len(setting.test) < self.units:
            raise InputError(
                f"{self.units} traps need as many public pictures, and there are {len(setting.test)}; lower "
                "study.units, or raise data.test_limit"
            )
        length = self._goal(DENSE, setting).length
        for epsilon in self.epsilons:
            self._noised(epsilon, length)

    def points(self) -> list[Values]:
        return [
            {"part": "goal"},
            {"part": "noise"},
            *({"part": "attack", "attack": name, "clients": count} for name in ATTACKS for count in self.clients),
            *({"part": "loki", "clients": count} for count in self.loki_clients),
            {"part": "loki, masked"},
            *({"part": "steps", "steps": steps} for steps in self.steps),
            *({"part": "noticed", "model": name} for name in NOTICED),
        ]

    def measure(self, point: Values, setting: Setting) -> Values:
        match point["part"]:
            case "goal":
                return {"rows": self._goals(setting)}
            case "noise":
                return self._noise(setting)
            case "attack":
                return {"rows": self._attack(point["attack"], point["clients"], setting)}
            case "loki":
                return {"rows": self._beside(point["clients"], 1, self.loki_units, setting)}
            case "loki, masked":
                return {"rows": self._loki_masked(setting)}
            case "steps":
                return {"rows": self._beside(self.loki_cohort, point["steps"], self.step_units, setting)}
            case _:
                client = Client(units=self.units, hidden=self.hidden, batch=self.batch, lr=self.lr, setting=setting)
                return {"rows": client.looks_at(point["model"], self.benign)}

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return paper.draw(self, records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return paper.table(self, records)

    # The goal, and through masks

    def _goal(self, name: str, setting: Setting) -> Layer:
        return layer(name, setting.pool, setting.test.images, self.units, self.hidden, setting.seed)

    def _held(self, setting: Setting, trial: int, clients: int, pictures: int) -> Tensor:
        """The rows that clients hold [clients, pictures]."""
        return drawn(setting.pool, clients * pictures, setting.seed, trial).view(clients, pictures)

    def _goals(self, setting: Setting) -> list[Values]:
        found = []
        expected, deviation = alone_of(self.units, self.goal_batch)
        margin = 1.96 * deviation / self.goal_trials**0.5
        chance = {"expected": expected, "chance_low": expected - margin, "chance_high": min(expected + margin, 1.0)}
        least, most = (float(binom.ppf(at, self.goal_batch, expected)) for at in (0.025, 0.975))
        for name in (DENSE, SPARSE):
            mine = self._goal(name, setting)
            for way, dtype, clients in (
                ("one client, float64", torch.float64, 1),
                ("one client, float32", torch.float32, 1),
                ("masked sum", torch.float32, self.goal_clients),
            ):
                played = mine.to(dtype)
                data = replace(setting.pool, images=setting.pool.images.to(dtype))
                scores, lone = [], []
                for trial in range(self.goal_trials):
                    held = self._held(setting, trial, clients, self.goal_batch // clients)
                    plan = [[rows] for rows in held]
                    if way == "masked sum":
                        channel = self._channel(played.length)
                        total, error = self._masked(channel, played.updates(data, plan, 1.0), setting.seed, trial)
                    else:
                        total, error = played.summed(data, plan, 1.0), 0.0
                    pictures = data.images[held.flatten()]
                    answer = played.read(total, clients, data, error)
                    scores.append(played.scores(answer, pictures, clients))
                    lone.append(played.alone(pictures, clients))
                every, single = np.concatenate(scores), np.concatenate(lone)
                hits = np.array([(one >= RECOVERED_DB).sum() for one in scores])
                about = {"attack": name, "way": way}
                share = row(mean_interval(hits / self.goal_batch), metric="recovered", **about)
                inside = bool(abs(share["value"] - expected) <= margin)
                batches = {"inside": inside, "batches": int(((least <= hits) & (hits <= most)).sum())}
                found.append(share | chance | batches | {"binomial": f"{least:g} to {most:g}"})
                for metric, value in (
                    ("least PSNR alone", every[single].min()),
                    ("median PSNR alone", np.median(every[single])),
                ):
                    found.append(plain(_finite(value), metric=metric, **about))
        return found

    def _channel(self, length: int, noise_multiplier: float = 0.0) -> Channel:
        return Channel(
            clients=self.goal_clients,
            length=length,
            bits=self.bits,
            clip_norm=self.clip_norm,
            noise_multiplier=noise_multiplier,
        )

    def _masked(self, channel: Channel, updates: Tree, run: int, trial: int) -> tuple[Tree, float]:
        """The masking protocol's sum [1, ...] of clipped updates, and the error of a coordinate."""
        steps = channel.encode(clipped(flat(updates), self.clip_norm), run, trial)
        parameters = Parameters.complete(channel.clients, channel.length, channel.bits)
        total = masked_sum(steps, parameters, parameters.context(trial, NO_HASH), run, trial)
        return cut(channel.decode(total)[None], updates), channel.error(channel.clients)

    # Noise in shares

    def _noised(self, epsilon: float, length: int) -> Channel:
        """The channel whose sum guarantees a client `epsilon` at `delta`."""

        def excess(log_multiplier: float) -> float:
            promised = self._channel(length, float(np.exp(log_multiplier))).epsilon(self.goal_clients, self.delta)
            assert promised is not None
            return float(np.log(promised / epsilon))

        return self._channel(length, float(np.exp(brentq(excess, np.log(1e-4), np.log(1e3), xtol=1e-4))))

    def _noise(self, setting: Setting) -> Values:
        prior, public = linear_prior(setting.test.images), setting.test.images
        rows: list[Values] = []
        kept: Values = {}
        for name in (DENSE, SPARSE):
            mine = self._goal(name, setting)
            for epsilon in (*self.epsilons, None):
                channel = self._noised(epsilon, mine.length) if epsilon else self._channel(mine.length)
                about = {"attack": name, "epsilon": epsilon, "noise_multiplier": channel.noise_multiplier}
                shares, levels = [], []
                for trial in range(self.noise_trials):
                    held = self._held(setting, trial, self.goal_clients, self.goal_batch // self.goal_clients)
                    updates = mine.updates(setting.pool, [[rows] for rows in held], 1.0)
                    total, error = self._masked(channel, updates, setting.seed, trial)
                    pictures = setting.pool.images[held.flatten()]
                    answer = mine.read(total, self.goal_clients, setting.pool, error)
                    scores = mine.scores(answer, pictures, self.goal_clients, prior.estimate)
                    shares.append(scores >= RECOGNISED_DB)
                    levels.append(np.minimum(scores, EXACT_DB))
                    if trial == 0 and name == SPARSE:
                        lone = np.flatnonzero(mine.alone(pictures, 1))[:SHOWN]
                        unit = mine.ruler.fires(pictures[lone]).int().argmax(1)
                        estimated = prior.estimate(answer.pictures[0, unit].float(), answer.deviation[0, unit])
                        kept.setdefault("truth", as_plain(pictures[lone]))
                        kept[f"{epsilon:g}" if epsilon else "none"] = as_plain(estimated)
                seen = np.concatenate(shares)
                rows.append(row(clopper_pearson(int(seen.sum()), len(seen)), metric="recognised", **about))
                rows.append(row(mean_interval(np.concatenate(levels)), metric="psnr", **about))
        truth = setting.pool.images[self._held(setting, 0, 1, self.goal_batch)[0]]
        for guess, pictures in blind_guesses(truth, public).items():
            rows.append(row(mean_interval(decibels(pictures, truth)), metric="psnr", attack=guess))
        return {"rows": rows, "pictures": kept}

    # Every attack on the same cohorts

    def _attack(self, name: str, clients: int, setting: Setting) -> list[Values]:
        if name in (FISHING, DEEP):
            return self._fishing("CNN" if name == DEEP else "perceptron", clients, setting)
        if name == FLIP:
            return self._flips(clients, setting)
        crowd = clients * self.batch
        mine = layer(
            name, setting.pool, setting.test.images, self.units, self.hidden, setting.seed, clients=clients, crowd=crowd
        )
        scores = [self._scores(mine, setting, trial, clients, 1, self.batch, 1.0) for trial in range(self.trials)]
        return _shares(scores) + [plain(1, metric="rounds")]

    def _scores(
        self, mine: Layer, setting: Setting, trial: int, clients: int, steps: int, pictures: int, lr: float
    ) -> Array:
        """PSNR of every picture of a cohort that takes `steps` steps on `pictures` each [pictures in all]."""
        held = drawn(setting.pool, clients * steps * pictures, setting.seed, trial).view(clients, steps, pictures)
        total = mine.summed(setting.pool, [list(batches) for batches in held], lr)
        answer = mine.read(total, clients, setting.pool)
        return mine.scores(answer, setting.pool.images[held.flatten()], clients)

    def _fishing(self, kind: str, clients: int, setting: Setting) -> list[Values]:
        done = [
            fish(kind, setting.pool, self._held(setting, trial, clients, self.batch), self.hidden, setting.seed, trial)
            for trial in range(self.trials)
        ]
        found = [
            row(mean_interval(np.array([one.cosine for one in done])), metric="cosine"),
            row(mean_interval(np.array([one.honest for one in done])), metric="honest cosine"),
            row(mean_interval(np.array([float(one.rounds) for one in done])), metric="rounds"),
        ]
        if kind != "CNN":
            levels = np.array([one.decibels for one in done])
            hits = int((levels >= RECOVERED_DB).sum())
            found.append(row(clopper_pearson(hits, len(done)), metric="caught"))
            # One picture of the cohort, if any.
            shares = (levels >= RECOVERED_DB) / (clients * self.batch)
            found.append(row(mean_interval(shares), metric="recovered"))
            found += _levels(levels)
        return found

    def _flips(self, clients: int, setting: Setting) -> list[Values]:
        scores, rounds = [], 0
        for trial in range(self.trials):
            held = self._held(setting, trial, clients, self.batch)
            mine, rounds = flip(setting.pool, held, self.hidden, setting.seed)
            scores.append(mine)
        return _shares(scores) + [plain(rounds, metric="rounds")]

    # Kernels of one's own

    def _loki_masked(self, setting: Setting) -> list[Values]:
        """LOKI in the sum that the masking protocol makes of clipped and rounded updates."""
        clients, pool = self.goal_clients, setting.pool
        mine = layer(LOKI, pool, setting.test.images, self.loki_units, self.hidden, setting.seed, clients=clients)
        channel, scores = self._channel(mine.length), []
        for trial in range(self.loki_trials):
            held = self._held(setting, trial, clients, self.loki_batch)
            total, _ = self._masked(
                channel, mine.updates(pool, [[rows] for rows in held], self.lr), setting.seed, trial
            )
            # In a client's own columns the others have zeros, which lie on the grid.
            answer = mine.read(total, clients, pool, channel.error(clients, 1))
            scores.append(mine.scores(answer, pool.images[held.flatten()], clients))
        about = {"attack": LOKI, "expected": alone_in_time(self.loki_units, self.loki_batch, 1)}
        return [one | about for one in _shares(scores)]

    def _beside(self, clients: int, steps: int, units: int, setting: Setting) -> list[Values]:
        """LOKI and the sparse layer that is not split, with as many units."""
        found: list[Values] = []
        for name in (LOKI, SPARSE):
            mine = layer(name, setting.pool, setting.test.images, units, self.hidden, setting.seed, clients=clients)
            scores = [
                self._scores(mine, setting, trial, clients, steps, self.loki_batch, self.lr)
                for trial in range(self.loki_trials)
            ]
            crowd = self.loki_batch * (1 if name == LOKI else clients)
            closed = alone_in_time(units, crowd, steps) if name == LOKI else alone("sparse", units, crowd * steps)
            about = {"attack": name, "expected": closed}
            found += [one | about for one in _shares(scores)]
        return found


def alone_of(bins: int, pictures: int) -> tuple[float, float]:
    """The share of `pictures` that are alone in one of as many equally likely bins: its mean and standard deviation.

    A collision takes two pictures at once, so that the share varies more than that of independent ones.
    """
    mean = alone("dense", bins, pictures)
    both = (1 - 1 / bins) * (1 - 2 / bins) ** (pictures - 2)
    variance = mean * (1 - mean) / pictures + (1 - 1 / pictures) * (both - mean**2)
    return mean, float(max(variance, 0.0) ** 0.5)


def _shares(scores: Sequence[Array]) -> list[Values]:
    """The share recovered, over cohorts, and the median PSNR of those."""
    share = row(mean_interval(np.array([(one >= RECOVERED_DB).mean() for one in scores])), metric="recovered")
    return [share, *_levels(np.concatenate(scores))]


def _levels(scores: Array) -> list[Values]:
    hits = scores[scores >= RECOVERED_DB]
    return [plain(_finite(np.median(hits)) if len(hits) else None, metric="psnr")]


def _finite(value: Any) -> float:
    """Decibels for a record, which holds no infinity."""
    return float(min(value, LARGEST))
