"""How soon a federation reaches an accuracy on the virtual clock, under fleets that treat slow clients differently.

    python -m experiments.benchmarks.fleets            (some minutes on one core; --quick takes seconds)

100 clients share scikit-learn's digits, non-IID. All fleets have the same partition and, replica by replica, the same
devices and first weights, and about the same budget of client turns:

- synchronous: 10 clients are asked, and all that are not lost are waited for;
- over-selection: 13 are asked, and the first 10 count (Bonawitz et al. 2019);
- deadline: 10 are asked, and who is late is dropped;
- partial, fedprox: who would be late does the steps there is time for, with FedAvg or FedProx (Li et al. 2020);
- fedbuff: 10 clients train at any time, and every 4 updates make a round (Nguyen et al. 2022).

The target, the deadline (the synchronous fleet's median round) and each fleet's learning rate are chosen on another
seed than the reported one; FedProx keeps the rate of `partial` and chooses its mu, so that nobody has more trials.

The clock is that of the large model for which `Devices` was measured, not of the small CNN that is trained: networks
are slowed down until a message takes as long as one of SENT_PARAMETERS would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from attacks.metrics import mean_interval
from defenses.base import Defense
from experiments.benchmarks import page
from experiments.benchmarks.fleets_figure import draw
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.fedprox import FedProx
from fl_core.architectures import CNN
from fl_core.data import digits
from fl_core.devices import Devices
from fl_core.errors import InputError, check_number
from fl_core.federation import Federation, federate
from fl_core.federation import rounds as play_rounds
from fl_core.fleet import Buffered, Fleet, Synchronous, time_to
from fl_core.models import accuracy
from fl_core.participation import Everyone, Participation, Uniform
from fl_core.partition import Dirichlet
from fl_core.sampling import Shuffled

CLIENTS, COHORT, ASKED, BUFFER = 100, 10, 13, 4
ALPHA, WIDTH, LOCAL_EPOCHS, BATCH = 0.5, 8, 5, 10
REPORTED_SEED, TUNING_SEED = 0, 1
SENT_PARAMETERS = 6_603_710
"""Those of LEAF's CNN for FEMNIST: two 5x5 convolutions (32, 64), a layer of 2048, and 62 classes."""

FLEETS = {
    "synchronous": f"synchronous (all {COHORT})",
    "over-selection": f"over-selection ({COHORT} of {ASKED})",
    "deadline": "deadline (late ones dropped)",
    "partial": "partial work (FedAvg)",
    "fedprox": "partial work (FedProx)",
    "fedbuff": f"FedBuff ({COHORT} busy, buffer {BUFFER})",
}
COMPARED = (*((name, "synchronous") for name in list(FLEETS)[1:]), ("partial", "deadline"), ("fedprox", "partial"))
LEAST = 6
"""Replicas below which there is no verdict: so many agree by chance alone once in 32 times, two-sided."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is played. `rounds` are the synchronous fleet's; the others get as many as spend the same client turns."""

    replicas: int = 8
    rounds: int = 60
    target: float = 0.93
    tuning_replicas: int = 4
    learning_rates: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    proximal_terms: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)

    def __post_init__(self) -> None:
        check_number("--replicas", self.replicas, minimum=1, integer=True)
        check_number("--rounds", self.rounds, minimum=1, integer=True)


_FEW: dict[str, Any] = {"tuning_replicas": 1, "learning_rates": (0.2,), "proximal_terms": (0.1,)}
QUICK = Study(replicas=2, rounds=4, target=0.3, **_FEW)


@dataclass(frozen=True)
class History:
    """The accuracy after each round, the clock then, and how many were asked in it, all [replicas, rounds].

    `lost` [replicas] counts turns by what became of them; `staleness` [replicas] is the mean over the updates used.
    """

    accuracy: list[list[float]]
    ended: list[list[float]]
    asked: list[list[int]]
    lost: list[dict[str, int]]
    staleness: list[float]


def small_model() -> CNN:
    """The model that is trained, on the digits' 8x8."""
    return CNN((1, 8, 8), 10, width=WIDTH, halve="stride")


def phones(model: CNN) -> Devices:
    """The default devices, on networks so slow that the model's messages take the seconds of SENT_PARAMETERS."""
    plain, slower = Devices(), sum(one.numel() for one in model.parameters()) / SENT_PARAMETERS
    return Devices(download=plain.download * slower, upload=plain.upload * slower)


