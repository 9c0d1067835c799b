"""Client updates for studies of sums, simulated by the engine: each client trains from the same global model.

A study of cohort sizes draws its cohorts, with replacement, from a bank of such clients, so that a sum over a thousand
of them costs no training. The bank is the population then, and its mean and covariance are known exactly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.base import Defense
from defenses.clipping import Clipping, scaled
from defenses.noise import cut
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.federation import Federation, federate, initial_state, run
from fl_core.models import initial_parameters
from fl_core.optimizers import Tree
from fl_core.sampling import Shuffled
from fl_core.seeds import seed
from fl_core.views import Recorder, SecureServer, Server


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a client trains: `local_steps` of gradient descent at `lr` on all of its examples, so without any chance."""

    model: nn.Module
    lr: float
    local_steps: int = 1

    def algorithm(self) -> FedAvg:
        """The same training for a federation's clients."""
        return FedAvg(sampler=Shuffled(batch_size=None, local_steps=self.local_steps), lr=self.lr)


def updates(recipe: Recipe, start: Tree, examples: ImageSet, rows: Tensor) -> Tensor:
    """What each client sends [clients, parameters]; `rows` [clients, each] says who holds which of the `examples`.

    `start` [1, ...] is the global model. Lanes share a step's arithmetic, so a client's update does not depend on
    whose stand beside it beyond the last digits.
    """
    clients, each = rows.shape
    federation = Federation(
        model=recipe.model,
        data=examples.select(rows.flatten().to(examples.labels.device)),
        owners=torch.arange(clients).repeat_interleave(each),
        members=torch.ones(1, clients * each, dtype=torch.bool),
        sizes=torch.full((clients,), each),
        algorithm=recipe.algorithm(),
        defense=Defense(),
        rounds=1,
        run=0,
        replica_ids=[0],
        backend="vmap",
    )
    recorder = Recorder(Server)
    run(federation, recorder, state=dataclasses.replace(initial_state(federation), model=start))
    seen = recorder.observation()
    assert isinstance(seen, Server)
    return flat({name: value[0] for name, value in seen.updates[0].items()})


def shortened(rows: Tensor, norm: float | None) -> Tensor:
    """Updates [clients, parameters] clipped to `norm`."""
    if norm is None:
        return rows
    factors, _ = Clipping(norm=norm).factors({"": rows}, 1)
    return scaled({"": rows}, factors)[""]


def initial(model: nn.Module, run: int, device: torch.device) -> Tree:
    """A new global model [1, ...], the one that a run of this seed starts from."""
    return {
        name: value.unsqueeze(0).to(device) for name, value in initial_parameters(model, seed(run, "model")).items()
    }


def trained(model: nn.Module, examples: ImageSet, epochs: int, lr: float, run_seed: int) -> Tree:
    """A global model [1, ...] after `epochs` of SGD in batches of 32 on `examples`, from `initial`."""
    sampler = Shuffled(batch_size=32, local_epochs=epochs)
    alone = federate(
        model, examples, clients=1, rounds=1, algorithm=FedAvg(sampler=sampler, lr=lr), defense=Defense(), run=run_seed,
        backend="loop",
    )  # fmt: skip
    return run(alone).model


def flat(tree: Tree) -> Tensor:
    """A tree [rows, ...] as rows [rows, parameters]."""
    return torch.cat([value.reshape(len(value), -1) for value in tree.values()], 1)


def sums(bank: Tensor, rows: Tensor) -> Tensor:
    """Sums [cohorts, parameters] over the clients of each cohort, `rows` [cohorts, size] of the bank; 0 over nobody."""
    if not rows.shape[1]:
        return bank.new_zeros(len(rows), bank.shape[1])
    if rows.shape[1] > len(bank) // 8:  # so many that counting how often each client is in a sum is faster
        counts = bank.new_zeros(len(rows), len(bank))
        return counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=bank.dtype)) @ bank
    return nn.functional.embedding_bag(rows, bank, mode="sum")


def seen_sums(model: Tree, totals: Tensor, cohort: int) -> SecureServer:
    """What a secure server sees of one round whose cohorts of `cohort` send updates that add up to `totals` [replicas].

    Each row is a replica, `model` [1, ...] is what was sent out. Seats are numbered: who has them is drawn anew.
    """
    seats = torch.arange(cohort).expand(len(totals), cohort)
    return SecureServer(
        model=model,
        models={0: model},
        sums={0: cut(totals / cohort, model)},
        divisors={0: torch.full((len(totals),), float(cohort))},
        cohorts={0: seats},
        dropped={0: seats[:, :0]},
    )


def seen_update(model: Tree, update: Tensor, cohort: int) -> Server:
    """What a server without secure aggregation sees of the victim, in seat 0; `update` is [replicas, parameters].

    The other seats are left out, as the attacks here do not look at them.
    """
    alone = {name: value.unsqueeze(1) for name, value in cut(update, model).items()}
    seats = torch.arange(cohort).expand(len(update), cohort)
    return Server(
        model=model,
        models={0: model},
        sums={},
        divisors={0: torch.full((len(update),), float(cohort))},
        cohorts={0: seats},
        dropped={0: seats[:, :0]},
        updates={0: alone},
        weights={0: torch.full(seats.shape, 1 / cohort)},
        versions={0: torch.zeros_like(seats)},
    )
