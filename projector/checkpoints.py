"""Where each partition resumes, saved with the rows it describes; and who may move it.

A worker *claims* a partition when Kafka assigns it, which raises the epoch. Every batch then moves the checkpoint
first, and only from the offset and epoch that the worker believes in: a worker that was overtaken, a commit whose
acknowledgement was lost and a deliberate rewind all fail that one comparison before they write a row. Kafka's own
committed offsets are never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg import Connection, Cursor


class FencingLost(Exception):
    """Another worker has claimed the partition, or somebody moved its checkpoint: drop the assignment and rejoin."""


class Held(Exception):
    """A batch would go beyond where its partitions are held for a moment: ``offsets`` says where to cut it."""

    def __init__(self, offsets: Mapping[int, int]) -> None:
        super().__init__(f"partitions are held at {dict(offsets)}")
        self.offsets = offsets


class TopicMismatch(Exception):
    """The topic is not the one that the checkpoint describes: stop before anything is folded from the wrong log."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A partition that this worker owns: where it stands and under which epoch.

    ``leader_epoch`` is Kafka's own: that of the leader which wrote the record before ``next_offset``, when known.
    """

    topic: str
    partition: int
    next_offset: int
    epoch: int
    leader_epoch: int | None = None

    def moved_to(self, next_offset: int) -> Claim:
        """Return the claim after a batch."""
        return replace(self, next_offset=next_offset)


def claim(
    connection: Connection[Any],
    schema: str,
    topic: str,
    partition: int,
    *,
    owner: str,
    topic_id: str | None,
    first: int,
) -> Claim:
    """Take a partition over, making its checkpoint at offset ``first`` when it has none.

    Raises TopicMismatch when the checkpoint was written for a topic with another id (recreated under the same name).
    """
    row = connection.execute(
        f"INSERT INTO {schema}.checkpoint AS c (topic, partition_number, next_offset, epoch, owner, topic_id) "
        "VALUES (%s, %s, %s, 1, %s, %s) "
        "ON CONFLICT (topic, partition_number) DO UPDATE SET epoch = c.epoch + 1, owner = excluded.owner, "
        "topic_id = coalesce(c.topic_id, excluded.topic_id) "
        "RETURNING next_offset, epoch, topic_id, leader_epoch",
        (topic, partition, first, owner, topic_id),
    ).fetchone()
    if row is None:
        raise FencingLost(f"the checkpoint of {topic}[{partition}] could not be claimed")
    next_offset, epoch, known_id, leader_epoch = row
    if topic_id is not None and known_id != topic_id:
        raise TopicMismatch(
            f"topic {topic} has another id than the one that {schema} was built from: it was deleted and made again. "
            "'rxstore diagnose' says what helps"
        )
    return Claim(topic, partition, next_offset, epoch, leader_epoch)


def move(
    cursor: Cursor[Any],
    schema: str,
    claims: Mapping[int, Claim],
    next_offsets: Mapping[int, int],
    leader_epochs: Mapping[int, int],
) -> None:
    """Move the checkpoints of a batch, in the order of their partitions; FencingLost when any is not as believed.

    Raises Held when the batch goes beyond where somebody who compares generations holds a partition at this moment.
    """
    bounds: dict[int, int] = {}
    for partition in sorted(next_offsets):
        held = claims[partition]
        cursor.execute(
            f"UPDATE {schema}.checkpoint SET next_offset = %s, leader_epoch = %s, moved_at = now() "
            "WHERE topic = %s AND partition_number = %s AND next_offset = %s AND epoch = %s "
            "RETURNING CASE WHEN hold_until > clock_timestamp() THEN hold_at END",
            (
                next_offsets[partition],
                leader_epochs.get(partition),
                held.topic,
                partition,
                held.next_offset,
                held.epoch,
            ),
            prepare=True,
        )
        row = cursor.fetchone()
        if row is None:
            raise FencingLost(
                f"{held.topic}[{partition}] is no longer at offset {held.next_offset} under epoch {held.epoch}: "
                "another worker took it over, or its checkpoint was moved"
            )
        if row[0] is not None and row[0] < next_offsets[partition]:
            bounds[partition] = row[0]
    if bounds:
        raise Held(bounds)


def still_hold(connection: Connection[Any], schema: str, claims: Mapping[int, Claim]) -> bool:
    """Whether every claim is as believed: asked after a serialization failure, which alone does not mean fenced."""
    rows = connection.execute(
        f"SELECT topic, partition_number, next_offset, epoch FROM {schema}.checkpoint WHERE partition_number = ANY(%s)",
        (sorted(claims),),
    ).fetchall()
    stored = {(topic, partition): (next_offset, epoch) for topic, partition, next_offset, epoch in rows}
    return all(stored.get((c.topic, c.partition)) == (c.next_offset, c.epoch) for c in claims.values())


def caught_up(connection: Connection[Any], schema: str, claims: Mapping[int, Claim], at: datetime) -> None:
    """Record that these partitions had been read to their ends at ``at`` (the database's clock, read before asking)."""
    for partition in sorted(claims):
        held = claims[partition]
        connection.execute(
            f"UPDATE {schema}.checkpoint SET caught_up_at = %s "
            "WHERE topic = %s AND partition_number = %s AND epoch = %s AND next_offset = %s "
            "AND (caught_up_at IS NULL OR caught_up_at < %s)",
            (at, held.topic, partition, held.epoch, held.next_offset, at),
            prepare=True,
        )
