"""Secure aggregation between processes: clients and a server over loopback TCP, some killed on purpose.

python -m experiments.secagg_demo [--clients 8] [--kill 3@masked,5@shares] [--malicious] [--sparse] ...

Each client is a process of its own, and draws its secrets from the operating system. Those named by --kill get SIGKILL
when they are about to send their message of that stage. At the end the server's sum is compared with the plain sum
of the survivors' vectors, which this process knows, unlike the server. Exit code 0: they are equal, word for word; 1:
they are not, or too few clients were left for a sum; 2: an input that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defenses.secagg.graph import sparse
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import identities
from defenses.secagg.refusals import Aborted
from defenses.secagg.server import Server
from defenses.secagg.sockets import Host, StageReport
from experiments.secagg_client import READY, vector
from experiments.terminal import Parser, one_line_errors
from fl_core.errors import InputError, check_choice, check_number

# What --sparse is designed for.
CORRUPT, DROPOUT = 0.1, 0.25

# What one machine's memory should bear: processes, and words of each one's vector.
MOST, LONGEST = 256, 10_000_000

JOIN = 120.0  # seconds for all processes to start and connect


def parser() -> Parser:
    """The command's options; they say what they mean themselves."""
    made = Parser("experiments.secagg_demo", __doc__)
    made.add_argument("--clients", type=int, default=8, help=f"processes, 2 to {MOST}")
    made.add_argument("--length", type=int, default=1000, help=f"words of a client's vector, up to {LONGEST}")
    made.add_argument("--bits", type=int, default=32, help="of a word, 1 to 62")
    made.add_argument(
        "--threshold", type=int, help="shares that recover a secret; left out, two thirds of the clients and one"
    )
    made.add_argument("--malicious", action="store_true", help="clients sign, and check what the server tells them")
    made.add_argument("--sparse", action="store_true", help="the sparse graph, for 10%% corrupt and 25%% dropping out")
    made.add_argument("--kill", default="", help="CLIENT@STAGE, with commas between them, as in 3@masked,5@shares")
    made.add_argument("--seed", type=int, default=0, help="of the vectors")
    made.add_argument("--timeout", type=float, default=60.0, help="seconds for each stage")
    return made


def parameters_of(asked: argparse.Namespace) -> Parameters:
    """The round's parameters; raises InputError."""
    if not asked.sparse:
        return Parameters.complete(asked.clients, asked.length, asked.bits, asked.threshold, malicious=asked.malicious)
    if asked.threshold is not None:
        raise InputError("--threshold is for the complete graph; --sparse computes its own")
    design = sparse(asked.clients, corrupt=CORRUPT, dropout=DROPOUT, malicious=asked.malicious)
    return Parameters.sparse(design, asked.length, asked.bits)


def kills_of(text: str, parameters: Parameters) -> dict[int, Stage]:
    """Who is killed about to send what, out of `3@masked,5@shares`; raises InputError."""
    kills: dict[int, Stage] = {}
    for one in filter(None, text.split(",")):
        number, _, stage = one.partition("@")
        if not number.isdecimal() or int(number) >= parameters.clients:
            raise InputError(f"--kill {one}: the client is {number!r}; it must be 0 to {parameters.clients - 1}")
        check_choice(f"--kill {one}: the stage", stage, [str(stage) for stage in parameters.stages])
        if int(number) in kills:
            raise InputError(f"--kill names client {number} twice; a process dies but once")
        kills[int(number)] = Stage(stage)
    return kills


@dataclass(kw_only=True)
class Account:
    """How a round went. starting: seconds until all processes had connected. aborted: why there is no sum, if so."""

    server: Server
    reports: list[StageReport]
    killed: list[int]
    starting: float = 0.0
    aborted: str = ""


