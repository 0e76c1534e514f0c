"""One batch, one transaction: checkpoint, load, fold, write. The same batch again is the same rows or nothing.

The projector's sessions commit without waiting for the disk (``synchronous_commit = off``): checkpoint and rows are
lost together or not at all, and what is lost is read from the topic again (docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection, IsolationLevel

from projector import checkpoints, set_aside
from projector.batch import Accepted, FieldError, Quarantined, Reason
from projector.checkpoints import Claim
from projector.projection import Arrivals, Projected, by_stream, project
from projector.read_model import Decode, ReadModel
from projector.stream import Counts, needs_parked

# Set for each session of a projector. Lookups are by key and must stay so however large the tables grow and however
# old their statistics are; a paused worker must not hold others up.
SESSION_OPTIONS = {
    "application_name": "rxstore-projector",
    "timezone": "UTC",
    "synchronous_commit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "15s",
    "client_min_messages": "warning",
}

DATA_REFUSED = (psycopg.errors.DataError, psycopg.errors.IntegrityError)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll brings: items in log order per partition, and where each partition stands after it."""

    items: Sequence[Accepted | Quarantined]
    next_offsets: Mapping[int, int]


def connect(database_url: str) -> Connection[Any]:
    """Open a projector's session: REPEATABLE READ, so that what it loads is one moment of the database."""
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_OPTIONS.items())
    connection = psycopg.connect(database_url, options=options, autocommit=True, connect_timeout=10)
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    return connection


def project_batch(
    connection: Connection[Any], read_model: ReadModel, claims: Mapping[int, Claim], batch: Batch, decode: Decode
) -> Counts:
    """Fold a batch into the read model and move its checkpoints, all or nothing.

    Raises FencingLost when a checkpoint is not where ``claims`` has it. Data that the database refuses although the
    contract let it through is a defect of ours: the batch is then halved by streams until the stream is found, and
    the event that does it is set aside as ``fold_failed``.
    """
    arrivals = by_stream(batch.items)
    with connection.transaction(), connection.cursor() as cursor:
        checkpoints.move(cursor, read_model.schema, claims, batch.next_offsets)
        counts = _project_streams(connection, read_model, arrivals.by_stream, decode)
        if arrivals.marks:
            set_aside.mark(cursor, read_model.schema, arrivals.marks)
            counts.quarantined += len(arrivals.marks)
    return counts


def _project_streams(
    connection: Connection[Any],
    read_model: ReadModel,
    by_key: Mapping[str, list[Accepted | Quarantined]],
    decode: Decode,
) -> Counts:
    if not by_key:
        return Counts()
    try:
        with connection.transaction():
            return _write(connection, read_model, by_key, decode)
    except DATA_REFUSED as error:
        if len(by_key) == 1:
            return _project_one_by_one(connection, read_model, by_key, decode, error)
    keys = sorted(by_key)
    middle = len(keys) // 2
    counts = Counts()
    for half in (keys[:middle], keys[middle:]):
        counts.add(_project_streams(connection, read_model, {key: by_key[key] for key in half}, decode))
    return counts


def _write(
    connection: Connection[Any],
    read_model: ReadModel,
    by_key: Mapping[str, list[Accepted | Quarantined]],
    decode: Decode,
) -> Counts:
    partitions = {key: items[0].record.position.partition for key, items in by_key.items()}
    stored = read_model.load(connection, partitions, decode, lambda stream: needs_parked(stream, by_key[stream.key]))
    projected: Projected = project(stored, Arrivals(dict(by_key), ()))
    read_model.save(connection, projected.streams)
    return projected.counts


def _project_one_by_one(
    connection: Connection[Any],
    read_model: ReadModel,
    by_key: Mapping[str, list[Accepted | Quarantined]],
    decode: Decode,
    error: Exception,
) -> Counts:
    """Fold one stream's items one at a time, so that the cut of a batch does not show; the refused one blocks."""
    (key, items) = next(iter(by_key.items()))
    counts = Counts()
    for item in items:
        try:
            with connection.transaction():
                counts.add(_write(connection, read_model, {key: [item]}, decode))
        except DATA_REFUSED:
            with connection.transaction():
                counts.add(_write(connection, read_model, {key: [_fold_failed(item, error)]}, decode))
    return counts


def _fold_failed(item: Accepted | Quarantined, error: Exception) -> Quarantined:
    message = f"the database refused the rows ({type(error).__name__}): a defect of this version, not of the event"
    if isinstance(item, Quarantined):
        raise error
    envelope = item.event.envelope
    return Quarantined(
        record=item.record,
        reason=Reason.FOLD_FAILED,
        errors=(FieldError("", message),),
        stream_key=envelope.stream_key,
        event_key=envelope.key,
        event_source=envelope.source,
        event_id=envelope.id,
        sequence=envelope.sequence,
    )
