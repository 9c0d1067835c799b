"""Runs on disk: `results/runs/<hash>/`, written under a temporary name, checked when read, never unpickled.

Replicas are stored as `experiments.replicas` says, so that another question about them trains nothing. A cell is
manifest.json            config, its replicas, revision, versions, hardware, guarantees, timings, every file's checksum
leakage.json             what each attack learned, with intervals: what tables and figures are drawn from
scores.parquet           every score of every membership attack
observations.safetensors what the observer of the probe round saw
reconstructions.safetensors what the reconstruction made of it
truth/                   members, canaries, owners, victims: for scorers only

A study's point (experiments/studies) is stored the same way, as manifest.json and record.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import filelock
import torch

from fl_core.checkpoint import write_json
from fl_core.errors import InputError

FORMAT = 1
"""Part of every hash: raise it when stored runs of an older Mirage must not be mixed with new ones."""

RESULTS = Path("results")
RUNS = RESULTS / "runs"


def check_place(name: object) -> None:
    """InputError unless results/<name>/ is a folder that can be written to; nothing is made."""
    parts = str(name).split("/") if isinstance(name, str | int) and not isinstance(name, bool) else []
    if not parts or not all(re.fullmatch(r"\w[\w .+=,-]*", part) for part in parts):
        raise InputError(
            f"name is {name!r}; it is a folder under {RESULTS}/, or several as in a/b; each must begin with a letter "
            "or a digit and hold no more than letters, digits, spaces and . _ + = , -"
        )
    if parts[0] == RUNS.name:
        raise InputError(f"name is {str(name)!r}, but {RUNS}/ is where stored runs are kept; choose another name")
    for folder in (RUNS, RESULTS.joinpath(*parts)):
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not there.is_dir():
            raise InputError(f"{there} is a file, and {folder} is to be a folder; move it, or choose another name")
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"{there} cannot be written to; change its permissions, or call from another folder")


PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "opacus", "dp-accounting", "hydra-core")


def run_hash(config: dict[str, Any], data_fingerprint: str) -> str:
    """The name of a run: its resolved configuration, the data's own checksum and the store's format."""
    text = json.dumps([FORMAT, data_fingerprint, config], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def partial(run: Path) -> Path:
    """Beside where a run is to be stored, the folder of what is not finished: its lock, its pieces, why it failed."""
    return run.with_name(f"{run.name}.partial")


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")


def finish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Seal a run: write its manifest with all checksums and rename the folder to its final name."""
    files = {str(path.relative_to(partial)): _checksum(path) for path in _files(partial)}
    write_json(partial / "manifest.json", {**manifest, "files": files})
    os.replace(partial, final)


def run_once(final: Path, work: Callable[[Path], None], wait: bool, fields: Sequence[str]) -> None:
    """Have `work` (pieces) done once, by whoever comes first; where `final` exists already, it is only checked.

    `work` seals into `final` what it made in the folder `pieces`, and goes on from what an earlier call left there.
    Raises InputError where another process is at the same run (unless told to `wait` for it), or the stored run is
    damaged or lacks one of `fields`.
    """
    pieces = partial(final)
    checked = final.exists()
    while not final.exists():
        pieces.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(pieces / "lock", timeout=-1 if wait else 0):
                if not final.exists():
                    work(pieces)
        except filelock.Timeout:
            raise InputError(f"another process is at this run ({pieces}); wait for it, or stop it") from None
        except FileNotFoundError:  # whoever was waited for has finished, and swept the lock away
            if not final.exists():
                raise
    if checked:
        load(final, fields)
    shutil.rmtree(pieces, ignore_errors=True)


@dataclass(frozen=True)
class StoredRun:
    """A finished run whose files have been checked."""

    folder: Path
    manifest: dict[str, Any]

    def leakage(self) -> dict[str, Any]:
        """What its leakage.json says."""
        found: dict[str, Any] = json.loads((self.folder / "leakage.json").read_text(encoding="utf-8"))
        return found


CELL = ("hash", "config", "versions", "hardware", "seconds", "guarantees", "cell", "replicas")
"""What the manifest of a sweep's cell holds."""

REPLICAS = ("hash", "config", "versions", "hardware", "seconds", "view")
"""What the manifest of a population holds."""


def load(folder: Path, fields: Sequence[str] = CELL) -> StoredRun:
    """Open a finished run whose manifest has these `fields`.

    InputError where it is missing, damaged or altered, naming the file and the cure.
    """
    cure = f"delete the folder {folder} and run the sweep again"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        for name in fields:
            manifest[name]
    except FileNotFoundError:
        raise InputError(f"{folder} holds no finished run; run the sweep first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder}/manifest.json is damaged; {cure}") from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {cure}")
        if _checksum(path) != expected:
            raise InputError(f"{path} is damaged or was altered; {cure}")
    return StoredRun(folder, manifest)


def older(runs: Mapping[Path, str], what: str = "cells") -> list[str]:
    """A note where stored `runs`, with their revisions, come from another state of the code: they were not run again.

    `what` they are called.
    """
    now = revision()
    found = [str(folder) for folder, its in runs.items() if its != now]
    if not found:
        return []
    return [
        f"Note: {len(found)} of {len(runs)} {what} were run by another revision of the code; "
        f"to run them again, delete their folders: {', '.join(found)}"
    ]


def circumstances(device: torch.device) -> dict[str, Any]:
    """Code revision, package versions and hardware, for a manifest."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    hardware = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {"versions": versions, "hardware": hardware, "revision": revision()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def revision() -> str:
    """The code's commit, with "+changes" where it was edited since; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml"],
            cwd=here.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
