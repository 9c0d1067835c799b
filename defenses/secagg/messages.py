"""The messages between a server and its clients, and their one layout on the wire.

A message is a header (magic, kind, round, and the client at this end of the line), a body and a seal. The layout is
fixed: numbers are little-endian, lists run in order of client numbers and nothing may be left over. `parse` bounds a
message's length by what the public parameters allow before it looks at anything else, takes lengths from what arrived
and never from what is claimed, and ends in a message or in `Rejected`.

The seal of what a client sends in the malicious variant is its Ed25519 signature. All else bears 16 bytes of SHA-256,
which find faults of the line and not forgers: there a server is trusted to know its clients, by TLS for instance, and
what a malicious one sends is checked for what it says, whoever altered it. Both cover kind, context, client and body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol, Self, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from defenses.secagg import keys, masks, shamir, wire
from defenses.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES, Context
from defenses.secagg.masks import Words
from defenses.secagg.parameters import LAYOUT_BYTES, Parameters
from defenses.secagg.refusals import Reason, Rejected
from defenses.secagg.wire import Entries, Kind, Part

SEALED_BYTES = 2 * shamir.SHARE_BYTES + TAG_BYTES  # both shares of one client, encrypted for another


class Content(Protocol):
    """What a message says, between its header and its seal."""

    kind: ClassVar[Kind]

    def body(self, parameters: Parameters, /) -> list[Part]:
        """Its bytes, in parts that follow one another."""
        ...

    @classmethod
    def read(cls, body: memoryview, parameters: Parameters, /) -> Self:
        """What these bytes say. Raises Rejected where they are no such body."""
        ...

    @staticmethod
    def largest(parameters: Parameters, /) -> int:
        """Bytes of the longest body that these parameters allow."""
        ...


@dataclass(frozen=True, kw_only=True)
class Announce(Content):
    """The server's: what the round is about. parameters: as encoded; model: its hash."""

    parameters: bytes
    model: bytes
    kind: ClassVar[Kind] = Kind.ANNOUNCE

    def body(self, parameters: Parameters) -> list[Part]:
        return [self.parameters, self.model]

    @classmethod
    def read(cls, body: memoryview, _: Parameters) -> Announce:
        wire.exactly(body, LAYOUT_BYTES + KEY_BYTES)
        return cls(parameters=bytes(body[:LAYOUT_BYTES]), model=bytes(body[LAYOUT_BYTES:]))

    @staticmethod
    def largest(_: Parameters) -> int:
        return LAYOUT_BYTES + KEY_BYTES


@dataclass(frozen=True, kw_only=True)
class Advert(Content):
    """A client's public keys for shares and for masks, and the commitment to its self-mask secret."""

    share_key: bytes
    mask_key: bytes
    commitment: bytes
    kind: ClassVar[Kind] = Kind.ADVERT
    size: ClassVar[int] = 3 * KEY_BYTES

    def body(self, parameters: Parameters) -> list[Part]:
        return [self.share_key, self.mask_key, self.commitment]

    @classmethod
    def read(cls, body: memoryview, _: Parameters) -> Advert:
        wire.exactly(body, cls.size)
        share_key, mask_key, commitment = (bytes(body[at : at + KEY_BYTES]) for at in range(0, cls.size, KEY_BYTES))
        return cls(share_key=share_key, mask_key=mask_key, commitment=commitment)

    @staticmethod
    def largest(_: Parameters) -> int:
        return Advert.size

    def leaf(self, client: int) -> bytes:
        """The hash of it by which a roster names it."""
        return hashlib.sha256(b"".join([keys.number(client), self.share_key, self.mask_key, self.commitment])).digest()


@dataclass(frozen=True, kw_only=True)
class Roster(Content):
    """The server's: who has advertised keys, and the keys of the receiver's neighbours.

    adverts: body and, where clients sign, signature of each neighbour's Advert. leaves: on a sparse graph the hashes of
    all members' keys, as those of most are not sent.
    """

    members: tuple[int, ...]
    leaves: tuple[bytes, ...]
    adverts: Entries
    kind: ClassVar[Kind] = Kind.ROSTER

    def body(self, parameters: Parameters) -> list[Part]:
        return [wire.bitmap(self.members, parameters.clients), *self.leaves, *wire.write_entries(self.adverts)]

    @classmethod
    def read(cls, body: memoryview, parameters: Parameters) -> Roster:
        members, rest = wire.read_bitmap(body, parameters.clients)
        leaves: tuple[bytes, ...] = ()
        if parameters.neighbours is not None:
            end = len(members) * KEY_BYTES
            if len(rest) < end:
                raise Rejected(Reason.MALFORMED, "a roster without its members' hashes")
            leaves = tuple(bytes(rest[at : at + KEY_BYTES]) for at in range(0, end, KEY_BYTES))
            rest = rest[end:]
        return cls(
            members=members, leaves=leaves, adverts=wire.read_entries(rest, cls._width(parameters), parameters.clients)
        )

    @staticmethod
    def _width(parameters: Parameters) -> int:
        return Advert.size + (SIGNATURE_BYTES if parameters.malicious else 0)

    @staticmethod
    def largest(parameters: Parameters) -> int:
        leaves = 0 if parameters.neighbours is None else parameters.clients * KEY_BYTES
        return (
            wire.bitmap_bytes(parameters.clients)
            + leaves
            + _links(parameters) * (wire.NUMBER_BYTES + Roster._width(parameters))
        )


