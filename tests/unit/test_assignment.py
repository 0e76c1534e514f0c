"""What a member of the group says it owns decides whether every partition is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kafka import TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment

from ingest.assignment import Assignment, Assignor

TOPIC = "events"
PARTITIONS = range(4)


class Cluster:
    """Four partitions of one topic."""

    def topics(self) -> set[str]:
        return {TOPIC}

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(PARTITIONS)


class Consumer:
    """As much of a consumer as the listener asks."""

    def __init__(self, assignor: Any) -> None:
        self.config = {"partition_assignment_strategy": (assignor,)}


def fallen_out(assignor: Any) -> Any:
    """Let a member have all partitions, lose them all, and say what it then joins again with."""
    listener = Assignment(Consumer(assignor))
    assignor.on_assignment(ConsumerProtocolAssignment(1, [(TOPIC, list(PARTITIONS))], b""), 7)
    listener.on_partitions_lost([TopicPartition(TOPIC, number) for number in PARTITIONS])
    return assignor.metadata({TOPIC})


def given_to_anybody(first: Any, second: Any) -> list[int]:
    """Return which partitions somebody has after the two have joined, one of them leading."""
    members = [SimpleNamespace(member_id="one", metadata=first), SimpleNamespace(member_id="two", metadata=second)]
    assigned = Assignor().assign(Cluster(), members)
    return sorted(tp.partition for assignment in assigned.values() for tp in assignment.partitions())


def test_a_member_that_fell_out_of_the_group_says_it_owns_nothing():
    assert fallen_out(Assignor()).owned_partitions == []


def test_every_partition_is_given_to_somebody_when_a_member_falls_out_while_another_joins():
    assert given_to_anybody(fallen_out(Assignor()), Assignor().metadata({TOPIC})) == list(PARTITIONS)


def test_the_client_s_own_assignor_leaves_partitions_to_nobody():
    """Should this fail after an upgrade of the client, ``Assignor`` is needed no more."""
    stale = fallen_out(CooperativeStickyAssignor())
    assert len(given_to_anybody(stale, Assignor().metadata({TOPIC}))) < len(PARTITIONS)


def test_a_member_that_stays_says_what_it_owns():
    assignor = Assignor()
    assignor.on_assignment(ConsumerProtocolAssignment(1, [(TOPIC, [1, 2])], b""), 7)
    (owned,) = assignor.metadata({TOPIC}).owned_partitions
    assert (owned.topic, owned.partitions) == (TOPIC, [1, 2])
