"""The one problem that every peer plays, and the form in which each says how long it took.

FedAvg as McMahan et al. (2017, section 3) play it on MNIST: 100 clients with 600 pictures each, drawn uniformly; a
cohort of 10 in every round, drawn uniformly without replacement; one local epoch in batches of 10, hence 60 steps of
plain SGD on the cross-entropy; the uniform mean of the cohort's models. Their CNN, narrower: 26,714 parameters at
width 4 and 417,482 at 16.

Clients, cohorts, batches and initial weights are those of an `fl_core` federation whose `run` is the seed, with `IID`,
`Uniform` and `Shuffled`. A peer that insists on its own cohorts or batches may keep them: they cost the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_core.architectures import McMahanCNN
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_number
from fl_core.loaders import npz, parquet
from fl_core.models import initial_parameters
from fl_core.participation import Uniform
from fl_core.partition import IID
from fl_core.sampling import Shuffled
from fl_core.seeds import generator, seed

BATCH = 10
LR = {4: 0.2, 16: 0.1}
"""Learning rates by width: of 0.025, 0.05, 0.1, 0.2 and 0.4 those with which the plain loop was most accurate after
five rounds, on average over the seeds 1000 and 1001, which no reported run has."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is played. `rounds` are timed, after `warmup` rounds that are not; `lr` None is the width's own."""

    train: str
    test: str
    width: int = 4
    rounds: int = 6
    warmup: int = 1
    seed: int = 0
    lr: float | None = None
    clients: int = 100
    cohort: int = 10
    threads: int = 1
    evaluate: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "rounds", "warmup", "clients", "cohort", "threads"):
            check_number(f"--{name}", getattr(self, name), minimum=1, integer=True)
        check_number("--seed", self.seed, minimum=0, integer=True)
        if self.lr is not None:
            check_number("--lr", self.lr, above=0)
        elif self.width not in LR:
            raise InputError(f"--width is {self.width}, for which no learning rate was chosen; set --lr")
        Uniform(self.cohort).check(self.clients)

    @property
    def step_size(self) -> float:
        """The learning rate that holds."""
        return LR[self.width] if self.lr is None else self.lr


@dataclass(frozen=True)
class Problem:
    """The settings made concrete; every draw is a pure function of the seed."""

    settings: Settings
    pool: ImageSet
    test: ImageSet
    owners: Tensor

    @cached_property
    def held(self) -> Sequence[Tensor]:
        """Each client's rows of the pool."""
        order = torch.argsort(self.owners, stable=True)
        return list(torch.split(order, torch.bincount(self.owners, minlength=self.settings.clients).tolist()))

    def cohort(self, round: int) -> list[int]:
        """The clients of a round."""
        drawn = Uniform(self.settings.cohort).draw(self.settings.clients, self.settings.seed, 0, round)
        return [int(client) for client in drawn]

    def batches(self, client: int, round: int) -> list[Tensor]:
        """Rows of the pool, one tensor a step: an epoch over what the client holds, in a fresh order."""
        rows = self.held[client]
        draw = generator(self.settings.seed, "batches", 0, round, client)
        return Shuffled(local_epochs=1, batch_size=BATCH).draw(rows, len(rows), draw)

    def model(self) -> McMahanCNN:
        """The model with the weights that everybody starts from."""
        return initialised(McMahanCNN(self.pool.shape, len(self.pool.classes), self.settings.width), self.settings)

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """The share of the test pictures that the model gets right."""
        model.eval()
        right = [
            (model(images).argmax(1) == labels).sum()
            for images, labels in zip(self.test.images.split(1000), self.test.labels.split(1000), strict=True)
        ]
        model.train()
        return float(torch.stack(right).sum()) / len(self.test)


def initialised(model: McMahanCNN, settings: Settings) -> McMahanCNN:
    """The same object with the weights that the seed gives."""
    model.load_state_dict(initial_parameters(model, seed(settings.seed, "model")))
    return model


