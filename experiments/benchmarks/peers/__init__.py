"""What else one would use for the same federation: a plain PyTorch loop, pfl-research, Flower.

Each is a program, `python -m experiments.benchmarks.peers.plain` (or `pfl_peer`, `flower_peer`), that plays FedAvg on
MNIST, prints one JSON object as its last line and can be run in an environment of its own; `measure` does so.

The peers' own pins contradict a few of `constraints.txt` (packaging, dp-accounting, protobuf, ray), so they are tested
with pins of their own; torch, numpy and whatever else decides about speed are the same version in both:

    uv venv .venv/bench
    uv pip install --python .venv/bench -c experiments/benchmarks/peers/constraints.txt -e '.[bench,dev]'
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PEERS = ("plain", "pfl_peer", "flower_peer", "mirage_peer")


def measure(
    peer: str, arguments: Sequence[str], python: str | Path = sys.executable, timeout: float = 1800.0
) -> dict[str, Any]:
    """The result of one of PEERS, played in a process of its own by the interpreter `python`.

    Raises RuntimeError with the end of what the process said where it fails, and subprocess.TimeoutExpired where it
    takes more than `timeout` seconds.
    """
    command = [str(python), "-m", f"{__name__}.{peer}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
