"""How long it takes to score 50,000 examples of one target with 256 shadows, by every attack on a released model.

    python -m experiments.benchmarks.scoring            (some minutes; --quick takes seconds)

The attacks are those of conf/attack/released.yaml, with the options there. Logits are made up: 10 classes, members by
coins, an example's own difficulty, and more for the true class where a replica trained on it; pictures are 32×32 RGB
noise. Everything lies in memory before the clock starts, in single precision. Each repeat is a process of its own on
two cores, so that its peak memory, data and all, is its own.

What attacks share is timed by itself, before them: the scaled confidences, probabilities and losses of all shadows, and
their moments on both sides. An attack's own time is what remains. All is done on one thread, and timed by the clock and
in the processor's seconds; on a machine that others use as well, the clock's are more.

Beside them, a subset of the examples is scored by loops over examples, the way one writes down the formula; the loops'
time for all is that, times the share.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.stats import norm

import conf
from attacks.base import MembershipAttack, MembershipKnowledge, Shadows
from attacks.membership.label_only import AugmentationRobustness
from attacks.membership.observed import Signals
from attacks.metrics import auc
from experiments.benchmarks import page
from experiments.configuration import make
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.errors import InputError, check_number

Array = NDArray[Any]
Loop = Callable[["Data", int], float]

CORES = 2
QUERIES = 18
"""Of augmentation robustness, which needs several; the other attacks get one."""
GOAL_SECONDS, GOAL_GIB = 30.0, 4.0
TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is to score; `loops` is how many examples a plain loop over examples is timed on."""

    shadows: int = 256
    examples: int = 50_000
    classes: int = 10
    public: int = 10_000
    loops: int = 250


FULL, QUICK = Size(), Size(shadows=12, examples=400, classes=4, public=120, loops=20)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the attacker has of one target, and whom the target trained on."""

    target: Signals
    augmented: Signals
    knowledge: MembershipKnowledge
    shadows: Shadows
    truth: NDArray[np.bool_]


def make_up(size: Size, seed: int = 0) -> Data:
    """Logits whose members are surer, without any training."""
    draws = np.random.default_rng(seed)
    replicas = size.shadows + 1
    labels, public_labels = (draws.integers(0, size.classes, count) for count in (size.examples, size.public))
    members = draws.random((replicas, size.examples)) < 0.5
    difficulty = draws.standard_normal(size.examples, dtype=np.float32)
    logits, public = (
        draws.standard_normal((replicas, count, size.classes), dtype=np.float32)
        for count in (size.examples, size.public)
    )
    for one, inside in zip(logits, members, strict=True):
        one[np.arange(size.examples), labels] += 2 + 2 * difficulty + inside
    public[:, np.arange(size.public), public_labels] += 2 + 2 * draws.standard_normal(size.public, dtype=np.float32)

    def of(these: slice) -> Signals:
        return Signals(
            labels=labels, logits=logits[these, None], public_labels=public_labels, public_logits=public[these]
        )

    target, shadows = of(slice(-1, None)), Shadows(signals=of(slice(-1)), members=members[:-1])
    noise = draws.standard_normal((1, QUERIES, size.examples, size.classes), dtype=np.float32)
    return Data(
        target=target,
        augmented=replace(target, logits=target.logits + noise / 2),
        knowledge=MembershipKnowledge(
            shadows=shadows,
            images=draws.random((size.examples, 3, 32, 32), dtype=np.float32),
            public_images=draws.random((size.public, 3, 32, 32), dtype=np.float32),
            public_labels=public_labels,
        ),
        shadows=shadows,
        truth=members[-1],
    )


def attacks() -> dict[str, MembershipAttack]:
    """Those of conf/attack/released.yaml by their name there."""
    found: Any = OmegaConf.to_container(OmegaConf.load(Path(conf.__path__[0]) / "attack" / "released.yaml"))
    return {name: make(one) for name, one in found["membership"].items()}


SHARED: dict[str, Callable[[Data], Any]] = {
    "scaled confidence of all shadows": lambda data: data.shadows.signals.confidence,
    "that of public examples": lambda data: data.shadows.signals.public_confidence,
    "probability of the true label": lambda data: data.shadows.signals.probability,
    "loss": lambda data: data.shadows.signals.loss,
    "moments of the confidence": lambda data: data.shadows.confidence,
    "moments of the probability": lambda data: data.shadows.probability,
    "moments of the loss": lambda data: data.shadows.loss,
}


# Loops over examples, as one writes down the formula


def _confidence(logits: Array, label: int) -> Array:
    """From logits [shadows, classes], or [classes] of one model."""
    wide = logits.astype(np.float64)
    others = np.delete(wide, label, axis=-1)
    top = others.max(axis=-1, keepdims=True)
    scaled: Array = wide[..., label] - top[..., 0] - np.log(np.exp(others - top).sum(axis=-1))
    return scaled


def _example(data: Data, j: int) -> tuple[float, Array, Array]:
    """The target's scaled confidence of example j, and those of the shadows with and without it."""
    label = int(data.target.labels[j])
    seen, inside = _confidence(data.shadows.signals.logits[:, 0, j], label), data.shadows.members[:, j]
    return float(_confidence(data.target.logits[0, 0, j], label)), seen[inside], seen[~inside]


