"""Decisions are part of the truth: a generation built later, from the log and the decisions, has the rows of live."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import psycopg
import pytest
from kafka.errors import KafkaTimeoutError
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from ingest import decode as decode_module
from projector import decisions, generations, set_aside
from projector.batch import Position, Record
from projector.checkpoints import FencingLost
from projector.read_model import TABLES, ReadModel
from projector.refold import LogIncomplete, refold
from projector.runner import connect
from rxstore import store
from rxstore.decide import Desk
from rxstore.settings import load
from schemas.incoming import UnknownType
from tests import examples
from tests.integration.projecting import (
    DECODE,
    PARTITIONS,
    SCHEMA,
    TOPIC,
    FakeWorker,
    Log,
    decide_about,
    generated_log,
    polls,
    project_all,
    rows,
    worker,
)


@pytest.fixture(scope="module")
def dirty_log() -> Log:
    return generated_log(200, seed=5, dirty_rate=0.2)


def decide(database_url: str, random: Random, share: float) -> int:
    """Decide something about a share of what is open or waits for missing numbers."""
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            f"SELECT topic, partition_number, record_offset, stream_key, state FROM {SCHEMA}.set_aside "
            "WHERE stream_key IS NOT NULL AND (state = 'open' OR state = 'parked' AND reason = 'sequence_gap') "
            "ORDER BY 1, 2, 3"
        ).fetchall()
        chosen = [row for row in found if random.random() < share]
        for topic, partition, offset, key, state in chosen:
            action = "skip" if state == "parked" else random.choice(["retry", "skip"])
            connection.execute(
                "INSERT INTO rxstore.decision (action, topic, partition_number, record_offset, stream_key, "
                "stream_partition, why, decided_by) VALUES (%s, %s, %s, %s, %s, %s, 'a test', 'test')",
                (action, topic, partition, offset, key, DECODE.partition_of(key.encode())),
            )
    return len(chosen)


def project_with_decisions(database_url: str, log: Log, *, seed: int) -> int:
    """Project a log while somebody decides now and then; return how many decisions were made."""
    random = Random(seed)
    made = 0
    with worker(database_url) as one:
        for number, poll in enumerate(polls(log, range(PARTITIONS), random, 40)):
            one.project(poll)
            if number % 4 == 3:
                made += decide(database_url, random, 0.3)
                one.apply_decisions()
    return made


def stage(database_url: str) -> None:
    """Register generation g2 beside the live one."""
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE rxstore.generation SET topic = :topic"), {"topic": TOPIC})
        generations.register(connection, "g2", state="building", topic=TOPIC, settings={})
        generations.build(connection, "g2")
    engine.dispose()


def build_again(database_url: str, log: Log, *, seed: int, largest: int) -> None:
    """Build generation g2 from the log and the decisions, after the fact."""
    stage(database_url)
    with worker(database_url, schema="rx_g2", log=log) as builder:
        for poll in polls(log, range(PARTITIONS), Random(seed), largest):
            builder.project(poll)
        builder.apply_decisions()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_generation_built_later_has_the_rows_of_live(migrated_database_url, dirty_log, seed):
    assert project_with_decisions(migrated_database_url, dirty_log, seed=seed) > 20
    build_again(migrated_database_url, dirty_log, seed=seed + 10, largest=400)
    assert rows(migrated_database_url, "rx_g2") == rows(migrated_database_url, SCHEMA)


def open_record(database_url: str, reason: str) -> tuple[str, int, int, str]:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            f"SELECT s.topic, s.partition_number, s.record_offset, s.stream_key FROM {SCHEMA}.set_aside s "
            "WHERE s.state = 'open' AND s.reason = %s AND s.stream_key IS NOT NULL ORDER BY 3 LIMIT 1",
            (reason,),
        ).fetchone()
    assert row is not None
    return row


def whole_log(one: FakeWorker, log: Log) -> None:
    for poll in polls(log, range(PARTITIONS), Random(1), 60):
        one.project(poll)


def test_a_decision_is_applied_once_however_often_a_worker_looks(migrated_database_url, dirty_log):
    with worker(migrated_database_url) as one:
        whole_log(one, dirty_log)
        decide_about(migrated_database_url, "skip", open_record(migrated_database_url, "illegal_transition"))
        one.apply_decisions()
        before = rows(migrated_database_url)
        one.apply_decisions()
    assert rows(migrated_database_url) == before


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_checkpoint_that_is_rewound_changes_no_row_whatever_became_of_what_was_set_aside(
    migrated_database_url, dirty_log, share
):
    project_with_decisions(migrated_database_url, dirty_log, seed=6)
    before = rows(migrated_database_url)
    random = Random(7)
    with psycopg.connect(migrated_database_url) as connection:
        for number, log in dirty_log.partitions.items():
            connection.execute(
                f"UPDATE {SCHEMA}.checkpoint SET next_offset = %s WHERE partition_number = %s",
                (log[0].position.offset if random.random() < share else log[len(log) // 2].position.offset, number),
            )
    with worker(migrated_database_url) as one:
        for number, log in dirty_log.partitions.items():
            for start in range(0, len(log), 30):
                one.project([r for r in log[start : start + 30] if r.position.offset >= one.claims[number].next_offset])
    assert one.counts.folded == one.counts.repaired == 0
    assert rows(migrated_database_url) == before


def test_a_decision_waits_while_the_broker_is_away_that_holds_its_record(migrated_database_url, dirty_log):
    with worker(migrated_database_url, log=dirty_log) as one:
        whole_log(one, dirty_log)
        misrouted = open_record(migrated_database_url, "misrouted")
        decide_about(migrated_database_url, "skip", misrouted)
        # As in a rebuild that has not come to the partition in which the misrouted record stands.
        one.runner.connection.execute(
            f"DELETE FROM {SCHEMA}.set_aside WHERE (topic, partition_number, record_offset) = (%s, %s, %s)",
            misrouted[:3],
        )
        reachable, one.runner.lookup = one.runner.lookup, broker_away
        with pytest.raises(KafkaTimeoutError):
            one.apply_decisions()
        one.runner.lookup = reachable
        one.apply_decisions()
    with psycopg.connect(migrated_database_url) as connection:
        state = connection.execute(
            f"SELECT state FROM {SCHEMA}.set_aside WHERE (topic, partition_number, record_offset) = (%s, %s, %s)",
            misrouted[:3],
        ).fetchone()
    assert state == ("skipped",)


def broker_away(positions: Iterable[Position]) -> dict[Position, Record]:
    raise KafkaTimeoutError


def test_a_decision_of_an_overtaken_worker_is_not_applied(migrated_database_url, dirty_log):
    with worker(migrated_database_url) as zombie:
        whole_log(zombie, dirty_log)
        with worker(migrated_database_url) as successor:
            decide_about(migrated_database_url, "skip", open_record(migrated_database_url, "illegal_transition"))
            before = rows(migrated_database_url)
            with pytest.raises(Exception, match="epoch"):
                zombie.apply_decisions()
            assert rows(migrated_database_url) == before
            successor.apply_decisions()
    assert rows(migrated_database_url) != before


def refold_streams(database_url: str, log: Log, keys: list[str], *, schema: str = SCHEMA) -> None:
    by_position = {record.position: record for record in log.records()}
    with connect(database_url) as connection, connection.transaction():
        for key in keys:
            refold(
                connection,
                ReadModel(schema),
                DECODE,
                lambda positions: {p: by_position[p] for p in positions if p in by_position},
                topic=TOPIC,
                key=key,
                partition=DECODE.partition_of(key.encode()),
            )


def streams(database_url: str) -> list[str]:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            f"SELECT stream_key FROM {SCHEMA}.prescription UNION SELECT stream_key FROM {SCHEMA}.set_aside "
            "WHERE stream_key IS NOT NULL ORDER BY 1"
        )
        return [row[0] for row in found]


def test_folding_every_prescription_again_changes_no_row(migrated_database_url, dirty_log):
    project_with_decisions(migrated_database_url, dirty_log, seed=3)
    before = rows(migrated_database_url)
    refold_streams(migrated_database_url, dirty_log, streams(migrated_database_url))
    assert rows(migrated_database_url) == before


def test_a_revoked_decision_leaves_the_rows_of_a_log_without_it(migrated_database_url, dirty_log):
    project_with_decisions(migrated_database_url, dirty_log, seed=4)
    with connect(migrated_database_url) as connection:
        made = connection.execute(
            "SELECT d.id, d.stream_key FROM rxstore.decision d JOIN rx_g1.prescription p USING (stream_key) "
            "WHERE p.kind <> 'deleted' ORDER BY d.id LIMIT 10"
        ).fetchall()
        for decision_id, _ in made:
            assert decisions.revoke(connection, decision_id, who="test") is not None
        assert decisions.revoke(connection, made[0][0], who="test") is None
    refold_streams(migrated_database_url, dirty_log, [key for _, key in made])
    build_again(migrated_database_url, dirty_log, seed=6, largest=300)
    assert rows(migrated_database_url) == rows(migrated_database_url, "rx_g2")


def test_folding_again_fences_the_worker_that_holds_older_rows(migrated_database_url, dirty_log):
    with worker(migrated_database_url) as one:
        whole_log(one, dirty_log)
        key = streams(migrated_database_url)[0]
        refold_streams(migrated_database_url, dirty_log, [key])
        partition = DECODE.partition_of(key.encode())
        with pytest.raises(FencingLost):
            one.project([replace(dirty_log.partitions[partition][0], position=Position(TOPIC, partition, 10_000_000))])


def test_an_event_that_the_log_lost_leaves_the_prescription_as_it_is(migrated_database_url, dirty_log):
    with worker(migrated_database_url) as one:
        whole_log(one, dirty_log)
    before = rows(migrated_database_url)
    with pytest.raises(LogIncomplete):
        refold_streams(migrated_database_url, Log(), [a_created_stream(migrated_database_url)])
    assert rows(migrated_database_url) == before


def a_created_stream(database_url: str) -> str:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(f"SELECT min(stream_key) FROM {SCHEMA}.prescription WHERE kind = 'created'")
        row = found.fetchone()
    assert row is not None
    return row[0]


# several generations --------------------------------------------------------------------------------------------------


def test_decisions_made_while_a_generation_is_being_built_come_out_the_same_in_both(migrated_database_url, dirty_log):
    stage(migrated_database_url)
    live_polls = polls(dirty_log, range(PARTITIONS), Random(11), 40)
    builder_polls = polls(dirty_log, range(PARTITIONS), Random(12), 90)
    random, made = Random(13), 0
    with worker(migrated_database_url) as live, worker(migrated_database_url, schema="rx_g2", log=dirty_log) as builder:
        for number, poll in enumerate(live_polls):
            live.project(poll)
            if number % 3 == 2:
                made += decide(migrated_database_url, random, 0.3)
                random.choice([live, builder]).apply_decisions()
                builder.project(next(builder_polls, []))
        for poll in builder_polls:
            builder.project(poll)
        for one in (live, builder):
            one.apply_decisions()
    assert made > 20
    assert rows(migrated_database_url, "rx_g2") == rows(migrated_database_url, SCHEMA)


def test_nobody_waits_for_long_for_the_checkpoint_that_a_build_is_writing(migrated_database_url, dirty_log):
    stage(migrated_database_url)
    project_all(migrated_database_url, dirty_log, seed=1, largest=60)
    assert decide(migrated_database_url, Random(1), 0.1) > 0
    with (
        worker(migrated_database_url) as live,
        worker(migrated_database_url, schema="rx_g2"),
        psycopg.connect(migrated_database_url) as writing,
    ):
        writing.execute("UPDATE rx_g2.checkpoint SET moved_at = now()")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            live.apply_decisions()
        writing.commit()
        live.apply_decisions()
    with psycopg.connect(migrated_database_url) as connection:
        assert connection.execute("SELECT count(*) FROM rxstore.decision WHERE number IS NULL").fetchone() == (0,)


def test_places_of_decisions_rise_though_the_generation_that_was_furthest_has_gone(migrated_database_url, dirty_log):
    stage(migrated_database_url)
    with worker(migrated_database_url) as live, worker(migrated_database_url, schema="rx_g2", log=dirty_log) as builder:
        whole_log(live, dirty_log)
        decide(migrated_database_url, Random(1), 1.0)
        live.apply_decisions()
        with psycopg.connect(migrated_database_url) as connection:
            connection.execute("UPDATE rxstore.generation SET state = 'retired' WHERE name = 'g1'")
        todo = list(polls(dirty_log, range(PARTITIONS), Random(2), 60))
        for poll in todo[: len(todo) // 2]:
            builder.project(poll)
        with psycopg.connect(migrated_database_url) as connection:
            found = connection.execute(
                "SELECT topic, partition_number, record_offset, stream_key FROM rx_g2.set_aside "
                "WHERE state = 'open' AND stream_key IS NOT NULL LIMIT 10"
            ).fetchall()
        for record in found:
            decide_about(migrated_database_url, "skip", record)
        builder.apply_decisions()
        for poll in todo[len(todo) // 2 :]:
            builder.project(poll)
        builder.apply_decisions()
    with psycopg.connect(migrated_database_url) as connection:
        places = connection.execute(
            "SELECT stream_partition, effect_offset FROM rxstore.decision ORDER BY stream_partition, number"
        ).fetchall()
        waiting = decisions.waiting(connection, "rx_g2", TOPIC, range(PARTITIONS))
    assert len(found) == 10
    assert places == sorted(places)
    assert waiting == []


def test_a_decision_whose_place_was_passed_without_it_is_applied_all_the_same(migrated_database_url, dirty_log):
    project_with_decisions(migrated_database_url, dirty_log, seed=7)
    with psycopg.connect(migrated_database_url) as connection:
        connection.execute("UPDATE rxstore.decision SET revoked_at = now()")
    stage(migrated_database_url)
    with worker(migrated_database_url, schema="rx_g2", log=dirty_log) as builder:
        for poll in polls(dirty_log, range(PARTITIONS), Random(8), 200):
            builder.project(poll)
        with psycopg.connect(migrated_database_url) as connection:
            connection.execute("UPDATE rxstore.decision SET revoked_at = NULL")
        builder.apply_decisions()
    assert rows(migrated_database_url, "rx_g2") == rows(migrated_database_url, SCHEMA)


def test_folding_a_prescription_again_where_it_is_being_built_does_not_decide_before_time(
    migrated_database_url, dirty_log
):
    assert project_with_decisions(migrated_database_url, dirty_log, seed=9) > 20
    stage(migrated_database_url)
    todo = list(polls(dirty_log, range(PARTITIONS), Random(10), 60))
    with worker(migrated_database_url, schema="rx_g2", log=dirty_log) as builder:
        for poll in todo[: len(todo) // 2]:
            builder.project(poll)
    refold_streams(migrated_database_url, dirty_log, streams(migrated_database_url), schema="rx_g2")
    with worker(migrated_database_url, schema="rx_g2", log=dirty_log) as builder:
        for poll in todo[len(todo) // 2 :]:
            builder.project(poll)
        builder.apply_decisions()
    assert rows(migrated_database_url, "rx_g2") == rows(migrated_database_url, SCHEMA)


def test_a_decision_about_a_topic_that_is_gone_does_not_reach_the_one_made_again(migrated_database_url, dirty_log):
    with worker(migrated_database_url) as one:
        whole_log(one, dirty_log)
        decide(migrated_database_url, Random(1), 1.0)
        with psycopg.connect(migrated_database_url) as connection:
            connection.execute("UPDATE rxstore.decision SET topic_id = 'the old one'")
            connection.execute("UPDATE rx_g1.checkpoint SET topic_id = 'the new one'")
        before = rows(migrated_database_url)
        one.apply_decisions()
    assert rows(migrated_database_url) == before


def an_older_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version before: it does not know of claims."""

    def unknown(real: Any) -> Any:
        def read(attributes: Any, *arguments: Any, **options: Any) -> Any:
            if "claimed" in str(attributes.get("type")):
                raise UnknownType
            return real(attributes, *arguments, **options)

        return read

    monkeypatch.setattr(decode_module, "load", unknown(decode_module.load))
    monkeypatch.setattr(decode_module, "read", lambda *_, **__: None)


