"""How fast the whole engine is: a federation against its peers, many small trainings, and how the cost grows.

    python -m experiments.benchmarks.engine --train mnist-train.parquet --test mnist-test.parquet \
        --cifar cifar10-train.parquet --python .venv/bench/bin/python

Writes `engine.json`, `engine.md` and the plot `growth.{png,pdf}` to `--out`. Everything runs in one process
tree on the CPU; contenders take turns, so that a slow moment hits them alike, and the numbers to quote are ratios
paired within a repeat. `--python` is an interpreter that has the peers (extra `bench`; see
`experiments/benchmarks/peers`); where it has not, their rows say so. Rows of a GPU are not measured here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.benchmarks import growth_figure, page
from experiments.benchmarks.ceiling import ceiling_markdown, measure_ceiling
from experiments.benchmarks.growth import growth_markdown, measure_growth
from experiments.benchmarks.peers import measure
from experiments.benchmarks.shadows import measure_shadows, shadows_markdown
from experiments.benchmarks.tries import measure_tries, tries_markdown
from experiments.store import circumstances
from experiments.terminal import Parser, command, one_line_errors
from fl_core.checkpoint import read_json, write_json
from fl_core.errors import InputError
from fl_core.loaders import parquet

TARGET = 0.97
PATIENCE = 600.0
"""Seconds after which a contender counts as one that cannot run."""
WIDTHS = {4: "27k parameters", 16: "417k parameters"}
ENOUGH_ROUNDS = {4: 18, 16: 8}
"""Rounds in which every contender reaches TARGET, with some to spare."""

CONTENDERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain loop, 1 thread": ("plain", ("--threads", "1")),
    "pfl, 1 process": ("pfl_peer", ("--threads", "1")),
    "pfl, 2 processes": ("pfl_peer", ("--processes", "2")),
    "Flower, 2 actors": ("flower_peer", ()),
    "Mirage, loop, 1 process": ("mirage_peer", ("--backend", "loop")),
    "Mirage, vmap, 1 process": ("mirage_peer", ("--backend", "vmap")),
    "Mirage, loop, 2 processes": ("mirage_peer", ("--backend", "loop", "--workers", "2")),
    "Mirage, vmap, 2 processes": ("mirage_peer", ("--backend", "vmap", "--workers", "2")),
}
FAMILIES = ("plain loop", "pfl", "Flower", "Mirage")
GOALS = {("pfl", 4): 1.5, ("pfl", 16): 1.2, ("Flower", 4): 4.0, ("Flower", 16): 4.0}
NOT_MEASURED = (
    "seconds a round of FedAvg on MNIST, 27k and 417k parameters, on a GPU (`experiments.benchmarks.gpu` would)",
    "256 shadow models of CIFAR-10 on half the data to 90% test accuracy, goal 10 minutes on one H200 (the same)",
    "CUDA graphs, and channels last on a GPU",
)


def measure_rounds(files: Sequence[str], python: str, repeats: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds a round of every contender at both widths; a peer that cannot run leaves its reason."""
    found: dict[tuple[int, str], dict[str, Any]] = {
        (width, name): {"width": width, "contender": name, "seconds": [], "accuracy": [], "failed": None}
        for width in WIDTHS
        for name in CONTENDERS
    }
    for repeat in range(repeats):
        for width in WIDTHS:
            for name in _turn(list(CONTENDERS), repeat):
                row = found[width, name]
                if row["failed"]:
                    continue
                peer, options = CONTENDERS[name]
                wanted = [*files, "--width", str(width), "--rounds", str(rounds), *options]
                try:
                    result = measure(peer, wanted, python, timeout=PATIENCE)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    row["failed"] = str(error).splitlines()[-1][:300]
                    print(f"{WIDTHS[width]}, {name}: cannot run", flush=True)
                    continue
                row["seconds"].append(median(result["seconds"]))
                row["accuracy"].append(result["accuracy"][-1])
                row |= {"versions": result["versions"], "configured": result["configured"]}
                print(f"{WIDTHS[width]}, {name}: {row['seconds'][-1]:.3f} s a round", flush=True)
    return list(found.values())


