"""What a reproduction is: published numbers, a protocol, three budgets, and how a verdict is reached.

A reproduction is a study (`experiments.studies.base`): its points are measured side by side, each is a stored run, and
what was measured is kept in results/reproduce/<name>/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t as student

from experiments.figures import BLUE, ORANGE, PAGE, STYLE
from experiments.studies.base import Study, Values, rows
from experiments.table import Entry, Number, Page, Table
from fl_core.errors import check_choice

BUDGETS = ("smoke", "cpu", "full")

CIFAR10 = (
    "data=cifar10_parquet", "data.path={data}/cifar10-train.parquet", "data.test_path={data}/cifar10-test.parquet",
)  # fmt: skip
MNIST = ("data=mnist_parquet", "data.path={data}/mnist-train.parquet", "data.test_path={data}/mnist-test.parquet")
WHOLE = ("data.limit=null", "data.test_limit=null")
"""Overrides of a budget: whose pictures it reads, and that it reads all of them."""
JPEG = "CIFAR-10 as re-encoded JPEG"

Verdict = Literal["matched", "missed", "scaled down", "not attempted"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One number of a paper: `what` it is, its `value` in `unit`, and how it was known here.

    `remembered` marks a number that was not read in the source itself. `computed` marks one that no paper prints: a
    known value, computed for this project by other means; it is counted apart. `tolerance` is what rounding, or the
    spread that the paper states, leaves open. A `sense` of "at least" is a claim that is matched by any value from
    there on, such as a PSNR; "at most" by any up to there, such as a number of rounds.
    """

    what: str
    value: float
    unit: str = ""
    remembered: bool = False
    computed: bool = False
    tolerance: float = 0.0
    sense: Literal["equal", "at least", "at most"] = "equal"
    digits: int = 3

    @property
    def mark(self) -> str:
        """[m] or [c] after the number, or nothing where it was read in its source."""
        return " [c]" if self.computed else " [m]" if self.remembered else ""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How a reproduction is run: `overrides` of the configuration (`data=digits`, `data.limit=1000`), the study's own
    `options`, and how that `differs` from the published protocol, in a clause; empty where it does not."""

    overrides: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    differs: str


@dataclass(frozen=True, kw_only=True)
class Reproduction(Study):
    """A published table or claim.

    `measure` gives rows whose `metric` is the `what` of a published number, with `value`, `low`, `high` and `samples`;
    `differs` in a row says what sets it apart from the published protocol besides the budget, and `note` what else is
    to be said; `as_published` is true in a row that is the published one whatever the budget, such as a closed form.
    Rows of other metrics are shown without a verdict. `skipped` says of a published number why no budget measures it,
    and `apart` what sets one apart from the published protocol whatever the budget. `altered` says how the files at
    hand differ from the published data set where the budget expects that itself.
    """

    budget: str
    altered: str = ""
    title: ClassVar[str]
    source: ClassVar[str]
    protocol: ClassVar[str]
    published: ClassVar[tuple[Published, ...]]
    budgets: ClassVar[Mapping[str, Budget]]
    skipped: ClassVar[Mapping[str, str]] = {}
    apart: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        check_choice("budget", self.budget, self.budgets)

    @property
    def differs(self) -> str:
        """What sets this run's budget and files apart from the published protocol; empty where nothing does."""
        return "; ".join(part for part in (self.budgets[self.budget].differs, self.altered) if part)

    def measured(self, records: Sequence[Values]) -> list[Values]:
        """The rows that are judged. Here those of the points as they are; where points are seeds, a subclass puts them
        together, and it may say in a row without a value why a number was not measured."""
        return rows(records)

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        """Each published number beside ours with its interval, one panel a unit."""
        return published_and_ours(verdicts(self, records), title)

    def table(self, records: Sequence[Values]) -> Page:
        """The verdicts, the protocol and the source."""
        told = [f"Source: {self.source}. Protocol: {self.protocol}"]
        if self.differs:
            told.append(f"Here, with the budget `{self.budget}`: {self.differs}.")
        if any(one.remembered for one in self.published):
            told.append("Numbers marked [m] are as remembered; the source was not at hand.")
        if any(one.computed for one in self.published):
            told.append("Values marked [c] are in no paper: they were computed for this project by other means.")
        return [*told, verdict_table(verdicts(self, records))]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A line of a reproduction: the published number and the measured row, where there is one, and the verdict."""

    what: str
    published: Published | None
    row: Values | None
    verdict: Verdict | Literal[""]
    why: str
    budget: str = ""
    """How the budget differs from the published protocol, where that is why there is no other verdict."""

    @property
    def in_full(self) -> str:
        """Why, with what is said of the budget as a whole."""
        return "; ".join(part for part in (self.budget, self.why) if part)


def verdicts(study: Reproduction, records: Sequence[Values]) -> list[Judged]:
    """A line for each published number, in the paper's order, then what was measured beside them."""
    measured = study.measured(records)
    named = {one.what: one for one in study.published}
    lines = []
    for one in study.published:
        found = [row for row in measured if row["metric"] == one.what and row["value"] is not None]
        lines += [judge(one, row, study.differs, study.apart.get(one.what, "")) for row in found]
        if not found:
            noted = [row.get("note", "") for row in measured if row["metric"] == one.what]
            why = study.skipped.get(one.what, "") or "".join(noted) or f"no part of the budget {study.budget}"
            lines.append(Judged(what=one.what, published=one, row=None, verdict="not attempted", why=why))
    for row in measured:
        if row["metric"] not in named and row["value"] is not None:
            lines.append(Judged(what=row["metric"], published=None, row=row, verdict="", why=row.get("note", "")))
    return lines


