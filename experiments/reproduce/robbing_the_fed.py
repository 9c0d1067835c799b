"""Robbing the Fed: the share of pictures that an imprint layer isolates, how exact they are, and one from a crowd."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from attacks.metrics import clopper_pearson, mean_interval
from attacks.pictures import psnr
from attacks.reconstruction.imprint import Imprint, Ruler, alone, empirical, projection, ruler
from experiments.reproduce.base import JPEG, Budget, Published, Reproduction
from experiments.reproduce.inversion import COLOUR, DIGITS, SHOWN
from experiments.studies.base import Setting, Values
from experiments.studies.imprint_scene import Scene
from experiments.studies.tampering import as_plain, decibels, drawn, plain, row
from fl_core.architectures import MLP
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_number
from fl_core.models import initial_parameters
from fl_core.seeds import seed

RECOVERED = 50.0  # dB, of a picture that is alone, in float32
ONE_SHOT = "one picture of 128 users × 256"
DOMINANT = "with pictures beside which the others of their bin hardly move the loss"
MOST = 400.0  # dB, for a picture that is exact to the last bit
NEAR = 0.005  # the share of public pictures, on either side, by which the crowd's density is measured


def isolated(bins: int) -> str:
    """What the published number with so many bins is called."""
    return f"share alone, {bins} bins"


@dataclass(frozen=True, kw_only=True)
class RobbingTheFed(Reproduction):
    """`trials` batches of `batch` test pictures for each number of `bins`, whose edges come from the pool.

    Then `shots` attempts to take one picture out of the sum over `users` with `user_batch` pictures of the pool each.
    Beside the layer is a perceptron of one hidden layer of `hidden` units.
    """

    bins: Sequence[int]
    batch: int
    trials: int
    users: int
    user_batch: int
    shots: int
    hidden: int = 32

    title: ClassVar[str] = "An imprint layer (Robbing the Fed)"
    source: ClassVar[str] = (
        "Fowl et al. 2022, Robbing the Fed, section 4 (the chance), breaching's notebook (one shot); how exact a "
        "picture is in either precision was computed for this project"
    )
    protocol: ClassVar[str] = (
        "one local step on a batch of 64 by a model with a dense imprint layer of k bins whose edges are quantiles of "
        "other pictures: a picture alone in its bin is recovered. One shot: a bin that one picture of the whole crowd "
        "is expected in, the sum over all users; the PSNR of what the server takes for one picture."
    )
    published: ClassVar[tuple[Published, ...]] = (
        *(
            Published(what=isolated(bins), value=alone("dense", bins, 64), unit="share of pictures", tolerance=0.0005)
            for bins in (64, 128, 256, 1024)
        ),
        *(
            Published(
                what=f"pictures alone, {precision}", value=least, unit="dB", computed=True, sense="at least", digits=1
            )
            for precision, least in (("float32", 50.0), ("float64", 200.0))
        ),
        Published(what=ONE_SHOT, value=47.08, unit="dB", sense="at least", digits=2),
    )
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=DIGITS,
            options={"bins": [64, 128], "batch": 64, "trials": 20, "users": 4, "user_batch": 64, "shots": 10},
            differs="",
        ),
        "cpu": Budget(
            overrides=(*COLOUR, "data.limit=33000"),
            options={
                "bins": [64, 128, 256, 1024], "batch": 64, "trials": 300, "users": 128, "user_batch": 256, "shots": 20,
            },
            differs="",
        ),
        "full": Budget(
            overrides=(*COLOUR, "data.limit=null"),
            options={
                "bins": [64, 128, 256, 1024], "batch": 64, "trials": 1000, "users": 128, "user_batch": 256,
                "shots": 100,
            },
            differs="",
        ),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for bins in self.bins:
            check_number("study.bins", bins, minimum=2, integer=True)
        for name in ("batch", "trials", "users", "user_batch", "shots", "hidden"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)

    def points(self) -> list[Values]:
        precise = [{"part": "exactness", "precision": f"float{bits}"} for bits in (32, 64)]
        return [{"part": "one shot"}, *({"part": "alone", "bins": bins} for bins in self.bins), *precise]

    def measure(self, point: Values, setting: Setting) -> Values:
        if point["part"] == "one shot":
            return self._one_shot(setting)
        if point["part"] == "alone":
            return self._alone(point["bins"], setting)
        return self._exactness(point["precision"], setting)

    def _scene(self, rule: Ruler, victims: ImageSet, run: int) -> Scene:
        attack, shape, classes = Imprint(bins=rule.bins, gain=float(rule.bins)), victims.shape, len(victims.classes)
        model = attack.model(MLP(shape, classes, hidden=(self.hidden,)), shape, classes).to(victims.images.dtype)
        start = initial_parameters(model, seed(run, "model"))
        return Scene(attack=attack, ruler=rule, model=model, sent=attack.plant(start, rule), pool=victims)

    def _rule(self, bins: int, setting: Setting) -> Ruler:
        """Bins whose edges are quantiles of the pool, measured a part at a time for the memory's sake."""
        row_of = projection(setting.pool.shape, setting.seed)
        measured = torch.cat([part.flatten(1).double() @ row_of.double() for part in setting.pool.images.split(4096)])
        return ruler(row_of, bins, lambda chances: torch.quantile(measured, chances.to(measured)))

    def _victims(self, setting: Setting) -> ImageSet:
        """Who has the pictures of a batch; InputError where there are too few."""
        if self.batch > len(setting.test):
            raise InputError(f"a batch needs {self.batch} pictures, and there are {len(setting.test)}; lower it")
        return setting.test

    def _alone(self, bins: int, setting: Setting) -> Values:
        victims = self._victims(setting)
        scene = self._scene(self._rule(bins, setting), victims, setting.seed)
        shares = np.empty((2, self.trials))
        for trial in range(self.trials):
            rows = drawn(victims, self.batch, setting.seed, trial)
            pictures = victims.images[rows]
            found = scene.recovered(scene.read(scene.summed([[rows]], lr=1.0), 1), pictures) >= RECOVERED
            shares[:, trial] = (found & scene.alone(pictures).astype(bool)).mean(), found.mean()
        about = {"samples": f"{self.trials} batches of {self.batch}"}
        return {
            "rows": [
                row(  # the chance is that of any pictures
                    mean_interval(shares[0]),
                    metric=isolated(bins),
                    **about,
                    note="alone, and recovered to 50 dB",
                    as_published=True,
                ),
                row(mean_interval(shares[1]), metric=f"share recovered, {bins} bins", **about, note=DOMINANT),
            ]
        }

    def _exactness(self, precision: str, setting: Setting) -> Values:
        victims = self._victims(setting)
        bins = max(self.bins)
        if precision == "float64":
            victims = dataclasses.replace(victims, images=victims.images.double())
        scene = self._scene(self._rule(bins, setting), victims, setting.seed)
        levels: list[float] = []
        kept: Values = {}
        for trial in range(min(self.trials, 20)):
            rows = drawn(victims, self.batch, setting.seed, trial)
            pictures, answer = victims.images[rows], scene.read(scene.summed([[rows]], lr=1.0), 1)
            own = torch.from_numpy(scene.alone(pictures))
            unit = scene.ruler.fires(pictures[own]).double().argmax(1)
            found = answer.pictures[0, unit]
            levels += psnr(found, pictures[own]).tolist()
            kept = kept or {"truth": as_plain(pictures[own][:SHOWN]), "found": as_plain(found[:SHOWN])}
        known = np.minimum(levels, MOST)
        least = next(one.value for one in self.published if one.what == f"pictures alone, {precision}")
        about = {"samples": f"{len(levels)} pictures"}
        below = int((known < least).sum())
        lost = f"; {below} below {least:.0f} dB, which rounding moves into another bin" if below else ""
        return {
            "rows": [
                plain(
                    float(np.quantile(known, 0.01)),
                    metric=f"pictures alone, {precision}",
                    **about,
                    note=f"what 99% reach, {bins} bins{lost}",
                ),
                plain(float(np.median(known)), metric=f"median of pictures alone, {precision}, dB", **about),
            ],
            "shown": kept,
        }

    def _one_shot(self, setting: Setting) -> Values:
        crowd = self.users * self.user_batch
        victims, public = setting.pool, setting.test.images
        if crowd > len(victims):
            raise InputError(f"the crowd has {crowd} pictures, and there are {len(victims)}; lower study.users")
        row_of = projection(victims.shape, setting.seed)
        quantile = empirical(row_of, public)
        spread = ruler(row_of, 2, quantile).spread
        # The outer edges are those of public pictures: a bin down to the darkest conceivable one, with only two others
        # beside it, would drive the logits so far that half of the pictures had no gradient.
        lowest, highest = quantile(torch.tensor([0.0, 1.0], dtype=torch.float64)) + torch.tensor([-spread, spread])
        alone_in_it: list[float] = []
        answers: list[float] = []
        truth, found = [], []
        for shot in range(self.shots):
            # A bin somewhere in the middle, so narrow that one picture of the crowd is expected in it.
            place = 0.3 + 0.4 * (shot + 0.5) / self.shots
            ends = quantile(torch.tensor([place - NEAR, place, place + NEAR], dtype=torch.float64))
            width = (ends[2] - ends[0]) / (2 * NEAR * crowd)
            edges = torch.stack([lowest, ends[1], ends[1] + width, highest])
            rule = Ruler(rows=row_of.double().expand(3, -1), low=edges[:-1], high=edges[1:], spread=spread)
            scene = self._scene(rule, victims, setting.seed)
            held = drawn(victims, crowd, setting.seed, shot).view(self.users, self.user_batch)
            answer = scene.read(scene.summed([[rows] for rows in held], lr=1.0), self.users)
            users = (victims.images[rows] for rows in held)  # a user at a time, for the memory's sake
            inside = torch.cat([pictures[rule.fires(pictures)[:, 1]] for pictures in users])
            if not len(inside):
                continue
            picture = answer.pictures[0, 1]
            likeness = decibels(picture.expand_as(inside), inside)
            if answer.single[0, 1]:
                answers.append(float(likeness.max()))
            if len(inside) == 1:
                alone_in_it.append(float(likeness[0]))
                truth.append(inside[0])
                found.append(picture)
        where = JPEG if victims.shape[0] == 3 else f"8x8 digits, {self.users} users × {self.user_batch}"
        rows = [
            row(
                mean_interval(np.array(answers)) if answers else None, metric=ONE_SHOT,
                samples=f"{len(answers)} answers of {self.shots} shots",
                differs=f"{where} instead of ImageNet; updates in float32, not gradients",
                note="" if answers else "the server took no answer for one picture",
            ),
            row(
                mean_interval(np.array(alone_in_it)) if alone_in_it else None,
                metric="PSNR in bins that hold one picture, dB", samples=f"{len(alone_in_it)} of {self.shots} shots",
                note="whether the server takes it for one or not",
            ),
            row(
                clopper_pearson(len(truth), self.shots), metric="share of shots whose bin holds one picture",
                samples=f"{self.shots} shots", note="about 1/e = 0.368 where the density is known",
            ),
        ]  # fmt: skip
        if not truth:
            return {"rows": rows}
        shown = {"truth": as_plain(torch.stack(truth[:SHOWN])), "found": as_plain(torch.stack(found[:SHOWN]))}
        return {"rows": rows, "shown": shown}
