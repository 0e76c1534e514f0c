"""The audit trail of a server process: every request leaves a record, which is committed before its answer leaves.

A group commit: the thread of a request for which nobody writes yet leads, takes all that waits at that moment and
commits it together; what comes meanwhile waits for the next. So requests share commits when there are many, and one
alone hands nothing to another thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Event, Lock, Thread
from typing import Protocol
from uuid import UUID, uuid4

import falcon
import orjson
import psycopg
from prometheus_client import Counter
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

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
INSERT = (
    f"INSERT INTO rxstore.audit ({', '.join(Record._fields)}) SELECT {', '.join(Record._fields)} "
    "FROM json_populate_recordset(NULL::rxstore.audit, $1::json)"
)
PREPARED = b"rxstore_audit"
LONG_AGO = datetime.min.replace(tzinfo=UTC)
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


@dataclass(slots=True)
class _Chain:
    """The chain that is written on, with what of it is anchored."""

    id: UUID = field(default_factory=uuid4)
    head: Head = BEGIN
    anchored: Head = BEGIN
    at: datetime = LONG_AGO


class _Waiting:
    """An entry that is to be written; its thread sleeps until it is, or until it is its turn to lead.

    Whoever leads wakes each of the others once: those whose entries it wrote, and the one that leads next.
    """

    __slots__ = ("entry", "failure", "is_leader", "is_written", "until", "wakes")

    def __init__(self, entry: Entry, until: float) -> None:
        self.entry = entry
        self.until = until
        self.is_leader = False
        self.is_written = False
        self.failure: BaseException | None = None
        self.wakes = Lock()
        self.wakes.acquire()


class Writer:
    """Writes records to the database and anchors to a file. To be made after a fork."""

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
        self._pid = os.getpid()
        self._lock = Lock()
        self._idle = Condition(self._lock)
        self._waiting: deque[_Waiting] = deque()
        self._is_led = False
        self._is_closed = False
        # A leader's alone, until it hands over: the connection and the chain.
        self._connection: psycopg.Connection | None = None
        self._chain = _Chain()
        self._ends = Event()
        self._anchoring = Thread(target=self._anchor_now_and_then, name="audit-anchors", daemon=True)
        self._anchoring.start()
        atexit.register(self.close)

    def write(self, entry: Entry) -> None:
        """Return when the entry is committed."""
        mine = _Waiting(entry, time.monotonic() + self._patience_seconds)
        with self._lock:
            # A process that was forked from the one that made this has no such thread: two would write one chain.
            if self._is_closed or not self._anchoring.is_alive() or len(self._waiting) >= MOST_WAITING:
                raise NotWritten
            self._waiting.append(mine)
            if not self._is_led:
                self._is_led = mine.is_leader = True
        if not mine.is_leader:
            self._sleep(mine)
        if mine.is_leader:
            self._lead(mine)
        if not mine.is_written:
            raise NotWritten from mine.failure

    def close(self) -> None:
        """Wait until what waits is written, anchor the end of the chain, and end."""
        atexit.unregister(self.close)
        if os.getpid() != self._pid:
            return
        with self._idle:
            if self._is_closed:
                return
            self._is_closed = True
            is_idle = self._idle.wait_for(lambda: not self._is_led, CLOSE_SECONDS)
        self._ends.set()
        self._anchoring.join(CLOSE_SECONDS)
        is_idle = is_idle and not self._anchoring.is_alive()
        if is_idle and self._chain.head != BEGIN:
            self._anchor(self._chain, "end")
        if is_idle:
            self._disconnect()

    def _sleep(self, mine: _Waiting) -> None:
        """Wait until an entry is written, or not, or its thread is to lead, or for as long as anybody waits."""
        if mine.wakes.acquire(timeout=max(0.0, mine.until - time.monotonic())):
            return
        with self._lock:
            if mine in self._waiting and not mine.is_leader:  # what no leader has begun with is left out
                self._waiting.remove(mine)

    def _lead(self, mine: _Waiting) -> None:
        """Write what waits, this one's own entry among it, hand over to the first of those that came meanwhile."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
        try:
            self._write(batch, mine.until)
        finally:
            with self._idle:
                woken = [each for each in batch if each is not mine]
                if self._waiting:
                    self._waiting[0].is_leader = True
                    woken.insert(0, self._waiting[0])
                else:
                    self._is_led = False
                    self._idle.notify_all()
            for each in woken:
                each.wakes.release()

    def _write(self, batch: list[_Waiting], until: float) -> None:
        if self._chain.head == BEGIN:
            self._anchor(self._chain, "begin")
        try:
            records = self._chained([each.entry for each in batch])
            self._insert(records, until)
            self._chain.head, self._chain.at = Head(records[-1].sequence, records[-1].hash), records[-1].at
        except BaseException as error:  # also when the process is told to end: what was sent may still be committed
            self._give_up_chain()
            for each in batch:
                each.failure = error
            if not isinstance(error, Exception):
                raise
        else:
            for each in batch:
                each.is_written = True

    def _chained(self, entries: list[Entry]) -> list[Record]:
        head, at, records = self._chain.head, self._chain.at, []
        for entry in entries:
            # A chain never goes back in time, or a month that is let go would take records from its middle.
            at = max(at, self._clock())
            record = audit.chained(self._chain.id, head, at, entry)
            head = Head(record.sequence, record.hash)
            records.append(record)
        return records

    def _insert(self, records: list[Record], until: float) -> None:
        """Write records in one transaction; once more on a new connection when the old one turns out to be dead."""
        if self._connection is None:
            self._insert_anew(records, until)
            return
        try:
            _send(self._connection, records, until)
        except psycopg.Error:
            if not self._connection.broken or time.monotonic() >= until:
                raise
            self._disconnect()
            with suppress(psycopg.errors.UniqueViolation):  # the old connection had still committed them
                self._insert_anew(records, until)

    def _insert_anew(self, records: list[Record], until: float) -> None:
        self._connection = self._connect()
        _send(self._connection, records, until, is_new=True)

    def _give_up_chain(self) -> None:
        """Begin another chain: whether the last records of this one were committed is not known."""
        self._disconnect()
        chain, self._chain = self._chain, _Chain()
        if chain.head != chain.anchored:
            self._anchor(chain, "head")

    def _anchor_now_and_then(self) -> None:
        """Anchor what was written since the last time, also while nobody asks."""
        while not self._ends.wait(self._anchor_seconds):
            chain = self._chain
            if chain.head != chain.anchored:
                self._anchor(chain, "head")

    def _anchor(self, chain: _Chain, kind: AnchorKind) -> None:
        head = chain.head
        try:
            append_anchors(self._anchor_file, [Anchor(chain.id, head, kind, self._clock())])
        except OSError as error:
            logger.error(
                "an audit anchor could not be written: %s", error.strerror, extra={"action": "audit_anchor_failed"}
            )
        else:
            chain.anchored = head

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


