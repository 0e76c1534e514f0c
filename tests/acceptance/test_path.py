"""The path of one event: from the topic through the projector into PostgreSQL and out of the tracker's endpoints."""

from __future__ import annotations

import json
import os
import signal
from datetime import date

import psutil
import pytest
from kafka import KafkaConsumer, TopicPartition

from ingest.decode import Decoder
from ingest.lookup import record_of
from ingest.partitioning import partitioner
from projector.batch import Position, Record
from projector.projection import by_stream
from projector.read_model import ReadModel
from projector.runner import connect
from projector.stream import Stream, fold
from rxstore.generator import lifecycles
from tests.acceptance.conftest import System, eventually
from tests.integration.projecting import rows

PARTITIONS = 8
DECODE = Decoder(partition_of=partitioner("murmur2", PARTITIONS))


def generated(prescriptions: int, seed: int = 1) -> list[dict]:
    return list(lifecycles(prescriptions, seed, date(2026, 1, 5), 28))


def log_of(system: System, published: int) -> list[Record]:
    """Read the whole topic: the embedded broker tells no end offsets that one could trust."""
    partitions = [TopicPartition(system.environment["RXSTORE_TOPIC"], number) for number in range(PARTITIONS)]
    consumer = KafkaConsumer(
        bootstrap_servers=system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"], enable_auto_commit=False
    )
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    found: dict[Position, Record] = {}
    while len(found) < published:
        for polled in consumer.poll(timeout_ms=500).values():
            found |= {record.position: record for record in map(record_of, polled)}
    consumer.close()
    return [found[position] for position in sorted(found)]


def assert_rows_are_those_of_the_pure_fold(system: System, published: int) -> None:
    arrivals = by_stream(DECODE(record) for record in log_of(system, published))
    streams = {key: items[0].record.position.partition for key, items in arrivals.by_stream.items()}
    with connect(system.environment["RXSTORE_DATABASE_URL"]) as connection:
        stored = ReadModel("rx_g1").load(connection, streams, DECODE, lambda _: True)
    for key, items in arrivals.by_stream.items():
        truth = fold(Stream(key, streams[key]), items)
        assert stored[key].prescription == truth.prescription
        assert stored[key].history == truth.history
    counted = system.query("SELECT count(*) FROM rx_g1.prescription")
    assert counted == [(len(streams),)]


def total_lag(system: System, published: int) -> int:
    (reached,) = system.query("SELECT coalesce(sum(next_offset), 0) FROM rxstore.checkpoint")
    return published - int(reached[0])


def test_every_generated_event_folds_and_the_views_are_whole(system):
    events = generated(300)
    system.publish(events)
    counts = system.project()
    assert counts == {"folded": len(events), "duplicates": 0, "parked": 0, "quarantined": 0, "repaired": 0}
    (generation,) = system.status()["generations"]
    assert (generation["lag_events"], generation["lag_seconds"]) == (0, 0.0)
    assert (generation["blocked"], generation["parked"], generation["quarantined"]) == (0, 0, 0)
    assert_rows_are_those_of_the_pure_fold(system, len(events))


def test_projecting_again_changes_no_row(system):
    system.publish(generated(50))
    system.project()
    before = rows(system.environment["RXSTORE_DATABASE_URL"])
    assert system.project()["folded"] == 0
    assert rows(system.environment["RXSTORE_DATABASE_URL"]) == before


def test_publishing_the_same_file_again_changes_no_row_and_counts_duplicates(system):
    events = generated(50)
    system.publish(events)
    system.project()
    before = rows(system.environment["RXSTORE_DATABASE_URL"])
    system.publish(events)
    assert system.project()["duplicates"] == len(events)
    assert rows(system.environment["RXSTORE_DATABASE_URL"]) == before


def test_a_patient_is_found_by_search_and_the_prescription_in_detail(system):
    events = generated(50)
    system.publish(events)
    system.project()
    created = next(event for event in events if event["type"] == "eps.prescription.created.v1")
    found = system.query(
        "SELECT i.status FROM rxstore.issue i JOIN rxstore.prescription p USING (stream_key) "
        "WHERE p.prescription_id = %s AND i.issue_number = p.current_issue",
        created["subject"],
    )
    with system.serving(RXSTORE_NOW="2026-02-01T12:00:00Z") as ask:
        search = ask(f"/mm/prescriptions?nhsNumber={created['data']['nhsNumber']}&format=trace-summary")
        detail = ask(f"/mm/prescriptions/{created['subject'].replace('+', '%2B')}?format=trace")
    assert search.body["statusCode"] == "0"
    assert created["subject"] in search.body["prescriptionList"]
    assert detail.body["prescription"]["issue"]["prescriptionStatus"]["statusCode"] == found[0][0]
    assert "rxstore-as-of" in detail.headers


def worker_processes(fleet: psutil.Process) -> list[psutil.Process]:
    return [child for child in fleet.children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.kafka
def test_two_workers_and_a_rebalance_in_the_middle_lose_nothing_and_double_nothing(system):
    events = generated(2_000)
    system.publish(events)
    with system.running("project", "--workers", "2", RXSTORE_BATCH_RECORDS="200"):
        eventually(lambda: total_lag(system, len(events)) < len(events) * 0.9)
        with system.running("project", "--workers", "1", RXSTORE_BATCH_RECORDS="200"):
            eventually(lambda: total_lag(system, len(events)) < len(events) * 0.6)
        eventually(lambda: total_lag(system, len(events)) == 0)
    assert_rows_are_those_of_the_pure_fold(system, len(events))


@pytest.mark.kafka
def test_a_killed_worker_loses_nothing_and_doubles_nothing(system):
    events = generated(2_000)
    system.publish(events)
    with system.running("project", "--workers", "2", RXSTORE_BATCH_RECORDS="100") as fleet:
        eventually(lambda: total_lag(system, len(events)) < len(events) * 0.9)
        victim = worker_processes(psutil.Process(fleet.pid))[0]
        os.kill(victim.pid, signal.SIGKILL)
        eventually(lambda: total_lag(system, len(events)) == 0)
    assert_rows_are_those_of_the_pure_fold(system, len(events))


def test_the_workers_end_when_their_fleet_is_killed(system):
    with system.running("project", "--workers", "2") as fleet:
        parent = psutil.Process(fleet.pid)
        eventually(lambda: len(worker_processes(parent)) == 2)
        workers = worker_processes(parent)
        parent.kill()
        eventually(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))


def test_sigterm_stops_the_projector_with_exit_code_zero(system):
    with system.running("project", "--workers", "1") as fleet:
        eventually(lambda: bool(worker_processes(psutil.Process(fleet.pid))))
        fleet.send_signal(signal.SIGTERM)
        assert fleet.wait(30) == 0


def test_status_follows_while_a_projector_runs(system):
    system.publish(generated(50))
    with system.running("project", "--workers", "1"):
        eventually(lambda: system.status()["verdict"] == "following")
        (generation,) = system.status()["generations"]
    assert {partition["partition"] for partition in generation["partitions"]} == set(range(PARTITIONS))
    assert all(partition["owner"] for partition in generation["partitions"])


@pytest.mark.parametrize("way", [(), ("--tls",)], ids=["plain HTTP", "TLS"])
def test_the_demo_prints_a_search_and_a_detail_answer(system, way):
    printed = system.do("demo", "--once", "--prescriptions", "100", *way)
    search, end = json.JSONDecoder().raw_decode(printed)
    detail, _ = json.JSONDecoder().raw_decode(printed[end:].lstrip())
    assert search["statusCode"] == "0"
    assert detail["prescription"]["prescriptionId"] in search["prescriptionList"]
