"""The loop of one worker: poll, project, commit; and what it does when the world gets in its way.

A batch is projected in one transaction with its checkpoints, so the loop never has to know whether an earlier try
succeeded: the same batch again either finds its checkpoints where it left them, or is told that it was overtaken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event
from typing import Any

import psycopg
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError, UnknownTopicOrPartitionError

from ingest import log_identity, metrics
from ingest.assignment import Assignment
from ingest.lookup import Lookup, record_of
from ingest.pacing import Pace
from ingest.readability import Readability
from ingest.retry import Backoff
from projector import checkpoints, decisions, erasure, garbage, set_aside
from projector.batch import Accepted, Decode, Quarantined
from projector.checkpoints import Claim, FencingLost, Held, TopicMismatch
from projector.decisions import DecisionsDue
from projector.read_model import ReadModel
from projector.recent import RecentStreams
from projector.runner import Batch, OneByOne, Runner
from projector.stream import Counts
from projector.unwritten import Unwritten

log = logging.getLogger(__name__)

POLL_TIMEOUT_MS = 500
ENDS_EVERY_SECONDS = 1.0
ENDS_TIMEOUT_MS = 2_000
COMMIT_EVERY_SECONDS = 1.0
HOLD_SLICE_SECONDS = 0.5
HELD_SECONDS = 0.05

# No waiting brings back what the client then missed; other errors of the brokers pass.
LOG_IS_GONE = (OffsetOutOfRangeError, LogTruncationError)


@dataclass(slots=True)
class Worker:
    """One consumer in the group and one database session, projecting into one generation.

    ``partitions`` is the number of partitions that the generation was built from; ``batch_records`` bounds a batch.
    With ``keep_going`` it also sets aside what looks like a bad deploy. ``build_bytes`` is the memory in which a
    generation that is being built is folded until this worker is near the end for the first time; 0 for none. It
    holds what is not written yet and, beyond the ``remembered_bytes`` of any worker, streams that were. For a
    generation that is built as of a time, ``until``, partitions end at ``ends``: nothing from there on is read.
    """

    topic: str
    partitions: int
    topic_id: str | None
    read_model: ReadModel
    decode: Decode
    make_consumer: Callable[[], KafkaConsumer]
    lookup: Lookup
    connect: Callable[[], psycopg.Connection[Any]]
    owner: str
    batch_records: int
    remembered_bytes: int
    stopping: Event
    keep_going: bool = False
    build_bytes: int = 0
    until: datetime | None = None
    ends: Mapping[int, int] | None = None
    counts: Counts = field(default_factory=Counts)
    _unwritten: Unwritten = field(init=False)
    _one_by_one_to: dict[int, int] = field(default_factory=dict)
    _claims: dict[int, Claim] = field(default_factory=dict)
    _readability: Readability = field(default_factory=Readability)
    _backoff: Backoff = field(default_factory=Backoff)
    _pace: Pace = field(init=False)
    _runner: Runner | None = None
    _ends: tuple[Any, dict[int, int]] | None = None
    # The same ends, kept until they are asked for again: whether a build has far to go.
    _known_ends: dict[int, int] = field(default_factory=dict)
    _ends_asked_at: float = 0.0
    _committed_at: float = 0.0

    def __post_init__(self) -> None:
        self._pace = Pace(self.read_model)
        self._unwritten = Unwritten(self.build_bytes)

    def run(self) -> None:
        """Project until asked to stop; TopicMismatch when the topic is not what the generation was built from."""
        while not self.stopping.is_set():
            consumer = self.make_consumer()
            assignment = Assignment(consumer)
            consumer.subscribe([self.topic], listener=assignment)
            try:
                self._consume(consumer, assignment)
            except OffsetOutOfRangeError as error:
                raise TopicMismatch(
                    f"{self.topic} no longer has the events that come next: retention took them away, or the log was "
                    "truncated. 'rxstore diagnose' says which, and what helps"
                ) from error
            except LogTruncationError as error:
                raise TopicMismatch(
                    f"{self.topic} lost records that were folded from it, and has grown again since: a broker without "
                    "them was made leader. 'rxstore diagnose' says what helps"
                ) from error
            except FencingLost as error:
                log.warning("joining the group again: %s", error, extra={"action": "rejoin"})
                metrics.REJOINS.inc()
            finally:
                self._let_go()
                consumer.close(autocommit=False)
        if self._runner is not None:
            self._runner.connection.close()

    def _consume(self, consumer: KafkaConsumer, assignment: Assignment) -> None:
        while not self.stopping.is_set():
            self._follow(consumer, assignment)
            self._keep_pace()
            polled = self._poll(consumer)
            self._follow(consumer, assignment)
            batch = self._batch(consumer, polled)
            try:
                if batch.next_offsets:
                    self._project(consumer, assignment, batch)
                if self._unwritten and self._is_time_to_write():
                    self._write(consumer, assignment)
            except OneByOne as error:
                self._read_again(consumer, error)
            self._note_ends(consumer)
        if self._unwritten:
            with suppress(OneByOne):
                self._write(consumer, assignment)

    def _keep_pace(self) -> None:
        """Ask about once a second how fast this may go, and say how far it is. Nothing fails because of it."""
        if not self._claims or not self._pace.is_due():
            return
        try:
            self._pace.look(self._connection(), self._folded_to())
        except psycopg.Error as error:
            log.warning("could not look how fast to go: %s", _without_data(error), extra={"action": "pace"})

    def _poll(self, consumer: KafkaConsumer) -> Mapping[TopicPartition, Sequence[Any]]:
        room = self._pace.room(self.batch_records) if self._claims else self.batch_records
        if not room:
            self._stand_still(consumer, self._pace.wait())
            return {}
        try:
            polled: dict[TopicPartition, list[Any]] = consumer.poll(timeout_ms=POLL_TIMEOUT_MS, max_records=room)
            self._pace.took(sum(map(len, polled.values())))
        except LOG_IS_GONE:
            raise
        except KafkaError as error:
            self._wait(consumer, error)
            return {}
        return polled

    # partitions -------------------------------------------------------------------------------------------------------

    def _follow(self, consumer: KafkaConsumer, assignment: Assignment) -> None:
        """Let go of partitions that went and claim those that came; keep them waiting while the database is away."""
        went, came = assignment.changes()
        if self._unwritten.next_offsets.keys() & {partition.partition for partition in went}:
            self._hand_over(consumer, went)
        for partition in went:
            if self._claims.pop(partition.partition, None) is not None:
                self._forget()
                log.info("let go of %s[%d]", self.topic, partition.partition, extra={"action": "revoked"})
        for partition in sorted(came):
            try:
                claim = self._claim(consumer, partition)
            except (psycopg.Error, KafkaError) as error:
                assignment.put_back(came - {TopicPartition(self.topic, held) for held in self._claims})
                self._wait(consumer, error)
                return
            self._claims[partition.partition] = claim
            if not self._is_complete(claim):  # else it stays paused: the log need not even have that offset any more
                log_identity.seek(consumer, partition, claim.next_offset, claim.leader_epoch)
                consumer.resume(partition)
            log.info(
                "claimed %s[%d] at offset %d, epoch %d",
                self.topic,
                partition.partition,
                claim.next_offset,
                claim.epoch,
                extra={"action": "claimed"},
            )
        if came:
            self._backoff.reset()

    def _check_topic(self, consumer: KafkaConsumer) -> None:
        """TopicMismatch when the topic is another one, or another shape, than the generation was built from."""
        found = len(consumer.partitions_for_topic(self.topic))
        if found == 0:
            raise UnknownTopicOrPartitionError(self.topic)
        if found != self.partitions:
            raise TopicMismatch(
                f"topic {self.topic} has {found} partitions, {self.read_model.schema} was built from "
                f"{self.partitions}: keys now belong elsewhere. 'rxstore diagnose' says what helps"
            )
        topic_id = log_identity.topic_id(consumer, self.topic)
        if topic_id != self.topic_id and None not in (topic_id, self.topic_id):
            raise TopicMismatch(
                f"topic {self.topic} was deleted and made again under this worker: {self.read_model.schema} was built "
                "from another one. 'rxstore diagnose' says what helps"
            )

    def _claim(self, consumer: KafkaConsumer, partition: TopicPartition) -> Claim:
        first = consumer.beginning_offsets([partition])[partition]
        end = consumer.end_offsets([partition])[partition]
        self._known_ends[partition.partition] = end if self.ends is None else min(end, self.ends[partition.partition])
        self._check_topic(consumer)
        session = self._connection()
        claim = checkpoints.claim(
            session,
            self.read_model.schema,
            self.topic,
            partition.partition,
            owner=self.owner,
            topic_id=self.topic_id,
            first=first,
        )
        with session.cursor() as cursor:
            set_aside.scrub_if_deleted(cursor, self.read_model.schema)
            erasure.erase_missed(cursor, self.read_model.generation, partition.partition)
        if claim.epoch == 1 and first > 0:
            log.warning(
                "%s[%d] begins at offset %d: what was published before is not in the log and not in the views",
                self.topic,
                partition.partition,
                first,
                extra={"action": "incomplete_log"},
            )
        if claim.next_offset < first and not self._is_complete(claim):
            raise TopicMismatch(
                f"{self.topic}[{partition.partition}] begins at offset {first}, but {claim.next_offset} is the next to "
                "be read: retention took events away that were never folded. 'rxstore diagnose' says what helps"
            )
        if claim.next_offset > end:
            raise TopicMismatch(
                f"{self.topic}[{partition.partition}] ends at offset {end}, but everything before {claim.next_offset} "
                "was folded: the log was truncated, or this is another topic"
            )
        return claim

    # batches ----------------------------------------------------------------------------------------------------------

    def _batch(self, consumer: KafkaConsumer, polled: Mapping[TopicPartition, Sequence[Any]]) -> Batch:
        """Decode what was polled of claimed partitions, and say where each stands after it.

        The next offset is the consumer's position: transaction markers take offsets without being records.
        """
        items: list[Accepted | Quarantined] = []
        next_offsets: dict[int, int] = {}
        leader_epochs: dict[int, int] = {}
        for partition, records in polled.items():
            records = self._within(partition.partition, records)
            if partition.partition in self._claims and records:
                items.extend(self.decode(record_of(record)) for record in records)
                next_offsets[partition.partition] = records[-1].offset + 1
                if records[-1].leader_epoch >= 0:
                    leader_epochs[partition.partition] = records[-1].leader_epoch
        assigned = consumer.assignment()
        for number, claim in self._claims.items():
            partition = TopicPartition(self.topic, number)
            if partition in assigned:
                reached = consumer.position(partition, timeout_ms=POLL_TIMEOUT_MS)
                if reached is not None and self.ends is not None and reached >= self.ends[number]:
                    reached = self.ends[number]
                    consumer.pause(partition)
                if reached is not None and reached > next_offsets.get(number, self._reached(claim)):
                    next_offsets[number] = reached
                    leader_epochs.pop(number, None)  # a marker may be a later leader's than the last record
        if not self.keep_going:
            self._readability.look(items)
        return Batch(items, next_offsets, leader_epochs)

    def _is_complete(self, claim: Claim) -> bool:
        """Whether a partition has been read to where it ends for this generation."""
        return self.ends is not None and claim.next_offset >= self.ends[claim.partition]

    def _within(self, number: int, records: Sequence[Any]) -> Sequence[Any]:
        """Leave out the records that stand where the partition has ended for this generation."""
        return records if self.ends is None else [record for record in records if record.offset < self.ends[number]]

    def _project(self, consumer: KafkaConsumer, assignment: Assignment, batch: Batch) -> None:
        """Project the batch, again and again until it is in the database or no longer this worker's."""
        if self._builds():
            self._take(consumer, assignment, batch)
            return
        while batch.next_offsets and not self.stopping.is_set():
            started = time.monotonic()
            try:
                counts = self._live().project_batch(self._claims, batch)
            except FencingLost:
                batch = self._what_is_left(consumer, assignment, batch, overtaken=True)
            except DecisionsDue as due:
                before, batch = batch.cut(due.offsets, self._claims)
                self._project(consumer, assignment, before)
                self._apply_decisions(consumer)
            except Held as held:
                before, batch = batch.cut(held.offsets, self._claims)
                self._project(consumer, assignment, before)
                self._apply_decisions(consumer)
                self._stand_still(consumer, HELD_SECONDS)
                batch = self._what_is_left(consumer, assignment, batch, overtaken=False)
            except psycopg.errors.SerializationFailure as error:
                metrics.RETRIES.labels(type(error).__name__).inc()
                batch = self._what_is_left(consumer, assignment, batch, overtaken=False)
            except psycopg.Error as error:
                self._wait(consumer, error)
                batch = self._what_is_left(consumer, assignment, batch, overtaken=False)
            else:
                metrics.BATCH_SECONDS.observe(time.monotonic() - started)
                self._projected(consumer, batch, counts)
                return

    # a build ----------------------------------------------------------------------------------------------------------

    def _builds(self) -> bool:
        """Whether what comes is to be folded in memory for now.

        Once near the end, a generation is followed like the live one; where smaller steps were asked for, they are
        made.
        """
        if self._unwritten:
            return True
        if self.build_bytes and not self._is_far_behind():
            self.build_bytes = 0
            if self._runner is not None:
                self._runner.recent.allow(0)
            garbage.collect()  # what was passed over while it was built is looked at again
        self._one_by_one_to = {
            number: offset
            for number, offset in self._one_by_one_to.items()
            if number in self._claims and self._claims[number].next_offset < offset
        }
        return bool(self.build_bytes) and not self._one_by_one_to

    def _is_far_behind(self) -> bool:
        """Whether more than a batch is left, as far as the brokers have told within the last second."""
        left = sum(max(0, self._known_ends.get(n, 0) - self._reached(claim)) for n, claim in self._claims.items())
        return left > self.batch_records

    def _is_time_to_write(self) -> bool:
        return self._unwritten.is_full or not self._is_far_behind()

    def _reached(self, claim: Claim) -> int:
        """Return the next offset of a partition to be read."""
        return self._unwritten.next_offsets.get(claim.partition, claim.next_offset)

    def _folded_to(self) -> dict[int, Claim]:
        """Return the claims as they would be if what is in memory were written."""
        return {number: claim.moved_to(self._reached(claim)) for number, claim in self._claims.items()}

    def _take(self, consumer: KafkaConsumer, assignment: Assignment, batch: Batch) -> None:
        """Fold a batch in memory, again and again until it is there or no longer this worker's."""
        while batch.next_offsets and not self.stopping.is_set():
            started = time.monotonic()
            try:
                self._live().take(self._claims, batch, self._unwritten)
            except DecisionsDue as due:
                before, batch = batch.cut(due.offsets, self._folded_to())
                self._take(consumer, assignment, before)
                self._write(consumer, assignment)
                self._apply_decisions(consumer)
                batch = self._what_is_left(consumer, assignment, batch, overtaken=False)
            except psycopg.Error as error:
                self._wait(consumer, error)
                batch = self._what_is_left(consumer, assignment, batch, overtaken=False)
            else:
                self._backoff.reset()
                self._pace.passed(batch)
                metrics.BATCH_SECONDS.observe(time.monotonic() - started)
                return

    def _write(self, consumer: KafkaConsumer, assignment: Assignment) -> None:
        """Write what was folded in memory, again and again until it is written or no longer this worker's."""
        while self._unwritten:
            started, reached = time.monotonic(), Batch((), dict(self._unwritten.next_offsets))
            try:
                counts = self._live().write(self._claims, self._unwritten)
            except FencingLost:
                self._what_is_left(consumer, assignment, reached, overtaken=True)
            except psycopg.errors.SerializationFailure as error:
                metrics.RETRIES.labels(type(error).__name__).inc()
                self._what_is_left(consumer, assignment, reached, overtaken=False)
            except psycopg.Error as error:
                self._wait(consumer, error)
                self._what_is_left(consumer, assignment, reached, overtaken=False)
            else:
                seconds = time.monotonic() - started
                metrics.BATCH_SECONDS.observe(seconds)
                self._projected(consumer, reached, counts)
                log.info(
                    "wrote what %d events made, folded in memory, in %.1f s",
                    counts.folded,
                    seconds,
                    extra={"action": "built"},
                )
                return
            if self.stopping.is_set():
                return

    def _hand_over(self, consumer: KafkaConsumer, went: Iterable[TopicPartition]) -> None:
        """Write before partitions go; what cannot be written at the first try is read again by whoever gets them."""
        offsets = dict(self._unwritten.next_offsets)
        try:
            counts = self._live().write(self._claims, self._unwritten)
        except (FencingLost, OneByOne, psycopg.Error) as error:
            log.info("not written before handing over (%s)", type(error).__name__, extra={"action": "revoked"})
            for partition in went:
                self._unwritten.forget(partition.partition)
        else:
            self._projected(consumer, Batch((), offsets), counts)

    def _read_again(self, consumer: KafkaConsumer, reason: OneByOne) -> None:
        """Forget what was folded in memory and read it again from the checkpoints, in batches."""
        log.info("reading again, batch by batch: %s", reason, extra={"action": "one_by_one"})
        self._one_by_one_to = dict(self._unwritten.next_offsets)
        self._unwritten.clear()
        self._forget()
        for number in self._one_by_one_to:
            claim = self._claims[number]
            partition = TopicPartition(self.topic, number)
            log_identity.seek(consumer, partition, claim.next_offset, claim.leader_epoch)

    # what is left -----------------------------------------------------------------------------------------------------

    def _what_is_left(self, consumer: KafkaConsumer, assignment: Assignment, batch: Batch, *, overtaken: bool) -> Batch:
        """Drop what went to other workers meanwhile; FencingLost when a partition is ours by Kafka's word only."""
        self._follow(consumer, assignment)
        held = {number: claim for number, claim in self._claims.items() if number in batch.next_offsets}
        try:
            kept = checkpoints.still_hold(self._connection(), self.read_model.schema, held)
        except psycopg.Error as error:
            self._wait(consumer, error)
            kept = not overtaken
        if not kept:
            raise FencingLost(f"partitions {sorted(held)} of {self.topic} are not where this worker left them")
        return Batch(
            [item for item in batch.items if item.record.position.partition in held],
            {number: offset for number, offset in batch.next_offsets.items() if number in held},
            batch.leader_epochs,
        )

    def _projected(self, consumer: KafkaConsumer, batch: Batch, counts: Counts) -> None:
        self._backoff.reset()
        self._pace.passed(batch)
        self.counts.add(counts)
        for outcome in ("folded", "duplicates", "parked", "quarantined", "repaired"):
            metrics.EVENTS.labels(self.read_model.generation, outcome.removesuffix("s")).inc(getattr(counts, outcome))
        for number, offset in batch.next_offsets.items():
            self._claims[number] = self._claims[number].moved_to(offset)
        if counts.quarantined:
            log.warning(
                "set aside %d records: see 'rxstore quarantine list'", counts.quarantined, extra={"action": "set_aside"}
            )
        if time.monotonic() - self._committed_at >= COMMIT_EVERY_SECONDS:
            self._committed_at = time.monotonic()
            self._commit(consumer)

    def _commit(self, consumer: KafkaConsumer) -> None:
        """Tell Kafka how far we are, so that its own tools show lag. Nothing here ever reads it back."""
        offsets = {
            TopicPartition(self.topic, number): OffsetAndMetadata(claim.next_offset, "", -1)
            for number, claim in self._claims.items()
        }
        consumer.commit_async(offsets, callback=lambda *_: None)

    # decisions --------------------------------------------------------------------------------------------------------

    def _apply_decisions(self, consumer: KafkaConsumer) -> None:
        """Give operators' new decisions their place, and apply those whose place this generation has come to."""
        try:
            waiting = decisions.waiting(self._connection(), self.read_model.schema, self.topic, self._claims)
            new = [decision for decision in waiting if decision.number is None]
            if new:
                with suppress(psycopg.errors.LockNotAvailable):  # the next look is a second away
                    decisions.give_effect(self._connection(), new)
                waiting = decisions.waiting(self._connection(), self.read_model.schema, self.topic, self._claims)
            for decision in waiting:
                place, reached = decision.effect_offset, self._claims[decision.stream_partition].next_offset
                if place is None or place > reached or decision.stream_partition in self._unwritten.next_offsets:
                    continue
                if place == reached:
                    self.counts.add(self._live().apply(self._claims, decision))
                else:
                    self._live().apply_late(self._claims, decision)
                log.info(
                    "applied decision %d: %s %s",
                    decision.id,
                    decision.action,
                    decision.position,
                    extra={"action": "decision"},
                )
        except (psycopg.Error, KafkaError) as error:
            self._wait(consumer, error)

    # freshness --------------------------------------------------------------------------------------------------------

    def _note_ends(self, consumer: KafkaConsumer) -> None:
        """Once a second ask where the partitions end; note when we have read that far.

        The database's clock is read before the ends are asked for: what was published before that moment is folded.
        """
        if not self._claims:
            self._look_for_topic(consumer)
            return
        try:
            if time.monotonic() - self._ends_asked_at >= ENDS_EVERY_SECONDS:
                self._ends_asked_at = time.monotonic()
                self._check_topic(consumer)
                self._check_checkpoints()
                self._apply_decisions(consumer)
                row = self._connection().execute("SELECT clock_timestamp()").fetchone()
                ends = consumer.end_offsets(
                    [TopicPartition(self.topic, number) for number in self._claims], timeout_ms=ENDS_TIMEOUT_MS
                )
                self._ends = (row[0] if row else None, {tp.partition: end for tp, end in ends.items()})
                if self.ends is not None:
                    self._ends = (self.until, {number: self.ends[number] for number in self._claims})
                self._known_ends.update(self._ends[1])
                self._commit(consumer)
            if self._ends is None:
                return
            at, waiting = self._ends
            reached = {n: c for n, c in self._claims.items() if n in waiting and c.next_offset >= waiting[n]}
            checkpoints.caught_up(self._connection(), self.read_model.schema, reached, at)
            for number, claim in self._claims.items():
                if number in waiting:
                    metrics.LAG.labels(self.read_model.generation, str(number)).set(
                        max(0, waiting[number] - claim.next_offset)
                    )
            for number in reached:
                del waiting[number]
        except (psycopg.Error, KafkaError) as error:
            log.warning(
                "could not look how fresh the views are: %s", _without_data(error), extra={"action": "freshness"}
            )

    def _check_checkpoints(self) -> None:
        """FencingLost when a checkpoint is not where we left it, also of a partition that nothing comes to.

        A crash or a failover of the database can take back the last commits: what they wrote has to be folded again
        now, not with the partition's next event.
        """
        if not checkpoints.still_hold(self._connection(), self.read_model.schema, self._claims):
            raise FencingLost(f"checkpoints of {self.topic} are not where this worker left them")

    def _look_for_topic(self, consumer: KafkaConsumer) -> None:
        """Say so when there is nothing to do because the topic is not there; it may come back."""
        if time.monotonic() - self._ends_asked_at < ENDS_EVERY_SECONDS:
            return
        self._ends_asked_at = time.monotonic()
        try:
            self._check_topic(consumer)
        except KafkaError as error:
            self._wait(consumer, error)

    # the world --------------------------------------------------------------------------------------------------------

    def _live(self) -> Runner:
        if self._runner is None or self._runner.connection.closed:
            recent = RecentStreams(self.remembered_bytes)
            self._runner = Runner(self.connect(), self.read_model, self.decode, recent, self.lookup, self.keep_going)
        return self._runner

    def _connection(self) -> psycopg.Connection[Any]:
        return self._live().connection

    def _forget(self) -> None:
        """Nothing that was loaded under a claim outlives it."""
        if self._runner is not None:
            self._runner.recent.forget()

    def _let_go(self) -> None:
        self._claims.clear()
        self._unwritten.clear()
        self._one_by_one_to.clear()
        self._ends = None
        self._forget()

    def _wait(self, consumer: KafkaConsumer, error: Exception) -> None:
        """Pause before the same thing again."""
        metrics.RETRIES.labels(type(error).__name__).inc()
        pause = self._backoff.next_pause()
        log.warning("waiting %.1f s and trying again: %s", pause, _without_data(error), extra={"action": "retry"})
        if self._runner is not None and not self._runner.connection.closed:
            with suppress(psycopg.Error):
                self._pace.waits(self._runner.connection, self._folded_to(), _without_data(error))
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and self._runner is not None:
            # This server is no primary (any more): a new session may find the one that is.
            self._runner.connection.close()
        self._stand_still(consumer, pause)

    def _stand_still(self, consumer: KafkaConsumer, seconds: float) -> None:
        """Read nothing for a while, and stay in the group by polling with everything paused."""
        held = consumer.assignment()
        consumer.pause(*held)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopping.wait(min(HOLD_SLICE_SECONDS, until - time.monotonic())):
            _stay(consumer)
        still = consumer.assignment()
        claimed = [TopicPartition(self.topic, n) for n, claim in self._claims.items() if not self._is_complete(claim)]
        consumer.resume(*[partition for partition in claimed if partition in still])


