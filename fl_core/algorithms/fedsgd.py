"""Federated SGD: the cohort's gradient, one step a round.

McMahan et al. 2017, section 2:
    each client k of the cohort:   g_k ← ∇ℓ(w; all of its examples)
    the server:                    w ← w − η Σ_k p_k g_k
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FedSGD(FedAvg):
    """FedAvg with a single local step; what travels is the gradient times −`lr`.

    Weighted `by_examples` over full batches it is gradient descent on the cohort's pooled examples. A sampler that
    takes more than one step is refused; one whose batch is smaller makes it minibatch FedSGD.
    """

    weighting: str = "by_examples"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler.steps(10**9) != 1:
            raise InputError(
                "algorithm=fedsgd takes one local step a round; set sampler=full_batch (all of a client's examples), "
                "or sampler.local_steps=1 with a batch size"
            )
