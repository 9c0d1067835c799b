"""What is written is read back; what is not laid out as it must be is refused, without allocating what it claims."""

from __future__ import annotations

import dataclasses
import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses.secagg import keys, masks, messages, shamir, wire
from defenses.secagg.messages import (
    Advert,
    Announce,
    Check,
    Inbox,
    Masked,
    Message,
    Roster,
    Shares,
    Signatures,
    Survivors,
    Unmask,
)
from defenses.secagg.parameters import Parameters
from defenses.secagg.protocol import identities
from defenses.secagg.refusals import Reason, Rejected
from defenses.secagg.wire import Kind
from tests.cohorts import MODEL, source

SIGNERS, REGISTRY = identities(9, source("messages"))
COMPLETE = Parameters.complete(9, 7, 20)
SPARSE = Parameters(clients=9, length=7, bits=40, threshold=3, quorum=7, neighbours=4, window=1, malicious=True)


@st.composite
def drawn(draw: st.DrawFn, parameters: Parameters) -> Message:
    """Any message that these parameters allow."""
    kind = draw(st.sampled_from(list(Kind)))
    signed = keys.SIGNATURE_BYTES if parameters.malicious else 0
    links = parameters.neighbours or parameters.clients - 1

    def some(most: int = parameters.clients) -> list[int]:
        return sorted(draw(st.sets(st.integers(0, parameters.clients - 1), max_size=most)))

    def entries(width: int, most: int = parameters.clients) -> tuple[tuple[int, bytes], ...]:
        return tuple((client, draw(st.binary(min_size=width, max_size=width))) for client in some(most))

    key = st.binary(min_size=32, max_size=32)
    match kind:
        case Kind.ANNOUNCE:
            return Announce(parameters=parameters.encoded(), model=draw(key))
        case Kind.ADVERT:
            return Advert(share_key=draw(key), mask_key=draw(key), commitment=draw(key))
        case Kind.ROSTER:
            members = some()
            leaves = tuple(draw(key) for _ in members) if parameters.neighbours else ()
            return Roster(members=tuple(members), leaves=leaves, adverts=entries(96 + signed, links))
        case Kind.SHARES:
            return Shares(sealed=entries(messages.SEALED_BYTES, links))
        case Kind.INBOX:
            return Inbox(members=tuple(some()), sealed=entries(messages.SEALED_BYTES, links))
        case Kind.MASKED:
            words = draw(st.lists(st.integers(0, 2**parameters.bits - 1), min_size=7, max_size=7))
            signature = draw(st.binary(min_size=64, max_size=64)) if parameters.acknowledged else b""
            made = np.array(words, dtype=masks.word_type(parameters.bits))
            return Masked(words=made, acknowledgement=signature)
        case Kind.SURVIVORS:
            return Survivors(
                members=tuple(some()), acknowledgements=entries(64, links) if parameters.acknowledged else ()
            )
        case Kind.CHECK:
            return Check(digest=draw(key))
        case Kind.SIGNATURES:
            return Signatures(signatures=entries(64))
        case Kind.UNMASK:
            return Unmask(shares=tuple((client, draw(st.integers(0, shamir.P - 1))) for client in some(links + 1)))


def encoded(message: Message, parameters: Parameters, client: int = 3, round: int = 1) -> bytes:
    signer = SIGNERS[client] if parameters.malicious and message.kind.of_client else None
    context = parameters.context(round, MODEL)
    return messages.encode(message, parameters=parameters, context=context, client=client, identity=signer)


def parsed(raw: bytes, parameters: Parameters) -> messages.Received:
    return messages.parse(raw, parameters=parameters, contexts=[parameters.context(1, MODEL)], registry=REGISTRY)


def refused(raw: bytes, parameters: Parameters) -> Reason:
    with pytest.raises(Rejected) as refusal:
        parsed(raw, parameters)
    return refusal.value.reason


def same(one: Message, other: Message) -> bool:
    if isinstance(one, Masked) and isinstance(other, Masked):
        return one.acknowledgement == other.acknowledgement and one.words.tolist() == other.words.tolist()
    return one == other


