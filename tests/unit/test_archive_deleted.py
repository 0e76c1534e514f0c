"""What an archive holds of deleted prescriptions: every record that names one, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from ingest.archive import Archive
from projector.batch import Position, Record
from rxstore.cli.main import rxstore
from tests import examples

KEY = examples.PRESCRIPTION_ID[:-1]
OTHER = "0B0B0B-Z90001-00001"
STRUCTURED = (("content-type", b"application/cloudevents+json"),)


def record(offset: int, event: dict | bytes, key: str | None = KEY, headers=STRUCTURED, partition: int = 0) -> Record:
    value = event if isinstance(event, bytes) else orjson.dumps(event)
    return Record(Position("events", partition, offset), 0, None if key is None else key.encode(), value, headers)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    archive = Archive.opened_or_made(tmp_path / "archive", "events", "id", 2)
    archive.append(0, 0, 2, [record(0, examples.created()), record(1, {**examples.created(), "subject": OTHER}, OTHER)])
    archive.append(0, 2, 5, [record(2, b"no JSON"), record(4, examples.deleted())])
    misrouted = record(7, {**examples.released(), "subject": examples.PRESCRIPTION_ID.lower()}, None, partition=1)
    archive.append(1, 7, 9, [misrouted, record(8, b"no JSON", OTHER, partition=1)])
    return archive.directory


def told(directory: Path, *options: str) -> str:
    done = CliRunner().invoke(rxstore, ["archive", "deleted", str(directory), *options])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_each_record_that_names_a_deleted_prescription_is_listed(directory):
    found = [json.loads(line) for line in told(directory, "--json").splitlines()]
    assert {one["stream_key"] for one in found} == {KEY}
    assert [(one["partition"], one["offset"]) for one in found] == [(0, 0), (0, 2), (0, 4), (1, 7)]
    assert found[0]["file"] == "00000/00000000000000000000.avro"


def test_people_get_a_line_a_file(directory):
    assert f"{KEY}  00000/00000000000000000002.avro  offsets 2, 4" in told(directory).splitlines()


def test_an_archive_without_a_deletion_holds_nothing_of_one(tmp_path):
    archive = Archive.opened_or_made(tmp_path / "archive", "events", "id", 1)
    words = "eps.prescription.deleted.v1"
    archive.append(0, 0, 1, [record(0, {**examples.created(), "source": words})])
    assert "nothing of a prescription" in told(archive.directory)


def test_the_index_of_an_archive_names_nobody(directory):
    manifest = (directory / "manifest.json").read_text()
    assert KEY not in manifest
    assert examples.NHS_NUMBER not in manifest


def test_a_directory_that_is_no_archive_is_wrong_use(tmp_path):
    done = CliRunner().invoke(rxstore, ["archive", "deleted", str(tmp_path)])
    assert (done.exit_code, "no archive of rxstore" in done.stderr) == (2, True)