def _lira(data: Data, j: int) -> float:
    own, inside, outside = _example(data, j)
    likelier = norm.logpdf(own, inside.mean(), inside.std(ddof=1))
    return float(likelier - norm.logpdf(own, outside.mean(), outside.std(ddof=1)))


def _lira_offline(data: Data, j: int) -> float:
    own, _, outside = _example(data, j)
    return float(-norm.logsf(own, outside.mean(), outside.std(ddof=1)))


def _attack_r(data: Data, j: int) -> float:
    own, _, outside = _example(data, j)
    return float(1 - (1 + (outside >= own).sum()) / (1 + len(outside)))


def _difficulty(data: Data, j: int) -> float:
    own, _, outside = _example(data, j)
    return float(np.log1p(np.exp(-outside)).mean() - np.log1p(np.exp(-own)))


def _rmia(data: Data, j: int, ratios: Array, line: float | None) -> float:
    own, inside, outside = (1 / (1 + np.exp(-np.asarray(one))) for one in _example(data, j))
    mean = (inside.mean() + outside.mean()) / 2 if line is None else ((1 + line) * outside.mean() + 1 - line) / 2
    return float(np.mean(own / mean / ratios >= 2.0))


def loops(data: Data) -> dict[str, Loop]:
    """By the attack's name in the configuration."""
    seen = 1 / (1 + np.exp(-data.shadows.signals.public_confidence))
    own, mean = 1 / (1 + np.exp(-data.target.public_confidence[0])), seen.mean(axis=0)
    online, offline = own / mean, own / ((1.3 * mean + 0.7) / 2)
    return {
        "lira_own_variances": _lira,
        "lira_offline_own_variances": _lira_offline,
        "attack_r": _attack_r,
        "difficulty_calibration": _difficulty,
        "rmia": lambda data, j: _rmia(data, j, online, None),
        "rmia_offline": lambda data, j: _rmia(data, j, offline, 0.3),
    }


# One repeat, in a process of its own


