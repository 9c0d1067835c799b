"""How the server weighs the clients of a cohort."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_core.errors import check_choice
from fl_core.optimizers import Tree

WEIGHTINGS = ("uniform", "by_examples")


def weights(weighting: str, sizes: Tensor) -> Tensor:
    """Shares [replicas, cohort] that sum to 1 a replica, from the clients' sizes [replicas, cohort].

    A client without examples has no share `by_examples`, and an equal one under `uniform`.
    """
    check_choice("algorithm.weighting", weighting, WEIGHTINGS)
    shares = torch.ones_like(sizes, dtype=torch.float32) if weighting == "uniform" else sizes.to(torch.float32)
    return shares / shares.sum(1, keepdim=True).clamp(min=1e-12)


def weighted_sum(updates: Tree, shares: Tensor) -> Tree:
    """The sum over the cohort [replicas, ...] of updates [replicas, cohort, ...] times shares [replicas, cohort]."""
    return {name: torch.einsum("rc,rc...->r...", shares.to(value.device), value) for name, value in updates.items()}
