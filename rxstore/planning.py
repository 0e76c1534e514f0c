"""What a rebuild would read, take and change, before anything is: asked of the brokers, the database and a sample."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from sqlalchemy import Engine, text

from ingest.lookup import record_of
from projector import checkpoints
from projector.batch import Record
from projector.definition import DEFINITION, ddl, hashes, major
from projector.generations import Generation
from projector.read_model import ReadModel
from projector.recent import RecentStreams
from projector.runner import Batch, Runner, connect
from rxstore import broker, store
from rxstore.errors import ServerUnavailable
from rxstore.fleet import REMEMBERED_BYTES, make_reader
from rxstore.settings import Settings
from rxstore.store import Log

SAMPLE_RECORDS = 10_000
PATIENCE_SECONDS = 10.0
# From so many events on the live generation says how much room one takes.
ENOUGH_EVENTS = 10_000
NO_DECISION_IS_DUE = 2**62


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What there is to read of one partition; ``oldest`` is the time of the first record that is still there."""

    partition: int
    first_offset: int
    end_offset: int
    events: int
    bytes: int | None
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Sample:
    """So many events, of the one partition with most of them, were projected in earnest and rolled back."""

    events: int
    seconds: float
    bytes: int

    @property
    def rate(self) -> float:
        """Events a second, by one worker."""
        return self.events / self.seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rebuild would come to; None stands for what could not be found out."""

    live: str
    live_definition: str
    definition: str
    topic: str
    changes: tuple[str, ...]
    needed: bool
    partitions: tuple[PartitionPlan, ...]
    workers: int
    sample: Sample | None
    space_bytes: int | None
    warnings: tuple[str, ...] = field(default=())

    @property
    def events(self) -> int:
        """How many there are to read, at most: offsets have holes."""
        return sum(one.events for one in self.partitions)

    @property
    def bytes(self) -> int | None:
        """How much the brokers hold of it."""
        sizes = [one.bytes for one in self.partitions]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def seconds(self) -> float | None:
        """How long it takes with the workers, if they do not hinder each other."""
        return None if self.sample is None else self.events / (self.sample.rate * self.workers)

    def as_json(self) -> dict[str, Any]:
        """Return one document for a script."""
        return {
            **{name: getattr(self, name) for name in ("live", "live_definition", "definition", "topic", "needed")},
            "changes": self.changes,
            "warnings": self.warnings,
            "events": self.events,
            "bytes": self.bytes,
            "workers": self.workers,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "space_bytes": self.space_bytes,
            "sample": None if self.sample is None else {**asdict(self.sample), "rate": round(self.sample.rate)},
            "partitions": [asdict(one) for one in self.partitions],
        }


def plan(settings: Settings, engine: Engine, workers: int | None) -> Plan:
    """Look at everything that a rebuild with these settings would meet. Nothing is changed."""
    live = store.live_generation(engine)
    log = store.describe_log(settings)
    count = min(workers or os.cpu_count() or 1, log.partitions)
    with _reader(settings) as consumer:
        partitions = _partitions(settings, log, consumer)
        fullest = max(partitions, key=lambda one: one.events)
        sample = _sample(settings, log, _read(consumer, log, fullest.partition, SAMPLE_RECORDS))
    changes, needed = _changes(settings, live, log)
    return Plan(
        live=live.name,
        live_definition=live.definition,
        definition=DEFINITION,
        topic=log.name,
        changes=changes,
        needed=needed,
        partitions=partitions,
        workers=count,
        sample=sample,
        space_bytes=_space(engine, live, sum(one.events for one in partitions), sample),
        warnings=_warnings(partitions),
    )


def _changes(settings: Settings, live: Generation, log: Log) -> tuple[tuple[str, ...], bool]:
    """Return what a new generation would have otherwise than the live one, and whether that asks for a rebuild.

    Of a definition's minor part, the contract and the views none does: what was refused before is retried in place.
    """
    must: list[str] = []
    may: list[str] = []
    if live.definition != DEFINITION:
        kind = must if major(live.definition) != major(DEFINITION) else may
        kind.append(f"definition {live.definition} -> {DEFINITION}")
    ours = hashes()
    if live.hashes["tables"] != ours["tables"]:
        must.append(f"tables {live.hashes['tables']} -> {ours['tables']}")
    may += [
        f"{name} {live.hashes[name]} -> {ours[name]}"
        for name in ("contract", "views")
        if live.hashes[name] != ours[name]
    ]
    for name, value in store.meaning(settings).items():
        if live.settings.get(name, value) != value:
            must.append(f"{name} {live.settings[name]} -> {value}")
    if live.topic != log.name:
        must.append(f"topic {live.topic} -> {log.name}")
    elif (reason := store.other_log(live, log)) is not None:
        must.append(reason.partition(":")[0])
    return tuple(must + may), bool(must)


def _warnings(partitions: Sequence[PartitionPlan]) -> tuple[str, ...]:
    taken = [one for one in partitions if one.first_offset > 0]
    if not taken:
        return ()
    return (
        f"{len(taken)} partitions no longer begin at offset 0: up to {sum(one.first_offset for one in taken):,} events "
        "were taken away (retention, or somebody deleted them) and cannot be folded again",
    )


# the topic ------------------------------------------------------------------------------------------------------------


def _reader(settings: Settings) -> _Closing:
    return _Closing(make_reader(settings.kafka()))


class _Closing:
    """Closes a consumer after the block without committing anything."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    def __enter__(self) -> KafkaConsumer:
        return self._consumer

    def __exit__(self, *_: object) -> None:
        self._consumer.close(autocommit=False)


