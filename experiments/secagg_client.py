"""One client of `experiments.secagg_demo`, in a process of its own; its orders are one line of JSON on stdin.

It leaves torch alone, so that it is there within a fraction of a second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from defenses.secagg import keys, masks
from defenses.secagg.client import Client
from defenses.secagg.masks import Words
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Aborted, Rejected
from defenses.secagg.sockets import take_part

READY = "about to send"


def vector(parameters: Parameters, seed: int, number: int) -> Words:
    """A client's vector in the demo: uniform words modulo 2^bits, the same ones wherever they are drawn."""
    drawn = np.random.default_rng([seed, number]).integers(
        1 << parameters.bits, size=parameters.length, dtype=np.uint64
    )
    words: Words = drawn.astype(masks.word_type(parameters.bits))
    return words


def take_orders(orders: dict[str, Any]) -> None:
    """Take part in the round as client `orders["number"]`; before the stage `orders["halt"]`, say so and wait."""
    parameters = Parameters(**orders["parameters"])
    client = Client(
        orders["number"],
        vector(parameters, orders["seed"], orders["number"]),
        parameters=parameters,
        context=parameters.context(orders["round"], bytes.fromhex(orders["model"])),
        random=os.urandom,
        identity=keys.identity(bytes.fromhex(orders["identity"])) if parameters.malicious else None,
        registry=[bytes.fromhex(name) for name in orders["registry"]],
    )

    def halt(stage: Stage) -> None:
        if stage == orders["halt"]:
            print(f"{READY} {stage}", flush=True)
            time.sleep(3600)

    take_part(client, (orders["host"], orders["port"]), timeout=orders["timeout"], before=halt)


def main() -> None:
    orders = json.loads(sys.stdin.readline())
    try:
        take_orders(orders)
    except (Aborted, Rejected) as error:
        print(f"client {orders['number']}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
