"""How often each auditor claims more than the truth, on mechanisms whose ε is known; and how much it shows.

    python -m experiments.benchmarks.audit_coverage            (some minutes on one core; --trials 200 takes seconds)

A lower bound with 95% confidence may lie above the true ε in at most 5% of audits. Every auditor is tried on every
mechanism where it applies, in `--trials` independent audits. Three kinds of rows:

- bound: the auditor's guarantee covers this mechanism. If such a row claims too much significantly, the command fails;
- off: a Gaussian auditor on a mechanism whose trade-off is not Gaussian; nothing is promised, and it shows;
- wrong: what is not to be done, so that it is seen that the table can fail.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.audit.gaussian import epsilon_of_mu, gaussian_bound, mu_of_rates
from attacks.audit.one_run import audit_one_run, one_run_ceiling
from attacks.audit.one_run_fdp import audit_one_run_fdp
from attacks.audit.one_shot import estimate_all_iterates, estimate_final, frame_bound
from attacks.audit.outcomes import Outcome
from attacks.audit.sequential import sequential_bound
from attacks.audit.thresholds import Everywhere, Grid, PreRegistered, Split, rates_at
from attacks.audit.two_world import epsilon_of_rates, two_world_bound
from attacks.metrics import clopper_pearson
from experiments.benchmarks import page
from experiments.benchmarks.audit_mechanisms import Mechanism, canary_cosines, frame_products, mechanisms
from experiments.store import circumstances
from experiments.terminal import Parser, one_line_errors
from fl_core.errors import InputError, check_number

Array = NDArray[np.float64]
Kind = Literal["bound", "off", "wrong"]

CONFIDENCE, NOMINAL = 0.95, 0.05
TWO_WORLD, PAIRS = 400, 250
"""Runs of each world that a two-world audit rests on; pairs of a sequential one."""
CANARIES, FRACTION = 1000, 0.25
FRACTIONS = (0.02, 0.1, 0.25, 1.0)
SHOT_CANARIES, SHOT_DIMENSION, SHOT_ROUNDS = 100, 100_000, 5
OTHERS = 5.0
"""The length, in clips, of what the other clients add to the release of a one-shot audit."""

INTERVAL = 0.999
"""Of the rates, so that of some 120 rows that keep their 5% exactly one is taken for broken in 6% of tables at most."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One auditor on one mechanism; `audit` returns the ε it claims and the most it could, from a seeded generator."""

    auditor: str
    mechanism: str
    kind: Kind
    epsilon: float
    delta: float
    audits: Callable[[np.random.Generator, int], Iterator[tuple[float, float]]]


def _claim(outcome: Outcome) -> tuple[float, float]:
    return outcome.epsilon, outcome.ceiling


# Two worlds

Judge = Callable[[Mechanism, Array, Array], tuple[float, float]]
"""(mechanism, scores with the canary, without) → the ε claimed and the most it could be."""


def uncorrected(mechanism: Mechanism, inside: Array, outside: Array) -> tuple[float, float]:
    """Wrong, and often done: the largest claim of all thresholds, with 95% on each rate of each alone."""
    side = 1 - CONFIDENCE
    found = rates_at(np.unique(np.concatenate([inside, outside])), inside, outside, side, side)
    perfect, flawless = (np.array([rate]) for rate in found.best)
    ceiling = epsilon_of_rates(perfect, flawless, mechanism.delta)
    return float(epsilon_of_rates(found.tpr, found.fpr, mechanism.delta).max()), float(ceiling[0])


def best_point(mechanism: Mechanism, inside: Array, outside: Array) -> tuple[float, float]:
    """Wrong, and often done: the largest ε of the observed rates, where neither is 0."""
    found = rates_at(np.unique(np.concatenate([inside, outside])), inside, outside, 0.5, 0.5)
    tpr, fpr = found.true_positives / found.members, found.false_positives / found.non_members
    seen = (fpr > 0) & (tpr < 1)
    return float(epsilon_of_rates(tpr[seen], fpr[seen], mechanism.delta).max(initial=0.0)), math.inf


def plug_in(mechanism: Mechanism, inside: Array, outside: Array) -> tuple[float, float]:
    """Wrong: the ε of the observed rates themselves at the registered threshold, as if they were the true ones."""
    tpr, fpr = (np.array([(scores >= mechanism.threshold).mean()]) for scores in (inside, outside))
    if fpr == 0 or tpr == 1:
        return math.inf, math.inf
    return epsilon_of_mu(float(mu_of_rates(tpr, fpr)[0]), _gaussian_delta(mechanism)), math.inf


