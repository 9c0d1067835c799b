"""Cohorts of a few clients and a server, for tests of the masking protocol: played message by message."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from defenses.secagg import masks, messages
from defenses.secagg.client import Client
from defenses.secagg.keys import Context
from defenses.secagg.masks import Words
from defenses.secagg.messages import Message
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import identities, seeded
from defenses.secagg.refusals import Rejected
from defenses.secagg.server import Server

MODEL = b"m" * 32


def source(*names: object) -> Callable[[int], bytes]:
    """A byte source of its own for each list of names."""
    return seeded(hashlib.sha256(repr(names).encode()).digest())


def vectors(parameters: Parameters, seed: int = 0) -> list[Words]:
    rng = np.random.default_rng(seed)
    shape = (parameters.clients, parameters.length)
    return list(
        rng.integers(1 << parameters.bits, size=shape, dtype=np.uint64).astype(masks.word_type(parameters.bits))
    )


def plain_sum(vectors: Sequence[Words], survivors: Collection[int], bits: int) -> list[int]:
    """In Python's own integers."""
    return [sum(column) % 2**bits for column in zip(*(vectors[client].tolist() for client in survivors), strict=True)]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Clients and a server that are told the same, or each client its own context."""

    parameters: Parameters
    vectors: list[Words]
    clients: list[Client]
    server: Server
    signers: Sequence[Ed25519PrivateKey | None]

    def play(
        self,
        until: Stage | None = None,
        drops: Mapping[int, Stage] | None = None,
        refusals: dict[int, Rejected] | None = None,
    ) -> Mapping[int, bytes]:
        """Play the stages before `until`, or all; what the server has to say then.

        A client that refuses is an error, unless there is a place to note its `refusals`: then it has dropped out.
        """
        outgoing: Mapping[int, bytes] = self.server.open()
        for stage in self.parameters.stages:
            if stage is until:
                break
            for client in outgoing:
                if client in (drops or {}) and order(stage) >= order((drops or {})[client]):
                    continue
                try:
                    answer = self.clients[client].answer(outgoing[client])
                except Rejected as refusal:
                    if refusals is None:
                        raise
                    refusals[client] = refusal
                else:
                    self.server.receive(answer)
            outgoing = self.server.close()
        return outgoing

    def from_server(self, client: int, message: Message) -> bytes:
        """The message as a server would send it that says what it likes."""
        context = self.clients[client].context
        return messages.encode(message, parameters=self.parameters, context=context, client=client)

    def from_client(self, client: int, message: Message, signer: int | None = None) -> bytes:
        """The message as this client would send it that says what it likes; or as another forges it."""
        return messages.encode(
            message,
            parameters=self.parameters,
            context=self.clients[client].context,
            client=client,
            identity=self.signers[client if signer is None else signer],
        )

    def read(self, raw: bytes) -> Message:
        contexts = [client.context for client in self.clients]
        registry = self.server.registry
        return messages.parse(raw, parameters=self.parameters, contexts=contexts, registry=registry).message


def order(stage: Stage) -> int:
    return list(Stage).index(stage)


def cohort(
    parameters: Parameters,
    seed: int = 0,
    contexts: Sequence[Context] | None = None,
    client: type[Client] = Client,
    server: type[Server] = Server,
) -> Cohort:
    own = list(contexts or [parameters.context(1, MODEL)] * parameters.clients)
    signers: Sequence[Ed25519PrivateKey | None] = [None] * parameters.clients
    registry: tuple[bytes, ...] = ()
    if parameters.malicious:
        signers, registry = identities(parameters.clients, source("identities", seed))
    inputs = vectors(parameters, seed)
    return Cohort(
        parameters=parameters,
        vectors=inputs,
        clients=[
            client(
                number,
                inputs[number],
                parameters=parameters,
                context=own[number],
                random=source(seed, number),
                identity=signers[number],
                registry=registry,
            )
            for number in range(parameters.clients)
        ],
        server=server(parameters, contexts or own[0], registry),
        signers=signers,
    )
