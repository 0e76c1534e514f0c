"""One batch, one transaction: checkpoint, load, fold, write. The same batch again is the same rows or nothing.

The projector's sessions commit without waiting for the disk (``synchronous_commit = off``): checkpoint and rows are
lost together or not at all, and what is lost is read from the topic again (docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import Connection, IsolationLevel

from projector import checkpoints, decisions, set_aside
from projector.batch import Accepted, Decode, FieldError, Position, Quarantined, Reason, Record
from projector.checkpoints import Claim
from projector.decisions import Decision
from projector.projection import Arrivals, Projected, by_stream, project
from projector.read_model import ReadModel
from projector.recent import RecentStreams
from projector.stream import Counts, FoldedStream, Retry, SetAside, Skip, Stream, fold, mark, needs_parked
from schemas.events import Created
from schemas.incoming import TYPE_OF

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

Items = Mapping[str, list[Accepted | Quarantined]]
Lookup = Callable[[Iterable[Position]], dict[Position, Record]]
DATA_REFUSED = (psycopg.errors.DataError, psycopg.errors.IntegrityError)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll brings: items in log order per partition, and where each partition stands after it.

    ``leader_epochs`` has Kafka's leader epoch of a partition's last record where that ends the batch.
    """

    items: Sequence[Accepted | Quarantined]
    next_offsets: Mapping[int, int]
    leader_epochs: Mapping[int, int] = field(default_factory=dict)

    def cut(self, offsets: Mapping[int, int], claims: Mapping[int, Claim]) -> tuple[Batch, Batch]:
        """Cut at some partitions' offsets: all that stands before them, and the rest of those partitions."""
        before: list[Accepted | Quarantined] = []
        after: list[Accepted | Quarantined] = []
        for item in self.items:
            position = item.record.position
            is_after = position.partition in offsets and position.offset >= offsets[position.partition]
            (after if is_after else before).append(item)
        ends = {number: min(end, offsets.get(number, end)) for number, end in self.next_offsets.items()}
        return (
            Batch(
                before,
                {number: end for number, end in ends.items() if end > claims[number].next_offset},
                {number: epoch for number, epoch in self.leader_epochs.items() if number not in offsets},
            ),
            Batch(after, {number: self.next_offsets[number] for number in offsets}, self.leader_epochs),
        )


def connect(database_url: str) -> Connection[Any]:
    """Open a projector's session: REPEATABLE READ, so that what it loads is one moment of the database."""
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_OPTIONS.items())
    connection = psycopg.connect(database_url, options=options, autocommit=True, connect_timeout=10)
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    return connection


