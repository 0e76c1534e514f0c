"""gunicorn as a library: worker processes with threads, stopped by SIGTERM or Ctrl-C once their requests are answered.

A process per core, since Python runs one thread of each at a time; a few threads in each, since a request mostly waits
for PostgreSQL. Every thread has a database connection of its own at most, so a server holds up to
``workers * threads``. ``query_api.worker`` is what runs in a process.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import orjson
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.http.wsgi import Response
from prometheus_client.multiprocess import mark_process_dead

from query_api.app import Api
from query_api.errors import outline
from query_api.metrics import DIRECTORY_VARIABLE
from query_api.transport import Plain, Transport
from query_api.worker import ConnectionWorker

THREADS = 8
REQUEST_TIMEOUT_SECONDS = 30
GRACE_SECONDS = 10
KEEP_ALIVE_SECONDS = 15
LONGEST_REQUEST_LINE = 4_094
MOST_HEADERS = 50
SOCKET_UMASK = 0o117
INVALID_REQUEST = "Invalid request"


def run(
    app_factory: Callable[[], Api],
    bind: str,
    *,
    transport: Transport | None = None,
    workers: int | None = None,
    threads: int = THREADS,
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Serve until told to stop; ends with SystemExit, as gunicorn does.

    ``bind`` is ``HOST:PORT``, or ``unix:PATH`` for a socket that its owner and group may open. Without ``transport`` it
    is plain HTTP, on a loopback address only: ValueError for one that other machines can reach.

    ``app_factory`` is called once in each worker, after the fork: connections and locks are never shared. ``at_end`` is
    called in each worker when its requests are answered.
    """
    if transport is None:
        check_loopback(bind)
    os.environ[DIRECTORY_VARIABLE] = tempfile.mkdtemp(prefix="rxstore-metrics-")
    _Server(app_factory, bind, transport or Plain(), workers or os.cpu_count() or 1, threads, at_end).run()


def check_loopback(bind: str) -> None:
    """Raise ValueError unless ``HOST:PORT`` names this machine only: plain HTTP shows patients to the network."""
    host, separator, port = bind.rpartition(":")
    if not separator or not port.isdecimal() or not host:
        raise ValueError("the address must be HOST:PORT, for example 127.0.0.1:8443")
    if not _is_loopback(host.strip("[]")):
        raise ValueError(
            f"plain HTTP is served on a loopback address only, and {host} is none: use 127.0.0.1:{port}, "
            "or serve over TLS"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class QuietLogger(Logger):  # type: ignore[misc]
    """gunicorn's own lines without the request lines and exceptions it would quote: those name patients.

    The lines go to the root logger's handlers, like all others; requests are logged by ``query_api.metrics``.
    """

    def __init__(self, cfg: Any) -> None:  # noqa: ANN401 - gunicorn has no types
        super().__init__(cfg)
        self.error_log.propagate = True

    def debug(self, msg: str, *args: object, **kwargs: object) -> None:
        """Say nothing: lines of this level quote paths."""

    def warning(self, msg: str, *args: object, **kwargs: object) -> None:
        """Warn, but not with the request line of what was no valid HTTP."""
        if str(msg).startswith(INVALID_REQUEST):
            super().warning("a request that is no valid HTTP was refused")
        else:
            super().warning(msg, *args, **kwargs)

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        """Say what kind of error it was and where, not what it quotes."""
        error = sys.exc_info()[1]
        what = str(msg).split("%", maxsplit=1)[0].strip() if isinstance(msg, str) else "error"
        super().error("%s: %s", what, "unknown" if error is None else outline(error))


class _NoBanner(Response):  # type: ignore[misc]
    """gunicorn's response without the line that says what serves."""

    def default_headers(self) -> list[str]:
        """Return the headers that every response has."""
        return [line for line in super().default_headers() if not line.startswith("Server:")]


def _write_error(sock: Any, status: int, reason: str, message: str) -> None:  # noqa: ANN401 - gunicorn has no types
    """Answer what is no valid HTTP; gunicorn's own page repeats what was sent, which may name a patient."""
    body = orjson.dumps({"title": reason})
    lines = (
        f"HTTP/1.1 {status} {reason}",
        "Connection: close",
        "Content-Type: application/json",
        "Cache-Control: no-store",
        f"Content-Length: {len(body)}",
    )
    util.write_nonblock(sock, "\r\n".join((*lines, "", "")).encode() + body)


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(
        self,
        app_factory: Callable[[], Api],
        bind: str,
        transport: Transport,
        workers: int,
        threads: int,
        at_end: Callable[[], None],
    ) -> None:
        self._app_factory = app_factory
        self.at_end = at_end
        self.transport = transport
        self.threads = threads
        self._settings = {
            "bind": bind,
            "workers": workers,
            "worker_class": ConnectionWorker,
            "umask": SOCKET_UMASK,
            "limit_request_line": LONGEST_REQUEST_LINE,
            "limit_request_fields": MOST_HEADERS,
            # By default gunicorn lets whoever connects from this machine change the path and the scheme by headers.
            "forwarder_headers": "",
            "secure_scheme_headers": {},
            "timeout": REQUEST_TIMEOUT_SECONDS,
            "graceful_timeout": GRACE_SECONDS,
            "keepalive": KEEP_ALIVE_SECONDS,
            "proc_name": "rxstore-api",
            "logger_class": QuietLogger,
            "loglevel": logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower(),
            "errorlog": None,
            "accesslog": None,
            "child_exit": _forget_worker,
            "worker_exit": _end_here,
            "on_exit": _remove_metrics,
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._settings.items():
            self.cfg.set(name, value)
        # A control socket in the user's home directory is more than was asked for; older gunicorns have none.
        if "control_socket_disable" in self.cfg.settings:
            self.cfg.set("control_socket_disable", True)

    def load(self) -> Api:
        # There are no settings for these.
        wsgi.Response = _NoBanner
        util.write_error = _write_error
        return self._app_factory()


def _forget_worker(server: object, worker: Any) -> None:  # noqa: ANN401 - gunicorn has no types
    """Drop what only a living process may report; its counts stay in the sum."""
    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def _end_here(server: object, worker: Any) -> None:  # noqa: ANN401 - gunicorn has no types
    """End a worker without going back up the stack that it was forked with.

    What stands open there (the servers of a demo, temporary directories) belongs to the parent. gunicorn calls this
    in the parent too, about a worker that is gone.
    """
    if worker.pid != os.getpid():
        return
    ending = sys.exc_info()[1]
    worker.app.at_end()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(ending.code if isinstance(ending, SystemExit) and isinstance(ending.code, int) else 1)


def _remove_metrics(server: object) -> None:
    shutil.rmtree(os.environ.pop(DIRECTORY_VARIABLE), ignore_errors=True)
