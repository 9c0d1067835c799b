"""The figure of `client_questions`: a column a question, over the number of clients above and over ε below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from experiments.figure_data import DECORATION
from experiments.figures import BLUE, CEILING, GREEN, GREY, ORANGE, PAGE, PURPLE, STYLE
from experiments.studies.base import Values, rows
from experiments.studies.panels import marks

COLORS = {"released_model": PURPLE, "participant": GREEN, "secure_server": ORANGE, "server": BLUE, "none": GREY}
MARKERS = {"released_model": "D", "participant": "s", "secure_server": "^", "server": "o", "none": "x"}
SPREAD = 0.26
"""How far apart along x, in ticks, the first and the last of a panel's lines stand, so that equal ones can be seen."""

OVER = ("clients", "epsilon")
"""What a column's two panels have along x."""


@dataclass(frozen=True)
class Shown:
    """One line: which rows, and how they look. `unit` is whose guarantee counts, `only` over what it is drawn."""

    label: str
    attack: str
    view: str
    knowledge: str
    linestyle: Any = "-"
    hollow: bool = False
    marker: str | None = None
    unit: str | None = None
    only: str | None = None


PARTICIPATION = tuple(
    Shown(f"{words}, {whose}", attack, view, f"{whose} records", "--" if whose == "fresh" else "-", whose == "fresh")
    for view, attack, words in (
        ("released_model", "mean confidence", "released model"),
        ("participant", "expected update, step", "participant"),
        ("secure_server", "expected update, sum", "secure server"),
    )
    for whose in ("own", "fresh")
) + (Shown("blind: design only", "blind (design only)", "none", "own records", ":"),)
SOURCE = (
    Shown("server, calibrated", "calibrated cosine", "server", "label shares"),
    Shown("server, cosine", "update cosine", "server", "the record", "--", True),
    Shown("server, smallest loss", "smallest loss", "server", "the record", ":", True, marker="v"),
    Shown("secure server, sums", "with and without", "secure_server", "the record"),
    Shown("blind: label prior", "blind (label prior)", "none", "label shares", ":"),
)
HELD = (
    *(
        Shown(
            f"{words}, {how}", f"{attack}, {reads}", view, knowledge, line, bool(line != "-"),
            apart if unit == "client" else None, unit, only,
        )
        for words, reads, view, knowledge, apart in (
            ("server", "update", "server", "each client", "v"), ("sums", "sum", "secure_server", "the cohort", "<"),
        )
        for how, attack, line, unit, only in (
            ("regression", "output layer regression", "-", "example", None),
            ("counts", "label counts", "--", "example", "clients"),
            ("ε for a client", "output layer regression", ":", "client", "epsilon"),
        )
    ),
    Shown("blind: mean, client", "blind (mean share)", "none", "each client", ":"),
    Shown("blind: mean, cohort", "blind (mean share)", "none", "the cohort", ":", marker="+"),
)  # fmt: skip
EXISTENCE = (
    Shown("server, rare, filter", "record filter, update", "server", "rare record"),
    Shown("server, rare, product", "record product, update", "server", "rare record", "--", True),
    Shown("server, usual, filter", "record filter, update", "server", "ordinary record", ":", marker="v"),
    Shown("sec. server, rare, filter", "record filter, sum", "secure_server", "rare record"),
    Shown("sec. server, rare, product", "record product, sum", "secure_server", "rare record", "--", True),
    Shown("sec. server, usual, filter", "record filter, sum", "secure_server", "ordinary record", ":", marker=">"),
    Shown("blind: nearest public", "blind (nearest public)", "none", "rare record", ":"),
)
COLUMNS: dict[str, tuple[str, str, tuple[float, float], Sequence[Shown]]] = {
    "participation": ("Did it take part?", "AUC", (0.4, 1.03), PARTICIPATION),
    "source": ("Whose is it?", "share named rightly", (0.0, 1.03), SOURCE),
    "properties": ("What do they hold?", "error of class shares", (0.0, 0.72), HELD),
    "existence": ("Does it exist?", "AUC", (0.3, 1.03), EXISTENCE),
}
"""Each question's title, y axis and lines."""


