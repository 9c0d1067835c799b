"""What a cell's tasks leave on disk, and how the next ones read it: names, cuts and the calls that share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.observed import Signals
from experiments.cell import Cell
from fl_core.checkpoint import load_tensors
from fl_core.seeds import generator

PROBE_BATCH = 6
"""Victims attacked together; fixed, so that no worker count changes a number."""


def victims(cell: Cell) -> torch.Tensor:
    """The rows of the probe's victims: ordinary examples (of the client in question), drawn by the seed."""
    eligible = torch.nonzero(~cell.canary & cell.candidates).flatten()
    order = torch.randperm(len(eligible), generator=generator(cell.config["seed"], "victims"))
    return eligible[order][: cell.config["attack"]["victims"]]


def probe_parts(cell: Cell) -> int:
    return -(-len(victims(cell)) // PROBE_BATCH)


def score_one(cell: Cell, attack: str, signals: Signals, target: int, shadows: Any) -> np.ndarray[Any, Any]:
    """One target's scores [examples]. The attacker gets the target's signals, and its own shadows' membership."""
    members = cell.members.numpy()
    knowledge = MembershipKnowledge(shadows=Shadows(signals=signals.select(shadows), members=members[shadows]))
    scores: np.ndarray[Any, Any] = cell.membership_attacks[attack].run(signals.select([target]), knowledge)
    return scores


def stored_signals(folder: Path, cell: Cell) -> Signals:
    """The signals of all replicas."""
    parts = [load_tensors(folder / f"train-{shard}.safetensors")[0]["outputs"] for shard in range(len(cell.shards()))]
    return Signals(labels=cell.pool.labels.cpu().numpy(), logits=torch.cat(parts).unsqueeze(1).numpy())


def stored_scores(folder: Path, attack: str, cell: Cell) -> np.ndarray[Any, Any]:
    """Scores of one attack [replicas, examples], each replica as the target."""
    parts = [load_tensors(folder / f"score-{attack}-{start}.safetensors")[0] for start, _ in target_parts(cell)]
    return torch.cat([part["scores"] for part in parts]).numpy()


def target_parts(cell: Cell) -> list[tuple[int, int]]:
    """Targets scored by one task; two halves."""
    half = -(-cell.replicas // 2)
    return [(0, half), (half, cell.replicas)]
