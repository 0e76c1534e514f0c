"""Whether the log that the broker serves is the one that the checkpoints describe: its id, and its leader epochs.

kafka-python knows both and checks positions by leader epoch (KIP-320), but has no public way to ask for the one or to
hand in the other. This is the only module that reaches for them.
"""

from __future__ import annotations

from collections.abc import Mapping

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import LogTruncationError

VALIDATION_POLLS = 3
VALIDATION_POLL_MS = 200
NOWHERE = "00000000-0000-0000-0000-000000000000"  # what brokers say that know no topic ids


def topic_id(consumer: KafkaConsumer, topic: str) -> str | None:
    """Return the id of the topic as the client last heard it; None from a broker without topic ids."""
    found = consumer._cluster.topic_id(topic)
    return None if found is None or str(found) == NOWHERE else str(found)


def seek(consumer: KafkaConsumer, partition: TopicPartition, offset: int, leader_epoch: int | None) -> None:
    """Seek to ``offset``, of which we know under which leader the record before it was written.

    When another leader has taken over since, the client asks it where that epoch ended, and the next poll raises
    LogTruncationError if that is before ``offset``: the log was cut and has grown again.
    """
    if leader_epoch is None:
        consumer.seek(partition, offset)
    else:
        consumer._subscription.seek(partition, OffsetAndMetadata(offset, "", leader_epoch))


def cut_since(
    consumer: KafkaConsumer, positions: Mapping[TopicPartition, tuple[int, int | None]]
) -> dict[TopicPartition, int | None]:
    """Return which of these positions (offset and leader epoch) the log no longer has, with where it parts from ours.

    ``consumer`` has no group; nothing is read.
    """
    consumer.assign(list(positions))
    consumer.pause(*positions)
    for partition, (offset, leader_epoch) in positions.items():
        seek(consumer, partition, offset, leader_epoch)
    cut: dict[TopicPartition, int | None] = {}
    for _ in range(VALIDATION_POLLS):
        try:
            consumer.poll(timeout_ms=VALIDATION_POLL_MS)
        except LogTruncationError as error:
            for partition, diverged in error.divergent_offsets.items():
                cut[partition] = None if diverged is None else diverged.offset
    return cut