def run_once(size: Size) -> dict[str, Any]:
    """Seconds by the clock and of the processor, and the peak so far, of everything in order.

    Keeps to the first CORES cores.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    every, data = attacks(), make_up(size)
    began_with, kept = _peak_gib(), {}
    rows: list[dict[str, Any]] = []

    def timed(kind: str, name: str, called: str, work: Callable[[], Any]) -> Any:
        began, processor = time.perf_counter(), time.process_time()
        found = work()
        rows.append(
            {
                "kind": kind, "key": name, "name": called, "seconds": time.perf_counter() - began,
                "processor": time.process_time() - processor, "peak": _peak_gib(),
            }
        )  # fmt: skip
        return found

    for name, work in SHARED.items():
        timed("shared", name, name, lambda work=work: work(data))  # type: ignore[misc]
    for name, attack in every.items():
        target = data.augmented if isinstance(attack, AugmentationRobustness) else data.target
        scores = timed("attack", name, attack.name, lambda a=attack, t=target: a.run(t, data.knowledge))  # type: ignore[misc]
        rows[-1]["auc"] = auc(scores, data.truth)
        kept[name] = scores
    totals = {kind: sum(row[kind] for row in rows) for kind in ("seconds", "processor")}
    peak, looped = _peak_gib(), []
    for name, loop in loops(data).items():
        began = time.process_time()
        found = np.array([loop(data, j) for j in range(size.loops)])
        seconds = (time.process_time() - began) * size.examples / size.loops
        error = float(np.abs(found - kept[name][: size.loops]).max())
        looped.append({"key": name, "name": every[name].name, "processor": seconds, "error": error})
    return {"rows": rows, "totals": totals, "peak": peak, "before": began_with, "loops": looped}


def _peak_gib() -> float:
    """The most memory that this process has had so far, resident."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(size: Size, repeats: int) -> list[dict[str, Any]]:
    """Each repeat in a fresh process on one thread: small fits lose more by waiting for one another than they gain."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    found = []
    for _ in range(repeats):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            found.append(fresh.submit(run_once, size).result())
        print(f"{found[-1]['totals']['seconds']:.1f} s, {found[-1]['peak']:.2f} GiB", flush=True)
    return found


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all repeats: seconds as lists, the highest peaks, and the loops' ratios paired within a repeat."""
    rows = []
    for number, row in enumerate(runs[0]["rows"]):
        each = [run["rows"][number] for run in runs]
        spent = {kind: [one[kind] for one in each] for kind in ("seconds", "processor")}
        rows.append({**row, **spent, "peak": max(one["peak"] for one in each)})
    looped = []
    for number, row in enumerate(runs[0]["loops"]):
        each = [run["loops"][number] for run in runs]
        ratios = [one["processor"] / _ours(run["rows"], row["key"]) for one, run in zip(each, runs, strict=True)]
        taken, error = [one["processor"] for one in each], max(one["error"] for one in each)
        looped.append({**row, "processor": taken, "ratios": ratios, "error": error})
    return {
        "rows": rows,
        "loops": looped,
        "together": [sum(one["processor"] for one in run["loops"]) / _ours(run["rows"], *NEEDED) for run in runs],
        "totals": {kind: [run["totals"][kind] for run in runs] for kind in ("seconds", "processor")},
        "peak": max(run["peak"] for run in runs),
        "before": max(run["before"] for run in runs),
    }


NEEDED = {
    "lira_own_variances": ("scaled confidence of all shadows", "moments of the confidence"),
    "lira_offline_own_variances": ("scaled confidence of all shadows", "moments of the confidence"),
    "attack_r": ("scaled confidence of all shadows", "moments of the confidence"),
    "difficulty_calibration": ("scaled confidence of all shadows", "loss", "moments of the loss"),
    "rmia": (
        "scaled confidence of all shadows", "that of public examples", "probability of the true label",
        "moments of the probability",
    ),
}  # fmt: skip
NEEDED["rmia_offline"] = NEEDED["rmia"]
"""What is shared that the attacks with loops rest on."""


def _ours(rows: Sequence[Mapping[str, Any]], *those: str) -> float:
    """The processor's seconds of those attacks and of what they need of the shared part, once."""
    needed = {piece for attack in those for piece in NEEDED[attack]}
    return float(sum(row["processor"] for row in rows if row["key"] in needed.union(those)))


def reached(record: Mapping[str, Any], kind: str) -> bool:
    """Whether every repeat kept to the goal, in `kind` of seconds."""
    return bool(max(record["totals"][kind]) <= GOAL_SECONDS and record["peak"] <= GOAL_GIB)


