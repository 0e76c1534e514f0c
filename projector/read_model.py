"""Loads and saves streams in bulk: "the state is the row", so loading what was saved gives the same value back.

One instance serves one generation. Rows that are new are copied straight into their tables, rows that changed go
through a temporary table and one UPDATE a table: statements, not rows, cost round trips. No guard stands in these
statements; the checkpoint that moves first in the same transaction is the guard (``projector.checkpoints``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import orjson
from psycopg import Connection, Cursor

from projector import set_aside, tables
from projector.batch import Decode, Record
from projector.prescription import (
    Cancellation,
    Issue,
    Kind,
    Notification,
    Prescribed,
    Prescription,
    Snapshot,
)
from projector.stream import NO_HISTORY, FoldedStream, History, Parked, Stream
from schemas.events import Organisation, PrescribedItem

Row = tuple[Any, ...]

JSON_IS_CSV = r"(FORMAT csv, NULL 'null', ESCAPE '\')"
has_other_escapes = re.compile(rb'\\[^"]').search
WantsParked = Callable[[Stream], bool]

DELETED = "deleted"
# Nothing folded, but an operator skipped a record whose sequence counts as seen.
EXPECTED = "expected"


class RowsMissing(Exception):
    """Rows that were loaded are gone: somebody else writes to this generation. Stop and look who."""


# The columns that an event can change after ``created``, per table; the others never change.
CHANGING: dict[str, tuple[str, ...]] = {
    "prescription": (
        "nominated_ods",
        "nominated_name",
        "nominated_telecom",
        "nominated_address",
        "current_issue",
        "version",
        "last_event_at",
        "pending_cancellations",
        "next_sequence",
        "passed_sequences",
        "folded_keys",
        "folded_positions",
    ),
    "issue": tuple(c.name for c in tables.issue.columns if not c.primary_key),
    "line_item": (),
    "dispense_notification": ("withdrawn",),
    "cancellation": tuple(c.name for c in tables.cancellation.columns if not c.primary_key),
}
TABLES = tuple(CHANGING)
COLUMNS = {name: tuple(c.name for c in tables.READ_MODEL.tables[name].columns) for name in TABLES}
KEYS = {name: tuple(c.name for c in tables.READ_MODEL.tables[name].primary_key.columns) for name in TABLES}
CHANGED_COLUMNS = {name: (*KEYS[name], *CHANGING[name]) for name in TABLES}


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of some streams, by table: ``new`` ones to insert, ``changed`` ones to update."""

    new: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})
    changed: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})


