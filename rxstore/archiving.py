"""Writes the topic into an archive, partition by partition, and goes on where the archive ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition

from ingest.archive import Archive, ArchiveBroken, ArchivedFile
from ingest.decode import Decoder
from ingest.lookup import record_of
from projector.batch import Accepted, Record
from rxstore import store
from rxstore.errors import Refused, ServerUnavailable
from rxstore.fleet import make_reader
from rxstore.settings import Settings
from schemas.events import Deleted
from schemas.incoming import TYPE_OF

POLL_TIMEOUT_MS = 500
POLL_RECORDS = 5_000
# How many polls may bring nothing of what is known to be there: a minute.
PATIENCE_POLLS = 120
# So much of the topic goes into one file, uncompressed: it is held in memory until the file is written.
FILE_BYTES = 64 * 1024 * 1024


# What may be a prescription id, with or without its check character.
IDS = re.compile(rb"[0-9A-Z]{6}-[0-9A-Z]{6}-[0-9A-Z]{5}|[0-9A-Z]{8}(?:-[0-9A-Z]{4}){3}-[0-9A-Z]{12}")
DELETED = TYPE_OF[Deleted].encode()


@dataclass(frozen=True, slots=True)
class Held:
    """A record in an archive that names a prescription which an event of the same archive deletes."""

    stream_key: str
    file: str
    partition: int
    offset: int


def of_deleted(settings: Settings, archive: Archive, looked: Callable[[], None] = lambda: None) -> Iterator[Held]:
    """Yield what an archive still holds of deleted prescriptions, the deletion included; ArchiveBroken when unreadable.

    Reads it twice; ``looked`` is called after each file of each time. A record counts when it names the prescription
    anywhere in its key or value, so that misrouted and broken ones are found too.
    """
    decode = Decoder(lambda _: 0, settings.max_value_bytes, settings.check_character == "strict")
    deleted: set[bytes] = set()
    for file in archive.files:
        for record in archive.records_of(file):
            if DELETED in (record.value or b"") or any(value == DELETED for _, value in record.headers):
                item = decode.regardless_of_place(record)
                if isinstance(item, Accepted) and isinstance(item.event, Deleted):
                    deleted.add(item.event.envelope.stream_key.encode())
        looked()
    for file in archive.files:
        for record in archive.records_of(file):
            named = b"\n".join([record.key or b"", record.value or b"", *(value or b"" for _, value in record.headers)])
            for key in sorted(deleted.intersection(IDS.findall(named.upper()))):
                yield Held(key.decode(), file.name, file.partition, record.position.offset)
        looked()


def export(settings: Settings, directory: Path, *, file_bytes: int = FILE_BYTES) -> Iterator[ArchivedFile]:
    """Write what the topic has and the archive has not, up to the ends of now; yield each file once it is kept.

    Raises Refused when the directory is another topic's archive, or when retention took events away before they were
    exported: a hole that nothing can fill must not look like a whole archive.
    """
    log = store.describe_log(settings)
    try:
        archive = Archive.opened_or_made(directory, log.name, log.topic_id, log.partitions)
    except ArchiveBroken as error:
        raise Refused(str(error)) from error
    starts = {}
    for partition, first in sorted(log.first_offsets.items()):
        known = archive.next_offset(partition)
        if known is not None and first > known:
            raise Refused(
                f"{log.name}[{partition}] begins at offset {first}, the archive ends at {known}: retention took events "
                "away before they were exported. Restore them, or begin another archive with what is left"
            )
        if known is not None and known > log.end_offsets[partition]:
            raise Refused(
                f"{log.name}[{partition}] ends at offset {log.end_offsets[partition]}, the archive at {known}: the log "
                "was truncated, or this is another topic"
            )
        starts[partition] = first if known is None else known
    consumer = make_reader(settings.kafka())
    try:
        for partition, start in starts.items():
            yield from _export_partition(
                consumer, archive, TopicPartition(log.name, partition), start, log.end_offsets[partition], file_bytes
            )
    finally:
        consumer.close(autocommit=False)


def _export_partition(
    consumer: KafkaConsumer, archive: Archive, partition: TopicPartition, start: int, end: int, file_bytes: int
) -> Iterator[ArchivedFile]:
    consumer.assign([partition])
    consumer.seek(partition, start)
    reached = start
    while reached < end:
        records, after = _read(consumer, partition, end, file_bytes)
        yield archive.append(partition.partition, reached, after, records)
        reached = after


def _read(consumer: KafkaConsumer, partition: TopicPartition, end: int, file_bytes: int) -> tuple[list[Record], int]:
    """Return the next records, as many as a file holds, and the offset after them; holes are passed over."""
    records: list[Record] = []
    held = waited = 0
    while True:
        polled = consumer.poll(timeout_ms=POLL_TIMEOUT_MS, max_records=POLL_RECORDS).get(partition, [])
        for record in map(record_of, polled):
            if record.position.offset < end:
                records.append(record)
                held += len(record.value or b"") + len(record.key or b"")
        reached = min(end, consumer.position(partition, timeout_ms=POLL_TIMEOUT_MS) or 0)
        if reached >= end or held >= file_bytes:
            return records, reached
        waited = 0 if polled else waited + 1
        if waited > PATIENCE_POLLS:
            raise ServerUnavailable(
                f"the brokers do not hand out {partition.topic}[{partition.partition}] from offset {reached} on; what "
                "was exported before is kept, and the next export goes on there"
            )