def best_of(rows: Sequence[Mapping[str, Any]], width: int, family: str) -> Mapping[str, Any] | None:
    """The family's contender with the lowest median; None where none ran."""
    ran = [r for r in rows if r["width"] == width and r["contender"].startswith(family) and r["seconds"]]
    return min(ran, key=lambda row: median(row["seconds"]), default=None)


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each family's best over Mirage's best, repeat by repeat, and the goal where there is one."""
    found = []
    for width in WIDTHS:
        ours = best_of(rows, width, "Mirage")
        for family in FAMILIES[:-1]:
            theirs = best_of(rows, width, family)
            if ours is None or theirs is None:
                continue
            each = [one / mine for one, mine in zip(theirs["seconds"], ours["seconds"], strict=True)]
            goal = GOALS.get((family, width))
            reached = None if goal is None else median(each) >= goal
            found.append(
                {
                    "width": width,
                    "peer": theirs["contender"],
                    "mirage": ours["contender"],
                    "ratios": each,
                    "goal": goal,
                    "reached": reached,
                }
            )
    return found


def measure_to_target(
    files: Sequence[str],
    python: str,
    rows: Sequence[Mapping[str, Any]],
    seeds: int,
    widths: Sequence[int] = tuple(WIDTHS),
) -> list[dict[str, Any]]:
    """Rounds and training seconds (without evaluation) to TARGET, of each family's best, seed by seed."""
    found = []
    for width in widths:
        best = {family: row for family in FAMILIES if (row := best_of(rows, width, family)) is not None}
        reached: dict[str, list[dict[str, Any]]] = {family: [] for family in best}
        for seed in range(seeds):
            for family in _turn(list(best), seed):
                peer, options = CONTENDERS[best[family]["contender"]]
                more = ["--width", str(width), "--rounds", str(ENOUGH_ROUNDS[width]), "--seed", str(seed), "--evaluate"]
                result = measure(peer, [*files, *more, *options], python, timeout=PATIENCE)
                seconds = result["warmup_seconds"] + result["seconds"]
                round = next((i for i, value in enumerate(result["accuracy"]) if value >= TARGET), None)
                # The first round pays for imports and first calls; it counts as a round like the others.
                warm = [median(result["seconds"])] * len(result["warmup_seconds"]) + result["seconds"]
                reached[family].append(
                    {
                        "seed": seed,
                        "rounds": None if round is None else round + 1,
                        "seconds": None if round is None else sum(warm[: round + 1]),
                        "seconds_cold": None if round is None else sum(seconds[: round + 1]),
                    }
                )
                print(f"{WIDTHS[width]}, {family}, seed {seed}: {reached[family][-1]}", flush=True)
        for family, runs in reached.items():
            found.append({"width": width, "contender": best[family]["contender"], "runs": runs})
    return found


def _turn(names: list[str], by: int) -> list[str]:
    return names[by % len(names) :] + names[: by % len(names)]


