"""The protocol over TCP on the loopback: who hangs up, stalls, lies about lengths or claims to be another."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial

import pytest

from defenses.secagg import messages
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Aborted, Reason, Rejected
from defenses.secagg.sockets import Host, StageReport, frame, take_part
from tests.cohorts import Cohort, cohort

COMPLETE = Parameters.complete(5, 2000, 24, 3)
SIGNED = Parameters.complete(5, 2000, 24, malicious=True)
SPARSE = Parameters(clients=9, length=50, bits=40, threshold=2, quorum=7, neighbours=4, window=1, malicious=True)

Visitor = Callable[[tuple[str, int]], None]


def hold(
    played: Cohort,
    dies: Mapping[int, Stage] | None = None,
    visitors: Mapping[int, Visitor] | None = None,
    timeout: float = 20.0,
    join: float = 20.0,
) -> tuple[list[StageReport], Host]:
    """A round over TCP, each client in a thread. `dies` hang up about to send; `visitors` come in place of clients."""
    reports: list[StageReport] = []

    def live(number: int, address: tuple[str, int]) -> None:
        def before(stage: Stage) -> None:
            if (dies or {}).get(number) is stage:
                raise ConnectionError

        with contextlib.suppress(Aborted):
            take_part(played.clients[number], address, timeout=30, before=before)

    parts: dict[int, Visitor] = {number: partial(live, number) for number in range(len(played.clients))}
    threads: list[threading.Thread] = []

    async def play() -> Host:
        async with Host(played.server) as host:
            for part in (parts | dict(visitors or {})).values():
                threads.append(threading.Thread(target=part, args=(host.address,)))
                threads[-1].start()
            await host.play(join=join, timeout=timeout, told=reports.append)
        return host

    try:
        host = asyncio.run(play())
    finally:
        for thread in threads:
            thread.join()
    return reports, host


@pytest.mark.parametrize(
    ("parameters", "dies"),
    [
        (COMPLETE, {}),
        (COMPLETE, {1: Stage.KEYS, 2: Stage.UNMASK}),
        (COMPLETE, {1: Stage.SHARES, 2: Stage.MASKED}),
        (SIGNED, {4: Stage.CHECK}),
        (SPARSE, {0: Stage.MASKED, 5: Stage.UNMASK}),
    ],
)
def test_over_tcp_whoever_hangs_up_has_dropped_out(parameters, dies):
    played = cohort(parameters)
    reports, host = hold(played, dies)
    gone = {client for client, stage in dies.items() if stage in (Stage.KEYS, Stage.SHARES, Stage.MASKED)}
    assert set(played.server.survivors) == set(range(parameters.clients)) - gone
    assert played.summed_rightly()
    assert [report.stage for report in reports] == list(parameters.stages)
    lost: set[int] = set()
    for report in reports:
        lost |= {client for client, stage in dies.items() if stage is report.stage}
        assert set(report.sent) == set(range(parameters.clients)) - lost
    assert not host.refusals
    # Bytes are counted with the frames' lengths.
    keys = len(reports[0].sent) * (4 + 17 + 96 + (64 if parameters.malicious else 16))
    assert reports[0].up == keys


def test_over_tcp_too_few_end_the_round():
    played = cohort(COMPLETE)
    with pytest.raises(Aborted, match="2 clients are left at the stage masked, of 3"):
        hold(played, {0: Stage.MASKED, 1: Stage.MASKED, 2: Stage.SHARES})
    assert played.server.total is None


def connected(address: tuple[str, int], *first: bytes) -> socket.socket:
    line = socket.create_connection(address, 10)
    for part in first:
        line.sendall(part)
    return line


def until_closed(line: socket.socket) -> None:
    line.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while line.recv(1 << 16):
            pass


def hello(number: int) -> bytes:
    return frame(number.to_bytes(4, "little"))


def test_a_client_that_falls_silent_holds_nobody_up_for_longer_than_a_stage():
    def silent(address: tuple[str, int]) -> None:
        with connected(address, hello(3)) as line:
            until_closed(line)

    played = cohort(COMPLETE)
    began = time.monotonic()
    reports, _ = hold(played, visitors={3: silent}, timeout=1.5)
    assert time.monotonic() - began < 15
    assert 1.5 <= reports[0].seconds < 5
    assert played.server.survivors == (0, 1, 2, 4)
    assert played.summed_rightly()


def test_whoever_never_connects_is_waited_for_and_then_left_out():
    played = cohort(COMPLETE)
    hold(played, visitors={2: lambda _: None}, join=1.0)
    assert played.server.survivors == (0, 1, 3, 4)
    assert played.summed_rightly()


def test_a_frame_that_claims_four_gigabytes_ends_its_line_and_allocates_nothing():
    peaks = []

    def claim(address: tuple[str, int]) -> None:
        tracemalloc.start()
        with connected(address, hello(0), b"\xff\xff\xff\xff", b"x" * 100) as line:
            until_closed(line)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    played = cohort(COMPLETE)
    _, host = hold(played, visitors={0: claim})
    assert [refusal.reason for refusal in host.refusals[0]] == [Reason.TOO_LARGE]
    assert played.server.survivors == (1, 2, 3, 4)
    assert played.summed_rightly()
    assert peaks[0] < 20_000_000


def test_garbage_is_refused_a_few_times_and_then_the_line_is_closed():
    def talk(address: tuple[str, int]) -> None:
        with connected(address, hello(0), *[frame(b"nonsense" * 5)] * 10) as line:
            until_closed(line)

    played = cohort(COMPLETE)
    _, host = hold(played, visitors={0: talk})
    assert [refusal.reason for refusal in host.refusals[0]] == [Reason.MALFORMED] * 3
    assert played.server.survivors == (1, 2, 3, 4)
    assert played.summed_rightly()


def test_a_line_speaks_for_its_own_client_alone():
    def meddle(address: tuple[str, int]) -> None:
        # As client 0, with an Advert of client 1's.
        twin = cohort(COMPLETE)
        advert = twin.clients[1].answer(twin.server.open()[1])
        with connected(address, hello(0), frame(advert)) as line:
            until_closed(line)

    played = cohort(COMPLETE)
    _, host = hold(played, visitors={0: meddle}, timeout=2.0)
    assert [refusal.reason for refusal in host.refusals[0]] == [Reason.UNKNOWN]
    assert played.server.survivors == (1, 2, 3, 4)
    assert played.summed_rightly()


@pytest.mark.parametrize("first", [hello(5), hello(2**32 - 1), hello(1), frame(b""), b"\x05\x00\x00\x00abcde", b"\x04"])
def test_a_stranger_s_line_is_closed_at_once_or_never_heard(first):
    def visit(address: tuple[str, int]) -> None:
        time.sleep(0.3)  # when the clients are there
        with connected(address, first) as line:
            line.shutdown(socket.SHUT_WR)
            until_closed(line)

    def late(address: tuple[str, int]) -> None:
        time.sleep(0.6)
        take_part(played.clients[0], address, timeout=30)

    played = cohort(COMPLETE)
    hold(played, visitors={99: visit, 0: late})
    assert played.server.survivors == (0, 1, 2, 3, 4)
    assert played.summed_rightly()


# A client and a server that is none.


def against(talk: Callable[[socket.socket], None], timeout: float = 5.0) -> BaseException:
    """How a client fares with a server that only does as `talk` does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                talk(line)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            take_part(cohort(COMPLETE).clients[0], listener.getsockname()[:2], timeout=timeout)
        except (Aborted, Rejected) as error:
            return error
        finally:
            thread.join()
    raise AssertionError("the client was content")


def test_a_client_ends_when_the_server_hangs_up_stalls_or_is_not_there():
    assert isinstance(against(lambda _: None), Aborted)
    assert isinstance(against(lambda _: time.sleep(1.5), timeout=0.5), Aborted)

    def drip(line: socket.socket) -> None:
        # A byte now and then is no message, and does not buy more time.
        with contextlib.suppress(OSError):
            for _ in range(20):
                line.sendall(b"\x00")
                time.sleep(0.1)

    began = time.monotonic()
    assert isinstance(against(drip, timeout=0.5), Aborted | Rejected)
    assert time.monotonic() - began < 3
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()[:2]
    with pytest.raises(Aborted):
        take_part(cohort(COMPLETE).clients[0], address, timeout=1)


def test_a_client_refuses_what_is_too_large_or_no_message():
    huge = against(lambda line: line.sendall(b"\xff\xff\xff\x7f"))
    assert isinstance(huge, Rejected)
    assert huge.reason is Reason.TOO_LARGE
    nonsense = against(lambda line: line.sendall(frame(b"nonsense" * 5)))
    assert isinstance(nonsense, Rejected)
    assert nonsense.reason is Reason.MALFORMED
    assert messages.largest(COMPLETE) < 7000
