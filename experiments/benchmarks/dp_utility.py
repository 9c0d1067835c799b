"""Opacus's MNIST example through Mirage, as a federation of one client: the accuracy that DP-SGD leaves.

    python -m experiments.benchmarks.dp_utility --train mnist-train.parquet --test mnist-test.parquet

Facts from Opacus's `examples/mnist_README.md`: its small CNN, SGD without momentum, Poisson batches of 240 of 60,000
pictures on average, 250 steps an epoch, δ = 1e-5; published accuracies are means of ten runs. Two differences: pixels
are normalised as Mirage does (2x − 1) and not by MNIST's mean and deviation, and three seeds are run. An epoch is a
round. Nothing was tuned here.

A run takes minutes; each is stored as it ends, and a later call with the same options goes on with those left. On two
cores all twelve take about an hour.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import joblib
import torch
from torch import nn

from defenses.accounting import epsilon_pld, epsilon_rdp
from defenses.base import Defense
from defenses.dp_sgd import DPSGD
from experiments.benchmarks import page
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.algorithms.fedavg import FedAvg
from fl_core.checkpoint import read_json
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice, check_number
from fl_core.federation import Federation, federate, rounds
from fl_core.loaders import parquet
from fl_core.models import accuracy
from fl_core.sampling import Poisson
from fl_core.tutorial import TutorialCNN

BATCH, STEPS, DELTA, WITHIN = 240, 250, 1e-5, 0.005


@dataclass(frozen=True, kw_only=True)
class Level:
    """A noise level of the example: `published` is its accuracy and `spread` that of ten runs."""

    epochs: int
    lr: float
    sigma: float | None
    clip: float | None
    published: float
    spread: float
    published_rdp: float | None

    @property
    def defense(self) -> Defense:
        """DP-SGD with this clip and noise; no defence at all where the level has none."""
        if self.sigma is None or self.clip is None:
            return Defense()
        return DPSGD(delta=DELTA, clip_norm=self.clip, noise_multiplier=self.sigma)


LEVELS = {
    "none": Level(epochs=20, lr=0.1, sigma=None, clip=None, published=0.9894, spread=0.0032, published_rdp=None),
    "low": Level(epochs=45, lr=0.25, sigma=0.7, clip=1.5, published=0.9709, spread=0.0017, published_rdp=6.86),
    "medium": Level(epochs=60, lr=0.15, sigma=1.1, clip=1.0, published=0.9678, spread=0.0021, published_rdp=2.91),
    "high": Level(epochs=15, lr=0.25, sigma=1.3, clip=1.5, published=0.9463, spread=0.0034, published_rdp=1.16),
}


def federation_of(train: str, test: str, name: str, seed: int, epochs: int) -> tuple[Federation, ImageSet]:
    """A federation of one client at a noise level, an epoch a round; and the test pictures."""
    pool, held_out = parquet(train, test_path=test)
    return one_client(TutorialCNN(pool.shape, len(pool.classes)), pool, LEVELS[name], seed, epochs), held_out


def one_client(
    model: nn.Module, pool: ImageSet, level: Level, run: int, epochs: int, batch: int = BATCH, steps: int = STEPS
) -> Federation:
    """A federation of one client who holds `pool`; a round is `steps` Poisson batches of `batch` on average."""
    return federate(
        model,
        pool,
        clients=1,
        rounds=epochs,
        run=run,
        defense=level.defense,
        algorithm=FedAvg(sampler=Poisson(batch_size=batch, local_steps=steps), lr=level.lr),
        backend="loop",
    )


def play(train: str, test: str, name: str, seed: int, epochs: int) -> dict[str, Any]:
    """One run: its test accuracy, and ε by the privacy loss distribution and by Opacus's Rényi accountant."""
    torch.set_num_threads(1)
    began, sigma = time.perf_counter(), LEVELS[name].sigma
    federation, held_out = federation_of(train, test, name, seed, epochs)
    for state in rounds(federation):
        last = state
    found: dict[str, Any] = {
        "level": name,
        "seed": seed,
        "epochs": epochs,
        "examples": len(federation.data),
        "accuracy": float(accuracy(federation.model, last.model, held_out)),
        "seconds": time.perf_counter() - began,
    }
    if sigma is not None:
        event = list(federation.plan.sampling)
        found["epsilon_pld"] = epsilon_pld(sigma, event, DELTA)
        found["epsilon_rdp"] = epsilon_rdp(sigma, event, DELTA)
    return found


