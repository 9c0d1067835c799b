"""What a server refuses, what ends a round, and that false shares never change a sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from defenses.secagg.messages import Advert, Check, Masked, Message, Shares, Unmask
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import Outcome, aggregate
from defenses.secagg.refusals import Aborted, Reason, Rejected
from defenses.secagg.server import Server
from fl_core.errors import InputError
from tests.cohorts import MODEL, Cohort, cohort, source, vectors

COMPLETE = Parameters.complete(6, 4, 24, 4)
SIGNED = Parameters.complete(6, 4, 24, malicious=True)
SPARSE = Parameters(clients=12, length=4, bits=24, threshold=3, quorum=9, neighbours=6, window=2, malicious=True)
ALL = [COMPLETE, SIGNED, SPARSE]
NAMES = ["complete", "complete, signed", "sparse, signed"]


def reason(server: Server, raw: bytes, sender: int | None = None) -> Reason:
    with pytest.raises(Rejected) as refused:
        server.receive(raw, sender)
    return refused.value.reason


def changed(parameters: Parameters, stage: Stage, change: Callable[[Cohort, Message], Message]) -> Reason:
    """Why the server refuses what client 2 has changed; the true message is then taken, and the round has its sum."""
    played = cohort(parameters)
    told = played.play(until=stage)
    answers = {client: played.clients[client].answer(raw) for client, raw in told.items()}
    false = played.from_client(2, change(played, played.read(answers[2])))
    found = reason(played.server, false)
    for answer in answers.values():
        played.server.receive(answer)
    played.play(outgoing=played.server.close())
    assert played.summed_rightly()
    return found


def test_keys_that_lead_to_no_secret_or_are_another_s_are_refused():
    def weak(_: Cohort, message: Message) -> Message:
        assert isinstance(message, Advert)
        return dataclasses.replace(message, share_key=bytes(32))

    def twice(_: Cohort, message: Message) -> Message:
        assert isinstance(message, Advert)
        return dataclasses.replace(message, share_key=message.mask_key)

    assert changed(COMPLETE, Stage.KEYS, weak) is Reason.BAD_KEY
    assert changed(COMPLETE, Stage.KEYS, twice) is Reason.REPEATED

    played = cohort(COMPLETE)
    told = played.server.open()
    answers = [played.clients[client].answer(told[client]) for client in told]
    played.server.receive(answers[0])
    copied = played.from_client(1, played.read(answers[0]))
    assert reason(played.server, copied) is Reason.REPEATED


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_shares_have_to_be_for_the_neighbours_and_of_all_whose_shares_are_held(parameters):
    def fewer(_: Cohort, message: Message) -> Message:
        if isinstance(message, Shares):
            return Shares(sealed=message.sealed[1:])
        assert isinstance(message, Unmask)
        return Unmask(shares=message.shares[1:])

    def for_itself(_: Cohort, message: Message) -> Message:
        assert isinstance(message, Shares)
        return Shares(sealed=tuple(sorted([*message.sealed[1:], (2, bytes(82))])))

    assert changed(parameters, Stage.SHARES, fewer) is Reason.INCONSISTENT
    assert changed(parameters, Stage.SHARES, for_itself) is Reason.INCONSISTENT
    assert changed(parameters, Stage.UNMASK, fewer) is Reason.INCONSISTENT


def test_a_false_acknowledgement_and_a_signature_for_others_are_refused():
    def another_s(_: Cohort, message: Message) -> Message:
        assert isinstance(message, Masked)
        return dataclasses.replace(message, acknowledgement=bytes(64))

    def others(_: Cohort, __: Message) -> Message:
        return Check(digest=b"x" * 32)

    assert changed(SPARSE, Stage.MASKED, another_s) is Reason.BAD_SEAL
    assert changed(SPARSE, Stage.CHECK, others) is Reason.INCONSISTENT


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_a_stage_s_messages_are_taken_once_from_those_who_are_there_and_never_late(parameters):
    played = cohort(parameters)
    outgoing = played.server.open()
    earlier: list[bytes] = []
    for stage in parameters.stages:
        answers = {client: played.clients[client].answer(outgoing[client]) for client in outgoing}
        for client, raw in answers.items():
            if (stage, client) != (Stage.SHARES, 5):  # is late
                assert reason(played.server, raw, sender=(client + 1) % 6) is Reason.UNKNOWN
                played.server.receive(raw, sender=client)
                assert reason(played.server, raw) is Reason.REPEATED
        outgoing = played.server.close()
        for raw in [*earlier, *answers.values()]:
            assert reason(played.server, raw) is Reason.OUT_OF_ORDER
        earlier += answers.values()
    assert 5 not in played.server.survivors
    assert played.summed_rightly()


def test_whoever_has_dropped_out_is_not_let_in_again():
    played, twin = cohort(COMPLETE), cohort(COMPLETE)
    told = played.play(until=Stage.MASKED, drops={5: Stage.SHARES})
    words = np.zeros(4, dtype=np.uint32)
    assert reason(played.server, twin.from_client(5, Masked(words=words))) is Reason.OUT_OF_ORDER
    played.play(outgoing=told)
    assert played.server.survivors == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_a_stranger_s_message_is_refused_where_clients_sign(parameters):
    played = cohort(parameters)
    told = played.server.open()
    answers = {client: played.clients[client].answer(told[client]) for client in told}
    if not parameters.malicious:
        # There the line has to say who it is.
        assert reason(played.server, answers[3], sender=4) is Reason.UNKNOWN
        return
    forged = played.from_client(3, played.read(answers[3]), signer=4)
    assert reason(played.server, forged) is Reason.BAD_SEAL


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
@pytest.mark.parametrize("secret", ["own mask", "key"])
def test_a_false_share_ends_the_round_and_changes_no_sum(parameters, secret):
    """Client 2 gives a false share: of a survivor's self-mask secret, or of the key of client 4, who dropped out."""
    played = cohort(parameters)
    told = played.play(until=Stage.UNMASK, drops={4: Stage.MASKED})
    near = played.server._graph(0).neighbours(4)
    liar = near[0]
    owner = 4 if secret == "key" else liar
    for client, raw in told.items():
        answer = played.clients[client].answer(raw)
        if client == liar:
            message = played.read(answer)
            assert isinstance(message, Unmask)
            shares = tuple((one, share ^ (one == owner)) for one, share in message.shares)
            answer = played.from_client(client, Unmask(shares=shares))
        played.server.receive(answer)
    with pytest.raises(Aborted, match=f"client {owner}"):
        played.server.close()
    assert played.server.total is None


