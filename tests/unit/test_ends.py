"""A worker that builds a generation as of a time reads each partition to its end and lets it rest there."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition

from ingest.consumer import Worker
from projector.checkpoints import Claim
from projector.read_model import ReadModel

PARTITION = TopicPartition("events", 3)


@dataclass(slots=True)
class Consumer:
    """What the loop asks of Kafka's client: where it stands, and to let partitions rest."""

    reached: int
    resting: set[TopicPartition] = field(default_factory=set)

    def assignment(self) -> set[TopicPartition]:
        return {PARTITION}

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        return self.reached

    def pause(self, *partitions: TopicPartition) -> None:
        self.resting |= {*partitions}


def worker(end: int | None, next_offset: int = 0) -> Worker:
    made = Worker(
        topic="events",
        partitions=4,
        topic_id=None,
        read_model=ReadModel("rx_g2"),
        decode=lambda record: record,
        make_consumer=lambda: None,
        lookup=lambda positions: {},
        connect=lambda: None,
        owner="test",
        batch_records=10,
        remembered_bytes=0,
        stopping=Event(),
        keep_going=True,
        ends=None if end is None else {3: end},
    )
    made._claims[3] = Claim("events", 3, next_offset, 1)
    return made


def polled(*offsets: int) -> dict[TopicPartition, list[Any]]:
    shape = {
        "topic": "events",
        "partition": 3,
        "timestamp": 0,
        "key": b"",
        "value": b"",
        "headers": (),
        "leader_epoch": 5,
    }
    return {PARTITION: [SimpleNamespace(offset=offset, **shape) for offset in offsets]}


def read(end: int | None, *offsets: int, reached: int) -> tuple[list[int], dict[int, int], bool]:
    """What a poll brings: which records, where the partition stands after it, and whether it rests."""
    consumer = Consumer(reached)
    batch = worker(end)._batch(consumer, polled(*offsets))
    return [item.position.offset for item in batch.items], dict(batch.next_offsets), PARTITION in consumer.resting


@pytest.mark.parametrize(
    ("end", "offsets", "reached", "expected"),
    [
        (None, (0, 1, 2), 3, ([0, 1, 2], {3: 3}, False)),
        (9, (0, 1, 2), 3, ([0, 1, 2], {3: 3}, False)),
        (3, (0, 1, 2), 3, ([0, 1, 2], {3: 3}, True)),
        (2, (0, 1, 2), 3, ([0, 1], {3: 2}, True)),
        (5, (0, 1, 7), 8, ([0, 1], {3: 5}, True)),
        (4, (), 6, ([], {3: 4}, True)),
    ],
    ids=["no end", "before it", "at it", "beyond it", "over a hole at it", "markers only"],
)
def test_nothing_is_read_from_the_end_on_and_the_partition_rests_there(end, offsets, reached, expected):
    assert read(end, *offsets, reached=reached) == expected


def test_a_partition_that_is_complete_stays_where_it_is_wherever_the_client_stands():
    for reached in (0, 4, 99):
        batch = worker(4, next_offset=4)._batch(Consumer(reached), {})
        assert (batch.items, batch.next_offsets) == ([], {})
