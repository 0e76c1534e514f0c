"""The state as of a time, as an investigator builds and asks it; and the previous generation, let go at its time."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaProducer

from ingest.lookup import lookup
from ingest.moment import ends_at
from projector.projection import by_stream
from projector.read_model import ReadModel
from projector.runner import connect
from projector.stream import Stream, fold
from rxstore import store, story
from rxstore.cli.main import rxstore
from rxstore.fleet import make_reader
from rxstore.generator import lifecycles, records
from rxstore.settings import load
from tests.acceptance.conftest import Answer, System, eventually, installed
from tests.acceptance.test_path import DECODE, log_of
from tests.conftest import PARTITIONS, new_database
from tests.integration.projecting import rows

EVENTS = list(lifecycles(60, 1, date(2026, 1, 5), 28))
RECORDS = list(records(iter(EVENTS), dirty_rate=0.1, seed=1))
HALF = len(RECORDS) // 2
HOUR = timedelta(hours=1)
SKIP = ("quarantine", "skip", "--reason", "contract_violation", "--why", "a test", "--yes", "--wait", "0")
SEARCH = "/mm/prescriptions?nhsNumber={}&earliestDate=20260101&latestDate=20260301"
RETRIEVE = "/mm/prescriptions/{}?issueNumber={}"


def url(system: System) -> str:
    return system.environment["RXSTORE_DATABASE_URL"]


def now(system: System) -> datetime:
    """What the database's clock says."""
    ((instant,),) = system.query("SELECT clock_timestamp()")
    return instant


def state(system: System, name: str) -> str:
    ((found,),) = system.query("SELECT state FROM rxstore.generation WHERE name = %s", name)
    return str(found)


def ends_of(system: System, published: int, at: datetime) -> dict[int, int]:
    """Where each partition ended at a time, found by reading all of it."""
    ends = dict.fromkeys(range(PARTITIONS), 0)
    ended = set()
    for record in log_of(system, published):
        partition, offset = record.position.partition, record.position.offset
        if record.timestamp_ms > at.timestamp() * 1000:
            ended.add(partition)
        if partition not in ended:
            ends[partition] = offset + 1
    return ends


# a state that stood -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Past:
    """An installation that has moved on since ``at``, with what its live rows and its API were then.

    ``g2`` was built as of then.
    """

    system: System
    at: datetime
    rows: dict[str, list[str]]
    answers: dict[str, Answer]