def _gaussian_delta(mechanism: Mechanism) -> float:
    """A Gaussian needs δ > 0; where the truth is known at δ = 0 it is no smaller than at this one."""
    return mechanism.delta or 1e-5


BOUNDS: dict[str, Judge] = {
    "pre-registered threshold": lambda m, inside, outside: _claim(
        two_world_bound(inside, outside, PreRegistered(threshold=m.threshold), delta=m.delta)
    ),
    "split": lambda m, inside, outside: _claim(two_world_bound(inside, outside, Split(), delta=m.delta)),
    "grid of thresholds": lambda m, inside, outside: _claim(
        two_world_bound(inside, outside, Grid(thresholds=m.grid), delta=m.delta)
    ),
    "all thresholds at once": lambda m, inside, outside: _claim(
        two_world_bound(inside, outside, Everywhere(), delta=m.delta)
    ),
    "sequential": lambda m, inside, outside: _claim(
        sequential_bound(inside[:PAIRS], outside[:PAIRS], m.grid[2:4], delta=m.delta)
    ),
}
GAUSSIANS: dict[str, Judge] = {
    "Gaussian, pre-registered": lambda m, inside, outside: _claim(
        gaussian_bound(inside, outside, PreRegistered(threshold=m.threshold), delta=_gaussian_delta(m))
    ),
    "Gaussian, split": lambda m, inside, outside: _claim(
        gaussian_bound(inside, outside, Split(), delta=_gaussian_delta(m))
    ),
    "Gaussian, all thresholds": lambda m, inside, outside: _claim(
        gaussian_bound(inside, outside, Everywhere(), delta=_gaussian_delta(m))
    ),
}
WRONG: dict[str, Judge] = {
    "best threshold, uncorrected": uncorrected,
    "best threshold, observed rates": best_point,
    "Gaussian, plug-in": plug_in,
}


def two_world_rows(mechanism: Mechanism) -> list[Row]:
    """Every two-world auditor on the mechanism; none where its canary means nothing in two worlds."""
    pairs = mechanism.pairs
    if pairs is None:
        return []

    def tried(judge: Judge) -> Callable[[np.random.Generator, int], Iterator[tuple[float, float]]]:
        def audits(draws: np.random.Generator, count: int) -> Iterator[tuple[float, float]]:
            for _ in range(count):
                inside, outside = pairs(draws, 1, TWO_WORLD)
                yield judge(mechanism, inside[0], outside[0])

        return audits

    gaussian: Kind = "off" if mechanism.mu is None else "bound"
    found: list[tuple[str, Judge, Kind]] = [(name, judge, "bound") for name, judge in BOUNDS.items()]
    found += [(name, judge, gaussian) for name, judge in GAUSSIANS.items()]
    found += [(name, judge, "wrong") for name, judge in WRONG.items() if name != "Gaussian, plug-in" or mechanism.mu]
    return [_row(mechanism, name, kind, tried(judge)) for name, judge, kind in found]


# One run


def best_fraction(mechanism: Mechanism, scores: Array, members: NDArray[np.bool_]) -> tuple[float, float]:
    """Wrong: the number of guesses that claims most, on the data that prove it."""
    found = [audit_one_run(scores, members, fraction=share, delta=mechanism.delta) for share in FRACTIONS]
    return max(one.epsilon for one in found), one_run_ceiling(CANARIES, CANARIES, mechanism.delta)


ONE_RUN: dict[str, Callable[[Mechanism, Array, NDArray[np.bool_]], tuple[float, float]]] = {
    "one run": lambda m, scores, members: _claim(audit_one_run(scores, members, fraction=FRACTION, delta=m.delta)),
    "one run, f-DP of (ε, δ)": lambda m, scores, members: _claim(
        audit_one_run_fdp(scores, members, family="approximate", fraction=FRACTION, delta=m.delta)
    ),
    "one run, f-DP of Gaussians": lambda m, scores, members: _claim(
        audit_one_run_fdp(scores, members, fraction=FRACTION, delta=_gaussian_delta(m))
    ),
    "one run, best number of guesses": best_fraction,
}


