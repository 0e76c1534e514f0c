"""Loads and saves records that did not fold: quarantined or parked, with reason, place and raw bytes.

Reads come in two sizes: what waits on a stream (few small columns, for every stream of a batch) and the parked
records with their content (only when something can move them).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from psycopg import Connection, Cursor
from sqlalchemy import LargeBinary
from sqlalchemy.dialects import postgresql

from projector import tables
from projector.batch import FieldError, Position, Reason, Record
from projector.stream import SetAside

COLUMNS = tuple(column.name for column in tables.set_aside.columns)
# What a deletion takes from a record. Its headers are NULL then and only then.
NO_CONTENT = (
    "errors = '[]'::jsonb, event_source = NULL, event_id = NULL, event_type = NULL, nhs_number = NULL, "
    "record_key = NULL, record_value = NULL, record_headers = NULL"
)
KEY = ("topic", "partition_number", "record_offset")
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy does not type it
_ARRAYS = ", ".join(
    f"{'%b' if isinstance(column.type, LargeBinary) else '%s'}::"
    f"{column.type.compile(dialect=_DIALECT).partition(' COLLATE ')[0]}[]"
    for column in tables.set_aside.columns
)
_ASSIGNED = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS if column not in KEY)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

# The schema is formatted in by the callers; errors come as text, which orjson reads faster than the driver does.
SELECT = f"SELECT {', '.join(COLUMNS).replace('errors', 'errors::text')} FROM {{schema}}.set_aside"


def keys_array(keys: Iterable[str]) -> str:
    """Return PostgreSQL's text form of an array of stream keys, which hold nothing that would have to be quoted."""
    return "{" + ",".join(keys) + "}"


def load_waiting(
    connection: Connection[Any], schema: str, keys: Sequence[str]
) -> dict[str, tuple[tuple[SetAside, ...], bool]]:
    """Return, per stream that has any, its open records by place and whether records are parked."""
    opened: dict[str, list[SetAside]] = {}
    array = keys_array(keys)
    rows = connection.execute(
        f"{SELECT.format(schema=schema)} WHERE state = 'open' AND stream_key = ANY(%s) AND reason <> 'misrouted' "
        "ORDER BY stream_key, stands_at, record_offset",
        (array,),
        prepare=True,
        binary=True,  # raw bytes, not twice as many digits
    )
    for row in rows:
        record = _loaded(row)
        opened.setdefault(str(record.stream_key), []).append(record)
    parked = connection.execute(
        # Thousands may be parked on one stream: one is enough. Without LIMIT the planner may look through all of them
        # for each key.
        f"SELECT k FROM unnest(%s::text[]) k CROSS JOIN LATERAL (SELECT FROM {schema}.set_aside s "
        "WHERE s.stream_key = k COLLATE \"C\" AND s.state = 'parked' LIMIT 1) p",
        (array,),
        prepare=True,
    )
    has_parked = {row[0] for row in parked}
    return {key: (tuple(opened.get(key, ())), key in has_parked) for key in opened.keys() | has_parked}


def load_parked(connection: Connection[Any], schema: str, keys: Sequence[str]) -> dict[str, list[SetAside]]:
    """Return the parked records of each stream with their content, by place."""
    parked: dict[str, list[SetAside]] = {key: [] for key in keys}
    rows = connection.execute(
        f"{SELECT.format(schema=schema)} WHERE state = 'parked' AND stream_key = ANY(%s) "
        "ORDER BY stream_key, stands_at, record_offset",
        (keys,),
        binary=True,
    )
    for row in rows:
        record = _loaded(row)
        parked[str(record.stream_key)].append(record)
    return parked


def load_one(connection: Connection[Any], schema: str, position: Position) -> SetAside | None:
    """Return the record that was set aside at a position, with its content, or None."""
    row = connection.execute(
        f"{SELECT.format(schema=schema)} WHERE (topic, partition_number, record_offset) = (%s, %s, %s)",
        (position.topic, position.partition, position.offset),
    ).fetchone()
    return None if row is None else _loaded(row)


def known(cursor: Cursor[Any], schema: str, topic: str, bounds: Mapping[int, tuple[int, int]]) -> set[tuple[int, int]]:
    """Return partition and offset of every record within these bounds, by partition, that was ever set aside."""
    if not bounds:
        return set()
    cursor.execute(
        "SELECT s.partition_number, s.record_offset "
        "FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) b (n, low, high) "
        f"JOIN {schema}.set_aside s ON s.topic = %s AND s.partition_number = b.n "
        "AND s.record_offset BETWEEN b.low AND b.high",
        (list(bounds), [low for low, _ in bounds.values()], [high for _, high in bounds.values()], topic),
        prepare=True,
    )
    return {(row[0], row[1]) for row in cursor.fetchall()}


def load_stream(connection: Connection[Any], schema: str, key: str) -> list[SetAside]:
    """Return every record of a stream that was ever set aside, whatever became of it, with its content."""
    rows = connection.execute(
        f"{SELECT.format(schema=schema)} WHERE stream_key = %s ORDER BY topic, partition_number, record_offset", (key,)
    )
    return [_loaded(row) for row in rows]