def scheme(name: str, devices: Devices, deadline: float | None) -> tuple[Participation, Fleet, float]:
    """A fleet of FLEETS, who is asked, and the client turns that a round of it spends."""
    if name == "fedbuff":
        turns = BUFFER / (1 - devices.dropout_before - devices.dropout_after)
        return Everyone(), Buffered(devices, concurrency=COHORT, buffer=BUFFER), turns
    if name == "over-selection":
        return Uniform(ASKED), Synchronous(devices, target=COHORT), ASKED
    limit, partial = None if name == "synchronous" else deadline, name in ("partial", "fedprox")
    return Uniform(COHORT), Synchronous(devices, deadline=limit, partial=partial), COHORT


def federation(
    name: str, *, run: int, replicas: int, budget: int, lr: float, mu: float = 0.0, deadline: float | None = None
) -> Federation:
    """The problem under one fleet, for `budget` client turns; `mu` is FedProx's."""
    pool, _ = digits()
    model = small_model()
    participation, fleet, turns = scheme(name, phones(model), deadline)
    sampler = Shuffled(local_epochs=LOCAL_EPOCHS, batch_size=BATCH)
    return federate(
        model,
        pool,
        clients=CLIENTS,
        rounds=max(1, round(budget / turns)),
        algorithm=FedProx(sampler=sampler, lr=lr, mu=mu) if name == "fedprox" else FedAvg(sampler=sampler, lr=lr),
        defense=Defense(),
        partition=Dirichlet(alpha=ALPHA),
        replicas=replicas,
        run=run,
        participation=participation,
        fleet=fleet,
        backend="vmap",
    )


def play(played: Federation) -> History:
    """Train it, and measure the test accuracy after every round."""
    _, test = digits()
    rows = range(len(played.replica_ids))
    reached = torch.stack([accuracy(played.model, state.model, test) for state in play_rounds(played)], dim=1)
    turns = [[played.turn(row, round) for round in range(played.rounds)] for row in rows]
    stale = [torch.cat([turn.round - turn.versions for turn in mine]).double() for mine in turns]
    return History(
        accuracy=reached.tolist(),
        ended=[[turn.ended for turn in mine] for mine in turns],
        asked=[[len(turn.asked) for turn in mine] for mine in turns],
        lost=[{why: sum(len(turn.lost[why]) for turn in mine) for why in turns[0][0].lost} for mine in turns],
        staleness=[float(one.mean()) if len(one) else 0.0 for one in stale],
    )


def to_target(history: History, target: float) -> list[dict[str, Any]]:
    """Each replica's seconds, rounds and client turns until its accuracy first reached `target`; None if never.

    Its shares of turns lost, its staleness and its final accuracy are those of the whole run.
    """
    found = []
    for row, reached in enumerate(history.accuracy):
        rounds = time_to(reached, range(1, len(reached) + 1), target)
        asked = list(accumulate(history.asked[row]))
        found.append(
            {
                "seconds": time_to(reached, history.ended[row], target),
                "rounds": None if rounds is None else int(rounds),
                "turns": None if rounds is None else asked[int(rounds) - 1],
                "lost": {why: count / max(1, asked[-1]) for why, count in history.lost[row].items()},
                "staleness": history.staleness[row],
                "final_accuracy": reached[-1],
                "last_second": history.ended[row][-1],
            }
        )
    return found


