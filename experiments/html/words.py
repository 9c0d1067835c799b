"""The question and the threat model in words: who watches, what each attack knows, and what is promised."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from attacks.reconstruction.fishing import Fishing
from attacks.reconstruction.imprint import Imprint
from attacks.reconstruction.inconsistency import ModelInconsistency
from attacks.reconstruction.label_flip import LabelFlip
from attacks.reconstruction.loki import Loki
from attacks.reconstruction.traps import TrapWeights
from experiments.collect import CellResult
from experiments.html import rows
from experiments.html.pictures import named
from experiments.html.rows import Columns
from experiments.studies.reconstructions import ATTACKS
from fl_core.views import VIEWS


@dataclass(frozen=True)
class View:
    """An observer: who it is, and what it sees."""

    name: str
    who: str
    sees: str


SEEN = (
    View("released_model", "anyone, afterwards", "the final model, or its outputs"),
    View("participant", "a client", "every global model that it is sent"),
    View("secure_server", "an honest-but-curious server under secure aggregation",
         "the sum of the updates, the cohort, who dropped out, and the global models"),
    View("server", "an honest-but-curious server",
         "each client's own update and weight, the cohort, and the global models"),
    View("malicious_server", "a server that also chooses what it sends",
         "what a secure server sees, and its own broadcast to each client"),
)  # fmt: skip


@dataclass(frozen=True)
class Letter:
    """A class of attackers in the taxonomy of Carletti et al., "SoK: Gradient Inversion Attacks", USENIX Sec. 2025."""

    letter: str
    name: str
    knows: str


LETTERS = (
    Letter("A", "eavesdropper", "the updates"),
    Letter("B", "informed eavesdropper", "the updates, the model and the task"),
    Letter("C", "parameter-aware", "as B, and the details of training"),
    Letter("D", "data-enhanced", "as C, and surrogate data"),
    Letter("E", "statistics-informed", "as D, and the client's distribution"),
    Letter("F", "active manipulator", "as C, and it changes what it sends"),
    Letter("G", "data-enhanced manipulator", "as F, and surrogate data"),
    Letter("H", "active client manipulator", "as G, and it picks clients"),
)

METRICS = {
    "accuracy": "test accuracy",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "epsilon": "ε",
    "epsilon_lower_bound": "audited lower bound on ε",
    "label_recall": "share of labels found",
    "psnr": "PSNR, dB",
    "psnr_median": "median PSNR, dB",
    "psnr_oracle": "PSNR of the best restart in hindsight, dB",
    "rank_stability": "rank correlation of two halves of the replicas",
    "readable": "share above 20 dB",
    "ssim": "SSIM",
    "tpr": "TPR at a low FPR",
}
"""What an axis says of a metric; another one is called by its name."""

CHANCE = {"auc": 0.5, "balanced_accuracy": 0.5}
"""What a coin would score."""


def metric_words(names: Iterable[str], fpr: float | None) -> dict[str, str]:
    """What to call each metric; `fpr` is the false-positive rate that `tpr` belongs to."""
    found = {}
    for name in names:
        rate = fpr if name == "tpr" else _number(name.removeprefix("tpr_at_"))
        rated = rate is not None and name.startswith("tpr")
        found[name] = f"TPR at {rate:.3g} FPR" if rated else METRICS.get(name, name.replace("_", " "))
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Attacker:
    """Attacks that were told the same: the view that they need, their letter where the taxonomy has one, and what."""

    names: tuple[str, ...]
    view: str
    letter: str
    knowledge: str
    question: str


def attackers(columns: Columns) -> list[Attacker]:
    """Every attack among the rows, those together that share a view and were told the same."""
    texts = {column["name"]: rows.entries(column) for column in columns if column["kind"] == "text"}
    named = [texts[name] for name in ("by", "attack") if name in texts][:1]
    others = [texts.get(name) for name in ("view", "knowledge", "question")]
    if not named:
        return []
    nothing = [""] * len(named[0])
    told = dict.fromkeys(zip(named[0], *(nothing if one is None else one for one in others), strict=True))
    known: dict[tuple[str, str, str, str], list[str]] = {}
    for name, view, knowledge, question in told:
        if name:
            letter, words = _lettered(knowledge)
            letter = letter or own_letter(name)
            known.setdefault((name, view, letter, question), []).append(words)
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for (name, view, letter, question), all_words in known.items():
        if name.startswith("blind"):
            view, letter, all_words = "", "", [NOTHING]
        alike.setdefault((view, letter, _shortened(all_words), question), []).append(name)
    return [
        Attacker(tuple(dict.fromkeys(names)), view, letter, words, question)
        for (view, letter, words, question), names in alike.items()
    ]


NOTHING = "nothing of the target: neither the model nor an update"


MALICIOUS: dict[str, Any] = {
    "imprint": Imprint,
    "traps": TrapWeights,
    Loki.name: Loki,
    Fishing.name: Fishing,
    LabelFlip.name: LabelFlip,
    ModelInconsistency.name: ModelInconsistency,
}
"""Attacks of a malicious server by the start of what studies call them; those on updates are in `studies`."""


def own_letter(name: str) -> str:
    """The letter that an attack of that name has by itself; empty where it has none, or none is known here."""
    if name in ATTACKS:
        return str(ATTACKS[name](restarts=2, iterations=1).letter)
    return next((str(kind.letter) for start, kind in MALICIOUS.items() if name.startswith(start)), "")


def _lettered(knowledge: str) -> tuple[str, str]:
    """ "B: the model, …" as the letter and the rest."""
    match = re.match(r"([A-H]): (.*)", knowledge, re.DOTALL)
    return (match[1], match[2]) if match else ("", knowledge)


def _shortened(knowledge: Sequence[str], most: int = 3) -> str:
    more = len(knowledge) - most
    return "; or ".join(knowledge[:most]) + (f"; or {more} more, in the table below" if more > 0 else "")


def views_used(columns: Columns) -> set[str]:
    """The names of the views under which anything was measured."""
    return {
        value for column in columns if column["name"] == "view" for value in rows.distinct(column) if value in VIEWS
    }


QUESTIONS = {
    "membership": "was a given example among the training data (membership inference)",
    "reconstruction": "what did the pictures behind an update look like (reconstruction)",
    "audit": "how large must ε at least be, given what an attack told apart (audit)",
}
"""What the rows of a question ask."""


def asked(columns: Columns) -> str:
    """The questions of a sweep's rows, as one sentence."""
    found = next(rows.distinct(column) for column in columns if column["name"] == "question")
    told = [words for name, words in QUESTIONS.items() if name in found]
    return f"Asked: {'; '.join(told)}. And what does it cost: test accuracy." if told else ""


