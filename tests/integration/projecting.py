"""A log without a broker: generated records in their partitions, projected by runners as workers would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from random import Random
from typing import Any

import orjson
import psycopg

from ingest.decode import Decoder
from ingest.partitioning import partitioner
from projector import checkpoints, decisions
from projector.batch import Position, Record
from projector.checkpoints import Claim
from projector.decisions import DecisionsDue
from projector.projection import by_stream
from projector.read_model import ReadModel
from projector.recent import RecentStreams
from projector.runner import Batch, Runner, connect
from projector.sizes import STREAM_BYTES
from projector.stream import Counts, FoldedStream, Stream, fold
from rxstore.generator import lifecycles, records

TOPIC = "events"
PARTITIONS = 4
SCHEMA = "rx_g1"
ROWS = ("prescription", "line_item", "issue", "dispense_notification", "cancellation", "set_aside")
DECODE = Decoder(partition_of=partitioner("murmur2", PARTITIONS))


@dataclass(slots=True)
class Log:
    """What a topic holds, by partition; offsets have holes, as transactions leave them."""

    partitions: dict[int, list[Record]] = field(default_factory=lambda: {n: [] for n in range(PARTITIONS)})

    def append(self, key: bytes, value: bytes, headers: tuple[tuple[str, bytes | None], ...], shift: int = 0) -> Record:
        partition = (DECODE.partition_of(key) + shift) % PARTITIONS
        log = self.partitions[partition]
        offset = log[-1].position.offset + 1 + (len(log) % 7 == 0) if log else 0
        record = Record(Position(TOPIC, partition, offset), 1_767_600_000_000 + offset, key, value, headers)
        log.append(record)
        return record

    def append_event(self, event: Mapping[str, Any], shift: int = 0) -> Record:
        """Append an event as its publisher would, under its own stream key."""
        key = str(event["subject"]).upper()[:-1].encode()
        return self.append(key, orjson.dumps(event), (("content-type", b"application/cloudevents+json"),), shift)

    def records(self) -> Iterator[Record]:
        for number in sorted(self.partitions):
            yield from self.partitions[number]


def generated_log(prescriptions: int, *, seed: int = 1, dirty_rate: float = 0.0) -> Log:
    """A log of lifecycles, some records of which are not as they should be."""
    log = Log()
    events = lifecycles(prescriptions, seed, date(2026, 1, 5), 28)
    for made in records(events, dirty_rate=dirty_rate, seed=seed):
        log.append(made.key, made.value, made.headers, made.partition_shift)
    return log


@dataclass(slots=True)
class FakeWorker:
    """A worker without its consumer: it owns partitions, holds claims and projects what it is handed."""

    runner: Runner
    claims: dict[int, Claim]
    counts: Counts = field(default_factory=Counts)

    def project(self, records: Sequence[Record]) -> None:
        """Project one poll."""
        next_offsets = {record.position.partition: record.position.offset + 1 for record in records}
        self._project(Batch([DECODE(r) for r in records], next_offsets))

    def _project(self, batch: Batch) -> None:
        while batch.next_offsets:
            try:
                counts = self.runner.project_batch(self.claims, batch)
            except DecisionsDue as due:
                before, batch = batch.cut(due.offsets, self.claims)
                self._project(before)
                self.apply_decisions()
            else:
                self.counts.add(counts)
                for number, offset in batch.next_offsets.items():
                    self.claims[number] = self.claims[number].moved_to(offset)
                return

    def apply_decisions(self) -> None:
        """Give new decisions their place and apply those whose place has come."""
        connection, schema = self.runner.connection, self.runner.read_model.schema
        new = [d for d in decisions.waiting(connection, schema, TOPIC, self.claims) if d.number is None]
        decisions.give_effect(connection, new)
        for decision in decisions.waiting(connection, schema, TOPIC, self.claims):
            place, claim = decision.effect_offset, self.claims[decision.stream_partition]
            if place is not None and place < claim.next_offset:
                self.runner.apply_late(self.claims, decision)
                self.claims[claim.partition] = replace(claim, epoch=claim.epoch + 1)
            elif place == claim.next_offset:
                self.counts.add(self.runner.apply(self.claims, decision))


@contextmanager
def worker(
    database_url: str,
    partitions: Iterable[int] = range(PARTITIONS),
    *,
    remembered: int = 1000,
    schema: str = SCHEMA,
    log: Log | None = None,
    keep_going: bool = False,
) -> Iterator[FakeWorker]:
    """A worker that has claimed its partitions."""
    with connect(database_url) as connection:
        claims = {
            number: checkpoints.claim(connection, schema, TOPIC, number, owner="test", topic_id=None, first=0)
            for number in partitions
        }
        by_position = {record.position: record for record in log.records()} if log else {}

        def lookup(positions: Iterable[Position]) -> dict[Position, Record]:
            return {position: by_position[position] for position in positions if position in by_position}

        recent = RecentStreams(remembered * STREAM_BYTES)
        yield FakeWorker(Runner(connection, ReadModel(schema), DECODE, recent, lookup, keep_going), claims)


def polls(log: Log, partitions: Iterable[int], random: Random, largest: int) -> Iterator[list[Record]]:
    """Cut partitions into polls of random sizes, each with records of one or more partitions in their order."""
    left = {number: list(log.partitions[number]) for number in partitions}
    while any(left.values()):
        poll: list[Record] = []
        for number in random.sample(sorted(left), random.randint(1, len(left))):
            size = random.randint(1, largest)
            poll += left[number][:size]
            left[number] = left[number][size:]
        if poll:
            yield poll


def project_all(
    database_url: str, log: Log, *, seed: int, largest: int, remembered: int = 1000, keep_going: bool = False
) -> Counts:
    """Project a whole log with one worker, in polls of random sizes."""
    with worker(database_url, remembered=remembered, keep_going=keep_going) as one:
        for poll in polls(log, range(PARTITIONS), Random(seed), largest):
            one.project(poll)
        return one.counts


def decide_about(database_url: str, action: str, record: tuple[str, int, int, str]) -> int:
    """Record an operator's decision about a record: topic, partition, offset and stream key. Return its id."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "INSERT INTO rxstore.decision (action, topic, partition_number, record_offset, stream_key, "
            "stream_partition, why, decided_by) VALUES (%s, %s, %s, %s, %s, %s, 'a test', 'test') RETURNING id",
            (action, *record, DECODE.partition_of(record[3].encode())),
        ).fetchone()
    assert row is not None
    return int(row[0])


def folded(log: Log) -> dict[str, FoldedStream]:
    """The truth: the pure fold of the log, stream by stream, no batch and no database in it."""
    arrivals = by_stream(DECODE(record) for record in log.records())
    return {
        key: fold(Stream(key, items[0].record.position.partition), items) for key, items in arrivals.by_stream.items()
    }


def rows(database_url: str, schema: str = SCHEMA) -> dict[str, list[str]]:
    """Every row of the read model as text, table by table; checkpoints aside."""
    with psycopg.connect(database_url) as connection:
        connection.execute("SET timezone = 'UTC'")
        return {
            table: [row[0] for row in connection.execute(f"SELECT t::text FROM {schema}.{table} t ORDER BY 1")]
            for table in ROWS
        }