def _stay(consumer: KafkaConsumer) -> None:
    """Let the client do what keeps it in its group; nothing comes, since everything is paused."""
    try:
        consumer.poll(timeout_ms=0, max_records=1)
    except LOG_IS_GONE:
        raise
    except KafkaError as error:
        log.debug("while waiting: %s", _without_data(error))


# What an operator can do something about, in words; by SQLSTATE, or by its class.
IN_WORDS = {
    "25006": "the database is read only: a standby, or in recovery",
    "25P03": "the database ended a session that stood still inside a transaction",
    "40": "the database undid the transaction because of others",
    "53": "the database is short of disk, memory or connections",
    "55P03": "another session holds a lock",
    "57014": "the database cancelled the statement",
    "57": "the database is shutting down or starting",
}


def _without_data(error: Exception) -> str:
    """Say what is wrong without what a driver may quote from a row."""
    name = type(error).__name__
    if isinstance(error, UnknownTopicOrPartitionError):
        return f"the topic is not there ({name})"
    if isinstance(error, KafkaError):
        return f"the brokers do not answer or refuse ({name})"
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        state = error.sqlstate
        said = IN_WORDS.get(state) or IN_WORDS.get(state[:2]) or "the database refuses"
        return f"{said} ({name}, SQLSTATE {state})"
    if isinstance(error, psycopg.OperationalError):
        return f"the database cannot be reached ({name})"
    return name