@pytest.mark.parametrize("parameters", [COMPLETE, SPARSE], ids=["complete", "sparse, signed"])
def test_every_message_is_read_back_as_it_was_written(parameters):
    @given(drawn(parameters))
    def check(message: Message) -> None:
        raw = encoded(message, parameters)
        got = parsed(raw, parameters)
        assert got.client == 3
        assert same(got.message, message)
        assert len(raw) <= messages.largest(parameters, message.kind)

    check()


@pytest.mark.parametrize("parameters", [COMPLETE, SPARSE], ids=["complete", "sparse, signed"])
def test_a_message_that_is_cut_anywhere_is_refused(parameters):
    everyone = tuple(range(9))
    signed = 64 if parameters.malicious else 0
    links = everyone[: parameters.neighbours or 8]
    whole: list[Message] = [
        Announce(parameters=parameters.encoded(), model=MODEL),
        Advert(share_key=b"s" * 32, mask_key=b"m" * 32, commitment=b"c" * 32),
        Roster(
            members=everyone,
            leaves=(b"l" * 32,) * 9 if parameters.neighbours else (),
            adverts=tuple((client, bytes(96 + signed)) for client in links),
        ),
        Shares(sealed=tuple((client, bytes(messages.SEALED_BYTES)) for client in links)),
        Inbox(members=everyone, sealed=tuple((client, bytes(messages.SEALED_BYTES)) for client in links)),
        Masked(words=np.zeros(7, dtype=masks.word_type(parameters.bits)), acknowledgement=bytes(signed)),
        Survivors(members=everyone, acknowledgements=tuple((client, bytes(64)) for client in links) if signed else ()),
        Check(digest=bytes(32)),
        Signatures(signatures=tuple((client, bytes(64)) for client in everyone)),
        Unmask(shares=tuple((client, 5) for client in everyone[: len(links) + 1])),
    ]
    assert [message.kind for message in whole] == list(Kind)
    for message in whole:
        raw = encoded(message, parameters)
        assert len(raw) == messages.largest(parameters, message.kind)
        assert same(parsed(raw, parameters).message, message)
        for end in range(len(raw)):
            assert refused(raw[:end], parameters) in (Reason.MALFORMED, Reason.BAD_SEAL)
        assert refused(raw + b"\0", parameters) is Reason.TOO_LARGE


def resealed(kind: Kind, body: bytes, parameters: Parameters, client: int = 3) -> bytes:
    """A body that nobody would write, under a seal that is right."""
    signer = SIGNERS[client] if parameters.malicious and kind.of_client else None
    return wire.write(kind, parameters.context(1, MODEL), client, [body], signer)


def entry(client: int, width: int) -> bytes:
    return struct.pack("<I", client) + bytes(width)


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        (Kind.ANNOUNCE, b"", Reason.MALFORMED),
        (Kind.ADVERT, bytes(95), Reason.MALFORMED),
        (Kind.ROSTER, b"\xff", Reason.MALFORMED),
        (Kind.ROSTER, b"\xff\x02" + bytes(10), Reason.UNKNOWN),
        (Kind.ROSTER, b"\x03\x00" + bytes(33), Reason.MALFORMED),
        (Kind.ROSTER, b"\x03\x00" + bytes(64) + entry(9, 160), Reason.UNKNOWN),
        (Kind.SHARES, entry(2, 82) + entry(2, 82), Reason.REPEATED),
        (Kind.SHARES, entry(2, 82) + entry(1, 82), Reason.REPEATED),
        (Kind.SHARES, entry(2, 81), Reason.MALFORMED),
        (Kind.SHARES, b"".join(entry(client, 82) for client in range(5)), Reason.TOO_LARGE),
        (Kind.INBOX, b"\x00\x04", Reason.UNKNOWN),
        (Kind.MASKED, bytes(64 + 34), Reason.MALFORMED),
        (Kind.SURVIVORS, b"\x01\x00" + entry(2**32 - 1, 64), Reason.UNKNOWN),
        (Kind.CHECK, bytes(31), Reason.MALFORMED),
        (Kind.SIGNATURES, entry(0, 64) + bytes(1), Reason.MALFORMED),
        (Kind.UNMASK, struct.pack("<I", 1) + shamir.P.to_bytes(33, "little"), Reason.BAD_SHARE),
        (Kind.UNMASK, struct.pack("<I", 1) + b"\xff" * 33, Reason.BAD_SHARE),
    ],
)
def test_a_body_that_is_laid_out_wrongly_is_refused_under_the_right_seal(kind, body, reason):
    assert refused(resealed(kind, body, SPARSE), SPARSE) is reason


