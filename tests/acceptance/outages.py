"""Servers that fail on purpose: a log that loses its end, a database that refuses to write, a commit unanswered."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import make_url

from rxstore.embedded import LOOPBACK, Cluster, free_port, temporary_directory
from tests.servers import Broker

BATCH_HEADER = struct.Struct(">qi")  # base offset, and the bytes that follow
NO_NEED_TO_RECOVER = ".kafka_cleanshutdown"


def cut_log(broker: Broker, topic: str, partition: int, batches: int) -> None:
    """Leave only so many batches of a partition, as a broker does that lost the end of its disk; it must be stopped."""
    directory = broker.data / f"{topic}-{partition}"
    (segment,) = directory.glob("*.log")
    content = segment.read_bytes()
    end = 0
    for _ in range(batches):
        end += BATCH_HEADER.size + BATCH_HEADER.unpack_from(content, end)[1]
    segment.write_bytes(content[:end])
    for remembered in (*directory.glob("*index"), directory / "leader-epoch-checkpoint"):
        remembered.unlink(missing_ok=True)
    (broker.data / NO_NEED_TO_RECOVER).unlink(missing_ok=True)


def make_standby(cluster: Cluster) -> None:
    """Let a stopped server come up in recovery, read only, until somebody promotes it."""
    mark = cluster.data / "standby.signal"
    mark.touch()
    if cluster.user is not None:
        shutil.chown(mark, cluster.user)


@contextmanager
def replica_of(cluster: Cluster) -> Iterator[Cluster]:
    """A second server, running, that follows the first."""
    with temporary_directory("replica") as directory:
        replica = _copy_of(cluster, directory)
        with replica.running():
            yield replica


def _copy_of(cluster: Cluster, directory: Path) -> Cluster:
    data, port = directory / "replica", free_port()
    data.mkdir(mode=0o700)
    if cluster.user is not None:
        shutil.chown(data, cluster.user)
    subprocess.run(
        [cluster.programs / "pg_basebackup", "-d", cluster.address, "-D", data, "-R", "-c", "fast", "--no-sync"],
        user=cluster.user,
        cwd=cluster.directory,
        check=True,
    )
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(f"port = {port}\n")
    address = make_url(cluster.address).set(port=port).render_as_string(hide_password=False)
    return replace(cluster, address=address, directory=directory, data=data)


@dataclass(slots=True)
class Proxy:
    """Stands between clients and a database. Once ``armed``, a worker's next commit is done, and nobody hears of it."""

    target: tuple[str, int]
    armed: threading.Event = field(default_factory=threading.Event)
    swallowed: threading.Event = field(default_factory=threading.Event)

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                pair = _Pair(client, socket.create_connection(self.target))
                for carry in (self._to_server, self._to_client):
                    threading.Thread(target=carry, args=(pair,), daemon=True).start()

    def _to_server(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.client.recv(65_536):
                pair.is_worker |= b"rxstore-projector" in data
                if pair.is_worker and b"COMMIT" in data and self.armed.is_set():
                    self.armed.clear()
                    pair.silent = True
                pair.server.sendall(data)
        pair.close()

    def _to_client(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.server.recv(65_536):
                if pair.silent:
                    self.swallowed.set()
                    break
                pair.client.sendall(data)
        pair.close()


@dataclass(slots=True)
class _Pair:
    client: socket.socket
    server: socket.socket
    is_worker: bool = False
    silent: bool = False

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_of(database_url: str) -> Iterator[tuple[str, Proxy]]:
    """A proxy of the database, and the URL that leads through it."""
    url = make_url(database_url)
    with closing(socket.create_server((LOOPBACK, 0))) as listener:
        port = int(listener.getsockname()[1])
        proxy = Proxy((str(url.host), int(url.port or 5432)))
        threading.Thread(target=proxy.serve, args=(listener,), daemon=True).start()
        yield url.set(port=port).render_as_string(hide_password=False), proxy
        listener.shutdown(socket.SHUT_RDWR)
