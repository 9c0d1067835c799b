"""FedAvg in Flower (PyPI: flwr; Beutel et al. 2020), simulated on Ray as its documentation says for a CPU.

Its message interface, its FedAvg and its simulation runtime with as many workers as fit: `num_cpus` of a client is the
number of its torch threads, so that one thread means one worker a core. Its tutorials keep the data set in the worker
process; here the model stays there as well, and batches need no data loader. Flower draws its own cohorts, by no
seed. The clients evaluate nothing.

python -m experiments.benchmarks.peers.flower_peer --train mnist-train.parquet --test mnist-test.parquet
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # read when the two are imported

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from experiments.benchmarks.peers.plain import local_epoch
from experiments.benchmarks.peers.problem import Settings, Stopwatch, parser, problem_of, report, settings_of


@cache
def kept_model(settings: Settings) -> nn.Module:
    """One model a worker process, whose weights every client sets."""
    torch.set_num_threads(settings.threads)
    return problem_of(settings).model()


def train(settings: Settings, message: Message, context: Context) -> Message:
    """One client's turn, in a worker."""
    problem, model = problem_of(settings), kept_model(settings)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client, round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]) - 1
    batches = problem.batches(client, round)
    local_epoch(model, problem.pool.images, problem.pool.labels, batches, settings.step_size)
    metrics = MetricRecord({"num-examples": len(problem.held[client]), "worker": os.getpid()})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


def client_app(settings: Settings) -> ClientApp:
    """The app that answers for every client, by `train`."""
    app = ClientApp()

    # A worker gets this function by value and what it calls by name: the module's caches are the worker's own.
    def answer(message: Message, context: Context) -> Message:
        from experiments.benchmarks.peers import flower_peer

        return flower_peer.train(settings, message, context)

    app.train()(answer)
    return app


def play(settings: Settings) -> tuple[Stopwatch, int]:
    """All rounds, and how many workers trained."""
    problem = problem_of(settings)
    model, watch = problem.model(), Stopwatch(problem)
    workers: list[set[int]] = []  # of each round

    def nothing_lost(replies: list[RecordDict], _: str) -> MetricRecord:
        if len(replies) != settings.cohort:
            raise RuntimeError(f"{len(replies)} of {settings.cohort} clients answered")
        workers.append({int(reply["metrics"]["worker"]) for reply in replies})
        return MetricRecord()

    def after_round(round: int, arrays: ArrayRecord) -> None:
        def current() -> nn.Module:
            model.load_state_dict(arrays.to_torch_state_dict())
            return model

        if len(workers) != round:  # Flower goes on when nobody answers
            raise RuntimeError(f"nobody answered in round {round}")
        if round == 0:
            watch.start()
        else:
            watch.lap(current)

    def serve(grid: Grid, _: Context) -> None:
        strategy = FedAvg(
            fraction_train=settings.cohort / settings.clients,
            min_train_nodes=settings.cohort,
            min_available_nodes=settings.clients,
            fraction_evaluate=0.0,
            train_metrics_aggr_fn=nothing_lost,
        )
        rounds = settings.warmup + settings.rounds
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=rounds, evaluate_fn=after_round)

    server = ServerApp()
    server.main()(serve)
    run_simulation(
        server,
        client_app(settings),
        num_supernodes=settings.clients,
        backend_config={
            "client_resources": {"num_cpus": settings.threads, "num_gpus": 0.0},
            "init_args": {"address": "local"},  # Ray would join any cluster that runs here already
        },
    )
    return watch, len(set.union(*workers))


def main(arguments: Sequence[str] | None = None) -> None:
    settings, _ = settings_of(parser("Time FedAvg on MNIST in Flower."), arguments)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(settings.threads)
    watch, workers = play(settings)
    report("flower", watch, ["flwr", "ray"], processes=workers)


if __name__ == "__main__":
    main()