def _partitions(settings: Settings, log: Log, consumer: KafkaConsumer) -> tuple[PartitionPlan, ...]:
    sizes = _sizes(settings, log.name)
    return tuple(
        PartitionPlan(
            partition=number,
            first_offset=first,
            end_offset=log.end_offsets[number],
            events=log.end_offsets[number] - first,
            bytes=sizes.get(number),
            oldest=_oldest(consumer, log, number),
        )
        for number, first in sorted(log.first_offsets.items())
    )


def _sizes(settings: Settings, topic: str) -> dict[int, int]:
    """Return the bytes of each partition as the largest replica has them; nothing where brokers do not tell."""
    found: dict[int, int] = {}
    try:
        with broker.admin_client(settings) as admin:
            described = admin.describe_log_dirs([topic])
    except (KafkaError, ServerUnavailable, ValueError):
        return found
    for directory in (each for one in described for each in one["log_dirs"]):
        for part in (each for one in directory["topics"] if one["name"] == topic for each in one["partitions"]):
            number = int(part["partition_index"])
            found[number] = max(found.get(number, 0), int(part["partition_size"]))
    return found


def _oldest(consumer: KafkaConsumer, log: Log, number: int) -> datetime | None:
    records = _read(consumer, log, number, 1)
    return datetime.fromtimestamp(records[0].timestamp_ms / 1000, UTC) if records else None


def _read(consumer: KafkaConsumer, log: Log, number: int, most: int) -> list[Record]:
    """Read the first records of a partition."""
    partition, end = TopicPartition(log.name, number), log.end_offsets[number]
    consumer.assign([partition])
    consumer.seek(partition, log.first_offsets[number])
    found: list[Record] = []
    until = time.monotonic() + PATIENCE_SECONDS
    while len(found) < most and time.monotonic() < until:
        if (consumer.position(partition) or 0) >= end:
            break
        polled = consumer.poll(timeout_ms=200, max_records=most - len(found))
        found += [record_of(one) for one in polled.get(partition, [])]
    return found[:most]


# the sample -----------------------------------------------------------------------------------------------------------


def _sample(settings: Settings, log: Log, records: Sequence[Record]) -> Sample | None:
    """Decode and project records as a worker does, into tables of a transaction that is rolled back.

    None where there is nothing to read, or where this role may make no schema.
    """
    if not records:
        return None
    with connect(settings.database()) as session:
        try:
            with session.transaction(force_rollback=True):
                return _project(settings, log, records, session)
        except psycopg.errors.InsufficientPrivilege:
            return None


def _project(settings: Settings, log: Log, records: Sequence[Record], session: psycopg.Connection[Any]) -> Sample:
    schema = f"rx_plan_{os.getpid()}"
    session.execute(f"CREATE SCHEMA {schema}".encode())
    session.execute(f"SET LOCAL search_path = {schema}".encode())
    for statement in ddl():
        session.execute(statement.encode())
    session.execute("SET LOCAL search_path = DEFAULT")
    decode = store.decoder(store.meaning(settings), log.partitions)
    number, first = records[0].position.partition, records[0].position.offset
    claim = checkpoints.claim(session, schema, log.name, number, owner="plan", topic_id=None, first=first)
    session.execute(f"UPDATE {schema}.checkpoint SET decisions_applied = {NO_DECISION_IS_DUE}".encode())
    runner = Runner(session, ReadModel(schema), decode, RecentStreams(REMEMBERED_BYTES), lambda _: {}, True)
    began = time.monotonic()
    # One batch: the temporary tables of a batch are emptied by its commit, and here there is none.
    end = records[-1].position.offset + 1
    runner.project_batch({number: claim}, Batch([decode(record) for record in records], {number: end}))
    seconds = time.monotonic() - began
    row = session.execute(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace",
        (schema,),
    ).fetchone()
    return Sample(len(records), seconds, int(row[0]) if row else 0)


def _space(engine: Engine, live: Generation, events: int, sample: Sample | None) -> int | None:
    """Estimate what the new tables take: as much for each event as the live ones do, or as the sample did."""
    question = (
        f"SELECT (SELECT coalesce(sum(next_offset), 0) FROM {live.schema}.checkpoint), "
        "(SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' "
        "AND relnamespace = to_regnamespace(:schema))"
    )
    with engine.connect() as connection:
        folded, size = connection.execute(text(question), {"schema": live.schema}).one()
    if folded >= ENOUGH_EVENTS:
        return round(int(size) / int(folded) * events)
    return None if sample is None else round(sample.bytes / sample.events * events)