def draw(records: Sequence[Values], title: str) -> Figure:
    """A column a question, a row for each thing that is varied."""
    asked = [question for question in COLUMNS if any(record["question"] == question for record in records)]
    with plt.style.context(STYLE):
        size = PAGE, 4.9
        figure, grid = plt.subplots(2, len(asked), figsize=size, layout="constrained", squeeze=False)
        for column, question in enumerate(asked):
            heading, ylabel, limits, lines = COLUMNS[question]
            mine = [record for record in records if record["question"] == question]
            handles: dict[str, Line2D] = {}
            for axes, letter, over in zip(grid[:, column], ("abcd"[column], "efgh"[column]), OVER, strict=True):
                axes.set_title(f"{letter}  {heading}", loc="left")
                axes.set_ylabel(ylabel)
                axes.set_ylim(*limits)
                drawn = _panel(axes, mine, [line for line in lines if line.only in (None, over)], over)
                handles |= {str(handle.get_label()): handle for handle in drawn}
            order = [line.label for line in lines]
            grid[1, column].legend(
                handles=sorted(handles.values(), key=lambda one: (order + [one.get_label()]).index(one.get_label())),
                loc="upper center", bbox_to_anchor=(0.4, -0.27), borderaxespad=0.0, handlelength=2.6,
                labelspacing=0.3,
            )  # fmt: skip
        figure.suptitle(f"{title}: without a defence (above), and by ε (below)")
    return figure


def _panel(axes: Axes, records: Sequence[Values], lines: Sequence[Shown], over: str) -> list[Line2D]:
    """One question's panel over `clients` or `epsilon`: marks with bars, grey for chance, ticks for ceilings."""
    places: dict[Any, int]
    shown = [record for record in records if record["epsilon"] is None]
    if over == "epsilon":
        noisy = [record for record in records if record["epsilon"] is not None]
        at = {record["clients"] for record in noisy}
        shown = [*noisy, *(record for record in shown if record["clients"] in at)]
        epsilons = sorted({record["epsilon"] for record in noisy})
        places = {epsilon: place for place, epsilon in enumerate([*epsilons, None])}
        names = [*(f"{epsilon:g}" for epsilon in epsilons), "∞"]
        units = {record["unit"] for record in noisy}
        whose = {("client",): " for a client", ("example",): " for an example"}.get(tuple(units), "")
        axes.set_xlabel(f"ε{whose}, {' or '.join(map(str, sorted(at)))} clients")
        axes.axvline(len(epsilons) - 0.5, color="0.9", linewidth=3, zorder=0, label=DECORATION)
    else:
        counts = sorted({record["clients"] for record in shown})
        places = {count: place for place, count in enumerate(counts)}
        names = [str(count) for count in counts]
        axes.set_xlabel("clients")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.35, len(names) - 0.65)
    axes.xaxis.set_minor_locator(NullLocator())
    handles = []
    for number, line in enumerate(lines):
        shift = SPREAD * (number / max(len(lines) - 1, 1) - 0.5)
        found = {
            row[over]: row | {"at": places[row[over]] + shift}
            for row in rows(shown, attack=line.attack, view=line.view, knowledge=line.knowledge)
            if line.unit is None or row["unit"] in (line.unit, None)  # a baseline is the same under every guarantee
        }
        apart = found.pop(None, None)  # ε = ∞ is no step along the axis
        color, marker = COLORS[line.view], line.marker or MARKERS[line.view]
        look: dict[str, Any] = {"markerfacecolor": "white" if line.hollow else None, "linewidth": 0.9}
        joined = sorted(found.values(), key=lambda row: row["at"])
        if apart is not None and line.only is None:
            joined += [apart | dict.fromkeys(("at", "value", "low", "high")), apart]  # not joined: a gap before it
        marks(axes, joined, "at", color=color, marker=marker, linestyle=line.linestyle, label=line.label, **look)
        look |= {"marker": marker, "markersize": 3.2, "linestyle": line.linestyle}
        handles.append(Line2D([], [], color=color, label=line.label, **look))
    return handles + _references(axes, shown, places, over)


def _references(axes: Axes, records: Sequence[Values], places: dict[Any, int], over: str) -> list[Line2D]:
    """Chance, and the ceiling of the guarantee where it gives one."""
    handles = []
    chances = {places[row[over]]: row["chance"] for row in rows(records) if row["chance"] is not None}
    if chances:
        at = sorted(chances)
        axes.plot([at[0] - 0.35, *at, at[-1] + 0.35], [chances[at[0]], *(chances[one] for one in at), chances[at[-1]]],
                  color="0.7", linewidth=0.8, zorder=0)  # fmt: skip
        handles.append(Line2D([], [], color="0.7", linewidth=0.8, label="chance"))
    ceilings = {places[row[over]]: row["ceiling"] for row in rows(records) if row["ceiling"] is not None}
    if ceilings:
        at = sorted(ceilings)
        axes.plot(at, [ceilings[one] for one in at], color="black", gid="ceiling", **CEILING)
        noisy = [row for row in rows(records) if row["epsilon"] is not None]
        bare = any(row["ceiling"] is None for row in noisy if row["view"] == "secure_server")
        words = "ceiling for who sees models" if bare else "ceiling that ε allows"
        handles.append(Line2D([], [], color="black", label=words, **CEILING))
    return handles
