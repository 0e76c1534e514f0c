"""What processes use: CPU seconds and memory, of a command and its children or of a server on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil

MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Tree:
    """A process and all that it started."""

    root: psutil.Process

    def living(self) -> Iterator[psutil.Process]:
        """Yield the processes that are there now."""
        with suppress(psutil.NoSuchProcess):
            yield self.root
            yield from self.root.children(recursive=True)

    def cpu_seconds(self) -> float:
        """Return the user and system time of all of it, of processes that have ended too."""
        total = 0.0
        for process in self.living():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


def server(address: str) -> Tree | None:
    """Return the processes that listen at ``host:port``, or None when they are not on this machine or not ours to see.

    The one with the lowest id is the root: servers fork after they listen.
    """
    host, _, port = address.rpartition(":")
    if host not in {"127.0.0.1", "localhost"}:
        return None
    with suppress(psutil.AccessDenied):
        pids = [
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port) and connection.pid
        ]
        if pids:
            return Tree(psutil.Process(min(pids)))
    return None


def server_of_url(url: str) -> Tree | None:
    """Return the processes of the server that a URL names."""
    parts = urlsplit(url)
    return server(f"{parts.hostname}:{parts.port or 5432}")


@dataclass(slots=True)
class Cpu:
    """CPU seconds of several trees between two moments."""

    trees: Mapping[str, Tree | None]
    began: dict[str, float] = field(default_factory=dict)
    began_at: float = 0.0

    @classmethod
    def of_run(cls, command: Tree, database_url: str, bootstrap_servers: str) -> Cpu:
        """Count a command and the two servers that it works with."""
        return cls(
            {
                "worker us": command,
                "postgres us": server_of_url(database_url),
                "broker us": server(bootstrap_servers),
            }
        )

    def begin(self) -> None:
        """Start counting."""
        self.began_at = time.monotonic()
        self.began = {name: tree.cpu_seconds() for name, tree in self.trees.items() if tree is not None}

    def used(self) -> dict[str, float]:
        """Return the seconds since ``begin`` by tree; those on other machines are left out."""
        return {
            name: tree.cpu_seconds() - self.began[name]
            for name, tree in self.trees.items()
            if tree is not None and name in self.began
        }


def per_event(seconds: Mapping[str, float], events: int) -> dict[str, float]:
    """Return microseconds of CPU for one event."""
    return {name: round(value / events * MICROSECONDS, 1) for name, value in seconds.items()}


def resident_megabytes(process: psutil.Process) -> float:
    """Return how much memory a process holds now; 0 when it is gone."""
    with suppress(psutil.NoSuchProcess):
        return float(process.memory_info().rss) / 1_000_000
    return 0.0