def save(
    cursor: Cursor[Any],
    schema: str,
    records: Iterable[SetAside],
    *,
    removed: Collection[Position] = (),
    deleted: Collection[str] = (),
) -> None:
    """Write records, remove those that folded, and take the content from all records of deleted streams."""
    if removed:
        cursor.execute(
            f"DELETE FROM {schema}.set_aside WHERE (topic, partition_number, record_offset) IN "
            "(SELECT * FROM unnest(%s::text[], %s::int[], %s::bigint[]))",
            ([p.topic for p in removed], [p.partition for p in removed], [p.offset for p in removed]),
        )
    _insert(cursor, schema, records, f"DO UPDATE SET {_ASSIGNED}")
    if deleted:
        scrub(cursor, schema, deleted)


def mark(cursor: Cursor[Any], schema: str, records: Collection[SetAside]) -> None:
    """Write records that belong to no stream or only mark one; those that mark a deleted one lose their content.

    One that is there already stays as it is: in a rebuild a decision about it may have been applied before it came.
    """
    _insert(cursor, schema, records, "DO NOTHING")
    marked = {record.stream_key for record in records if record.stream_key is not None}
    if marked:
        scrub_if_deleted(cursor, schema, sorted(marked))


def scrub(cursor: Cursor[Any], schema: str, keys: Collection[str]) -> None:
    """Take the content from every record of these streams."""
    cursor.execute(
        f"UPDATE {schema}.set_aside SET {NO_CONTENT} WHERE stream_key = ANY(%s) AND record_headers IS NOT NULL",
        (sorted(keys),),
    )


def scrub_if_deleted(cursor: Cursor[Any], schema: str, keys: Collection[str] | None = None) -> None:
    """Take the content from records of deleted streams, among ``keys`` or of all.

    A misrouted record stands in another partition than the deletion, so two workers may write them at the same time
    and neither sees the other's. Both look once more after their commits, and so does whoever claims a partition.
    """
    among = "" if keys is None else "AND s.stream_key = ANY(%s)"
    cursor.execute(
        f"UPDATE {schema}.set_aside s SET {NO_CONTENT} FROM {schema}.prescription p "
        f"WHERE p.stream_key = s.stream_key AND p.kind = 'deleted' AND s.record_headers IS NOT NULL {among}",
        () if keys is None else (list(keys),),
    )


def _insert(cursor: Cursor[Any], schema: str, records: Iterable[SetAside], on_conflict: str) -> None:
    """Write records in one statement, by their keys in order: a column is an array, which holds bytes as they are."""
    rows = [_row(record) for record in sorted(records, key=lambda record: record.position)]
    if rows:
        cursor.execute(
            f"INSERT INTO {schema}.set_aside ({', '.join(COLUMNS)}) SELECT * FROM unnest({_ARRAYS}) "
            f"ON CONFLICT ({', '.join(KEY)}) {on_conflict}",
            [[row.get(column) for row in rows] for column in COLUMNS],
            prepare=False,  # the driver gives an array the type that its values have, which differs
        )


def _row(record: SetAside) -> dict[str, Any]:
    content = record.record
    row = {
        "topic": record.position.topic,
        "partition_number": record.position.partition,
        "record_offset": record.position.offset,
        "stream_key": record.stream_key,
        "stands_at": record.stands_at,
        "state": record.state,
        "reason": record.reason.value,
        "errors": orjson.dumps(record.errors).decode(),
        "since": EPOCH + record.timestamp_ms * MILLISECOND,
        "sequence": record.sequence,
        "event_key": record.event_key,
        "event_source": record.event_source,
        "event_id": record.event_id,
        "event_type": record.event_type,
        "nhs_number": record.nhs_number,
    }
    if content is not None:
        row["record_key"] = content.key
        row["record_value"] = content.value
        row["record_headers"] = _dump_headers(content.headers)
    return row


def _loaded(row: tuple[Any, ...]) -> SetAside:
    position = Position(row[0], row[1], row[2])
    timestamp_ms = (row[8] - EPOCH) // MILLISECOND
    record = None
    if row[17] is not None:
        record = Record(position, timestamp_ms, row[15], row[16], _load_headers(row[17]))
    return SetAside(
        position=position,
        stream_key=row[3],
        stands_at=row[4],
        state=row[5],
        reason=Reason(row[6]),
        errors=_errors(row[7]),
        timestamp_ms=timestamp_ms,
        record=record,
        sequence=row[9],
        event_key=row[10],
        event_source=row[11],
        event_id=row[12],
        event_type=row[13],
        nhs_number=row[14],
    )


def _errors(stored: str) -> tuple[FieldError, ...]:
    if stored == "[]":
        return ()
    return tuple(FieldError(error["path"], error["message"]) for error in orjson.loads(stored))


def _dump_headers(headers: tuple[tuple[str, bytes | None], ...]) -> bytes:
    return orjson.dumps([[name, None if value is None else b64encode(value).decode()] for name, value in headers])


def _load_headers(stored: bytes) -> tuple[tuple[str, bytes | None], ...]:
    return tuple((name, None if value is None else b64decode(value)) for name, value in orjson.loads(stored))
