"""A server process: a greenlet for each connection, and the application in a few ordinary threads.

Who sends or reads slowly holds a greenlet, which costs next to nothing; a thread, and with it a database connection, is
taken only for a request that has arrived whole. Nothing of the standard library is patched. Decision 0016.
"""

from __future__ import annotations

import logging
import os
import resource
import socket as standard_socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import gevent
import orjson
import prometheus_client
from gevent import local, socket
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.threadpool import ThreadPool
from gunicorn import util
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

from query_api.clients import CERTIFICATE, FINGERPRINT, PROBLEM
from query_api.metrics import CONNECTIONS_REFUSED, REQUESTS_REFUSED
from query_api.transport import Transport, TurnedAway

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
REQUEST_SECONDS = 30.0
CONNECTIONS = 2_000
SPARE_FILES = 200
WAITING_A_THREAD = 8
LOOK_SECONDS = 1.0
TICK_SECONDS = 0.1
OVERLOADED = orjson.dumps(
    {"title": "Too much at once", "description": "More is asked than can be answered in time: ask again later."}
)


class Served(Protocol):
    """What a worker is told by the server that it belongs to (``gunicorn.app.base.BaseApplication``)."""

    transport: Transport
    threads: int


class Queue:
    """Which requests may wait for a thread: a bounded number, and of one caller no more than three quarters of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_one = max(1, most * 3 // 4)
        self._count = 0
        self._of: Counter[str] = Counter()

    def enters(self, caller: str) -> str | None:
        """Let a request in, or say why not: ``full``, or ``caller``."""
        if self._count >= self._most:
            return "full"
        if self._of[caller] >= self._most_of_one:
            return "caller"
        self._count += 1
        self._of[caller] += 1
        return None

    def leaves(self, caller: str) -> None:
        """Count a request that is answered."""
        self._count -= 1
        self._of[caller] -= 1
        if not self._of[caller]:
            del self._of[caller]


class ConnectionWorker(GeventWorker):  # type: ignore[misc]
    """One server process."""

    app: Served
    sockets: list[Any]
    wsgi: Callable[..., Iterable[bytes]]

    def patch(self) -> None:
        """Take the listening sockets over; the standard library stays as it is."""
        self.sockets = [
            socket.socket(each.FAMILY, socket.SOCK_STREAM, fileno=each.sock.detach()) for each in self.sockets
        ]

    def load_wsgi(self) -> None:
        """Make the application and what stands before it."""
        super().load_wsgi()
        self._application = self.wsgi
        self.wsgi = self._answer
        self._threads = ThreadPool(self.app.threads)
        self._queue = Queue(self.app.threads * (1 + WAITING_A_THREAD))
        self._shown = local.local()
        self._idle: set[Any] = set()
        self._connections_refused = prometheus_client.Counter(
            CONNECTIONS_REFUSED.name, CONNECTIONS_REFUSED.explanation, CONNECTIONS_REFUSED.labels, registry=None
        )
        self._requests_refused = prometheus_client.Counter(
            REQUESTS_REFUSED.name, REQUESTS_REFUSED.explanation, REQUESTS_REFUSED.labels, registry=None
        )

    def run(self) -> None:
        """Serve until told to stop, then until what was asked is answered."""
        connections = _as_many_as_files_allow(CONNECTIONS)
        servers = [
            StreamServer(each, handle=partial(self.handle, each), spawn=Pool(connections)) for each in self.sockets
        ]
        for server in servers:
            server.max_accept = 1  # the other processes listen too
            server.start()
        watching = gevent.spawn(self._watch)
        while self.alive:
            self.notify()
            gevent.sleep(TICK_SECONDS)
        watching.kill()
        for server in servers:
            server.close()
        until = time.monotonic() + self.cfg.graceful_timeout
        while any(server.pool.free_count() != server.pool.size for server in servers) and time.monotonic() < until:
            for connection in list(self._idle):
                _hear_no_more(connection)
            self.notify()
            gevent.sleep(TICK_SECONDS)
        for server in servers:
            server.stop(timeout=1)

    def _watch(self) -> None:
        while True:
            gevent.sleep(LOOK_SECONDS)
            try:
                self.app.transport.look_again()
            except Exception:
                logger.exception("could not look for changed certificates")

    def handle(self, listener: Any, client: Any, address: Any) -> None:  # noqa: ANN401 - gevent has no types
        """Serve one connection to its end."""
        transport = self.app.transport
        try:
            with gevent.Timeout(HANDSHAKE_SECONDS):
                connection = transport.accept(client, address)
                self._shown.connection = connection
                self._shown.certificate = transport.certificate(connection)
        except (gevent.Timeout, TurnedAway, OSError, ValueError) as error:
            self._refuse_connection(error)
            util.close(client)
            return
        AsyncWorker.handle(self, listener, connection, address)

    def _refuse_connection(self, error: BaseException) -> None:
        reason = (
            "slow" if isinstance(error, gevent.Timeout) else "untrusted" if isinstance(error, TurnedAway) else "tls"
        )
        self._connections_refused.labels(reason).inc()
        said = getattr(error, "reason", None) or (str(error) if isinstance(error, TurnedAway) else type(error).__name__)
        logger.info("a connection was refused: %s", said, extra={"action": "connection_refused", "reason": reason})

    def timeout_ctx(self) -> _Idle:
        """Give a caller so long for a whole request line and its headers; one that stops meanwhile is let go."""
        return _Idle(self._idle, self._shown.connection, self.cfg.keepalive)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:  # noqa: ANN401
        """Answer one request; who does not take the answer in time is let go.

        Nothing here takes a body. After one the connection is closed, so that nobody can argue where it ended.
        """
        if any(
            name == "TRANSFER-ENCODING" or (name == "CONTENT-LENGTH" and value != "0") for name, value in req.headers
        ):
            req.force_close()
        try:
            with gevent.Timeout(REQUEST_SECONDS):
                super().handle_request(listener_name, req, sock, addr)
        except gevent.Timeout:
            self._connections_refused.labels("slow").inc()
            raise StopIteration from None

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        transport = self.app.transport
        identity = transport.identity(self._shown.certificate, environ)
        fingerprint = None if identity.certificate is None else identity.certificate.fingerprint
        environ |= {CERTIFICATE: identity.certificate, FINGERPRINT: fingerprint, PROBLEM: identity.problem}
        if transport.is_secure:
            environ["wsgi.url_scheme"] = "https"
        caller = fingerprint or environ.get("HTTP_SPINE_FROM_ASID", "")
        refused = self._queue.enters(caller)
        if refused is not None:
            self._requests_refused.labels(refused).inc()
            start_response(
                "503 Service Unavailable" if refused == "full" else "429 Too Many Requests",
                [
                    ("Content-Type", "application/json"),
                    ("Content-Length", str(len(OVERLOADED))),
                    ("Cache-Control", "no-store"),
                    ("Retry-After", "1"),
                ],
            )
            return [OVERLOADED]
        try:
            answer: Iterable[bytes] = self._threads.apply(self._application, (environ, start_response))
        finally:
            self._queue.leaves(caller)
        return answer


class _Idle:
    """Bounds the wait for a request, and says which connection waits, so that a stop need not wait for it."""

    def __init__(self, idle: set[Any], connection: Any, seconds: float) -> None:  # noqa: ANN401
        self._idle = idle
        self._connection = connection
        self._timeout = gevent.Timeout(seconds, False)

    def __enter__(self) -> None:
        self._idle.add(self._connection)
        self._timeout.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._idle.discard(self._connection)
        self._timeout.close()
        return error is self._timeout


def _hear_no_more(connection: Any) -> None:  # noqa: ANN401
    """Let a connection find its end where it waits for a request; one that has just come is still answered."""
    with suppress(OSError), closing(standard_socket.socket(fileno=os.dup(connection.fileno()))) as same:
        same.shutdown(standard_socket.SHUT_RD)


def _as_many_as_files_allow(connections: int) -> int:
    """Each connection is an open file: ask for as many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(connections, soft - SPARE_FILES))