def judge(published: Published, row: Values, differs: str, apart: str = "") -> Judged:
    """Matched where the published number, give or take its tolerance, lies in our interval, or ours is beyond it in the
    claim's sense; scaled down, and neither, where the budget `differs` from the published protocol or the number is set
    `apart` from it."""
    of_budget = "" if row.get("as_published") else differs
    of_row, note = "; ".join(part for part in (apart, row.get("differs", "")) if part), row.get("note", "")
    if of_budget or of_row:
        why = "; ".join(dict.fromkeys(part for part in (of_row, note) if part))
        return Judged(
            what=published.what, published=published, row=row, verdict="scaled down", why=why, budget=of_budget
        )
    low, high = (row["value"] if row.get(end) is None else row[end] for end in ("low", "high"))
    least, most = published.value - published.tolerance, published.value + published.tolerance
    reached = {
        "equal": low <= most and high >= least,
        "at least": high >= least,
        "at most": low <= most,
    }[published.sense]
    verdict: Verdict = "matched" if reached else "missed"
    return Judged(what=published.what, published=published, row=row, verdict=verdict, why=note)


def over_seeds(metric: str, values: Sequence[float], **about: Any) -> Values:
    """The row of a mean over `values`, one a seed, with Student's 95% interval; one seed has none.

    Of three or four seeds the bootstrap's interval would be their range, in which the mean lies far less often.
    """
    mean, count = float(np.mean(values)), len(values)
    told: Values = {"metric": metric, "value": mean, "samples": count}
    if count == 1:
        return told | {"note": "one seed, so no interval"} | about
    half = float(student.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return told | {"low": mean - half, "high": mean + half, "note": f"mean of {count} seeds"} | about


def verdict_table(lines: Sequence[Judged], in_full: bool = False) -> Table:
    """What, the paper's number (with its tolerance, where that is more than rounding), ours with its interval, the
    verdict, and why; `in_full` with the budget's part."""

    def theirs(one: Published | None) -> str:
        if one is None:
            return "—"
        sense = {"equal": "", "at least": "≥ ", "at most": "≤ "}[one.sense]
        unit = f" {one.unit}" if one.unit else ""
        spread = f" ± {one.tolerance:g}" if one.tolerance > 0.6 * 10**-one.digits else ""
        return f"{sense}{one.value:.{one.digits}f}{spread}{unit}{one.mark}"

    def ours(line: Judged) -> Entry:
        if line.row is None:
            return "—"
        digits = line.published.digits if line.published else 3
        return Number(value=line.row["value"], low=line.row.get("low"), high=line.row.get("high"), digits=digits)

    heads = ["number", "published", "ours", "of", "verdict", "why"]
    body: list[list[Entry]] = [
        [line.what, theirs(line.published), ours(line), (line.row or {}).get("samples", "—"), line.verdict]
        + [line.in_full if in_full else line.why]
        for line in lines
    ]
    return Table(heads=heads, lines=body)


# How a published number is drawn: a triangle where the claim is met by any value beyond it, and so points there.
SENSES = {"equal": ("D", "published"), "at least": (">", "published: at least"), "at most": ("<", "published: at most")}


def published_and_ours(lines: Sequence[Judged], title: str) -> Figure:
    """A panel a unit: published numbers (or, marked [c], known values) as hollow marks of their sense, ours as dots."""
    shown = [line for line in lines if line.published is not None]
    units = list(dict.fromkeys(line.published.unit for line in shown if line.published))
    heights = [sum(line.published is not None and line.published.unit == unit for line in shown) for unit in units]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(units), 1, figsize=(PAGE, 0.8 + 0.24 * sum(heights) + 0.45 * len(units)), layout="constrained",
            squeeze=False, height_ratios=heights,
        )  # fmt: skip
        once: dict[str, Any] = {}
        for axis, unit in zip(axes[:, 0], units, strict=True):
            mine = [line for line in shown if line.published is not None and line.published.unit == unit]
            for place, line in enumerate(mine):
                assert line.published is not None
                marker, words = SENSES[line.published.sense]
                axis.plot(
                    line.published.value, place, color=ORANGE, marker=marker, markersize=5, mfc="none", linestyle="",
                    label=words,
                )  # fmt: skip
                if line.row is None:
                    continue
                value = line.row["value"]
                low, high = (value if line.row.get(end) is None else line.row[end] for end in ("low", "high"))
                bars = [[max(value - low, 0)], [max(high - value, 0)]]
                axis.errorbar(value, place, xerr=bars, color=BLUE, marker="o", markersize=3.5, linestyle="", label=OURS)
            marks = [line.published.mark for line in mine if line.published]
            named = [f"{line.what}{mark} ({line.verdict})" for line, mark in zip(mine, marks, strict=True)]
            axis.set_yticks(range(len(mine)), named)
            axis.set_ylim(len(mine) - 0.5, -0.5)
            axis.set_xlabel(AXES.get(unit, unit))
            if not unit and all(line.published.digits == 0 for line in mine if line.published):  # a count
                axis.set_xlabel("count")
                axis.set_xlim(-0.5, axis.get_xlim()[1] + 1)
                axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=2))
            axis.grid(axis="x", linewidth=0.4, color="0.9")
            handles, words_ = axis.get_legend_handles_labels()
            once |= dict(zip(words_, handles, strict=True))
        if OURS in once:
            once[OURS] = once.pop(OURS)  # last
        told = {line.published.mark.strip() for line in shown if line.published}
        figure.legend(
            once.values(), once.keys(), loc="outside lower center", ncols=len(once), title_fontsize=6,
            title="; ".join(f"{mark}: {words}" for mark, words in MARKS.items() if mark in told) or None,
        )  # fmt: skip
        figure.suptitle(title)
    return figure


MARKS = {"[m]": "as remembered, the source was not at hand", "[c]": "a known value that no paper prints"}
OURS = "ours, 95% interval"
AXES = {"": "no unit", "dB": "PSNR (dB)", "×": "times the bytes of the vector alone"}
"""What an axis says of a unit that is not clear by itself."""
