"""What a client refuses beyond that where the server may be malicious: what others have not signed, and thin rings."""

from __future__ import annotations

import dataclasses

import pytest

from defenses.secagg import wire
from defenses.secagg.messages import Check, Inbox, Message, Signatures, Survivors
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Reason
from tests.cohorts import Cohort, cohort, forged, of, reason, tampered

SIGNED = Parameters.complete(6, 4, 24, malicious=True)
SPARSE = Parameters(clients=12, length=4, bits=24, threshold=3, quorum=9, neighbours=6, window=2, malicious=True)


def test_keys_that_their_owner_has_not_signed_are_refused():
    for field in ("share_key", "mask_key", "commitment"):
        assert tampered(SIGNED, Stage.SHARES, forged(field, lambda _: b"x" * 32)) is Reason.BAD_SEAL


def test_a_ring_with_a_gap_is_refused_against_a_malicious_server():
    def gap(played: Cohort, message: Message) -> Message:
        # Quorum and threshold are kept; but two of three in a row are said to be gone.
        ring = played.server._graph(0).ring
        place = ring.index(0) + 4
        gone = {ring[place % 12], ring[(place + 1) % 12]}
        members = tuple(member for member in message.members if member not in gone)
        assert len(members) >= SPARSE.quorum
        if isinstance(message, Inbox):
            return Inbox(members=members, sealed=tuple(one for one in message.sealed if one[0] not in gone))
        assert isinstance(message, Survivors)
        near = tuple(one for one in message.acknowledgements if one[0] not in gone)
        return Survivors(members=members, acknowledgements=near)

    assert tampered(SPARSE, Stage.MASKED, gap) is Reason.GRAPH
    assert tampered(SPARSE, Stage.CHECK, gap) is Reason.GRAPH


def test_an_acknowledgement_has_to_be_there_of_every_neighbour_and_to_be_signed_by_it():
    def missing(one: Survivors) -> Survivors:
        return dataclasses.replace(one, acknowledgements=one.acknowledgements[1:])

    def swapped(one: Survivors) -> Survivors:
        (first, mine), (second, theirs), *rest = one.acknowledgements
        return dataclasses.replace(one, acknowledgements=((first, theirs), (second, mine), *rest))

    assert tampered(SPARSE, Stage.CHECK, of(Survivors, missing)) is Reason.INCONSISTENT
    assert tampered(SPARSE, Stage.CHECK, of(Survivors, swapped)) is Reason.BAD_SEAL


@pytest.mark.parametrize("parameters", [SIGNED, SPARSE], ids=["complete", "sparse"])
def test_signatures_have_to_be_enough_and_of_survivors_for_these_survivors(parameters):
    def few(_: Cohort, message: Message) -> Message:
        assert isinstance(message, Signatures)
        return Signatures(signatures=message.signatures[: parameters.quorum - 1])

    def swapped(_: Cohort, message: Message) -> Message:
        assert isinstance(message, Signatures)
        (first, mine), (second, theirs), *rest = message.signatures
        return Signatures(signatures=((first, theirs), (second, mine), *rest))

    def other_survivors(played: Cohort, message: Message) -> Message:
        assert isinstance(message, Signatures)
        clients = parameters.clients
        digest = wire.survivors_digest(played.server._session(1), range(clients), range(clients - 1), clients)
        raw = played.from_client(1, Check(digest=digest))
        return Signatures(signatures=(message.signatures[0], (1, raw[-64:]), *message.signatures[2:]))

    assert tampered(parameters, Stage.UNMASK, few) is Reason.INCONSISTENT
    assert tampered(parameters, Stage.UNMASK, swapped) is Reason.BAD_SEAL
    assert tampered(parameters, Stage.UNMASK, other_survivors) is Reason.BAD_SEAL


def test_a_signature_by_someone_who_did_not_survive_is_refused():
    played = cohort(SIGNED)
    told = played.play(until=Stage.UNMASK, drops={4: Stage.MASKED})
    message = played.read(told[0])
    assert isinstance(message, Signatures)
    more = Signatures(signatures=tuple(sorted((*message.signatures, (4, bytes(64))))))
    assert reason(played.clients[0], played.from_server(0, more)) is Reason.UNKNOWN
