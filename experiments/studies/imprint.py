"""Pictures through the sum: what a layer that holds a cohort's pictures apart still recovers from it, and when not.

Against the number of pictures in the sum and of the layer's units, beside the closed forms; with the fixed point that
masks need; with noise in shares, and what then becomes of pictures and of labels; after several local steps; and what a
client could have noticed. Beside the server that sees the sum stands one that sees each update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks.metrics import mean_interval
from attacks.pictures import RECOGNISED_DB, RECOVERED_DB
from attacks.reconstruction.imprint import (
    BIAS,
    WEIGHT,
    Imprint,
    Kind,
    empirical,
    projection,
    ruler,
    trap_ruler,
)
from attacks.reconstruction.prior import LinearPrior, linear_prior
from defenses.noise import cut
from defenses.secagg.parameters import Parameters
from experiments.studies import imprint_figure
from experiments.studies.base import Setting, Study, Values
from experiments.studies.imprint_figure import DENSE, EACH, GENTLE, HONEST, SPARSE, SUM, TRAPS
from experiments.studies.imprint_scene import Counting, Scene
from experiments.studies.tampering import (
    Array,
    Channel,
    blind_guesses,
    clipped,
    decibels,
    drawn,
    flat,
    masked_sum,
    plain,
    row,
    to_all,
    updates_of,
)
from experiments.table import Page
from fl_core.architectures import MLP, centred
from fl_core.errors import InputError, check_number
from fl_core.models import initial_parameters, logits
from fl_core.optimizers import Tree
from fl_core.seeds import generator, seed

ENOUGH = 2048  # pictures a point of the crowd, over its trials
NO_HASH = bytes(32)


@dataclass(frozen=True, kw_only=True)
class ImprintSum(Study):
    """Cohorts of `clients` with `batch` pictures each, against layers of `bins` units, in floating point.

    Then `cohort` clients with `cohort_batch` pictures each, a layer of `units` units and `trials` cohorts: whose
    updates are clipped to `clip_norm`, rounded so that a sum takes each of `bits`, and given noise in shares by each of
    `noise_multipliers`; who take `steps` local steps at the rate `lr`, each on pictures of its own; and who look at the
    layer. The model beside the layer is a perceptron of one hidden layer of `hidden` units. A dense layer's gain is its
    number of units and the others' is 8, which makes nearly all of an update's length the layer's.
    """

    clients: Sequence[int] = (1, 4, 16, 64)
    batch: int = 64
    bins: Sequence[int] = (64, 256, 1024, 4096)
    cohort: int = 10
    cohort_batch: int = 8
    units: int = 256
    bits: Sequence[int] = (10, 12, 14, 16, 20, 24, 28)
    noise_bits: int = 20
    noise_multipliers: Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
    steps: Sequence[int] = (1, 2, 4, 8)
    trials: int = 10
    hidden: int = 32
    lr: float = 0.1
    clip_norm: float = 1.0
    delta: float = 1e-5

    grid: ClassVar[tuple[str, ...]] = ("clients", "bins", "bits", "noise_multipliers", "steps")

    def __post_init__(self) -> None:
        for name in ("batch", "cohort_batch"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        for name in ("cohort", "units", "trials", "hidden"):
            check_number(f"study.{name}", getattr(self, name), minimum=2, integer=True)
        for name, least in (("clients", 1), ("bins", 2), ("bits", 4), ("steps", 1)):
            for value in getattr(self, name):
                check_number(f"study.{name}", value, minimum=least, integer=True)
        for multiplier in self.noise_multipliers:
            check_number("study.noise_multipliers", multiplier, above=0)
        for name in ("lr", "clip_norm"):
            check_number(f"study.{name}", getattr(self, name), above=0)
        check_number("study.delta", self.delta, above=0, below=1)

    def check(self, setting: Setting) -> None:
        crowd = self.batch * max(self.clients, default=0)
        needed = max(crowd, self.cohort * self.cohort_batch * max(self.steps, default=1))
        if len(setting.pool) < needed:
            raise InputError(
                f"a cohort needs {needed} pictures, and the pool has {len(setting.pool)}; lower study.clients, "
                "study.batch, study.cohort_batch or study.steps, or raise data.limit"
            )
        for bits in self.bits:
            _ = self._channel(1, bits).step  # it checks its own numbers
        for multiplier in self.noise_multipliers:
            _ = self._channel(1, self.noise_bits, multiplier).step
        largest = max([*self.bins, self.units])
        if len(setting.test) < largest:
            raise InputError(
                f"{largest} bins need as many public pictures, and there are {len(setting.test)}; lower study.bins and "
                "study.units, or raise data.test_limit"
            )

    def points(self) -> list[Values]:
        return [
            *({"part": "crowd", "clients": count, "bins": bins} for bins in self.bins for count in self.clients),
            *({"part": "bits", "bits": bits} for bits in self.bits),
            *({"part": "noise", "noise_multiplier": multiplier} for multiplier in self.noise_multipliers),
            *({"part": "steps", "steps": steps} for steps in self.steps),
            {"part": "rows"},
        ]

    def measure(self, point: Values, setting: Setting) -> Values:
        match point["part"]:
            case "crowd":
                return {"rows": self._crowd(point["clients"], point["bins"], setting)}
            case "bits":
                return self._bits(point["bits"], setting)
            case "noise":
                return self._noise(point["noise_multiplier"], setting)
            case "steps":
                return {"rows": self._steps(point["steps"], setting)}
            case _:
                return {"rows": self._rows(setting)}

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return imprint_figure.draw(self, records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return imprint_figure.table(self, records)

    def scene(self, kind: Kind, bins: int, setting: Setting, gain: float | None = None) -> Scene:
        """An attack with its ruler, made from the test pictures, and the model that the clients are sent."""
        pool, public = setting.pool, setting.test.images
        attack = Imprint(bins=bins, kind=kind, gain=gain or (float(bins) if kind == "dense" else 8.0))
        rows = projection(pool.shape, setting.seed, bins if kind == "traps" else 1)
        rule = trap_ruler(rows, public) if kind == "traps" else ruler(rows, bins, empirical(rows, public))
        inner = MLP(pool.shape, len(pool.classes), hidden=(self.hidden,))
        model = attack.model(inner, pool.shape, len(pool.classes))
        start = initial_parameters(model, seed(setting.seed, "model"))
        return Scene(attack=attack, ruler=rule, model=model, sent=attack.plant(start, rule), pool=pool)

    # How many pictures, how many bins

    def _crowd(self, clients: int, bins: int, setting: Setting) -> list[Values]:
        found = []
        for kind in (DENSE, TRAPS):
            scene = self.scene(kind, bins, setting)
            shares, sure = [], []
            for trial in range(min(max(ENOUGH // (clients * self.batch), 3), 30)):
                held = drawn(scene.pool, clients * self.batch, setting.seed, trial).view(clients, self.batch)
                total = scene.summed([[rows] for rows in held], lr=1.0)
                answer = scene.read(total, clients)
                pictures = scene.pool.images[held.flatten()]
                shares.append(float((scene.recovered(answer, pictures) >= RECOVERED_DB).mean()))
                held_by = scene.ruler.fires(pictures).sum(0)[answer.single[0]]
                if len(held_by):
                    sure.append(float((held_by == 1).double().mean()))
            found.append(row(mean_interval(np.array(shares)), metric="recovered", kind=kind))
            found.append(row(mean_interval(np.array(sure)) if sure else None, metric="single", kind=kind))
        return found

    # Fixed point

    def _cohort(self, scene: Scene, trial: int, run: int) -> tuple[Tensor, Tree]:
        """The rows that the cohort's clients hold [clients, pictures], and their updates of one step [clients, ...]."""
        held = drawn(scene.pool, self.cohort * self.cohort_batch, run, trial).view(self.cohort, self.cohort_batch)
        sent = to_all(scene.sent, self.cohort)
        return held, updates_of(scene.model, sent, scene.pool, [[rows] for rows in held])

    def _through(self, channel: Channel, updates: Tree, run: int, trial: int) -> tuple[Tree, Tree]:
        """The sum [1, ...] by the masking protocol, and what a server that sees each update has [clients, ...]."""
        steps = channel.encode(clipped(flat(updates), self.clip_norm), run, trial)
        parameters = Parameters.complete(channel.clients, channel.length, channel.bits)
        total = masked_sum(steps, parameters, parameters.context(trial, NO_HASH), run, trial)
        return cut(channel.decode(total)[None], updates), cut(channel.decode(steps), updates)

    def _bits(self, bits: int, setting: Setting) -> Values:
        rows, kept = [], {}
        for kind in (DENSE, SPARSE, TRAPS):
            scene = self.scene(kind, self.units, setting)
            shares, levels = [], []
            for trial in range(self.trials):
                held, updates = self._cohort(scene, trial, setting.seed)
                channel = self._channel(scene.length, bits)
                total, _ = self._through(channel, updates, setting.seed, trial)
                answer = scene.read(total, self.cohort, channel.error(self.cohort))
                pictures = scene.pool.images[held.flatten()]
                found, alone = scene.recovered(answer, pictures), scene.alone(pictures)
                shares.append(float((found >= RECOGNISED_DB).mean()))
                levels.append(float(found[alone].mean()))
                if kind == SPARSE and trial == 0:
                    kept = scene.shown(answer, pictures, alone)
            rows.append(row(mean_interval(np.array(shares)), metric="recognised", kind=kind))
            rows.append(row(mean_interval(np.array(levels)), metric="psnr", kind=kind))
        return {"rows": rows, "pictures": kept}

    # Noise in shares

    def _noise(self, noise_multiplier: float, setting: Setting) -> Values:
        prior = linear_prior(setting.test.images)
        rows, kept = self._honest(noise_multiplier, setting), {}
        for kind in (DENSE, SPARSE, TRAPS):
            more, shown = self._noised(kind, noise_multiplier, prior, setting)
            rows += more
            if kind == SPARSE:
                kept = shown
        truth = setting.pool.images[drawn(setting.pool, self.cohort * self.cohort_batch, setting.seed, 0)]
        for name, guess in blind_guesses(truth, setting.test.images).items():
            rows.append(row(mean_interval(decibels(guess, truth)), metric="psnr", kind=name, server="blind"))
        return {"rows": rows, "pictures": kept}

    def _noised(
        self, kind: Kind, noise_multiplier: float, prior: LinearPrior, setting: Setting
    ) -> tuple[list[Values], Values]:
        """Pictures and labels that the sum gives away, and those that each update does; and some pictures."""
        scene = self.scene(kind, self.units, setting)
        channel = self._channel(scene.length, self.noise_bits, noise_multiplier)
        counting = self._counting(scene.model, scene.sent, setting)
        found: dict[str, list[Array]] = {SUM: [], EACH: []}
        labels: dict[str, list[float]] = {SUM: [], EACH: []}
        kept: Values = {}
        for trial in range(self.trials):
            held, updates = self._cohort(scene, trial, setting.seed)
            total, each = self._through(channel, updates, setting.seed, trial)
            labels[SUM].append(counting.of(total, held.view(1, -1)))
            labels[EACH].append(counting.of(each, held))
            whole = scene.pool.images[held.flatten()]
            answer = scene.read(total, self.cohort, channel.error(self.cohort))
            found[SUM].append(scene.recovered(answer, whole, prior))
            own = []
            for client, examples in enumerate(held):
                mine = scene.read({name: value[[client]] for name, value in each.items()}, 1, channel.error(1))
                own.append(scene.recovered(mine, scene.pool.images[examples], prior))
            found[EACH].append(np.concatenate(own))
            if trial == 0:
                kept = scene.shown(answer, whole, scene.alone(whole), prior)
        rows: list[Values] = []
        for server, shares in ((SUM, self.cohort), (EACH, 1)):
            about = {"kind": kind, "server": server}
            recognised = np.array([(one >= RECOGNISED_DB).mean() for one in found[server]])
            rows.append(row(mean_interval(recognised), metric="recognised", **about))
            rows.append(row(mean_interval(np.array([one.mean() for one in found[server]])), metric="psnr", **about))
            rows.append(row(mean_interval(np.array(labels[server])), metric="labels", **about))
            rows.append(plain(channel.epsilon(shares, self.delta), metric="epsilon", **about))
        return rows, kept

    def _channel(self, length: int, bits: int, noise_multiplier: float = 0.0) -> Channel:
        return Channel(
            clients=self.cohort,
            length=length,
            bits=bits,
            clip_norm=self.clip_norm,
            noise_multiplier=noise_multiplier,
        )

    def _honest(self, noise_multiplier: float, setting: Setting) -> list[Values]:
        """Labels where the server left the model as it is."""
        pool = setting.pool
        model = MLP(pool.shape, len(pool.classes), hidden=(self.hidden,))
        start = initial_parameters(model, seed(setting.seed, "model"))
        length = sum(value.numel() for value in start.values())
        channel = self._channel(length, self.noise_bits, noise_multiplier)
        counting = self._counting(model, start, setting)
        labels: dict[str, list[float]] = {SUM: [], EACH: []}
        for trial in range(self.trials):
            held = drawn(pool, self.cohort * self.cohort_batch, setting.seed, trial).view(self.cohort, -1)
            updates = updates_of(model, to_all(start, self.cohort), pool, [[rows] for rows in held])
            total, each = self._through(channel, updates, setting.seed, trial)
            labels[SUM].append(counting.of(total, held.view(1, -1)))
            labels[EACH].append(counting.of(each, held))
        return [
            row(mean_interval(np.array(found)), metric="labels", kind=HONEST, server=server)
            for server, found in labels.items()
        ]

    def _counting(self, model: nn.Module, sent: Tree, setting: Setting) -> Counting:
        """What the server needs to count labels, from the test pictures alone."""
        public = setting.test
        scores = logits(model, {name: value[None] for name, value in sent.items()}, public.images)[0]
        clients = min(20, len(public) // self.cohort_batch)
        batches = torch.arange(clients * self.cohort_batch).view(clients, -1)
        updates = updates_of(model, to_all(sent, clients), public, [[rows] for rows in batches])
        lengths = torch.linalg.vector_norm(flat(updates), dim=1)
        return Counting(
            chances=scores.softmax(-1).mean(0),
            scale=float(lengths.clamp(min=self.clip_norm).mean() / self.clip_norm),
            labels=setting.pool.labels,
            batch=self.cohort_batch,
        )

    # Several local steps

    def _steps(self, steps: int, setting: Setting) -> list[Values]:
        found = []
        for name, kind, gain in (
            (DENSE, DENSE, None),
            (SPARSE, SPARSE, None),
            (GENTLE, SPARSE, 1.0),
            (TRAPS, TRAPS, None),
        ):
            scene = self.scene(kind, self.units, setting, gain)
            shares: dict[str, list[float]] = {"recovered": [], "recovered of the first step": []}
            for trial in range(self.trials):
                count = self.cohort * steps * self.cohort_batch
                held = drawn(scene.pool, count, setting.seed, trial).view(self.cohort, steps, -1)
                total = scene.summed([list(batches) for batches in held], lr=self.lr)
                answer = scene.read(total, self.cohort)
                for metric, rows in (("recovered", held), ("recovered of the first step", held[:, 0])):
                    pictures = scene.pool.images[rows.flatten()]
                    shares[metric].append(float((scene.recovered(answer, pictures) >= RECOVERED_DB).mean()))
            found += [row(mean_interval(np.array(each)), metric=metric, kind=name) for metric, each in shares.items()]
        return found

    # What a client could have noticed

    def _rows(self, setting: Setting) -> list[Values]:
        """Scores of a first layer that a client can compute from what it was sent and its own pictures."""
        pool = setting.pool
        held = drawn(pool, min(len(pool), 512), setting.seed, 0)
        pixels = pool.images[held].flatten(1)
        model = MLP(pool.shape, len(pool.classes), hidden=(self.units,))
        new = initial_parameters(model, seed(setting.seed, "model"))
        draw = generator(setting.seed, "batches")
        batches = [held[torch.randint(len(held), (32,), generator=draw)] for _ in range(300)]
        moved = updates_of(model, to_all(new, 1), pool, [batches], self.lr)
        trained = {name: value + moved[name][0] for name, value in new.items()}
        found = []
        for name, tree in (("a new layer", new), ("a trained layer", trained)):
            found += _scores(name, tree["hidden.0.weight"], tree["hidden.0.bias"], centred(pixels))
        for kind in (DENSE, SPARSE, TRAPS):
            sent = self.scene(kind, self.units, setting).sent
            found += _scores(kind, sent[WEIGHT], sent[BIAS], pixels)
        return found


def _scores(name: str, weight: Tensor, bias: Tensor, inputs: Tensor) -> list[Values]:
    directions = nn.functional.normalize(weight, dim=1)
    cosines = (directions @ directions.T - torch.eye(len(weight))).abs()
    scores = {
        "largest cosine": cosines.max(),
        "stable rank": weight.square().sum() / torch.linalg.matrix_norm(weight, 2) ** 2,
        "fired": (inputs @ weight.T + bias > 0).double().mean(),
    }
    return [plain(float(value), metric=metric, kind=name) for metric, value in scores.items()]