def send(system: System, made: list[Any], stamps: list[datetime | None]) -> None:
    """Publish records as publishers would whose clocks differ, to the places where they make mistakes."""
    producer = KafkaProducer(bootstrap_servers=system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"])
    for record, stamp in zip(made, stamps, strict=True):
        producer.send(
            system.environment["RXSTORE_TOPIC"],
            record.value,
            key=record.key,
            headers=list(record.headers),
            partition=(DECODE.partition_of(record.key) + record.partition_shift) % PARTITIONS,
            timestamp_ms=None if stamp is None else int(stamp.timestamp() * 1000),
        )
    producer.flush()
    producer.close()


def ids() -> list[str]:
    return [event["subject"] for event in EVENTS if event["type"] == "eps.prescription.created.v1"]


def paths() -> list[str]:
    """Questions about every prescription and every patient."""
    patients = {event["data"]["nhsNumber"] for event in EVENTS if event["type"] == "eps.prescription.created.v1"}
    retrieved = [RETRIEVE.format(subject.replace("+", "%2B"), 1) for subject in ids()]
    return retrieved + [SEARCH.format(number) for number in sorted(patients)]


@pytest.fixture(scope="module")
def past(postgres_url, migrated_template, broker, admin, tmp_path_factory) -> Iterator[Past]:
    topic = f"rxstore-test-{uuid.uuid4().hex}"
    admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    with new_database(postgres_url, template=migrated_template) as database_url:
        system = installed(database_url, broker, topic, tmp_path_factory.mktemp("past"))
        dice = random.Random(1)
        began = now(system) - HOUR
        # Neither the first nor the second half is stamped in its order.
        send(system, RECORDS[:HALF], [began + timedelta(seconds=dice.uniform(0, 3_000)) for _ in range(HALF)])
        system.project()
        assert system.run(*SKIP).returncode in {0, 1}
        system.project()
        at = now(system)
        stood = rows(url(system))
        with system.serving() as ask:
            answers = {path: ask(path) for path in paths()}
        moved_on(system, dice, at)
        system.do("rebuild", "stage", "--until", at.isoformat(), "--workers", "2")
        yield Past(system, at, stood, answers)


def moved_on(system: System, dice: random.Random, at: datetime) -> None:
    """Publish the rest, some of it stamped long ago, and revoke a decision that had been made."""
    begun: set[int] = set()
    stamps: list[datetime | None] = []
    for record in RECORDS[HALF:]:
        partition = (DECODE.partition_of(record.key) + record.partition_shift) % PARTITIONS
        late = partition in begun and dice.random() < 0.3
        stamps.append(at - dice.random() * HOUR if late else None)
        begun.add(partition)
    send(system, RECORDS[HALF:], stamps)
    system.project()
    (first, *_), *_ = system.query("SELECT id FROM rxstore.decision WHERE number IS NOT NULL ORDER BY id")
    system.do("quarantine", "undo", str(first))


def test_the_rows_as_of_a_time_are_those_that_live_had_then(past):
    assert past.rows["set_aside"]
    assert past.rows != rows(url(past.system))
    assert rows(url(past.system), "rx_g2") == past.rows


def test_the_rows_as_of_a_time_are_the_pure_fold_of_the_log_cut_there(past):
    ends = ends_of(past.system, len(RECORDS), past.at)
    decided = {key for (key,) in past.system.query("SELECT stream_key FROM rxstore.decision")}
    had_come = [one for one in log_of(past.system, len(RECORDS)) if one.position.offset < ends[one.position.partition]]
    assert len(had_come) == HALF
    arrivals = by_stream(DECODE(record) for record in had_come).by_stream
    streams = {key: items[0].record.position.partition for key, items in arrivals.items() if key not in decided}
    with connect(url(past.system)) as connection:
        stored = ReadModel("rx_g2").load(connection, streams, DECODE, lambda _: True)
    for key, partition in streams.items():
        truth = fold(Stream(key, partition), arrivals[key])
        assert (stored[key].prescription, stored[key].history) == (truth.prescription, truth.history)


def test_explain_at_that_time_tells_of_every_prescription_what_the_rows_hold(past):
    settings = load(past.system.environment, env_file=past.system.directory / "none")
    reader = partial(make_reader, settings.kafka())
    held = {
        key: (version, current)
        for key, version, current in past.system.query(
            "SELECT stream_key, version, current_issue FROM rx_g2.prescription"
        )
    }
    keys = {key for (key,) in past.system.query("SELECT DISTINCT stream_key FROM rxstore.decision")}
    keys |= {*list(held)[:6]}
    with store.engine(settings) as engine:
        for key in sorted(keys):
            told = story.explain(engine, lookup(reader), key, at=past.at, ends_at=ends_at(reader))
            if told is None or told.told is None:
                continue  # it was deleted since
            found = told.told.prescription
            assert (found and (found.version, found.current_issue)) == held.get(key)
            aside = past.system.query(
                "SELECT partition_number, record_offset, state FROM rx_g2.set_aside WHERE stream_key = %s", key
            )
            assert {(one.position.partition, one.position.offset, one.state) for one in told.told.set_aside} == {*aside}


def test_status_says_of_which_time_it_is_and_that_it_is_complete(past):
    shown = {one["name"]: one for one in past.system.status()["generations"]}
    assert datetime.fromisoformat(shown["g2"]["until"]) == past.at
    assert (shown["g2"]["state"], shown["g2"]["lag_events"], shown["g2"]["lag_seconds"]) == ("ready", 0, 0)
    assert datetime.fromisoformat(shown["g2"]["as_of"]) == past.at
    ends = ends_of(past.system, len(RECORDS), past.at)
    assert {one["partition"]: one["end_offset"] for one in shown["g2"]["partitions"]} == ends
    assert "generation g2: ready, as of 20" in past.system.run("status").stdout


def test_a_retry_and_a_fold_anew_of_now_do_not_reach_it(past):
    before = rows(url(past.system), "rx_g2")
    past.system.run("rebuild", "prescription", *ids()[:5])
    assert rows(url(past.system), "rx_g2") == before


# asking a generation ------------------------------------------------------------------------------------------------


def query(past: Past, *arguments: str, stdin: str = "", **environment: str) -> Result:
    """Run ``rxstore query``; in this process, which saves a second each time."""
    return CliRunner(env={**past.system.environment, **environment}).invoke(rxstore, ["query", *arguments], input=stdin)


def asked(past: Past, path: str, *generation: str) -> Result:
    """Ask by command what a path asks the API."""
    asked, _, parameters = path.partition("?")
    given = dict(pair.split("=") for pair in parameters.split("&"))
    if "nhsNumber" in given:
        window = ("--earliest", given["earliestDate"], "--latest", given["latestDate"])
        return query(past, *generation, "--nhs-number", "-", *window, stdin=f"{given['nhsNumber']}\n")
    return query(past, *generation, asked.rpartition("/")[2].replace("%2B", "+"), "--issue", given["issueNumber"])


def test_a_query_as_of_a_time_prints_byte_for_byte_what_the_api_answered_then(past):
    for path, then in past.answers.items():
        done = asked(past, path, "--generation", "g2")
        assert done.stdout_bytes == then.raw, path
        assert done.exit_code == (0 if then.body["statusCode"] == "0" else 1)
        assert ("blocked: " + then.headers.get("rxstore-blocked", "") in done.stderr) == (
            "rxstore-blocked" in then.headers
        )
    assert {then.body["statusCode"] for then in past.answers.values()} >= {"0", "1", "4"}


def test_without_a_generation_the_live_one_is_asked(past):
    some = paths()[::7]
    with past.system.serving() as ask:
        answers = {path: ask(path) for path in some}
    assert any(answers[path].raw != past.answers[path].raw for path in some)
    for path in some:
        for generation in ((), ("--generation", "g1")):
            done = asked(past, path, *generation)
            assert (done.stdout_bytes, "generation: g1" in done.stderr) == (answers[path].raw, True)


def test_the_window_of_a_search_without_dates_ends_at_the_time_of_the_generation(past):
    path = next(path for path in paths() if "nhsNumber" in path and past.answers[path].body["statusCode"] == "0")
    number = path.partition("nhsNumber=")[2].partition("&")[0]
    assert query(past, "--generation", "g2", "--nhs-number", number).exit_code == 1
    past.system.execute("ALTER TABLE rxstore.generation ADD kept timestamptz")
    try:
        past.system.execute("UPDATE rxstore.generation SET kept = until, until = '2026-01-25Z' WHERE name = 'g2'")
        assert query(past, "--generation", "g2", "--nhs-number", number).exit_code == 0
    finally:
        past.system.execute("UPDATE rxstore.generation SET until = kept WHERE name = 'g2'")
        past.system.execute("ALTER TABLE rxstore.generation DROP kept")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name one prescription"),
        (("3AF2CB-C86002-0000BX", "--nhs-number", "-"), "name one prescription"),
        (("3AF2CB-C86002-0000BX", "--latest", "20260101"), "--latest is for a search"),
        (("--nhs-number", "-", "--issue", "1"), "--issue is for a prescription"),
        (("no id",), "must have 19"),
    ],
)
def test_a_question_that_is_none_is_wrong_use(past, arguments, words):
    done = query(past, *arguments)
    assert (done.exit_code, words in done.stderr, done.stdout) == (2, True, "")