def markdown(record: Mapping[str, Any]) -> str:
    """The page for people, from the JSON record alone."""
    hardware, versions, size = record["hardware"], record["versions"], record["size"]
    wall, processor = record["totals"]["seconds"], record["totals"]["processor"]
    shared = sum(median(row["processor"]) for row in record["rows"] if row["kind"] == "shared")
    lines = [
        "# Scoring by every attack on a released model\n",
        f"Made by `{record['command']}` at revision {record['revision']} on {hardware['processor']}, {record['cores']} "
        f"cores, one thread, with a load of {record['load']:.1f} on the machine before it began; numpy "
        f"{versions['numpy']}, scipy {versions['scipy']}, scikit-learn {versions['scikit-learn']}. One "
        f"target, {size['shadows']} shadows, {size['examples']:,} examples, {size['classes']} classes, "
        f"{size['public']:,} public examples, 32×32 RGB pictures; logits and pictures are made up, in single "
        f"precision. {record['repeats']} repeats, each in a process of its own.\n",
        f"All attacks together: {_spread(wall)} s by the clock and {_spread(processor)} s of the processor, of which "
        f"{shared:.1f} s are shared; at most {record['peak']:.2f} GiB resident, of which {record['before']:.2f} were "
        f"there before scoring (data and libraries). The goal of {GOAL_SECONDS:g} s and {GOAL_GIB:g} GiB in every "
        f"repeat is {_verdict(record, 'processor')} in the processor's seconds, which are the clock's on a free "
        f"machine, and {_verdict(record, 'seconds')} by the clock.\n",
        "Seconds are medians [lowest, highest]; the peak is the process's so far. The shadow classifiers fit at most "
        "20,000 of the shadows × examples rows, thresholds of classes use 1,000,000, quantile regression fits 4,000 "
        "public examples, image statistics 20,000 examples, and the nearest of 4,000 public images is sought among "
        "pixels averaged to 8×8. RMIA is tuned on four shadows that play the target, with 64 references. Augmentation "
        f"robustness gets {QUERIES} queries, the others one. AUCs say only that something was computed: the data are "
        "made up, and the pictures are noise.\n",
        "| | attack | s, clock | s, processor | peak, GiB | AUC |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        cells = [
            row["kind"], row["name"], _spread(row["seconds"]), _spread(row["processor"]), f"{row['peak']:.2f}",
            f"{row['auc']:.3f}" if "auc" in row else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "\n## Beside loops over examples\n",
        f"Each loop was timed on the first {size['loops']} examples and scaled to {size['examples']:,}. It takes the "
        "examples one at a time, and an example's shadows as one vector. All in the processor's seconds. The ratio is "
        "over the attack as if it ran alone, with what it needs of the shared part; all these attacks together, which "
        f"share it, take {_spread(record['together'])} times less than their loops. The error is the largest between "
        "both scores on those examples.\n",
        "| attack | loops, scaled, s | ratio | error |",
        "| --- | --- | --- | --- |",
    ]
    for row in record["loops"]:
        cells = [row["name"], _spread(row["processor"]), _spread(row["ratios"]), f"{row['error']:.0e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _verdict(record: Mapping[str, Any], kind: str) -> str:
    return "reached" if reached(record, kind) else "MISSED"


def _spread(values: Sequence[float]) -> str:
    digits = 2 if median(values) < 10 else 1
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("experiments.benchmarks.scoring", __doc__)
    parser.add_argument("--repeats", type=int, default=3, help="processes, one after another")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="12 shadows, 400 examples")
    asked = parser.parse_args(arguments)
    try:
        check_number("--repeats", asked.repeats, minimum=1, integer=True)
    except InputError as error:
        parser.error(str(error))
    around = circumstances(torch.device("cpu"))  # of the code that runs, whatever is edited meanwhile
    size = QUICK if asked.quick else FULL
    record = {
        **around,
        "command": f"python -m experiments.benchmarks.scoring --repeats {asked.repeats}{' --quick' * asked.quick}",
        "size": asdict(size),
        "repeats": asked.repeats,
        "cores": CORES,
        "load": os.getloadavg()[0],
        **summary(measure(size, asked.repeats)),
    }
    page.write(asked.out, "scoring", record)
    print(f"wrote {asked.out / 'scoring.json'} and {asked.out / 'scoring.md'}")
    wrong = [row["name"] for row in record["loops"] if row["error"] > TOLERANCE]
    if wrong:
        print(f"differs from the loops: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    with one_line_errors():
        raise SystemExit(main())
