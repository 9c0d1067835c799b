"""The reconstruction half of `cohort`: every client takes one step on one picture, and the server inverts the sum."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.metrics import clopper_pearson, mean_interval
from attacks.pictures import EXACT_DB, psnr
from attacks.reconstruction.sums import Candidates, InvertingSums, Rows, SumKnowledge
from defenses.accounting import Event, calibrate
from defenses.base import Defense
from defenses.dp_fedavg import DPFedAvg
from experiments.studies.base import Setting, Values
from experiments.studies.clients import Recipe, initial, updates
from fl_core.data import ImageSet
from fl_core.federation import Federation, run
from fl_core.seeds import generator
from fl_core.views import Recorder, SecureServer

if TYPE_CHECKING:
    from experiments.studies.cohort import Cohort

READABLE_DB = 20.0
"""Above it a digit is plainly readable."""


def pictures(study: Cohort, setting: Setting, point: Values) -> Values:
    """Two questions to each sum, in dB of PSNR.

    How well is the victim's picture (seat 0) recovered by the best candidate, picked by the truth? And how near is the
    attacker's own choice to anybody's picture? Each stands beside a blind guess with the same help: the best of as many
    public pictures, and the mean public picture.
    """
    cohort, pool, public = point["cohort"], setting.pool, setting.test.images
    model = setting.make("model", shape=pool.shape, classes=len(pool.classes))
    known = SumKnowledge(model=model, shape=pool.shape, classes=len(pool.classes), lr=study.lr)
    draw = generator(setting.seed, "picture cohorts", cohort)
    seats = torch.stack([torch.randperm(len(pool), generator=draw)[:cohort] for _ in range(study.victims)])
    truth = pool.images[seats].numpy()

    plain = seen(study, setting, model, pool, seats, Defense())
    found: dict[tuple[str, str, float | None], Candidates] = {
        (Rows.name, "secure_server", None): Rows().run(plain, known)
    }
    if cohort <= study.inverted_up_to:
        attack = InvertingSums(iterations=study.iterations)
        found[attack.name, "secure_server", None] = attack.run(plain, known, run=setting.seed, backend="vmap")
    if study.epsilons:
        # The largest ε, which has the least noise: a smaller one leaves less.
        epsilon = max(study.epsilons)
        sigma = calibrate(epsilon, study.delta, [Event(relation="replace", rate=1.0, steps=1)])
        clip = _median_length(study, setting, model)
        share = DPFedAvg(
            delta=study.delta, clip_norm=clip, noise_by="clients", noise_multiplier=sigma / math.sqrt(cohort)
        )
        found[Rows.name, "secure_server", epsilon] = Rows().run(seen(study, setting, model, pool, seats, share), known)
        # A server without secure aggregation sees each update as a sum over one.
        alone = seen(study, setting, model, pool, seats[:, :1], share)
        found[Rows.name, "server", epsilon] = Rows().run(alone, known)

    rows: list[Values] = []
    for (name, view, budget), candidates in found.items():
        against = truth[:, :1] if view == "server" else truth
        near = likeness(candidates.images, against)
        about = {"attack": name, "view": view, "noise_epsilon": budget}
        rows += scored(about, "victim", near[:, :, 0].max(1))
        if name == Rows.name:
            rows += scored(about, "somebody", near[np.arange(len(near)), candidates.chosen.numpy()].max(1))
    blind = {"view": "none", "noise_epsilon": None}
    for name, count in {one: candidates.images.shape[1] for (one, *_), candidates in found.items()}.items():
        guesses = public[torch.randint(len(public), (study.victims, count), generator=draw)]
        rows += scored(blind | {"attack": f"blind: best of as many public pictures as {name}"}, "victim",
                       likeness(guesses, truth[:, :1])[:, :, 0].max(1))  # fmt: skip
    mean = public.mean(0).expand(study.victims, 1, *pool.shape)
    near = likeness(mean, truth)
    rows += scored(blind | {"attack": "blind: mean picture"}, "victim", near[:, 0, 0])
    rows += scored(blind | {"attack": "blind: mean picture"}, "somebody", near[:, 0].max(1))
    return {"rows": rows, "shown": shown(found[Rows.name, "secure_server", None], truth)}


def seen(
    study: Cohort, setting: Setting, model: nn.Module, pool: ImageSet, seats: Tensor, defense: Defense
) -> SecureServer:
    """One masked round; row r of `seats` [replicas, cohort] are the pictures of replica r's clients."""
    replicas, cohort = seats.shape
    members = torch.eye(replicas, dtype=torch.bool).repeat_interleave(cohort, 1)
    federation = Federation(
        model=model,
        data=pool.select(seats.flatten()),
        owners=torch.arange(cohort).repeat(replicas),
        members=members,
        sizes=torch.ones(cohort, dtype=torch.long),
        algorithm=Recipe(model=model, lr=study.lr).algorithm(),
        defense=defense,
        rounds=1,
        run=setting.seed,
        replica_ids=range(replicas),
        backend="vmap",
    )
    recorder = Recorder(SecureServer)
    run(federation, recorder)
    observation = recorder.observation()
    assert isinstance(observation, SecureServer)
    return observation


def _median_length(study: Cohort, setting: Setting, model: nn.Module) -> float:
    """Of updates on single public pictures: what the clients clip to."""
    recipe = Recipe(model=model, lr=study.lr)
    start = initial(model, setting.seed, torch.device("cpu"))
    rows = torch.arange(min(len(setting.test), 500)).unsqueeze(1)
    return float(updates(recipe, start, setting.test, rows).norm(dim=1).median())


def likeness(candidates: Tensor, truth: NDArray[np.float32]) -> NDArray[np.float64]:
    """PSNR [replicas, candidates, pictures] in dB, at most EXACT_DB, of each candidate against each true picture."""
    replicas, count = candidates.shape[:2]
    found = np.empty((replicas, count, truth.shape[1]))
    for replica, images in enumerate(candidates.numpy()):
        for seat, picture in enumerate(truth[replica]):
            found[replica, :, seat] = psnr(images, np.broadcast_to(picture, images.shape))
    return np.minimum(found, EXACT_DB)


def scored(about: Values, question: str, decibels: NDArray[np.float64]) -> list[Values]:
    """The mean with its interval over sums, and the share that is readable."""
    readable = clopper_pearson(int((decibels >= READABLE_DB).sum()), len(decibels))
    both = (("psnr", mean_interval(decibels)), ("readable", readable))
    return [about | {"question": question, "metric": name} | dataclasses.asdict(one) for name, one in both]


def shown(candidates: Candidates, truth: NDArray[np.float32]) -> Values:
    """The attacker's choice and the nearest true picture, as pixels of 3 digits, in the sum of the median PSNR."""
    chosen = candidates.images[torch.arange(len(truth)), candidates.chosen]
    near = likeness(chosen.unsqueeze(1), truth)[:, 0]
    middle = int(near.max(1).argsort(kind="stable")[len(near) // 2])
    return {
        "recovered": np.round(chosen[middle].numpy().astype(float), 3).tolist(),
        "nearest": np.round(truth[middle, near[middle].argmax()].astype(float), 3).tolist(),
        "psnr": float(near[middle].max()),
    }
