"""What a client refuses, with what reason, and that a refusal leaves it as it was."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest

from defenses.secagg import keys
from defenses.secagg.client import Client
from defenses.secagg.messages import Announce, Inbox, Message, Roster, Survivors
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Reason
from fl_core.errors import InputError
from tests.cohorts import MODEL, Cohort, cohort, forged, of, reason, source, tampered

COMPLETE = Parameters.complete(6, 4, 24, 4)
SIGNED = Parameters.complete(6, 4, 24, malicious=True)
SPARSE = Parameters(clients=12, length=4, bits=24, threshold=3, quorum=9, neighbours=6, window=2, malicious=True)
PLAIN_SPARSE = dataclasses.replace(SPARSE, window=0, malicious=False)
ALL = [COMPLETE, SIGNED, PLAIN_SPARSE, SPARSE]
LAYOUT = struct.Struct("<IQBIIII?")  # of encoded parameters
NAMES = ["complete", "complete, signed", "sparse", "sparse, signed"]


# The announcement.


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_a_shrunken_threshold_is_refused(parameters):
    fields = list(LAYOUT.unpack(parameters.encoded()))
    for place, name in ((3, "threshold"), (4, "quorum"), (6, "window")):
        assert fields[place] == getattr(parameters, name)
        if fields[place]:
            lower = LAYOUT.pack(*fields[:place], fields[place] - 1, *fields[place + 1 :])

            def ask(_: Cohort, message: Message, lower: bytes = lower) -> Message:
                assert isinstance(message, Announce)
                return dataclasses.replace(message, parameters=lower)

            assert tampered(parameters, Stage.KEYS, ask) is Reason.THRESHOLD


def test_other_parameters_or_another_model_are_refused():
    def longer(_: Cohort, message: Message) -> Message:
        return dataclasses.replace(message, parameters=dataclasses.replace(COMPLETE, length=5).encoded())

    def model(_: Cohort, message: Message) -> Message:
        return dataclasses.replace(message, model=b"n" * 32)

    assert tampered(COMPLETE, Stage.KEYS, longer) is Reason.CONTEXT
    assert tampered(COMPLETE, Stage.KEYS, model) is Reason.CONTEXT


def test_a_message_for_another_client_or_by_a_client_is_refused():
    played = cohort(COMPLETE)
    told = played.server.open()
    assert reason(played.clients[0], told[1]) is Reason.UNKNOWN
    answer = played.clients[0].answer(told[0])
    assert reason(played.clients[0], answer) is Reason.OUT_OF_ORDER


# The roster.


def without(message: Roster, *clients: int) -> Roster:
    """The roster without some members."""
    kept = [place for place, member in enumerate(message.members) if member not in clients]
    return dataclasses.replace(
        message,
        members=tuple(message.members[place] for place in kept),
        leaves=tuple(message.leaves[place] for place in kept) if message.leaves else (),
        adverts=tuple(one for one in message.adverts if one[0] not in clients),
    )


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_a_roster_of_too_few_or_without_the_client_is_refused(parameters):
    few = tuple(range(parameters.quorum - 1, parameters.clients))
    assert tampered(parameters, Stage.SHARES, of(Roster, lambda one: without(one, *few))) is Reason.THRESHOLD
    assert tampered(parameters, Stage.SHARES, of(Roster, lambda one: without(one, 0))) is Reason.UNKNOWN


@pytest.mark.parametrize("parameters", [COMPLETE, SIGNED], ids=NAMES[:2])
def test_on_the_complete_graph_every_member_s_keys_have_to_be_there(parameters):
    def less(one: Roster) -> Roster:
        return dataclasses.replace(one, adverts=one.adverts[1:])

    def more(one: Roster) -> Roster:
        return dataclasses.replace(without(one, 5), adverts=one.adverts)

    for change in (less, more):
        assert tampered(parameters, Stage.SHARES, of(Roster, change)) is Reason.GRAPH


@pytest.mark.parametrize("parameters", [PLAIN_SPARSE, SPARSE], ids=NAMES[2:])
def test_neighbours_that_the_server_has_picked_are_refused(parameters):
    def pick(played: Cohort, message: Message) -> Message:
        assert isinstance(message, Roster)
        listed = dict(message.adverts)
        stranger = next(client for client in message.members if client not in listed and client != 0)
        del listed[min(listed)]
        listed[stranger] = played.server._listings[stranger]
        return dataclasses.replace(message, adverts=tuple(sorted(listed.items())))

    assert tampered(parameters, Stage.SHARES, pick) is Reason.GRAPH


@pytest.mark.parametrize("parameters", [PLAIN_SPARSE, SPARSE], ids=NAMES[2:])
def test_a_ring_that_is_not_the_hash_of_the_keys_is_refused(parameters):
    # The server moves the ring by claiming other hashes, for a neighbour or for someone far away.
    def near(one: Roster) -> Roster:
        place = one.members.index(one.adverts[0][0])
        leaves = list(one.leaves)
        leaves[place] = b"x" * 32
        return dataclasses.replace(one, leaves=tuple(leaves))

    def own(one: Roster) -> Roster:
        return dataclasses.replace(one, leaves=(b"x" * 32, *one.leaves[1:]))

    for change in (near, own):
        assert tampered(parameters, Stage.SHARES, of(Roster, change)) is Reason.INCONSISTENT

    def far(one: Roster) -> Roster:
        listed = dict(one.adverts)
        place = max(place for place, member in enumerate(one.members) if member not in listed and member != 0)
        leaves = list(one.leaves)
        leaves[place] = b"x" * 32
        return dataclasses.replace(one, leaves=tuple(leaves))

    # Another ring, and so most likely other neighbours: here they are.
    assert tampered(parameters, Stage.SHARES, of(Roster, far)) is Reason.GRAPH


def test_a_key_that_leads_to_no_secret_is_refused():
    for field in ("share_key", "mask_key"):
        assert tampered(COMPLETE, Stage.SHARES, forged(field, lambda _: bytes(32))) is Reason.BAD_KEY


def test_a_key_that_someone_else_has_is_refused():
    own = forged("mask_key", lambda played: played.server._adverts[0].mask_key)
    another = forged("share_key", lambda played: played.server._adverts[3].mask_key)
    assert tampered(COMPLETE, Stage.SHARES, own) is Reason.REPEATED
    assert tampered(COMPLETE, Stage.SHARES, another) is Reason.REPEATED


# The inbox.


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_shares_have_to_be_there_of_all_who_are_said_to_have_dealt_them_and_of_no_one_else(parameters):
    def missing(one: Inbox) -> Inbox:
        return dataclasses.replace(one, sealed=one.sealed[1:])

    def extra(one: Inbox) -> Inbox:
        gone = one.sealed[0][0]
        return dataclasses.replace(one, members=tuple(member for member in one.members if member != gone))

    for change in (missing, extra):
        assert tampered(parameters, Stage.MASKED, of(Inbox, change)) is Reason.INCONSISTENT


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_an_inbox_of_too_few_or_without_the_client_is_refused(parameters):
    def few(one: Inbox) -> Inbox:
        members = one.members[: parameters.quorum - 1]
        return Inbox(members=members, sealed=tuple(entry for entry in one.sealed if entry[0] in members))

    def left_out(one: Inbox) -> Inbox:
        return dataclasses.replace(one, members=one.members[1:])

    assert tampered(parameters, Stage.MASKED, of(Inbox, few)) is Reason.THRESHOLD
    assert tampered(parameters, Stage.MASKED, of(Inbox, left_out)) is Reason.UNKNOWN


def test_shares_of_someone_who_advertised_no_keys_are_refused():
    played = cohort(COMPLETE)
    told = played.play(until=Stage.MASKED, drops={5: Stage.KEYS})
    message = played.read(told[0])
    assert isinstance(message, Inbox)
    ghost = Inbox(members=(*message.members, 5), sealed=(*message.sealed, (5, message.sealed[-1][1])))
    assert reason(played.clients[0], played.from_server(0, ghost)) is Reason.UNKNOWN


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_shares_for_another_by_another_or_of_another_round_do_not_decrypt(parameters):
    def swapped(one: Inbox) -> Inbox:
        (first, sealed), (second, other), *rest = one.sealed
        return dataclasses.replace(one, sealed=((first, other), (second, sealed), *rest))

    assert tampered(parameters, Stage.MASKED, of(Inbox, swapped)) is Reason.BAD_SHARE

    def another_s(played: Cohort, message: Message) -> Message:
        assert isinstance(message, Inbox)
        (sender, _), *rest = message.sealed
        theirs = next(sealed for to, sealed in played.server._shares[sender].items() if to != 0)
        return dataclasses.replace(message, sealed=((sender, theirs), *rest))

    assert tampered(parameters, Stage.MASKED, another_s) is Reason.BAD_SHARE

    def last_round_s(played: Cohort, message: Message) -> Message:
        # With the very same keys: only the round's number is another.
        earlier = cohort(parameters, contexts=[parameters.context(0, MODEL)] * parameters.clients)
        earlier.play(until=Stage.MASKED)
        assert isinstance(message, Inbox)
        senders = [sender for sender, _ in message.sealed]
        entries = tuple((sender, earlier.server._shares[sender].get(0, bytes(82))) for sender in senders)
        return dataclasses.replace(message, sealed=entries)

    assert tampered(parameters, Stage.MASKED, last_round_s) is Reason.BAD_SHARE


# The survivors.


def last_but(parameters: Parameters) -> Stage:
    return Stage.CHECK if parameters.malicious else Stage.UNMASK


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_survivors_who_are_too_few_or_without_the_client_are_refused(parameters):
    stage = last_but(parameters)

    def few(one: Survivors) -> Survivors:
        return dataclasses.replace(one, members=one.members[: parameters.quorum - 1])

    def left_out(one: Survivors) -> Survivors:
        return dataclasses.replace(one, members=one.members[1:])

    assert tampered(parameters, stage, of(Survivors, few)) is Reason.THRESHOLD
    assert tampered(parameters, stage, of(Survivors, left_out)) is Reason.UNKNOWN


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_a_survivor_who_dealt_no_shares_is_refused(parameters):
    played = cohort(parameters)
    told = played.play(until=last_but(parameters), drops={3: Stage.SHARES})
    message = played.read(told[0])
    assert isinstance(message, Survivors)
    ghost = dataclasses.replace(message, members=tuple(sorted((*message.members, 3))))
    assert reason(played.clients[0], played.from_server(0, ghost)) is Reason.UNKNOWN


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_no_client_gives_away_shares_of_both_secrets_of_one_client(parameters):
    """The server asks again, and now client 3 has dropped out."""
    stage = last_but(parameters)
    played = cohort(parameters)
    told = played.play(until=stage)
    played.clients[0].answer(told[0])
    first = played.read(told[0])
    assert isinstance(first, Survivors)
    second = dataclasses.replace(
        first,
        members=tuple(member for member in first.members if member != 3),
        acknowledgements=tuple(one for one in first.acknowledgements if one[0] != 3),
    )
    assert reason(played.clients[0], played.from_server(0, second)) is Reason.BOTH_SECRETS
    assert reason(played.clients[0], told[0]) is Reason.REPEATED


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_every_message_is_taken_once_and_in_its_place(parameters):
    kinds: list[bytes] = []
    played = cohort(parameters)
    told = played.server.open()
    while told:
        kinds.append(told[0])
        for client, raw in told.items():
            played.server.receive(played.clients[client].answer(raw))
        told = played.server.close()
    for place in range(len(kinds)):
        again = cohort(parameters)
        for raw in kinds[:place]:
            again.clients[0].answer(raw)
        for early in kinds[place + 1 :]:
            assert reason(again.clients[0], early) is Reason.OUT_OF_ORDER
        again.clients[0].answer(kinds[place])
        for late in kinds[: place + 1]:
            assert reason(again.clients[0], late) is Reason.REPEATED


# How a client is made.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"number": 6}, "numbered from 0 to 5"),
        ({"vector": np.zeros(5, dtype=np.uint32)}, r"uint32\[5\]; it must be uint32\[4\]"),
        ({"vector": np.zeros(4, dtype=np.int64)}, "int64"),
        ({"vector": np.full(4, 1 << 24, dtype=np.uint32)}, "holds 16777216"),
        ({"context": COMPLETE.context(1, MODEL)}, "other parameters"),
        ({"identity": None}, "needs its identity"),
        ({"identity": keys.identity(b"x" * 32)}, "needs its identity"),
        ({"registry": ()}, "registry of all 6"),
    ],
)
def test_a_client_that_cannot_be_is_an_input_error(fields, said):
    played = cohort(SIGNED)
    right = {
        "number": 0,
        "vector": played.vectors[0],
        "parameters": SIGNED,
        "context": SIGNED.context(1, MODEL),
        "random": source("made"),
        "identity": played.signers[0],
        "registry": played.server.registry,
    }
    with pytest.raises(InputError, match=said):
        Client(**right | fields)
