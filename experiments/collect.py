"""Stored runs, as one list of cells in the order of a plot: ε rising, without a guarantee last, variant by variant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import store
from experiments.configuration import flat
from experiments.population import FREE
from experiments.scoring import Row
from fl_core.errors import InputError


@dataclass(frozen=True)
class CellResult:
    """One stored cell: `facts` describe it, `rows` are what was measured; the rest is what figures draw.

    `variant` is what sets it apart from the others besides ε, such as `attack.references=4`; empty where nothing does.
    """

    folder: Path
    manifest: dict[str, Any]
    facts: dict[str, Any]
    rows: tuple[Row, ...]
    roc: dict[str, Any]
    audits: tuple[dict[str, Any], ...]
    vulnerable: dict[str, list[dict[str, Any]]]
    account: dict[str, Any]
    variant: str = ""

    @property
    def epsilon(self) -> float:
        """What the defence was asked to guarantee; inf without a guarantee."""
        wanted = self.facts["epsilon"]
        return math.inf if wanted is None else float(wanted)

    @property
    def accounted(self) -> float:
        """What the accountant says that the released model guarantees to one example, as attacks ask for examples."""
        return self.accounted_against("released_model")

    def accounted_against(self, view: str) -> float:
        """That of any view."""
        found = self.account["guarantees"][f"{view}/example"]["epsilon"]
        return math.inf if found is None else float(found)

    @property
    def audit(self) -> dict[str, Any] | None:
        """The first audit of the configuration, for the summary."""
        return self.audits[0] if self.audits else None

    def attacks(self) -> list[str]:
        """The names of the membership attacks, in the configuration's order."""
        return list(dict.fromkeys(row.attack for row in self.rows if row.question == "membership"))

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
                    tuple(stored["audits"]),
                    stored["vulnerable"],
                    stored["account"],
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder} was written by another version of Mirage ({error}); delete it and run again"
            ) from None
    if not cells:
        raise InputError("there is no stored run to report on; run a sweep first")
    named = _variants(cells)
    order = list(dict.fromkeys(named))
    cells = [dataclasses.replace(cell, variant=name) for cell, name in zip(cells, named, strict=True)]
    return sorted(cells, key=lambda cell: (order.index(cell.variant), cell.epsilon))


def _variants(cells: Sequence[CellResult]) -> list[str]:
    """What sets each cell apart from the others besides ε: the defence, by its name, and the fields that differ."""
    configs = [
        flat({name: value for name, value in cell.manifest["config"].items() if name not in (*FREE, "defense")})
        for cell in cells
    ]
    names = dict.fromkeys(name for config in configs for name in config)
    differing = [
        name
        for name in names
        if not name.startswith("attack.membership.") and len({repr(config.get(name, "")) for config in configs}) > 1
    ]
    defenses = [cell.facts["defense"] for cell in cells]

    def told(config: dict[str, Any], defense: str) -> str:
        parts = [defense] if len(set(defenses)) > 1 else []
        return ", ".join(parts + [_in_words(name, config[name]) for name in differing if name in config])

    return [told(config, defense) for config, defense in zip(configs, defenses, strict=True)]


def _in_words(name: str, value: Any) -> str:
    """`attack.shadows.model._target_` and its value as "shadows.model = MLP"."""
    if value is None:
        return f"{name.removeprefix('attack.')} = none"
    if name.endswith("._target_"):
        name, value = name.removesuffix("._target_"), str(value).rsplit(".", 1)[-1]
    return f"{name.removeprefix('attack.')} = {value}"


def alarms(cells: Sequence[CellResult]) -> list[str]:
    """Where a measured lower bound contradicts the accountant: one of the two, or the defence, is broken."""
    found = []
    for cell in cells:
        for audit in cell.audits:
            bound, accounted = audit["epsilon"], cell.accounted_against(audit["view"])
            if bound is not None and bound > accounted:
                found.append(
                    f"ALARM at ε = {cell.label()}: the audit shows ε ≥ {bound:.3g}, above the accounted "
                    f"{accounted:.3g} ({audit['attack']}); the accounting, the defence or the audit is broken"
                )
    return found
