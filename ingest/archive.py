"""The topic in files: one directory, per partition a row of Avro files with offsets, and a manifest with checksums.

Retention then no longer decides what can be rebuilt. A file is written beside its place, synced, moved there and only
then entered in the manifest, so an export that was cut short goes on where the manifest ends. Avro's own container
format, its blocks compressed by deflate, is what ordinary tools read (docs/operators/archive.md).

The files hold what was published, patients included: they are made for their owner only (0600 in 0700).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import orjson

from projector.batch import Position, Record

FORMAT = 1
CODEC = "deflate"
SCHEMA = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Record",
        "namespace": "rxstore.archive",
        "doc": "A record of the topic as Kafka had it.",
        "fields": [
            {"name": "offset", "type": "long"},
            {"name": "timestamp_ms", "type": "long", "doc": "Milliseconds since 1970, UTC."},
            {"name": "key", "type": ["null", "bytes"]},
            {"name": "value", "type": ["null", "bytes"]},
            {
                "name": "headers",
                "type": {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "Header",
                        "fields": [{"name": "name", "type": "string"}, {"name": "value", "type": ["null", "bytes"]}],
                    },
                },
            },
        ],
    }
)
MANIFEST = "manifest.json"
CHUNK_BYTES = 1024 * 1024


class ArchiveBroken(Exception):
    """The directory is no archive, or not the one of this topic, or its files are not what its manifest says."""


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """One file: the records of a partition from ``first_offset`` up to, and without, ``next_offset``.

    Offsets have holes, as they have in the topic, so there may be fewer ``records`` than offsets.
    """

    name: str
    partition: int
    first_offset: int
    next_offset: int
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an archive, and in which of its files."""

    file: str
    message: str


