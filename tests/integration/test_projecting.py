"""One batch, one transaction: however the log is cut and whoever projects it, the rows are those of the pure fold."""

from __future__ import annotations

from random import Random

import psycopg
import pytest

from projector import runner as runner_module
from projector.batch import Reason
from projector.checkpoints import FencingLost
from projector.read_model import ReadModel, RowsMissing
from projector.runner import connect
from tests.integration.projecting import (
    DECODE,
    PARTITIONS,
    SCHEMA,
    TOPIC,
    Log,
    folded,
    generated_log,
    polls,
    project_all,
    rows,
    worker,
)


@pytest.fixture(scope="module")
def dirty_log() -> Log:
    return generated_log(300, dirty_rate=0.15)


def test_loading_gives_back_the_state_that_the_pure_fold_comes_to(migrated_database_url, dirty_log):
    project_all(migrated_database_url, dirty_log, seed=1, largest=40)
    truth = folded(dirty_log)
    with connect(migrated_database_url) as connection:
        loaded = ReadModel(SCHEMA).load(
            connection, {key: stream.before.partition for key, stream in truth.items()}, DECODE, lambda _: True
        )
    for key, stream in truth.items():
        assert loaded[key].prescription == stream.prescription
        assert loaded[key].history == stream.history
        waiting = {record.position: record for record in stream.set_aside.values()}
        assert {r.position for r in loaded[key].open} == {p for p, r in waiting.items() if r.state == "open"}
        parked = {parked.set_aside for parked in loaded[key].parked or ()}
        assert parked == {r for r in waiting.values() if r.state == "parked"}


def test_a_log_with_every_fault_sets_records_aside_for_every_reason(migrated_database_url, dirty_log):
    project_all(migrated_database_url, dirty_log, seed=1, largest=40)
    with psycopg.connect(migrated_database_url) as connection:
        found = {row[0] for row in connection.execute(f"SELECT DISTINCT reason FROM {SCHEMA}.set_aside")}
    assert found == set(Reason) - {Reason.FOLD_FAILED}


@pytest.mark.parametrize(("largest", "remembered"), [(1, 0), (7, 0), (500, 1000), (100_000, 1000)])
def test_where_the_log_is_cut_does_not_show_in_any_row(
    migrated_database_url, another_database_url, dirty_log, largest, remembered
):
    project_all(migrated_database_url, dirty_log, seed=1, largest=60)
    project_all(another_database_url, dirty_log, seed=2, largest=largest, remembered=remembered)
    assert rows(another_database_url) == rows(migrated_database_url)


def test_three_workers_write_the_rows_of_one(migrated_database_url, another_database_url, dirty_log):
    project_all(migrated_database_url, dirty_log, seed=1, largest=60)
    random = Random(3)
    owned = [(0,), (1, 2), (3,)]
    workers = [worker(another_database_url, partitions) for partitions in owned]
    running = [one.__enter__() for one in workers]
    turns = [
        (one, poll)
        for one, partitions in zip(running, owned, strict=True)
        for poll in polls(dirty_log, partitions, random, 25)
    ]
    order = list(range(len(turns)))
    waiting = {id(one): [poll for who, poll in turns if who is one] for one in running}
    random.shuffle(order)
    for index in order:
        one = turns[index][0]
        one.project(waiting[id(one)].pop(0))
    for one in workers:
        one.__exit__(None, None, None)
    assert rows(another_database_url) == rows(migrated_database_url)


def test_the_same_log_again_changes_no_row_and_counts_duplicates(migrated_database_url):
    log = generated_log(60)
    first = project_all(migrated_database_url, log, seed=1, largest=40)
    before = rows(migrated_database_url)
    again = Log()
    for record in [*log.records(), *log.records()]:
        again.append(record.key or b"", record.value or b"", record.headers)
    with worker(migrated_database_url) as one:
        for poll in polls(again, range(PARTITIONS), Random(1), 40):
            fresh = [r for r in poll if r.position.offset >= one.claims[r.position.partition].next_offset]
            if fresh:
                one.project(fresh)
        assert one.counts.duplicates == first.folded
        assert one.counts.folded == 0
    assert rows(migrated_database_url) == before


def test_a_batch_whose_acknowledgement_was_lost_is_not_written_twice(migrated_database_url):
    log = generated_log(20)
    poll = log.partitions[0][:10]
    with worker(migrated_database_url) as one:
        claims = dict(one.claims)
        one.project(poll)
        before = rows(migrated_database_url)
        one.claims = claims  # as if the connection had died between COMMIT and its answer
        with pytest.raises(FencingLost):
            one.project(poll)
    assert rows(migrated_database_url) == before


def test_a_worker_that_was_overtaken_writes_nothing(migrated_database_url):
    log = generated_log(20)
    with worker(migrated_database_url) as zombie:
        zombie.project(log.partitions[0][:5])
        with worker(migrated_database_url) as successor:
            assert successor.claims[0].next_offset == log.partitions[0][4].position.offset + 1
            before = rows(migrated_database_url)
            with pytest.raises(FencingLost):
                zombie.project(log.partitions[0][5:10])
            assert rows(migrated_database_url) == before
            successor.project(log.partitions[0][5:10])


def test_a_rewound_checkpoint_is_noticed_before_anything_is_written(migrated_database_url):
    log = generated_log(20)
    with worker(migrated_database_url) as one:
        one.project(log.partitions[0][:5])
        with psycopg.connect(migrated_database_url) as connection:
            connection.execute(f"UPDATE {SCHEMA}.checkpoint SET next_offset = 0 WHERE partition_number = 0")
        with pytest.raises(FencingLost):
            one.project(log.partitions[0][5:10])