def _send(connection: psycopg.Connection, records: list[Record], until: float, *, is_new: bool = False) -> None:
    """Write records by a prepared statement, in one transaction and one round trip; TimeoutError or psycopg.Error.

    By libpq's own functions: a statement takes half of the time that it takes by a cursor, and no cursor can be asked
    to wait only so long for a server that has stopped.
    """
    pgconn = connection.pgconn
    if is_new:
        pgconn.send_prepare(PREPARED, INSERT.encode())
        _await(pgconn, until)
    pgconn.send_query_prepared(PREPARED, [orjson.dumps([_as_json(record) for record in records])])
    _await(pgconn, until)


def _await(pgconn: PGconn, until: float) -> None:
    """Wait for all that the server says to what was sent, and raise the first error that it tells."""
    failed = [result for result in _results(pgconn, until) if result.status != ExecStatus.COMMAND_OK]
    if failed:
        raise _error_of(failed[0])


def _results(pgconn: PGconn, until: float) -> Iterator[PGresult]:
    poll = select.poll()
    while True:
        while (is_unsent := pgconn.flush()) or pgconn.is_busy():
            poll.register(pgconn.socket, select.POLLIN | (select.POLLOUT if is_unsent else 0))
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return
        yield result


def _error_of(result: PGresult) -> psycopg.Error:
    state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    try:
        kind = psycopg.errors.lookup(state)
    except KeyError:
        kind = psycopg.OperationalError
    return kind(result.get_error_message())


def _as_json(record: Record) -> dict[str, object]:
    """Say a record as PostgreSQL reads a row from JSON."""
    values = ("\\x" + value.hex() if isinstance(value, bytes) else value for value in record)
    return dict(zip(Record._fields, values, strict=True))


def connecting(url: str, *, role: str | None = None) -> Callable[[], psycopg.Connection]:
    """Return how to connect to write records; every statement is a transaction that is on the disk when it ends."""
    url = url.replace("postgresql+psycopg://", "postgresql://", 1)
    given = conninfo_to_dict(url)
    as_role = "" if role is None else f" -c role={role}"
    ours = f"-c synchronous_commit=on -c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC{as_role}"
    conninfo = make_conninfo(
        url,
        options=f"{given.get('options', '')} {ours}".lstrip(),
        client_encoding="UTF8",
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
