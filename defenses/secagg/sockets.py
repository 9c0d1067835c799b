"""The protocol over TCP: a server on asyncio, and a client on a plain socket.

A frame is a length of 4 bytes, little-endian, and a message. A length past the longest message that the parameters
allow ends the connection before anything is set aside for it. The first frame of a connection is the client's number;
from then on it speaks for that client alone. The line is neither encrypted nor authenticated: beyond the loopback, run
it through TLS; where clients sign, a stranger on it can keep a client out and do no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from defenses.secagg import messages
from defenses.secagg.client import Client
from defenses.secagg.parameters import Stage
from defenses.secagg.refusals import Aborted, Reason, Rejected
from defenses.secagg.server import Server

NUMBER_BYTES = 4
PATIENCE = 3  # refused messages until a connection is closed


def frame(message: bytes) -> bytes:
    """A message with its length before it."""
    return len(message).to_bytes(NUMBER_BYTES, "little") + message


def length_of(prefix: bytes | bytearray, bound: int) -> int:
    """The length that a frame claims; raises Rejected (TOO_LARGE) if it is past `bound`."""
    length = int.from_bytes(prefix, "little")
    if length > bound:
        raise Rejected(Reason.TOO_LARGE, f"a frame of {length} bytes, of at most {bound}")
    return length


def take_part(
    client: Client, address: tuple[str, int], *, timeout: float, before: Callable[[Stage], None] = lambda _: None
) -> None:
    """Play a client's part in a round, and return when it has sent its last message.

    timeout: seconds to wait for the server's next message. before: called with each stage before its message is sent.
    Raises Rejected for a message that the client refuses, Aborted when the server hangs up or is silent.
    """
    try:
        with socket.create_connection(address, timeout) as line:
            line.sendall(frame(client.number.to_bytes(NUMBER_BYTES, "little")))
            while client.stage is not None:
                stage, until = client.stage, time.monotonic() + timeout
                length = length_of(_exactly(line, NUMBER_BYTES, until), messages.largest(client.parameters))
                answer = client.answer(bytes(_exactly(line, length, until)))
                before(stage)
                line.settimeout(timeout)
                line.sendall(frame(answer))
    except (OSError, EOFError) as error:
        raise Aborted(f"the server has hung up or is silent: {error or type(error).__name__}") from None


def _exactly(line: socket.socket, size: int, until: float) -> bytearray:
    """`size` bytes off the line, by the time `until`."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        line.settimeout(max(1e-3, until - time.monotonic()))
        more = line.recv_into(view[got:])
        if not more:
            raise EOFError
        got += more
    return data


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What a stage was, on the wire. sent: who sent its message in time. up, down: bytes, frames' lengths included."""

    stage: Stage
    sent: tuple[int, ...]
    seconds: float
    up: int
    down: int


@dataclass(kw_only=True)
class _Line:
    """A client's connection. up: bytes that came on it; patience: how many more refused messages it may bring."""

    number: int
    writer: asyncio.StreamWriter
    up: int = 0
    patience: int = PATIENCE


class Host:
    """A server's end of the lines.

    `async with Host(server) as host` listens on `host.address`, by default on a free port of the loopback; then
    `await host.play(...)` waits for the clients and plays the round. refusals: the messages that were refused, by the
    client on whose line they came.
    """

    def __init__(self, server: Server, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.server = server
        self.refusals: dict[int, list[Rejected]] = {}
        self._wanted = address
        self._lines: dict[int, _Line] = {}
        self._seen: set[int] = set()  # who has ever connected
        self._past = 0  # bytes that came on lines which are no more
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Host:
        self._listener = await asyncio.start_server(self._welcome, *self._wanted)
        self.address: tuple[str, int] = self._listener.sockets[0].getsockname()[:2]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for line in list(self._lines.values()):
            self._hang_up(line)

    async def play(self, *, join: float, timeout: float, told: Callable[[StageReport], None] = lambda _: None) -> None:
        """Play the round; its sum is then the server's. Raises Aborted as the server does.

        join: seconds to wait for all clients to connect. timeout: seconds for each stage; whoever has not sent its
        message by then, or has hung up, has dropped out. told: called after each stage.
        """
        await self._until(lambda: len(self._seen) == self.server.parameters.clients, join)
        outgoing: Mapping[int, bytes] = self.server.open()
        while self.server.stage is not None:
            stage, start, before = self.server.stage, time.monotonic(), self._up()
            down = await self._send(outgoing, timeout)
            awaited = set(outgoing)

            def all_sent(awaited: set[int] = awaited) -> bool:
                return not (awaited & self._lines.keys()).difference(self.server.taken)

            await self._until(all_sent, start + timeout - time.monotonic())
            sent = self.server.taken
            try:
                outgoing = self.server.close()
            finally:
                seconds, up = time.monotonic() - start, self._up() - before
                told(StageReport(stage=stage, sent=sent, seconds=seconds, up=up, down=down))
            for client in awaited.difference(sent) & self._lines.keys():
                self._hang_up(self._lines[client])

    def _up(self) -> int:
        return self._past + sum(line.up for line in self._lines.values())

    async def _send(self, outgoing: Mapping[int, bytes], timeout: float) -> int:
        """Send everyone its message; how many bytes that was. A line that does not take it in time is hung up."""

        async def send(line: _Line, message: bytes) -> int:
            line.writer.write(frame(message))
            try:
                await asyncio.wait_for(line.writer.drain(), timeout)
            except (OSError, TimeoutError):
                self._hang_up(line)
            return NUMBER_BYTES + len(message)

        there = [self._lines[client] for client in outgoing if client in self._lines]
        return sum(await asyncio.gather(*(send(line, outgoing[line.number]) for line in there)))

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        """Wait until `holds`, which only what happens on a line can change, or for so many seconds."""
        until = time.monotonic() + seconds
        while not holds() and time.monotonic() < until:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), until - time.monotonic())

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read what comes on a new connection, until it ends."""
        bound = messages.largest(self.server.parameters)
        line: _Line | None = None
        try:
            hello = await self._read(reader, NUMBER_BYTES)
            number = int.from_bytes(hello, "little")
            if len(hello) < NUMBER_BYTES or number >= self.server.parameters.clients or number in self._lines:
                return
            line = self._lines[number] = _Line(number=number, writer=writer)
            self._seen.add(number)
            self._changed.set()
            while line.patience:
                raw = await self._read(reader, bound)
                line.up += NUMBER_BYTES + len(raw)
                try:
                    self.server.receive(raw, sender=number)
                except Rejected as refusal:
                    self.refusals.setdefault(number, []).append(refusal)
                    line.patience -= 1
                self._changed.set()
        except Rejected as refusal:
            if line:
                self.refusals.setdefault(line.number, []).append(refusal)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it has hung up
        finally:
            writer.close()
            if line:
                self._hang_up(line)

    async def _read(self, reader: asyncio.StreamReader, bound: int) -> bytes:
        return await reader.readexactly(length_of(await reader.readexactly(NUMBER_BYTES), bound))

    def _hang_up(self, line: _Line) -> None:
        line.writer.close()
        if self._lines.get(line.number) is line:
            del self._lines[line.number]
            self._past += line.up
            self._changed.set()
