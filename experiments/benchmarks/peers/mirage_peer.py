"""FedAvg in Mirage: the same federation through `fl_core.federation.run`.

python -m experiments.benchmarks.peers.mirage_peer --train mnist-train.parquet --test mnist-test.parquet --workers 2
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from defenses.base import Defense
from experiments.benchmarks.peers.problem import (
    BATCH,
    Problem,
    Settings,
    Stopwatch,
    parser,
    problem_of,
    report,
    settings_of,
)
from fl_core.algorithms.fedavg import FedAvg
from fl_core.errors import InputError, check_choice, check_number
from fl_core.federation import Federation, run
from fl_core.lanes import BACKENDS
from fl_core.participation import Uniform
from fl_core.sampling import Shuffled
from fl_core.state import State


def federation(problem: Problem, settings: Settings, backend: str) -> Federation:
    """The problem in Mirage's own terms: one replica in which everybody's examples are members."""
    return Federation(
        model=problem.model(),
        data=problem.pool,
        owners=problem.owners,
        members=torch.ones(1, len(problem.pool), dtype=torch.bool),
        sizes=torch.bincount(problem.owners, minlength=settings.clients),
        algorithm=FedAvg(sampler=Shuffled(local_epochs=1, batch_size=BATCH), lr=settings.step_size),
        defense=Defense(),
        rounds=settings.warmup + settings.rounds,
        run=settings.seed,
        replica_ids=[0],
        participation=Uniform(settings.cohort),
        backend=backend,  # type: ignore[arg-type]  # checked by `main`, and again by Federation
    )


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser("Time FedAvg on MNIST in Mirage.")
    made.add_argument("--workers", type=int, default=1, help="processes that share a cohort's lanes")
    made.add_argument("--backend", default="auto", help="loop, vmap or auto")
    settings, others = settings_of(made, arguments, "workers", "backend")
    try:
        check_number("--workers", others.workers, minimum=1, integer=True)
        check_choice("--backend", others.backend, BACKENDS)
    except InputError as error:
        made.error(str(error))
    torch.set_num_threads(settings.threads)
    problem = problem_of(settings)
    watch = Stopwatch(problem)

    def after_round(state: State) -> None:
        def model() -> nn.Module:
            trained = problem.model()
            trained.load_state_dict({name: value[0] for name, value in state.model.items()})
            return trained

        watch.lap(model)

    watch.start()
    run(federation(problem, settings, others.backend), after_round=after_round, workers=others.workers)
    report("mirage", watch, workers=others.workers, backend=others.backend)


if __name__ == "__main__":
    main()
