"""Mirage's secure aggregation, message by message in this process, timed as Flower's is beside it.

Every client encodes its vector in fixed point, and every message is written and parsed as it would be for a network.

    python -m experiments.benchmarks.peers.mirage_secagg --clients 20 --length 100000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from statistics import mean
from typing import Any

import numpy as np
import torch

from defenses.secagg import graph
from defenses.secagg.client import Client
from defenses.secagg.encoding import FixedPoint, signed, wrapped
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.server import Server
from fl_core.seeds import generator

BITS, CLIP, CORRUPT, DROPOUT = 32, 8.0, 0.1, 0.1
AT_HAND = 10**8  # coordinates that are kept: beyond, several clients have the same vector


class Clocks:
    """Processor seconds of the server and of each client; `of` runs a call on one of them."""

    def __init__(self, clients: int) -> None:
        self.server, self.clients = 0.0, [0.0] * clients

    def of(self, client: int | None, call: Callable[..., Any], *given: Any) -> Any:
        """What `call` returns, its processor seconds counted to this client's clock; None is the server."""
        began = time.process_time()
        found = call(*given)
        seconds = time.process_time() - began
        if client is None:
            self.server += seconds
        else:
            self.clients[client] += seconds
        return found


def parameters_of(clients: int, length: int, sparse: bool) -> Parameters:
    """Against an honest-but-curious server; a sparse graph for a tenth colluding and a tenth lost."""
    if not sparse:
        return Parameters.complete(clients, length, BITS)
    return Parameters.sparse(graph.sparse(clients, corrupt=CORRUPT, dropout=DROPOUT), length, BITS)


def play(clients: int, length: int, sparse: bool, lost: int, seed: int) -> dict[str, Any]:
    """One aggregation: processor seconds in all, of server and mean client, and bytes that a client sends and gets.

    The first `lost` clients drop out before they send their vectors. Raises RuntimeError where the sum is not, in every
    bit, that of the survivors' integers.
    """
    torch.set_num_threads(1)
    parameters = parameters_of(clients, length, sparse)
    context = parameters.context(0, bytes(32))
    draw = generator(seed, "vectors")
    vectors = [2 * torch.rand(1, length, generator=draw) - 1 for _ in range(min(clients, max(1, AT_HAND // length)))]
    encoding, clocks = FixedPoint(clients=clients, bits=BITS, clip=CLIP), Clocks(clients)

    def encoded(vector: torch.Tensor) -> Any:
        return wrapped(encoding.encode(vector, [draw]), BITS)[0].numpy().view(np.uint32)

    words = [clocks.of(number, encoded, vector) for number, vector in enumerate(vectors)]
    encoding_seconds = mean(clocks.clients[: len(words)])
    clocks.clients = [encoding_seconds] * clients
    members = [
        Client(number, words[number % len(words)], parameters=parameters, context=context, random=os.urandom)
        for number in range(clients)
    ]
    before = peak_mib()
    server, up, down = Server(parameters, context), [0] * clients, [0] * clients
    outgoing = clocks.of(None, server.open)
    for stage in parameters.stages:
        for client in outgoing:
            if client < lost and stage in (Stage.MASKED, Stage.UNMASK):
                continue
            told = clocks.of(None, outgoing.__getitem__, client)
            answer = clocks.of(client, members[client].answer, told)
            clocks.of(None, server.receive, answer)
            up[client] += len(answer)
            down[client] += len(told)
        outgoing = clocks.of(None, server.close)
    assert server.total is not None
    mean_found = clocks.of(None, _decoded, encoding, server.total, clients - lost)
    peak, there = peak_mib(), range(lost, clients)
    exact, true = np.zeros(length, np.uint32), np.zeros(length)
    for client in there:
        exact += words[client % len(words)]
        true += vectors[client % len(words)][0].double().numpy()
    if not np.array_equal(server.total, exact):
        raise RuntimeError("the sum is not that of the survivors' vectors")
    return {
        "seconds": clocks.server + sum(clocks.clients),
        "server_seconds": clocks.server,
        "client_seconds": mean(clocks.clients[client] for client in there),
        "encoding_seconds": encoding_seconds,
        "client_bytes": mean(up[client] for client in there),
        "client_bytes_down": mean(down[client] for client in there),
        "neighbours": parameters.neighbours or clients - 1,
        "threshold": parameters.threshold,
        "largest_error": float(np.abs(mean_found - true / len(there)).max()),
        "grew_mib": peak - before,
    }


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _decoded(encoding: FixedPoint, total: Any, clients: int) -> Any:
    return encoding.decode(signed(torch.from_numpy(total.view(np.int32)), BITS)).numpy() / clients


def main() -> None:
    parser = argparse.ArgumentParser(description="One secure aggregation by Mirage.")
    parser.add_argument("--clients", type=int, default=20, help="of the cohort")
    parser.add_argument("--length", type=int, default=100_000, help="words of a client's vector")
    parser.add_argument("--sparse", action="store_true", help="the sparse graph (default: the complete one)")
    parser.add_argument("--lost", type=int, default=0, help="clients that drop out before they send their vectors")
    parser.add_argument("--seed", type=int, default=0, help="of the vectors")
    asked = parser.parse_args()
    print(json.dumps(play(asked.clients, asked.length, asked.sparse, asked.lost, asked.seed)))


if __name__ == "__main__":
    main()