def test_after_a_deploy_that_knows_the_type_a_retry_folds_it_and_all_that_waited_in_one_transaction(
    migrated_database_url, another_database_url, monkeypatch
):
    log = generated_log(60, seed=9)
    project_all(another_database_url, log, seed=1, largest=40)
    with monkeypatch.context() as patched:
        an_older_version(patched)
        project_all(migrated_database_url, log, seed=1, largest=40)
    with psycopg.connect(migrated_database_url) as connection:
        unknown = connection.execute(
            "SELECT topic, partition_number, record_offset, stream_key FROM rx_g1.set_aside WHERE reason = "
            "'unknown_type' AND state = 'open' ORDER BY stands_at"
        ).fetchall()
    assert len(unknown) > 5
    for record in unknown:
        decide_about(migrated_database_url, "retry", record)
    with worker(migrated_database_url) as one:
        one.apply_decisions()
    whole, retried = rows(another_database_url), rows(migrated_database_url)
    assert {table: retried[table] for table in TABLES} == {table: whole[table] for table in TABLES}
    with psycopg.connect(migrated_database_url) as connection:
        states = connection.execute("SELECT DISTINCT reason, state FROM rx_g1.set_aside").fetchall()
        written = connection.execute(
            "SELECT s.stream_key, count(DISTINCT x) FROM rx_g1.set_aside s "
            "CROSS JOIN LATERAL (SELECT s.xmin::text AS x "
            "UNION ALL SELECT p.xmin::text FROM rx_g1.prescription p WHERE p.stream_key = s.stream_key) w "
            "GROUP BY 1 HAVING count(DISTINCT s.record_offset) = 1"
        ).fetchall()
    assert states == [("unknown_type", "retried")]
    assert written
    assert {count for _, count in written} == {1}


