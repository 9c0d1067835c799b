"""How fast many small trainings go as lanes and processes, against one after another.

Three problems, each trained from the same weights on the same batches by every contender:

- 64 replicas of a federation of 5 clients on the 8x8 digits, three rounds of FedAvg, as a membership study has them;
- the whole default shadow run: 24 such replicas, 20 rounds, in two shards; with batches of one size in place of Poisson
  draws, which a plain loop does not have;
- 16 shadow models on random halves of 4000 CIFAR-10 pictures, a small CNN, one epoch: the least work that says what a
  longer one costs, since every epoch is alike.

The contenders: `plain`, torch's modules and `torch.optim.SGD`, one model after another, on one torch thread and on as
many as there are cores; and Mirage's `federation.run` in as many single-threaded processes as there are cores, a shard
of the replicas each, as `experiments.tasks` runs them. The processes are started beforehand. Numbers to quote are
ratios paired within a repeat; contenders take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import joblib
import torch
import torch.nn.functional as F
from torch import Tensor

from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN
from fl_core.data import digits
from fl_core.federation import Federation, initial_state, run
from fl_core.lanes import Backend
from fl_core.loaders import parquet
from fl_core.optimizers import Tree
from fl_core.partition import IID, draw_members
from fl_core.sampling import Shuffled
from fl_core.seeds import generator

TOLERANCE = 5e-3
"""Between final parameters in single precision, where a rounding may flip a ReLU or the winner of a max-pool."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A problem and the goal that its ratio is held to; `shard` replicas train together in a process."""

    name: str
    federation: Federation
    backend: Backend
    shard: int
    goal: float