@dataclass(frozen=True, kw_only=True)
class Shares(Content):
    """A client's: for each neighbour, by number, its shares of both secrets, encrypted for it."""

    sealed: Entries
    kind: ClassVar[Kind] = Kind.SHARES

    def body(self, parameters: Parameters) -> list[Part]:
        return wire.write_entries(self.sealed)

    @classmethod
    def read(cls, body: memoryview, parameters: Parameters) -> Shares:
        return cls(sealed=wire.read_entries(body, SEALED_BYTES, parameters.clients))

    @staticmethod
    def largest(parameters: Parameters) -> int:
        return _links(parameters) * (wire.NUMBER_BYTES + SEALED_BYTES)


@dataclass(frozen=True, kw_only=True)
class Inbox(Content):
    """The server's: who has dealt shares, and those that the receiver's neighbours among them have sent it."""

    members: tuple[int, ...]
    sealed: Entries
    kind: ClassVar[Kind] = Kind.INBOX

    def body(self, parameters: Parameters) -> list[Part]:
        return [wire.bitmap(self.members, parameters.clients), *wire.write_entries(self.sealed)]

    @classmethod
    def read(cls, body: memoryview, parameters: Parameters) -> Inbox:
        members, rest = wire.read_bitmap(body, parameters.clients)
        return cls(members=members, sealed=wire.read_entries(rest, SEALED_BYTES, parameters.clients))

    @staticmethod
    def largest(parameters: Parameters) -> int:
        return wire.bitmap_bytes(parameters.clients) + Shares.largest(parameters)


@dataclass(frozen=True, kw_only=True)
class Masked(Content):
    """A client's masked vector, ⌈bits/8⌉ bytes a word; and, where it is asked for, its signature under its Inbox."""

    words: Words
    acknowledgement: bytes = b""
    kind: ClassVar[Kind] = Kind.MASKED

    def body(self, parameters: Parameters) -> list[Part]:
        words = self.words.astype(self.words.dtype.newbyteorder("<"), copy=False)
        if parameters.word_bytes == words.itemsize:
            return [self.acknowledgement, words.data.cast("B")]
        rows = words.view(np.uint8).reshape(-1, words.itemsize)
        return [self.acknowledgement, np.ascontiguousarray(rows[:, : parameters.word_bytes]).data.cast("B")]

    @classmethod
    def read(cls, body: memoryview, parameters: Parameters) -> Masked:
        wire.exactly(body, cls.largest(parameters))
        signed = SIGNATURE_BYTES if parameters.acknowledged else 0
        word = np.dtype(masks.word_type(parameters.bits)).newbyteorder("<")
        width = parameters.word_bytes
        if width == word.itemsize:
            words: Words = np.frombuffer(body[signed:], dtype=word)
        else:
            rows = np.zeros((parameters.length, word.itemsize), dtype=np.uint8)
            rows[:, :width] = np.frombuffer(body[signed:], dtype=np.uint8).reshape(-1, width)
            words = rows.view(word).reshape(-1)
        if parameters.bits % 8 and int(words.max()) >> parameters.bits:
            raise Rejected(Reason.MALFORMED, f"a word of more than {parameters.bits} bits")
        return cls(words=words, acknowledgement=bytes(body[:signed]))

    @staticmethod
    def largest(parameters: Parameters) -> int:
        return parameters.length * parameters.word_bytes + (SIGNATURE_BYTES if parameters.acknowledged else 0)


@dataclass(frozen=True, kw_only=True)
class Survivors(Content):
    """The server's: whose masked vectors have come, and, of the receiver's neighbours, with what acknowledgements."""

    members: tuple[int, ...]
    acknowledgements: Entries = ()
    kind: ClassVar[Kind] = Kind.SURVIVORS

    def body(self, parameters: Parameters) -> list[Part]:
        return [wire.bitmap(self.members, parameters.clients), *wire.write_entries(self.acknowledgements)]

    @classmethod
    def read(cls, body: memoryview, parameters: Parameters) -> Survivors:
        members, rest = wire.read_bitmap(body, parameters.clients)
        if rest and not parameters.acknowledged:
            raise Rejected(Reason.MALFORMED, "something after the survivors")
        return cls(members=members, acknowledgements=wire.read_entries(rest, SIGNATURE_BYTES, parameters.clients))

    @staticmethod
    def largest(parameters: Parameters) -> int:
        each = wire.NUMBER_BYTES + SIGNATURE_BYTES
        return wire.bitmap_bytes(parameters.clients) + (_links(parameters) * each if parameters.acknowledged else 0)


