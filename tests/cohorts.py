"""Cohorts of a few clients and a server, for tests of the masking protocol: played message by message."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from defenses.secagg import masks, messages
from defenses.secagg.client import Client
from defenses.secagg.keys import Context
from defenses.secagg.masks import Words
from defenses.secagg.messages import Advert, Message, Roster
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import identities, seeded
from defenses.secagg.refusals import Reason, Rejected
from defenses.secagg.server import Server

M = TypeVar("M", bound=Message)
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
        outgoing: Mapping[int, bytes] | None = None,
        drops: Mapping[int, Stage] | None = None,
        refusals: dict[int, Rejected] | None = None,
    ) -> Mapping[int, bytes]:
        """Play the stages before `until`, or all, from the start or from `outgoing`; what the server then says.

        A client that refuses is an error, unless there is a place to note `refusals`: then it has dropped out.
        """
        outgoing = self.server.open() if outgoing is None else outgoing
        while self.server.stage is not None and self.server.stage is not until:
            for client in outgoing:
                if client in (drops or {}) and order(self.server.stage) >= order((drops or {})[client]):
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

    def summed_rightly(self) -> bool:
        """Whether the server came to have the sum of its survivors' vectors."""
        assert self.server.total is not None
        return self.server.total.tolist() == plain_sum(self.vectors, self.server.survivors, self.parameters.bits)

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


def reason(client: Client, raw: bytes) -> Reason:
    """Why the client refuses this message; that it does not is an error."""
    with pytest.raises(Rejected) as refused:
        client.answer(raw)
    return refused.value.reason


def tampered(
    parameters: Parameters, stage: Stage, change: Callable[[Cohort, Message], Message], client: int = 0
) -> Reason:
    """Why a client refuses a message that the server has changed; the round then goes on and comes to its sum."""
    played = cohort(parameters)
    told = played.play(until=stage)
    message = played.read(told[client])
    found = reason(played.clients[client], played.from_server(client, change(played, message)))
    played.play(outgoing=told)
    assert played.summed_rightly()
    return found


def of(kind: type[M], change: Callable[[M], Message]) -> Callable[[Cohort, Message], Message]:
    """A change of messages of one kind, for `tampered`."""

    def changed(_: Cohort, message: Message) -> Message:
        assert isinstance(message, kind)
        return change(message)

    return changed


def forged(field: str, value: Callable[[Cohort], bytes]) -> Callable[[Cohort, Message], Message]:
    """The first neighbour's Advert with another key, under the signature that it had."""

    def changed(played: Cohort, message: Message) -> Message:
        assert isinstance(message, Roster)
        (client, encoded), *others = message.adverts
        advert = Advert.read(memoryview(encoded)[: Advert.size], played.parameters)
        body = dataclasses.replace(advert, **{field: value(played)}).body(played.parameters)
        adverts = ((client, b"".join([*body, encoded[Advert.size :]])), *others)
        return dataclasses.replace(message, adverts=adverts)

    return changed