def interval(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and 95% interval over those that are not None; None where all are."""
    known = [value for value in values if value is not None]
    return asdict(mean_interval(np.array(known))) if known else None


def summary(replicas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over replicas with their intervals; those that never reached the target are named, and are in no mean."""
    return {
        "never": [row for row, one in enumerate(replicas) if one["seconds"] is None],
        **{key: interval([one[key] for one in replicas]) for key in ("seconds", "rounds", "turns", "final_accuracy")},
        "lost": {why: fmean(one["lost"][why] for one in replicas) for why in replicas[0]["lost"]},
        "staleness": fmean(one["staleness"] for one in replicas),
    }


def compare(name: str, against: str, fleets: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """How many times sooner `name` reaches the target, paired by replica, and what may be said of it.

    `ratio` is the geometric mean over replicas of the other's seconds over its own. Where a replica never arrived
    under either there is none: leaving it out would flatter the fleet that lost it.
    """
    pairs = [(one["seconds"], other["seconds"]) for one, other in zip(fleets[name], fleets[against], strict=True)]
    ratio, verdict = None, "a replica never arrived"
    if not any(None in pair for pair in pairs):
        logs = mean_interval(np.array([math.log(theirs / ours) for ours, theirs in pairs]))
        ratio = {key: math.exp(value) for key, value in asdict(logs).items()}
        verdict = "sooner" if logs.low > 0 else "later" if logs.high < 0 else "not told apart"
        verdict = verdict if len(pairs) >= LEAST else "too few replicas"
    return {"fleet": name, "against": against, "ratio": ratio, "verdict": verdict}


def tune(study: Study, budget: int) -> tuple[float, dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The deadline, each fleet's learning rate and mu, and every trial, all on the tuning seed.

    The best trial has the fewest replicas that never reach the target, then the least mean seconds, in which such a
    replica counts with its last one. InputError where every trial diverges.
    """
    on: dict[str, Any] = {"run": TUNING_SEED, "replicas": study.tuning_replicas, "budget": budget}
    first = federation("synchronous", **on, lr=study.learning_rates[0])
    turns = [first.turn(row, round) for row in range(study.tuning_replicas) for round in range(first.rounds)]
    deadline = round(median(turn.ended - turn.began for turn in turns), 1)
    chosen: dict[str, dict[str, Any]] = {}
    trials = []
    for name in FLEETS:
        choices: list[dict[str, Any]] = [{"lr": lr, "mu": 0.0} for lr in study.learning_rates]
        if name == "fedprox":
            choices = [{"lr": chosen["partial"]["lr"], "mu": mu} for mu in study.proximal_terms]
        played = [federation(name, **on, deadline=deadline, **choice) for choice in choices]
        mine = [choice | _trial(one, study.target) for choice, one in zip(choices, played, strict=True)]
        sound = [trial for trial in mine if not trial["diverged"]]
        if not sound:
            raise InputError(f"every trial of {name} diverges; add a lower learning rate")
        best = min(sound, key=lambda trial: (trial["never"], trial["seconds"]))
        chosen[name] = {key: best[key] for key in ("lr", "mu")}
        trials += [{"fleet": name, **trial} for trial in mine]
        print(f"tuning {name}: {chosen[name]}", flush=True)
    return deadline, chosen, trials


def _trial(played: Federation, target: float) -> dict[str, Any]:
    try:
        found = to_target(play(played), target)
    except InputError as error:
        if "diverged" not in str(error):
            raise
        return {"diverged": True, "never": len(played.replica_ids), "seconds": None}
    seconds = [one["last_second"] if one["seconds"] is None else one["seconds"] for one in found]
    return {"diverged": False, "never": sum(one["seconds"] is None for one in found), "seconds": fmean(seconds)}


def measure(study: Study) -> dict[str, Any]:
    """Tune, then play every fleet on the reported seed; on one torch thread."""
    threads, began = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        budget = study.rounds * COHORT
        deadline, chosen, trials = tune(study, budget)
        replicas, fleets = {}, []
        for name, words in FLEETS.items():
            on: dict[str, Any] = {"run": REPORTED_SEED, "replicas": study.replicas, "budget": budget}
            played = federation(name, **on, deadline=deadline, **chosen[name])
            history = play(played)
            replicas[name] = to_target(history, study.target)
            facts = {"name": name, "words": words, "played_rounds": played.rounds, **chosen[name]}
            curves = {
                "accuracy": [[round(one, 4) for one in mine] for mine in history.accuracy],
                "ended": [[round(one, 1) for one in mine] for mine in history.ended],
            }
            fleets.append({**facts, **summary(replicas[name]), "replicas": replicas[name], "curves": curves})
            print(f"{name}: {_span(fleets[-1]['seconds'], '.0f')} s to {study.target:g}", flush=True)
    finally:
        torch.set_num_threads(threads)
    return {
        "study": asdict(study),
        "problem": {
            "clients": CLIENTS, "alpha": ALPHA, "width": WIDTH, "local_epochs": LOCAL_EPOCHS, "batch_size": BATCH,
            "sent_parameters": SENT_PARAMETERS, "client_turns": budget,
        },
        "devices": asdict(phones(small_model())),
        "seeds": {"reported": REPORTED_SEED, "tuning": TUNING_SEED},
        "deadline": deadline,
        "trials": trials,
        "fleets": fleets,
        "comparisons": [compare(name, against, replicas) for name, against in COMPARED],
        "wall_seconds": time.perf_counter() - began,
    }  # fmt: skip


def _span(found: dict[str, float] | None, form: str) -> str:
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]" if found else "–"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def reading(record: dict[str, Any]) -> str:
    """What the comparisons carry and no more: a sentence for each fleet that others are compared with."""
    words = {fleet["name"]: fleet["words"] for fleet in record["fleets"]}
    said: dict[str, dict[str, list[str]]] = {}
    for one in record["comparisons"]:
        factor = "" if one["ratio"] is None else f" {_span(one['ratio'], '.2f')}"
        said.setdefault(one["against"], {}).setdefault(one["verdict"], []).append(words[one["fleet"]] + factor)
    return " ".join(
        f"Against {words[against]}: {'; '.join(f'{verdict}: ' + ', '.join(who) for verdict, who in found.items())}."
        for against, found in said.items()
    )


def figures(record: dict[str, Any]) -> dict[str, Figure]:
    """Time to accuracy."""
    return {"fleets": draw(record)}


def markdown(record: dict[str, Any]) -> str:
    """The page for people, from the JSON record alone."""
    study, problem, seeds, trials = record["study"], record["problem"], record["seeds"], record["trials"]
    devices, count = record["devices"], study["replicas"]
    diverged = [trial["lr"] for trial in trials if trial["diverged"]]
    where = f" (at {_listed(sorted(set(diverged)))})" if diverged else ""
    lines = [
        f"# Virtual seconds to {study['target']:.0%} under six fleets\n",
        f"Made by `{record['command']}` at revision {record['revision']}, in {record['wall_seconds']:.0f} s on "
        f"{record['hardware']['processor']}, 1 torch thread; torch {record['versions']['torch']}.\n",
        f"{problem['clients']} clients share scikit-learn's digits in Dirichlet({problem['alpha']:g}) shares and train "
        f"a CNN of width {problem['width']}, {problem['local_epochs']} local epochs of batches of "
        f"{problem['batch_size']} a turn. Every fleet spends about {problem['client_turns']:,} client turns; all have "
        "the same partition and, replica by replica, the same devices and first weights. A phone takes "
        f"{devices['example_seconds']:g} s an example in the median, and its messages as long as "
        f"{problem['sent_parameters'] / 1e6:.1f} million parameters would: the clock is that of the model for which "
        f"the devices were measured, not of the small one. The deadline is {record['deadline']:g} s, the synchronous "
        f"fleet's median round. It, the target and the learning rates (of {_listed(study['learning_rates'])}; μ of "
        f"{_listed(study['proximal_terms'])}) were chosen on seed {seeds['tuning']}, where {len(diverged)} of "
        f"{len(trials)} trials diverged{where}; what is reported is seed {seeds['reported']}.\n",
        f"Means over {count} replicas [95% intervals]. Seconds, rounds and turns are those until the test accuracy "
        "first reached the target, over the replicas that did; turns count every client that was asked. Lost turns, "
        "staleness and the final accuracy are of the whole run. Rates are chosen for speed alone: a replica may "
        "relapse for a round after its arrival, and where that is its last round the final accuracy shows it.\n",
        "| fleet | lr | seconds | never | rounds | client turns | lost before / after / late | staleness | "
        "final accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fleet in record["fleets"]:
        rate = f"{fleet['lr']:g}" + (f", μ {fleet['mu']:g}" if fleet["mu"] else "")
        rows = f": {', '.join(map(str, fleet['never']))}" if fleet["never"] else ""
        cells = [
            fleet["words"], rate, _span(fleet["seconds"], ".0f"), f"{len(fleet['never'])} of {count}{rows}",
            _span(fleet["rounds"], ".1f"), _span(fleet["turns"], ".0f"),
            " / ".join(f"{fleet['lost'][why]:.1%}" for why in ("before", "after", "late")),
            f"{fleet['staleness']:.2f}", _span(fleet["final_accuracy"], ".3f"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        reading(record) + " A factor is how many times sooner the target is reached (below 1: later), the geometric "
        "mean of ratios paired by replica with its 95% interval, uncorrected for the "
        f"{len(record['comparisons'])} comparisons. It holds for these devices and this one partition: replicas "
        "differ in hardware, first weights, cohorts and losses.\n",
        "![Accuracy over virtual time, and seconds to the target](fleets.png)",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.fleets", __doc__)
    parser.add_argument("--replicas", type=int, help=f"independent federations; {Study.replicas} by default")
    parser.add_argument("--rounds", type=int, help=f"the synchronous fleet's; {Study.rounds} by default")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="few rounds and no choice of rates; a few seconds")
    asked = parser.parse_args(arguments)
    given = {key: value for key in ("replicas", "rounds") if (value := getattr(asked, key)) is not None}
    try:
        study = replace(QUICK if asked.quick else Study(), **given)
    except InputError as error:
        parser.error(str(error))
    options = f"--replicas {study.replicas} --rounds {study.rounds}{' --quick' * asked.quick}"
    command = f"python -m experiments.benchmarks.fleets {options}"
    record = {**circumstances(torch.device("cpu")), "command": command, **measure(study)}
    page.write(asked.out, "fleets", record)
    print(f"wrote {asked.out}/fleets.json, .md, .png, .pdf and .csv")


if __name__ == "__main__":
    with one_line_errors():
        main()