@cache
def problem_of(settings: Settings) -> Problem:
    """Reads the files, once in a process."""
    read = npz if settings.train.endswith(".npz") else parquet
    pool, test = read(settings.train, settings.test)
    return Problem(settings, pool, test, IID().owners(pool, settings.clients, settings.seed))


@dataclass
class Stopwatch:
    """Times rounds, and stops while the model is evaluated: after every round, or after the last one alone."""

    problem: Problem
    seconds: list[float] = field(default_factory=list)
    evaluation_seconds: list[float] = field(default_factory=list)
    accuracy: list[float | None] = field(default_factory=list)
    _began: float = 0.0

    def start(self) -> None:
        """The first round begins now."""
        self._began = time.perf_counter()

    def lap(self, model: Callable[[], nn.Module]) -> None:
        """A round has ended; `model` gives the global model, and is asked only where it is needed."""
        settings = self.problem.settings
        ended = time.perf_counter()
        self.seconds.append(ended - self._began)
        last = len(self.seconds) == settings.warmup + settings.rounds
        self.accuracy.append(self.problem.accuracy(model()) if settings.evaluate or last else None)
        self._began = time.perf_counter()
        self.evaluation_seconds.append(self._began - ended)


def report(peer: str, watch: Stopwatch, packages: Sequence[str] = (), **configured: Any) -> None:
    """Print the result as one line of JSON.

    `seconds` [rounds] of the timed rounds and `warmup_seconds` [warmup] of those before; `accuracy` [warmup + rounds]
    on the test pictures after each round, null where it was not asked for; `evaluation_seconds` of those that were.
    `packages` are the peer's, and `configured` says how it was set up; `load` is the machine's, over a minute.
    """
    settings, warmup = watch.problem.settings, watch.problem.settings.warmup
    if len(watch.seconds) != warmup + settings.rounds:
        raise RuntimeError(f"{peer} played {len(watch.seconds)} rounds instead of {warmup + settings.rounds}")
    evaluations = zip(watch.evaluation_seconds, watch.accuracy, strict=True)
    found = {
        "peer": peer,
        "settings": asdict(settings) | {"lr": settings.step_size, "batch": BATCH, "local_epochs": 1},
        "parameters": sum(value.numel() for value in watch.problem.model().parameters()),
        "seconds": watch.seconds[warmup:],
        "warmup_seconds": watch.seconds[:warmup],
        "accuracy": watch.accuracy,
        "evaluation_seconds": [seconds for seconds, accuracy in evaluations if accuracy is not None],
        "configured": configured,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "numpy", *packages)},
        "load": os.getloadavg()[0],
    }
    print(json.dumps(found), flush=True)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every peer has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--train", required=True, help="MNIST's training pictures, a parquet file")
    made.add_argument("--test", required=True, help="its test pictures")
    made.add_argument("--width", type=int, default=4, help="of McMahan's CNN: 4 and 16 have a chosen learning rate")
    made.add_argument("--rounds", type=int, default=6, help="timed rounds")
    made.add_argument("--warmup", type=int, default=1, help="rounds before them")
    made.add_argument("--seed", type=int, default=0, help="every random choice follows from it")
    made.add_argument("--lr", type=float, help="the clients' learning rate; the width's own by default")
    made.add_argument("--clients", type=int, default=100, help="of the federation")
    made.add_argument("--cohort", type=int, default=10, help="clients a round")
    made.add_argument("--threads", type=int, default=1, help="torch threads in each process that trains")
    made.add_argument("--evaluate", action="store_true", help="test after every round, and not only after the last")
    return made


def settings_of(made: argparse.ArgumentParser, arguments: Sequence[str] | None, *others: str) -> tuple[Settings, Any]:
    """The settings among the arguments, and the values of the `others`; exits with 2 where they cannot be."""
    asked = vars(made.parse_args(arguments))
    rest = argparse.Namespace(**{name: asked.pop(name) for name in others})
    try:
        settings = Settings(**asked)
        for file in (settings.train, settings.test):
            if not Path(file).is_file():
                raise InputError(f"{file} is not a file; set --train and --test to MNIST's parquet files")
    except InputError as error:
        made.error(str(error))
    return settings, rest
