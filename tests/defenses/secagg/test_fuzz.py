"""A hundred thousand messages that nobody sent: each is refused with a reason, or does no harm.

Two kinds. What the line does to messages (cut, flip bits, repeat, reorder, mix up rounds and clients, lengthen) and
what strangers send never passes the seal: nothing of it is taken, and the round ends in its sum or, on a line that
loses some, for want of clients. What a client or a server itself sends is sealed rightly and may still be anything:
there the sum, if there is one, is that of what was sent.
"""

from __future__ import annotations

import dataclasses
import random
import struct
import tracemalloc
from collections import Counter

import pytest

from defenses.secagg import keys, messages, wire
from defenses.secagg.messages import Advert, Masked
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Aborted, Reason, Rejected
from defenses.secagg.wire import HEADER_BYTES, Kind
from tests.cohorts import MODEL, Cohort, cohort, order, plain_sum

COMPLETE = Parameters.complete(5, 6, 20, 3)
SIGNED = Parameters.complete(5, 6, 32, malicious=True)
SPARSE = Parameters(clients=9, length=6, bits=40, threshold=2, quorum=7, neighbours=4, window=1, malicious=True)
PLAIN_SPARSE = dataclasses.replace(SPARSE, window=0, quorum=5, malicious=False)
ALL = {"complete": COMPLETE, "sparse": PLAIN_SPARSE, "complete, signed": SIGNED, "sparse, signed": SPARSE}

HEADER = struct.Struct("<4sBQI")


def recorded(parameters: Parameters, seed: int = 0, round: int = 1) -> list[bytes]:
    """Every message of a round, in both directions."""
    played = cohort(parameters, seed, contexts=[parameters.context(round, MODEL)] * parameters.clients)
    seen: list[bytes] = []
    outgoing = played.server.open()
    while outgoing:
        for client in outgoing:
            seen += [outgoing[client], played.clients[client].answer(outgoing[client])]
            played.server.receive(seen[-1])
        outgoing = played.server.close()
    return seen


