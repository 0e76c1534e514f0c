"""One batch, one transaction: checkpoint, load, fold, write. The same batch again is the same rows or nothing.

The projector's sessions commit without waiting for the disk (``synchronous_commit = off``): checkpoint and rows are
lost together or not at all, and what is lost is read from the topic again (docs/decisions/0003).
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import psycopg
from psycopg import Connection, IsolationLevel

from projector import checkpoints, decisions, defects, erasure, set_aside
from projector.batch import Accepted, Decode, FieldError, Position, Quarantined, Reason, Record
from projector.checkpoints import Claim, Held
from projector.decisions import Decision, DecisionsDue
from projector.garbage import BuildGarbage
from projector.lately import LAST_RECORDS, Lately
from projector.projection import Arrivals, Projected, by_stream, project
from projector.read_model import ReadModel, RowsMissing
from projector.recent import RecentStreams
from projector.refold import refold
from projector.stream import (
    Arrival,
    Counts,
    FoldedStream,
    Retry,
    SetAside,
    Skip,
    Step,
    Stream,
    fold,
    mark,
    needs_parked,
    steps,
)
from projector.unwritten import Unwritten, is_well
from schemas.events import Created
from schemas.incoming import TYPE_OF

log = logging.getLogger(__name__)

# Set for each session of a projector. Lookups are by key and must stay so however large the tables grow and however
# old their statistics are; a paused worker must not hold others up.
SESSION_OPTIONS = {
    "application_name": "rxstore-projector",
    "timezone": "UTC",
    "synchronous_commit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "15s",
    "client_min_messages": "warning",
}

Items = Mapping[str, list[Accepted | Quarantined]]
Lookup = Callable[[Iterable[Position]], dict[Position, Record]]
# Streams whose rows are made at once when much is written: their rows take more memory than the streams do.
WRITTEN_AT_ONCE = 5_000
# SQLSTATE classes 22 and 23, and what the driver itself refuses to send.
DATA_REFUSED = (psycopg.DataError, psycopg.IntegrityError)
THE_WORLDS = (psycopg.Error, RowsMissing, *defects.THE_MACHINES)


def is_ours(error: Exception) -> bool:
    """Whether an error is a defect of ours that one event brings out, and not the state that the world is in."""
    return isinstance(error, DATA_REFUSED) or not isinstance(error, THE_WORLDS)


class OneByOne(Exception):
    """What was folded in memory cannot be written as it is: read it again from the checkpoints, batch by batch."""


class TooManyFailing(Exception):
    """Most of what arrives cannot be folded or written: look at the last deploy, not at one event."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll brings: items in log order per partition, and where each partition stands after it.

    ``leader_epochs`` has Kafka's leader epoch of a partition's last record where that ends the batch.
    """

    items: Sequence[Accepted | Quarantined]
    next_offsets: Mapping[int, int]
    leader_epochs: Mapping[int, int] = field(default_factory=dict)

    def bounds(self) -> dict[int, tuple[int, int]]:
        """Return the first and last offset of the records of each partition that has any."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for item in self.items:
            position = item.record.position
            if position.partition not in last:
                first[position.partition] = position.offset
            last[position.partition] = position.offset
        return {number: (first[number], offset) for number, offset in last.items()}

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
    records from the log by position. With ``keep_going`` it also sets aside what looks like a bad deploy.
    """

    connection: Connection[Any]
    read_model: ReadModel
    decode: Decode
    recent: RecentStreams
    lookup: Lookup
    keep_going: bool = False
    failing: Lately = field(default_factory=Lately)
    _garbage: BuildGarbage = field(default_factory=BuildGarbage)

    def project_batch(self, claims: Mapping[int, Claim], batch: Batch) -> Counts:
        """Fold a batch into the read model and move its checkpoints, all or nothing.

        Raises FencingLost when a checkpoint is not where ``claims`` has it, DecisionsDue when a decision takes effect
        inside the batch, TooManyFailing when most of what came lately brings out a defect of ours. One event that does
        is set aside as ``fold_failed``; it is looked for by halving the batch by streams, when the whole is refused.
        """
        try:
            with self.connection.transaction(), self.connection.cursor() as cursor:
                schema = self.read_model.schema
                checkpoints.move(cursor, schema, claims, batch.next_offsets, batch.leader_epochs)
                topic = next(iter(claims.values())).topic
                decisions.check_none_is_passed(cursor, schema, topic, batch.next_offsets)
                arrivals = by_stream(batch.items)
                done = _Done(Counts(quarantined=len(arrivals.marks)))
                self._pass_over(set_aside.known(cursor, schema, topic, batch.bounds()), arrivals, done)
                self._project(arrivals.by_stream, done)
                failing = self._failing_lately(batch.items, done)
                if arrivals.marks:
                    set_aside.mark(cursor, schema, arrivals.marks)
        except BaseException:
            self.recent.forget()
            raise
        self.failing = failing
        self.recent.keep(done.streams)
        _report(done.failed)
        self._look_again(done, arrivals.marks)
        return done.counts

    def _pass_over(self, known: set[tuple[int, int]], arrivals: Arrivals, done: _Done) -> None:
        """Take out what was set aside when it was read before, as after a rewind of the checkpoint.

        Whatever became of such a record since (repaired, skipped, still waiting) stands in its row, and must not begin
        anew. What folded is known by its idempotency key instead.
        """
        if not known:
            return
        for key, items in list(arrivals.by_stream.items()):
            left = [
                item for item in items if (item.record.position.partition, item.record.position.offset) not in known
            ]
            done.counts.duplicates += len(items) - len(left)
            if left:
                arrivals.by_stream[key] = left
            else:
                del arrivals.by_stream[key]

    def take(self, claims: Mapping[int, Claim], batch: Batch, unwritten: Unwritten) -> None:
        """Fold a batch into ``unwritten`` and write nothing; afterwards it is in there, or nothing of it is.

        Raises DecisionsDue when a decision takes effect inside the batch, TooManyFailing as ``project_batch`` does.
        """
        schema, topic = self.read_model.schema, next(iter(claims.values())).topic
        arrivals = by_stream(batch.items)
        passed_over = _Done(Counts())
        with self.connection.cursor() as cursor:
            known = set_aside.known(cursor, schema, topic, batch.bounds())
        self._pass_over(known, arrivals, passed_over)
        stored: dict[str, Stream] = {}
        unknown: dict[str, int] = {}
        for key, items in arrivals.by_stream.items():
            if key in unwritten.items:
                continue
            stream = unwritten.stream(key) or self.recent.get(key)
            if stream is None:
                unknown[key] = items[0].record.position.partition
            else:
                stored[key] = stream
        with self.connection.transaction(), self.connection.cursor() as cursor:
            decisions.check_none_is_passed(cursor, schema, topic, batch.next_offsets)
            if unknown:
                stored |= self.read_model.load(self.connection, unknown, self.decode, lambda _: False)
        done = _Done(Counts())
        kept: dict[str, list[Accepted | Quarantined]] = {}
        for key, items in arrivals.by_stream.items():
            if key not in stored or stored[key].has_parked:
                kept[key] = items
                continue
            folded = fold(stored[key], items)
            done.add(folded)
            if not is_well(folded):
                kept[key] = items
        self.failing = self._failing_lately(batch.items, done)
        unwritten.read_to(
            {number: claims[number].next_offset for number in batch.next_offsets},
            batch.next_offsets,
            batch.leader_epochs,
        )
        for folded in done.streams:
            if folded.before.key not in kept:
                unwritten.add(folded)
        for key, items in kept.items():
            unwritten.keep(key, items)
        unwritten.mark(arrivals.marks)
        unwritten.pass_over(known, passed_over.counts.duplicates)
        self.recent.drop(arrivals.by_stream.keys() - kept.keys())  # what is not written yet is newer
        self.recent.allow(unwritten.room)
        self._garbage.folded()

    def write(self, claims: Mapping[int, Claim], unwritten: Unwritten) -> Counts:
        """Write what was folded in memory and move its checkpoints, all or nothing; ``unwritten`` is empty then.

        Raises FencingLost as ``project_batch`` does, and OneByOne when a decision, a hold, a record that was set aside
        meanwhile by somebody else or a refusal of the database asks for smaller steps.
        """
        schema = self.read_model.schema
        bounds = {n: (unwritten.first_offsets[n], end - 1) for n, end in unwritten.next_offsets.items()}
        done = _Done(Counts(quarantined=len(unwritten.marks), duplicates=unwritten.duplicates))
        try:
            with self.connection.transaction(), self.connection.cursor() as cursor:
                checkpoints.move(cursor, schema, claims, unwritten.next_offsets, unwritten.leader_epochs)
                topic = next(iter(claims.values())).topic
                decisions.check_none_is_passed(cursor, schema, topic, unwritten.next_offsets)
                if set_aside.known(cursor, schema, topic, bounds) - unwritten.known:
                    raise OneByOne("records in here were set aside by somebody else meanwhile")
                self._save_folded(unwritten.streams.values())
                for stream in unwritten.streams.values():
                    done.add(stream)
                self._project(unwritten.items, done, again=True)
                if unwritten.marks:
                    set_aside.mark(cursor, schema, unwritten.marks)
        except (DecisionsDue, Held) as error:
            raise OneByOne(str(error)) from error
        except BaseException:
            self.recent.forget()
            raise
        self.recent.allow(unwritten.bound)
        self.recent.keep(done.streams)
        _report(done.failed)
        self._look_again(done, unwritten.marks)
        unwritten.clear()
        counts = done.counts
        del done  # else what was written still lived
        self._garbage.written()
        return counts

    def _save_folded(self, streams: Iterable[FoldedStream]) -> None:
        try:
            waiting = iter(streams)
            while some := list(islice(waiting, WRITTEN_AT_ONCE)):
                self.read_model.save(self.connection, some, again=True)
        except Exception as error:
            if not is_ours(error):
                raise
            raise OneByOne(f"the rows are refused ({type(error).__name__})") from error

    def apply(self, claims: Mapping[int, Claim], decision: Decision) -> Counts:
        """Apply a decision whose effect offset is the next offset of its stream's partition, in one transaction.

        One that brings out a defect of ours must not hold up the partition for ever: an event that it releases and
        that fails becomes ``fold_failed``. Where nothing can be folded at all the decision changes nothing, counts as
        applied, and its record waits on for another one.
        """
        held = claims[decision.stream_partition]
        self.recent.forget()
        done = _Done(Counts())
        with self.connection.transaction(), self.connection.cursor() as cursor:
            checkpoints.move(cursor, self.read_model.schema, claims, {held.partition: held.next_offset}, {})
            # Outside what follows: a broker that is away is no defect, and must not use up the decision.
            record = self._concerned(decision)
            try:
                with self.connection.transaction():
                    done.add(self._written(*self._due(decision, record)))
            except Exception as error:
                if not is_ours(error):
                    raise
                log.error(
                    "decision %d changed nothing: applying it raised %s %s",
                    decision.id,
                    type(error).__name__,
                    defects.where(error),
                    extra={"action": "decision_failed"},
                )
            decisions.applied(cursor, self.read_model.schema, decision)
        _report(done.failed)
        self._look_again(done, ())
        return done.counts

    def apply_late(self, claims: Mapping[int, Claim], decision: Decision) -> None:
        """Apply a decision whose place was passed without it, since somebody entered it late: fold its stream again.

        The partition has to be claimed anew after that.
        """
        held, schema = claims[decision.stream_partition], self.read_model.schema
        self.recent.forget()
        with self.connection.transaction(), self.connection.cursor() as cursor:
            checkpoints.move(cursor, schema, claims, {held.partition: held.next_offset}, {})
            decisions.applied(cursor, schema, decision)
            topic, key, partition = decision.position.topic, decision.stream_key, held.partition
            refold(
                self.connection, self.read_model, self.decode, self.lookup, topic=topic, key=key, partition=partition
            )

    def decided(self, decision: Decision) -> FoldedStream:
        """Return what a decision makes of its stream as it is stored now; nothing is written."""
        return fold(*self._due(decision, self._concerned(decision)))

    def _concerned(self, decision: Decision) -> SetAside | None:
        """Return the record that a decision is about."""
        schema = self.read_model.schema
        return set_aside.load_one(self.connection, schema, decision.position) or self._misrouted(decision)

    def _due(self, decision: Decision, record: SetAside | None) -> tuple[Stream, Sequence[Arrival]]:
        """Return a decision's stream as it is stored, and the decision as the fold takes it."""
        key = decision.stream_key
        stored = self.read_model.load(self.connection, {key: decision.stream_partition}, self.decode, lambda _: True)
        return stored[key], () if record is None else self._arrival(decision, record)

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

    def _look_again(self, done: _Done, marks: Iterable[SetAside]) -> None:
        """Take the content from marks of deleted prescriptions, after the commit, and these from complete generations.

        A mark and the deletion may be written by two workers at the same time, and neither sees the other's: the one
        that commits last finds both here. One that dies before it does leaves that to whoever claims its partitions.
        """
        deleted = {stream.before.key for stream in done.streams if stream.deleted}
        keys = deleted | {mark.stream_key for mark in marks if mark.stream_key is not None}
        if keys:
            with self.connection.cursor() as cursor:
                set_aside.scrub_if_deleted(cursor, self.read_model.schema, sorted(keys))
                if deleted:
                    erasure.erase(cursor, self.read_model.generation, deleted)

    # a batch, and what is wrong with one event of it ------------------------------------------------------------------

    def _project(self, by_key: Items, done: _Done, *, again: bool = False) -> None:
        """Fold and write these streams, at once if nothing is refused, else each half by itself."""
        if not by_key:
            return
        try:
            with self.connection.transaction():
                written = self._write(by_key, again=again)
        except Exception as error:
            if not is_ours(error):
                raise
        else:
            for stream in written.streams:
                done.add(stream)
            return
        if len(by_key) == 1:
            self.recent.forget()
            ((key, items),) = by_key.items()
            self._project_defective(key, items, done)
            return
        keys = sorted(by_key)
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            self._project({key: by_key[key] for key in half}, done, again=True)

    def _write(self, by_key: Items, *, again: bool) -> Projected:
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
        self.read_model.save(self.connection, projected.streams, again=again)
        return projected

    def _project_defective(self, key: str, items: Sequence[Accepted | Quarantined], done: _Done) -> None:
        """Fold and write one stream in which something is refused: together, else item by item, else set aside."""
        try:
            with self.connection.transaction():
                done.add(self._written(self._stored(key, items), items))
        except Exception as error:
            if not is_ours(error):
                raise
            if len(items) == 1:
                self._set_aside_unseen(items[0], error, done)
                return
        else:
            return
        for item in items:
            self._project_defective(key, [item], done)

    def _stored(self, key: str, items: Sequence[Accepted | Quarantined]) -> Stream:
        partition = items[0].record.position.partition
        return self.read_model.load(
            self.connection, {key: partition}, self.decode, lambda stream: needs_parked(stream, items)
        )[key]

    def _written(self, stored: Stream, arrivals: Sequence[Arrival]) -> FoldedStream:
        """Fold and write a stream; the first event whose rows the database refuses is set aside, and what follows it
        in the stream waits, as if each event had come alone. It may be one that was parked and that another released.
        """
        refused: dict[int, FieldError] = {}
        while True:
            folded = fold(stored, arrivals, refused)
            try:
                with self.connection.transaction():
                    self.read_model.save(self.connection, [folded], again=True)
            except Exception as error:
                if not is_ours(error):
                    raise
                after = steps(stored, arrivals, refused)
                first = bisect_left(after, True, key=lambda step: self._refusal(stored, step) is not None)
                if first == len(after):
                    raise
                step = after[first]
                refused[step.attempt] = _said(step.position, self._refusal(stored, step) or error)
            else:
                return folded

    def _refusal(self, stored: Stream, step: Step) -> Exception | None:
        """Return why the rows of a stream right after one event cannot be written, or None; nothing is written."""
        folded = FoldedStream(stored, step.prescription, step.history, {}, frozenset(), False, Counts())
        try:
            with self.connection.transaction(force_rollback=True):
                self.read_model.save(self.connection, [folded], again=True)
        except Exception as error:
            if not is_ours(error):
                raise
            return error
        return None

    def _set_aside_unseen(self, item: Accepted | Quarantined, error: Exception, done: _Done) -> None:
        """Set an item aside where not even its stream can be loaded or folded: the last resort."""
        record = mark(_fold_failed(item, error))
        with self.connection.transaction(), self.connection.cursor() as cursor:
            set_aside.save(cursor, self.read_model.schema, [record])
            set_aside.scrub_if_deleted(cursor, self.read_model.schema, [str(record.stream_key)])
        done.counts.quarantined += 1
        done.failed.append(record)

    def _failing_lately(self, items: Sequence[Accepted | Quarantined], done: _Done) -> Lately:
        """Take in what became of those that were tried; what waits behind a failed one says nothing."""
        failed = {record.position for record in done.failed}
        aside = {position for stream in done.streams for position in stream.set_aside} - failed
        tried = (item.record for item in reversed(items) if item.record.position not in aside)
        last = [(record.position in failed, record.key) for record in islice(tried, LAST_RECORDS)]
        failing = self.failing.after(reversed(last))
        if not self.keep_going and failing.is_mostly_bad:
            raise TooManyFailing(
                f"{failing.bad} of the last {failing.seen} events that were tried cannot be folded or written: this "
                "version or its database is wrong, not single events. Nothing of this batch was set aside; 'rxstore "
                f"project --keep-going' sets it aside all the same. The last one: {done.failed[-1].errors[0].message}"
            )
        return failing


