"""The whole system on one machine for somebody who wants to see it: nothing to install, nothing kept.

PostgreSQL and a broker out of wheels, and the same commands that production runs, as processes of their own.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse
from itertools import chain
from pathlib import Path

import psycopg
from sqlalchemy import Engine

from ingest.decode import Decoder
from projector import generations
from query_api.certificates import from_pem
from query_api.clients import RETRIEVE, SEARCH
from rxstore import auditing, broker, embedded, event_file, publishing, registering, store, topics
from rxstore.authority import Authority, Issued
from rxstore.errors import RxstoreError
from rxstore.generator import lines
from rxstore.settings import PREFIX, Settings, load

ASID = "200000000946"
# Registered for searches alone, where the demo speaks TLS.
SEARCHING_ASID = "200000000947"
# The history begins this long ago, so that a search without dates (28 days) finds it; its last days are fed later, an
# hour of theirs in a second of ours.
HISTORY = timedelta(days=26)
FED_LATER = timedelta(days=7)
FED_SECONDS_PER_HOUR = 1.0
# The broker of the demo answers a group join after half of this.
SESSION_TIMEOUT_MS = 6_000
READY_SECONDS = 60.0
LOOK_EVERY_SECONDS = 0.05

Say = Callable[[str], None]


class DemoFailed(RxstoreError):
    """A part of the demo ended or did not get ready in time."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the demo over TLS made: an authority, and the certificates of two clients."""

    authority: Authority
    everything: Issued
    searching: Issued

    def context(self) -> ssl.SSLContext:
        """Return what the client that may ask everything connects with."""
        context = ssl.create_default_context(cafile=self.authority.certfile)
        context.load_cert_chain(self.everything.certfile, self.everything.keyfile)
        return context


@dataclass(frozen=True, slots=True)
class Demo:
    """The running system. ``fed_later`` are events still to be published, each with its time."""

    settings: Settings
    base_url: str
    parts: tuple[subprocess.Popen[bytes], ...]
    fed_later: Iterator[bytes]
    certificates: Certificates | None = None

    def patient(self) -> tuple[str, str]:
        """Return the NHS number of a patient who shows much, and the id of a prescription that a dispenser has."""
        question = """
            SELECT p.nhs_number, (array_agg(p.prescription_id ORDER BY i.status = '0003' DESC, p.prescribed_at DESC))[1]
              FROM rxstore.prescription p
              JOIN rxstore.issue i ON i.stream_key = p.stream_key AND i.issue_number = p.current_issue
             WHERE p.prescribed_at > now() - interval '20 days' AND p.kind = 'created'
             GROUP BY p.nhs_number
            HAVING count(*) BETWEEN 2 AND 3
             ORDER BY bool_or(i.status = '0003') DESC, bool_or(p.treatment_type = '0003') DESC, min(p.stream_key)
             LIMIT 1
        """
        with psycopg.connect(self.settings.database()) as connection:
            row = connection.execute(question).fetchone()
        if row is None:
            raise DemoFailed("too few prescriptions to show something: say more with --prescriptions")
        return str(row[0]), str(row[1])

    def urls(self) -> tuple[str, str]:
        """Return the address of a search and of a detail look-up that show something."""
        nhs_number, prescription_id = self.patient()
        search = f"{self.base_url}/mm/prescriptions?format=trace-summary&nhsNumber={nhs_number}"
        return search, f"{self.base_url}/mm/prescriptions/{urllib.parse.quote(prescription_id)}?format=trace"

    def feed(self, fed: Callable[[int], None]) -> None:
        """Publish what is left of the lifecycles, an hour of theirs a second, until there is nothing left."""
        checker = _checker(self.settings)
        began, epoch, count = time.monotonic(), None, 0
        with publishing.publisher(self.settings) as publisher:
            for number, line in enumerate(self.fed_later):
                at = _time_of(line)
                epoch = epoch or at
                due = began + (at - epoch) / timedelta(hours=1) * FED_SECONDS_PER_HOUR
                while time.monotonic() < due:
                    self.check()
                    time.sleep(min(0.5, max(0.0, due - time.monotonic())))
                list(publisher.publish([event_file.check(checker, (number, line))]))
                count += 1
                fed(count)

    def check(self) -> None:
        """Raise DemoFailed when a part has ended."""
        for part in self.parts:
            if part.poll() is not None:
                raise DemoFailed(f"a part of the demo ended with exit code {part.returncode}: its words stand above")

    def ask(self, url: str) -> str:
        """Ask the API and return its answer, indented for reading."""
        headers = {"Accept": "application/json", "Spine-From-Asid": ASID}
        with self._open(urllib.request.Request(url, headers=headers)) as response:  # noqa: S310
            return json.dumps(json.load(response), indent=2)

    def is_ready(self) -> bool:
        """Whether the API says that it is."""
        try:
            with self._open(urllib.request.Request(f"{self.base_url}/health/ready")) as response:  # noqa: S310
                return bool(response.status == 200)
        except OSError:
            return False

    def _open(self, request: urllib.request.Request) -> HTTPResponse:
        context = None if self.certificates is None else self.certificates.context()
        found: HTTPResponse = urllib.request.urlopen(request, timeout=10, context=context)  # noqa: S310 - our own
        return found

    def curl(self, url: str, asid: str = ASID, issued: Issued | None = None) -> str:
        """Return the line to paste for the same; over TLS with the certificate of some client."""
        tls = ""
        if self.certificates is not None:
            shown = issued or self.certificates.everything
            tls = f" --cacert {self.certificates.authority.certfile} --cert {shown.certfile} --key {shown.keyfile}"
        return f"curl -s{tls} -H 'Accept: application/json' -H 'Spine-From-Asid: {asid}' '{url}'"


