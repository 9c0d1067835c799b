"""What client-level differential privacy costs on MNIST, by whom the clients trust: accuracy against ε.

    python -m experiments.benchmarks.client_dp --train mnist-train.parquet --test mnist-test.parquet

A thousand clients of 60 pictures each, a hundred of them a round, drawn without replacement; a CNN of 4,266 parameters,
one local epoch of batches of 10. Every mechanism is held to the same ε at δ = 1e-4 for one client, each against the
adversary that it is made for. `replicas` independent federations of one split play every point. The learning rate and
the clip were chosen at seed 1000, which is not reported. A mechanism whose noise makes the weights overflow has no
accuracy, and no point in the figure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import joblib
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from defenses.base import Defense
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.dp_ftrl import DPFTRL
from experiments.benchmarks import page
from experiments.figures import BLUE, COLUMN, GREEN, GREY, ORANGE, PURPLE, STYLE
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN
from fl_core.errors import InputError, check_number
from fl_core.federation import Federation, federate, initial_state, rounds
from fl_core.loaders import parquet
from fl_core.models import accuracy
from fl_core.participation import Uniform
from fl_core.sampling import Shuffled
from fl_core.state import State
from fl_core.views import VIEWS

CLIENTS, COHORT, DELTA, CLIP, LR = 1000, 100, 1e-4, 0.5, 0.1
EPSILONS = (0.5, 2.0, 8.0, 32.0)
# Each mechanism, whom it is held against (a view), and how the figure draws it.
MECHANISMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "server": ("noise by the server", "released_model", {"color": BLUE, "marker": "o", "linestyle": "-"}),
    "ftrl": ("noise by the server, correlated", "released_model", {"color": GREEN, "marker": "^", "linestyle": "--"}),
    "shares": ("noise in shares by the clients", "secure_server", {"color": ORANGE, "marker": "s", "linestyle": "-."}),
    "clients": ("all noise by each client", "server", {"color": PURPLE, "marker": "D", "linestyle": ":"}),
}


def defense_of(mechanism: str, epsilon: float) -> Defense:
    """A mechanism at an ε, not yet calibrated; without one at `none`."""
    if mechanism == "none":
        return Defense()
    asked: dict[str, Any] = {"epsilon": epsilon, "delta": DELTA, "clip_norm": CLIP}
    if mechanism == "shares":
        return DPFedAvgShares(**asked)
    if mechanism == "ftrl":
        return DPFTRL(**asked)
    return DPFedAvg(noise_by=mechanism, **asked)  # type: ignore[arg-type]


def federation_of(
    train: str, test: str, defense: Defense, replicas: int, many: int, seed: int
) -> tuple[Federation, Any]:
    """The federation under a prepared defence, and the test pictures."""
    pool, held_out = parquet(train, test_path=test)

    def under(defense: Defense) -> Federation:
        return federate(
            CNN(pool.shape, len(pool.classes), width=4, halve="stride"),
            pool,
            clients=CLIENTS,
            rounds=many,
            replicas=replicas,
            run=seed,
            defense=defense,
            algorithm=FedAvg(sampler=Shuffled(local_epochs=1, batch_size=10), lr=LR),
            participation=Uniform(COHORT),
            backend="vmap",
        )

    return under(defense.prepare(under(Defense()).plan)), held_out


def point(train: str, test: str, mechanism: str, epsilon: float, replicas: int, many: int, seed: int) -> dict[str, Any]:
    """One mechanism at one ε: the final accuracy of every replica, and what each view is promised."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    federation, held_out = federation_of(train, test, defense_of(mechanism, epsilon), replicas, many, seed)
    last: State | None = initial_state(federation)
    try:
        for state in rounds(federation):
            last = state
    except InputError:  # so much noise that the weights overflow
        last = None
    defense, plan = federation.defense, federation.plan
    assert isinstance(defense, Defense)
    stated = {view: defense.guarantee(view, "client", plan) for view in VIEWS}
    return {
        "mechanism": mechanism,
        "epsilon": epsilon if math.isfinite(epsilon) else None,
        "noise_multiplier": defense.noise_multiplier,
        "accuracy": None if last is None else accuracy(federation.model, last.model, held_out).tolist(),
        "guarantees": {v: one.epsilon if math.isfinite(one.epsilon) else None for v, one in stated.items()},
        "promises": {view: one.promise() for view, one in stated.items()},
        "turns": plan.turns,
        "seconds": time.perf_counter() - began,
    }


def measure(train: str, test: str, replicas: int, many: int, seed: int, epsilons: Sequence[float]) -> dict[str, Any]:
    """Every mechanism at every ε, and none at all."""
    cells = [("none", math.inf), *((mechanism, epsilon) for mechanism in MECHANISMS for epsilon in epsilons)]
    with joblib.Parallel(n_jobs=joblib.cpu_count(), batch_size=1) as parallel:
        points = parallel(
            joblib.delayed(point)(train, test, mechanism, epsilon, replicas, many, seed) for mechanism, epsilon in cells
        )
    return {
        "clients": CLIENTS, "cohort": COHORT, "delta": DELTA, "clip_norm": CLIP, "lr": LR,
        "rounds": many, "replicas": replicas, "seed": seed, "points": points,
    }  # fmt: skip