def test_a_round_that_is_over_stays_over():
    played = cohort(COMPLETE)
    played.play()
    with pytest.raises(Aborted, match="over"):
        played.server.close()
    few = cohort(COMPLETE)
    with pytest.raises(Aborted, match="3 clients are left at the stage keys, of 4 that it takes"):
        few.play(drops={0: Stage.KEYS, 1: Stage.KEYS, 2: Stage.KEYS})
    late = few.clients[3]
    assert late.stage is Stage.SHARES
    assert reason(few.server, cohort(COMPLETE).clients[3].answer(few.server.open()[3])) is Reason.OUT_OF_ORDER
    with pytest.raises(Aborted, match="over"):
        few.server.close()


# Different models.


@pytest.mark.parametrize("parameters", [COMPLETE, SIGNED], ids=NAMES[:2])
@pytest.mark.parametrize("odd", [1, 3, 6])
def test_clients_that_were_sent_different_models_are_never_summed(parameters, odd):
    """One, three or all clients have another model, or another round, than the rest; the server plays along."""
    for other in (parameters.context(1, b"n" * 32), parameters.context(2, MODEL)):
        contexts = [other if client < odd else parameters.context(1, MODEL) for client in range(6)]
        if odd == 6:
            contexts = [parameters.context(1, bytes([client]) * 32) for client in range(6)]
        with pytest.raises(Aborted) as aborted:
            aggregate(vectors(parameters), parameters=parameters, contexts=contexts, random=source("models"))
        # All have noticed, before any had sent a masked vector: by a signature of another context, or by its shares.
        noticed = {client: refusal.reason for client, refusal in aborted.value.refusals.items()}
        assert noticed == dict.fromkeys(range(6), Reason.BAD_SEAL if parameters.malicious else Reason.BAD_SHARE)


