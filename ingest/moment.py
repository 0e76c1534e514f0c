"""Where each partition of the log ended at a time: what ``rebuild stage --until`` builds and ``explain --at`` tells.

There is one rule. **Of a partition, everything up to the first record that is stamped later than the time had come by
then, and nothing from there on.** The log's own order decides, so that what is shown is a state that really stood; the
timestamps only say where to cut it. A record cannot be stamped before it is sent, so whatever stands at or behind one
that is stamped later had not come. Records that publishers stamped long ago and sent late change nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError

from ingest.lookup import record_of
from projector.batch import Record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
ASK_TIMEOUT_MS = 10_000
POLL_TIMEOUT_MS = 500
PATIENCE_SECONDS = 10.0
FIRST_LOOK_RECORDS = 1
READ_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class End:
    """The offset at which a partition ends, and when the record there is stamped; None where the log has none."""

    offset: int
    next_at: datetime | None


# Where the partitions of a topic, by number, ended at a time.
EndsAt = Callable[[str, Iterable[int], datetime], Mapping[int, End]]


def is_later(record: Record, at: datetime) -> bool:
    """Whether a record is stamped later than a time; stamps are whole milliseconds."""
    return record.timestamp_ms > (at - EPOCH) // MILLISECOND


def stamped(record: Record) -> datetime:
    """Return when a record is stamped."""
    return EPOCH + record.timestamp_ms * MILLISECOND


def first_later(records: Iterable[Record], at: datetime) -> End | None:
    """Return where the records of a partition, in their order, end at a time; None when none is stamped later."""
    return next((End(one.position.offset, stamped(one)) for one in records if is_later(one, at)), None)


def ends_at(make_consumer: Callable[[], KafkaConsumer]) -> EndsAt:
    """Return a function that asks the log; it raises a KafkaError when the brokers do not answer in time.

    ``make_consumer`` makes a consumer without a group.
    """

    def ask(topic: str, numbers: Iterable[int], at: datetime) -> dict[int, End]:
        partitions = [TopicPartition(topic, number) for number in sorted(set(numbers))]
        consumer = make_consumer()
        try:
            after = max(0, (at - EPOCH) // MILLISECOND + 1)
            found = consumer.offsets_for_times(dict.fromkeys(partitions, after), timeout_ms=ASK_TIMEOUT_MS)
            ends = consumer.end_offsets(partitions, timeout_ms=ASK_TIMEOUT_MS)
            return {
                partition.partition: _end(consumer, partition, found.get(partition), ends[partition], at)
                for partition in partitions
            }
        finally:
            consumer.close(autocommit=False)

    return ask


def _end(consumer: KafkaConsumer, partition: TopicPartition, found: object, end: int, at: datetime) -> End:
    """Read from where the broker's index points to the first record whose own stamp is later.

    Mostly that is the first one read. The index may point before it: at a record of a transaction that was aborted, or,
    with a broker that goes by its own clock, at one that came later than it is stamped.
    """
    offset = getattr(found, "offset", None)
    if offset is None or offset >= end:
        return End(end, None)
    consumer.assign([partition])
    consumer.seek(partition, offset)
    until = time.monotonic() + PATIENCE_SECONDS
    most = FIRST_LOOK_RECORDS
    while (consumer.position(partition, timeout_ms=POLL_TIMEOUT_MS) or 0) < end:
        if time.monotonic() > until:
            raise KafkaTimeoutError(f"records of {partition.topic}[{partition.partition}] did not come")
        records = consumer.poll(timeout_ms=POLL_TIMEOUT_MS, max_records=most).get(partition, [])
        later = first_later((record_of(record) for record in records), at)
        if later is not None:
            return later
        if records:
            most, until = READ_AT_ONCE, time.monotonic() + PATIENCE_SECONDS
    return End(end, None)