def distorted(raw: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """The message as a bad line or a stranger may deliver it; never as it was."""
    magic, kind, round, client = HEADER.unpack(raw[:HEADER_BYTES])
    match rng.randrange(11):
        case 0:
            changed = raw[: rng.randrange(len(raw))]
        case 1:
            flipped = bytearray(raw)
            for _ in range(rng.choice([1, 1, 2, 8])):
                flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            changed = bytes(flipped)
        case 2:
            changed = raw + rng.randbytes(rng.choice([1, 4, 1000]))
        case 3:
            changed = HEADER.pack(magic, rng.randrange(256), round, client) + raw[HEADER_BYTES:]
        case 4:
            changed = HEADER.pack(magic, kind, rng.getrandbits(64), client) + raw[HEADER_BYTES:]
        case 5:
            changed = (
                HEADER.pack(magic, kind, round, rng.choice([client ^ 1, rng.getrandbits(32)])) + raw[HEADER_BYTES:]
            )
        case 6:
            changed = rng.randbytes(rng.randrange(2 * len(raw)))
        case 7:
            changed = raw[:HEADER_BYTES] + rng.randbytes(len(raw) - HEADER_BYTES)
        case 8:
            at = rng.randrange(len(raw))
            changed = raw[:at] + rng.choice(others)[at:]
        case 9:
            at = rng.randrange(HEADER_BYTES, len(raw))
            changed = raw[:at] + b"\xff\xff\xff\xff" + raw[at + 4 :]
        case _:
            size = rng.randrange(1, len(raw))
            changed = raw[size:] + raw[:size]
    return changed if changed != raw and changed not in others else b""


def parse_all(parameters: Parameters, count: int, seed: int) -> Counter[Reason]:
    """The reasons why `count` distorted messages are refused; an acceptance is an error."""
    rng = random.Random(seed)
    pool = recorded(parameters)
    contexts = [parameters.context(1, MODEL)]
    registry = cohort(parameters).server.registry
    reasons: Counter[Reason] = Counter()
    for _ in range(count):
        raw = distorted(rng.choice(pool), rng, pool)
        with pytest.raises(Rejected) as refused:
            messages.parse(raw, parameters=parameters, contexts=contexts, registry=registry)
        reasons[refused.value.reason] += 1
    return reasons


def resealed(played: Cohort, raw: bytes, rng: random.Random) -> bytes:
    """A client's message with another body, sealed as it would seal it."""
    _, kind, _, client = HEADER.unpack(raw[:HEADER_BYTES])
    parameters = played.parameters
    body = bytearray(raw[HEADER_BYTES : len(raw) - wire.seal_bytes(Kind(kind), parameters.malicious)])
    match rng.randrange(5):
        case 0:
            body = body[: rng.randrange(len(body))]
        case 1:
            body += rng.randbytes(rng.choice([1, 37, 86]))
        case 2:
            body = bytearray(rng.randbytes(len(body)))
        case _:
            for _ in range(rng.choice([1, 2, 16])):
                body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    identity = played.signers[client] if Kind(kind).of_client else None
    return wire.write(Kind(kind), played.clients[client].context, client, [bytes(body)], identity)


class Line:
    """Between a server and its clients: hands on what it is told to, and a lot besides.

    Whatever it makes up has to be refused, with a reason; it counts the reasons.
    """

    def __init__(self, parameters: Parameters, seed: int, each: int) -> None:
        self.rng = random.Random(seed)
        self.each = each
        self.played = cohort(parameters, seed)
        self.others = recorded(parameters, seed, round=2)
        if parameters.malicious:
            # Of the same round, by strangers; in the other variant it is for the line to know who is who.
            self.others += [raw for raw in recorded(parameters, seed + 1) if Kind(raw[4]).of_client]
        self.seen: list[bytes] = []
        self.reasons: Counter[Reason] = Counter()

    def refused(self, reader: object, raw: bytes) -> None:
        take = reader.receive if hasattr(reader, "receive") else reader.answer  # type: ignore[attr-defined]
        with pytest.raises(Rejected) as refusal:
            take(raw)
        self.reasons[refusal.value.reason] += 1

    def noise(self, reader: object, raw: bytes) -> None:
        """Everything but `raw`: distorted, of other rounds and cohorts, and what has been sent before."""
        for _ in range(self.each):
            match self.rng.randrange(4):
                case 0:
                    self.refused(reader, self.rng.choice(self.others))
                case 1 if self.seen:
                    self.refused(reader, self.rng.choice(self.seen))
                case _:
                    self.refused(reader, distorted(raw, self.rng, [raw, *self.seen[-20:]]))

    def play(self) -> bool:
        """A round through this line, on which some messages are lost; whether it had a sum, which has to be right."""
        played, rng = self.played, self.rng
        outgoing = dict(played.server.open())
        lossy = rng.random() < 0.5
        try:
            while outgoing:
                clients = list(outgoing)
                rng.shuffle(clients)
                for client in clients:
                    self.noise(played.clients[client], outgoing[client])
                    answer = played.clients[client].answer(outgoing[client])
                    self.noise(played.server, answer)
                    self.refused(played.clients[client], outgoing[client])
                    self.seen.append(outgoing[client])
                    if not (lossy and rng.random() < 0.05):
                        played.server.receive(answer)
                        self.refused(played.server, answer)
                        self.seen.append(answer)
                outgoing = dict(played.server.close())
        except Aborted:
            assert lossy
            assert played.server.total is None
            return False
        assert played.summed_rightly()
        return True


def with_a_hostile_client(parameters: Parameters, seed: int, each: int) -> Counter[str]:
    """At one stage client 0 sends anything, rightly sealed, before or in place of what it should; how that ended."""
    ends: Counter[str] = Counter()
    rng = random.Random(seed)
    played = cohort(parameters, seed)
    inputs, spoilt = list(played.vectors), False
    hostile_at = rng.choice(parameters.stages)
    outgoing = dict(played.server.open())
    try:
        while outgoing:
            stage = played.server.stage
            for client, raw in outgoing.items():
                try:
                    answer = played.clients[client].answer(raw)
                except Rejected as refusal:
                    # Only of what client 0 has done to it.
                    assert stage is not None
                    assert order(stage) > order(hostile_at)
                    ends[f"client: {refusal.reason}"] += 1
                    continue
                if client == 0 and stage is hostile_at:
                    taken = None
                    for _ in range(each):
                        try:
                            taken = played.server.receive(resealed(played, answer, rng)).message
                        except Rejected as refusal:
                            ends[refusal.reason] += 1
                        else:
                            ends["taken"] += 1
                            break
                    if isinstance(taken, Masked):
                        truth = played.read(answer)
                        assert isinstance(truth, Masked)
                        inputs[0] = (inputs[0] + taken.words - truth.words) & inputs[0].dtype.type(
                            2**parameters.bits - 1
                        )
                    # Keys that are not its own are as good as a vector of its choice, which nobody can know.
                    spoilt |= isinstance(taken, Advert)
                    if taken is not None or rng.random() < 0.5:
                        continue
                played.server.receive(answer)
            outgoing = dict(played.server.close())
    except Aborted:
        ends["aborted"] += 1
        return ends
    ends["summed"] += 1
    assert played.server.total is not None
    if not (spoilt and 0 in played.server.survivors):
        total = played.server.total.tolist()
        assert total == plain_sum(inputs, played.server.survivors, parameters.bits)
    return ends


def with_a_hostile_server(parameters: Parameters, seed: int, each: int) -> Counter[str]:
    """Whatever a server says to its clients, rightly sealed: who takes it for true spoils no sum, and gives at most one
    share of each other client's secrets."""
    ends: Counter[str] = Counter()
    rng = random.Random(seed)
    played = cohort(parameters, seed)
    outgoing = dict(played.server.open())
    given: Counter[int] = Counter()
    try:
        while outgoing:
            for client, raw in outgoing.items():
                answers = []
                for said in [*(resealed(played, raw, rng) for _ in range(each if rng.random() < 0.3 else 0)), raw]:
                    try:
                        answers.append(played.clients[client].answer(said))
                    except Rejected as refusal:
                        ends[refusal.reason] += 1
                assert len(answers) <= 1
                for answer in answers:
                    given[client] += answer[4] == Kind.UNMASK
                    try:
                        played.server.receive(answer)
                    except Rejected as refusal:
                        ends[f"server: {refusal.reason}"] += 1
            outgoing = dict(played.server.close())
    except Aborted:
        ends["aborted"] += 1
    else:
        ends["summed"] += 1
        assert played.summed_rightly()
    assert all(count <= 1 for count in given.values())
    return ends


SCALES = [
    pytest.param(500, 2, 4, 10, id="a few thousand"),
    pytest.param(13_000, 8, 24, 40, id="a hundred thousand", marks=pytest.mark.heavy),
]


@pytest.mark.parametrize(("parsed", "lines", "each", "hostile"), SCALES)
def test_whatever_arrives_is_refused_with_a_reason_or_does_no_harm(parsed, lines, each, hostile):
    seen = 0
    for number, parameters in enumerate(ALL.values()):
        reasons = parse_all(parameters, parsed, seed=number)
        summed = 0
        for seed in range(lines):
            line = Line(parameters, seed, each)
            summed += line.play()
            reasons += line.reasons
        assert {Reason.MALFORMED, Reason.TOO_LARGE, Reason.WRONG_ROUND, Reason.BAD_SEAL} <= set(reasons)
        assert {Reason.UNKNOWN, Reason.REPEATED, Reason.OUT_OF_ORDER} <= set(reasons)
        assert summed
        ends: Counter[str] = Counter()
        for seed in range(hostile):
            ends += with_a_hostile_client(parameters, seed, 3)
            ends += with_a_hostile_server(parameters, seed, 2)
        assert {"taken", "summed", "aborted"} <= set(ends)
        seen += reasons.total() + ends.total() - ends["summed"] - ends["aborted"]
    assert seen >= (100_000 if parsed > 10_000 else 4_000)


@pytest.mark.parametrize("parameters", ALL.values(), ids=ALL)
def test_refused_messages_leave_nothing_behind(parameters):
    rng = random.Random(1)
    played = cohort(parameters)
    told = played.play(until=Stage.MASKED)
    pool = [played.clients[client].answer(told[client]) for client in told]
    spoilt = [distorted(rng.choice(pool), rng, pool) for _ in range(2000)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for raw in spoilt:
            with pytest.raises(Rejected):
                played.server.receive(raw)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two thousand messages of some hundred bytes: half a megabyte, had they been kept.
    assert after - before < 20_000
    assert peak - before < 60_000
    for raw in pool:
        played.server.receive(raw)
    played.play(outgoing=played.server.close())
    assert played.summed_rightly()


def test_the_fuzzer_notices_a_parser_that_takes_what_is_not_sealed(monkeypatch):
    monkeypatch.setattr(wire.Envelope, "verify", lambda *_: None)
    with pytest.raises(pytest.fail.Exception):
        parse_all(COMPLETE, 500, 0)


def test_the_fuzzer_notices_a_server_that_takes_shares_for_true(monkeypatch):
    monkeypatch.setattr(keys, "commitment", lambda *_: b"c" * 32)

    def search() -> None:
        for seed in range(60):
            with_a_hostile_client(COMPLETE, seed, 3)

    with pytest.raises(AssertionError):
        search()
