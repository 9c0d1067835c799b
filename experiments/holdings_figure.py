"""The figure of experiments/holdings.py: clients against classes, as bubbles or, where they are many, as a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import hypergeom

from experiments.figures import BLUE, COLUMN, ORANGE, PAGE, SKY, STYLE
from fl_core.errors import InputError

MOST_PANELS = 12
MOST_COLUMNS = 100
"""More clients than this are drawn in groups of neighbours."""
MOST_NAMED = 20
"""More clients than this are ranked where bubbles do not fit; fewer keep their order and names."""

# Inches. Below LEAST_SIDE a cell is too small to judge a bubble's area in it.
LEAST_SIDE, MOST_SIDE = 0.1, 0.3
TITLE, BARS, SPACE, BELOW, BETWEEN = 0.48, 0.6, 0.06, 0.34, 0.16
LETTER = 0.056  # the width of a letter, about

HATCHED: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.5", "hatch": "//////", "linewidth": 0.5}
STAR: dict[str, Any] = {"marker": "*", "color": "white", "markeredgecolor": "black", "linestyle": "none"}


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Examples of each class that each client holds, `counts` [clients, classes], and how many of them are `canaries`.

    `nobody` [classes] are the examples that no client holds; `rare` is a planted rarity's (client, class). `detail`
    says what tells this deal from others of its `title`.
    """

    title: str
    detail: str
    clients: tuple[str, ...]
    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    canaries: NDArray[np.int64]
    nobody: NDArray[np.int64]
    rare: tuple[int, int] | None

    @property
    def label_skew(self) -> float:
        """Total-variation distance between a client's classes and those of all clients together, mean over clients.

        0 where every client has the same mix; near 1 where each holds classes that hardly any other has.
        """
        mixes = self.counts / self.counts.sum(1, keepdims=True)
        return float(np.abs(mixes - self.counts.sum(0) / self.counts.sum()).sum(1).mean() / 2)

    @property
    def chance_skew(self) -> float:
        """The label skew to expect where clients of these sizes are dealt their examples at random.

        Small clients differ by chance. The count of a class is then hypergeometric, and its mean absolute deviation
        from its mean μ is 2 m (N - K - n + m) / N · P(m) with m = ⌊μ⌋ + 1 (Diaconis and Zabell 1991).
        """
        pool, sizes = self.counts.sum(), self.counts.sum(1)[:, None]
        kind = self.counts.sum(0)[None]
        above = sizes * kind // pool + 1
        deviation = 2 * above * (pool - kind - sizes + above) / pool * hypergeom.pmf(above, pool, kind, sizes)
        return float((deviation / sizes).sum(1).mean() / 2)

    def named(self) -> str:
        """Title and detail, as a heading."""
        return f"{self.title}, {self.detail}" if self.detail else self.title

    def skew_in_words(self) -> str:
        """The label skew beside what chance would give."""
        return f"label skew {self.label_skew:.2f}, {self.chance_skew:.2f} by chance"

    def sizes_in_words(self) -> str:
        """The least and the most that a client holds, and how many examples are nobody's."""
        sizes = self.counts.sum(1)
        held = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else f"{sizes.min()}"
        return f"{held} examples a client" + (f", {self.nobody.sum()} with nobody" if self.nobody.any() else "")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What stands in a deal's columns: a client each, or the mean of a group of them.

    `counts` and `canaries` [columns, classes] are means over the group, and `high` [columns] its largest total; `rare`
    is the planted rarity's (column, class); `largest` the number of clients in a column.
    """

    counts: NDArray[np.float64]
    canaries: NDArray[np.float64]
    high: NDArray[np.int64]
    rare: tuple[int, int] | None
    largest: int


def arrange(deal: Deal, ranked: bool) -> Columns:
    """The clients in their own order, or ranked by their largest class and then by size, and grouped if many.

    Neighbours in that ranking hold much the same, so a group's mean shows what its clients hold.
    """
    totals = deal.counts.sum(1)
    order = np.lexsort((-totals, deal.counts.argmax(1))) if ranked else np.arange(len(totals))
    groups = np.array_split(order, min(len(order), MOST_COLUMNS))
    rare = None
    if deal.rare is not None:
        client, number = deal.rare
        rare = next(column for column, group in enumerate(groups) if client in group), number
    return Columns(
        counts=np.stack([deal.counts[group].mean(0) for group in groups]),
        canaries=np.stack([deal.canaries[group].mean(0) for group in groups]),
        high=np.array([totals[group].max() for group in groups]),
        rare=rare,
        largest=max(map(len, groups)),
    )


def draw(deals: Sequence[Deal]) -> Figure:
    """Clients against classes, a panel a deal, with the clients' totals above and, for a single deal, the classes'.

    A bubble's area is the number of examples, and of canaries inside it; where bubbles would be too small, a map's
    colour is. All panels share one scale. Raises InputError for more than MOST_PANELS deals, or different classes.
    """
    if len(deals) > MOST_PANELS or any(one.classes != deals[0].classes for one in deals):
        raise InputError(
            f"{len(deals)} pictures of who holds what cannot stand side by side: they must have the same classes and "
            f"be at most {MOST_PANELS}; sweep less"
        )
    with plt.style.context(STYLE):
        return _Sheet(deals).drawn()


class _Sheet:
    """One figure: its measures in inches, and its parts."""

    def __init__(self, deals: Sequence[Deal]) -> None:
        self.deals, self.classes, self.single = deals, deals[0].classes, len(deals) == 1
        self.across = len(deals) if len(deals) <= 4 else min(4, -(-len(deals) // 2))
        self.down = -(-len(deals) // self.across)
        beside = [len(_short(name)) for name in self.classes]
        beside += [len(str(deal.counts.sum(1).max())) for deal in deals]
        self.left = 0.28 + LETTER * max(beside)
        self.right = 0.95 if self.single else 0.08
        self.width = (PAGE - self.left - self.right - BETWEEN * (self.across - 1)) / self.across
        tallest = 4.2 if self.single else 2.4
        most = max(len(deal.clients) for deal in deals)
        self.side = min(MOST_SIDE, self.width / most, tallest / len(self.classes))
        self.bubbles = self.side >= LEAST_SIDE
        if self.bubbles:
            self.width, self.height = self.side * most, self.side * len(self.classes)
        else:
            self.height = min(tallest, max(1.2, 0.2 * len(self.classes)))
        self.ranked = not self.bubbles and most > MOST_NAMED
        longest = max(len(_short(name)) for deal in deals for name in deal.clients)
        self.upright = self.ranked or longest <= 2
        self.below = BELOW if self.upright else BELOW + LETTER * (longest - 1)
        self.columns = [arrange(deal, ranked=self.ranked) for deal in deals]
        self.scale = max(float(one.counts.max()) for one in self.columns)
        self.norm = PowerNorm(0.5, vmin=0, vmax=self.scale)

    def drawn(self) -> Figure:
        panel = TITLE + BARS + SPACE + self.height + self.below
        wide = self.left + self.across * self.width + BETWEEN * (self.across - 1) + self.right
        self.second_row = 0.2 if wide < 5 else 0.0
        legend = self.second_row + (max(0.2, self.side + 0.05) if self.bubbles else 0.28)
        self.size = COLUMN if wide <= COLUMN else PAGE, self.down * panel + legend
        self.margin = (self.size[0] - wide) / 2  # in the middle of the paper's column or page
        self.left += self.margin
        self.figure = plt.figure(figsize=self.size)
        tallest = max(int(one.high.max()) for one in self.columns)
        for number, (deal, columns) in enumerate(zip(self.deals, self.columns, strict=True)):
            row, column = divmod(number, self.across)
            x = self.left + column * (self.width + BETWEEN)
            y = legend + (self.down - 1 - row) * panel + self.below
            main = self._axes(x, y, self.width, self.height)
            self._cells(main, deal, columns, outer=column == 0)
            above = self._axes(x, y + self.height + SPACE, self.width, BARS)
            self._totals(above, main, deal, columns, outer=column == 0)
            above.set_ylim(0, 1.05 * tallest)
            if self.single:
                self._class_totals(self._axes(x + self.width + SPACE, y, 0.72, self.height), main, deal)
            self._heading(x, y + self.height + SPACE + BARS, deal, number)
        self._legend()
        return self.figure

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        return self.figure.add_axes((x / self.size[0], y / self.size[1], width / self.size[0], height / self.size[1]))

    def _heading(self, x: float, y: float, deal: Deal, number: int) -> None:
        """The title in bold, and below it what tells this deal from others."""
        if self.single:
            lines = [deal.named(), deal.sizes_in_words(), deal.skew_in_words()]
        else:
            lines = [f"{'abcdefghijkl'[number]}  {deal.title}", deal.skew_in_words(), deal.detail]
        for line, text in enumerate(lines):
            size, weight = (7.5, "bold") if line == 0 else (6.5, "normal")
            up = 0.09 + 0.12 * (len(lines) - 1 - line)
            self.figure.text(x / self.size[0], (y + up) / self.size[1], text, fontsize=size, fontweight=weight)

    def _side_label(self, axes: Axes, text: str) -> None:
        axes.set_ylabel(text, va="top")
        axes.yaxis.set_label_coords((0.04 + self.margin - self.left) / self.width, 0.5)

    def _diameter(self, count: Any) -> Any:
        """A bubble's in points: its area is proportional to the count, and the largest fills its cell."""
        return 72 * self.side * 0.94 * np.sqrt(np.asarray(count) / self.scale)

    def _cells(self, axes: Axes, deal: Deal, columns: Columns, outer: bool) -> None:
        rows = len(self.classes)
        ticks = range(0, rows, 1 if rows <= 50 else 10)
        axes.set_yticks(ticks, [_short(self.classes[tick]) for tick in ticks] if outer else [""] * len(ticks))
        axes.tick_params(length=0)
        if outer:
            self._side_label(axes, "class")
        if self.bubbles:
            self._bubbles(axes, columns)
        else:
            axes.imshow(columns.counts.T, aspect="auto", cmap="Blues", norm=self.norm, interpolation="nearest")
            axes.set_xlim(-0.5, len(columns.counts) - 0.5)
        if self.ranked:
            even = columns.largest * len(columns.counts) == len(deal.clients)
            each = f"{columns.largest}" if even else f"{columns.largest - 1} or {columns.largest}"
            grouped = f"\n({each} a column)" if columns.largest > 1 else ""
            axes.set_xticks([])
            axes.set_xlabel(f"{len(deal.clients)} clients by largest class{grouped}")
        else:
            count = len(columns.counts)
            ticks = range(0, count, 1 if not self.upright or self.side > 0.13 or count <= 10 else 5)
            axes.set_xticks(ticks, [_short(deal.clients[tick]) for tick in ticks], rotation=0 if self.upright else 90)
            axes.set_xlabel("client")
        axes.set_ylim(rows - 0.5, -0.5)
        if columns.rare is not None:
            size = max(5.0, min(9.0, 72 * self.side * 0.8))
            axes.plot(*columns.rare, **STAR, markersize=size, markeredgewidth=0.6, clip_on=False, zorder=5)

    def _bubbles(self, axes: Axes, columns: Columns) -> None:
        for table, color in ((columns.counts, BLUE), (columns.canaries, ORANGE)):
            column, row = np.nonzero(table)
            axes.scatter(column, row, self._diameter(table[column, row]) ** 2, color=color, linewidths=0, zorder=3)
        axes.set_xlim(-0.5, self.width / self.side - 0.5)
        axes.grid(color="0.92", linewidth=0.5, zorder=0)
        axes.set_axisbelow(True)

    def _totals(self, axes: Axes, main: Axes, deal: Deal, columns: Columns, outer: bool) -> None:
        totals, canaries = columns.counts.sum(1), columns.canaries.sum(1)
        at, width = np.arange(len(totals)), 0.8 if self.bubbles else 1.0
        if columns.largest > 1:
            axes.bar(at, columns.high, width, color=SKY)
        axes.bar(at, canaries, width, color=ORANGE)
        axes.bar(at, totals - canaries, width, bottom=canaries, color=BLUE)
        axes.set_xlim(main.get_xlim())
        axes.set_xticks([])
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.tick_params(labelleft=outer)
        if outer:
            self._side_label(axes, "examples")

    def _class_totals(self, axes: Axes, main: Axes, deal: Deal) -> None:
        held, canaries = deal.counts.sum(0), deal.canaries.sum(0)
        at, width = np.arange(len(held)), 0.8 if self.bubbles else 1.0
        axes.barh(at, canaries, width, color=ORANGE)
        axes.barh(at, held - canaries, width, left=canaries, color=BLUE)
        apart = deal.nobody > 0
        axes.barh(at[apart], deal.nobody[apart], width, left=held[apart], **HATCHED)
        axes.set_ylim(main.get_ylim())
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.set_xlabel("examples")

    def _legend(self) -> None:
        """The scale, and beside it, or below it in a narrow figure, what else needs a word."""
        if self.bubbles:
            style: dict[str, Any] = {"marker": "o", "color": BLUE, "linestyle": "none", "markeredgewidth": 0}
            counts = _round_numbers(self.scale)
            scale = [Line2D([], [], **style, markersize=float(self._diameter(one)), label=f"{one}") for one in counts]
            scale[-1].set_label(f"{counts[-1]} examples" if counts[-1] > 1 else "1 example")
            widest = float(self._diameter(counts[-1]))
            self._row(scale, 0.0, self.second_row + max(0.02, widest / 144 - 0.08), handlelength=widest / 6)
        else:
            bar = self._axes(self.left, self.second_row + 0.18, 1.3, 0.07)
            self.figure.colorbar(ScalarMappable(self.norm, "Blues"), bar, orientation="horizontal")
            bar.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            bar.text(1.04, 0.5, "examples of a client", transform=bar.transAxes, va="center", fontsize=6.5)
        words = (
            (any(deal.canaries.any() for deal in self.deals), Patch(color=ORANGE, label="canaries (wrong label)")),
            (
                self.single and self.deals[0].nobody.any(),
                Patch(**HATCHED, label="held by nobody"),
            ),
            (any(deal.rare for deal in self.deals), Line2D([], [], **STAR, markersize=7, label="planted rarity")),
            (
                any(one.largest > 1 for one in self.columns),
                Patch(color=SKY, label="largest client of a column"),
            ),
        )
        self._row([handle for shown, handle in words if shown], 0.0 if self.second_row else 2.5, 0.0)

    def _row(self, handles: list[Any], along: float, up: float, handlelength: float = 2.0) -> None:
        if handles:
            place = (self.left + along) / self.size[0], up / self.size[1]
            self.figure.legend(
                handles=handles, loc="lower left", bbox_to_anchor=place, ncols=len(handles), handlelength=handlelength,
                handletextpad=0.4, columnspacing=1.2, borderpad=0.3, borderaxespad=0,
            )  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"


def _round_numbers(largest: float) -> list[int]:
    """Up to three counts of the form 1, 2 or 5 times a power of ten, the last at most `largest`."""
    steps = [step * 10**power for power in range(9) for step in (1, 2, 5) if step * 10**power <= max(1, largest)]
    return sorted({steps[-1], steps[max(0, len(steps) - 3)], steps[max(0, len(steps) - 5)]})