def one_run_rows(mechanism: Mechanism) -> list[Row]:
    """Every one-run auditor on the mechanism, and the dishonest one beside them."""
    found = []
    for name, judge in ONE_RUN.items():

        def audits(draws: np.random.Generator, count: int, judge: Any = judge) -> Iterator[tuple[float, float]]:
            for _ in range(count):
                scores, members = mechanism.runs(draws, 1, CANARIES)
                yield judge(mechanism, scores, members)

        kind: Kind = "bound"
        if name == "one run, best number of guesses":
            kind = "wrong"
        elif name == "one run, f-DP of Gaussians" and mechanism.mu is None:
            kind = "off"
        found.append(_row(mechanism, name, kind, audits))
    return found


def _row(mechanism: Mechanism, auditor: str, kind: Kind, audits: Any) -> Row:
    return Row(
        auditor=auditor, mechanism=mechanism.name, kind=kind, epsilon=mechanism.epsilon, delta=mechanism.delta,
        audits=audits,
    )  # fmt: skip


# One shot: many random directions in one Gaussian release


def one_shot_rows(mu: float, delta: float = 1e-5) -> list[Row]:
    """The auditors of one release's directions, on a Gaussian mechanism with this `mu`."""

    def frames(draws: np.random.Generator, count: int) -> Iterator[tuple[float, float]]:
        for _ in range(count):
            inside, outside = frame_products(draws, mu, SHOT_CANARIES, SHOT_CANARIES, 1000, OTHERS)
            yield _claim(frame_bound(inside, outside, delta=delta))

    def final(draws: np.random.Generator, count: int) -> Iterator[tuple[float, float]]:
        for _ in range(count):
            observed = canary_cosines(draws, mu, SHOT_CANARIES, SHOT_DIMENSION)
            yield _claim(estimate_final(observed, SHOT_DIMENSION, delta=delta))

    def iterates(draws: np.random.Generator, count: int) -> Iterator[tuple[float, float]]:
        for _ in range(count):
            # Each round at the share of μ that composes to it, the canaries in all of them.
            share, shape = mu / math.sqrt(SHOT_ROUNDS), (SHOT_ROUNDS, SHOT_CANARIES)
            outside = draws.standard_normal(shape) / math.sqrt(SHOT_DIMENSION)
            inside = np.stack([canary_cosines(draws, share, SHOT_CANARIES, SHOT_DIMENSION) for _ in range(SHOT_ROUNDS)])
            yield _claim(estimate_all_iterates(inside, outside, delta=delta))

    name, epsilon = f"Gaussian, μ = {mu:g}, δ = {delta:g}", epsilon_of_mu(mu, delta)
    rows: list[tuple[str, Kind, Any]] = [
        ("one-shot frame", "bound", frames),
        ("one-shot final iterate, estimate as a bound", "wrong", final),
        ("one-shot all iterates, estimate as a bound", "wrong", iterates),
    ]
    return [
        Row(auditor=auditor, mechanism=name, kind=kind, epsilon=epsilon, delta=delta, audits=audits)
        for auditor, kind, audits in rows
    ]


def all_rows() -> list[Row]:
    """Every auditor on every mechanism that it may be asked about."""
    known = mechanisms()
    rows = [row for mechanism in known for row in (*two_world_rows(mechanism), *one_run_rows(mechanism))]
    return rows + [row for mu in (0.5, 1.0, 2.0) for row in one_shot_rows(mu)]


def measure(row: Row, trials: int, seed: int) -> dict[str, Any]:
    """The rate of claims above the truth with its interval, the median claim and the ceiling."""
    draws = np.random.default_rng([seed, zlib.crc32(f"{row.auditor}/{row.mechanism}".encode())])
    found = np.array(list(row.audits(draws, trials)))
    claims = found[:, 0]
    # What rounding adds to a bound that meets the truth with equality is no false claim.
    false = int((claims > row.epsilon + 1e-6).sum())
    rate = clopper_pearson(false, trials, INTERVAL)
    return {
        "auditor": row.auditor,
        "mechanism": row.mechanism,
        "kind": row.kind,
        "epsilon": _finite(row.epsilon),
        "delta": row.delta,
        "false_claims": false,
        "rate": {"value": rate.value, "low": rate.low, "high": rate.high},
        "nominal": NOMINAL,
        "claims_too_much": rate.low > NOMINAL,
        "median": _finite(float(np.median(claims))),
        "top": _finite(float(np.quantile(claims, 0.99, method="lower"))),
        "ceiling": _finite(float(np.median(found[:, 1]))),
    }


