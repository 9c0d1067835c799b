"""What one update of a real deployment gives away: `python -m experiments.attack_update option=value ...`.

python -m experiments.attack_update update=U.safetensors global=G.safetensors model=package.module:factory \\
    shape=[3,32,32] batch_size=4

Writes results/<name>/: page.html and pictures.png to look at, reconstruction.safetensors and summary.json to go on
with. The same command goes on where it was interrupted. The options, of conf/attack_update.yaml:

"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors.torch import save

from attacks.reconstruction.base import Reconstruction
from experiments import store
from experiments.own_update.attacks import attack, attacks_for
from experiments.own_update.case import Case, case_of
from experiments.own_update.options import Options, read
from experiments.own_update.page import figure_of, page, threat_model, verdict
from experiments.own_update.trust import Scores, Trust, scores, trust, truth_of
from experiments.terminal import command, one_line_errors, progress
from fl_core.checkpoint import write_bytes, write_json


def perform(options: Options, told: str) -> Path:
    """Attack, and write the folder; `told` is the command line. InputError, and nothing written, for bad input."""
    began = time.monotonic()
    case = case_of(options)
    attacks = attacks_for(case, options.attack, options.changes)
    truth = truth_of(options)
    partial = store.partial(options.folder) / options.fingerprint()
    done = [0]
    with progress(sum(one.iterations for one in attacks), lambda: done[0], options.folder.name, "it"):
        answer, answers = attack(case, attacks, options, partial, lambda count: done.__setitem__(0, count))
    trusted = trust(case, answer, options.seed)
    scored = None if truth is None else scores(*truth, case, answer)
    summary = _summary(options, case, answer, answers, trusted, scored)
    summary |= {"command": told, "seconds": round(time.monotonic() - began, 1)} | store.circumstances(case.device)
    write(
        options.folder,
        {
            "pictures.png": figure_of(answer, scored),
            "reconstruction.safetensors": save(
                {
                    "images": answer.selected()[0].contiguous(),
                    "labels": answer.selected_labels()[0].contiguous(),
                    "objective": answer.objective[0].contiguous(),
                }
            ),
            "page.html": page(options, case, answer, answers, trusted, scored, told).encode(),
        },
        summary,
    )
    shutil.rmtree(store.partial(options.folder), ignore_errors=True)
    labels = ", ".join(map(str, summary["labels"]))
    print(f"{summary['attack']} answered: {verdict(answer, trusted)} Labels: {labels}.")
    if scored is not None:
        print(f"PSNR, picture by picture: {', '.join(f'{value:.1f}' for value in scored.psnr)} dB")
    return options.folder


def _summary(
    options: Options,
    case: Case,
    answer: Reconstruction,
    answers: Mapping[str, Mapping[str, Any]],
    trusted: Trust,
    scored: Scores | None,
) -> dict[str, Any]:
    """summary.json, but for the circumstances."""
    found: dict[str, Any] = {
        "options": {name.rstrip("_"): value for name, value in dataclasses.asdict(options).items()},
        "threat_model": threat_model(options, case),
        "classes": case.knowledge.classes,
        "attack": answer.method[0],
        "exact": bool(answer.exact[0]),
        "labels": answer.selected_labels()[0].tolist(),
        "evaluations": sum(int(one["evaluations"]) for one in answers.values()),
        "attacks": answers,
        "trust": dataclasses.asdict(trusted) | {"share": trusted.share, "words": trusted.in_words()},
    }
    if scored is not None:
        found["scores"] = {name: value for name, value in vars(scored).items() if name != "truth"}
    return found


def _no_infinities(value: Any) -> Any:
    """null for what is not finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: _no_infinities(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_no_infinities(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: Path, parts: Mapping[str, bytes], summary: Mapping[str, Any]) -> None:
    """All files of the folder: one that is new comes whole, in one that is there each file is replaced whole."""
    there = folder.exists()
    into = folder if there else store.partial(folder) / "finished"
    for name, data in parts.items():
        write_bytes(into / name, data)
    write_json(into / "summary.json", _no_infinities(summary))
    if not there:
        os.replace(into, folder)


def main() -> None:
    overrides: Sequence[str] = sys.argv[1:]
    if {"-h", "--help"} & set(overrides):
        print(__doc__ + (files("conf") / "attack_update.yaml").read_text(encoding="utf-8"))
        return
    with one_line_errors(debug="debug=true" in overrides):
        folder = perform(read(overrides), command())
        print("Open:", *(f"  {folder}/{name}" for name in ("page.html", "pictures.png", "summary.json")), sep="\n")


if __name__ == "__main__":
    main()