def _spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def peers_markdown(record: Mapping[str, Any]) -> str:
    """The part of the page on the peers, from the JSON record alone."""
    repeats = record["measured"]["peers"]["repeats"]
    lines = [
        "## FedAvg on MNIST: 100 clients × 600 pictures, cohort 10, batch 10, one epoch\n",
        f"Seconds a round after warm-up, median [lowest, highest] of {repeats} repeats, each the median of "
        f"{record['rounds']} rounds; test accuracy after {record['rounds'] + 1} rounds.\n",
        "| contender | " + " | ".join(f"{words}, s | accuracy" for words in WIDTHS.values()) + " |",
        "| --- |" + " --- | --- |" * len(WIDTHS),
    ]
    rows = {(row["width"], row["contender"]): row for row in record["peers"]}
    for name in CONTENDERS:
        cells = []
        for width in WIDTHS:
            row = rows[width, name]
            ran = bool(row["seconds"])
            cells += [_spread(row["seconds"]) if ran else "not measured", f"{row['accuracy'][0]:.3f}" if ran else "–"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Each peer's best over Mirage's best, paired within a repeat:\n"]
    lines += ["| model | peer | Mirage | times faster | goal | |", "| --- | --- | --- | --- | --- | --- |"]
    for one in ratios(record["peers"]):
        goal = "–" if one["goal"] is None else f"{one['goal']}x"
        verdict = {None: "", True: "reached", False: "missed"}[one["reached"]]
        cells = [WIDTHS[one["width"]], one["peer"], one["mirage"], _spread(one["ratios"]), goal, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    if "ceiling" in record:
        best = {
            width: {name: row["seconds"] for name in FAMILIES if (row := best_of(record["peers"], width, name))}
            for width in WIDTHS
        }
        lines += ["", ceiling_markdown(record["ceiling"], WIDTHS, best)]
    if record.get("to_target"):
        lines += [
            f"\nTo {TARGET:.0%} test accuracy, each family's best, {len(record['to_target'][0]['runs'])} seeds; "
            "training seconds without evaluation, the first round counted as a warm one:\n",
            "| model | contender | rounds | seconds |",
            "| --- | --- | --- | --- |",
        ]
    for one in record.get("to_target", ()):
        done = [run for run in one["runs"] if run["rounds"] is not None]
        never = len(one["runs"]) - len(done)
        cells = (
            [_spread([r["rounds"] for r in done], 0), _spread([r["seconds"] for r in done], 1)] if done else ["–", "–"]
        )
        note = f" ({never} of {len(one['runs'])} seeds never did)" if never else ""
        lines.append(f"| {WIDTHS[one['width']]} | {one['contender']}{note} | {' | '.join(cells)} |")
    failed = {row["contender"]: row["failed"] for row in record["peers"] if row["failed"]}
    lines += [f"\n- {name} could not run: {why}" for name, why in failed.items()]
    return "\n".join(lines) + "\n"


def figures(record: Mapping[str, Any]) -> dict[str, Figure]:
    """How the cost of a round grows, where that was measured."""
    return {"growth": growth_figure.draw(record["growth"])} if "growth" in record else {}


def markdown(record: Mapping[str, Any]) -> str:
    """The page for people, from the JSON record alone; a section that was not measured says so."""
    first = next(iter(record["measured"].values()))
    hardware, versions = first["hardware"], first["versions"]
    peers = "".join(f", {name} {number}" for name, number in _peer_versions(record.get("peers", ())).items())
    lines = [
        "# The engine's speed\n",
        f"On {hardware['processor']}, {hardware['cores']} cores, no GPU; torch {versions['torch']}, Python "
        f"{versions['python']}{peers}. The command and the revision of each section stand at the end.\n",
    ]
    pages: dict[str, Callable[[Any], str]] = {
        "peers": peers_markdown,
        "shadows": shadows_markdown,
        "growth": growth_markdown,
        "tries": tries_markdown,
    }
    for name, section in pages.items():
        if name in record:
            lines.append(section(record if name == "peers" else record[name]))
        else:
            lines.append(f"## {name}: not measured\n")
        if name == "growth" and name in record:
            lines.append("![How the cost of a round grows](growth.png)\n")
    lines.append("## Not measured\n\n" + "\n".join(f"- {row}" for row in NOT_MEASURED) + "\n")
    made = [f"- {name}: `{one['command']}` at revision {one['revision']}" for name, one in record["measured"].items()]
    lines.append("## Made by\n\n" + "\n".join(made) + "\n")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.engine", __doc__)
    parser.add_argument("--train", required=True, help="MNIST's training pictures, a parquet file")
    parser.add_argument("--test", required=True, help="its test pictures")
    parser.add_argument("--cifar", help="CIFAR-10's training pictures, a parquet file; left out, so is that row")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has the extra `bench`")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats of every row")
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds in a repeat")
    parser.add_argument("--seeds", type=int, default=3, help=f"runs to {TARGET:.0%}%")
    parser.add_argument(
        "--target-widths",
        nargs="+",
        type=int,
        choices=list(WIDTHS),
        default=list(WIDTHS),
        help="of the models trained to it",
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="measure these sections, keep the others' numbers")
    parser.add_argument("--quick", action="store_true", help="everything small, a few minutes")
    asked = parser.parse_args(arguments)
    for name in ("repeats", "rounds"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name} must be at least 1")
    for file in (asked.train, asked.test, asked.cifar):
        if file is not None and not Path(file).is_file():
            parser.error(f"{file} is not a file")
    if asked.quick:
        asked.repeats, asked.rounds, asked.seeds = 1, 1, 0
    sections = asked.only or SECTIONS
    stored = asked.out / "engine.json"
    try:
        record = read_json(stored) if asked.only and stored.exists() else {}
        if "to_target" in sections and "peers" not in sections and "peers" not in record:
            parser.error("--only to_target needs the section peers, for each family's best; measure that first")
        with tempfile.TemporaryDirectory() as folder:
            files = decoded(asked.train, asked.test, Path(folder))
            for name in sections:
                record[name] = measure_section(name, asked, files, record)
                record.setdefault("measured", {})[name] = {
                    **circumstances(torch.device("cpu")), "command": command(), "repeats": asked.repeats,
                }  # fmt: skip
                record |= {"rounds": asked.rounds} if name == "peers" else {}
                write_json(stored, record)
    except InputError as error:
        parser.error(str(error))
    page.write(asked.out, "engine", record)
    print(f"wrote {stored} and engine.md")


def decoded(train: str, test: str, folder: Path) -> list[str]:
    """The pictures decoded once, for all processes: the arguments that name the files."""
    arguments = []
    for name, file in (("train", train), ("test", test)):
        whole, rest = parquet(file)  # no test part of its own: what is held out belongs to it too
        images = torch.cat([whole.images, rest.images])
        labels = torch.cat([whole.labels, rest.labels])
        np.savez(folder / name, images=(images * 255).round().byte().numpy(), labels=labels.numpy())
        arguments += [f"--{name}", str(folder / f"{name}.npz")]
    return arguments


SECTIONS = ("peers", "ceiling", "shadows", "growth", "tries", "to_target")


def measure_section(name: str, asked: argparse.Namespace, files: Sequence[str], record: Mapping[str, Any]) -> Any:
    """One section of the record; the last needs the first, for each family's best."""
    if name == "peers":
        return measure_rounds(files, asked.python, asked.repeats, asked.rounds)
    if name == "ceiling":
        return measure_ceiling(list(WIDTHS), asked.repeats)
    if name == "shadows":
        return measure_shadows(asked.cifar, asked.repeats, asked.quick)
    if name == "growth":
        return measure_growth(asked.repeats, asked.quick)
    if name == "tries":
        return measure_tries(asked.repeats, asked.quick)
    return measure_to_target(files, asked.python, record["peers"], asked.seeds, asked.target_widths)


def _peer_versions(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The versions of the peers themselves, in the interpreter that ran them."""
    found: dict[str, str] = {}
    for row in rows:
        found |= {name: number for name, number in row.get("versions", {}).items() if name in ("pfl", "flwr", "ray")}
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