async def hold_round(parameters: Parameters, kills: Mapping[int, Stage], seed: int, timeout: float) -> Account:
    """Start the processes, play the round with them, and kill those who are to die."""
    signers, registry = identities(parameters.clients, os.urandom) if parameters.malicious else ([], ())
    model = hashlib.sha256(b"the demo's model").digest()
    account = Account(server=Server(parameters, parameters.context(1, model), registry), reports=[], killed=[])
    began = time.monotonic()

    def report(stage: StageReport) -> None:
        if not account.reports:
            account.starting = time.monotonic() - began - stage.seconds
        account.reports.append(stage)

    async with Host(account.server) as host:
        orders = {
            "host": host.address[0],
            "port": host.address[1],
            "parameters": dataclasses.asdict(parameters),
            "round": 1,
            "model": model.hex(),
            "seed": seed,
            "registry": [name.hex() for name in registry],
            "timeout": max(JOIN, timeout),
        }
        processes: list[Process] = []
        try:
            for number in range(parameters.clients):
                identity = signers[number].private_bytes_raw().hex() if signers else None
                own = {"number": number, "identity": identity, "halt": kills.get(number)}
                processes.append(await start(orders | own))
            deaths = [asyncio.create_task(kill(number, processes[number], account.killed)) for number in kills]
            try:
                await host.play(join=JOIN, timeout=timeout, told=report)
            except Aborted as abort:
                account.aborted = str(abort)
            for death in deaths:
                death.cancel()
        finally:
            for process in processes:
                end(process)
            codes = await asyncio.gather(*(process.wait() for process in processes))
        account.killed = [number for number in account.killed if codes[number] == -signal.SIGKILL]
    return account


async def start(orders: dict[str, Any]) -> Process:
    """A client's process, with its orders."""
    here = str(Path(__file__).parents[1])
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.secagg_client"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(orders).encode() + b"\n")
    await process.stdin.drain()
    return process


async def kill(number: int, process: Process, killed: list[int]) -> None:
    """Wait until the client says that it is about to send what it is not to send, and kill its process."""
    assert process.stdout is not None
    if (await process.stdout.readline()).decode().startswith(READY):
        killed.append(number)
        end(process)


def end(process: Process) -> None:
    """SIGKILL, unless it has ended. (Process.kill would look whether it has, and take its exit code from asyncio.)"""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def told(account: Account, kills: Mapping[int, Stage], seed: int) -> tuple[str, bool]:
    """What to tell of a round, and whether it came to the right sum."""
    parameters, server = account.server.parameters, account.server
    count = parameters.clients
    links = "everyone" if parameters.neighbours is None else f"{parameters.neighbours} others"
    kind = "malicious" if parameters.malicious else "honest-but-curious"
    lines = [
        f"{count} clients, {parameters.length:,} words of {parameters.bits} bits; each masks with {links}; "
        f"threshold {parameters.threshold}; {kind} server",
        f"{len(account.killed)} of {count} processes killed; all were up after {account.starting:.1f} s",
        "",
        f"{'stage':<8}{'sent':>6}  {'lost':<16}{'up, bytes':>14}{'down, bytes':>14}{'seconds':>10}",
    ]
    there = set(range(count))
    for report in account.reports:
        gone = sorted(there.difference(report.sent))
        lost = " ".join(
            str(client) if kills.get(client) is report.stage else f"{client} (not killed)" for client in gone
        )
        there = set(report.sent)
        lines.append(
            f"{report.stage:<8}{len(report.sent):>6}  {lost or '-':<16}"
            f"{report.up:>14,}{report.down:>14,}{report.seconds:>10.3f}"
        )
    lines.append("")
    if server.total is None:
        return "\n".join([*lines, f"no sum: {account.aborted}"]), False
    plain = np.zeros(parameters.length, dtype=np.uint64)
    for client in server.survivors:
        plain += vector(parameters, seed, client).astype(np.uint64)
    equal = bool(np.array_equal(plain % np.uint64(1 << parameters.bits), server.total.astype(np.uint64)))
    who = " ".join(map(str, server.survivors))
    verdict = "equal to their plain sum, word for word" if equal else "NOT equal to their plain sum"
    return "\n".join([*lines, f"sum of {len(server.survivors)} survivors ({who}): {verdict}"]), equal


def main(arguments: Sequence[str] | None = None) -> int:
    with one_line_errors():
        asked = parser().parse_args(arguments)
        check_number("--timeout", asked.timeout, above=0)
        check_number("--seed", asked.seed, minimum=0, integer=True)
        check_number("--clients", asked.clients, minimum=2, maximum=MOST, integer=True)
        check_number("--length", asked.length, minimum=1, maximum=LONGEST, integer=True)
        parameters = parameters_of(asked)
        kills = kills_of(asked.kill, parameters)
        account = asyncio.run(hold_round(parameters, kills, asked.seed, asked.timeout))
        text, equal = told(account, kills, asked.seed)
        print(text)
        return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
