"""What a deletion leaves of a prescription, in every table of every generation: nothing that it said."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import orjson
import psycopg
import pytest
from sqlalchemy import create_engine

from projector import erasure, generations, rebuild
from projector.unwritten import Unwritten
from schemas.identifiers import with_check_character
from tests import examples
from tests.integration.projecting import PARTITIONS, SCHEMA, TOPIC, Log, worker
from tests.integration.test_building import batch, write

NUMBER = "9991234578"
OTHER_ID = with_check_character("0B0B0B-Z90001-00001")
NAMES = ("ZEBRAFISH SURGERY", "AXOLOTL PHARMACY", "Narwhalamol", "QUOKKA LANE")
BEFORE = datetime(2026, 1, 1, tzinfo=UTC)


def organisation(ods: str, name: str) -> dict[str, str]:
    return {"ods": ods, "name": name, "address": "1 QUOKKA LANE, ZZ99 7AA"}


def created() -> dict:
    event = examples.created(nhs_number=NUMBER)
    event["data"]["prescribingOrganisation"] = organisation("Z99977", NAMES[0])
    event["data"]["lineItems"] = [dict(item, description=NAMES[2]) for item in event["data"]["lineItems"]]
    return event


def lived(log: Log) -> None:
    """A prescription to which everything happens that leaves something of it somewhere."""
    pharmacy = organisation("ZX977", NAMES[1])
    log.append_event(created())
    log.append_event(examples.nominated(nominated_dispenser=pharmacy))
    log.append_event(examples.released(dispensing_organisation=pharmacy))
    log.append_event(examples.dispensed(dispensing_organisation=pharmacy))
    reason = {"code": "0001", "text": NAMES[2]}
    log.append_event(examples.cancelled(outcome="unsuccessful", nhs_number=NUMBER, reason=reason))
    log.append_event({**created(), "id": "again"})  # set aside: a second created
    log.append_event({**examples.claimed(id="broken"), "data": {"nhsNumber": NUMBER, "name": NAMES[0]}})
    log.append_event(examples.released(id="behind", dispensing_organisation=pharmacy))
    log.append_event({**created(), "id": "elsewhere"}, shift=1)  # misrouted
    key = str(examples.created()["subject"])[:-1].encode()
    headers = (("content-type", b"application/cloudevents+json"),)
    log.append(key, f"{{no JSON, but {NUMBER} of {NAMES[0]}".encode(), headers)


def deleted(log: Log) -> None:
    """A deletion that stands in the place of the record which blocks."""
    log.append_event({**examples.deleted(id="again"), "source": examples.created()["source"]})


def everything(database_url: str) -> dict[str, list[str]]:
    """Every row of every table that this system has, as text; bytes as the text that they are."""
    with psycopg.connect(database_url) as connection:
        tables = connection.execute(
            "SELECT n.nspname || '.' || c.relname, "
            "array_agg(CASE a.atttypid WHEN 'bytea'::regtype THEN format('encode(%I, ''escape'')', a.attname) "
            "ELSE format('%I::text', a.attname) END) "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid "
            "WHERE c.relkind = 'r' AND (n.nspname = 'rxstore' OR n.nspname LIKE 'rx\\_%%') AND a.attnum > 0 "
            "AND NOT a.attisdropped GROUP BY 1"
        ).fetchall()
        return {
            table: [
                " | ".join(value or "" for value in row)
                for row in connection.execute(f"SELECT {', '.join(columns)} FROM {table}")
            ]
            for table, columns in tables
        }


def says(database_url: str) -> dict[str, list[str]]:
    """Where anything stands that the prescription's events said."""
    said = (NUMBER, *NAMES)
    found = {
        table: [word for row in rows for word in said if word in row]
        for table, rows in everything(database_url).items()
    }
    return {table: words for table, words in found.items() if words}


def stage(database_url: str, name: str, log: Log, *, until: datetime | None = None) -> None:
    """Register a further generation; with ``until`` as of a time, which is where the log ends now."""
    ends = {number: records[-1].position.offset + 1 if records else 0 for number, records in log.partitions.items()}
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE rxstore.generation SET topic = %s", (TOPIC,))
        first = dict.fromkeys(range(PARTITIONS), 0)
        settings = generations.live(connection).settings
        rebuild.stage(
            connection, name, topic=TOPIC, topic_id=None, first_offsets=first, settings=settings, who="a test",
            until=until, ends=None if until is None else ends,
        )  # fmt: skip
    engine.dispose()


def complete(database_url: str, name: str) -> None:
    """Call a generation ready, as a feeder does whose workers have read it to its ends."""
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE rx_{name}.checkpoint SET caught_up_at = now()")
        assert rebuild.note_ready(connection, rebuild.in_state(connection, name, "building"), who="a test")
    engine.dispose()