def test_a_mark_and_a_deletion_written_at_the_same_moment_leave_no_content(migrated_database_url, monkeypatch):
    log = Log()
    subject = examples.created()["subject"]
    log.append_event(examples.created())
    deletion = log.append_event(examples.deleted())
    stray = log.append_event({**examples.released(), "subject": subject}, 1)
    numbers = [deletion.position.partition, stray.position.partition]
    really_mark = set_aside.mark
    with worker(migrated_database_url, numbers[:1]) as deletes, worker(migrated_database_url, numbers[1:]) as marks:

        def mark_while_another_deletes(*arguments: Any) -> None:
            """The transaction has its snapshot already, and does not see the deletion."""
            deletes.project(log.partitions[numbers[0]])
            really_mark(*arguments)
            assert contents(migrated_database_url) == 0

        monkeypatch.setattr(set_aside, "mark", mark_while_another_deletes)
        marks.project(log.partitions[numbers[1]])
    assert len(rows(migrated_database_url)["set_aside"]) == 1
    assert contents(migrated_database_url) == 0


def contents(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM rx_g1.set_aside WHERE record_value IS NOT NULL").fetchone()
    assert row is not None
    return int(row[0])


def test_what_an_operator_does_beside_a_worker_begins_again_when_the_worker_wrote_meanwhile(
    migrated_database_url, tmp_path
):
    settings = load({"RXSTORE_DATABASE_URL": migrated_database_url}, env_file=tmp_path / "none")
    attempts = []

    def touch(session: psycopg.Connection) -> int:
        attempts.append(session.execute("SELECT definition FROM rxstore.generation").fetchone())
        if len(attempts) == 1:
            with psycopg.connect(migrated_database_url) as worker_session:
                worker_session.execute("UPDATE rxstore.generation SET partitions = 7")
        session.execute("UPDATE rxstore.generation SET topic = 'touched'")
        return len(attempts)

    with store.engine(settings) as engine:
        desk = Desk(settings, engine, store.live_generation(engine), DECODE, DECODE.partition_of)
    assert desk._beside_workers(touch) == 2
    with psycopg.connect(migrated_database_url) as connection:
        assert connection.execute("SELECT topic, partitions FROM rxstore.generation").fetchall() == [("touched", 7)]
