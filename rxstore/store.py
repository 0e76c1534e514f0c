"""What the commands know of the database and the topic together: the live generation, and the log it is built from."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine

from ingest.decode import Decoder
from ingest.partitioning import partitioner
from projector import generations
from projector.definition import DEFINITION, hashes, major
from projector.generations import Generation, NotMigrated, SettingsDiffer
from rxstore import broker
from rxstore.errors import Refused, ServerUnavailable
from rxstore.settings import Settings

DRIVER = "postgresql+psycopg://"
ENDS_TIMEOUT_MS = 10_000


@contextmanager
def engine(settings: Settings) -> Iterator[Engine]:
    """An engine for a command's own short questions; not for projecting or serving."""
    made = create_engine(
        DRIVER,
        hide_parameters=True,
        connect_args={
            **conninfo_to_dict(settings.database()),  # not as SQLAlchemy's URL, which knows no list of hosts with ports
            "connect_timeout": 5,
            "application_name": "rxstore",
            "options": "-c timezone=UTC",
        },
    )
    try:
        yield made
    finally:
        made.dispose()


def meaning(settings: Settings) -> dict[str, Any]:
    """The settings that change what events mean: stored with a generation, and part of its definition."""
    return {
        "RXSTORE_CHECK_CHARACTER": settings.check_character,
        "RXSTORE_MAX_VALUE_BYTES": settings.max_value_bytes,
        "RXSTORE_PARTITIONER": settings.partitioner,
    }


def live_generation(engine: Engine) -> Generation:
    """The generation behind the views; Refused, with the next step, when there is none."""
    try:
        with engine.connect() as connection:
            return generations.live(connection)
    except NotMigrated as error:
        raise Refused(str(error)) from error


@dataclass(frozen=True, slots=True)
class Log:
    """The topic as the brokers describe it now. Offsets are those that a reader of committed records sees."""

    name: str
    topic_id: str | None
    first_offsets: dict[int, int]
    end_offsets: dict[int, int]

    @property
    def partitions(self) -> int:
        """How many there are."""
        return len(self.end_offsets)


def describe_log(settings: Settings, topic: str | None = None) -> Log:
    """Ask the brokers for a topic, the configured one by default; ServerUnavailable when it cannot be reached."""
    name = topic or settings.topic
    with broker.admin_client(settings) as admin:
        count = broker.partition_count(admin, name)
        topic_id = None if count is None else _topic_id(admin, name)
    if count is None:
        raise ServerUnavailable(
            f"the topic {name} (RXSTORE_TOPIC) does not exist: create it with 'rxstore topics create'"
        )
    partitions = [TopicPartition(name, number) for number in range(count)]
    consumer = KafkaConsumer(
        **settings.kafka(),
        client_id="rxstore",
        enable_auto_commit=False,
        isolation_level="read_committed",
        metrics_enabled=False,
    )
    try:
        first = consumer.beginning_offsets(partitions, timeout_ms=ENDS_TIMEOUT_MS)
        end = consumer.end_offsets(partitions, timeout_ms=ENDS_TIMEOUT_MS)
    finally:
        consumer.close(autocommit=False)
    return Log(
        name,
        topic_id,
        {tp.partition: offset for tp, offset in first.items()},
        {tp.partition: offset for tp, offset in end.items()},
    )


def _topic_id(admin: KafkaAdminClient, name: str) -> str | None:
    (described,) = admin.describe_topics([name])
    topic_id = described.get("topic_id")
    return None if topic_id is None else str(topic_id)


def generation_to_feed(settings: Settings, engine: Engine, log: Log) -> Generation:
    """The live generation, once it is sure that this code, these settings and this topic may feed it.

    Raises Refused otherwise: rows folded by another meaning, or from another log, would be wrong without a sign.
    """
    generation = live_generation(engine)
    reason = other_meaning(generation) or other_settings(settings, generation) or other_log(generation, log)
    if reason is not None:
        raise Refused(reason)
    return remember_topic(engine, generation, log)


def other_meaning(generation: Generation) -> str | None:
    """Why this version may not fold into a generation: its rows mean something else, or have another shape."""
    if major(generation.definition) != major(DEFINITION):
        return (
            f"generation {generation.name} has definition {generation.definition}, this version folds by {DEFINITION}: "
            "build a new generation with it, and keep feeding this one with the version that made it"
        )
    if generation.hashes["tables"] != hashes()["tables"]:
        return (
            f"generation {generation.name} has other tables than this version's: build a new generation with it, and "
            "keep feeding this one with the version that made it"
        )
    return None


def other_settings(settings: Settings, generation: Generation) -> str | None:
    """Why a generation is not the one that these settings ask for: the topic, or what changes meaning."""
    try:
        generations.check_settings(generation, meaning(settings))
    except SettingsDiffer as error:
        return str(error)
    if generation.topic != settings.topic:
        return (
            f"generation {generation.name} is built from topic {generation.topic}, RXSTORE_TOPIC is {settings.topic}: "
            "set it back, or build a new generation"
        )
    return None


def other_log(generation: Generation, log: Log) -> str | None:
    """Why a topic is not the one that a generation is built from; one that has read nothing takes it as it is."""
    if generation.partitions is None:
        return None
    if generation.partitions != log.partitions:
        return (
            f"topic {log.name} has {log.partitions} partitions, generation {generation.name} was built from "
            f"{generation.partitions}: keys now belong elsewhere. Make a topic with the right number, copy the events "
            "and build a new generation from it"
        )
    if generation.topic_id is not None and log.topic_id is not None and generation.topic_id != log.topic_id:
        return (
            f"topic {log.name} was deleted and made again since generation {generation.name} was built from it: "
            "build a new generation from the new topic"
        )
    return None


def remember_topic(engine: Engine, generation: Generation, log: Log) -> Generation:
    """Enter what the topic is when the generation reads it for the first time."""
    if generation.partitions is not None:
        return generation
    with engine.begin() as connection:
        generations.remember_topic(connection, generation.name, topic_id=log.topic_id, partitions=log.partitions)
        found = generations.find(connection, generation.name)
    return found or generation


def reading(generation: Generation) -> tuple[Decoder, Callable[[bytes], int]]:
    """How the records of a generation's topic are read, by its own settings; and where a key belongs."""
    decode = decoder(generation.settings, generation.partitions or 1)
    return decode, decode.partition_of


def decoder(meaning: Mapping[str, Any], partitions: int) -> Decoder:
    """How records of a topic are read, by the settings that a generation was built with."""
    return Decoder(
        partition_of=partitioner(str(meaning["RXSTORE_PARTITIONER"]), partitions),
        max_value_bytes=int(meaning["RXSTORE_MAX_VALUE_BYTES"]),
        strict_check_character=meaning["RXSTORE_CHECK_CHARACTER"] == "strict",
    )


def group_of(settings: Settings, generation: Generation) -> str:
    """The consumer group that feeds a generation: each of every installation has its own.

    Two installations on one broker both have a g1; the moment of its registration tells them apart.
    """
    return f"{settings.group_id}-{generation.name}-{generation.registered_at:%Y%m%d%H%M%S%f}"


def somebody() -> str:
    """Return who decides when nobody says: the user and machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