@contextmanager
def running(*, prescriptions: int, port: int | None, say: Say, tls: bool = False) -> Iterator[Demo]:
    """The system from start to end; inside the block it serves a history of ``prescriptions``.

    With ``tls`` the API wants a client certificate, and knows two clients with different rights.
    """
    with ExitStack() as stack:
        say("starting PostgreSQL and a broker")
        with ThreadPoolExecutor(2) as pool:
            database = pool.submit(stack.enter_context, embedded.postgres())
            log = pool.submit(stack.enter_context, embedded.broker())
            directory = stack.enter_context(embedded.temporary_directory("demo"))
            address = f"{embedded.LOOPBACK}:{port or embedded.free_port()}"
            environment = {
                "RXSTORE_DATABASE_URL": database.result().address,
                "RXSTORE_KAFKA_BOOTSTRAP_SERVERS": log.result().address,
                "RXSTORE_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
                "RXSTORE_HTTP_BIND": address,
                "RXSTORE_LOG_LEVEL": "warning",
            }
        certificates = _certificates(directory, environment) if tls else None
        settings = load(environment, env_file=directory / "none")
        with store.engine(settings) as engine:
            generations.migrate(engine, topic=settings.topic, settings=store.meaning(settings))
            if certificates is not None:
                _register(engine, certificates)
        with broker.admin_client(settings) as admin:
            topics.create(admin, settings.topic, topics.DEFAULT_PARTITIONS, settings.max_value_bytes)
        say("starting the projector and the API")
        parts = tuple(
            stack.enter_context(_part(command, environment, directory))
            for command in (
                ["project", "--workers", "1"],
                ["serve", "--workers", "1", *([] if tls else ["--insecure"])],
            )
        )
        history, later = _history(prescriptions)
        say(f"publishing {len(history):,} events of {prescriptions:,} prescriptions")
        checker = _checker(settings)
        with publishing.publisher(settings) as publisher:
            checked = (event_file.check(checker, (number, line)) for number, line in enumerate(history, start=1))
            published = sum(1 for _ in publisher.publish(checked))
        demo = Demo(settings, f"{'https' if tls else 'http'}://{address}", parts, later, certificates)
        _wait(demo, "the projector", lambda: _projected(settings) >= published)
        _wait(demo, "the API", demo.is_ready)
        yield demo


def _certificates(directory: Path, environment: dict[str, str]) -> Certificates:
    """Make an authority and what it issues, and tell the API where it is."""
    authority = Authority(directory)
    server = authority.server("server", [embedded.LOOPBACK, "localhost"])
    environment |= {
        "RXSTORE_TLS_CERTFILE": str(server.certfile),
        "RXSTORE_TLS_KEYFILE": str(server.keyfile),
        "RXSTORE_TLS_CLIENT_CAFILE": str(authority.certfile),
    }
    public, _, hashing = auditing.make_keys(directory)
    environment |= {
        "RXSTORE_AUDIT_PUBLIC_KEY_FILE": str(public),
        "RXSTORE_AUDIT_HASH_KEY_FILE": str(hashing),
        "RXSTORE_AUDIT_ANCHOR_FILE": str(directory / "anchors.ndjson"),
    }
    return Certificates(authority, authority.client("pharmacy"), authority.client("searching"))


def _register(engine: Engine, certificates: Certificates) -> None:
    for asid, issued, interactions in (
        (ASID, certificates.everything, (SEARCH, RETRIEVE)),
        (SEARCHING_ASID, certificates.searching, (SEARCH,)),
    ):
        fingerprint = from_pem(issued.certfile.read_bytes()).fingerprint
        registration = registering.Registration(asid, "the demo", interactions, fingerprints=(fingerprint,))
        registering.add(engine, registration, who="rxstore demo")


def _history(prescriptions: int) -> tuple[list[bytes], Iterator[bytes]]:
    """Split lifecycles that began lately into those events that have happened and those to be fed later."""
    now = datetime.now(UTC)
    until = now - FED_LATER
    events = lines(prescriptions, 1, (now - HISTORY).date(), HISTORY.days)
    history: list[bytes] = []
    for line in events:
        if _time_of(line) > until:
            return history, chain([line], events)
        history.append(line)
    return history, iter(())


def _time_of(line: bytes) -> datetime:
    return datetime.fromisoformat(json.loads(line)["time"])


def _checker(settings: Settings) -> Decoder:
    return event_file.checker(max_value_bytes=settings.max_value_bytes, strict_check_character=True)


@contextmanager
def _part(command: list[str], environment: dict[str, str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of our own commands, where no .env file and no setting of the user's shell reaches it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    process = subprocess.Popen(
        [sys.executable, "-m", "rxstore.cli.main", *command],
        env={**inherited, **environment},
        cwd=directory,
        start_new_session=True,  # Ctrl-C is for this process; it stops the parts in order
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(demo: Demo, what: str, ready: Callable[[], bool]) -> None:
    until = time.monotonic() + READY_SECONDS
    while not ready():
        demo.check()
        if time.monotonic() > until:
            raise DemoFailed(f"{what} was not ready within {READY_SECONDS:.0f} seconds")
        time.sleep(LOOK_EVERY_SECONDS)


def _projected(settings: Settings) -> int:
    with psycopg.connect(settings.database()) as connection:
        row = connection.execute("SELECT coalesce(sum(next_offset), 0) FROM rxstore.checkpoint").fetchone()
    return int(row[0]) if row else 0
