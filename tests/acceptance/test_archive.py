"""The archive as people use it: exported from a topic, exported further, verified, refused where it would be wrong."""

from __future__ import annotations

import json
from datetime import date

import pytest
from kafka import KafkaAdminClient, TopicPartition

from ingest.archive import Archive
from rxstore.generator import lifecycles
from tests.acceptance.conftest import System, eventually
from tests.acceptance.test_path import log_of
from tests.integration.projecting import rows

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


def archive_ends(system: System) -> dict[int, int]:
    archive = Archive.opened(system.directory / "archive")
    return {number: end for number in range(8) if (end := archive.next_offset(number))}


def test_a_rebuild_reads_the_archive_and_then_the_topic_without_a_hole_or_an_overlap(system):
    broken = EVENTS[HALF] | {"data": {}}
    system.publish(EVENTS[:HALF])
    system.do("publish", "-", "--no-validate", stdin=json.dumps(broken).encode())
    system.project()
    (record,) = system.quarantine("--state", "open")
    system.run("quarantine", "skip", record["id"], "--why", "a test", "--yes", "--wait", "0")
    system.project()
    exported_files(system)
    system.publish(EVENTS[HALF + 1 :])
    system.forget_log_before(archive_ends(system))
    system.project()

    staged = json.loads(system.do("rebuild", "stage", "--archive", "archive", "--workers", "1", "--json"))
    assert staged["state"] == "ready"
    verified = json.loads(system.do("rebuild", "verify", "--json"))
    assert (verified["clean"], sum(verified["offsets"].values())) == (True, len(EVENTS))
    url = system.environment["RXSTORE_DATABASE_URL"]
    assert rows(url, "rx_g2") == rows(url, "rx_g1")


def test_a_load_that_was_killed_goes_on_where_it_was(system):
    system.publish(EVENTS)
    system.project()
    exported_files(system)
    stage = ("rebuild", "stage", "--archive", "archive", "--workers", "1")
    with system.running(*stage, RXSTORE_BATCH_RECORDS="1", RXSTORE_BUILD_MEMORY_MB="1") as loading:
        eventually(lambda: loaded(system) > 0)
        loading.kill()
        loading.wait()
    assert system.query("SELECT state FROM rxstore.generation WHERE name = 'g2'") in ([("loading",)], [("building",)])
    system.do(*stage)
    url = system.environment["RXSTORE_DATABASE_URL"]
    assert rows(url, "rx_g2") == rows(url, "rx_g1")


def loaded(system: System) -> int:
    if system.query("SELECT to_regclass('rx_g2.prescription') IS NULL") == [(True,)]:
        return 0
    return int(system.query("SELECT count(*) FROM rx_g2.prescription")[0][0])


def test_a_hole_between_archive_and_topic_is_refused_and_nothing_is_staged(system):
    system.publish(EVENTS[:HALF])
    exported_files(system)
    system.publish(EVENTS[HALF:])
    number, end = next(iter(archive_ends(system).items()))
    system.forget_log_before({number: end + 1})
    done = system.run("rebuild", "stage", "--archive", "archive")
    assert done.returncode == 4
    assert "is in neither" in done.stderr
    assert system.query("SELECT count(*) FROM rxstore.generation") == [(1,)]
