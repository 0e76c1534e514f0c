"""A defect of ours on one stream sets aside that stream's event alone; the world's troubles set nothing aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from ingest import decode as decode_module
from projector import read_model, set_aside
from projector import stream as stream_module
from projector.batch import Record
from projector.runner import TooManyFailing
from schemas.events import Nominated, Released
from tests import examples
from tests.integration.projecting import (
    DECODE,
    PARTITIONS,
    SCHEMA,
    FakeWorker,
    Log,
    decide_about,
    folded,
    generated_log,
    project_all,
    rows,
    worker,
)


@pytest.fixture(scope="module")
def log() -> Log:
    return generated_log(60, seed=3, dirty_rate=0.1)


@pytest.fixture(scope="module")
def victim(log: Log) -> str:
    """A healthy prescription of several events, the stream on which something will go wrong."""
    healthy = [key for key, stream in folded(log).items() if not stream.set_aside and stream.history.version > 3]
    return min(healthy)


def refuse(database_url: str, condition: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(f"ALTER TABLE {SCHEMA}.prescription ADD CONSTRAINT refuse CHECK (NOT ({condition}))")


def accept_again(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(f"ALTER TABLE {SCHEMA}.prescription DROP CONSTRAINT refuse")


def opened(database_url: str, key: str) -> list[tuple[str, str, int]]:
    """The records of a stream that wait: state, reason and offset."""
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            f"SELECT state, reason, record_offset FROM {SCHEMA}.set_aside WHERE stream_key = %s "
            "AND state IN ('open', 'parked') ORDER BY record_offset",
            (key,),
        ).fetchall()


def failed(database_url: str) -> dict[str, int]:
    """How many records of each stream are set aside as fold_failed."""
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            f"SELECT stream_key, count(*) FROM {SCHEMA}.set_aside WHERE reason = 'fold_failed' GROUP BY 1"
        )
        return dict(found.fetchall())


def without(found: dict[str, list[str]], key: str) -> dict[str, list[str]]:
    return {table: [row for row in rows if key not in row] for table, rows in found.items()}


# what the database refuses --------------------------------------------------------------------------------------------


def test_where_the_log_is_cut_does_not_show_in_what_is_refused(migrated_database_url, another_database_url, log):
    for url in (migrated_database_url, another_database_url):
        refuse(url, "version >= 3 AND substr(stream_key, 3, 1) < '8'")
    project_all(migrated_database_url, log, seed=1, largest=100_000, keep_going=True)
    project_all(another_database_url, log, seed=2, largest=1, keep_going=True)
    assert len(failed(migrated_database_url)) > 10
    assert rows(another_database_url) == rows(migrated_database_url)


def early_dispensing() -> tuple[Log, str]:
    """A prescription whose creation comes after its release and its dispensing."""
    log = Log()
    subject = examples.created()["subject"]
    for event in (examples.released(), examples.dispensed(), examples.nominated(), examples.created()):
        log.append_event({**event, "subject": subject})
    return log, subject[:-1]


def test_the_parked_event_that_is_refused_is_blamed_and_not_the_one_that_released_it(migrated_database_url):
    log, key = early_dispensing()
    refuse(migrated_database_url, "version >= 3")
    project_all(migrated_database_url, log, seed=1, largest=10)
    _, second, third, _ = [record.position.offset for record in log.records()]
    assert opened(migrated_database_url, key) == [
        ("open", "fold_failed", second),
        ("parked", "not_created", third),
    ]
    with psycopg.connect(migrated_database_url) as connection:
        (version,) = connection.execute(f"SELECT version FROM {SCHEMA}.prescription").fetchall()
    assert version == (2,)


@contextmanager
def trouble(database_url: str, sqlstate: str) -> Iterator[None]:
    """The database answers every new prescription with this SQLSTATE."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            f"CREATE OR REPLACE FUNCTION {SCHEMA}.trouble() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'trouble' USING ERRCODE = '{sqlstate}'; END $$"
        )
        connection.execute(
            f"CREATE TRIGGER trouble BEFORE INSERT ON {SCHEMA}.prescription FOR EACH ROW "
            f"EXECUTE FUNCTION {SCHEMA}.trouble()"
        )
        yield
        connection.execute(f"DROP TRIGGER trouble ON {SCHEMA}.prescription")


THE_WORLDS = {
    "08006": "the connection failed",
    "25006": "read-only: the database is in recovery",
    "40001": "a serialization failure",
    "40P01": "a deadlock",
    "42501": "a grant is missing",
    "42P01": "a table is missing",
    "53100": "the disk is full",
    "53200": "no memory",
    "53300": "too many connections",
    "55P03": "a lock could not be had",
    "57014": "cancelled",
    "57P01": "an administrator ended the session",
    "58030": "the disk fails",
    "XX001": "a page is corrupt",
}


