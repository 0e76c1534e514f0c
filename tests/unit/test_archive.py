"""The topic in files: what was written is read back, goes on where it was, and shows every change."""

from __future__ import annotations

import stat
from pathlib import Path

import fastavro
import orjson
import pytest

from ingest.archive import Archive, ArchiveBroken
from projector.batch import Position, Record

TOPIC = "events"
RECORDS = [
    Record(Position(TOPIC, 0, 3), 1_767_600_000_000, b"key", b'{"id": 1}', (("content-type", b"x"), ("ce_id", None))),
    Record(Position(TOPIC, 0, 5), -1, None, None, ()),
    Record(Position(TOPIC, 0, 6), 253_402_300_800_000, b"\xff\x00", b"\x00", (("h", b""), ("h", b"\xff"))),
]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive.opened_or_made(tmp_path / "archive", TOPIC, "topic-id", 2)
    made.append(0, 3, 6, RECORDS[:2])
    made.append(0, 6, 9, RECORDS[2:])
    return made


def faults(archive: Archive) -> list[tuple[str, str]]:
    return [(fault.file, fault.message) for fault in Archive.opened(archive.directory).verify()]


def test_what_was_written_is_read_back_byte_for_byte(archive):
    assert list(Archive.opened(archive.directory).records(0)) == RECORDS


def test_reading_begins_at_the_offset_that_is_asked_for(archive):
    assert list(archive.records(0, 5)) == RECORDS[1:]
    assert list(archive.records(0, 7)) == []


def test_a_partition_without_files_has_no_records_and_no_offsets(archive):
    assert list(archive.records(1)) == []
    assert (archive.first_offset(1), archive.next_offset(1)) == (None, None)


def test_it_knows_where_a_partition_begins_and_goes_on(archive):
    assert (archive.first_offset(0), archive.next_offset(0)) == (3, 9)


def test_a_whole_archive_has_no_fault(archive):
    assert faults(archive) == []


def test_the_files_are_avro_that_says_what_it_is(archive):
    path = archive.directory / archive.files[0].name
    assert fastavro.is_avro(str(path))
    with path.open("rb") as file:
        reader = fastavro.reader(file)
        assert reader.metadata["rxstore.topic"] == TOPIC
        assert [row["offset"] for row in reader] == [3, 5]


def test_nobody_but_the_owner_may_read_the_files(archive):
    path = archive.directory / archive.files[0].name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(archive.directory.stat().st_mode) == 0o700


def test_a_file_with_one_byte_changed_is_found(archive):
    path = archive.directory / archive.files[0].name
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert faults(archive) == [(archive.files[0].name, "is not the file that was written: size or checksum differ")]


def test_a_file_that_is_missing_is_found(archive):
    (archive.directory / archive.files[1].name).unlink()
    assert faults(archive) == [(archive.files[1].name, "is missing")]


def test_a_file_that_nobody_entered_is_found(archive):
    stray = archive.directory / "00001" / "00000000000000000000.avro"
    stray.parent.mkdir()
    stray.write_bytes(b"")
    assert faults(archive) == [("00001/00000000000000000000.avro", "is not entered in the manifest")]


def edit_manifest(archive: Archive, index: int, **changes: object) -> None:
    path = archive.directory / "manifest.json"
    document = orjson.loads(path.read_bytes())
    document["files"][index] |= changes
    path.write_bytes(orjson.dumps(document))


def test_a_hole_between_two_files_is_found(archive):
    edit_manifest(archive, 0, next_offset=5)
    assert (archive.files[1].name, "offsets 5 to 5 of partition 0 are missing") in faults(archive)


def test_an_overlap_of_two_files_is_found(archive):
    edit_manifest(archive, 0, next_offset=8)
    assert (archive.files[1].name, "offsets 6 to 7 of partition 0 are there twice") in faults(archive)


def test_a_wrong_number_of_records_is_found(archive):
    edit_manifest(archive, 0, records=7)
    assert faults(archive) == [(archive.files[0].name, "holds 2 records, not 7")]


def test_records_outside_a_files_offsets_are_found(archive):
    edit_manifest(archive, 1, first_offset=7)
    assert (archive.files[1].name, "holds offsets that are not its own") in faults(archive)


def test_a_file_goes_on_exactly_where_the_one_before_ended(archive):
    with pytest.raises(ArchiveBroken, match="goes on at 9, not at 10"):
        archive.append(0, 10, 11, [])


def test_an_export_that_was_cut_short_goes_on_where_the_manifest_ends(archive):
    unfinished = archive.directory / "00000" / "00000000000000000009.unfinished"
    unfinished.write_bytes(b"half")
    again = Archive.opened_or_made(archive.directory, TOPIC, "topic-id", 2)
    again.append(0, 9, 10, [Record(Position(TOPIC, 0, 9), 1, b"k", b"v", ())])
    assert [record.position.offset for record in again.records(0)] == [3, 5, 6, 9]
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("topic", "topic_id", "partitions", "message"),
    [
        ("others", "topic-id", 2, "is an archive of events, not of others"),
        (TOPIC, "another", 2, "deleted and made again"),
        (TOPIC, "topic-id", 3, "had 2 partitions; it has 3 now"),
    ],
)
def test_another_topics_archive_is_not_gone_on_with(archive, topic, topic_id, partitions, message):
    with pytest.raises(ArchiveBroken, match=message):
        Archive.opened_or_made(archive.directory, topic, topic_id, partitions)


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(ArchiveBroken, match="is not empty"):
        Archive.opened_or_made(tmp_path, TOPIC, None, 1)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format": 99}', b'{"format": 1}', b'{"format": 1, "files": [{}]}'])
def test_a_manifest_that_cannot_be_read_is_said_to_be_so(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ArchiveBroken, match="manifest"):
        Archive.opened(tmp_path)


def test_a_directory_without_a_manifest_is_no_archive(tmp_path):
    with pytest.raises(ArchiveBroken, match="is no archive"):
        Archive.opened(tmp_path)


def test_a_file_of_something_else_is_refused_where_it_is_read(archive):
    (archive.directory / archive.files[0].name).write_bytes(b"no avro at all")
    with pytest.raises(ArchiveBroken, match="cannot be read"):
        list(archive.records(0))