def test_survivors_with_something_after_them_are_refused_where_nothing_belongs():
    assert refused(resealed(Kind.SURVIVORS, b"\x01\x00" + bytes(16), COMPLETE), COMPLETE) is Reason.TOO_LARGE


def test_a_word_past_the_modulus_is_refused():
    # 20 bits in 3 bytes: there is room for 4 more, which must be zero.
    body = bytearray(21)
    body[2] = 0x0F
    assert parsed(resealed(Kind.MASKED, bytes(body), COMPLETE), COMPLETE).message.words[0] == 0x0F0000
    body[2] = 0x10
    assert refused(resealed(Kind.MASKED, bytes(body), COMPLETE), COMPLETE) is Reason.MALFORMED


def test_every_field_of_the_header_is_checked():
    message = Check(digest=bytes(32))
    raw = encoded(message, SPARSE)

    def with_header(magic: bytes = b"MSA1", kind: int = Kind.CHECK, round: int = 1, client: int = 3) -> bytes:
        return struct.pack("<4sBQI", magic, kind, round, client) + raw[wire.HEADER_BYTES :]

    assert with_header() == raw
    assert refused(with_header(magic=b"MSA2"), SPARSE) is Reason.MALFORMED
    assert refused(with_header(kind=0), SPARSE) is Reason.MALFORMED
    assert refused(with_header(kind=11), SPARSE) is Reason.MALFORMED
    assert refused(with_header(kind=Kind.ADVERT), SPARSE) is Reason.BAD_SEAL
    assert refused(with_header(round=2), SPARSE) is Reason.WRONG_ROUND
    assert refused(with_header(client=4), SPARSE) is Reason.BAD_SEAL
    assert refused(with_header(client=9), SPARSE) is Reason.UNKNOWN


@pytest.mark.parametrize("parameters", [COMPLETE, SPARSE], ids=["complete", "sparse, signed"])
def test_a_seal_is_of_one_context_one_client_and_one_signer(parameters):
    message = Shares(sealed=())
    context = dataclasses.replace(parameters.context(1, MODEL), model=b"n" * 32)
    for raw in (
        messages.encode(message, parameters=parameters, context=context, client=3, identity=SIGNERS[3]),
        wire.write(Kind.SHARES, parameters.context(1, MODEL), 3, [], SIGNERS[2]),
    ):
        if parameters.malicious:
            assert refused(raw, parameters) is Reason.BAD_SEAL
    assert refused(wire.write(Kind.SHARES, context, 3, []), COMPLETE) is Reason.BAD_SEAL


def test_a_message_that_claims_to_be_huge_allocates_nothing():
    # Everything that is read from a message is in proportion to what arrived; what arrived is bounded first.
    rng = random.Random(0)
    large = dataclasses.replace(SPARSE, length=1 << 20)
    huge = bytes(messages.largest(large) + 1)
    hostile = [resealed(kind, rng.randbytes(200), large) for kind in Kind for _ in range(20)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for raw in [*hostile, huge]:
            with pytest.raises(Rejected):
                messages.parse(raw, parameters=large, contexts=[large.context(1, MODEL)], registry=REGISTRY)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_masked_vector_is_not_copied_where_a_word_fills_its_bytes():
    parameters = Parameters.complete(3, 1 << 18, 32)
    words = np.arange(1 << 18, dtype=np.uint32)
    raw = messages.encode(Masked(words=words), parameters=parameters, context=parameters.context(1, MODEL), client=0)
    assert len(raw) - words.nbytes == wire.HEADER_BYTES + wire.CHECKSUM_BYTES
    tracemalloc.start()
    try:
        got = messages.parse(raw, parameters=parameters, contexts=[parameters.context(1, MODEL)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(got.message, Masked)
    assert np.array_equal(got.message.words, words)
    assert peak < 20_000
