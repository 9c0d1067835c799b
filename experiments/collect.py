"""Stored runs, as one list of cells in the order of a plot: ε rising, without a guarantee last, variant by variant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attacks.pictures import completed, failed, psnr
from experiments import store
from experiments.configuration import flat
from experiments.population import FREE
from experiments.reconstruction_scores import read_back
from experiments.replicas import history_of
from experiments.scoring import Row
from fl_core.checkpoint import load_tensors
from fl_core.errors import InputError

Pictures = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Pictures of the probe round [victims, channels, height, width], in 8 bits; `found` is the attacker's choice.

    `psnr` [victims] is in dB; where an attack failed it is None.
    """

    true: Pictures
    true_labels: tuple[int, ...]
    found: Pictures
    found_labels: tuple[int, ...]
    psnr: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """The examples that the headline attack finds best, in its order: [examples, channels, height, width]."""

    images: Pictures
    labels: tuple[int, ...]
    planted: tuple[bool, ...]


@dataclass(frozen=True)
class CellResult:
    """One stored cell: `facts` describe it, `rows` are what was measured; the rest is what figures draw.

    `variant` is what sets it apart from the others besides ε, such as `attack.references=4`; empty where nothing does.
    """

    manifest: dict[str, Any]
    facts: dict[str, Any]
    rows: tuple[Row, ...]
    roc: dict[str, Any]
    audits: tuple[dict[str, Any], ...]
    vulnerable: dict[str, list[dict[str, Any]]]
    account: dict[str, Any]
    accuracy: tuple[tuple[float, ...], ...]
    """Test accuracy [rounds][replicas]."""
    probed: Probed | None
    exposed: Exposed | None
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

    def bounds(self) -> list[tuple[Row, float]]:
        """The lower bound on ε of each audit that has one, as a row, and the ε accounted against its view."""
        found = []
        for audit in self.audits:
            if audit["epsilon"] is None:
                continue
            row = Row(
                question="audit", attack=f"one-run audit by {audit['attack']}", view=audit["view"],
                knowledge="canaries by a fair coin", group="canary", metric="epsilon_lower_bound",
                value=audit["epsilon"], low=None, high=None, ceiling=audit["ceiling"],
                note=f"{audit['correct']} of {audit['guesses']} guesses right, confidence {audit['confidence']:.4g}",
                samples=f"{audit['targets']} targets, {audit['canaries']} canaries",
            )  # fmt: skip
            found.append((row, self.accounted_against(audit["view"])))
        return found

    def attacks(self) -> list[str]:
        """The names of the membership attacks, in the configuration's order."""
        return list(dict.fromkeys(row.attack for row in self.rows if row.question == "membership"))

    def first_ranked(self) -> str:
        """The attack whose most vulnerable examples have pictures; empty where none has."""
        return first_ranked(self.attacks(), self.vulnerable)

    def row(self, question: str, metric: str, attack: str | None = None, group: str | None = None) -> Row | None:
        """The one row that fits, or None."""
        for row in self.rows:
            named = attack in (None, row.attack) and group in (None, row.group)
            if named and row.question == question and row.metric == metric:
                return row
        return None

    def label(self) -> str:
        """ε as figures write it, ∞ without a guarantee."""
        return "∞" if math.isinf(self.epsilon) else f"{self.epsilon:.4g}"


def stored(folder: Path) -> dict[str, Any]:
    """All that figures and tables need of a stored run, as plain values; InputError where it is missing or damaged."""
    run = store.load(folder)
    kept = {name: value for name, value in run.manifest.items() if name != "files"}
    try:
        leakage, (accuracy, _) = run.leakage(), history_of(store.RUNS / run.manifest["replicas"][0])
        return {"manifest": kept, "accuracy": accuracy, "leakage": leakage, **_pictures(folder, leakage)}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} was written by another version of Mirage ({error}); delete it and run again"
        ) from None


