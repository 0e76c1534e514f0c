"""A client for the brokers' own affairs, with errors that say which setting to look at."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kafka import KafkaAdminClient
from kafka.errors import KafkaTimeoutError, UnknownTopicOrPartitionError, for_code

from rxstore.errors import ServerUnavailable
from rxstore.settings import Settings, bind

REACH_TIMEOUT_S = 5.0
BOOTSTRAP_TIMEOUT_MS = 10_000


@contextmanager
def admin_client(settings: Settings) -> Iterator[KafkaAdminClient]:
    """A client of the brokers; ServerUnavailable when none of them answers."""
    options = settings.kafka()
    servers = options["bootstrap_servers"]
    # The client asks a port where nobody listens again and again until its time is up; we know at once.
    if not any(map(_accepts_connections, servers)):
        raise _no_answer(servers)
    try:
        client = KafkaAdminClient(**options, client_id="rxstore", bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS)
    except KafkaTimeoutError as error:
        raise _no_answer(servers) from error
    try:
        yield client
    finally:
        client.close()


def partition_count(admin: KafkaAdminClient, topic: str) -> int | None:
    """How many partitions the topic has; ``None`` when there is no such topic."""
    (described,) = admin.describe_topics([topic])
    error = for_code(described["error_code"])
    if error is UnknownTopicOrPartitionError:
        return None
    if described["error_code"]:
        raise error(topic)
    return len(described["partitions"])


def existing_partition_count(settings: Settings) -> int:
    """How many partitions the configured topic has; ServerUnavailable with the next step when it does not exist."""
    with admin_client(settings) as admin:
        count = partition_count(admin, settings.topic)
    if count is None:
        raise ServerUnavailable(
            f"the topic {settings.topic} (RXSTORE_TOPIC) does not exist: create it with `rxstore topics create`"
        )
    return count


def _accepts_connections(server: str) -> bool:
    with suppress(OSError), socket.create_connection(bind(server), timeout=REACH_TIMEOUT_S):
        return True
    return False


def _no_answer(servers: list[str]) -> ServerUnavailable:
    return ServerUnavailable(
        f"no Kafka broker answers at {','.join(servers)}: check RXSTORE_KAFKA_BOOTSTRAP_SERVERS, its security "
        "settings, and that it is running"
    )