def federation(cells: Sequence[CellResult]) -> str:
    """What was trained in a sweep, in two sentences."""
    config, facts = cells[0].manifest["config"], cells[0].facts
    replicas, who = config["replicas"], counted(config["clients"], "client trains", "clients train")
    parts = [
        f"{who} {_made(config['model'])} with {_made(config['algorithm'])} for "
        f"{config['rounds']} rounds on {_made(config['data'])}: {facts['examples']:,} examples, "
        f"{facts['parameters']:,} parameters, {len(facts['classes'])} classes, "
        f"data split {_made(config['partition'])}.",
        f"{replicas} independent replicas, in each of which an example is a member with a chance of "
        f"{config['membership']:g}",
    ]
    planted = f" and {config['canaries']:.0%} of the examples carry a wrong label on purpose (canaries)"
    return " ".join(parts) + (planted if config["canaries"] else "") + "."


def counted(number: int, one: str, more: str) -> str:
    """A number with its noun: "1 run", "7 runs"."""
    return f"{number:,} {one if number == 1 else more}"


def _made(group: Mapping[str, Any]) -> str:
    return str(group["_target_"]).rsplit(".", 1)[-1]


def study_question(target: str) -> tuple[str, str]:
    """What a study asks, from its module's docstring: the first line, and the next paragraph.

    Both are empty where it cannot be imported: the report of a study that is not installed here is drawn all the same.
    """
    try:
        text = inspect.getdoc(import_module(target.rsplit(".", 1)[0])) or ""
    except ImportError:
        return "", ""
    first, _, rest = text.partition("\n")
    return first, " ".join(rest.strip().partition("\n\n")[0].split())


@dataclass(frozen=True)
class Promise:
    """What is guaranteed, against which views, in which cells. `epsilon` is None where nothing is."""

    words: str
    views: str
    where: tuple[str, ...]
    unit: str
    epsilon: float | None


def promises(cells: Sequence[CellResult]) -> list[Promise]:
    """The privacy statements of a sweep, cells and views to which the same is promised together."""
    told: dict[str, tuple[dict[str, None], dict[str, None], dict[str, Any]]] = {}
    for cell in cells:
        label = named(cell)
        for statement in cell.account["guarantees"].values():
            where, against, _ = told.setdefault(statement["promise"], ({}, {}, statement))
            where[label], against[statement["view"]] = None, None
    order = list(VIEWS)
    found = [
        Promise(words, ", ".join(sorted(against, key=order.index)), tuple(where), one["unit"], one["epsilon"])
        for words, (where, against, one) in told.items()
    ]
    return sorted(found, key=lambda one: (one.epsilon is None, one.unit != "example", one.epsilon or 0.0))


def study_epsilons(columns: Columns, config: Mapping[str, Any]) -> str:
    """What ε is in a study, whose points hold no privacy statements; empty where it has none."""
    found = next((column for column in columns if column["name"] == "epsilon"), None)
    if found is None:
        return _measured_epsilons(columns, config)
    values = [f"{one:g}" if found["kind"] == "number" else one for one in sorted(rows.distinct(found)) if one != ""]
    delta = config.get("study", {}).get("delta")
    accounted = ", as accounted beside it" if any(column["name"] == "accounted" for column in columns) else ""
    return (
        f"ε is what the noise at a point was calibrated to{accounted}: {', '.join(values)}"
        + (f", at δ = {delta:g}" if isinstance(delta, float) else "")
        + "; ∞ stands for points without a guarantee. A ceiling, where there is one, is the most that ε allows."
    )


def _measured_epsilons(columns: Columns, config: Mapping[str, Any], most: int = 3) -> str:
    """Where no setting of a study is an ε: that some of its numbers are; empty where none is."""
    named = [str(one) for column in columns if column["name"] == "metric" for one in rows.distinct(column)]
    found = [f"“{METRICS.get(one, one)}”" for one in named if one == "epsilon" or one.startswith("ε")]
    if not found:
        return ""
    delta = config.get("study", {}).get("delta")
    more = f" and {len(found) - most} more" if len(found) > most else ""
    at = f", at δ = {delta:g}" if isinstance(delta, float) else ""
    return (
        f"ε is no setting of this study but measured: it stands among the rows, as {', '.join(found[:most])}{more}{at}."
    )