def markdown(record: dict[str, Any]) -> str:
    """The page for people, from the record alone."""
    hardware = record["hardware"]
    # A record has the views that there were when it was made.
    views = [view for view in VIEWS if all(view in found["guarantees"] for found in record["points"])]
    lines = [
        "# Client-level differential privacy on MNIST\n",
        f"Made by `{record['command']}` at revision {record['revision']}, on {hardware['processor']}, "
        f"{hardware['cores']} cores.\n",
        f"{record['clients']} clients of 60 pictures, {record['cohort']} a round drawn without replacement, "
        f"{record['rounds']} rounds, one local epoch of batches of 10 at learning rate {record['lr']:g}, clip "
        f"{record['clip_norm']:g}, δ = {record['delta']:g}. Test accuracy: mean [lowest, highest] of "
        f"{record['replicas']} replicas. ε is for one client, against the view that the mechanism is made for.\n",
        *_accuracies(record["points"]),
        "\nThe ε that each spends against each view; a dash is no guarantee.\n",
        f"| mechanism | ε | noise multiplier | {' | '.join(view.replace('_', ' ') for view in views)} |",
        "|" + " --- |" * (3 + len(views)),
    ]
    for found in record["points"]:
        name = "none" if found["mechanism"] == "none" else MECHANISMS[found["mechanism"]][0]
        noise = "–" if found["noise_multiplier"] is None else f"{found['noise_multiplier']:.3f}"
        epsilon = "∞" if found["epsilon"] is None else f"{found['epsilon']:g}"
        promised = ["–" if one is None else f"{one:.2f}" for one in map(found["guarantees"].get, views)]
        lines.append(f"| {name} | {epsilon} | {noise} | " + " | ".join(promised) + " |")
    lines += ["", "What is accounted, at the largest ε, against the view that each is made for:\n"]
    largest = max(found["epsilon"] for found in record["points"] if found["epsilon"] is not None)
    for found in record["points"]:
        if found["epsilon"] == largest:
            words, view, _ = MECHANISMS[found["mechanism"]]
            lines.append(f"- {words}: against {view}, {found['promises'][view]}")
    lines += ["", "![Accuracy against ε](client_dp.png)"]
    return "\n".join(lines) + "\n"


def _accuracies(points: Sequence[dict[str, Any]]) -> list[str]:
    """A table of accuracies: a row an ε, a column a mechanism."""
    words = [words for words, _, _ in MECHANISMS.values()]
    lines = [f"| ε | {' | '.join(words)} |", "|" + " --- |" * (len(words) + 1)]
    reached: dict[tuple[str, float | None], str] = {}
    for found in points:
        each = found["accuracy"]
        told = "diverged" if each is None else f"{mean(each):.3f} [{min(each):.3f}, {max(each):.3f}]"
        reached[found["mechanism"], found["epsilon"]] = told
    for epsilon in sorted({epsilon for _, epsilon in reached if epsilon is not None}):
        lines.append(f"| {epsilon:g} | {' | '.join(reached[name, epsilon] for name in MECHANISMS)} |")
    return [*lines, f"\nWithout a defence it is {reached['none', None]}."]


def figures(record: dict[str, Any]) -> dict[str, Figure]:
    """Accuracy against ε."""
    return {"client_dp": draw(record)}


def draw(record: dict[str, Any]) -> Figure:
    """Accuracy against ε, a line a mechanism, with the range over replicas; the level without a defence."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 3.0), layout="constrained")
        for mechanism, (words, view, style) in MECHANISMS.items():
            found = [one for one in record["points"] if one["mechanism"] == mechanism and one["accuracy"]]
            if not found:
                continue
            x, each = [one["epsilon"] for one in found], [one["accuracy"] for one in found]
            middle = [mean(one) for one in each]
            errors = [
                [m - min(one) for m, one in zip(middle, each, strict=True)],
                [max(one) - m for m, one in zip(middle, each, strict=True)],
            ]
            whom = view.replace("_", " ")
            axes.errorbar(x, middle, yerr=errors, label=f"{words} (against the {whom})", markersize=4, **style)
        plain = next(one for one in record["points"] if one["mechanism"] == "none")["accuracy"]
        axes.axhline(mean(plain), color=GREY, linewidth=0.8, linestyle=(0, (5, 2)), zorder=0)
        axes.annotate("no defence", (1, mean(plain)), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                      textcoords="offset points", ha="right", fontsize=6, color=GREY)  # fmt: skip
        axes.set_xscale("log", base=2)
        ticks = sorted({one["epsilon"] for one in record["points"] if one["epsilon"] is not None})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(xlabel=f"ε for one client, δ = {record['delta']:g}", ylabel="test accuracy", ylim=(0, 1))
        figure.legend(loc="outside lower center", ncols=1)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.client_dp", __doc__)
    parser.add_argument("--train", required=True, help="MNIST's training pictures, parquet")
    parser.add_argument("--test", required=True, help="its test pictures, parquet")
    parser.add_argument("--replicas", type=int, default=3, help="independent federations behind every point")
    parser.add_argument("--rounds", type=int, default=40, help="of a federation")
    parser.add_argument("--seed", type=int, default=0, help="every random choice follows from it")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="two rounds at ε = 8 alone")
    asked = parser.parse_args(arguments)
    try:
        for name, least in (("replicas", 1), ("rounds", 1), ("seed", 0)):
            check_number(f"--{name}", getattr(asked, name), minimum=least, integer=True)
        many, epsilons = (2, (8.0,)) if asked.quick else (asked.rounds, EPSILONS)
        measured = measure(asked.train, asked.test, asked.replicas, many, asked.seed, epsilons)
    except InputError as error:
        parser.error(str(error))
    options = f"--replicas {asked.replicas} --rounds {asked.rounds} --seed {asked.seed}{' --quick' * asked.quick}"
    command = f"python -m experiments.benchmarks.client_dp --train ... --test ... {options}"
    record = {**circumstances(torch.device("cpu")), "command": command, **measured}
    page.write(asked.out, "client_dp", record)
    print(f"wrote {asked.out}/client_dp.json, .md, .png, .pdf and .csv")


if __name__ == "__main__":
    with one_line_errors():
        main()
