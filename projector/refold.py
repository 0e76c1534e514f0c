"""Folds one prescription again from the log, in place: after a decision was revoked or imported, or on request.

What the stream is made of is known exactly: the positions of the events that folded, the records that were set aside,
and the decisions about them. Duplicates leave no trace and are not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import Connection

from projector import decisions, set_aside
from projector.batch import Decode, Position, Reason, Record
from projector.decisions import Decision
from projector.prescription import Prescription
from projector.read_model import TABLES, ReadModel
from projector.story import positions
from projector.stream import Arrival, FoldedStream, History, Retry, SetAside, Skip, Stream, fold

Lookup = Callable[[Iterable[Position]], dict[Position, Record]]


class LogIncomplete(Exception):
    """The log no longer has an event of the prescription: what is stored is all there is, and it stays."""


@dataclass(frozen=True, slots=True)
class Refolded:
    """A prescription before and after it was folded again."""

    key: str
    before: Prescription | None
    after: Prescription | None

    @property
    def changed(self) -> bool:
        """Whether anything of it is different now."""
        return self.before != self.after


def refold(
    connection: Connection[Any],
    read_model: ReadModel,
    decode: Decode,
    lookup: Lookup,
    *,
    topic: str,
    key: str,
    partition: int,
) -> Refolded:
    """Fold a stream again and replace its rows, in the caller's transaction.

    Raises the epoch of the stream's partition first, so that a worker which holds older rows in its memory or in a
    batch under way starts again from these. A deleted prescription stays as it is: its events are not read again.
    """
    schema = read_model.schema
    connection.execute(
        f"UPDATE {schema}.checkpoint SET epoch = epoch + 1 WHERE topic = %s AND partition_number = %s",
        (topic, partition),
    )
    stored = read_model.load(connection, {key: partition}, decode, lambda _: True)[key]
    if stored.is_deleted:
        return Refolded(key, None, None)
    rows = set_aside.load_stream(connection, schema, key)
    records = _records(stored.history, rows, lookup, topic=topic, partition=partition)
    arrivals = story(records, rows, decisions.of_stream(connection, schema, topic, key), decode, partition=partition)
    folded = fold(Stream(key, partition), arrivals)
    _replace(connection, read_model, folded, rows)
    return Refolded(key, stored.prescription, folded.prescription)


def story(
    records: Sequence[Record], rows: Sequence[SetAside], made: Sequence[Decision], decode: Decode, *, partition: int
) -> list[Arrival]:
    """Return what happened to a stream in its order: its records, and decisions before the offset of their effect."""
    return [arrival for arrival, _ in happenings(records, rows, made, decode, partition=partition)]


def happenings(
    records: Sequence[Record], rows: Sequence[SetAside], made: Sequence[Decision], decode: Decode, *, partition: int
) -> list[tuple[Arrival, Decision | None]]:
    """Return the same, each retry and skip with the decision that it comes from."""
    marks = {row.position: replace(row, state="open") for row in rows if row.reason is Reason.MISROUTED}
    by_position = {record.position: record for record in records}
    waiting = [decision for decision in made if decision.effect_offset is not None]
    arrivals: list[tuple[Arrival, Decision | None]] = []
    for record in sorted(records, key=lambda record: record.position.offset):
        if record.position.partition != partition:
            continue
        while waiting and (waiting[0].effect_offset or 0) <= record.position.offset:
            arrivals += _decided(waiting.pop(0), by_position, marks, decode)
        arrivals.append((decode(record), None))
    for decision in waiting:
        arrivals += _decided(decision, by_position, marks, decode)
    return arrivals


def _decided(
    decision: Decision, records: dict[Position, Record], marks: dict[Position, SetAside], decode: Decode
) -> list[tuple[Arrival, Decision]]:
    mark = marks.get(decision.position)
    if decision.action == "skip":
        return [(Skip(decision.position, mark), decision)]
    record = records.get(decision.position)
    if record is None:
        return []
    item = decode(record) if mark is None else decode.regardless_of_place(record)
    return [(Retry(decision.position, item, mark), decision)]


def _records(history: History, rows: Sequence[SetAside], lookup: Lookup, *, topic: str, partition: int) -> list[Record]:
    """Return the stream's records: those set aside as they were kept, those that folded from the log."""
    kept = {row.position: row.record for row in rows if row.record is not None}
    wanted = [position for position in positions(history.positions, topic) if position not in kept]
    found = lookup(wanted)
    missing = [position for position in wanted if position not in found]
    if missing:
        raise LogIncomplete(f"the topic no longer has {missing[0]} and {len(missing) - 1} more events of it")
    return [*kept.values(), *found.values()]


def _replace(
    connection: Connection[Any], read_model: ReadModel, folded: FoldedStream, rows: Sequence[SetAside]
) -> None:
    schema, key = read_model.schema, folded.before.key
    for name in TABLES:
        connection.execute(f"DELETE FROM {schema}.{name} WHERE stream_key = %s", (key,))
    connection.execute(f"DELETE FROM {schema}.set_aside WHERE stream_key = %s AND reason <> 'misrouted'", (key,))
    with connection.cursor() as cursor:
        marks = [replace(row, state="open") for row in rows if row.reason is Reason.MISROUTED]
        set_aside.save(cursor, schema, marks)
    read_model.save(connection, [folded])
