"""A generation that is built in memory has the rows of one that is projected batch by batch."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from projector import checkpoints, decisions, set_aside
from projector.batch import Record
from projector.decisions import DecisionsDue
from projector.prescription import has_run_its_course
from projector.read_model import ReadModel
from projector.runner import Batch, OneByOne
from projector.stream import Stream
from projector.unwritten import Unwritten
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
    return generated_log(300, dirty_rate=0.15)


def batch(records: Sequence[Record]) -> Batch:
    return Batch([DECODE(r) for r in records], {r.position.partition: r.position.offset + 1 for r in records})


def write(one: FakeWorker, unwritten: Unwritten) -> None:
    offsets = dict(unwritten.next_offsets)
    one.counts.add(one.runner.write(one.claims, unwritten))
    for number, offset in offsets.items():
        one.claims[number] = one.claims[number].moved_to(offset)


def build(database_url: str, log: Log, *, seed: int, largest: int, written_after: Iterable[int], remembered: int = 50):
    """Build a whole log, in polls of random sizes, written after so many polls each."""
    with worker(database_url, remembered=remembered) as one:
        unwritten, left = Unwritten(), iter(written_after)
        until = next(left, None)
        for count, poll in enumerate(polls(log, range(PARTITIONS), Random(seed), largest), start=1):
            one.runner.take(one.claims, batch(poll), unwritten)
            if count == until:
                write(one, unwritten)
                until = next(left, None)
        if unwritten:
            write(one, unwritten)
        assert unwritten.size == 0
        return one.counts


@pytest.mark.parametrize(
    ("largest", "written_after", "remembered"),
    [
        (100_000, (), 0),
        (40, (), 50),
        (40, range(1, 1000), 50),
        (15, range(3, 1000, 4), 0),
        (15, range(3, 1000, 4), 1000),
        (3, (2, 50, 51), 1000),
    ],
    ids=[
        "at once",
        "at the end",
        "after every poll",
        "after every fourth poll, nothing remembered",
        "after every fourth poll, everything remembered",
        "now and then",
    ],
)
def test_a_build_in_memory_has_the_rows_of_projecting(
    migrated_database_url, another_database_url, dirty_log, largest, written_after, remembered
):
    counts = project_all(migrated_database_url, dirty_log, seed=1, largest=60)
    built = build(
        another_database_url, dirty_log, seed=2, largest=largest, written_after=written_after, remembered=remembered
    )
    assert rows(another_database_url) == rows(migrated_database_url)
    assert (built.folded, built.duplicates) == (counts.folded, counts.duplicates)


def test_a_stream_that_was_written_is_not_loaded_again_unless_it_has_run_its_course(migrated_database_url, monkeypatch):
    loaded: list[Stream] = []

    def noted(read_model: ReadModel, *arguments: Any) -> dict[str, Stream]:
        streams = load(read_model, *arguments)
        loaded.extend(stream for stream in streams.values() if stream.prescription is not None)
        return streams

    load = ReadModel.load
    monkeypatch.setattr(ReadModel, "load", noted)
    build(
        migrated_database_url, generated_log(300), seed=2, largest=15, written_after=range(3, 1000, 4), remembered=1000
    )
    assert loaded
    assert all(stream.prescription and has_run_its_course(stream.prescription) for stream in loaded)


def test_a_stream_whose_events_are_well_is_folded_as_they_come_and_keeps_none_of_them(migrated_database_url):
    log = generated_log(30)
    unwritten = Unwritten()
    with worker(migrated_database_url) as one:
        for poll in polls(log, range(PARTITIONS), Random(1), 10):
            one.runner.take(one.claims, batch(poll), unwritten)
        assert not unwritten.items
        assert sum(stream.counts.folded for stream in unwritten.streams.values()) == len(list(log.records()))
        assert not any(rows(migrated_database_url).values())
        write(one, unwritten)
    assert len(rows(migrated_database_url)["prescription"]) == 30


def test_the_garbage_collector_passes_over_what_is_folded_in_memory(migrated_database_url):
    log = generated_log(30)
    unwritten = Unwritten()
    with worker(migrated_database_url) as one:
        one.runner.take(one.claims, batch(list(log.records())), unwritten)
        try:
            looked_at = {id(found) for found in gc.get_objects()}
            assert not looked_at & {id(stream.prescription) for stream in unwritten.streams.values()}
        finally:
            gc.unfreeze()
        looked_at = {id(found) for found in gc.get_objects()}
        assert looked_at >= {id(stream.prescription) for stream in unwritten.streams.values()}


def test_what_was_taken_of_a_partition_that_goes_is_built_by_whoever_gets_it(
    migrated_database_url, another_database_url, dirty_log
):
    project_all(migrated_database_url, dirty_log, seed=1, largest=60)
    with worker(another_database_url) as one:
        unwritten = Unwritten()
        for number in range(PARTITIONS):
            one.runner.take(one.claims, batch(dirty_log.partitions[number][:60]), unwritten)
        unwritten.forget(2)
        with worker(another_database_url, [2]) as other:
            write(one, unwritten)
            other.project(dirty_log.partitions[2])
        for number in (0, 1, 3):
            one.runner.take(one.claims, batch(dirty_log.partitions[number][60:]), unwritten)
        write(one, unwritten)
    assert rows(another_database_url) == rows(migrated_database_url)


def test_forgetting_every_partition_leaves_nothing_and_no_size(migrated_database_url, dirty_log):
    unwritten = Unwritten()
    with worker(migrated_database_url) as one:
        one.runner.take(one.claims, batch(list(dirty_log.records())), unwritten)
    assert unwritten.items
    assert unwritten.streams
    assert unwritten.marks
    assert unwritten.size > 0
    for number in range(PARTITIONS):
        unwritten.forget(number)
    assert not unwritten
    assert (unwritten.streams, unwritten.items, unwritten.marks, unwritten.size) == ({}, {}, [], 0)


def test_a_worker_that_was_overtaken_writes_nothing_of_what_it_took(migrated_database_url, dirty_log):
    unwritten = Unwritten()
    with worker(migrated_database_url) as one:
        one.runner.take(one.claims, batch(list(dirty_log.records())), unwritten)
        with worker(migrated_database_url, [1]), pytest.raises(checkpoints.FencingLost):
            write(one, unwritten)
    assert not any(rows(migrated_database_url).values())


def open_record(database_url: str) -> tuple[str, int, int, str]:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            f"SELECT topic, partition_number, record_offset, stream_key FROM {SCHEMA}.set_aside "
            "WHERE state = 'open' AND stream_key IS NOT NULL AND reason NOT IN ('misrouted', 'deleted') "
            "ORDER BY partition_number, record_offset LIMIT 1"
        ).fetchone()
    assert row is not None
    return row


def test_a_decision_that_takes_effect_inside_is_met_before_the_batch_is_taken(
    migrated_database_url, another_database_url, dirty_log
):
    with worker(migrated_database_url) as live:
        for number in range(PARTITIONS):
            live.project(dirty_log.partitions[number][:80])
        decide_about(migrated_database_url, "skip", open_record(migrated_database_url))
        live.apply_decisions()
        for number in range(PARTITIONS):
            live.project(dirty_log.partitions[number][80:])
    with psycopg.connect(migrated_database_url) as one, psycopg.connect(another_database_url) as other:
        made = one.execute(
            "SELECT action, topic, partition_number, record_offset, stream_key, stream_partition, why, decided_by, "
            "effect_offset, number FROM rxstore.decision"
        ).fetchone()
        other.execute(
            "INSERT INTO rxstore.decision (action, topic, partition_number, record_offset, stream_key, "
            "stream_partition, why, decided_by, effect_offset, number) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            made,
        )
    partition, effect = made[5], made[8]
    unwritten = Unwritten()
    met: list[DecisionsDue] = []
    with worker(another_database_url) as one:
        for number in range(PARTITIONS):
            whole = batch(dirty_log.partitions[number])
            try:
                one.runner.take(one.claims, whole, unwritten)
            except DecisionsDue as due:
                met.append(due)
                before, after = whole.cut(due.offsets, one.claims)
                one.runner.take(one.claims, before, unwritten)
                write(one, unwritten)
                one.apply_decisions()
                one.runner.take(one.claims, after, unwritten)
        write(one, unwritten)
    assert [due.offsets for due in met] == [{partition: effect}]
    assert rows(another_database_url) == rows(migrated_database_url)


def test_a_decision_that_comes_inside_what_was_taken_asks_for_smaller_steps(migrated_database_url, dirty_log):
    unwritten = Unwritten()
    with worker(migrated_database_url) as one:
        for number in range(PARTITIONS):
            one.project(dirty_log.partitions[number][:80])
        for number in range(PARTITIONS):
            one.runner.take(one.claims, batch(dirty_log.partitions[number][80:]), unwritten)
        decide_about(migrated_database_url, "skip", open_record(migrated_database_url))
        connection = one.runner.connection
        decisions.give_effect(connection, decisions.waiting(connection, SCHEMA, TOPIC, one.claims))
        before = rows(migrated_database_url)
        with pytest.raises(OneByOne):
            write(one, unwritten)
    assert rows(migrated_database_url) == before


def test_a_rewind_changes_no_row_whatever_was_set_aside_before(migrated_database_url, dirty_log):
    counts = project_all(migrated_database_url, dirty_log, seed=1, largest=60)
    with psycopg.connect(migrated_database_url) as connection:
        connection.execute(f"UPDATE {SCHEMA}.checkpoint SET next_offset = 0")
    before = rows(migrated_database_url)
    unwritten = Unwritten()
    with worker(migrated_database_url) as one:
        one.runner.take(one.claims, batch(list(dirty_log.records())), unwritten)
        write(one, unwritten)
        assert one.counts.folded == 0
        assert one.counts.duplicates >= counts.folded
    assert rows(migrated_database_url) == before


def test_records_that_somebody_else_set_aside_meanwhile_ask_for_smaller_steps(
    migrated_database_url, another_database_url, dirty_log
):
    unwritten = Unwritten()
    with worker(another_database_url) as one:
        one.runner.take(one.claims, batch(list(dirty_log.records())), unwritten)
        project_all(migrated_database_url, dirty_log, seed=1, largest=60)
        with psycopg.connect(migrated_database_url) as there, psycopg.connect(another_database_url) as here:
            columns = ", ".join(set_aside.COLUMNS)
            found = there.execute(f"SELECT {columns} FROM {SCHEMA}.set_aside LIMIT 1").fetchone()
            assert found is not None
            marks = ", ".join(["%s"] * len(found))
            values = [Jsonb(value) if isinstance(value, list) else value for value in found]
            here.execute(f"INSERT INTO {SCHEMA}.set_aside ({columns}) VALUES ({marks})", values)
        with pytest.raises(OneByOne):
            write(one, unwritten)


def test_rows_that_the_database_refuses_ask_for_smaller_steps(migrated_database_url):
    with psycopg.connect(migrated_database_url) as connection:
        connection.execute(f"ALTER TABLE {SCHEMA}.prescription ADD CHECK (version < 3)")
    unwritten = Unwritten()
    with worker(migrated_database_url) as one:
        one.runner.take(one.claims, batch(list(generated_log(30).records())), unwritten)
        with pytest.raises(OneByOne):
            write(one, unwritten)
    assert not any(rows(migrated_database_url).values())