def project(database_url: str, log: Log, schema: str = SCHEMA) -> None:
    with worker(database_url, schema=schema, log=log) as one:
        for number, records in log.partitions.items():
            left = [record for record in records if record.position.offset >= one.claims[number].next_offset]
            if left:
                one.project(left)


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    lived(made)
    return made


def test_before_a_deletion_it_stands_in_many_places(migrated_database_url, log):
    project(migrated_database_url, log)
    found = says(migrated_database_url)
    assert {f"{SCHEMA}.{name}" for name in ("prescription", "line_item", "issue", "set_aside")} <= set(found)
    assert {NUMBER, *NAMES} <= {word for words in found.values() for word in words}


@pytest.mark.parametrize("polls", [1, 2], ids=["in one batch with the rest", "in a batch of its own"])
def test_after_a_deletion_no_table_holds_anything_that_its_events_said(migrated_database_url, log, polls):
    if polls == 2:
        project(migrated_database_url, log)
    deleted(log)
    project(migrated_database_url, log)
    assert says(migrated_database_url) == {}
    with psycopg.connect(migrated_database_url) as connection:
        (row,) = connection.execute(f"SELECT kind, version, length(folded_keys) / 16 FROM {SCHEMA}.prescription")
    assert (row[0], row[1] > 1, row[1] == row[2]) == ("deleted", True, True)


def test_what_comes_after_a_deletion_leaves_nothing_either(migrated_database_url, log):
    deleted(log)
    project(migrated_database_url, log)
    lived(log)
    log.append_event({**created(), "id": "once more"}, shift=2)
    project(migrated_database_url, log)
    assert says(migrated_database_url) == {}


def test_a_generation_that_is_built_beside_forgets_it_when_it_comes_to_the_deletion(migrated_database_url, log):
    project(migrated_database_url, log)
    stage(migrated_database_url, "g2", log)
    project(migrated_database_url, log, "rx_g2")
    deleted(log)
    project(migrated_database_url, log)
    assert {table.partition(".")[0] for table in says(migrated_database_url)} == {"rx_g2"}
    project(migrated_database_url, log, "rx_g2")
    assert says(migrated_database_url) == {}


def test_a_generation_that_is_built_in_memory_never_writes_it(migrated_database_url, log):
    deleted(log)
    project(migrated_database_url, log)
    stage(migrated_database_url, "g2", log)
    with worker(migrated_database_url, schema="rx_g2", log=log) as one:
        unwritten = Unwritten()
        for records in log.partitions.values():
            if records:
                one.runner.take(one.claims, batch(records), unwritten)
        write(one, unwritten)
    assert says(migrated_database_url) == {}


def test_a_generation_that_is_complete_as_of_a_time_before_the_deletion_loses_it_too(migrated_database_url, log):
    log.append_event({**examples.created(), "id": "other", "subject": OTHER_ID})
    project(migrated_database_url, log)
    stage(migrated_database_url, "g2", log, until=BEFORE)
    project(migrated_database_url, log, "rx_g2")
    complete(migrated_database_url, "g2")
    assert "rx_g2.prescription" in says(migrated_database_url)
    deleted(log)
    project(migrated_database_url, log)
    assert says(migrated_database_url) == {}
    with psycopg.connect(migrated_database_url) as connection:
        kept = connection.execute("SELECT stream_key FROM rx_g2.prescription").fetchall()
    assert kept == [(OTHER_ID[:-1],)]


def test_a_generation_that_becomes_complete_after_the_deletion_loses_it_then(migrated_database_url, log):
    project(migrated_database_url, log)
    stage(migrated_database_url, "g2", log, until=BEFORE)
    project(migrated_database_url, log, "rx_g2")
    deleted(log)
    project(migrated_database_url, log)
    assert "rx_g2.prescription" in says(migrated_database_url)
    complete(migrated_database_url, "g2")
    assert says(migrated_database_url) == {}


def test_what_a_worker_did_not_come_to_take_out_the_next_one_does(migrated_database_url, log, monkeypatch):
    project(migrated_database_url, log)
    stage(migrated_database_url, "g2", log, until=BEFORE)
    project(migrated_database_url, log, "rx_g2")
    complete(migrated_database_url, "g2")
    deleted(log)
    with monkeypatch.context() as killed:
        killed.setattr(erasure, "erase", lambda *_: None)
        project(migrated_database_url, log)
    assert "rx_g2.prescription" in says(migrated_database_url)
    with psycopg.connect(migrated_database_url) as connection, connection.cursor() as cursor:
        for number in range(PARTITIONS):
            erasure.erase_missed(cursor, "g1", number)
    assert says(migrated_database_url) == {}


def test_a_record_whose_prescription_cannot_be_told_stays_as_it_is(migrated_database_url, log):
    """Nobody can know whose it is; docs/operators/erasure.md says how to look for it."""
    log.append(b"?", orjson.dumps({"nhsNumber": NUMBER}), ())
    deleted(log)
    project(migrated_database_url, log)
    assert says(migrated_database_url) == {f"{SCHEMA}.set_aside": [NUMBER]}