@dataclass(slots=True)
class Archive:
    """An archive of one topic. ``files`` are in the order of their offsets within each partition."""

    directory: Path
    topic: str
    topic_id: str | None
    partitions: int
    files: list[ArchivedFile]

    @classmethod
    def opened(cls, directory: Path) -> Archive:
        """Read an archive's manifest; ArchiveBroken when there is none that can be read."""
        try:
            document = orjson.loads((directory / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise ArchiveBroken(f"{directory} holds no {MANIFEST}: it is no archive of rxstore") from None
        except (OSError, orjson.JSONDecodeError) as error:
            raise ArchiveBroken(f"{directory / MANIFEST} cannot be read ({type(error).__name__})") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ArchiveBroken(f"{directory / MANIFEST} is of another format than this version's, {FORMAT}")
        try:
            files = [ArchivedFile(**file) for file in document["files"]]
            return cls(directory, document["topic"], document["topic_id"], document["partitions"], files)
        except (KeyError, TypeError) as error:
            raise ArchiveBroken(f"{directory / MANIFEST} lacks what a manifest has ({error})") from error

    @classmethod
    def opened_or_made(cls, directory: Path, topic: str, topic_id: str | None, partitions: int) -> Archive:
        """Go on with the archive that is there, or begin one; ArchiveBroken when it is another topic's."""
        if not (directory / MANIFEST).exists():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise ArchiveBroken(f"{directory} is not empty and holds no {MANIFEST}: name an empty directory")
            made = cls(directory, topic, topic_id, partitions, [])
            made._keep()
            return made
        archive = cls.opened(directory)
        archive.check_topic(topic, topic_id, partitions)
        return archive

    def check_topic(self, topic: str, topic_id: str | None, partitions: int) -> None:
        """Raise ArchiveBroken when the archive was made from another topic than this one."""
        if self.topic != topic:
            raise ArchiveBroken(f"{self.directory} is an archive of {self.topic}, not of {topic}")
        if self.topic_id is not None and topic_id is not None and self.topic_id != topic_id:
            raise ArchiveBroken(
                f"{self.directory} was made from another {topic}, which was deleted and made again since: offsets "
                "now mean other events. Export into another directory"
            )
        if self.partitions != partitions:
            raise ArchiveBroken(
                f"{self.directory} was made when {topic} had {self.partitions} partitions; it has {partitions} now"
            )

    def of_partition(self, partition: int) -> list[ArchivedFile]:
        """Return the files of a partition, in the order of their offsets."""
        return [file for file in self.files if file.partition == partition]

    def first_offset(self, partition: int) -> int | None:
        """Return where the archive of a partition begins; None when it has none."""
        files = self.of_partition(partition)
        return files[0].first_offset if files else None

    def next_offset(self, partition: int) -> int | None:
        """Return the offset after the archive of a partition; None when it has none."""
        files = self.of_partition(partition)
        return files[-1].next_offset if files else None

    def append(self, partition: int, first_offset: int, next_offset: int, records: Iterable[Record]) -> ArchivedFile:
        """Write the records of a partition from ``first_offset`` up to ``next_offset`` as its next file."""
        expected = self.next_offset(partition)
        if expected is not None and expected != first_offset:
            raise ArchiveBroken(f"partition {partition} goes on at {expected}, not at {first_offset}")
        name = f"{partition:05}/{first_offset:020}.avro"
        path = self.directory / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        count = 0

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal count
            for record in records:
                count += 1
                yield _dumped(record)

        with open(os.open(unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as out:
            metadata = {"rxstore.topic": self.topic, "rxstore.partition": str(partition)}
            fastavro.writer(out, SCHEMA, counted(), codec=CODEC, metadata=metadata, sync_interval=CHUNK_BYTES)
            out.flush()
            os.fsync(out.fileno())
        file = ArchivedFile(
            name, partition, first_offset, next_offset, count, unfinished.stat().st_size, _sha256(unfinished)
        )
        unfinished.replace(path)
        _sync(path.parent)
        self.files.append(file)
        self._keep()
        return file

    def records(self, partition: int, from_offset: int = 0) -> Iterator[Record]:
        """Yield the records of a partition from an offset on; ArchiveBroken when a file cannot be read."""
        for file in self.of_partition(partition):
            if file.next_offset > from_offset:
                yield from (record for record in self.records_of(file) if record.position.offset >= from_offset)

    def records_of(self, file: ArchivedFile) -> Iterator[Record]:
        """Yield the records of one file; ArchiveBroken when it cannot be read."""
        return _read(self.directory / file.name, self.topic, file.partition)

    def verify(self, looked: Callable[[], None] = lambda: None) -> Iterator[Fault]:
        """Yield what is wrong: files that changed or are missing, and offsets that are missing or come twice.

        ``looked`` is called after each file.
        """
        for partition in sorted({file.partition for file in self.files}):
            expected: int | None = None
            for file in self.of_partition(partition):
                if expected is not None and file.first_offset != expected:
                    what = "missing" if file.first_offset > expected else "there twice"
                    low, high = sorted((expected, file.first_offset))
                    yield Fault(file.name, f"offsets {low} to {high - 1} of partition {partition} are {what}")
                expected = file.next_offset
                if (message := self._fault_of(file)) is not None:
                    yield Fault(file.name, message)
                looked()
        entered = {file.name for file in self.files}
        for path in sorted(self.directory.glob("*/*.avro")):
            if (name := path.relative_to(self.directory).as_posix()) not in entered:
                yield Fault(name, "is not entered in the manifest")

    def _fault_of(self, file: ArchivedFile) -> str | None:
        path = self.directory / file.name
        try:
            if path.stat().st_size != file.bytes or _sha256(path) != file.sha256:
                return "is not the file that was written: size or checksum differ"
            offsets = [record.position.offset for record in _read(path, self.topic, file.partition)]
        except (OSError, ArchiveBroken) as error:
            return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        if len(offsets) != file.records:
            return f"holds {len(offsets)} records, not {file.records}"
        if offsets != sorted(set(offsets)):
            return "holds offsets that are not in order"
        if offsets and not (file.first_offset <= offsets[0] and offsets[-1] < file.next_offset):
            return "holds offsets that are not its own"
        return None

    def _keep(self) -> None:
        """Write the manifest beside its place and move it there: it is whole whenever somebody looks."""
        document = {
            "format": FORMAT,
            "topic": self.topic,
            "topic_id": self.topic_id,
            "partitions": self.partitions,
            "files": self.files,
        }
        unfinished = self.directory / f"{MANIFEST}.unfinished"
        with open(os.open(unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as out:
            out.write(orjson.dumps(document, option=orjson.OPT_INDENT_2))
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(self.directory / MANIFEST)
        _sync(self.directory)


def _read(path: Path, topic: str, partition: int) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            for row in fastavro.reader(file, return_record_name=False):
                yield _loaded(row, topic, partition)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise ArchiveBroken(f"{path} cannot be read as an archive's file ({type(error).__name__})") from error


def _dumped(record: Record) -> dict[str, Any]:
    return {
        "offset": record.position.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": record.key,
        "value": record.value,
        "headers": [{"name": name, "value": value} for name, value in record.headers],
    }


def _loaded(row: Any, topic: str, partition: int) -> Record:  # noqa: ANN401 - fastavro's row
    headers = tuple((header["name"], header["value"]) for header in row["headers"])
    return Record(Position(topic, partition, row["offset"]), row["timestamp_ms"], row["key"], row["value"], headers)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    """A file that was moved is there after a crash only once its directory was synced."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
