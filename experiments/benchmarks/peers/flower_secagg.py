"""Flower's SecAgg+ (PyPI: flwr), message by message in this process: its client mod, its workflow, no network, no Ray.

Messages are Flower's own types, as in its simulations, but are not sent anywhere. A client that is to drop out answers
the call for its masked vector with an error. Flower draws neighbours, keys and masks itself. Its own defaults are kept:
values in [-8, 8] on 2^22 levels, sums modulo 2^32.

    python -m experiments.benchmarks.peers.flower_secagg --clients 20 --length 100000
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Iterable
from statistics import mean
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0"}  # read when it is imported

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Stage
from flwr.compat.common import recorddict_compat
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity

CLIPPING, LEVELS = 8.0, 1 << 22


class Node:
    """What the workflow asks of a client's proxy."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


class Cohort:
    """What the workflow asks of Flower's strategy and of its client manager: everybody trains."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self.nodes = list(nodes)
        self.mean: np.ndarray[Any, Any] | None = None

    def num_available(self) -> int:
        """How many clients there are."""
        return len(self.nodes)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: Any
    ) -> list[tuple[Node, FitIns]]:
        """What each client is sent: everybody the same."""
        return [(Node(node), FitIns(parameters, {})) for node in self.nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[Parameters, dict[str, Any]]:
        """Keeps the mean that the workflow has unmasked, and hands it on."""
        found: Parameters = results[0][1].parameters
        self.mean = parameters_to_ndarrays(found)[0]
        return found, {}


class Loopback:
    """Flower's grid: hands each message to its client's mod at once. Keeps clients' processor seconds and bytes."""

    def __init__(self, vectors: dict[int, np.ndarray[Any, Any]], lost: set[int]) -> None:
        self.vectors, self.lost = vectors, lost
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}) for node in vectors
        }
        self.seconds = dict.fromkeys(vectors, 0.0)
        self.sent = dict.fromkeys(vectors, 0)
        self.copying = 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The clients' replies, one after another; from a client that is lost, an error in place of its vector."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        began = time.process_time()
        message.content = copy.deepcopy(message.content)  # the workflow gives all one object, and the mod empties it
        self.copying += time.process_time() - began
        stage = message.content.config_records[RECORD_KEY_CONFIGS]["stage"]
        if node in self.lost and stage == Stage.COLLECT_MASKED_VECTORS:
            return Message(Error(code=0, reason="dropped out"), reply_to=message)
        began = time.process_time()
        reply = secaggplus_mod(message, self.contexts[node], self._fit)
        self.seconds[node] += time.process_time() - began
        self.sent[node] += reply.content.config_records[RECORD_KEY_CONFIGS].count_bytes()
        return reply

    def _fit(self, message: Message, context: Context) -> Message:
        trained = ndarrays_to_parameters([self.vectors[context.node_id]])
        result = FitRes(Status(Code.OK, ""), trained, 1, {})
        return Message(recorddict_compat.fitres_to_recorddict(result, False), reply_to=message)


def play(clients: int, length: int, neighbours: int | None, threshold: float, lost: int, seed: int) -> dict[str, Any]:
    """One aggregation: processor seconds in all, of server and mean client, bytes that a client sends, and the error.

    `neighbours` counts a client's neighbours and itself; None is the complete graph. The first `lost` clients drop out
    before they send their vectors.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
    random = np.random.default_rng(seed)
    vectors = {node: random.uniform(-1, 1, length).astype(np.float32) for node in range(1, clients + 1)}
    gone = set(range(1, lost + 1))
    grid, cohort = Loopback(vectors, gone), Cohort(vectors)
    context = LegacyContext(
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        strategy=cohort,
        client_manager=cohort,
    )
    started = FitIns(ndarrays_to_parameters([np.zeros(1, np.float32)]), {})
    context.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(
        started.parameters, True
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = recorddict_compat.ConfigRecord({Key.CURRENT_ROUND: 1})
    workflow = SecAggPlusWorkflow(neighbours or 1.0, threshold, max_weight=1.0, clipping_range=CLIPPING,
                                  quantization_range=LEVELS)  # fmt: skip
    began = time.process_time()
    workflow(grid, context)
    seconds = time.process_time() - began - grid.copying
    if cohort.mean is None:
        raise RuntimeError("Flower gave up on the aggregation")
    true = np.mean([vectors[node] for node in vectors if node not in gone], axis=0)
    there = [node for node in vectors if node not in gone]
    return {
        "seconds": seconds,
        "server_seconds": seconds - sum(grid.seconds.values()),
        "client_seconds": mean(grid.seconds[node] for node in there),
        "client_bytes": mean(grid.sent[node] for node in there),
        "largest_error": float(np.abs(cohort.mean - true).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One secure aggregation by Flower.")
    parser.add_argument("--clients", type=int, default=20, help="of the cohort")
    parser.add_argument("--length", type=int, default=100_000, help="words of a client's vector")
    parser.add_argument("--neighbours", type=int, help="with itself, an odd number (default: the complete graph)")
    parser.add_argument("--threshold", type=float, default=0.6, help="share of the shares that are needed")
    parser.add_argument("--lost", type=int, default=0, help="clients that drop out before they send their vectors")
    parser.add_argument("--seed", type=int, default=0, help="of the vectors")
    asked = parser.parse_args()
    print(json.dumps(play(asked.clients, asked.length, asked.neighbours, asked.threshold, asked.lost, asked.seed)))


if __name__ == "__main__":
    main()