@dataclass(frozen=True, kw_only=True)
class Check(Content):
    """A client's word, signed, for the one set of survivors it was told of: the hash of session and survivors."""

    digest: bytes
    kind: ClassVar[Kind] = Kind.CHECK

    def body(self, parameters: Parameters) -> list[Part]:
        return [self.digest]

    @classmethod
    def read(cls, body: memoryview, _: Parameters) -> Check:
        wire.exactly(body, KEY_BYTES)
        return cls(digest=bytes(body))

    @staticmethod
    def largest(_: Parameters) -> int:
        return KEY_BYTES


@dataclass(frozen=True, kw_only=True)
class Signatures(Content):
    """The server's: the seals of everyone's Check."""

    signatures: Entries
    kind: ClassVar[Kind] = Kind.SIGNATURES

    def body(self, parameters: Parameters) -> list[Part]:
        return wire.write_entries(self.signatures)

    @classmethod
    def read(cls, body: memoryview, parameters: Parameters) -> Signatures:
        return cls(signatures=wire.read_entries(body, SIGNATURE_BYTES, parameters.clients))

    @staticmethod
    def largest(parameters: Parameters) -> int:
        return parameters.clients * (wire.NUMBER_BYTES + SIGNATURE_BYTES)


@dataclass(frozen=True, kw_only=True)
class Unmask(Content):
    """A client's: one share for each of those whose shares it holds, by their numbers.

    Of the self-mask secret where the owner survived, of the mask key where it did not: which is not said, so that both
    cannot be.
    """

    shares: tuple[tuple[int, int], ...]
    kind: ClassVar[Kind] = Kind.UNMASK

    def body(self, parameters: Parameters) -> list[Part]:
        return wire.write_entries((owner, wire.write_share(share)) for owner, share in self.shares)

    @classmethod
    def read(cls, body: memoryview, parameters: Parameters) -> Unmask:
        listed = wire.read_entries(body, shamir.SHARE_BYTES, parameters.clients)
        return cls(shares=tuple((owner, wire.read_share(share)) for owner, share in listed))

    @staticmethod
    def largest(parameters: Parameters) -> int:
        return (_links(parameters) + 1) * (wire.NUMBER_BYTES + shamir.SHARE_BYTES)


Message: TypeAlias = Announce | Advert | Roster | Shares | Inbox | Masked | Survivors | Check | Signatures | Unmask

_TYPES: dict[Kind, type[Message]] = {
    each.kind: each for each in (Announce, Advert, Roster, Shares, Inbox, Masked, Survivors, Check, Signatures, Unmask)
}


@dataclass(frozen=True, kw_only=True)
class Received:
    """A message that arrived whole. client: who sent it, or whom the server sent it to. seal: as it came."""

    client: int
    message: Message
    seal: bytes


def _links(parameters: Parameters) -> int:
    """How many neighbours a client can have."""
    everyone = parameters.clients - 1
    return everyone if parameters.neighbours is None else min(parameters.neighbours, everyone)


@lru_cache(maxsize=64)
def largest(parameters: Parameters, kind: Kind | None = None) -> int:
    """Bytes of the longest message of a kind, or of any, that these parameters allow."""
    if kind is None:
        return max(largest(parameters, each) for each in Kind)
    seal = wire.seal_bytes(kind, parameters.malicious)
    return wire.HEADER_BYTES + _TYPES[kind].largest(parameters) + seal


def encode(
    message: Message,
    *,
    parameters: Parameters,
    context: Context,
    client: int,
    identity: Ed25519PrivateKey | None = None,
) -> bytes:
    """The message on the wire. identity: the client's, where clients sign."""
    return wire.write(message.kind, context, client, message.body(parameters), identity)


def text(message: Message, *, parameters: Parameters, context: Context, client: int) -> bytes:
    """What the seal of this message by this client is of; for those who verify one that was handed on."""
    return wire.sealed_text(message.kind, context, client, message.body(parameters))


def parse(
    raw: Part, *, parameters: Parameters, contexts: Sequence[Context], registry: Sequence[bytes] = ()
) -> Received:
    """The message in `raw`, its seal checked; a masked vector is a view of it. Raises Rejected.

    contexts: the one of each client, or only one for all. registry: the clients' identities, where they sign. What is
    allocated is in proportion to the length of `raw`, and that is at most `largest(parameters)`.
    """
    if len(raw) > largest(parameters):
        raise Rejected(Reason.TOO_LARGE, f"{len(raw)} bytes; no message has more than {largest(parameters)}")
    envelope = wire.Envelope.read(raw, clients=parameters.clients, signed=parameters.malicious)
    if len(raw) > largest(parameters, envelope.kind):
        raise Rejected(Reason.TOO_LARGE, f"{len(raw)} bytes of {envelope.kind.name.lower()}")
    signed = parameters.malicious and envelope.kind.of_client
    context = contexts[envelope.client] if len(contexts) > 1 else contexts[0]
    envelope.verify(context, registry[envelope.client] if signed else None)
    message = _TYPES[envelope.kind].read(envelope.body, parameters)
    return Received(client=envelope.client, message=message, seal=envelope.seal)
