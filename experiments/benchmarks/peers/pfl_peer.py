"""FedAvg in pfl-research (PyPI: pfl; Granqvist et al. 2024), set up as its documentation does for speed.

Its own FederatedAveraging, SimulatedBackend and PyTorchModel. "If all data can fit into RAM, then using Dataset is the
fastest": each client is one PyTorchTensorDataset, made beforehand, so that its batches are cut once (pfl does not
shuffle). Several processes go through torchrun, as its guide to fast simulations recommends; each trains its share of
the cohort, and gloo sums. No evaluation, no metrics, no checkpoints in a timed round.

python -m experiments.benchmarks.peers.pfl_peer --train mnist-train.parquet --test mnist-test.parquet --processes 2
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.base import get_num_devices_weight_name
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.common_types import Population
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from torch.distributed.run import main as torchrun

from experiments.benchmarks.peers.problem import (
    BATCH,
    Problem,
    Settings,
    Stopwatch,
    initialised,
    parser,
    problem_of,
    report,
    settings_of,
)
from fl_core.architectures import McMahanCNN
from fl_core.errors import InputError, check_number

MODULE = "experiments.benchmarks.peers.pfl_peer"
DEVICES = get_num_devices_weight_name(Population.TRAIN)


class Classifier(McMahanCNN):
    """The model with the two methods that pfl asks for."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of a batch, in nats."""
        return F.cross_entropy(self(images), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
        """The same, weighted by the batch's examples."""
        return {"loss": Weighted(self.loss(images, labels).item() * len(labels), len(labels))}


class Laps(TrainingProcessCallback):  # type: ignore[misc]
    """The stopwatch as a callback: from the end of one iteration to the end of the next."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Starts the watch."""
        self.watch.start()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """A lap, and False: go on. RuntimeError where a client of the cohort was not trained."""
        trained, cohort = aggregate_metrics[DEVICES], self.watch.problem.settings.cohort
        if trained != cohort:
            raise RuntimeError(f"{trained} of {cohort} clients were trained")
        self.watch.lap(lambda: model.pytorch_model)
        return False, Metrics()


def every_client(problem: Problem) -> Iterator[int]:
    """The clients of all rounds, one after another: pfl draws one at a time."""
    for round in count():
        yield from problem.cohort(round)


def play(settings: Settings) -> Stopwatch:
    """All rounds, in each of the processes."""
    problem = problem_of(settings)
    pool = problem.pool
    users = [PyTorchTensorDataset((pool.images[rows], pool.labels[rows])) for rows in problem.held]
    drawn = every_client(problem)
    data = FederatedDataset(lambda client: users[client], lambda: next(drawn))
    module = initialised(Classifier(pool.shape, len(pool.classes), settings.width), settings)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    rounds = settings.warmup + settings.rounds
    watch = Stopwatch(problem)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,  # never again after iteration 0, which is a warm-up
            train_cohort_size=settings.cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=data, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=settings.step_size, local_batch_size=BATCH
        ),
        callbacks=[Laps(watch)],
        send_metrics_to_platform=False,
    )
    return watch


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser("Time FedAvg on MNIST in pfl-research.")
    made.add_argument("--processes", type=int, default=1, help="that share a cohort, through torchrun")
    settings, others = settings_of(made, arguments, "processes")
    try:
        check_number("--processes", others.processes, minimum=1, maximum=settings.cohort, integer=True)
    except InputError as error:
        made.error(str(error))
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "PFL_PYTORCH_DEVICE": "cpu"}
    if others.processes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        given = sys.argv[1:] if arguments is None else arguments
        torchrun(["--standalone", f"--nproc-per-node={others.processes}", "-m", MODULE, *given])
        return
    torch.set_num_threads(settings.threads)
    np.random.seed(settings.seed)  # noqa: NPY002  pfl draws from the global one
    watch = play(settings)
    if get_framework_module().distributed.global_rank == 0:
        world = get_framework_module().distributed.world_size
        report("pfl", watch, ["pfl"], processes=world)


if __name__ == "__main__":
    main()
