"""From a sweep's cells or a study's records to one HTML page that holds everything it shows."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from experiments import tables
from experiments.collect import CellResult
from experiments.html import alarms, pictures, rows, words
from experiments.html.alarms import Alarm
from experiments.html.pictures import Album
from experiments.html.rows import Columns
from experiments.record import Record
from experiments.reproduce.base import Reproduction, verdict_table, verdicts
from experiments.studies.base import Values, make_study
from fl_core.errors import InputError

HERE = Path(__file__).parent
SCRIPTS = ("core.js", "table.js", "axis.js", "plot.js", "pictures.js")
"""What runs before the page answers; `last.js` then has Plotly read."""
PICTURES = 3_000_000
"""Characters that the pictures of a page may take together."""

OPEN_FINDINGS = 3
"""Findings in words that are unfolded from the start."""
LEVELS = {"broken": "Contradiction", "failed": "Failed", "blind": "Below blind"}


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a sweep and a study fill in differently. `facts` are the tiles below the title."""

    question: Sequence[str]
    findings: Sequence[str]
    alarms: Sequence[Alarm]
    quiet: str
    promises: Sequence[words.Promise]
    epsilons: str
    columns: Columns
    x: str
    fpr: float | None
    walls: Sequence[pictures.Wall]
    exposed: Sequence[dict[str, Any]]
    runs: Sequence[dict[str, Any]]
    facts: Sequence[dict[str, str]]
    place: str
    album: Album


def of_sweep(cells: Sequence[CellResult], manifest: Mapping[str, Any]) -> Content:
    """A sweep's page; `manifest` is that of its folder."""
    columns = rows.of_cells(cells)
    album = Album(PICTURES)
    failed = manifest.get("failed", [])
    found = alarms.of_cells(cells, failed)
    first = tables.headline_attack(cells)
    labels = {cell.manifest["hash"]: pictures.named(cell) for cell in cells}
    facts = [_fact("cells", str(len(cells)), f"{len(failed)} failed" if failed else "all finished"), _alarm_fact(found)]
    for group in ("canary", "ordinary"):
        known = [
            (row.value, cell) for cell in cells if (row := cell.row("membership", "auc", first, group)) and row.value
        ]
        if known:
            value, cell = max(known, key=lambda one: one[0])
            facts.append(_fact(f"highest AUC, {group}", f"{value:.3f}", f"{first}, {pictures.named(cell)}"))
    facts.append(_fact("replicas", str(manifest["replicas"]), "independent federations a cell"))
    return Content(
        question=[words.asked(columns), words.federation(cells)],
        findings=tables.in_words(cells, _whose(cells)),
        alarms=found,
        quiet="No audit contradicts the accounting, no attack is below its blind baseline, and no cell failed.",
        promises=words.promises(cells),
        epsilons="",
        columns=columns,
        x="epsilon" if len({cell.epsilon for cell in cells}) > 1 or not cells[0].variant else "variant",
        fpr=cells[0].facts["fpr"],
        walls=pictures.of_cells(cells),
        exposed=pictures.exposed(cells, album),
        runs=[_run(one["run"], labels.get(one["run"], one["epsilon"]), one) for one in manifest["cells"]],
        facts=facts,
        place="cell",
        album=album,
    )


def _whose(cells: Sequence[CellResult]) -> str:
    """ "Alice's " where a sweep attacked one client's examples; empty where it attacked everybody's."""
    config = cells[0].manifest["config"]
    about, names = config["about"], config["client_names"]
    return "" if about is None else f"{names[about] if names else f'client {about}'}'s "


def of_study(records: Sequence[Values], manifest: Mapping[str, Any]) -> Content:
    """A study's page; `records` are in the order of the manifest's points."""
    columns = rows.of_points(records, manifest)
    found = alarms.of_points(records, manifest)
    points = manifest["points"]
    labels = [alarms.in_words(one["point"]) for one in points]
    walls = [
        wall
        for record, point, label in zip(records, points, labels, strict=True)
        for wall in pictures.of_record(record, label, point["hash"])
    ]
    return Content(
        question=[one for one in words.study_question(str(manifest["config"]["study"]["_target_"])) if one],
        findings=_judged(records, manifest["config"]["study"]),
        alarms=found,
        quiet="No point failed; where one has an accounted ε or a blind baseline, no bound is above the one, and no "
        "attack below the other.",
        promises=[],
        epsilons=words.study_epsilons(columns, manifest["config"]),
        columns=columns,
        x=_study_axis(columns),
        fpr=None,
        walls=walls,
        exposed=[],
        runs=[_run(point["hash"], label, point) for point, label in zip(points, labels, strict=True)],
        facts=[_fact("points", str(len(points)), "each a stored run"), _alarm_fact(found)],
        place="point",
        album=Album(PICTURES),
    )


def _judged(records: Sequence[Values], study: Mapping[str, Any]) -> list[str]:
    """A reproduction's published numbers beside ours, with the verdicts, in words; of another study nothing."""
    if not str(study["_target_"]).startswith("experiments.reproduce."):
        return []
    made = make_study(study)
    assert isinstance(made, Reproduction)
    lines = verdict_table([one for one in verdicts(made, records) if one.published]).lines
    return [
        f"{what}: published {theirs}, ours {ours}: {verdict}{f' ({why})' if why else ''}."
        for what, theirs, ours, _, verdict, why in lines
    ]


