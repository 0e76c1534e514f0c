"""A client for the brokers' own affairs, with errors that say which setting to look at."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    KafkaTimeoutError,
    UnknownTopicOrPartitionError,
    for_code,
)

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


def describe_groups(admin: KafkaAdminClient, names: Collection[str]) -> Mapping[str, Mapping[str, Any]] | None:
    """Describe consumer groups; None where the broker does not. Raises a KafkaError where the user may not ask."""
    try:
        described: dict[str, dict[str, Any]] = admin.describe_groups(list(names))
    except ValueError:  # what the client makes of the embedded broker's answer
        return None
    for name, group in described.items():
        # The client hands an error over as text, with a group that looks as if nobody were in it.
        if GroupAuthorizationFailedError.__name__ in (group.get("error") or ""):
            raise GroupAuthorizationFailedError(name)
    return described


def check_reader(settings: Settings, topic: str, group: str) -> None:
    """Raise ServerUnavailable when the brokers say that our user may not read a topic as a member of a group.

    A consumer that may not would try again for good, as it does while brokers are away.
    """
    with admin_client(settings) as admin:
        described = admin.describe_topics([topic])[0]
        groups: Mapping[str, Mapping[str, Any]] = {}
        try:
            groups = describe_groups(admin, [group]) or {}
        except GroupAuthorizationFailedError as error:
            raise _may_not("READ", f"group {group}") from error
        except KafkaError:
            pass  # on brokers that never had a group, nobody answers for one at first
    _check_may("READ", f"topic {topic}", described)
    _check_may("READ", f"group {group}", groups.get(group, {}))


def check_tells_settings(admin: KafkaAdminClient, topic: str) -> None:
    """Raise ServerUnavailable when our user may not see a topic's settings: the client takes that for having none."""
    _check_may("DESCRIBE_CONFIGS", f"topic {topic}", admin.describe_topics([topic])[0])


def _check_may(operation: str, what: str, described: Mapping[str, Any]) -> None:
    may = described.get("authorized_operations") or ()
    # A broker that does not tell leaves the list empty: whom it describes a thing to may at least do that.
    if may and operation not in may:
        raise _may_not(operation, what)


def _may_not(operation: str, what: str) -> ServerUnavailable:
    return ServerUnavailable(
        f"the brokers refuse: the user of RXSTORE_KAFKA_SASL_USERNAME lacks {operation} on {what}; "
        "docs/operators/kafka-security.md lists what each command needs"
    )


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
