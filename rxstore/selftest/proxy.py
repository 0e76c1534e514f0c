"""The wires between a worker and its servers, as small TCP proxies that can stop, cut and be closed for a while.

The one to PostgreSQL asks before and after each statement whether something is to happen there (``Strikes``), and can
keep an answer back: a COMMIT that the server has carried out and the worker never hears of. The one to the brokers is
a SOCKS5 proxy, which the client knows how to use, so that TLS and SASL go through it as they are. Both run in one
event loop on a thread of its own, beside the trial.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from rxstore.embedded import LOOPBACK
from rxstore.selftest.statements import FLUSH, LENGTH_BYTES, Conversation, Said

CHUNK = 65_536
ANSWER_SECONDS = 2.0
SSL_REQUEST = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")
# CommandComplete, ErrorResponse and ReadyForQuery: the server has carried out what it was told, or refused.
ANSWERS = frozenset(b"CEZ")
CONNECTION_LOST = (OSError, asyncio.IncompleteReadError)

T = TypeVar("T")
Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


class Strike(Protocol):
    """Something that happens at a statement: before it reaches the server, or after the server has carried it out."""

    @property
    def before(self) -> bool: ...

    @property
    def withholds(self) -> bool:
        """Whether the worker must not hear the statement's answer."""

    async def happen(self) -> bool:
        """Let it happen; whether the connection lives on."""


class Strikes(Protocol):
    """Says which strike falls at a statement, if any; each falls once."""

    def take(self, worker: int, statement: str) -> Strike | None: ...


@dataclass(frozen=True, slots=True)
class Server:
    """Where PostgreSQL really is: a host or the directory of a socket, and how TLS is spoken there, if it is."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    name: str | None = None

    async def connect(self) -> tuple[Reader, Writer]:
        """Open a connection; over TLS its start-up is done."""
        if self.host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self.host}/.s.PGSQL.{self.port}")
        reader, writer = await asyncio.open_connection(self.host, self.port)
        if self.tls is not None:
            writer.write(SSL_REQUEST)
            if await reader.readexactly(1) != b"S":
                raise ConnectionError("the server does not speak TLS after all")
            await writer.start_tls(self.tls, server_hostname=self.name or self.host)
        return reader, writer


@dataclass(slots=True)
class Wire:
    """One worker's way to one server: a port on loopback, its open connections, and whether it is closed for now."""

    port: int = 0
    closed_until: float = 0.0
    _server: asyncio.Server | None = None
    _open: set[Writer] = field(default_factory=set)

    async def listen(self, serve: Callable[[Reader, Writer], Awaitable[None]]) -> None:
        """Listen on a free port."""

        async def accepted(reader: Reader, writer: Writer) -> None:
            if time.monotonic() < self.closed_until:
                writer.transport.abort()
                return
            self._open.add(writer)
            try:
                await serve(reader, writer)
            except (*CONNECTION_LOST, asyncio.CancelledError):
                pass  # cancelled when the loop is closed: the streams' own callback would print that as a failure
            finally:
                self._open.discard(writer)
                writer.transport.abort()

        self._server = await asyncio.start_server(accepted, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self, seconds: float) -> int:
        """Cut every connection and let no new one through for a while; return how many there were."""
        self.closed_until = time.monotonic() + seconds
        count = len(self._open)
        for writer in list(self._open):
            writer.transport.abort()
        return count

    def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        self.cut(0.0)


@dataclass(slots=True)
class _Session:
    """One connection of a worker to PostgreSQL."""

    worker: int
    strikes: Strikes
    client: tuple[Reader, Writer]
    server: tuple[Reader, Writer]
    conversation: Conversation = field(default_factory=Conversation)
    withholding: bool = False
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        ways = [asyncio.ensure_future(self._to_server()), asyncio.ensure_future(self._to_client())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for result in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, CONNECTION_LOST):
                    raise result
            self.server[1].transport.abort()

    async def _to_server(self) -> None:
        while data := await self.client[0].read(CHUNK):
            for said in self.conversation.feed(data):
                if not await self._pass_on(said):
                    return

    async def _pass_on(self, said: Said) -> bool:
        writer = self.server[1]
        strike = None if said.statement is None else self.strikes.take(self.worker, said.statement)
        if strike is not None and strike.before and not await strike.happen():
            return False
        if strike is not None and not strike.before and strike.withholds:
            self.answered.clear()
            self.withholding = True
            writer.write(said.data if said.data[:1] == b"Q" else said.data + FLUSH)
            await writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.answered.wait(), ANSWER_SECONDS)
        else:
            writer.write(said.data)
            await writer.drain()
        return strike is None or strike.before or await strike.happen()

    async def _to_client(self) -> None:
        reader, (_, writer) = self.server[0], self.client
        while True:
            head = await reader.readexactly(1 + LENGTH_BYTES)
            body = await reader.readexactly(int.from_bytes(head[1:], "big") - LENGTH_BYTES)
            if self.withholding:
                if head[0] in ANSWERS:
                    self.answered.set()
            else:
                writer.write(head + body)
                await writer.drain()


async def database_wire(worker: int, server: Server, strikes: Strikes) -> Wire:
    """Open a wire to PostgreSQL for one worker."""

    async def serve(reader: Reader, writer: Writer) -> None:
        upstream = await server.connect()
        await _Session(worker, strikes, (reader, writer), upstream).run()

    wire = Wire()
    await wire.listen(serve)
    return wire


async def broker_wire() -> Wire:
    """Open a wire to the brokers for one worker: it connects to whatever the client asks for."""
    wire = Wire()
    await wire.listen(_socks5)
    return wire


async def _socks5(reader: Reader, writer: Writer) -> None:
    """Serve one client by RFC 1928: no authentication, CONNECT only."""
    _, methods = await reader.readexactly(2)
    await reader.readexactly(methods)
    writer.write(b"\x05\x00")
    _, _, _, kind = await reader.readexactly(4)
    match kind:
        case 1:
            host = ".".join(map(str, await reader.readexactly(4)))
        case 3:
            (length,) = await reader.readexactly(1)
            host = (await reader.readexactly(length)).decode()
        case _:
            packed = await reader.readexactly(16)
            host = ":".join(packed[at : at + 2].hex() for at in range(0, 16, 2))
    port = int.from_bytes(await reader.readexactly(2), "big")
    upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
    writer.write(b"\x05\x00\x00\x01" + bytes(6))
    ways = [
        asyncio.ensure_future(_copy(reader, upstream_writer)),
        asyncio.ensure_future(_copy(upstream_reader, writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        upstream_writer.transport.abort()


async def _copy(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


class Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="rxstore-selftest-proxies", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something there and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def call(self, function: Callable[[], T]) -> T:
        """Call something there and wait for it."""

        async def called() -> T:
            return function()

        return self.run(called())

    def close(self) -> None:
        """End every connection and the thread."""
        self.run(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _cancel_all(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
