"""Reads single records from the log by their positions: for a rebuild of one prescription, its story, a decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError

from projector.batch import Position, Record

POLL_TIMEOUT_MS = 500
PATIENCE_SECONDS = 10.0

# A publisher may write any 64 bits as a record's timestamp: those of the years 1 to 9999, in milliseconds from 1970.
FIRST_TIMESTAMP = -62_135_596_800_000
LAST_TIMESTAMP = 253_402_300_799_999

Lookup = Callable[[Iterable[Position]], dict[Position, Record]]


def record_of(polled: Any) -> Record:  # noqa: ANN401 - kafka-python's ConsumerRecord
    """Return what Kafka's client hands us as a record of ours."""
    timestamp = polled.timestamp
    if not FIRST_TIMESTAMP <= timestamp <= LAST_TIMESTAMP:
        timestamp = min(max(timestamp, FIRST_TIMESTAMP), LAST_TIMESTAMP)
    return Record(
        Position(polled.topic, polled.partition, polled.offset),
        timestamp,
        polled.key,
        polled.value,
        tuple(polled.headers),
    )


def lookup(make_consumer: Callable[[], KafkaConsumer]) -> Lookup:
    """Return a function that reads records by position; those that the log no longer has are missing in its answer.

    It raises a KafkaError when the brokers do not answer in time: nobody knows then what the log has.
    ``make_consumer`` makes a consumer without a group.
    """

    def read(positions: Iterable[Position]) -> dict[Position, Record]:
        wanted = sorted(set(positions))
        found: dict[Position, Record] = {}
        if not wanted:
            return found
        consumer = make_consumer()
        try:
            for (topic, partition), group in groupby(wanted, key=lambda position: (position.topic, position.partition)):
                _read_partition(consumer, TopicPartition(topic, partition), [p.offset for p in group], found)
        finally:
            consumer.close(autocommit=False)
        return found

    return read


def _read_partition(
    consumer: KafkaConsumer, partition: TopicPartition, offsets: list[int], found: dict[Position, Record]
) -> None:
    """Read on from one wanted offset to the next where they stand near each other, seek where they do not.

    Raises KafkaTimeoutError when the broker does not answer: that a record is not in the log must be known.
    """
    consumer.assign([partition])
    first = consumer.beginning_offsets([partition])[partition]
    end = consumer.end_offsets([partition])[partition]
    wanted = [offset for offset in offsets if first <= offset < end]
    until = time.monotonic() + PATIENCE_SECONDS
    while wanted:
        if time.monotonic() > until:
            raise KafkaTimeoutError(f"{len(wanted)} records of {partition.topic}[{partition.partition}] did not come")
        consumer.seek(partition, wanted[0])
        records = consumer.poll(timeout_ms=POLL_TIMEOUT_MS, max_records=500).get(partition, [])
        if not records:
            reached = consumer.position(partition, timeout_ms=POLL_TIMEOUT_MS) or 0
            wanted = [offset for offset in wanted if offset >= reached]
            continue
        until = time.monotonic() + PATIENCE_SECONDS
        reached = records[-1].offset
        asked = set(wanted)
        for record in records:
            if record.offset in asked:
                mine = record_of(record)
                found[mine.position] = mine
        # A wanted offset that was passed without a record is a hole: an aborted transaction, or a marker.
        wanted = [offset for offset in wanted if offset > reached]
