"""Worker processes that cost little to start and can be killed, paused and cut off; production's own code runs in them.

They are forked from a process that has imported everything and done nothing, so one is there within milliseconds.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import psycopg
from psycopg.conninfo import make_conninfo

from projector.stream import Counts
from rxstore import fleet
from rxstore.embedded import LOOPBACK
from rxstore.fleet import WorkerOptions
from rxstore.selftest.proxy import Wire

STOP_SECONDS = 30.0
LAST_LINES = 8
DUMP_SECONDS = 2.0
INNERMOST_FRAMES = 8
FRAME = re.compile(r'^ +File ".*?([^/"]+)", line (\d+) in (\S+)$')


def context(preload: str = __name__) -> multiprocessing.context.ForkServerContext:
    """Return where processes are forked from: one that has imported this module and nothing else."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([preload])
    return made


def forget_main() -> None:
    """Forget what this process was started as: children would otherwise import that again, each of them."""
    sys.modules["__main__"] = ModuleType("__main__")


@dataclass(slots=True)
class Worker:
    """One worker process with the wires that it hangs on. ``ended_by_us``: it was killed or told to stop."""

    number: int
    process: BaseProcess
    counts: Pipe
    database: Wire
    broker: Wire
    log: Path
    ended_by_us: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self.process.is_alive()

    def kill(self) -> bool:
        """Kill it with SIGKILL; whether it was alive until now."""
        if not self.is_alive:
            return False
        self.ended_by_us = True
        self.process.kill()
        return True

    def pause(self) -> bool:
        """Stop it with SIGSTOP; whether it was alive."""
        return self.is_alive and self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Tell it to stop between two batches, as a deploy does."""
        self.ended_by_us = True
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)

    def finish(self) -> str | None:
        """Wait until it has ended; what it said when it did not end as it should."""
        self.process.join(STOP_SECONDS)
        if self.is_alive:
            self.process.kill()
            self.process.join()
            return f"worker {self.number} did not stop within {STOP_SECONDS:.0f} s"
        return self.complaint()

    def complaint(self) -> str | None:
        """Return how it ended, when nobody made it end like that."""
        code = self.process.exitcode
        if code == 0 or (self.ended_by_us and code in {-signal.SIGKILL, -signal.SIGTERM}):
            return None
        said = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return f"worker {self.number} ended with exit code {code}: " + " / ".join(said)

    def whereabouts(self) -> str:
        """Say where in the code its main thread is, innermost first: what stands still is seldom seen twice."""
        before = self.log.stat().st_size
        if not self._signal(signal.SIGUSR1):
            return "gone"
        until = time.monotonic() + DUMP_SECONDS
        while not (frames := innermost_frames(self.log.read_bytes()[before:].decode(errors="replace"))):
            if time.monotonic() >= until:
                return "it does not say where"
            time.sleep(0.05)
        return " < ".join(frames)

    def counted(self) -> Counts:
        """Return what it reported when it ended; a killed one reports nothing."""
        total = Counts()
        with suppress(EOFError, OSError):
            while self.counts.poll():
                total.add(self.counts.recv())
        return total

    def close(self) -> None:
        """Let go of the pipe to a process that has ended."""
        self.counts.close()
        self.process.close()

    def _signal(self, number: int) -> bool:
        if self.process.pid is None or not self.is_alive:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
            return True
        return False


def start(
    forks: multiprocessing.context.ForkServerContext,
    number: int,
    options: WorkerOptions,
    database: Wire,
    broker: Wire,
    log: Path,
) -> Worker:
    """Start a worker that reaches its servers through these wires only."""
    told = replace(
        options,
        database_url=through(options.database_url, database),
        kafka={**options.kafka, "proxy_url": f"socks5h://{LOOPBACK}:{broker.port}"},
    )
    receiving, sending = forks.Pipe(duplex=False)
    process = forks.Process(target=_work, args=(told, number, sending, str(log)), name=f"rxstore-selftest-{number}")
    process.start()
    sending.close()
    return Worker(number, process, receiving, database, broker, log)


def through(database_url: str, wire: Wire) -> str:
    """Return how to reach the same database through a wire; the wire itself speaks TLS where it must."""
    return make_conninfo(
        database_url, host=LOOPBACK, hostaddr=LOOPBACK, port=wire.port, sslmode="disable", gssencmode="disable"
    )


def _work(options: WorkerOptions, number: int, counts: Pipe, log: str) -> None:
    """Be a worker, with all that it says in a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    fleet._work(options, number, counts)


def innermost_frames(dump: str) -> list[str]:
    """Read what ``faulthandler`` wrote of one thread: file, line and function of its innermost frames."""
    found = [match for line in dump.splitlines() if (match := FRAME.match(line))]
    return [f"{name}:{line} {function}" for name, line, function in (m.groups() for m in found[:INNERMOST_FRAMES])]


def reached(connection: psycopg.Connection) -> tuple[str, int]:
    """Return where a connection really went: a URL may name several hosts, or none."""
    info = connection.info
    return info.hostaddr or info.host, info.port