def test_the_worlds_trouble_sets_nothing_aside(migrated_database_url, log):
    poll = log.partitions[0][:20]
    with worker(migrated_database_url) as one:
        before = dict(one.claims)
        for sqlstate, what in THE_WORLDS.items():
            with trouble(migrated_database_url, sqlstate), pytest.raises(psycopg.Error) as raised:
                one.project(poll)
            assert raised.value.sqlstate == sqlstate, what
        assert one.claims == before
        assert sum(map(len, rows(migrated_database_url).values())) == 0
        one.project(poll)
    assert failed(migrated_database_url) == {}


def test_data_that_the_database_refuses_is_set_aside(migrated_database_url, log):
    with worker(migrated_database_url, keep_going=True) as one:
        for number, sqlstate in enumerate(["22001", "22P02", "23502", "23505"]):
            before = len(failed(migrated_database_url))
            with trouble(migrated_database_url, sqlstate):
                one.project(log.partitions[number][:20])
            assert len(failed(migrated_database_url)) > before, sqlstate


def test_a_connection_that_breaks_sets_nothing_aside(migrated_database_url, log, monkeypatch):
    def broken(*_: object) -> None:
        raise ConnectionResetError

    with worker(migrated_database_url) as one:
        with monkeypatch.context() as patched:
            patched.setattr(read_model, "copy_rows", broken)
            with pytest.raises(ConnectionResetError):
                one.project(log.partitions[0])
        one.project(log.partitions[0])
    assert failed(migrated_database_url) == {}


# what our own code raises ---------------------------------------------------------------------------------------------


def raising(real: Callable[..., Any], is_victim: Callable[..., bool]) -> Callable[..., Any]:
    """Return a function that has a defect where ``is_victim`` says so; its message quotes what nobody may read."""

    def defective(*arguments: Any, **options: Any) -> Any:
        if is_victim(*arguments):
            raise LookupError("a name and a number")
        return real(*arguments, **options)

    return defective


DEFECTS: dict[str, tuple[object, str, Callable[[str], Callable[..., bool]]]] = {
    "in what an event means": (
        stream_module,
        "evolve",
        lambda victim: lambda state, event: event.envelope.stream_key == victim and isinstance(event, Released),
    ),
    "in what the stream remembers": (
        stream_module,
        "_remembering",
        lambda victim: lambda history, item, _: item.event.envelope.stream_key == victim and history.version == 1,
    ),
    "in whether it was seen before": (
        stream_module._Folding,
        "accept",
        lambda victim: lambda folding, item: folding.stream.key == victim and folding.history.version == 2,
    ),
    "in reading a record": (
        decode_module,
        "read",
        lambda victim: lambda attributes, data: attributes["subject"][:-1] == victim,
    ),
    "in making a row": (
        read_model,
        "_issue_row",
        lambda victim: lambda key, issue: key == victim and issue.version > 1,
    ),
    "in reading a row": (
        read_model,
        "_loaded",
        lambda victim: lambda row, children: row[0] == victim,
    ),
}


@pytest.mark.parametrize("where", DEFECTS)
def test_a_defect_on_one_stream_sets_that_stream_aside_alone(
    migrated_database_url, another_database_url, log, victim, monkeypatch, caplog, where
):
    project_all(another_database_url, log, seed=1, largest=40)
    owner, name, of = DEFECTS[where]
    monkeypatch.setattr(owner, name, raising(getattr(owner, name), of(victim)))
    project_all(migrated_database_url, log, seed=1, largest=10, remembered=0)
    assert list(failed(migrated_database_url)) == [victim]
    assert without(rows(migrated_database_url), victim) == without(rows(another_database_url), victim)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "LookupError in " in said
    assert "a name and a number" not in said


@pytest.mark.parametrize("where", ["in what an event means", "in making a row"])
def test_where_the_log_is_cut_does_not_show_in_what_a_defect_sets_aside(
    migrated_database_url, another_database_url, log, victim, monkeypatch, where
):
    owner, name, of = DEFECTS[where]
    monkeypatch.setattr(owner, name, raising(getattr(owner, name), of(victim)))
    project_all(migrated_database_url, log, seed=1, largest=1)
    project_all(another_database_url, log, seed=2, largest=100_000)
    assert rows(another_database_url) == rows(migrated_database_url)


def test_after_the_fix_a_retry_makes_the_prescription_whole(
    migrated_database_url, another_database_url, log, victim, monkeypatch
):
    project_all(another_database_url, log, seed=1, largest=40)
    owner, name, of = DEFECTS["in what an event means"]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, raising(getattr(owner, name), of(victim)))
        project_all(migrated_database_url, log, seed=1, largest=40)
    retry_the_failed(migrated_database_url, victim)
    for table in ("prescription", "issue", "dispense_notification"):
        positions_aside = rows(migrated_database_url)[table]
        assert positions_aside == rows(another_database_url)[table]