def _study_axis(columns: Columns) -> str:
    """The field to start with on the x axis: the setting as a whole where several fields make it, else the only one."""

    own = [column["name"] for column in columns if column["own"] and len(rows.distinct(column)) > 1]
    wanted = ("setting", "epsilon", *own)
    return next((name for name in wanted if name in own), "metric")


def _fact(what: str, value: str, more: str, tone: str = "") -> dict[str, str]:
    return {"what": what, "value": value, "more": more, "tone": tone}


def _alarm_fact(found: Sequence[Alarm]) -> dict[str, str]:
    counts = {level: sum(one.level == level for one in found) for level in LEVELS}
    tone = "bad" if counts["broken"] or counts["failed"] else "warn" if found else "good"
    told = [f"{count} {LEVELS[level].lower()}" for level, count in counts.items() if count]
    return _fact("alarms", str(len(found)), ", ".join(told) or "nothing contradicts", tone)


def _run(run: str, label: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    held = facts.get("hardware") or {}
    cores = [f"{held['cores']} cores"] if "cores" in held else []
    hardware = ", ".join([*(str(held[name]) for name in ("gpu", "processor") if name in held), *cores])
    return {
        "hash": run,
        "label": label,
        "seconds": facts["seconds"],
        "revision": facts["revision"],
        "hardware": hardware,
    }


def page(found: Record, command: str) -> str:
    """The page of a results folder; `command` is what draws it. InputError where Plotly is not installed."""
    manifest = found.manifest
    content = of_sweep(found.cells, manifest) if found.cells else of_study(found.points, manifest)
    hung, left_out = pictures.hung(content.walls, content.album)
    columns = content.columns
    names = {column["name"]: column for column in columns}
    if "metric" not in names:
        raise InputError(f"results/{manifest['name']} holds no measured row, so there is nothing to explore")
    metrics = words.metric_words(rows.distinct(names["metric"]), content.fpr)
    known = words.attackers(columns)
    count = len(rows.entries(names["metric"]))
    sections = {
        "alarms": "Alarms",
        "question": "Threat model",
        "guarantees": "Guarantees",
        "leakage": "Leakage"
        if content.x not in names or content.x == "metric"
        else f"Leakage against {names[content.x]['head']}",
        "cells": "Rows",
        "gallery": "Reconstructions" if hung else "",
        "exposed": "Most exposed" if content.exposed else "",
        "manifest": "How it was made",
    }
    data = {
        "columns": columns,
        "count": count,
        "metrics": metrics,
        "chance": words.CHANCE,
        "x": content.x,
        "place": content.place,
        "pictures": content.album.addresses,
        "walls": hung,
        "exposed": content.exposed,
    }
    script, plotly = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS), _plotly()
    last = (HERE / "last.js").read_text(encoding="utf-8")
    attacks = len({name for one in known for name in one.names})  # none where a study's rows do not say whose they are
    facts = [
        *content.facts[:2],
        _fact(
            "measured rows",
            f"{count:,}",
            f"by {words.counted(attacks, 'attack or guess', 'attacks and guesses')}" if attacks else "",
        ),
        *content.facts[2:],
    ]
    return str(
        _template().render(
            policy=_policy([script, plotly, last]),
            title=manifest["title"],
            name=f"results/{manifest['name']}",
            styles=Markup(
                pictures.BASE.read_text(encoding="utf-8") + (HERE / "report.css").read_text(encoding="utf-8")
            ),
            facts=facts,
            sections={key: told for key, told in sections.items() if told},
            alarms=content.alarms,
            blind=[one for one in content.alarms if one.level == "blind"],
            levels=LEVELS,
            quiet=content.quiet,
            place=content.place,
            question=content.question,
            findings=content.findings,
            judged=not found.cells,
            shown=OPEN_FINDINGS,
            views=words.SEEN,
            used=words.views_used(columns),
            attackers=known,
            letters=words.LETTERS,
            letters_used={one.letter for one in known if one.letter},
            promises=content.promises,
            epsilons=content.epsilons,
            left_out=f"{left_out} pairs are left out to keep this file small." if left_out else "",
            manifest=manifest,
            command=command,
            circumstances=_circumstances(manifest, content.runs),
            runs=content.runs,
            stored=words.counted(len(content.runs), "stored run", "stored runs"),
            config=json.dumps(manifest["config"], indent=2, ensure_ascii=False),
            data=Markup(_inert(data)),
            script=Markup(script),
            plotly=Markup(plotly),
            last=Markup(last),
        )
    )


def _circumstances(manifest: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    hardware = dict.fromkeys(str(one["hardware"]) for one in runs)
    revisions = dict.fromkeys(str(one["revision"]) for one in runs)
    return {
        "seed": str(manifest["seed"]),
        "seconds, all runs": f"{manifest['seconds']:,}",
        "hardware": "; ".join(hardware),
        "code revision": ", ".join(revisions),
        **{name: str(version) for name, version in manifest["versions"].items()},
    }


def _inert(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in, whatever a label says."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy: no network, and no script but these."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def _plotly() -> str:
    """Plotly's own bundle; InputError where the extra is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError("the report needs Plotly: pip install 'mirage-fl[report]'") from None
    script = str(get_plotlyjs())
    if "</script" in script.lower():
        raise InputError(
            "this version of Plotly cannot stand inside a page; install the tested one, of constraints.txt"
        )
    return script


def _template() -> Template:
    loader = FileSystemLoader(HERE)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")
