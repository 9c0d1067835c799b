"""A whole round in one process: clients, a server, and whoever drops out on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from defenses.secagg import keys
from defenses.secagg.client import Client
from defenses.secagg.keys import Context
from defenses.secagg.masks import Words
from defenses.secagg.messages import Masked, Unmask
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Aborted, Rejected
from defenses.secagg.server import Server
from fl_core.errors import InputError, check_choice


def seeded(seed: bytes) -> Callable[[int], bytes]:
    """A source of bytes that is a function of 32 secret ones: ChaCha20's stream under them as the key."""
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return lambda size: stream.update(bytes(size))


def identities(clients: int, random: Callable[[int], bytes]) -> tuple[list[Ed25519PrivateKey], tuple[bytes, ...]]:
    """An Ed25519 identity for each client, and their registry; 32 bytes of `random` each."""
    made = [keys.identity(random(keys.KEY_BYTES)) for _ in range(clients)]
    return made, tuple(map(keys.name_of, made))


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What the server saw.

    masked: the masked vector of each client that sent one. shares: by who gave them, then by whose they are; of the
    self-mask secret where the owner is among the survivors, of the mask key where not. up, down: bytes from and to each
    client, by stage; what goes down in a stage is what the client answers in it.
    """

    masked: dict[int, Words] = field(default_factory=dict)
    shares: dict[int, dict[int, int]] = field(default_factory=dict)
    up: dict[Stage, dict[int, int]] = field(default_factory=lambda: {stage: {} for stage in Stage})
    down: dict[Stage, dict[int, int]] = field(default_factory=lambda: {stage: {} for stage in Stage})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The sum of the survivors' vectors modulo 2^bits [length], and how it came about.

    refusals: of clients that would not go on, which count as dropped out from there on.
    """

    total: Words
    survivors: tuple[int, ...]
    transcript: Transcript
    refusals: Mapping[int, Rejected]


def aggregate(
    vectors: Sequence[Words],
    *,
    parameters: Parameters,
    contexts: Context | Sequence[Context],
    random: Callable[[int], bytes],
    drops: Mapping[int, Stage] | None = None,
    keep_masked: bool = True,
) -> Outcome:
    """A round over `vectors`, one a client, of words modulo 2^bits [length]; `drops` says from which stage on who is
    silent.

    contexts: the round's, or each client's own. The server knows what it has sent to whom, and plays along. random:
    32 bytes for each client in turn seed all its secrets; in the malicious variant as many for each identity before.
    keep_masked: whether the transcript holds the masked vectors, which are as large as all vectors together.

    Raises Aborted when too few clients are left at some stage, and InputError for vectors, contexts or drops that do
    not fit the parameters.
    """
    clients, stages = parameters.clients, parameters.stages
    own = [contexts] * clients if isinstance(contexts, Context) else list(contexts)
    if len(vectors) != clients or len(own) != clients:
        raise InputError(f"{len(vectors)} vectors and {len(own)} contexts for {clients} clients")
    for stage in (drops or {}).values():
        check_choice("drops: a stage", stage, map(str, Stage))
    silent = {client: list(Stage).index(stage) for client, stage in (drops or {}).items()}
    if not all(0 <= client < clients for client in silent):
        raise InputError(f"drops names clients {sorted(silent)}; they are numbered from 0 to {clients - 1}")
    signers, registry = identities(clients, random) if parameters.malicious else ([None] * clients, ())
    members = [
        Client(
            number,
            vectors[number],
            parameters=parameters,
            context=own[number],
            random=seeded(random(keys.KEY_BYTES)),
            identity=signers[number],
            registry=registry,
        )
        for number in range(clients)
    ]
    server = Server(parameters, contexts, registry)
    transcript = Transcript()
    refusals: dict[int, Rejected] = {}
    outgoing = server.open()
    for stage in stages:
        for client in outgoing:
            if silent.get(client, len(Stage)) <= list(Stage).index(stage):
                continue
            raw = outgoing[client]
            transcript.down[stage][client] = len(raw)
            try:
                answer = members[client].answer(raw)
            except Rejected as refusal:
                refusals[client] = refusal
                continue
            transcript.up[stage][client] = len(answer)
            message = server.receive(answer, sender=client).message
            if isinstance(message, Masked) and keep_masked:
                transcript.masked[client] = message.words
            elif isinstance(message, Unmask):
                transcript.shares[client] = dict(message.shares)
        try:
            outgoing = server.close()
        except Aborted as abort:
            raise Aborted(str(abort), refusals) from None
    assert server.total is not None
    return Outcome(total=server.total, survivors=server.survivors, transcript=transcript, refusals=refusals)