def markdown(record: dict[str, Any]) -> str:
    """The page for people, from the record alone."""
    hardware = record["hardware"]
    lines = [
        "# DP-SGD's accuracy: Opacus's MNIST example as a federation of one client\n",
        f"Made by `{record['command']}` at revision {record['revision']}, on {hardware['processor']}, "
        f"{hardware['cores']} cores.\n",
        "Test accuracy in percent: mean [lowest, highest] of the seeds run; published are means of ten runs ± their "
        f"deviation. The goal is within {100 * WITHIN:g} points. ε at δ = 1e-5; Opacus printed its own by a conversion "
        "that it has since tightened.\n",
        "| σ | clip | epochs | seeds | ours | published | apart | | ε, PLD | ε, RDP | published ε |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, level in LEVELS.items():
        runs = [run for run in record["runs"] if (run["level"], run["epochs"]) == (name, level.epochs)]
        words = [f"{level.sigma or '–'}", f"{level.clip or '–'}", f"{level.epochs}", f"{len(runs)}"]
        published = f"{100 * level.published:.2f} ± {100 * level.spread:.2f}"
        if not runs:
            lines.append(f"| {' | '.join(words)} | not run | {published} | | | | | {level.published_rdp or '–'} |")
            continue
        each = [run["accuracy"] for run in runs]
        apart = mean(each) - level.published
        verdict = "reached" if abs(apart) <= WITHIN else ("above" if apart > 0 else "missed")
        epsilons = [f"{runs[0][key]:.3f}" if key in runs[0] else "–" for key in ("epsilon_pld", "epsilon_rdp")]
        lines.append(
            f"| {' | '.join(words)} | {100 * mean(each):.2f} [{100 * min(each):.2f}, {100 * max(each):.2f}] | "
            f"{published} | {100 * apart:+.2f} | {verdict} | {' | '.join(epsilons)} | {level.published_rdp or '–'} |"
        )
    minutes = sum(run["seconds"] for run in record["runs"]) / 60
    lines.append(f"\n{len(record['runs'])} runs, which took {minutes:.0f} minutes one after another.")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.dp_utility", __doc__)
    parser.add_argument("--train", required=True, help="MNIST's training pictures, parquet")
    parser.add_argument("--test", required=True, help="its test pictures, parquet")
    parser.add_argument("--levels", default=",".join(LEVELS), help=f"some of {', '.join(LEVELS)}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every level")
    parser.add_argument("--workers", type=int, default=joblib.cpu_count(), help="processes, a run each; all cores")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="one epoch of each, which the table leaves out")
    asked = parser.parse_args(arguments)
    try:
        names = asked.levels.split(",")
        for name in names:
            check_choice("a level", name, LEVELS)
        check_number("--seeds", asked.seeds, minimum=1, integer=True)
        check_number("--workers", asked.workers, minimum=1, integer=True)
        parquet(asked.train, test_path=asked.test, limit=100)
    except InputError as error:
        parser.error(str(error))
    file = asked.out / "dp_utility.json"
    runs = read_json(file)["runs"] if file.exists() else []
    epochs = {name: 1 if asked.quick else LEVELS[name].epochs for name in names}
    done = {(run["level"], run["seed"], run["epochs"]) for run in runs}
    left = [(name, seed) for name in names for seed in range(asked.seeds) if (name, seed, epochs[name]) not in done]
    with joblib.Parallel(n_jobs=asked.workers, batch_size=1, return_as="generator_unordered") as parallel:
        jobs = (joblib.delayed(play)(asked.train, asked.test, name, seed, epochs[name]) for name, seed in left)
        for run in parallel(jobs):
            runs = sorted([*runs, run], key=lambda one: (list(LEVELS).index(one["level"]), one["seed"]))
            print(f"{run['level']}, seed {run['seed']}: {run['accuracy']:.4f} in {run['seconds']:.0f} s", flush=True)
            command = f"python -m experiments.benchmarks.dp_utility --train ... --test ... --seeds {asked.seeds}"
            record = {**circumstances(torch.device("cpu")), "command": command + " --quick" * asked.quick, "runs": runs}
            page.write(asked.out, "dp_utility", record)
    print(f"{len(runs)} runs are in {file} and dp_utility.md")


if __name__ == "__main__":
    with one_line_errors():
        main()