@dataclass(frozen=True, slots=True)
class ReadModel:
    """The read model in one schema, ``rx_<generation>``."""

    schema: str

    @property
    def generation(self) -> str:
        """Return the name of the generation."""
        return self.schema.partition("_")[2]

    def load(
        self, connection: Connection[Any], keys: Mapping[str, int], decode: Decode, wants_parked: WantsParked
    ) -> dict[str, Stream]:
        """Return the stored stream of every key, new ones empty; ``keys`` maps stream keys to their partitions.

        ``wants_parked(stream)`` says whether the stream's parked records are needed; ``decode`` reads them again.
        """
        asked = sorted(keys)
        stored = {row[0]: row for row in self._select(connection, "prescription", asked)}
        rows = {name: self._children(connection, name, list(stored)) for name in TABLES if name != "prescription"}
        waiting = set_aside.load_waiting(connection, self.schema, asked)
        streams: dict[str, Stream] = {}
        for key in asked:
            row = stored.get(key)
            prescription, history = (None, NO_HISTORY) if row is None else _loaded(row, rows)
            opened, has_parked = waiting.get(key, ((), False))
            streams[key] = Stream(key, keys[key], prescription, history, opened, has_parked)
        wanted = [stream.key for stream in streams.values() if stream.has_parked and wants_parked(stream)]
        if wanted:
            parked = set_aside.load_parked(connection, self.schema, wanted)
            for key in wanted:
                stream = streams[key]
                streams[key] = Stream(
                    key,
                    stream.partition,
                    stream.prescription,
                    stream.history,
                    stream.open,
                    True,
                    tuple(Parked(record, decode(_content(record.record))) for record in parked[key]),
                )
        return streams

    def save(self, connection: Connection[Any], folded: Iterable[FoldedStream], *, again: bool = False) -> None:
        """Write what changed in every stream, and every record that was set aside or released.

        With ``again`` this transaction may have saved before: the rows that it staged then must not come twice.
        """
        streams = list(folded)
        rows = Rows()
        rewritten: list[str] = []
        for stream in streams:
            if stream.history != stream.before.history:
                _changes(stream, rows, rewritten)
        with connection.cursor() as cursor:
            if again:
                cursor.execute(f"DROP TABLE IF EXISTS {', '.join(self._staged(name) for name in TABLES)}")
            if rewritten:
                for name in TABLES:
                    cursor.execute(f"DELETE FROM {self.schema}.{name} WHERE stream_key = ANY(%s)", (rewritten,))
            for name in TABLES:
                self._insert(cursor, name, rows.new[name])
                self._update(cursor, name, rows.changed[name])
            set_aside.save(
                cursor,
                self.schema,
                [record for stream in streams for record in stream.set_aside.values()],
                removed=[position for stream in streams for position in stream.removed],
                deleted=[stream.before.key for stream in streams if stream.deleted],
            )

    def _select(self, connection: Connection[Any], name: str, keys: Sequence[str]) -> list[Row]:
        if not keys:
            return []
        array = set_aside.keys_array(keys)
        return connection.execute(_select_sql(self.schema, name), (array,), prepare=True).fetchall()

    def _children(self, connection: Connection[Any], name: str, keys: Sequence[str]) -> dict[str, list[Row]]:
        rows = self._select(connection, name, keys)
        return {key: list(group) for key, group in groupby(rows, key=itemgetter(0))}

    def _insert(self, cursor: Cursor[Any], name: str, rows: list[Row]) -> None:
        if rows:
            copy_rows(cursor, f"{self.schema}.{name}", COLUMNS[name], rows)

    def _update(self, cursor: Cursor[Any], name: str, rows: list[Row]) -> None:
        if not rows:
            return
        staged = self._staged(name)
        stage(cursor, f"{self.schema}.{name}", staged, CHANGED_COLUMNS[name])
        copy_rows(cursor, staged, CHANGED_COLUMNS[name], rows)
        cursor.execute(_update_sql(self.schema, name, staged))
        if cursor.rowcount != len(rows):
            raise RowsMissing(f"{len(rows)} rows of {self.schema}.{name} were loaded, {cursor.rowcount} still exist")

    def _staged(self, name: str) -> str:
        return f"pg_temp.changed_{name}_{self.schema}"


def stage(cursor: Cursor[Any], table: str, staged: str, columns: Sequence[str]) -> None:
    """Make this session's temporary table with some columns of ``table``; it empties itself on commit."""
    cursor.execute(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {staged} ON COMMIT DELETE ROWS AS "
        f"SELECT {', '.join(columns)} FROM {table} WITH NO DATA"
    )


