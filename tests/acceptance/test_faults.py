"""One fault of every kind among healthy prescriptions: each is set aside with its reason, and nobody else notices."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

import orjson
import pytest
from kafka import KafkaProducer

from ingest.partitioning import partitioner
from schemas.identifiers import with_check_character
from tests import examples
from tests.acceptance.conftest import System

PARTITIONS = 8
partition_of = partitioner("murmur2", PARTITIONS)


@dataclass(slots=True)
class Publisher:
    """A publisher that makes mistakes: it sends whatever it is given, wherever it is told to."""

    system: System
    producer: KafkaProducer
    streams: int = 0
    sent: list[str] = field(default_factory=list)

    def stream(self) -> str:
        """Return the id of a new prescription."""
        self.streams += 1
        return with_check_character(f"{self.streams:06X}-Z99901-{self.streams:05X}")

    def send(
        self,
        payload: dict | bytes,
        subject: str,
        *,
        key: str | None = None,
        shift: int = 0,
        timestamp_ms: int | None = None,
    ) -> None:
        value = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        stream_key = (key or subject)[:-1].encode()
        place = partition_of(subject[:-1].encode()) + shift
        self.producer.send(
            self.system.environment["RXSTORE_TOPIC"],
            value,
            key=stream_key,
            partition=place % PARTITIONS,
            headers=[("content-type", b"application/cloudevents+json")],
            timestamp_ms=timestamp_ms,
        ).get(10)

    def create(self, subject: str, sequence: str | None = "1", **overrides: object) -> None:
        self.send(self.event(examples.created, subject, 1, sequence, **overrides), subject)

    def event(self, example, subject: str, number: int, sequence: str | None = None, **overrides: object) -> dict:
        return example(
            subject=subject,
            id=f"{subject}-{number}",
            sequence=sequence if sequence is not None else examples.DROPPED,
            **overrides,
        )


@pytest.fixture
def publisher(system, broker):
    producer = KafkaProducer(bootstrap_servers=broker, max_request_size=4_000_000)
    yield Publisher(system, producer)
    producer.close()


def too_large(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    payload = publisher.event(examples.released, subject, 2, "2")
    publisher.send(payload | {"filler": "." * 300_000}, subject)


def unreadable(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(b"{not json", subject)


def contract_violation(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(publisher.event(examples.dispensed, subject, 2, "2", notification_id="no UUID"), subject)


def unread_created(publisher: Publisher, subject: str) -> None:
    publisher.create(subject, days_supply=0, nhs_number=examples.OTHER_NHS_NUMBER)


def unknown_type(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    payload = publisher.event(examples.released, subject, 2, "2")
    publisher.send(payload | {"type": "eps.prescription.released.v9"}, subject)


def misrouted_by_partition(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(publisher.event(examples.released, subject, 2, "2"), subject, shift=1)


def misrouted_by_key(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(publisher.event(examples.released, subject, 2, "2"), subject, key=publisher.stream())


def not_created(publisher: Publisher, subject: str) -> None:
    publisher.send(publisher.event(examples.released, subject, 2), subject)


def sequence_gap(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(publisher.event(examples.released, subject, 3, "3"), subject)


def sequence_conflict(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(publisher.event(examples.released, subject, 2, "1"), subject)


def illegal_transition(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(publisher.event(examples.claimed, subject, 2, "2"), subject)


def behind_block(publisher: Publisher, subject: str) -> None:
    illegal_transition(publisher, subject)
    publisher.send(publisher.event(examples.released, subject, 3, "2"), subject)


def duplicate_prescription(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(publisher.event(examples.created, subject, 2, "2"), subject)


def after_deletion(publisher: Publisher, subject: str) -> None:
    publisher.create(subject)
    publisher.send(publisher.event(examples.deleted, subject, 2, "2"), subject)
    publisher.send(publisher.event(examples.released, subject, 3, "3"), subject)


# What each fault is set aside as, in which state, and what a look-up of its prescription answers.
FAULTS = {
    too_large: ({("open", "too_large")}, "4"),
    unreadable: ({("open", "unreadable")}, "4"),
    contract_violation: ({("open", "contract_violation")}, "4"),
    unread_created: ({("open", "contract_violation")}, "4"),
    unknown_type: ({("open", "unknown_type")}, "4"),
    misrouted_by_partition: ({("open", "misrouted")}, "4"),
    misrouted_by_key: ({("open", "misrouted")}, "4"),
    not_created: ({("parked", "not_created")}, "1"),
    sequence_gap: ({("parked", "sequence_gap")}, "4"),
    sequence_conflict: ({("open", "sequence_conflict")}, "4"),
    illegal_transition: ({("open", "illegal_transition")}, "4"),
    behind_block: ({("open", "illegal_transition"), ("parked", "behind_block")}, "4"),
    duplicate_prescription: ({("open", "duplicate_prescription")}, "2"),
    after_deletion: ({("open", "deleted")}, "1"),
}


def test_every_kind_of_fault_is_listed_with_its_reason_and_everything_else_answers(system, publisher):
    healthy = publisher.stream()
    publisher.create(healthy, nhs_number="9990000034")
    streams = {}
    for fault in FAULTS:
        streams[fault] = publisher.stream()
        fault(publisher, streams[fault])
    publisher.send(b"{}", publisher.stream(), key="no stream key")
    system.project()

    listed = system.quarantine()
    for fault, (expected, _) in FAULTS.items():
        found = {(r["state"], r["reason"]) for r in listed if r["stream_key"] == streams[fault][:-1]}
        assert found == expected, fault.__name__
    assert {r["reason"] for r in listed if r["stream_key"] is None} == {"contract_violation"}
    assert all(r["errors"] for r in listed if r["state"] == "open" and r["reason"] != "deleted")
    (behind,) = [r for r in listed if r["reason"] == "behind_block"]
    (block,) = [r for r in listed if r["stream_key"] == behind["stream_key"] and r["state"] == "open"]
    assert behind["waiting_for"] == block["id"]
    assert (block["blocks"], block["parked_behind"]) == (True, 1)

    with system.serving(RXSTORE_NOW="2026-03-10T12:00:00Z") as ask:
        for fault, (_, expected_code) in FAULTS.items():
            answer = ask(f"/mm/prescriptions/{quote(streams[fault])}?format=trace")
            assert answer.body["statusCode"] == expected_code, fault.__name__
            if expected_code in {"2", "4"}:
                assert answer.body["prescription"] == {}
                assert "rxstore-blocked" in answer.headers
        whole = ask(f"/mm/prescriptions/{quote(healthy)}?format=trace")
        mixed = ask("/mm/prescriptions?nhsNumber=9990000018&format=trace-summary")
        unread = ask("/mm/prescriptions?nhsNumber=9990000026&format=trace-summary&earliestDate=20200101")
    assert whole.body["statusCode"] == "0"
    assert mixed.body["statusCode"] == "4"
    assert unread.body["statusCode"] == "4"
    assert unread.body["prescriptionList"] == {}

    (generation,) = system.status()["generations"]
    open_records = [r for r in listed if r["state"] == "open"]
    assert generation["quarantined"] == len(open_records)
    assert generation["parked"] == len(listed) - len(open_records)
    assert generation["blocked"] == sum(code in {"2", "4"} for _, code in FAULTS.values())


def test_a_repaired_event_sent_again_under_its_id_makes_the_prescription_whole(system, publisher):
    subject = publisher.stream()
    publisher.create(subject)
    broken = publisher.event(examples.released, subject, 2, "2", dispensing_organisation=None)
    publisher.send(broken, subject)
    publisher.send(publisher.event(examples.dispensed, subject, 3, "3"), subject)
    system.project()
    with system.serving() as ask:
        assert ask(f"/mm/prescriptions/{quote(subject)}").body["statusCode"] == "4"
        publisher.send(publisher.event(examples.released, subject, 2, "2"), subject)
        system.project()
        answer = ask(f"/mm/prescriptions/{quote(subject)}")
    assert answer.body["statusCode"] == "0"
    assert answer.body["prescription"]["issue"]["prescriptionStatus"]["statusCode"] == "0006"
    assert system.quarantine() == []
    assert [r["state"] for r in system.quarantine("--state", "repaired")] == ["repaired"]


def test_a_record_is_shown_with_its_errors_and_its_payload_only_when_asked_for(system, publisher):
    subject = publisher.stream()
    contract_violation(publisher, subject)
    system.project()
    (record,) = system.quarantine()
    shown = system.do("quarantine", "show", record["id"])
    assert "data.notificationId" in shown
    assert "no UUID" not in shown
    assert "no UUID" in system.do("quarantine", "show", record["id"], "--payload")


def test_no_message_for_operators_names_a_patient(system, publisher):
    for fault in FAULTS:
        fault(publisher, publisher.stream())
    done = system.run("project", "--until-caught-up", "--workers", "1", RXSTORE_LOG_LEVEL="debug")
    said = done.stdout + done.stderr + system.run("quarantine", "list").stdout + system.run("status").stdout
    for secret in ("9990000018", "9990000026", "INVENTED PHARMACY", "INVENTED SURGERY"):
        assert secret not in said