@pytest.mark.parametrize("parameters", [dataclasses.replace(SPARSE, window=0, malicious=False), SPARSE])
@pytest.mark.parametrize("odd", [1, 3, 12])
def test_nor_are_they_on_a_sparse_graph_where_neighbours_notice(parameters, odd):
    contexts = [parameters.context(1, b"n" * 32)] * odd + [parameters.context(1, MODEL)] * (12 - odd)
    if odd == 12:
        contexts = [parameters.context(1, bytes([client]) * 32) for client in range(12)]
    with pytest.raises(Aborted) as aborted:
        aggregate(vectors(parameters), parameters=parameters, contexts=contexts, random=source("models"))
    assert set(aborted.value.refusals) >= set(range(odd))


def test_an_honest_server_turns_away_whoever_has_another_model_and_sums_the_rest():
    played = cohort(COMPLETE)
    stale = cohort(COMPLETE, contexts=[COMPLETE.context(1, b"n" * 32)] * 6)
    told = played.server.open()
    with pytest.raises(Rejected) as refused:
        stale.clients[5].answer(told[5])
    assert refused.value.reason is Reason.BAD_SEAL
    theirs = stale.clients[5].answer(stale.server.open()[5])
    assert reason(played.server, theirs) is Reason.BAD_SEAL
    played.play(drops={5: Stage.KEYS})
    assert played.summed_rightly()


# How a server and a round are made.


@pytest.mark.parametrize(
    ("contexts", "registry", "said"),
    [
        ([SIGNED.context(1, MODEL)] * 2, (bytes(32),) * 6, "2 contexts"),
        (COMPLETE.context(1, MODEL), (bytes(32),) * 6, "other parameters"),
        (SIGNED.context(1, MODEL), (bytes(32),) * 5, "registry has 5"),
    ],
)
def test_a_server_that_cannot_be_is_an_input_error(contexts, registry, said):
    with pytest.raises(InputError, match=said):
        Server(SIGNED, contexts, registry)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vectors": []}, "0 vectors"),
        ({"drops": {6: Stage.KEYS}}, "drops"),
        ({"drops": {1: "mask"}}, "allowed: check, keys, masked"),
        ({"contexts": []}, "0 contexts"),
    ],
)
def test_a_round_that_cannot_be_is_an_input_error(fields, said):
    right = {"vectors": vectors(COMPLETE), "contexts": COMPLETE.context(1, MODEL)} | fields
    with pytest.raises(InputError, match=said):
        aggregate(right.pop("vectors"), parameters=COMPLETE, random=source(0), **right)


@pytest.mark.parametrize("parameters", ALL, ids=NAMES)
def test_the_transcript_is_what_the_server_saw_and_its_bytes_are_counted(parameters):
    def play(**fields: Any) -> Outcome:
        context = parameters.context(1, MODEL)
        return aggregate(vectors(parameters), parameters=parameters, contexts=context, random=source(1), **fields)

    outcome = play(drops={4: Stage.MASKED})
    seen, stayed = outcome.transcript, set(range(parameters.clients)) - {4}
    assert set(outcome.survivors) == set(seen.masked) == set(seen.shares) == stayed
    for stage in parameters.stages:
        there = stayed | ({4} if stage in (Stage.KEYS, Stage.SHARES) else set())
        assert set(seen.up[stage]) == set(seen.down[stage]) == there
    header, seal, signature = 17, 64 if parameters.malicious else 16, 64 if parameters.acknowledged else 0
    assert set(seen.up[Stage.MASKED].values()) == {header + signature + 4 * 3 + seal}
    assert set(seen.up[Stage.KEYS].values()) == {header + 96 + seal}
    assert seen.masked[0].tolist() != vectors(parameters)[0].tolist()
    assert play(keep_masked=False).transcript.masked == {}


def test_the_same_bytes_give_the_same_round():
    def once(seed: int) -> list[list[int]]:
        outcome = aggregate(vectors(SIGNED), parameters=SIGNED, contexts=SIGNED.context(1, MODEL), random=source(seed))
        return [words.tolist() for words in outcome.transcript.masked.values()]

    assert once(1) == once(1)
    assert once(1) != once(2)
