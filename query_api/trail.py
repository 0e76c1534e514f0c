"""The audit trail of a server process: every request leaves a record, which is committed before its answer leaves.

One thread writes. It takes all that waits at that moment and commits it together, so requests share commits when there
are many and none waits for another when there are few.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol
from uuid import UUID, uuid4

import falcon
import psycopg
from prometheus_client import Counter
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from query_api import audit, clients
from query_api.audit import BEGIN, Anchor, AnchorKind, Cover, Entry, Head, Record
from query_api.settings import utc_now
from schemas.identifiers import InvalidPrescriptionId, is_asid, parse_prescription_id
from schemas.vocabulary import TrackerStatus

logger = logging.getLogger(__name__)

MOST_WAITING = 1_000
MOST_AT_ONCE = 200
PATIENCE_SECONDS = 5.0
ANCHOR_SECONDS = 10.0
CLOSE_SECONDS = 8.0
CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_MS = 3_000
LONGEST_HEADER = 100
LONGEST_QUESTION = 8_192
ANCHOR_MODE = 0o640
INSERT = f"COPY rxstore.audit ({', '.join(Record._fields)}) FROM STDIN"
AUDITED = ("/mm/", "/rxstore/")
WRITTEN, FAILED = "written", "failed"


class NotWritten(Exception):
    """A record could not be written, so the answer that it is of must not leave; the cause says why."""


class Trail(Protocol):
    """Where records go."""

    def write(self, entry: Entry) -> None:
        """Return once the entry is committed; NotWritten when it is not, or not known to be."""


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """What a server needs to keep its trail; ``checked`` before it starts."""

    public_key_file: Path
    hash_key_file: Path
    anchor_file: Path

    def checked(self) -> AuditSettings:
        """Return it when keys can be read and anchors written; ValueError says what is wrong."""
        self.cover()
        try:
            os.close(_opened(self.anchor_file))
        except OSError as error:
            raise ValueError(f"{self.anchor_file} cannot be written: {error.strerror}") from error
        return self

    def cover(self) -> Cover:
        """Read the keys."""
        return Cover(
            hash_key=audit.read_key(self.hash_key_file, "hash"),
            public_key=audit.read_key(self.public_key_file, "public"),
        )


class Writer:
    """Writes records to the database and anchors to a file, on a thread of its own. To be made after a fork."""

    _chain: UUID
    _head: Head
    _anchored: Head
    _at: datetime
    _anchor_due: float

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        anchor_file: Path,
        *,
        clock: Callable[[], datetime] = utc_now,
        anchor_seconds: float = ANCHOR_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._connect = connect
        self._anchor_file = anchor_file
        self._clock = clock
        self._anchor_seconds = anchor_seconds
        self._patience_seconds = patience_seconds
        self._connection: psycopg.Connection | None = None
        self._waiting: SimpleQueue[tuple[Entry, Future[None]] | None] = SimpleQueue()
        self._begin()
        self._thread = Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, entry: Entry) -> None:
        """Wait until the entry is committed."""
        if self._waiting.qsize() >= MOST_WAITING or not self._thread.is_alive():
            raise NotWritten
        written: Future[None] = Future()
        self._waiting.put((entry, written))
        try:
            written.result(self._patience_seconds)
        except TookTooLong as error:
            written.cancel()  # what the writer has not begun with, it leaves out
            raise NotWritten from error
        except Exception as error:
            raise NotWritten from error

    def close(self) -> None:
        """Write what waits, anchor the end of the chain, and end."""
        atexit.unregister(self.close)
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            taken = self._taken()
            goes_on = None not in taken
            batch = [each for each in taken if each is not None and each[1].set_running_or_notify_cancel()]
            if batch:
                self._write(batch)
            if not goes_on and self._head != BEGIN:
                self._anchor("end")
            elif self._head != self._anchored and time.monotonic() >= self._anchor_due:
                self._anchor("head")
        self._disconnect()

    def _taken(self) -> list[tuple[Entry, Future[None]] | None]:
        """Wait for a record, or until an anchor is due, and take all that waits then."""
        due = None if self._head == self._anchored else max(0.0, self._anchor_due - time.monotonic())
        taken: list[tuple[Entry, Future[None]] | None] = []
        with suppress(Empty):
            taken.append(self._waiting.get(timeout=due))
            while len(taken) < MOST_AT_ONCE:
                taken.append(self._waiting.get_nowait())
        return taken

    def _write(self, batch: list[tuple[Entry, Future[None]]]) -> None:
        if self._head == BEGIN:
            self._anchor("begin")
        try:
            records = self._chained([entry for entry, _ in batch])
            self._insert(records)
        except Exception as error:
            self._give_up_chain()
            for _, written in batch:
                written.set_exception(error)
        else:
            self._head, self._at = Head(records[-1].sequence, records[-1].hash), records[-1].at
            for _, written in batch:
                written.set_result(None)

    def _chained(self, entries: list[Entry]) -> list[Record]:
        head, at, records = self._head, self._at, []
        for entry in entries:
            # A chain never goes back in time, or a month that is let go would take records from its middle.
            at = max(at, self._clock())
            record = audit.chained(self._chain, head, at, entry)
            head = Head(record.sequence, record.hash)
            records.append(record)
        return records

    def _insert(self, records: list[Record]) -> None:
        """Write records in one transaction; once more on a new connection when the old one turns out to be dead."""
        if self._connection is None:
            self._connection = self._connect()
            _copy(self._connection, records)
            return
        try:
            _copy(self._connection, records)
        except psycopg.Error:
            if not self._connection.broken:
                raise
            self._disconnect()
            self._connection = self._connect()
            with suppress(psycopg.errors.UniqueViolation):  # the old connection had still committed them
                _copy(self._connection, records)

    def _begin(self) -> None:
        self._chain = uuid4()
        self._head = self._anchored = BEGIN
        self._at = datetime.min.replace(tzinfo=UTC)
        self._anchor_due = time.monotonic() + self._anchor_seconds

    def _give_up_chain(self) -> None:
        """Begin another chain: whether the last records of this one were committed is not known."""
        self._disconnect()
        if self._head != self._anchored:
            self._anchor("head")
        self._begin()

    def _anchor(self, kind: AnchorKind) -> None:
        self._anchor_due = time.monotonic() + self._anchor_seconds
        try:
            append_anchors(self._anchor_file, [Anchor(self._chain, self._head, kind, self._clock())])
        except OSError as error:
            logger.error(
                "an audit anchor could not be written: %s", error.strerror, extra={"action": "audit_anchor_failed"}
            )
        else:
            self._anchored = self._head

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


def append_anchors(path: Path, anchors: list[Anchor]) -> None:
    """Put anchors at the end of a file that several processes write to, on the disk before this returns; OSError."""
    descriptor = _opened(path)
    try:
        os.write(descriptor, b"".join(anchor.line() for anchor in anchors))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, ANCHOR_MODE)


def _copy(connection: psycopg.Connection, records: list[Record]) -> None:
    with connection.cursor() as cursor, cursor.copy(INSERT) as copy:
        for record in records:
            copy.write_row(record)


def connecting(url: str, *, role: str | None = None) -> Callable[[], psycopg.Connection]:
    """Return how to connect to write records; every statement is a transaction that is on the disk when it ends."""
    url = url.replace("postgresql+psycopg://", "postgresql://", 1)
    given = conninfo_to_dict(url)
    as_role = "" if role is None else f" -c role={role}"
    ours = f"-c synchronous_commit=on -c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC{as_role}"
    conninfo = make_conninfo(
        url,
        options=f"{given.get('options', '')} {ours}".lstrip(),
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        application_name="rxstore-audit",
    )
    return lambda: psycopg.connect(conninfo, autocommit=True)


@dataclass(frozen=True, slots=True)
class Audit:
    """Where an application's records go, and what covers the patients in them."""

    trail: Trail
    cover: Cover


