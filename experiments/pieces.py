"""What a cell's tasks leave on disk, and how the next ones read it: names, cuts and the calls that share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.base import MembershipKnowledge, Shadows
from attacks.membership.observed import Signals
from attacks.membership.reading import narrow
from attacks.membership.series import derive
from experiments import replicas
from experiments.cell import Cell
from fl_core.checkpoint import load_tensors
from fl_core.seeds import generator

PROBE_BATCH = 6
"""Victims attacked together; fixed, so that no worker count changes a number."""


def victims(cell: Cell) -> torch.Tensor:
    """The rows of the probe's victims: ordinary examples (of the client in question), drawn by the seed."""
    eligible = torch.nonzero(~cell.targets.canary & cell.candidates).flatten()
    order = torch.randperm(len(eligible), generator=generator(cell.config["seed"], "victims"))
    return eligible[order][: cell.config["attack"]["victims"]]


def probe_parts(cell: Cell) -> int:
    """Into how many tasks the probe's victims are cut."""
    return -(-len(victims(cell)) // PROBE_BATCH)


@dataclass(frozen=True)
class Gallery:
    """All that was read of the targets and of the replicas that serve as shadows, and who was a member of these.

    A target's own membership is here where targets are one another's shadows, and is never handed out with the target.
    """

    cell: Cell
    targets: Signals
    shadows: Signals
    members: NDArray[np.bool_]
    about: MembershipKnowledge
    _narrowed: dict[type[Signals], tuple[Signals, Signals]] = field(default_factory=dict)

    @classmethod
    def of(cls, cell: Cell, runs: Path) -> Gallery:
        """From the populations of `cell` that are stored in the folder `runs`."""
        read = [replicas.signals_of(runs / one.hash) for one in cell.populations]  # one, where targets are the shadows
        targets, public = cell.targets, cell.targets.public
        about = MembershipKnowledge(
            owners=targets.owners.numpy(),
            images=targets.pool.images.cpu().numpy(),
            public_images=None if public is None else public.images.cpu().numpy(),
            public_labels=None if public is None else public.labels.cpu().numpy(),
        )
        return cls(cell, read[0], read[-1], cell.populations[-1].members.numpy(), about)

    def run(self, attack: str, target: int, among: Sequence[int] | None = None) -> NDArray[np.float64]:
        """One target's scores [examples] by the attack of that name, which sees what its view shows and no more.

        `among` are the shadows that it may use; None: all that the cell allows.
        """
        method = self.cell.membership_attacks[attack]
        targets, shadows = self._seen(method.needs)
        chosen = np.array(shadows_of(self.cell, target) if among is None else among)
        theirs = Shadows(signals=shadows.select(chosen), members=self.members[chosen])
        scores: NDArray[np.float64] = method.run(targets.select([target]), replace(self.about, shadows=theirs))
        return scores

    def _seen(self, kind: type[Signals]) -> tuple[Signals, Signals]:
        """The targets' signals and the shadows', as `kind`, with what most attacks derive from them, once."""
        if kind not in self._narrowed:
            targets = narrow(self.targets, kind)
            shadows = targets if self.shadows is self.targets else narrow(self.shadows, kind)
            for one in (targets, shadows):
                derive(one)
                _ = one.public_logits is None or one.public_confidence
            self._narrowed[kind] = (targets, shadows)
        return self._narrowed[kind]


def shadows_of(cell: Cell, target: int) -> list[int]:
    """The rows of a target's shadows: the attacker's own, or the other targets in a circle after it.

    A partner, which holds what the target does not, is left out: its membership is the target's.
    """
    references = cell.config["attack"]["references"]
    if cell.shadows is not None:
        return list(range(cell.shadows.replicas))[:references]
    count = cell.targets.replicas
    others = [(target + step) % count for step in range(1, count)]
    if cell.config["design"] == "pairs":
        others = [other for other in others if other // 2 != target // 2]
    return sorted(others[:references])


def audited(cell: Cell) -> tuple[list[int], list[int]]:
    """The targets of an audit and the shadows that it may use, none of which is a target."""
    if cell.shadows is not None:
        return list(range(cell.targets.replicas)), shadows_of(cell, 0)
    (_, half), _ = target_parts(cell)
    return list(range(half)), list(range(half, cell.targets.replicas))[: cell.config["attack"]["references"]]


def stored_scores(folder: Path, attack: str, cell: Cell) -> NDArray[np.float64]:
    """Scores of one attack [replicas, examples], each replica as the target."""
    parts = [load_tensors(folder / f"score-{attack}-{start}.safetensors")[0] for start, _ in target_parts(cell)]
    found: NDArray[np.float64] = torch.cat([part["scores"] for part in parts]).numpy()
    return found


def target_parts(cell: Cell) -> list[tuple[int, int]]:
    """Targets scored by one task; two halves."""
    count = cell.targets.replicas
    half = -(-count // 2)
    return [(0, half), (half, count)]
