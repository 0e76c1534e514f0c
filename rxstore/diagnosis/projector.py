"""What can be wrong with the projectors: refused, none there, a partition without one, standing still, behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from kafka import KafkaAdminClient, TopicPartition

from ingest.decode import Decoder
from ingest.lookup import record_of
from ingest.partitioning import partitioner
from projector.batch import Quarantined
from projector.definition import DEFINITION, major
from projector.generations import Generation
from rxstore import broker, store
from rxstore.diagnosis.database import PSQL
from rxstore.diagnosis.findings import Finding
from rxstore.diagnosis.topic import REBUILD, Checkpoint
from rxstore.fleet import CLIENT_PREFIX, make_reader
from rxstore.report import LAGGING_AFTER, STALLED_AFTER, GenerationReport, is_silent, stands_still
from rxstore.settings import Settings

ANSWERS_GROW_OLD = "answers grow old, and Rxstore-As-Of says since when"
SAMPLE_RECORDS = 200
SAMPLE_POLLS = 6
LEAST_SAMPLE = 20


@dataclass(frozen=True, slots=True)
class Group:
    """The live generation's consumer group: who holds which partition, and what was committed for Kafka's tools.

    ``members`` has client ids, and is None where the broker does not describe groups.
    """

    name: str
    settled: bool
    members: list[str] | None
    holders: dict[int, str]
    committed: dict[int, int]


def group(admin: KafkaAdminClient, name: str, topic: str) -> Group:
    """Ask the brokers for the group."""
    committed = {
        partition.partition: offset.offset
        for partition, offset in admin.list_group_offsets({name: None}).get(name, {}).items()
        if partition.topic == topic and offset.offset >= 0
    }
    groups = broker.describe_groups(admin, [name])
    if groups is None:
        return Group(name, True, None, {}, committed)
    described = groups[name]
    holders: dict[int, str] = {}
    for member in described["members"]:
        for assigned in (member["member_assignment"] or {}).get("assigned_partitions", ()):
            if assigned["topic"] == topic:
                holders |= dict.fromkeys(assigned["partitions"], member["client_id"])
    members = [member["client_id"] for member in described["members"]]
    return Group(name, described["group_state"] in {"Stable", "Empty", "Dead"}, members, holders, committed)


def refused(settings: Settings, generation: Generation) -> Iterator[Finding]:
    """Find out whether a projector of this version and these settings may feed the generation."""
    if major(generation.definition) != major(DEFINITION):
        yield Finding(
            "definition_differs",
            f"{generation.name} has definition {generation.definition}, this version folds by {DEFINITION}, and its "
            "projector does not start: answers stay as they were unless the version that made them still runs. Keep "
            "that one running and build a new generation beside it",
            REBUILD,
        )
    given = {**store.meaning(settings), "RXSTORE_TOPIC": settings.topic}
    built = {**generation.settings, "RXSTORE_TOPIC": generation.topic}
    for name, value in given.items():
        if name in built and built[name] != value:
            yield Finding(
                "settings_differ",
                f"{name} is {value} here, but {generation.name} was built with {built[name]}: a projector with it does "
                "not start, since events would mean something else. Set it back, or build a new generation with it",
                f"export {name}={built[name]}",
            )


def nobody(live: GenerationReport, found: Group, now: datetime) -> Iterator[Finding]:
    """Find out whether anybody projects at all."""
    if found.members == [] or (found.members is None and is_silent(live, now)):
        waiting = "" if not live.lag_events else f", and {live.lag_events:,} events wait"
        yield Finding(
            "no_projector",
            f"no projector is in the group {found.name}{waiting}: {ANSWERS_GROW_OLD}. If one ended by itself, its last "
            "lines say why",
            "rxstore project",
        )


def unclaimed(found: Group, checkpoints: Sequence[Checkpoint], partitions: int) -> list[tuple[int, str]]:
    """Return the partitions that no projector of this database projects, each with what is odd about it."""
    if not found.members:
        return []
    owners = {checkpoint.partition: checkpoint.owner for checkpoint in checkpoints}
    odd = []
    for partition in range(partitions):
        holder = found.holders.get(partition)
        if holder is None:
            odd.append((partition, "no member of the group holds it"))
        elif holder.removeprefix(CLIENT_PREFIX) != owners.get(partition):
            odd.append((partition, f"the member {holder} holds it, which has not claimed it in this database"))
    return odd


def partition_unclaimed(found: Group, odd: Sequence[tuple[int, str]]) -> Iterator[Finding]:
    """Tell of these partitions in one finding for each way of being odd."""
    for what in dict.fromkeys(what for _, what in odd):
        numbers = ", ".join(str(partition) for partition, reason in odd if reason == what)
        yield Finding(
            "partition_unclaimed",
            f"partition {numbers} of the topic is projected by nobody: {what}. Prescriptions there stand still. "
            "Another program, an old version or a copy of this database reads with the same group: stop it, or give it "
            "an RXSTORE_GROUP_ID of its own",
            "kafka-consumer-groups --bootstrap-server $RXSTORE_KAFKA_BOOTSTRAP_SERVERS --describe --members "
            f"--group {found.name}",
        )


def behind(live: GenerationReport, lock_holders: Sequence[tuple[int, str, float]], now: datetime) -> Iterator[Finding]:
    """Find out whether events wait for too long, and why."""
    if not live.lag_events or live.workers == 0:
        return
    if stands_still(live, now):
        if lock_holders:
            pid, application, age = lock_holders[0]
            cause = f"the session with pid {pid} ({application}) has held locks on our tables for {age:.0f} s"
            command = f'{PSQL} -c "SELECT pg_terminate_backend({pid})"'
        else:
            cause = "no session holds a lock on our tables, so look in the projector's log for action=retry"
            command = "rxstore status --watch"
        yield Finding(
            "projector_stalled",
            f"{live.lag_events:,} events wait and no checkpoint has moved for {STALLED_AFTER.seconds} s: {cause}. "
            f"Meanwhile {ANSWERS_GROW_OLD}",
            command,
        )
    elif live.lag_seconds is None or live.lag_seconds > LAGGING_AFTER.seconds:
        known = "" if live.lag_seconds is None else f", the oldest knowledge is {live.lag_seconds:,.0f} s old"
        yield Finding(
            "lagging",
            f"{live.lag_events:,} events wait{known}: {ANSWERS_GROW_OLD}. A backlog is being worked off, or more "
            "workers are needed, up to the number of partitions",
            "rxstore project",
        )


def went_back(found: Group, checkpoints: Sequence[Checkpoint]) -> Iterator[Finding]:
    """Find checkpoints that are behind what was once committed to Kafka."""
    back = {
        c.partition: found.committed[c.partition] - c.next_offset
        for c in checkpoints
        if found.committed.get(c.partition, 0) > c.next_offset
    }
    if back:
        yield Finding(
            "checkpoint_behind_group",
            f"in {len(back)} partitions the checkpoint is behind what the projector once reached, by "
            f"{sum(back.values()):,} offsets in all: the database was restored, failed over or put back. A projector "
            "reads them again and doubles nothing; until it is through, answers are those of an earlier time",
            "rxstore project",
        )


def mostly_unreadable(settings: Settings, live: GenerationReport, partitions: int) -> Iterator[Finding]:
    """Read some of what comes next in partitions that lag, with this version and these settings."""
    starts = {
        TopicPartition(partition.topic, partition.partition): partition.next_offset
        for partition in live.partitions
        if partition.lag_events
    }
    if not starts:
        return
    decode = Decoder(
        partition_of=partitioner(settings.partitioner, partitions),
        max_value_bytes=settings.max_value_bytes,
        strict_check_character=settings.check_character == "strict",
    )
    items = [decode(record_of(record)) for record in _sample(settings, starts)]
    bad = [item for item in items if isinstance(item, Quarantined)]
    if len(items) < LEAST_SAMPLE or 2 * len(bad) <= len(items) or len({item.record.key for item in bad}) < 2:
        return
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in Counter(str(item.reason) for item in bad).most_common()
    )
    yield Finding(
        "mostly_unreadable",
        f"of the next {len(items)} records {len(bad)} cannot be read ({reasons}): the version that was deployed, a "
        "setting or the publishers are wrong, not single events. The projector stops (exit code 4) and sets none of "
        "them aside, so answers stay as they were. Only when it is the publishers, and for good, let it go on",
        "rxstore project --keep-going",
    )


def _sample(settings: Settings, starts: Mapping[TopicPartition, int]) -> list[object]:
    """Read up to so many records, taking from each partition in turn."""
    each = max(1, SAMPLE_RECORDS // len(starts))
    found: dict[TopicPartition, list[object]] = {partition: [] for partition in starts}
    with closing(make_reader(settings.kafka())) as reader:
        reader.assign(list(starts))
        for partition, offset in starts.items():
            reader.seek(partition, offset)
        for _ in range(SAMPLE_POLLS):
            for partition, records in reader.poll(timeout_ms=300).items():
                found[partition] += records
            full = [partition for partition, records in found.items() if len(records) >= each]
            reader.pause(*full)
            if len(full) == len(found):
                break
    return [record for records in found.values() for record in records[:each]]