def _pictures(folder: Path, leakage: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures of a stored run: those of its probe round, and those that its headline attack finds best."""
    truth, _ = load_tensors(folder / "truth" / "truth.safetensors")
    shown: dict[str, Any] = {"probed": None, "exposed": None}
    if "true_images" in truth:
        found = read_back(load_tensors(folder / "reconstructions.safetensors")[0])
        chosen, true = found.selected()[:, 0].numpy(), truth["true_images"].numpy()
        likeness = zip(failed(chosen), psnr(completed(chosen), true), strict=True)
        shown["probed"] = {
            "true": true.tolist(),
            "true_labels": truth["true_labels"].tolist(),
            "found": completed(chosen).tolist(),
            "found_labels": found.selected_labels()[:, 0].tolist(),
            "psnr": [None if lost else float(decibels) for lost, decibels in likeness],
        }
    if len(truth.get("vulnerable_images", ())):
        names = (row["attack"] for row in leakage["rows"])
        ranked = leakage["vulnerable"][first_ranked(names, leakage["vulnerable"])]
        shown["exposed"] = {
            "images": truth["vulnerable_images"].tolist(),
            "labels": truth["vulnerable_labels"].tolist(),
            "planted": [bool(truth["canary"][one["example"]]) for one in ranked],
        }
    return shown


def first_ranked(names: Iterable[str], vulnerable: Mapping[str, Any]) -> str:
    """The attack whose most vulnerable examples have pictures: the first of the configuration that was not refused.

    `names` are in the configuration's order, as in the rows; JSON sorts `vulnerable`. Empty where none was ranked.
    """
    return next((name for name in names if name in vulnerable), "")


def _cell(cell: Mapping[str, Any]) -> CellResult:
    leakage, probed, exposed = cell["leakage"], cell["probed"], cell["exposed"]
    return CellResult(
        manifest=cell["manifest"],
        facts=leakage["cell"],
        rows=tuple(Row(**row) for row in leakage["rows"]),
        roc=leakage["roc"],
        audits=tuple(leakage["audits"]),
        vulnerable=leakage["vulnerable"],
        account=leakage["account"],
        accuracy=tuple(map(tuple, cell["accuracy"])),
        probed=None if probed is None else Probed(**_arrays(probed, "true", "found")),
        exposed=None if exposed is None else Exposed(**_arrays(exposed, "images")),
    )


def _arrays(fields: Mapping[str, Any], *pictures: str) -> dict[str, Any]:
    return {name: np.array(value) if name in pictures else tuple(value) for name, value in fields.items()}


def ordered(cells: Sequence[Mapping[str, Any]]) -> list[CellResult]:
    """The cells that `stored` made plain, in the order of a plot, each with what sets it apart."""
    found = [_cell(cell) for cell in cells]
    named = _variants(found)
    order = list(dict.fromkeys(named))
    found = [dataclasses.replace(cell, variant=name) for cell, name in zip(found, named, strict=True)]
    return sorted(found, key=lambda cell: (order.index(cell.variant), cell.epsilon))


def collect(folders: Sequence[Path]) -> list[CellResult]:
    """Load and order stored cells; InputError where one is missing or damaged, or there is none."""
    if not folders:
        raise InputError("there is no stored run to report on; run a sweep first")
    return ordered([stored(folder) for folder in folders])


def differing(cells: Sequence[CellResult]) -> tuple[list[str], list[dict[str, Any]]]:
    """The fields of the configuration in which cells differ, and each cell's own, flat.

    Of the defence those alone in which cells differ that have the same one, and not its ε.
    """
    configs = [
        flat({name: value for name, value in cell.manifest["config"].items() if name not in FREE}) for cell in cells
    ]
    kinds = {cell.facts["defense"] for cell in cells}
    alike = [[one for one, cell in zip(configs, cells, strict=True) if cell.facts["defense"] == kind] for kind in kinds]

    def differs(name: str) -> bool:
        if name.startswith("attack.membership.") or (name.startswith("defense.") and name.endswith(".epsilon")):
            return False
        among = alike if name.startswith("defense") else [configs]
        return any(len({repr(config.get(name, "")) for config in some}) > 1 for some in among)

    return [name for name in dict.fromkeys(name for config in configs for name in config) if differs(name)], configs


def _variants(cells: Sequence[CellResult]) -> list[str]:
    """What sets each cell apart from the others besides ε: the defence, by its name, and the fields that differ."""
    names, configs = differing(cells)
    defenses = [cell.facts["defense"] for cell in cells]

    def told(config: dict[str, Any], defense: str) -> str:
        parts = [defense] if len(set(defenses)) > 1 else []
        return ", ".join(parts + [_in_words(name, config[name]) for name in names if name in config])

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
