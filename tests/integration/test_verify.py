"""Two generations compared at the same offsets: nothing is found where nothing differs, and exactly what differs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url

from projector import generations, verify
from projector.batch import Record
from projector.checkpoints import Held
from projector.generations import Generation
from projector.runner import Batch
from projector.verify import Comparison, NotTogether
from tests.integration.projecting import DECODE, PARTITIONS, TOPIC, FakeWorker, Log, generated_log, polls, worker


@pytest.fixture(scope="module")
def log() -> Log:
    return generated_log(120, seed=3, dirty_rate=0.1)


@pytest.fixture
def engine(migrated_database_url):
    made = create_engine(make_url(migrated_database_url).set(drivername="postgresql+psycopg"))
    with made.begin() as connection:
        connection.execute(
            text("UPDATE rxstore.generation SET topic = :topic, partitions = :count"),
            {"topic": TOPIC, "count": PARTITIONS},
        )
        generations.register(connection, "g2", state="ready", topic=TOPIC, settings={}, partitions=PARTITIONS)
        generations.build(connection, "g2")
    yield made
    made.dispose()


def build(database_url: str, log: Log, schema: str, *, seed: int, until: int | None = None) -> None:
    with worker(database_url, schema=schema) as one:
        for poll in list(polls(log, range(PARTITIONS), Random(seed), 60))[:until]:
            one.project(poll)


def both(engine: Engine) -> tuple[Generation, Generation]:
    with engine.connect() as connection:
        live, new = generations.every(connection)
    return live, new


def compare(engine: Engine) -> Comparison:
    with verify.together(engine, *both(engine)) as (snapshot, offsets):
        return verify.compare(snapshot, *both(engine), offsets)


@pytest.fixture
def built(migrated_database_url, engine, log):
    build(migrated_database_url, log, "rx_g1", seed=1)
    build(migrated_database_url, log, "rx_g2", seed=2)
    return engine


def meddle(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_generations_of_the_same_log_do_not_differ_however_it_was_cut(built):
    found = compare(built)
    assert found.is_clean
    assert found.groups == ()
    assert all(counts.live == counts.new > 0 for counts in found.tables.values())
    assert found.offsets is not None
    assert len(found.offsets) == PARTITIONS


def test_rows_that_differ_are_grouped_by_what_they_have_in_common(built):
    meddle(built, "UPDATE rx_g2.issue SET status = '0099' WHERE status = '0006'")
    meddle(built, "UPDATE rx_g2.line_item SET dosage = 'SECRET' WHERE item_number = 1")
    found = compare(built)
    told = {(group.table, group.difference): group.rows for group in found.groups}
    assert told[("issue", "status 0006 -> 0099")] == found.tables["issue"].differing > 0
    assert told[("line_item", "dosage")] == found.tables["line_item"].differing > 0
    assert len(told) == 2
    assert "SECRET" not in str(found)


def test_rows_that_only_one_generation_has_are_found(built):
    meddle(built, "DELETE FROM rx_g2.cancellation")
    meddle(built, "DELETE FROM rx_g1.set_aside WHERE state = 'open'")
    told = {group.table: group.difference for group in compare(built).groups}
    assert told == {"cancellation": "only in the live one", "set_aside": "only in the new one"}


def test_a_digest_names_exactly_the_differences(built):
    clean = compare(built).digest
    meddle(built, "UPDATE rx_g2.issue SET status = '0099' WHERE status = '0006'")
    first = compare(built)
    assert compare(built).digest == first.digest != clean
    meddle(built, "UPDATE rx_g2.issue SET status = '0098' WHERE status = '0099'")
    second = compare(built)
    assert second.tables == first.tables
    assert second.digest != first.digest


def test_a_column_that_one_generation_does_not_have_is_named_and_the_rest_compared(built):
    meddle(built, "ALTER TABLE rx_g2.issue ADD COLUMN more text DEFAULT 'x'")
    found = compare(built)
    assert found.is_clean
    assert found.only_in == {"g2": ["issue.more"]}


def test_a_batch_is_cut_where_a_partition_is_held_and_goes_on_afterwards(migrated_database_url, engine, log):
    records = log.partitions[0][:10]
    middle = records[5].position.offset
    with worker(migrated_database_url) as one, psycopg.connect(migrated_database_url, autocommit=True) as other:
        other.execute(
            "UPDATE rx_g1.checkpoint SET hold_at = %s, hold_until = now() + interval '1 hour' "
            "WHERE partition_number = 0",
            (middle,),
        )
        batch = Batch([DECODE(record) for record in records], {0: records[-1].position.offset + 1})
        with pytest.raises(Held) as held:
            one.runner.project_batch(one.claims, batch)
        before, after = batch.cut(held.value.offsets, one.claims)
        assert before.next_offsets == {0: middle}
        one.runner.project_batch(one.claims, before)
        one.claims[0] = one.claims[0].moved_to(middle)
        with pytest.raises(Held):
            one.runner.project_batch(one.claims, after)
        other.execute("UPDATE rx_g1.checkpoint SET hold_until = now()")
        one.runner.project_batch(one.claims, after)


def project_all(one: FakeWorker, batches: list[list[Record]]) -> None:
    """Project as a worker does, which looks again when somebody else wrote to its checkpoint."""
    for batch in batches:
        while True:
            try:
                one.project(batch)
            except psycopg.errors.SerializationFailure:
                continue
            break


def test_a_generation_that_is_behind_is_waited_for_and_the_snapshot_is_of_one_place(migrated_database_url, engine, log):
    build(migrated_database_url, log, "rx_g1", seed=1)
    build(migrated_database_url, log, "rx_g2", seed=1, until=10)
    rest = list(polls(log, range(PARTITIONS), Random(1), 60))[10:]
    with worker(migrated_database_url, schema="rx_g2") as one, ThreadPoolExecutor(1) as pool:
        done = pool.submit(project_all, one, rest)
        assert compare(engine).is_clean
        done.result()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(hold_at) FROM rx_g1.checkpoint")).scalar_one() == 0


def test_a_generation_that_nobody_feeds_is_named_and_nobody_is_held_on(migrated_database_url, engine, log, monkeypatch):
    monkeypatch.setattr(verify, "HOLD_SECONDS", 0.2)
    build(migrated_database_url, log, "rx_g1", seed=1)
    build(migrated_database_url, log, "rx_g2", seed=1, until=3)
    with pytest.raises(NotTogether, match=r"g2\["):
        compare(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(hold_at) FROM rx_g1.checkpoint")).scalar_one() == 0


def test_generations_of_other_logs_are_compared_without_their_places(built):
    meddle(built, "UPDATE rx_g2.prescription SET folded_positions = '', partition_number = 7")
    with built.connect() as connection:
        assert verify.compare(connection, *both(built), None).is_clean