def start(settings: AuditSettings, url: str, *, role: str | None = None) -> tuple[Audit, Writer]:
    """Begin the trail of this process; its writer is to be closed at the end."""
    writer = Writer(connecting(url, role=role), settings.anchor_file)
    return Audit(writer, settings.cover()), writer


class Audited:
    """Writes a record of every request to a path of the tracker or of ours, before its answer leaves."""

    def __init__(self, audit: Audit, interactions: Mapping[str, str], records: Counter) -> None:
        self._trail = audit.trail
        self._cover = audit.cover
        self._interactions = interactions
        self._records = records

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        """Wait until the record is committed; NotWritten otherwise."""
        if not _is_audited(req):
            return
        try:
            self._trail.write(self._entry(req, resp))
        except NotWritten:
            self._records.labels(FAILED).inc()
            raise
        self._records.labels(WRITTEN).inc()

    def _entry(self, req: falcon.Request, resp: falcon.Response) -> Entry:
        asid = _said(req, "Spine-From-Asid")
        code = resp.context.get("tracker_code")
        refused_by = req.context.get("refused_by")
        if refused_by is None and code == TrackerStatus.INVALID_ASID and not is_asid(asid or ""):
            refused_by = "it did not send an ASID"
        shown: list[str] = resp.context.get("shown") or []
        patient = resp.context.get("shown_patient") or req.params.get("nhsNumber")
        return Entry(
            duration_us=round((time.perf_counter() - req.context.started) * 1_000_000),
            asid=asid,
            certificate=req.env.get(clients.FINGERPRINT),
            user_id=_said(req, "Spine-UserId"),
            role_profile_id=_said(req, "Spine-RoleProfileId"),
            trace_id=_said(req, "Eps-TraceId"),
            interaction=self._interactions.get(req.uri_template or ""),
            patient=self._cover.patient(patient) if isinstance(patient, str) and patient else None,
            prescription=_asked_prescription(req),
            question=self._cover.question(f"{req.method} {req.relative_uri}"[:LONGEST_QUESTION]),
            http_status=resp.status_code,
            tracker_code=code or None,
            shown=[key for key in map(_stream_key, shown) if key is not None],
            refused_by=refused_by,
        )


def _is_audited(request: falcon.Request) -> bool:
    return (request.uri_template or _path(request)).startswith(AUDITED)


def _path(request: falcon.Request) -> str:
    """The path as Falcon routes it: however many slashes it begins with."""
    return f"/{request.path.lstrip('/')}"


def _said(request: falcon.Request, header: str) -> str | None:
    """What a header says, as far as it can be kept: no more than so long, and nothing that cannot be printed."""
    given = request.get_header(header)
    if not given:
        return None
    return "".join(one if one.isprintable() else "\ufffd" for one in given[:LONGEST_HEADER])


def _asked_prescription(request: falcon.Request) -> str | None:
    """The prescription that the path or the query names. What is no prescription id is in the sealed question alone."""
    template = request.uri_template or ""
    given: object = request.params.get("subject")
    if "{prescription_id}" in template:
        given = _path(request).split("/")[template.split("/").index("{prescription_id}")]
    return _stream_key(given) if isinstance(given, str) else None


def _stream_key(prescription_id: str) -> str | None:
    # A plus that was encoded as in a form arrives as a space; nothing else can end in one.
    repaired = f"{prescription_id[:-1]}+" if prescription_id.endswith(" ") else prescription_id
    try:
        return parse_prescription_id(repaired, strict=False).stream_key
    except InvalidPrescriptionId:
        return None