def copy_rows(cursor: Cursor[Any], table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Copy rows into a table, in the order of ``columns``; bytes are given as PostgreSQL's hex text.

    A JSON array without its brackets is a line of CSV, when the server is told of JSON's ``null`` and backslash, and
    orjson writes it several times as fast as psycopg writes a row. Only control characters are escaped otherwise in
    JSON; rows with one go psycopg's way.
    """
    lines = b"\n".join([orjson.dumps(row)[1:-1] for row in rows])
    if has_other_escapes(lines.replace(b"\\\\", b"")):
        with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    else:
        with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN {JSON_IS_CSV}") as copy:
            copy.write(lines)


@lru_cache(maxsize=256)
def _select_sql(schema: str, name: str) -> str:
    as_text = {"item_statuses", "before"}
    columns = ", ".join(f"{column}::text" if column in as_text else column for column in COLUMNS[name])
    order = {"dispense_notification": "stream_key, issue_number, number", "cancellation": "stream_key, number"}
    return (
        f"SELECT {columns} FROM {schema}.{name} WHERE stream_key = ANY(%s) "
        f"ORDER BY {order.get(name, ', '.join(KEYS[name]))}"
    )


@lru_cache(maxsize=256)
def _update_sql(schema: str, name: str, staged: str) -> str:
    assigned = ", ".join(f"{column} = c.{column}" for column in CHANGING[name])
    matched = " AND ".join(f"t.{column} = c.{column}" for column in KEYS[name])
    return f"UPDATE {schema}.{name} t SET {assigned} FROM {staged} c WHERE {matched}"


# rows to state --------------------------------------------------------------------------------------------------------


def _content(record: Record | None) -> Record:
    if record is None:
        raise RowsMissing("a parked record has lost its content: only a deletion may do that")
    return record


def _loaded(row: Row, children: Mapping[str, Mapping[str, list[Row]]]) -> tuple[Prescription | None, History]:
    (key, _partition, kind, *_rest) = row
    history = History(keys=row[27], positions=row[28], next_sequence=row[25], passed=tuple(row[26]))
    if kind in {DELETED, EXPECTED}:
        return None, history
    prescribed = Prescribed(
        prescription_id=row[3],
        nhs_number=row[4],
        treatment_type=row[5],
        prescription_type=row[6],
        prescribed_at=row[7],
        signed_at=row[8],
        days_supply=row[9],
        issues_authorised=row[10],
        dispense_window_low=row[11],
        dispense_window_high=row[12],
        prescriber=_organisation(row[13:17]),
        line_items=tuple(PrescribedItem(*item[2:]) for item in children["line_item"].get(key, ())),
    )
    return (
        Prescription(
            kind=Kind(kind),
            version=row[22],
            last_event_at=row[23],
            current_issue=row[21],
            prescribed=prescribed,
            nominated=_organisation(row[17:21]),
            issues=tuple(_issue(issue) for issue in children["issue"].get(key, ())),
            notifications=tuple(_notification(n) for n in children["dispense_notification"].get(key, ())),
            cancellations=tuple(_cancellation(c) for c in children["cancellation"].get(key, ())),
        ),
        history,
    )


def _issue(row: Row) -> Issue:
    return Issue(
        number=row[1],
        status=row[2],
        version=row[3],
        item_statuses=_statuses(row[4]),
        released_at=row[5],
        last_dispensed_at=row[6],
        completed_at=row[7],
        claimed_at=row[8],
        nominated_download_date=row[9],
        dispenser=_organisation(row[10:14]),
        releasing=_organisation(row[14:18]),
    )


def _notification(row: Row) -> Notification:
    before = orjson.loads(row[10])
    return Notification(
        issue_number=row[1],
        id=row[2],
        number=row[3],
        dispensed_at=row[4],
        status=row[5],
        item_statuses=_statuses(row[6]),
        dispenser_ods=row[7],
        amends=row[8],
        withdrawn=row[9],
        before=Snapshot(
            status=before["status"],
            item_statuses=tuple(before["item_statuses"]),
            dispenser=Organisation(**before["dispenser"]) if before["dispenser"] else None,
            last_dispensed_at=_instant(before["last_dispensed_at"]),
            completed_at=_instant(before["completed_at"]),
        ),
    )


def _cancellation(row: Row) -> Cancellation:
    return Cancellation(row[1], *row[2:])


def _organisation(columns: Sequence[str | None]) -> Organisation | None:
    ods, name, telecom, address = columns
    return None if ods is None else Organisation(ods, name, telecom, address)


def _instant(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


@lru_cache(maxsize=4096)
def _statuses(array: str) -> tuple[str, ...]:
    """Read PostgreSQL's text form of an array of codes, ``{0007,0008}``; there are few different ones."""
    return tuple(array[1:-1].split(",")) if array != "{}" else ()


@lru_cache(maxsize=4096)
def _array(statuses: tuple[str, ...]) -> str:
    return "{" + ",".join(statuses) + "}"


def _bytea(value: bytes) -> str:
    return "\\x" + value.hex()


def _numbers(numbers: tuple[int, ...]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


# state to rows --------------------------------------------------------------------------------------------------------


def _changes(stream: FoldedStream, rows: Rows, rewritten: list[str]) -> None:
    """Sort a stream's rows into new and changed ones; a deleted or newly created one is written anew."""
    before, after, key = stream.before.prescription, stream.prescription, stream.before.key
    is_update = before is not None and after is not None and before.kind is after.kind
    if not is_update and stream.before.history != NO_HISTORY:
        rewritten.append(key)
    if after is None:
        rows.new["prescription"].append(_bare_row(stream))
    elif not is_update or before is None:
        rows.new["prescription"].append(prescription_row(stream, after))
        rows.new["line_item"].extend(
            (key, n, i.id, i.description, i.code, i.quantity, i.unit, i.dosage, i.issues_authorised)
            for n, i in enumerate(after.prescribed.line_items, start=1)
        )
        rows.new["issue"].extend(_issue_row(key, issue) for issue in after.issues)
        rows.new["dispense_notification"].extend(_notification_row(key, n) for n in after.notifications)
        rows.new["cancellation"].extend(_cancellation_row(key, c) for c in after.cancellations)
    else:
        rows.changed["prescription"].append(_changed_prescription_row(stream, after))
        if after.issues is not before.issues:
            rows.changed["issue"].extend(
                _issue_row(key, issue)
                for issue, was in zip(after.issues, before.issues, strict=True)
                if issue is not was
            )
        if after.notifications is not before.notifications:
            known = len(before.notifications)
            stored = {(n.issue_number, n.id): n for n in before.notifications}
            rows.new["dispense_notification"].extend(_notification_row(key, n) for n in after.notifications[known:])
            rows.changed["dispense_notification"].extend(
                (key, n.issue_number, n.id, n.withdrawn)
                for n in after.notifications[:known]
                if stored[n.issue_number, n.id] != n
            )
        if after.cancellations is not before.cancellations:
            known = len(before.cancellations)
            rows.new["cancellation"].extend(_cancellation_row(key, c) for c in after.cancellations[known:])
            rows.changed["cancellation"].extend(
                _cancellation_row(key, c)
                for c, was in zip(after.cancellations[:known], before.cancellations, strict=True)
                if c != was
            )


def _bare_row(stream: FoldedStream) -> Row:
    """A stream without a prescription: of a deleted one the key and idempotency keys remain, nothing else of it."""
    history = stream.history
    known = {
        "stream_key": stream.before.key,
        "partition_number": stream.before.partition,
        "kind": DELETED if history.keys else EXPECTED,
        "version": history.version,
        "pending_cancellations": False,
        "next_sequence": history.next_sequence,
        "passed_sequences": _numbers(history.passed),
        "folded_keys": _bytea(history.keys),
        "folded_positions": _bytea(history.positions),
    }
    return tuple(known.get(column) for column in COLUMNS["prescription"])


def prescription_row(stream: FoldedStream, after: Prescription) -> Row:
    """Return the row of a stream whose prescription exists, in the order of the table's columns."""
    p = after.prescribed
    return (
        stream.before.key,
        stream.before.partition,
        str(after.kind),
        p.prescription_id,
        p.nhs_number,
        p.treatment_type,
        p.prescription_type,
        p.prescribed_at,
        p.signed_at,
        p.days_supply,
        p.issues_authorised,
        p.dispense_window_low,
        p.dispense_window_high,
        *_organisation_columns(p.prescriber),
        *_changing_columns(stream, after),
    )


def _changed_prescription_row(stream: FoldedStream, after: Prescription) -> Row:
    return (stream.before.key, *_changing_columns(stream, after))


def _changing_columns(stream: FoldedStream, after: Prescription) -> Row:
    history = stream.history
    return (
        *_organisation_columns(after.nominated),
        after.current_issue,
        after.version,
        after.last_event_at,
        after.pending_cancellations,
        history.next_sequence,
        _numbers(history.passed),
        _bytea(history.keys),
        _bytea(history.positions),
    )


def _issue_row(key: str, issue: Issue) -> Row:
    return (
        key,
        issue.number,
        issue.status,
        issue.version,
        _array(issue.item_statuses),
        issue.released_at,
        issue.last_dispensed_at,
        issue.completed_at,
        issue.claimed_at,
        issue.nominated_download_date,
        *_organisation_columns(issue.dispenser),
        *_organisation_columns(issue.releasing),
    )


def _notification_row(key: str, n: Notification) -> Row:
    before = orjson.dumps(n.before, option=orjson.OPT_SORT_KEYS).decode()
    return (
        key,
        n.issue_number,
        n.id,
        n.number,
        n.dispensed_at,
        n.status,
        _array(n.item_statuses),
        n.dispenser_ods,
        n.amends,
        n.withdrawn,
        before,
    )


def _cancellation_row(key: str, c: Cancellation) -> Row:
    return (
        key,
        c.id,
        c.number,
        c.nhs_number,
        c.target,
        c.item_id,
        c.state,
        c.reason_code,
        c.reason_text,
        c.organisation_ods,
        c.first_issue,
        c.requested_at,
    )


NOBODY: tuple[None, None, None, None] = (None, None, None, None)


def _organisation_columns(organisation: Organisation | None) -> tuple[str | None, str | None, str | None, str | None]:
    if organisation is None:
        return NOBODY
    return (organisation.ods, organisation.name, organisation.telecom, organisation.address)
