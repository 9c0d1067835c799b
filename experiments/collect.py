"""Stored runs, as one list of cells in the order of a plot: ε rising, without a guarantee last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import store
from experiments.scoring import Row
from fl_core.errors import InputError


@dataclass(frozen=True)
class CellResult:
    """One stored cell: `facts` describe it, `rows` are what was measured; the rest is what figures draw."""

    folder: Path
    manifest: dict[str, Any]
    facts: dict[str, Any]
    rows: tuple[Row, ...]
    roc: dict[str, Any]
    audit: dict[str, Any] | None
    account: dict[str, Any]

    @property
    def epsilon(self) -> float:
        """What the defence was asked to guarantee; inf without a guarantee."""
        wanted = self.facts["epsilon"]
        return math.inf if wanted is None else float(wanted)

    @property
    def accounted(self) -> float:
        """What the accountant says that the released model guarantees to one example, as attacks ask for examples."""
        found = self.account["guarantees"]["released_model/example"]["epsilon"]
        return math.inf if found is None else float(found)

    def row(self, question: str, metric: str, attack: str | None = None, group: str | None = None) -> Row | None:
        """The one row that fits, or None."""
        for row in self.rows:
            named = attack in (None, row.attack) and group in (None, row.group)
            if named and row.question == question and row.metric == metric:
                return row
        return None

    def label(self) -> str:
        return "∞" if math.isinf(self.epsilon) else f"{self.epsilon:.4g}"


def collect(folders: Sequence[Path]) -> list[CellResult]:
    """Load and order the cells; InputError where a stored run is missing or damaged."""
    cells = []
    for folder in folders:
        run = store.load(folder)
        try:
            stored = run.leakage()
            rows = tuple(Row(**row) for row in stored["rows"])
            cells.append(
                CellResult(
                    folder,
                    run.manifest,
                    stored["cell"],
                    rows,
                    stored["roc"],
                    stored["audit"],
                    stored["account"],
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder} was written by another version of Mirage ({error}); delete it and run again"
            ) from None
    if not cells:
        raise InputError("there is no stored run to report on; run a sweep first")
    return sorted(cells, key=lambda cell: cell.epsilon)


def alarms(cells: Sequence[CellResult]) -> list[str]:
    """Where a measured lower bound contradicts the accountant: one of the two, or the defence, is broken."""
    found = []
    for cell in cells:
        bound = (cell.audit or {}).get("epsilon")
        if bound is not None and bound > cell.accounted:
            found.append(
                f"ALARM at ε = {cell.label()}: the audit shows ε ≥ {bound:.3g}, above the accounted "
                f"{cell.accounted:.3g}; the accounting, the defence or the audit is broken"
            )
    return found