def digit_federations(replicas: int = 64, rounds: int = 3, shards: int = 4) -> Study:
    """The federations of the default sweep, without a defence."""
    pool, _ = digits()
    federation = Federation(
        model=CNN(pool.shape, len(pool.classes), width=8, halve="stride"),
        data=pool,
        owners=IID().owners(pool, 5, 0),
        members=draw_members(replicas, len(pool), 0.5, 0),
        sizes=torch.full((5,), len(pool) // 10),
        algorithm=FedAvg(sampler=Shuffled(local_epochs=4, batch_size=16), lr=0.2),
        defense=Defense(),
        rounds=rounds,
        run=0,
        replica_ids=range(replicas),
    )
    return Study(
        name=f"{replicas} federations of digits, {rounds} rounds",
        federation=federation,
        backend="vmap",
        shard=-(-replicas // shards),
        goal=4.0,
    )


def cifar_shadows(path: str | Path, models: int = 16, examples: int = 4000) -> Study:
    """Shadow models of one CNN, each trained centrally on its own random half."""
    pool, _ = parquet(str(path), limit=examples)
    federation = Federation(
        model=CNN(pool.shape, len(pool.classes), width=16),
        data=pool,
        owners=torch.zeros(len(pool), dtype=torch.long),
        members=draw_members(models, len(pool), 0.5, 0),
        sizes=torch.tensor([len(pool) // 2]),
        algorithm=FedAvg(sampler=Shuffled(local_epochs=1, batch_size=32), lr=0.05),
        defense=Defense(),
        rounds=1,
        run=0,
        replica_ids=range(models),
    )
    name = f"{models} shadow models of CIFAR-10 (JPEG)"
    return Study(name=name, federation=federation, backend="loop", shard=max(1, models // 4), goal=1.5)


def train_plain(federation: Federation) -> Tree:
    """One client of one replica after another, as one writes it without an engine; final models [replicas, ...]."""
    # Contiguous, as torchvision's transforms make pictures; decoded files happen to lie with their channels last.
    images, labels, algorithm = federation.data.images.contiguous(), federation.data.labels, federation.algorithm
    model, begin = federation.model, initial_state(federation).model
    finished: list[Tree] = []
    for row, replica in enumerate(federation.replica_ids):
        current = {name: value[row] for name, value in begin.items()}
        for round in range(federation.rounds):
            total = {name: torch.zeros_like(value) for name, value in current.items()}
            for client in range(len(federation.sizes)):
                model.load_state_dict(current)
                optimizer = torch.optim.SGD(model.parameters(), lr=algorithm.lr)
                draw = generator(federation.run, "batches", replica, round, client)
                for rows in algorithm.sampler.draw(federation.held(row, client), 0, draw):
                    optimizer.zero_grad()
                    torch.autograd.backward(F.cross_entropy(model(images[rows]), labels[rows]))
                    optimizer.step()
                for name, value in model.state_dict().items():
                    total[name] += value / len(federation.sizes)
            current = total
        finished.append(current)
    return {name: torch.stack([one[name] for one in finished]) for name in begin}


def _shard(federation: Federation, rows: range) -> Tree:
    torch.set_num_threads(1)
    ids = [federation.replica_ids[row] for row in rows]
    return run(replace(federation, members=federation.members[list(rows)], replica_ids=ids)).model


def measure_study(study: Study, repeats: int, workers: int) -> dict[str, Any]:
    """Seconds of every contender, ratios, and whether all come to the same models."""
    whole = replace(study.federation, backend=study.backend)
    count = len(whole.replica_ids)
    rows = [range(start, min(start + study.shard, count)) for start in range(0, count, study.shard)]
    with joblib.Parallel(n_jobs=workers) as parallel:

        def mirage() -> Tree:
            parts = parallel(joblib.delayed(_shard)(whole, part) for part in rows)
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        def plain(threads: int) -> Callable[[], Tree]:
            def train() -> Tree:
                torch.set_num_threads(threads)
                return train_plain(whole)

            return train

        contenders = {"plain, 1 thread": plain(1), f"plain, {workers} threads": plain(workers), "mirage": mirage}
        threads = torch.get_num_threads()
        try:
            # Untimed: the processes start, first calls, and the models to compare.
            found = {name: train() for name, train in contenders.items() if name != f"plain, {workers} threads"}
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for repeat in range(repeats):
                names = list(contenders)
                for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                    began = time.perf_counter()
                    contenders[name]()
                    seconds[name].append(time.perf_counter() - began)
        finally:
            torch.set_num_threads(threads)
    differs = max(_furthest(found["mirage"][name], value) for name, value in found["plain, 1 thread"].items())
    ratios = {
        name: [one / ours for one, ours in zip(values, seconds["mirage"], strict=True)]
        for name, values in seconds.items()
        if name != "mirage"
    }
    best = min(ratios, key=lambda name: median(ratios[name]))
    return {
        "study": study.name,
        "backend": study.backend,
        "processes": workers,
        "shards": len(rows),
        "seconds": seconds,
        "ratios": ratios,
        "against": best,
        "goal": study.goal,
        "reached": median(ratios[best]) >= study.goal,
        "largest_difference": differs,
        "same": differs <= TOLERANCE,
    }


def _furthest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def measure_shadows(cifar: str | Path | None, repeats: int, quick: bool = False) -> list[dict[str, Any]]:
    """All studies; the last only where the pictures are."""
    workers = joblib.cpu_count()
    studies = [digit_federations(8, 1)] if quick else [digit_federations(), digit_federations(24, 20, shards=2)]
    if cifar is not None:
        studies.append(cifar_shadows(cifar, 2, 200) if quick else cifar_shadows(cifar))
    return [measure_study(study, repeats, workers) for study in studies]


def shadows_markdown(records: Sequence[dict[str, Any]]) -> str:
    """The part of the page on many small trainings, from the JSON records alone."""
    lines = [
        "## Many small trainings\n",
        "Seconds for all of them, and how many times faster Mirage is; median [lowest, highest], paired in a repeat. "
        "The goal is held against the better of the two plain loops.\n",
        "| study | Mirage, s | plain, 1 thread | plain, a thread a core | goal | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        ratios = [f"{median(v):.2f}x [{min(v):.2f}, {max(v):.2f}]" for v in record["ratios"].values()]
        verdict = "reached" if record["reached"] else "missed"
        seconds = median(record["seconds"]["mirage"])
        lines.append(f"| {record['study']} | {seconds:.2f} | {' | '.join(ratios)} | {record['goal']}x | {verdict} |")
    for record in records:
        lines.append(
            f"\n{record['study']}: backend `{record['backend']}`, {record['shards']} shards in {record['processes']} "
            f"processes; final parameters within {record['largest_difference']:.0e} of plain's, in single precision, "
            "where a rounding may flip a ReLU and later rounds carry it on (in double precision a test holds both to "
            "1e-7)."
        )
    return "\n".join(lines) + "\n"
