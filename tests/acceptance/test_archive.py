"""The archive as people use it: exported from a topic, exported further, verified, refused where it would be wrong."""

from __future__ import annotations

import json
from datetime import date

import pytest
from kafka import KafkaAdminClient, TopicPartition

from ingest.archive import Archive
from rxstore.generator import lifecycles
from tests.acceptance.conftest import System
from tests.acceptance.test_path import log_of

pytestmark = pytest.mark.kafka

EVENTS = list(lifecycles(40, 1, date(2026, 1, 5), 28))
HALF = len(EVENTS) // 2


def archived(system: System) -> list:
    archive = Archive.opened(system.directory / "archive")
    return [record for partition in range(archive.partitions) for record in archive.records(partition)]


def exported_files(system: System) -> list[dict]:
    return [json.loads(line) for line in system.do("archive", "export", "archive", "--json").splitlines()]


def test_an_export_holds_every_record_and_the_next_one_goes_on_where_it_was(system):
    system.publish(EVENTS[:HALF])
    first = exported_files(system)
    assert archived(system) == log_of(system, HALF)
    system.publish(EVENTS[HALF:])
    second = exported_files(system)
    assert archived(system) == log_of(system, len(EVENTS))
    assert sum(file["records"] for file in first + second) == len(EVENTS)
    assert exported_files(system) == []
    done = system.run("archive", "verify", "archive")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{len(EVENTS)} records" in done.stderr


def test_a_changed_file_is_found_and_the_exit_code_says_so(system):
    system.publish(EVENTS[:HALF])
    (file, *_) = exported_files(system)
    (system.directory / "archive" / file["name"]).write_bytes(b"")
    done = system.run("archive", "verify", "archive", "--json")
    assert done.returncode == 1
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [file["name"]]


def test_what_retention_took_before_it_was_exported_is_a_hole_and_refused(system):
    system.publish(EVENTS[:HALF])
    (file, *_) = exported_files(system)
    system.publish(EVENTS[HALF:])
    partition = TopicPartition(system.environment["RXSTORE_TOPIC"], file["partition"])
    admin = KafkaAdminClient(bootstrap_servers=system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"])
    admin.delete_records({partition: file["next_offset"] + 1})
    admin.close()
    done = system.run("archive", "export", "archive")
    assert done.returncode == 4
    assert "retention took events away before they were exported" in done.stderr


def test_a_directory_that_is_no_archive_is_wrong_use(system):
    done = system.run("archive", "verify", ".")
    assert done.returncode == 2
    assert "is no archive of rxstore" in done.stderr