def test_a_question_that_the_api_refuses_is_answered_as_it_does_and_its_number_is_not_repeated(past):
    done = query(past, "--nhs-number", "-", stdin="9990000019\n")
    assert (done.exit_code, json.loads(done.stdout)["statusCode"]) == (2, "61")
    assert "9990000019" not in done.output


def test_a_generation_that_cannot_be_asked_is_refused(past):
    assert "no generation g9" in query(past, "--generation", "g9", ids()[0]).stderr
    past.system.execute(
        "UPDATE rxstore.generation SET hashes = jsonb_set(hashes, '{tables}', '\"other\"') WHERE name = 'g2'"
    )
    done = query(past, "--generation", "g2", ids()[0])
    past.system.execute(
        "UPDATE rxstore.generation SET hashes = l.hashes FROM rxstore.generation l "
        "WHERE generation.name = 'g2' AND l.name = 'g1'"
    )
    assert (done.exit_code, "another shape" in done.stderr, done.stdout) == (4, True, "")


def test_a_database_that_is_away_is_told_with_exit_code_3(past):
    away = {"RXSTORE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    assert query(past, ids()[0], **away).exit_code == 3


# beside everything else ---------------------------------------------------------------------------------------------


def test_running_projectors_build_it_beside_a_rebuild_and_it_is_never_shown(system):
    half = len(EVENTS) // 2
    system.publish(EVENTS[:half])
    with system.projecting() as projector:
        eventually(lambda: system.query("SELECT sum(next_offset) FROM rx_g1.checkpoint") == [(half,)])
        at, stood = now(system), rows(url(system))
        system.publish(EVENTS[half:])
        system.do("rebuild", "stage", "--until", at.isoformat())
        system.do("rebuild", "stage")
        waited = json.loads(system.do("rebuild", "wait", "g2", "--max-lag", "0", "--timeout", "50", "--json"))
        assert waited == {"generation": "g2", "state": "ready", "lag_events": 0}
        assert rows(url(system), "rx_g2") == stood
        eventually(lambda: projector.said("g2 is no longer fed: it is as of", "complete"))
        for command in (("verify",), ("verify", "--accept", "0123456789abcdef"), ("promote",)):
            done = system.run("rebuild", command[0], "g2", *command[1:])
            assert (done.returncode, "can never be live" in done.stderr) == (4, True)

        system.do("rebuild", "wait", "--max-lag", "0", "--timeout", "50")
        system.do("rebuild", "verify")
        system.do("rebuild", "promote", "--retire-after", "1s")
        eventually(lambda: system.query("SELECT to_regnamespace('rx_g1')") == [(None,)])
        assert state(system, "g1") == "retired"
        eventually(lambda: system.status()["verdict"] == "following")
        system.do("rebuild", "abort", "g2")
        assert projector.is_running()
    assert [one["name"] for one in system.status()["generations"]] == ["g3"]
    assert rows(url(system), "rx_g3") != stood


def test_a_retirement_is_planned_shown_and_taken_back(system):
    system.publish(EVENTS[:20])
    system.project()
    system.do("rebuild", "stage", "--workers", "1")
    system.do("rebuild", "verify")
    system.do("rebuild", "promote", "--retire-at", "2999-01-01T00:00:00Z")
    shown = {one["name"]: one for one in system.status()["generations"]}
    assert (shown["g1"]["retire_at"], shown["g2"]["retire_at"]) == ("2999-01-01T00:00:00Z", None)
    assert "retires at     2999-01-01T00:00:00Z" in system.run("status").stdout
    told = json.loads(system.do("rebuild", "retire", "--keep", "--json"))
    assert told == {"generation": "g1", "retire_at": None}
    assert "will be retired at 2998-01-01" in system.do("rebuild", "retire", "--at", "2998-01-01T00:00:00Z")
    assert system.run("rebuild", "retire", "--at", "2998-01-01T00:00:00Z", "--after", "1d").returncode == 2
    assert state(system, "g1") == "previous"


@pytest.mark.kafka
def test_it_is_built_from_an_archive_also_where_the_topic_has_nothing_of_then(system):
    half = len(EVENTS) // 2
    system.publish(EVENTS[:half])
    system.project()
    at, stood = now(system), rows(url(system))
    system.publish(EVENTS[half:])
    system.do("archive", "export", "archive")
    system.project()
    ends = {number: end for number, end in ends_of(system, len(EVENTS), now(system)).items() if end}
    system.forget_log_before(ends)
    refused = system.run("rebuild", "stage", "--until", at.isoformat())
    assert (refused.returncode, "has no event from before" in refused.stderr) == (4, True)
    staged = json.loads(
        system.do("rebuild", "stage", "--until", at.isoformat(), "--archive", "archive", "--workers", "1", "--json")
    )
    assert (staged["state"], rows(url(system), "rx_g2")) == ("ready", stood)


@pytest.mark.kafka
def test_what_retention_took_beyond_its_end_does_not_hinder_a_build(system):
    half = len(EVENTS) // 2
    system.publish(EVENTS[:half])
    system.project()
    at, stood = now(system), rows(url(system))
    system.publish(EVENTS[half:])
    ends = ends_of(system, len(EVENTS), at)
    system.do("rebuild", "stage", "--until", at.isoformat(), "--workers", "1")
    system.project()
    system.forget_log_before({number: end + 1 for number, end in ends.items() if end})
    # As if its workers had been stopped right after their last batch.
    system.execute("UPDATE rx_g2.checkpoint SET caught_up_at = NULL")
    system.execute("UPDATE rxstore.generation SET state = 'building' WHERE name = 'g2'")
    with system.projecting() as projector:
        eventually(lambda: state(system, "g2") == "ready")
        assert not projector.said("retention took events away")
    assert rows(url(system), "rx_g2") == stood