@dataclass(slots=True)
class Runner:
    """Projects batches into one generation over one session.

    ``decode`` reads parked records again; ``recent`` spares loading what this worker wrote itself; ``lookup`` reads
    records from the log by position.
    """

    connection: Connection[Any]
    read_model: ReadModel
    decode: Decode
    recent: RecentStreams
    lookup: Lookup

    def project_batch(self, claims: Mapping[int, Claim], batch: Batch) -> Counts:
        """Fold a batch into the read model and move its checkpoints, all or nothing.

        Raises FencingLost when a checkpoint is not where ``claims`` has it, DecisionsDue when a decision takes effect
        inside the batch. Data that the database refuses although
        the contract let it through is a defect of ours: the batch is then halved by streams until the stream is
        found, and the event that does it is set aside as ``fold_failed``.
        """
        arrivals = by_stream(batch.items)
        counts = Counts(quarantined=len(arrivals.marks))
        folded: list[FoldedStream] = []
        try:
            with self.connection.transaction(), self.connection.cursor() as cursor:
                schema = self.read_model.schema
                checkpoints.move(cursor, schema, claims, batch.next_offsets, batch.leader_epochs)
                topic = next(iter(claims.values())).topic
                decisions.check_none_is_passed(cursor, schema, topic, batch.next_offsets)
                self._project(arrivals.by_stream, counts, folded)
                if arrivals.marks:
                    set_aside.mark(cursor, schema, arrivals.marks)
        except BaseException:
            self.recent.forget()
            raise
        self.recent.keep(folded)
        return counts

    def apply(self, claims: Mapping[int, Claim], decision: Decision) -> Counts:
        """Apply a decision whose effect offset is the next offset of its stream's partition, in one transaction."""
        held = claims[decision.stream_partition]
        self.recent.forget()
        with self.connection.transaction(), self.connection.cursor() as cursor:
            checkpoints.move(cursor, self.read_model.schema, claims, {held.partition: held.next_offset}, {})
            folded = self.decided(decision)
            self.read_model.save(self.connection, [folded])
            decisions.applied(cursor, self.read_model.schema, decision)
        return folded.counts

    def decided(self, decision: Decision) -> FoldedStream:
        """Return what a decision makes of its stream as it is stored now; nothing is written."""
        schema, key = self.read_model.schema, decision.stream_key
        stored = self.read_model.load(self.connection, {key: decision.stream_partition}, self.decode, lambda _: True)
        record = set_aside.load_one(self.connection, schema, decision.position) or self._misrouted(decision)
        return fold(stored[key], () if record is None else self._arrival(decision, record))

    def _misrouted(self, decision: Decision) -> SetAside | None:
        """Read a misrouted record from the log: a rebuild may not have come to its partition yet."""
        record = self.lookup([decision.position]).get(decision.position)
        item = None if record is None else self.decode(record)
        return mark(item) if isinstance(item, Quarantined) and item.reason is Reason.MISROUTED else None

    def _arrival(self, decision: Decision, record: SetAside) -> tuple[Retry | Skip, ...]:
        """Return a decision as the fold takes it; nothing when the record is settled or has lost its content."""
        if record.state not in {"open", "parked"}:
            return ()
        mark = record if record.reason is Reason.MISROUTED else None
        if decision.action == "skip":
            return (Skip(decision.position, mark),)
        if record.record is None:
            return ()
        decode = self.decode if mark is None else self.decode.regardless_of_place
        return (Retry(decision.position, decode(record.record), mark),)

    def _project(self, by_key: Items, counts: Counts, folded: list[FoldedStream]) -> None:
        if not by_key:
            return
        try:
            with self.connection.transaction():
                written = self._write(by_key)
        except DATA_REFUSED as error:
            if len(by_key) == 1:
                self._project_one_by_one(by_key, counts, folded, error)
                return
        else:
            counts.add(written.counts)
            folded.extend(written.streams)
            return
        keys = sorted(by_key)
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            self._project({key: by_key[key] for key in half}, counts, folded)

    def _write(self, by_key: Items) -> Projected:
        stored: dict[str, Stream] = {}
        unknown: dict[str, int] = {}
        for key, items in by_key.items():
            stream = self.recent.get(key)
            if stream is None:
                unknown[key] = items[0].record.position.partition
            else:
                stored[key] = stream
        if unknown:
            stored |= self.read_model.load(
                self.connection, unknown, self.decode, lambda stream: needs_parked(stream, by_key[stream.key])
            )
        projected = project(stored, Arrivals(dict(by_key), ()))
        self.read_model.save(self.connection, projected.streams)
        return projected

    def _project_one_by_one(self, by_key: Items, counts: Counts, folded: list[FoldedStream], error: Exception) -> None:
        """Fold one stream's items one at a time, so that the cut of a batch does not show; the refused one blocks."""
        self.recent.forget()
        for key, items in by_key.items():
            for item in items:
                try:
                    with self.connection.transaction():
                        written = self._write({key: [item]})
                except DATA_REFUSED:
                    with self.connection.transaction():
                        written = self._write({key: [_fold_failed(item, error)]})
                counts.add(written.counts)


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
        event_type=TYPE_OF[type(item.event)],
        sequence=envelope.sequence,
        nhs_number=item.event.nhs_number if isinstance(item.event, Created) else None,
    )