@dataclass(slots=True)
class _Done:
    """What was written of a batch so far."""

    counts: Counts
    streams: list[FoldedStream] = field(default_factory=list)
    failed: list[SetAside] = field(default_factory=list)

    def add(self, stream: FoldedStream) -> None:
        self.counts.add(stream.counts)
        self.streams.append(stream)
        if stream.counts.quarantined:
            self.failed += [record for record in stream.set_aside.values() if record.reason is Reason.FOLD_FAILED]


def _report(failed: Iterable[SetAside]) -> None:
    for record in failed:
        for error in record.errors:
            log.error("%s was set aside: %s", record.position, error.message, extra={"action": "fold_failed"})


def _said(position: Position, error: Exception) -> FieldError:
    """Return what is kept with a record whose rows are refused; where that was depends on the cut, and is logged."""
    name = type(error).__name__
    if not isinstance(error, psycopg.Error):
        log.error("%s: %s %s", position, name, defects.where(error), extra={"action": "fold_failed"})
        return FieldError("", f"making its rows raised {name}: {defects.OF_THIS_VERSION}")
    code = f", SQLSTATE {error.sqlstate}" if error.sqlstate else ""
    return FieldError("", f"the database refused its rows ({name}{code}): {defects.OF_THIS_VERSION}")


def _fold_failed(item: Accepted | Quarantined, error: Exception) -> Quarantined:
    errors = (_said(item.record.position, error),)
    if isinstance(item, Quarantined):
        return replace(item, reason=Reason.FOLD_FAILED, errors=errors)
    envelope = item.event.envelope
    return Quarantined(
        record=item.record,
        reason=Reason.FOLD_FAILED,
        errors=errors,
        stream_key=envelope.stream_key,
        event_key=envelope.key,
        event_source=envelope.source,
        event_id=envelope.id,
        event_type=TYPE_OF[type(item.event)],
        sequence=envelope.sequence,
        nhs_number=item.event.nhs_number if isinstance(item.event, Created) else None,
    )