def _finite(value: float) -> float | None:
    """What JSON can say of it: None stands for infinity."""
    return value if math.isfinite(value) else None


def broken(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows whose guarantee covers the mechanism, and which claim too much all the same."""
    return [row for row in rows if row["kind"] == "bound" and row["claims_too_much"]]


def markdown(record: Mapping[str, Any]) -> str:
    """The page for people, from the JSON record alone."""
    hardware, versions, rows = record["hardware"], record["versions"], record["rows"]
    bad = broken(rows)
    worst = max((row for row in rows if row["kind"] == "bound"), key=lambda row: row["rate"]["value"])
    wrong = [row["rate"]["value"] for row in rows if row["kind"] == "wrong"]
    lines = [
        "# Audits of auditors: how often a bound exceeds the truth\n",
        f"Made by `{record['command']}` at revision {record['revision']}, in {record['wall_seconds']:.0f} s on "
        f"{hardware['processor']}, one process, seed {record['seed']}; numpy {versions['numpy']}, scipy "
        f"{versions['scipy']}.\n",
        f"{record['trials']} audits a row. A bound with {CONFIDENCE:.0%} confidence may exceed the true ε in at most "
        f"{NOMINAL:.0%} of them; in brackets the {INTERVAL:.1%} Clopper–Pearson interval of the measured rate. "
        f"Two-world audits rest on {TWO_WORLD} runs of each world ({PAIRS} pairs if sequential), one-run audits on "
        f"{CANARIES} canaries of which {FRACTION:.0%} are guessed, one-shot audits on {SHOT_CANARIES} canaries in one "
        "run. The ceiling is the most that a perfect attack could have shown with the same sample.\n",
        f"{'NOT VALID: ' + '; '.join(_named(row) for row in bad) if bad else 'No bound claims too much'}. The highest "
        f"rate of a bound is {worst['rate']['value']:.1%} ({_named(worst)}). The wrong ways claim too much in up to "
        f"{max(wrong, default=0.0):.0%} of audits.\n",
    ]
    titles: dict[Kind, str] = {
        "bound": "Bounds, where their guarantee holds",
        "off": "Gaussian auditors on mechanisms whose trade-off is not Gaussian: nothing is promised",
        "wrong": "Wrong ways, for comparison: not to be used",
    }
    for kind, title in titles.items():
        lines += [
            f"## {title}\n",
            "| mechanism | auditor | true ε | median claim | ceiling | claims above the truth |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            if row["kind"] == kind:
                rate = row["rate"]
                cells = [
                    row["mechanism"], row["auditor"], *(_number(row[key]) for key in ("epsilon", "median", "ceiling")),
                    f"{rate['value']:.2%} [{rate['low']:.2%}, {rate['high']:.2%}]"
                    + " **above 5%**" * row["claims_too_much"],
                ]  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['auditor']} on {row['mechanism']}"


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("experiments.benchmarks.audit_coverage", __doc__)
    parser.add_argument("--trials", type=int, default=2000, help="audits a row")
    parser.add_argument("--seed", type=int, default=0, help="of the mechanisms' coins")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    asked = parser.parse_args(arguments)
    try:
        check_number("--trials", asked.trials, minimum=10, integer=True)
        check_number("--seed", asked.seed, minimum=0, integer=True)
    except InputError as error:
        parser.error(str(error))
    around = circumstances(torch.device("cpu"))  # of the code that runs, whatever is edited meanwhile
    began, rows = time.perf_counter(), []
    for row in all_rows():
        rows.append(measure(row, asked.trials, asked.seed))
        print(f"{row.mechanism}: {row.auditor} ({row.kind}): {rows[-1]['rate']['value']:.2%}", flush=True)
    record = {
        **around,
        "command": f"python -m experiments.benchmarks.audit_coverage --trials {asked.trials} --seed {asked.seed}",
        "trials": asked.trials,
        "seed": asked.seed,
        "wall_seconds": time.perf_counter() - began,
        "rows": rows,
    }
    page.write(asked.out, "audit_coverage", record)
    print(f"wrote {asked.out / 'audit_coverage.json'} and {asked.out / 'audit_coverage.md'}")
    for bad in broken(rows):
        print(f"{_named(bad)} claims more than the truth in {bad['rate']['value']:.1%} of audits; 5% are allowed")
    return 1 if broken(rows) else 0


if __name__ == "__main__":
    with one_line_errors():
        raise SystemExit(main())