def test_what_a_worker_remembers_is_forgotten_when_a_batch_fails(migrated_database_url):
    log = generated_log(20)
    with worker(migrated_database_url) as one:
        one.project(log.partitions[0][:10])
        assert len(one.runner.recent) > 0
        one.claims[0] = one.claims[0].moved_to(999_999)
        with pytest.raises(FencingLost):
            one.project(log.partitions[0][10:12])
        assert len(one.runner.recent) == 0


def test_data_that_the_database_refuses_sets_that_one_event_aside(
    migrated_database_url, another_database_url, monkeypatch
):
    log = generated_log(40)
    project_all(another_database_url, log, seed=1, largest=1000)
    victim = next(iter(sorted(folded(log))))
    with psycopg.connect(migrated_database_url) as connection:
        connection.execute(
            f"ALTER TABLE {SCHEMA}.prescription ADD CONSTRAINT refuse CHECK (stream_key <> '{victim}' OR version < 2)"
        )
    counts = project_all(migrated_database_url, log, seed=1, largest=1000)
    with psycopg.connect(migrated_database_url) as connection:
        found = connection.execute(f"SELECT stream_key, reason FROM {SCHEMA}.set_aside WHERE state = 'open'").fetchall()
        version = connection.execute(
            f"SELECT version FROM {SCHEMA}.prescription WHERE stream_key = %s", (victim,)
        ).fetchone()
    assert found == [(victim, "fold_failed")]
    assert version == (1,)
    assert counts.quarantined == 1
    others = [row for row in rows(another_database_url)["prescription"] if victim not in row]
    assert [row for row in rows(migrated_database_url)["prescription"] if victim not in row] == others


def test_a_created_that_the_database_refuses_is_found_by_its_patient(migrated_database_url):
    log = generated_log(40)
    victim = next(iter(sorted(folded(log))))
    with psycopg.connect(migrated_database_url) as connection:
        connection.execute(f"ALTER TABLE {SCHEMA}.prescription ADD CONSTRAINT refuse CHECK (stream_key <> '{victim}')")
    project_all(migrated_database_url, log, seed=1, largest=1000)
    with psycopg.connect(migrated_database_url) as connection:
        found = connection.execute(
            f"SELECT reason, nhs_number IS NOT NULL FROM {SCHEMA}.set_aside WHERE stream_key = %s AND state = 'open'",
            (victim,),
        ).fetchall()
    assert found == [("fold_failed", True)]


def test_a_database_error_leaves_the_batch_undone(migrated_database_url, monkeypatch):
    log = generated_log(20)
    with worker(migrated_database_url) as one:

        def lost(*_: object, **__: object) -> None:
            raise psycopg.OperationalError("the connection is lost")

        monkeypatch.setattr(runner_module.set_aside, "save", lost)
        monkeypatch.setattr(ReadModel, "save", lost)
        with pytest.raises(psycopg.OperationalError):
            one.project(log.partitions[0][:5])
    assert rows(migrated_database_url)["prescription"] == []


def test_rows_that_somebody_else_took_away_stop_the_worker(migrated_database_url):
    log = generated_log(20)
    with worker(migrated_database_url) as one:
        one.project(log.partitions[0][:10])
        with psycopg.connect(migrated_database_url) as connection:
            connection.execute(f"TRUNCATE {SCHEMA}.issue")
        with pytest.raises(RowsMissing):
            one.project(log.partitions[0][10:])
    with psycopg.connect(migrated_database_url) as connection:
        stands = connection.execute(f"SELECT next_offset FROM {SCHEMA}.checkpoint WHERE partition_number = 0")
        assert stands.fetchone() == (log.partitions[0][9].position.offset + 1,)


def test_the_content_of_a_misrouted_record_goes_with_its_deleted_prescription(migrated_database_url):
    log = generated_log(300, dirty_rate=0.15)
    project_all(migrated_database_url, log, seed=1, largest=60)
    with psycopg.connect(migrated_database_url) as connection:
        kept = connection.execute(
            f"SELECT count(*) FROM {SCHEMA}.set_aside s JOIN {SCHEMA}.prescription p USING (stream_key) "
            "WHERE p.kind = 'deleted' AND (s.record_value IS NOT NULL OR s.nhs_number IS NOT NULL)"
        ).fetchone()
        deleted = connection.execute(
            f"SELECT count(*) FROM {SCHEMA}.prescription WHERE kind = 'deleted' AND nhs_number IS NULL"
        ).fetchone()
    assert kept == (0,)
    assert deleted is not None
    assert deleted[0] > 0


def test_a_checkpoint_is_caught_up_only_where_the_worker_still_stands(migrated_database_url):
    log = generated_log(20)
    with worker(migrated_database_url) as one:
        stale = dict(one.claims)
        one.project(log.partitions[0][:5])
        connection = one.runner.connection
        at = connection.execute("SELECT clock_timestamp()").fetchone()
        assert at is not None
        runner_module.checkpoints.caught_up(connection, SCHEMA, stale, at[0])
        found = dict(
            connection.execute(
                f"SELECT partition_number, caught_up_at FROM {SCHEMA}.checkpoint WHERE topic = %s", (TOPIC,)
            ).fetchall()
        )
    assert found[0] is None
    assert found[1] == at[0]
