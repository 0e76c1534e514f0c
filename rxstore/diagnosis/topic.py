"""What can be wrong with the topic: away, another one, cut at either end, of another width, or about to drop events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from kafka import KafkaAdminClient, TopicPartition

from ingest import log_identity
from projector.generations import Generation
from rxstore import topics
from rxstore.diagnosis.findings import Finding
from rxstore.errors import ServerUnavailable
from rxstore.fleet import make_reader
from rxstore.settings import Settings
from rxstore.store import Log

REBUILD = "rxstore rebuild stage"
ANSWERS_STAY = "The projector has stopped, and answers stay as they were"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a generation is in one partition."""

    partition: int
    next_offset: int
    leader_epoch: int | None
    topic_id: str | None
    owner: str | None


def unreachable(error: ServerUnavailable) -> Finding:
    """No broker answers."""
    return Finding(
        "brokers_unreachable",
        f"{error}. Nothing new is projected: answers go on and grow old, and Rxstore-As-Of stands still",
        "kafka-broker-api-versions --bootstrap-server $RXSTORE_KAFKA_BOOTSTRAP_SERVERS",
    )


def missing(settings: Settings, generation: Generation | None) -> Finding:
    """The topic is not there: not made yet, or deleted."""
    built = generation is not None and generation.partitions is not None
    partitions = f" --partitions {generation.partitions}" if generation is not None and built else ""
    told = (
        f"the topic {settings.topic} (RXSTORE_TOPIC) is gone, and {generation.name} was built from it: answers stay as "
        "they were and nothing new comes in. Bring it back from its mirror or archive before anybody publishes"
        if generation is not None and built
        else f"the topic {settings.topic} (RXSTORE_TOPIC) does not exist: nobody can publish, and there is nothing to "
        "answer from"
    )
    return Finding("topic_missing", told, f"rxstore topics create{partitions}")


def settings_differ(admin: KafkaAdminClient, settings: Settings) -> Iterator[Finding]:
    """Find settings of the topic that are not those of the contract."""
    found = topics.compare(admin, settings.topic, None, settings.max_value_bytes).differences
    if not found:
        return
    wanted = ",".join(f"{difference.setting}={difference.expected}" for difference in found)
    yield Finding(
        "topic_settings_differ",
        f"the topic {settings.topic} is not as the contract wants it ({'; '.join(map(str, found))}): what the brokers "
        "drop or refuse can never be folded again, and a rebuild would lack it",
        f"kafka-configs --bootstrap-server {settings.kafka()['bootstrap_servers'][0]} --alter --entity-type topics "
        f"--entity-name {settings.topic} --add-config {wanted}",
    )


def another_log(generation: Generation, log: Log) -> Iterator[Finding]:
    """Find out whether the log is the one that the generation was built from, and as wide."""
    if generation.topic_id and log.topic_id and generation.topic_id != log.topic_id:
        yield Finding(
            "topic_recreated",
            f"the topic {log.name} was deleted and made again since {generation.name} was built from it. {ANSWERS_STAY}"
            ". If the old events are not in the new topic, bring them back first; then build anew from it",
            REBUILD,
        )
    if generation.partitions is not None and generation.partitions != log.partitions:
        yield Finding(
            "partitions_added",
            f"the topic {log.name} has {log.partitions} partitions, {generation.name} was built from "
            f"{generation.partitions}: events of one prescription now stand in two of them, without an order between. "
            f"{ANSWERS_STAY}. Copy the events into a topic with the right number, and build anew from it",
            REBUILD,
        )


def cut_log(settings: Settings, log: Log, checkpoints: Sequence[Checkpoint]) -> Iterator[Finding]:
    """Find partitions that lost events at either end, before they were folded or after."""
    for checkpoint in checkpoints:
        partition, next_offset = checkpoint.partition, checkpoint.next_offset
        first, end = log.first_offsets.get(partition, 0), log.end_offsets.get(partition, next_offset)
        if next_offset < first:
            yield Finding(
                "topic_lost_events",
                f"{log.name}[{partition}] begins at offset {first:,}, but {next_offset:,} is the next to be folded: "
                f"{first - next_offset:,} offsets were deleted by retention or by hand before they were folded. "
                f"{ANSWERS_STAY}. A rebuild from what is left lacks these events for good, and prescriptions would be "
                "shown as if they had never happened: bring them back from an archive or mirror first if there is one",
                REBUILD,
            )
        elif next_offset > end:
            yield _truncated(
                log, partition, f"ends at offset {end:,}, but everything before {next_offset:,} was folded"
            )
    for partition, diverged in _grown_again(settings, log, checkpoints):
        where = "earlier" if diverged is None else f"from offset {diverged:,} on"
        yield _truncated(log, partition, f"has other events than those that were folded, {where}")


def _truncated(log: Log, partition: int, what: str) -> Finding:
    return Finding(
        "log_truncated",
        f"{log.name}[{partition}] {what}: a broker lost the end of its log. {ANSWERS_STAY}, and show events that the "
        "log no longer has. Bring them back from an archive or mirror if there is one, ask the publishers to send them "
        "again if not; then build anew",
        REBUILD,
    )


def _grown_again(settings: Settings, log: Log, checkpoints: Sequence[Checkpoint]) -> list[tuple[int, int | None]]:
    """Return the partitions whose log was cut before the checkpoint and has grown past it, with the first offset."""
    positions = {
        TopicPartition(log.name, c.partition): (c.next_offset, c.leader_epoch)
        for c in checkpoints
        if c.leader_epoch is not None and c.next_offset <= log.end_offsets.get(c.partition, -1)
    }
    if not positions:
        return []
    with closing(make_reader(settings.kafka())) as reader:
        cut = log_identity.cut_since(reader, positions)
    return [(partition.partition, offset) for partition, offset in cut.items()]
