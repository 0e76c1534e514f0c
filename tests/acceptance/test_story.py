"""The story of one prescription, as an operator and an investigator ask for it."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaProducer

from rxstore.cli.main import rxstore
from tests import examples
from tests.acceptance.conftest import System, installed
from tests.acceptance.test_faults import Publisher
from tests.conftest import PARTITIONS, new_database

WHY = "the publisher sent it by mistake"
# When the first of the five records below reached the log, the others a minute after each other: before any decision,
# and not so long ago that the topic's retention takes them away.
FIRST = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=20)
WHOLE = [
    ("parked", "not_created", None),
    ("folded", None, 1),
    ("folded", None, 2),
    ("quarantined", "illegal_transition", None),
    ("quarantined", "contract_violation", None),
    ("parked", "behind_block", None),
    ("skipped", None, None),
    ("folded", None, 3),
]


@dataclass(frozen=True, slots=True)
class Lived:
    """An installation with prescriptions of the same story, each for one test to meddle with."""

    system: System
    read: str
    undone: str
    lost: str
    differs: str
    deleted: str


@pytest.fixture(scope="module")
def lived(postgres_url, migrated_template, broker, admin, tmp_path_factory):
    """Of each prescription the first event came second; one was skipped, one repaired by its publisher."""
    topic = f"rxstore-test-{uuid.uuid4().hex}"
    admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    with new_database(postgres_url, template=migrated_template) as database_url:
        system = installed(database_url, broker, topic, tmp_path_factory.mktemp("story"))
        producer = KafkaProducer(bootstrap_servers=broker)
        publisher = Publisher(system, producer)
        subjects = [live(publisher) for _ in range(5)]
        publisher.send(publisher.event(examples.deleted, subjects[4], 5, "5"), subjects[4])
        producer.close()
        system.project()
        how = ("--reason", "illegal_transition", "--why", WHY, "--by", "a.n.other", "--yes", "--wait", "0")
        system.run("quarantine", "skip", *how)
        system.project()
        yield Lived(system, *subjects)


def live(publisher: Publisher) -> str:
    subject = publisher.stream()
    payloads = [
        publisher.event(examples.released, subject, 2, "2"),
        publisher.event(examples.created, subject, 1, "1"),
        publisher.event(examples.claimed, subject, 3, "3"),
        publisher.event(examples.dispensed, subject, 4, "4", notification_id="no UUID"),
        publisher.event(examples.dispensed, subject, 4, "4"),
    ]
    for minute, payload in enumerate(payloads):
        stamp = FIRST + timedelta(minutes=minute)
        publisher.send(payload, subject, timestamp_ms=int(stamp.timestamp() * 1000))
    return subject


def invoked(lived, *arguments: str) -> Result:
    return CliRunner(env=lived.system.environment).invoke(rxstore, ["explain", *arguments])


def explained(lived, *arguments: str) -> dict:
    """What ``explain --json`` prints; in this process, which saves a second each time."""
    done = invoked(lived, *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def outcomes(story: dict) -> list[tuple]:
    return [(step["outcome"], step["reason"], step["version"]) for step in story["steps"]]


def test_the_story_tells_what_became_of_every_event(lived):
    story = explained(lived, lived.read)
    assert outcomes(story) == WHOLE
    assert (story["complete"], story["as_stored"], story["deleted"]) == (True, True, False)
    assert story["state"]["issues"]["1"]["status"] == "0006"
    assert story["state"]["blocked"] is None
    decision = story["steps"][6]["decision"]
    assert (decision["action"], decision["by"], decision["why"]) == ("skip", "a.n.other", WHY)
    assert story["steps"][5]["repairs"] == [story["steps"][4]["position"]]
    assert story["steps"][7]["because_of"] == f"decision {decision['decision']}"


def test_the_page_for_people_tells_the_same_without_naming_anybody(lived):
    page = lived.system.do("explain", lived.read)
    assert "folded as version 2, because of" in page
    assert "error data.notificationId: must be a UUID" in page
    assert f"by a.n.other: {WHY}" in page
    assert "issue 1: 0006 (items 0001 0001), the current one" in page
    named = (examples.NHS_NUMBER, examples.PHARMACY["name"], examples.SURGERY["address"], "tablet")
    assert [name for name in named if name in page] == []


def test_at_a_time_only_what_had_arrived_and_been_decided_counts(lived):
    def at(instant: datetime) -> dict:
        return explained(lived, lived.read, "--at", instant.isoformat())

    assert outcomes(at(FIRST)) == WHOLE[:1]
    assert outcomes(at(FIRST + timedelta(minutes=1, seconds=30))) == WHOLE[:3]
    before_the_decision = at(FIRST + timedelta(minutes=9))
    assert outcomes(before_the_decision) == WHOLE[:6]
    assert before_the_decision["state"]["blocked"] == "illegal_transition"
    assert before_the_decision["state"]["issues"]["1"]["status"] == "0002"
    decided = datetime.fromisoformat(explained(lived, lived.read)["decisions"][0]["at"])
    assert outcomes(at(decided - timedelta(microseconds=1))) == WHOLE[:6]
    assert outcomes(at(decided)) == WHOLE


def test_a_revoked_decision_is_still_told_and_counts_for_the_time_when_it_stood(lived):
    decided = explained(lived, lived.undone)["decisions"][0]
    lived.system.do("quarantine", "undo", str(decided["decision"]), "--by", "somebody.else")
    story = explained(lived, lived.undone)
    assert outcomes(story) == WHOLE[:6]
    assert story["decisions"][0]["revoked_by"] == "somebody.else"
    assert outcomes(explained(lived, lived.undone, "--at", decided["at"])) == WHOLE
    assert "by somebody.else" in lived.system.do("explain", lived.undone)


def test_what_the_log_no_longer_has_is_said_and_the_rest_is_told(lived):
    # The first event that folded now seems to stand beyond the end of the log.
    lived.system.execute(
        "UPDATE rx_g1.prescription SET folded_positions = overlay(folded_positions PLACING '\\x7f'::bytea FROM 6) "
        f"WHERE prescription_id = '{lived.lost}'"
    )
    story = explained(lived, lived.lost)
    assert (story["complete"], story["as_stored"]) == (False, None)
    lost = [step for step in story["steps"] if not step["in_log"]]
    assert [(step["outcome"], step["version"], step["event"]) for step in lost] == [("folded", 1, None)]
    assert story["state"]["issues"]["1"]["status"] == "0006"
    assert "the log no longer has 1 of its events" in lived.system.do("explain", lived.lost)


def test_of_a_deleted_prescription_there_is_nothing_to_tell(lived):
    story = explained(lived, lived.deleted)
    assert (story["deleted"], story["complete"], story["state"]) == (True, False, None)
    assert "deleted" in lived.system.do("explain", lived.deleted)


def test_rows_that_differ_from_the_story_are_noticed(lived):
    lived.system.execute(f"UPDATE rx_g1.issue SET status = '0001' WHERE stream_key = '{lived.differs[:-1]}'")
    assert explained(lived, lived.differs)["as_stored"] is False
    assert "rxstore rebuild prescription" in lived.system.do("explain", lived.differs)


def test_an_unknown_prescription_and_a_malformed_question_are_told_apart(lived):
    unknown = invoked(lived, "3AF2CB-C86002-0000BX")
    assert (unknown.exit_code, "nothing is known" in unknown.stderr) == (1, True)
    assert invoked(lived, "no id").exit_code == 2
    assert invoked(lived, "3AF2CB-C86002-0000BX", "--at", "yesterday").exit_code == 2
