"""A member of the group: which partitions Kafka gave to this worker, and which it has claimed in the database.

Kafka calls the listener on its own I/O thread, where no database work may happen and where a partition without a
position raises before the poll loop sees it. The listener therefore only notes, seeks and pauses; the poll loop then
claims the partition's checkpoint, seeks to it and resumes.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor


class Assignor(CooperativeStickyAssignor):  # type: ignore[misc] # kafka-python ships no types
    """Cooperative-sticky, which tells the group nothing about partitions that this member has lost.

    The client's own goes on announcing them after it fell out of the group. Whoever leads the group then waits for
    this member to give them up, which it has nothing left to do for: they stand still, with nobody reading them, until
    somebody joins or leaves. The self-test found it, twice in a thousand seeds on a crowded machine.
    """

    def forget(self) -> None:
        """Own nothing any more."""
        self.member_assignment = None


class Member(KafkaConsumer):  # type: ignore[misc] # kafka-python ships no types
    """A consumer that finishes joining its group when it has begun to.

    The client's own joins again when the leader sees the topic's metadata change, and forgets that it wanted to as soon
    as it has shared out the partitions. If that happens between two polls, as on a machine that is slow for a moment,
    nobody takes in what it was given itself: it has nothing, sends no heartbeats, is put out of the group, and never
    joins again. Java's client asks whether a join is under way too. The self-test found it, once in a thousand seeds.
    """

    def poll(self, *args: Any, **kwargs: Any) -> dict[TopicPartition, list[Any]]:  # noqa: ANN401 - as the client has it
        """Fetch records, and go on with a join that is under way."""
        if self._coordinator.rejoining:
            self._coordinator.request_rejoin()
        polled: dict[TopicPartition, list[Any]] = super().poll(*args, **kwargs)
        return polled


class Assignment(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python ships no types
    """Partitions that came and went since the poll loop last looked."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        strategies = consumer.config["partition_assignment_strategy"]
        self._assignors = [strategy for strategy in strategies if isinstance(strategy, Assignor)]
        self._lock = Lock()
        self._came: set[TopicPartition] = set()
        self._went: set[TopicPartition] = set()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Hold new partitions still until the poll loop has claimed them."""
        with self._lock:
            for partition in assigned:
                self._consumer.seek(partition, 0)
                self._consumer.pause(partition)
                self._came.add(partition)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Note what the worker has to let go of."""
        with self._lock:
            self._came.difference_update(revoked)
            self._went.update(revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """Note what was taken from the worker; its next write there fails the fencing comparison anyway.

        The client calls this before it joins again.
        """
        for assignor in self._assignors:
            assignor.forget()
        self.on_partitions_revoked(lost)

    def changes(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        """Return, once, the partitions that went and then those that came since the last call."""
        with self._lock:
            went, came = self._went, self._came
            self._went, self._came = set(), set()
            return went, came

    def put_back(self, partitions: Iterable[TopicPartition]) -> None:
        """Return partitions that could not be claimed now, for the next look; they stay paused."""
        with self._lock:
            self._came.update(set(partitions) & set(self._consumer.assignment()))