def retry_the_failed(database_url: str, key: str) -> FakeWorker:
    with psycopg.connect(database_url) as connection:
        (record,) = connection.execute(
            f"SELECT topic, partition_number, record_offset, stream_key FROM {SCHEMA}.set_aside "
            "WHERE stream_key = %s AND reason = 'fold_failed' AND state = 'open'",
            (key,),
        ).fetchall()
    decide_about(database_url, "retry", record)
    with worker(database_url) as one:
        one.apply_decisions()
        return one


# decisions ------------------------------------------------------------------------------------------------------------


def test_a_retry_that_the_database_refuses_again_changes_nothing(migrated_database_url, log, victim):
    refuse(migrated_database_url, f"stream_key = '{victim}' AND version >= 2")
    project_all(migrated_database_url, log, seed=1, largest=40)
    before = rows(migrated_database_url)
    retry_the_failed(migrated_database_url, victim)
    assert rows(migrated_database_url) == before


def test_an_event_that_a_retry_releases_and_that_is_refused_blocks_in_its_turn(migrated_database_url, log, victim):
    refuse(migrated_database_url, f"stream_key = '{victim}' AND version >= 2")
    project_all(migrated_database_url, log, seed=1, largest=40)
    (_, _, second), (_, _, third), *_ = opened(migrated_database_url, victim)
    accept_again(migrated_database_url)
    refuse(migrated_database_url, f"stream_key = '{victim}' AND version >= 3")
    retry_the_failed(migrated_database_url, victim)
    (first_left, *_) = opened(migrated_database_url, victim)
    assert first_left == ("open", "fold_failed", third)
    assert second < third


def test_a_decision_that_cannot_be_applied_does_not_hold_up_its_partition(
    migrated_database_url, log, victim, monkeypatch, caplog
):
    refuse(migrated_database_url, f"stream_key = '{victim}' AND version >= 2")
    project_all(migrated_database_url, log, seed=1, largest=40)
    before = rows(migrated_database_url)
    accept_again(migrated_database_url)
    monkeypatch.setattr(
        stream_module._Folding, "retry_decided", raising(stream_module._Folding.retry_decided, lambda *_: True)
    )
    one = retry_the_failed(migrated_database_url, victim)
    assert rows(migrated_database_url) == before
    assert "changed nothing" in caplog.text
    with worker(migrated_database_url) as another:
        another.apply_decisions()
        assert {n: claim.next_offset for n, claim in another.claims.items()} == {
            n: claim.next_offset for n, claim in one.claims.items()
        }
    assert caplog.text.count("changed nothing") == 1


# a bad deploy ---------------------------------------------------------------------------------------------------------


def test_a_version_that_cannot_fold_most_of_what_comes_stops_and_sets_nothing_aside(migrated_database_url, monkeypatch):
    log = generated_log(150)
    monkeypatch.setattr(stream_module, "evolve", raising(stream_module.evolve, lambda *_: True))
    everything = [record for number in range(PARTITIONS) for record in log.partitions[number]]
    with worker(migrated_database_url) as one, pytest.raises(TooManyFailing, match="cannot be folded"):
        one.project(everything)
    assert sum(map(len, rows(migrated_database_url).values())) == 0


def test_told_to_keep_going_it_sets_all_of_it_aside(migrated_database_url, log, monkeypatch):
    monkeypatch.setattr(stream_module, "evolve", raising(stream_module.evolve, lambda *_: True))
    with worker(migrated_database_url, keep_going=True) as one:
        one.project(log.partitions[0])
    assert sum(failed(migrated_database_url).values()) > 10


def test_few_defects_among_many_events_stop_nobody(migrated_database_url, log, monkeypatch):
    monkeypatch.setattr(
        stream_module,
        "evolve",
        raising(stream_module.evolve, lambda _, event: isinstance(event, Nominated)),
    )
    project_all(migrated_database_url, log, seed=1, largest=40)


def test_what_cannot_be_loaded_after_all_keeps_its_content(migrated_database_url, log, victim, monkeypatch):
    owner, name, of = DEFECTS["in reading a row"]
    monkeypatch.setattr(owner, name, raising(getattr(owner, name), of(victim)))
    project_all(migrated_database_url, log, seed=1, largest=10, remembered=0)
    with psycopg.connect(migrated_database_url) as connection:
        kept = set_aside.load_stream(connection, SCHEMA, victim)
    held: list[Record] = [record.record for record in kept if record.record is not None]
    by_position = {record.position: record for record in log.records()}
    assert held == [by_position[record.position] for record in held]
    assert len(held) == failed(migrated_database_url)[victim]
    assert len(held) > 0
    assert all(DECODE(record).record is record for record in held)
