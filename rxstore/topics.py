"""The topic as the contract wants it (docs/events.md, "Transport"): kept for good, and wide enough for an event."""

from __future__ import annotations

from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import TopicAlreadyExistsError

from rxstore.broker import check_tells_settings, partition_count

DEFAULT_PARTITIONS = 8

# Kafka's own default: below it the producers' defaults would be cut short too.
LEAST_MAX_MESSAGE_BYTES = 1_048_588
ROOM_FOR_KEY_AND_HEADERS = 65_536

KEPT_FOR_GOOD = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
MAX_MESSAGE_BYTES = "max.message.bytes"


@dataclass(frozen=True, slots=True)
class Difference:
    """What an existing topic has otherwise than it should."""

    setting: str
    value: str
    expected: str

    def __str__(self) -> str:
        return f"{self.setting} is {self.value}, not {self.expected}"


@dataclass(frozen=True, slots=True)
class Topic:
    """The topic after ``create``; ``differences`` can only be there when it was there before."""

    name: str
    partitions: int
    created: bool
    differences: tuple[Difference, ...] = ()


def wanted_settings(max_value_bytes: int) -> dict[str, str]:
    """A value above the limit can still arrive, to be set aside with its position, as long as Kafka takes it."""
    max_message_bytes = max(LEAST_MAX_MESSAGE_BYTES, max_value_bytes + ROOM_FOR_KEY_AND_HEADERS)
    return {**KEPT_FOR_GOOD, MAX_MESSAGE_BYTES: str(max_message_bytes)}


def create(admin: KafkaAdminClient, name: str, partitions: int | None, max_value_bytes: int) -> Topic:
    """Creates the topic, or compares the one that exists; ``None`` takes 8 partitions, or as many as there are."""
    settings = wanted_settings(max_value_bytes)
    if partition_count(admin, name) is None:
        asked = {"num_partitions": partitions or DEFAULT_PARTITIONS, "configs": settings}
        try:
            admin.create_topics({name: asked}, wait_for_metadata=True)
        except TopicAlreadyExistsError:
            pass  # somebody else was faster: compare theirs
        else:
            return Topic(name, partitions or DEFAULT_PARTITIONS, created=True)
    return compare(admin, name, partitions, max_value_bytes)


def compare(admin: KafkaAdminClient, name: str, partitions: int | None, max_value_bytes: int) -> Topic:
    """Say what an existing topic has otherwise than the contract wants it."""
    settings = wanted_settings(max_value_bytes)
    admin.wait_for_topics([name])
    there = partition_count(admin, name) or 0
    differences = []
    if partitions is not None and there != partitions:
        differences.append(Difference("partitions", str(there), str(partitions)))
    check_tells_settings(admin, name)
    resource = ConfigResource(ConfigResourceType.TOPIC, name)
    values = admin.describe_configs([resource], config_filter="all")["topic"][name]
    for setting, expected in settings.items():
        value = values[setting]["value"] if setting in values else None
        if value is not None and not _satisfies(setting, value, expected):
            differences.append(Difference(setting, value, expected))
    return Topic(name, there, created=False, differences=tuple(differences))


def _satisfies(setting: str, value: str, expected: str) -> bool:
    return int(value) >= int(expected) if setting == MAX_MESSAGE_BYTES else value == expected
