"""Bytes on the wire: header, body and seal, and the layouts that bodies are made of."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from defenses.secagg import keys, shamir
from defenses.secagg.keys import SIGNATURE_BYTES, Context
from defenses.secagg.refusals import Reason, Rejected

MAGIC = b"MSA1"
CHECKSUM_BYTES = 16

Part: TypeAlias = bytes | memoryview
Entries: TypeAlias = tuple[tuple[int, bytes], ...]

_HEADER = struct.Struct("<4sBQI")
_NUMBER = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
NUMBER_BYTES = _NUMBER.size


class Kind(IntEnum):
    """In the order of a round; the even ones come from a client."""

    ANNOUNCE = 1
    ADVERT = 2
    ROSTER = 3
    SHARES = 4
    INBOX = 5
    MASKED = 6
    SURVIVORS = 7
    CHECK = 8
    SIGNATURES = 9
    UNMASK = 10

    @property
    def of_client(self) -> bool:
        """Whether clients send it, and not the server."""
        return self % 2 == 0


def sealed_text(kind: Kind, context: Context, client: int, body: Iterable[Part]) -> bytes:
    """The 32 bytes that a seal is of: everything that the message says, and the context it says it in."""
    whole = hashlib.sha256()
    for part in body:
        whole.update(part)
    named = (b"message", context.digest, keys.number(kind), keys.number(client), whole.digest())
    return hashlib.sha256(keys.fields(context.label, *named)).digest()


def write(
    kind: Kind, context: Context, client: int, body: Sequence[Part], identity: Ed25519PrivateKey | None = None
) -> bytes:
    """A message; sealed by `identity`'s signature if there is one."""
    text = sealed_text(kind, context, client, body)
    seal = text[:CHECKSUM_BYTES] if identity is None else keys.sign(identity, text)
    return b"".join([_HEADER.pack(MAGIC, kind, context.round, client), *body, seal])


def seal_bytes(kind: Kind, signed: bool) -> int:
    """The seal's length; `signed` says whether clients sign."""
    return SIGNATURE_BYTES if signed and kind.of_client else CHECKSUM_BYTES


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A message as it came, its seal not yet checked. body is a view of what arrived."""

    kind: Kind
    round: int
    client: int
    body: memoryview
    seal: bytes

    @classmethod
    def read(cls, raw: Part, *, clients: int, signed: bool) -> Envelope:
        """Take it apart. Raises Rejected (MALFORMED, or UNKNOWN for a client past `clients`)."""
        view = memoryview(raw).cast("B")
        if len(view) < HEADER_BYTES:
            raise Rejected(Reason.MALFORMED, f"{len(view)} bytes are no message")
        magic, code, round, client = _HEADER.unpack(view[:HEADER_BYTES])
        if magic != MAGIC or not Kind.ANNOUNCE <= code <= Kind.UNMASK:
            raise Rejected(Reason.MALFORMED, "not a message of this protocol")
        kind = Kind(code)
        if client >= clients:
            raise Rejected(Reason.UNKNOWN, f"client {client} of {clients}")
        end = len(view) - seal_bytes(kind, signed)
        if end < HEADER_BYTES:
            raise Rejected(Reason.MALFORMED, "cut before its seal")
        return cls(kind=kind, round=round, client=client, body=view[HEADER_BYTES:end], seal=bytes(view[end:]))

    def verify(self, context: Context, name: bytes | None) -> None:
        """Raise Rejected unless it is of the context's round (WRONG_ROUND) and its seal right (BAD_SEAL).

        name: of the identity that must have signed it; None where it bears a checksum.
        """
        if self.round != context.round:
            raise Rejected(Reason.WRONG_ROUND, f"a message of round {self.round} in round {context.round}")
        text = sealed_text(self.kind, context, self.client, [self.body])
        if name is not None:
            keys.verify(name, self.seal, text)
        elif self.seal != text[:CHECKSUM_BYTES]:
            raise Rejected(Reason.BAD_SEAL, "changed on the way, or made in another context")


def roster_digest(members: Iterable[int], leaves: Iterable[bytes], registry: Sequence[bytes], clients: int) -> bytes:
    """The hash of everybody's public keys, and of the identities they are signed with: a session's second half.

    leaves: the hash of each member's Advert, in order.
    """
    named = hashlib.sha256(keys.fields(*registry)).digest()
    return hashlib.sha256(keys.fields(named, bitmap(members, clients), *leaves)).digest()


def acknowledged_text(session: bytes, client: int, dealt: Iterable[int], clients: int) -> bytes:
    """What a client signs once it has masked its vector: among whom, in which session."""
    parts = (keys.LABEL, b"acknowledged", session, keys.number(client), bitmap(dealt, clients))
    return hashlib.sha256(keys.fields(*parts)).digest()


def survivors_digest(session: bytes, dealt: Iterable[int], survivors: Iterable[int], clients: int) -> bytes:
    """What everyone's Check has to hold: the session, who dealt shares, and who survived to be summed."""
    parts = (keys.LABEL, b"survivors", session, bitmap(dealt, clients), bitmap(survivors, clients))
    return hashlib.sha256(keys.fields(*parts)).digest()


