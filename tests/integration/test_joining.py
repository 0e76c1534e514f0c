"""A worker that begins to join its group finishes it, whatever happens between two of its polls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from uuid import uuid4

from kafka import KafkaAdminClient, KafkaConsumer

from ingest.assignment import Assignor, Member
from rxstore import topics

PARTITIONS = 4
PATIENCE_SECONDS = 30.0
POLL_MS = 500
HEARTBEAT_MS = 300
LONG_ENOUGH_TO_JOIN_SECONDS = 8.0


@contextmanager
def member(kind: type[KafkaConsumer], bootstrap_servers: str, topic: str) -> Iterator[KafkaConsumer]:
    """Be in the topic's group; the topic's metadata are asked for twice a second."""
    consumer = kind(
        bootstrap_servers=bootstrap_servers,
        group_id=f"group-of-{topic}",
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        partition_assignment_strategy=(Assignor(),),
        metadata_max_age_ms=500,
        heartbeat_interval_ms=HEARTBEAT_MS,
    )
    try:
        consumer.subscribe([topic])
        yield consumer
    finally:
        consumer.close(autocommit=False)


@contextmanager
def polling(consumer: KafkaConsumer) -> Iterator[None]:
    """Have a consumer poll, as in a process of its own."""
    ending = Event()

    def poll() -> None:
        while not ending.is_set():
            consumer.poll(timeout_ms=POLL_MS)

    thread = Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def until(done: Callable[[], bool], *, meanwhile: Callable[[], object] = lambda: time.sleep(0.02)) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < limit, "it did not happen in time"
        meanwhile()


def comes_to_its_partitions(kind: type[KafkaConsumer], broker: str, admin: KafkaAdminClient) -> bool:
    """Let a leader join again since its topic has come, and be given partitions only after its poll has returned.

    Return whether it has any after some more polls.
    """
    topic = f"joining-{uuid4().hex}"
    with member(kind, broker, topic) as leader, member(Member, broker, topic) as other:
        coordinator = leader._coordinator

        def poll() -> None:
            leader.poll(timeout_ms=POLL_MS)

        until(coordinator.stable, meanwhile=poll)
        with polling(other):
            until(lambda: other._coordinator.stable() and coordinator.stable(), meanwhile=poll)
        assert coordinator._is_leader
        topics.create(admin, topic, PARTITIONS, 1_000_000)
        until(coordinator.rebalance_in_progress, meanwhile=poll)
        with polling(other):
            until(lambda: coordinator._join_task.is_done)
            limit = time.monotonic() + LONG_ENOUGH_TO_JOIN_SECONDS
            while not leader.assignment() and time.monotonic() < limit:
                poll()
        return bool(leader.assignment())


def test_a_leader_takes_the_partitions_that_it_was_given_between_two_polls(kafka: str, admin: KafkaAdminClient):
    assert comes_to_its_partitions(Member, kafka, admin)


def test_the_client_s_own_consumer_stands_still_there(kafka: str, admin: KafkaAdminClient):
    """Should this fail after an upgrade of the client, ``Member`` is needed no more."""
    assert not comes_to_its_partitions(KafkaConsumer, kafka, admin)
