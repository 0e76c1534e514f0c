"""The commands as people run them: processes of their own, against a database and a topic of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from ingest.partitioning import partitioner
from rxstore.embedded import free_port
from rxstore.generator import GeneratedRecord
from tests.acceptance import discretion

ASID = "200000000946"
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answered; names of headers are in lower case, ``raw`` has the bytes of the body."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector that runs beside the test."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self, words: str, action: str | None = None) -> bool:
        """Whether a line of its log has these words, and this action."""
        mark = "" if action is None else f'"action":"{action}"'
        return any(words in line and mark in line.replace(" ", "") for line in self.log.read_text().splitlines())

    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        if self.is_running():
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()


@dataclass(slots=True)
class System:
    """One installation of rxstore under test."""

    environment: dict[str, str]
    directory: Path

    def run(self, *arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = self.start_to_end(arguments, stdin, **environment)
        stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        discretion.check(arguments, stdout, stderr)
        return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)

    def start_to_end(
        self, arguments: tuple[str, ...], stdin: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, and look at nothing that it says."""
        return subprocess.run(
            self._command(arguments),
            input=stdin,
            capture_output=True,
            env={**self._environment(), **environment},
            cwd=self.directory,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def do(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def publish(self, events: Iterable[dict[str, Any]]) -> None:
        """Publish events as a publisher would, in order."""
        self.do("publish", "-", stdin=b"\n".join(json.dumps(event).encode() for event in events))

    def forget_log_before(self, offsets: Mapping[int, int]) -> None:
        """Take events away from partitions as retention does."""
        topic = self.environment["RXSTORE_TOPIC"]
        admin = KafkaAdminClient(bootstrap_servers=self.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"])
        admin.delete_records({TopicPartition(topic, number): offset for number, offset in offsets.items()})
        admin.close()

    def project(self, workers: int = 1) -> dict[str, int]:
        """Project what is in the topic, and return what became of it."""
        counts: dict[str, int] = json.loads(
            self.do("project", "--until-caught-up", "--workers", str(workers), "--json")
        )
        return counts

    def status(self) -> dict[str, Any]:
        """Return the document of ``status --json``, whatever its verdict."""
        document: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return document

    def quarantine(self, *arguments: str) -> list[dict[str, Any]]:
        """Return what ``quarantine list --json`` shows."""
        return [json.loads(line) for line in self.do("quarantine", "list", "--json", *arguments).splitlines()]

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command that goes on until it is stopped; what it says comes when it has ended."""
        log = self.directory / f"{arguments[0]}-{time.monotonic_ns()}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                self._command(arguments),
                env={**self._environment(), **environment},
                cwd=self.directory,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                try:
                    process.wait(PATIENCE_SECONDS)
                finally:
                    process.kill()
                text = log.read_text(errors="replace")
                sys.stderr.write(text)
                discretion.check(arguments, text, "")

    @contextmanager
    def listening(
        self, *arguments: str, up: Callable[[], object], **environment: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run ``serve`` with these arguments; the block begins once ``up`` no longer raises OSError."""
        with self.running("serve", *arguments, **environment) as process:

            def is_up() -> bool:
                assert process.poll() is None, "the API ended"
                try:
                    up()
                except OSError:
                    return False
                return True

            eventually(is_up)
            yield process

    @contextmanager
    def projecting(self, *arguments: str, **environment: str) -> Iterator[Projector]:
        """Run a projector of one worker until the block ends; what it says is kept."""
        log = self.directory / f"projector-{time.monotonic_ns()}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                self._command(("project", "--workers", "1", *arguments)),
                env={**self._environment(), "RXSTORE_LOG_LEVEL": "info", "RXSTORE_LOG_FORMAT": "json", **environment},
                cwd=self.directory,
                stderr=said,
                stdout=subprocess.DEVNULL,
            )
            projector = Projector(process, log)
            try:
                yield projector
            finally:
                projector.stop()
                discretion.check(("project",), "", log.read_text(errors="replace"))

    @contextmanager
    def serving(self, **environment: str) -> Iterator[Callable[..., Answer]]:
        """Serve the API; the block gets a function that asks it."""
        address = f"127.0.0.1:{free_port()}"

        def ask(path: str, method: str = "GET", **headers: str) -> Answer:
            request = urllib.request.Request(f"http://{address}{path}", method=method)
            for name, value in {"Spine-From-Asid": ASID, "Accept": "application/json", **headers}.items():
                request.add_header(name.replace("_", "-"), value)
            try:
                response = urllib.request.urlopen(request, timeout=10)  # noqa: S310 - our own address
            except urllib.error.HTTPError as error:
                response = error
            with response:
                body = response.read()
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, headers, json.loads(body) if body else {}, body)

        arguments = ("--insecure", "--bind", address, "--workers", "1")
        with self.listening(*arguments, up=lambda: ask("/health/live"), **environment):
            yield ask

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the database itself."""
        with psycopg.connect(self.environment["RXSTORE_DATABASE_URL"]) as connection:
            return connection.execute(statement, parameters).fetchall()

    def execute(self, statement: str) -> None:
        """Meddle with the database."""
        with psycopg.connect(self.environment["RXSTORE_DATABASE_URL"]) as connection:
            connection.execute(statement)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "rxstore.cli.main", *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


def path_with(change: str, directory: Path) -> str:
    """Return a path for Python on which something is changed in it when it starts."""
    (directory / "sitecustomize.py").write_text(change)
    return os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])


def eventually(question: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until the answer is yes; fail when it takes too long."""
    until = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < until, f"not within {seconds:.0f} seconds"
        time.sleep(0.05)


def publish_records(broker: str, topic: str, made: Iterable[GeneratedRecord]) -> None:
    """Send records as they are, wrong places and all, which `rxstore publish` would refuse to."""
    producer = KafkaProducer(bootstrap_servers=broker, max_request_size=8 * 1024 * 1024)
    partitions = len(producer.partitions_for(topic))
    partition_of = partitioner("murmur2", partitions)
    for record in made:
        producer.send(
            topic,
            record.value,
            key=record.key,
            partition=(partition_of(record.key) + record.partition_shift) % partitions,
            headers=list(record.headers),
        )
    producer.flush()
    producer.close()


@pytest.fixture
def system(migrated_database_url: str, broker: str, topic: str, tmp_path: Path) -> System:
    """An installation that is migrated, with an empty topic."""
    return installed(migrated_database_url, broker, topic, tmp_path)


def installed(database_url: str, broker: str, topic: str, directory: Path) -> System:
    """Return an installation in a migrated database and an empty topic."""
    made = System(
        {
            "RXSTORE_DATABASE_URL": database_url,
            "RXSTORE_KAFKA_BOOTSTRAP_SERVERS": broker,
            "RXSTORE_TOPIC": topic,
            "RXSTORE_GROUP_ID": f"group-of-{topic}",
            "RXSTORE_SESSION_TIMEOUT_MS": "6000",
            "RXSTORE_LOG_LEVEL": "warning",
        },
        directory,
    )
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE rxstore.generation SET topic = %s", (topic,))
    return made