def exactly(body: memoryview, size: int) -> None:
    """Raise Rejected unless `body` has `size` bytes."""
    if len(body) != size:
        raise Rejected(Reason.MALFORMED, f"{len(body)} bytes where there must be {size}")


def bitmap_bytes(clients: int) -> int:
    """How many bytes a bit for each of so many clients takes."""
    return (clients + 7) // 8


def bitmap(members: Iterable[int], clients: int) -> bytes:
    """A bit for each client, the first in the lowest bit of the first byte."""
    bits = np.zeros(clients, dtype=bool)
    bits[list(members)] = True
    return np.packbits(bits, bitorder="little").tobytes()


def read_bitmap(body: memoryview, clients: int) -> tuple[tuple[int, ...], memoryview]:
    """Its members in order, and what follows it."""
    size = bitmap_bytes(clients)
    if len(body) < size:
        raise Rejected(Reason.MALFORMED, "cut within its bitmap")
    bits = np.unpackbits(np.frombuffer(body[:size], dtype=np.uint8), bitorder="little")
    if bits[clients:].any():
        raise Rejected(Reason.UNKNOWN, f"a bit for a client past the {clients}")
    return tuple(np.flatnonzero(bits).tolist()), body[size:]


def write_entries(entries: Iterable[tuple[int, bytes]]) -> list[Part]:
    """Client numbers, each with what belongs to it."""
    return [part for client, value in entries for part in (_NUMBER.pack(client), value)]


def read_entries(body: memoryview, width: int, clients: int) -> Entries:
    """As many as there are bytes for; in order of their numbers, each once."""
    step = NUMBER_BYTES + width
    if len(body) % step or len(body) > clients * step:
        raise Rejected(Reason.MALFORMED, f"{len(body)} bytes are no list of at most {clients} entries of {step}")
    found = []
    last = -1
    for at in range(0, len(body), step):
        client = _NUMBER.unpack_from(body, at)[0]
        if client >= clients:
            raise Rejected(Reason.UNKNOWN, f"an entry for client {client} of {clients}")
        if client <= last:
            raise Rejected(Reason.REPEATED, f"client {client} twice in a list, or out of order")
        last = client
        found.append((client, bytes(body[at + NUMBER_BYTES : at + step])))
    return tuple(found)


def write_share(share: int) -> bytes:
    """A share in 33 bytes."""
    return share.to_bytes(shamir.SHARE_BYTES, "little")


def read_share(encoded: bytes) -> int:
    """The share; raises Rejected (BAD_SHARE) for a number that is none."""
    share = int.from_bytes(encoded, "little")
    if share >= shamir.P:
        raise Rejected(Reason.BAD_SHARE, "a number outside the field")
    return share
