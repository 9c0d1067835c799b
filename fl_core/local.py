"""Local training as plain jobs: some lanes, where they start, and what they see. A job runs here or in a process."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from fl_core.data import ImageSet
from fl_core.lanes import Backend, Feed, descend
from fl_core.models import ClassificationLosses, Precision, statistics_of, takes_channels_last
from fl_core.optimizers import Optimizer, Tree
from fl_core.recorded import recordings_of
from fl_core.rules import BatchRule, ExampleRule
from fl_core.sampling import ExampleFeed
from fl_core.seeds import Generators


@dataclass(frozen=True, kw_only=True)
class Job:
    """Lanes to train. `rows` are the examples of all steps of all lanes in one row, and `sizes[lane]` their batches'.

    `noise` has one seed a lane; `start` is [lanes, ...]. `looks` [examples, 3] go with the rows where pictures are
    augmented. `kept` [lanes, ...] is what the rule kept from earlier rounds, under names with a `/`; with a rule,
    `examples_at_once` bounds how many examples' gradients a lane has in memory. A `batch_rule` changes the batches,
    with one of `batch_seeds` a lane; it is told the number of `classes`.
    """

    model: nn.Module
    start: Tree
    optimizer: Optimizer
    rows: Tensor
    sizes: Sequence[Sequence[int]]
    rule: ExampleRule | None
    noise: Sequence[int]
    backend: Backend
    looks: Tensor | None = None
    precision: Precision = "float32"
    kept: Tree = field(default_factory=dict)
    examples_at_once: int | None = None
    batch_rule: BatchRule | None = None
    batch_seeds: Sequence[int] = ()
    classes: int = 0

    def train(self, images: Tensor, labels: Tensor, run: str) -> Tree:
        """The lanes' variables [lanes, ...] after their steps on the examples of `images` and `labels`, and the kept.

        `run` names all jobs whose model is the same code; see `recorded.recordings_of`.
        """
        channels_last = takes_channels_last(self.model)
        if not channels_last:
            images = images.contiguous()
        kept = {name: value.to(images.device, copy=True) for name, value in self.kept.items()}
        trained = descend(
            self.start,
            ClassificationLosses(self.model, self.precision),
            self._feed(images, labels),
            self.optimizer,
            rule=self.rule,
            generators=Generators(self.noise, images.device),
            backend=self.backend,
            statistics=statistics_of(self.model),
            recordings=recordings_of(self.model, run, self.precision),
            channels_last=channels_last,
            kept=kept,
            examples_at_once=self.examples_at_once,
        )
        return trained | kept

    def _feed(self, images: Tensor, labels: Tensor) -> Feed:
        looks = None if self.looks is None else self._by_step(self.looks)
        feed = ExampleFeed(images, labels, self._by_step(self.rows), looks)
        return feed if self.batch_rule is None else self.batch_rule.feed(feed, self.batch_seeds, self.classes)

    def _by_step(self, values: Tensor) -> list[list[Tensor]]:
        """What belongs to the examples of all steps, lane by lane and step by step."""
        steps = iter(values.split([size for lane in self.sizes for size in lane]))
        return [[next(steps) for _ in lane] for lane in self.sizes]


Trainer = Callable[[Iterable[Job]], Iterator[Tree]]
"""Trains jobs and hands out their lanes' final variables, in the jobs' order."""


@contextmanager
def trainer(data: ImageSet, workers: int = 1) -> Iterator[Trainer]:
    """Train in this process, or in `workers` single-threaded ones that stay for the whole run.

    The data go to the processes once, as a file that all of them map. Which process trains a job changes no bit of it.
    """
    run = uuid.uuid4().hex
    if data.images.device.type != "cpu":
        if workers > 1:
            raise ValueError("worker processes train on the CPU; a GPU is filled by lanes in one process")
        yield lambda jobs: (job.train(data.images, data.labels, run) for job in jobs)
        return
    # Channels last, as `lanes` keeps a lane's kernels: convolutions on a CPU are faster so.
    pixels = data.images.permute(0, 2, 3, 1).contiguous()
    if workers == 1:
        yield lambda jobs: (job.train(pixels.permute(0, 3, 1, 2), data.labels, run) for job in jobs)
        return
    # joblib maps a large array by the identity of its object: keep these two.
    images, labels = pixels.numpy(), data.labels.numpy()
    with joblib.Parallel(n_jobs=workers, batch_size=1, mmap_mode="c", max_nbytes="1M") as parallel:

        def train(jobs: Iterable[Job]) -> Iterator[Tree]:
            # In waves, for bounded memory: joblib's own generator starts every second job a tenth of a second late.
            left = iter(jobs)
            while wave := list(islice(left, 2 * workers)):
                yield from parallel(joblib.delayed(_train)(job, images, labels, run) for job in wave)

        yield train


def _train(job: Job, images: np.ndarray, labels: np.ndarray, run: str) -> Tree:
    torch.set_num_threads(1)
    return job.train(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels), run)
