"""The rebuild commands: what each refuses, and what it leaves behind. The topic is a log without a broker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import IntegrityError

from ingest import moment
from projector import checkpoints, decisions, generations, rebuild
from projector.runner import connect
from rxstore import rebuilding, store
from rxstore.errors import Refused
from rxstore.feeding import Feeder
from rxstore.settings import Settings, load
from tests.integration.projecting import PARTITIONS, TOPIC, Log, generated_log, polls, rows, worker

ANOTHER = "another-topic"


@pytest.fixture(scope="module")
def log() -> Log:
    return generated_log(60, seed=4, dirty_rate=0.1)


@pytest.fixture
def settings(migrated_database_url, tmp_path) -> Settings:
    environment = {
        "RXSTORE_DATABASE_URL": migrated_database_url,
        "RXSTORE_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "RXSTORE_TOPIC": TOPIC,
    }
    return load(environment, env_file=tmp_path / "none")


@pytest.fixture
def engine(settings, log, monkeypatch):
    ends = {number: records[-1].position.offset + 1 for number, records in log.partitions.items()}

    def describe(settings: Settings, topic: str | None = None) -> store.Log:
        name = topic or settings.topic
        return store.Log(name, f"id-of-{name}", dict.fromkeys(ends, 0), ends)

    monkeypatch.setattr(store, "describe_log", describe)
    made = create_engine(make_url(settings.database()).set(drivername="postgresql+psycopg"))
    change(
        made,
        f"UPDATE rxstore.generation SET topic = '{TOPIC}', partitions = {PARTITIONS}, topic_id = 'id-of-{TOPIC}'",
    )
    yield made
    made.dispose()


def change(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def feed(settings: Settings, engine: Engine, log: Log, name: str, *, seed: int = 1, until: int | None = None) -> None:
    """Project as running workers would; all of it, or only some polls."""
    with worker(settings.database(), schema=f"rx_{name}") as one:
        for poll in list(polls(log, range(PARTITIONS), Random(seed), 40))[:until]:
            one.project(poll)
    if until is None:
        change(engine, f"UPDATE rx_{name}.checkpoint SET caught_up_at = now()")


@pytest.fixture
def staged(settings, engine, log):
    feed(settings, engine, log, "g1")
    rebuilding.stage(settings, engine, None)
    return engine


@pytest.fixture
def built(settings, staged, log):
    feed(settings, staged, log, "g2", seed=2)
    return staged


def states(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {one.name: one.state for one in generations.every(connection)}


def shown(engine: Engine) -> str:
    with engine.connect() as connection:
        definition = connection.execute(text("SELECT pg_get_viewdef('rxstore.issue'::regclass)")).scalar_one()
    return definition.partition("FROM rx_")[2].partition(".")[0]


def actions(engine: Engine, name: str) -> list[str]:
    with engine.connect() as connection:
        return [entry.action for entry in rebuild.history(connection, name)]


def promote(settings: Settings, engine: Engine, **options: Any) -> tuple[str, str]:
    return rebuilding.promote(settings, engine, None, **{"max_lag": 0, **options})


# the way there and back -----------------------------------------------------------------------------------------------


def test_a_generation_is_staged_compared_promoted_rolled_back_and_promoted_again(settings, built):
    new, found = rebuilding.verify(settings, built, None)
    assert (new.name, found.is_clean) == ("g2", True)
    assert promote(settings, built) == ("g2", "g1")
    assert (states(built), shown(built)) == ({"g1": "previous", "g2": "live"}, "g2")
    assert rebuilding.roll_back(settings, built, max_lag=0) == ("g1", "g2")
    assert (states(built), shown(built)) == ({"g1": "live", "g2": "ready"}, "g1")
    promote(settings, built)
    rebuilding.retire(built, None)
    assert (states(built), shown(built)) == ({"g1": "retired", "g2": "live"}, "g2")
    with built.connect() as connection:
        assert connection.execute(text("SELECT to_regnamespace('rx_g1')")).scalar_one() is None
    assert actions(built, "g2") == ["staged", "ready", "verified", "promoted", "ready", "promoted"]
    assert actions(built, "g1") == ["previous", "rolled_back_to", "previous", "retired"]


def test_a_new_generation_has_the_grants_of_the_live_one(settings, engine):
    change(engine, "GRANT USAGE ON SCHEMA rx_g1 TO rxstore_reader")
    change(engine, "GRANT SELECT, INSERT ON rx_g1.prescription TO rxstore_reader")
    rebuilding.stage(settings, engine, "next")
    question = "SELECT has_table_privilege('rxstore_reader', 'rx_next.prescription', 'INSERT'), has_schema_privilege("
    with engine.connect() as connection:
        row = connection.execute(text(f"{question} 'rxstore_reader', 'rx_next', 'USAGE')")).one()
        others = connection.execute(text("SELECT has_table_privilege('rxstore_reader', 'rx_next.issue', 'INSERT')"))
        assert (tuple(row), others.scalar_one()) == ((True, True), False)


def test_a_generation_that_is_given_up_leaves_nothing_and_its_name_is_not_used_again(settings, built):
    before = rows(settings.database())
    rebuilding.abort(built, None)
    assert states(built) == {"g1": "live", "g2": "abandoned"}
    with built.connect() as connection:
        assert connection.execute(text("SELECT to_regnamespace('rx_g2')")).scalar_one() is None
    assert rows(settings.database()) == before
    assert rebuilding.stage(settings, built, None).name == "g3"


def tables_stand(engine: Engine, name: str) -> bool:
    with engine.connect() as connection:
        return (
            connection.execute(text("SELECT to_regnamespace(:name)"), {"name": f"rx_{name}"}).scalar_one() is not None
        )


@pytest.mark.parametrize("name", ["g2", None])
def test_an_abort_that_was_killed_before_it_dropped_the_tables_is_finished_by_the_next(settings, built, name):
    with built.begin() as connection:
        rebuild.give_up(connection, "g2", who="test")
    assert rebuilding.abort(built, name).name == "g2"
    assert not tables_stand(built, "g2")


@pytest.mark.parametrize("name", ["g1", None])
def test_a_retirement_that_was_killed_before_it_dropped_the_tables_is_finished_by_the_next(settings, built, name):
    rebuilding.verify(settings, built, None)
    promote(settings, built)
    with built.begin() as connection:
        rebuild.retire(connection, "g1", who="test")
    assert rebuilding.retire(built, name).name == "g1"
    assert not tables_stand(built, "g1")


def test_the_tables_that_a_killed_abort_left_go_with_the_next_candidate_at_the_latest(settings, built):
    with built.begin() as connection:
        rebuild.give_up(connection, "g2", who="test")
    assert rebuilding.stage(settings, built, None).name == "g3"
    assert rebuilding.abort(built, None).name == "g3"
    assert not tables_stand(built, "g2")
    assert not tables_stand(built, "g3")
    with pytest.raises(Refused, match="no generation is being built"):
        rebuilding.abort(built, None)


def test_the_report_of_a_generation_holds_its_evidence_and_stays_when_its_tables_are_gone(settings, built):
    change(built, "UPDATE rx_g2.issue SET status = '0099' WHERE status = '0006'")
    _, found = rebuilding.verify(settings, built, None)
    rebuilding.accept(built, None, found.digest, why="as meant")
    promote(settings, built)
    rebuilding.roll_back(settings, built, max_lag=0)
    rebuilding.abort(built, "g2")
    report = rebuilding.report(built, "g2")
    assert (report["state"], report["topic"]["name"]) == ("abandoned", TOPIC)
    by_action = {entry["action"]: entry for entry in report["history"]}
    assert by_action["verified"]["groups"][0]["difference"] == "status 0006 -> 0099"
    assert by_action["accepted"]["why"] == "as meant"
    assert by_action["promoted"]["digest"] == by_action["accepted"]["digest"] == found.digest
    assert by_action["promoted"]["accepted_by"] == by_action["accepted"]["by"]
    assert set(by_action["promoted"]["offsets"]) == {"g1", "g2"}


def test_decisions_hold_for_another_topic_only_when_somebody_says_so(settings, engine, log):
    feed(settings, engine, log, "g1")
    change(
        engine,
        "INSERT INTO rxstore.decision (action, topic, topic_id, partition_number, record_offset, stream_key, "
        "stream_partition, why, decided_by, number, effect_offset) "
        f"VALUES ('skip', '{TOPIC}', 'id-of-{TOPIC}', 1, 2, 'key', 1, 'a test', 'test', 1, 9)",
    )
    elsewhere = replace(settings, topic=ANOTHER)

    def waiting(schema: str) -> list[int | None]:
        with connect(settings.database()) as session:
            return [one.number for one in decisions.waiting(session, schema, ANOTHER, range(PARTITIONS))]

    rebuilding.stage(elsewhere, engine, "without")
    assert waiting("rx_without") == []
    rebuilding.abort(engine, "without")
    rebuilding.stage(elsewhere, engine, "kept", keep_decisions=True)
    assert waiting("rx_kept") == [1]


# what is refused ------------------------------------------------------------------------------------------------------


def refused_by_both(settings: Settings, engine: Engine, words: str) -> None:
    """A generation that is not what it should be is refused by verify, and by promote whatever was found before."""
    with pytest.raises(Refused, match=words):
        rebuilding.verify(settings, engine, None)
    with pytest.raises(Refused, match=words):
        promote(settings, engine)
    assert shown(engine) == "g1"


def test_a_rebuild_that_holds_nothing_is_refused(settings, built):
    rebuilding.verify(settings, built, None)
    change(built, "TRUNCATE rx_g2.prescription, rx_g2.set_aside")
    refused_by_both(settings, built, "holds nothing")


def test_a_rebuild_that_has_not_read_its_topic_is_refused(settings, staged):
    refused_by_both(settings, staged, "not ready|events behind")


def test_a_rebuild_that_never_read_a_partition_is_refused(settings, built):
    rebuilding.verify(settings, built, None)
    change(built, "UPDATE rx_g2.checkpoint SET epoch = 0 WHERE partition_number = 2")
    refused_by_both(settings, built, "never read partition 2")


def test_a_rebuild_that_passed_over_a_partition_is_not_promoted(settings, staged, log):
    end = log.partitions[2][-1].position.offset + 1
    change(staged, f"UPDATE rx_g2.checkpoint SET next_offset = {end} WHERE partition_number = 2")
    with worker(settings.database(), schema="rx_g2") as one:
        for poll in polls(log, [0, 1, 3], Random(1), 40):
            one.project(poll)
    change(staged, "UPDATE rx_g2.checkpoint SET caught_up_at = now()")
    _, found = rebuilding.verify(settings, staged, None)
    assert {group.difference for group in found.groups} == {"only in the live one"}
    with pytest.raises(Refused, match="nobody has accepted"):
        promote(settings, staged)


def test_a_rebuild_from_another_topic_is_refused(settings, engine, log):
    feed(settings, engine, log, "g1")
    rebuilding.stage(replace(settings, topic=ANOTHER), engine, None)
    ends = {number: records[-1].position.offset + 1 for number, records in log.partitions.items()}
    for number, end in ends.items():
        change(
            engine,
            f"UPDATE rx_g2.checkpoint SET next_offset = {end}, epoch = 1, caught_up_at = now() "
            f"WHERE partition_number = {number}",
        )
    with pytest.raises(Refused, match="another topic"):
        rebuilding.verify(settings, engine, None)
    with pytest.raises(Refused, match="holds nothing"):
        promote(settings, engine)
    change(engine, "INSERT INTO rx_g2.prescription SELECT * FROM rx_g1.prescription LIMIT 1")
    with pytest.raises(Refused, match="not compared"):
        promote(settings, engine)
    assert shown(engine) == "g1"


def test_differences_are_accepted_by_their_digest_and_no_other(settings, built):
    change(built, "UPDATE rx_g2.issue SET status = '0099' WHERE status = '0006'")
    _, found = rebuilding.verify(settings, built, None)
    with pytest.raises(Refused, match="nobody has accepted"):
        promote(settings, built)
    with pytest.raises(Refused, match=found.digest):
        rebuilding.accept(built, None, "0123456789abcdef", why=None)
    rebuilding.accept(built, None, found.digest, why="as meant")
    change(built, "UPDATE rx_g2.issue SET status = '0098' WHERE status = '0099'")
    rebuilding.verify(settings, built, None)
    with pytest.raises(Refused, match="nobody has accepted"):
        promote(settings, built)
    change(built, "UPDATE rx_g2.issue SET status = '0099' WHERE status = '0098'")
    rebuilding.verify(settings, built, None)
    assert promote(settings, built) == ("g2", "g1")


def refusals() -> dict[str, tuple[Callable[[Settings, Engine], object], str]]:
    return {
        "promote without a candidate": (promote, "no generation is being built"),
        "verify without a candidate": (lambda s, e: rebuilding.verify(s, e, None), "no generation is being built"),
        "rollback without a previous": (lambda s, e: rebuilding.roll_back(s, e, max_lag=0), "nothing to go back to"),
        "retire without a previous": (lambda s, e: rebuilding.retire(e, None), "nothing to go back to"),
        "retire of the live one": (lambda s, e: rebuilding.retire(e, "g1"), "g1 is live"),
        "abort of the live one": (lambda s, e: rebuilding.abort(e, "g1"), "g1 is live"),
        "stage of a name that is taken": (lambda s, e: rebuilding.stage(s, e, "g1"), "a generation g1 already"),
        "a generation that is not there": (lambda s, e: rebuilding.abort(e, "g9"), "no generation g9"),
    }


@pytest.mark.parametrize("what", refusals())
def test_what_cannot_be_done_is_refused(settings, engine, what):
    command, words = refusals()[what]
    with pytest.raises(Refused, match=words):
        command(settings, engine)


def test_a_second_generation_is_not_staged_while_one_is_being_built(settings, staged):
    with pytest.raises(Refused, match="rebuild abort g2"):
        rebuilding.stage(settings, staged, None)


def test_a_second_command_is_refused_while_one_runs(settings, built):
    with rebuild.alone(built), pytest.raises(Refused, match="another rebuild command"):
        promote(settings, built)


def test_a_generation_that_is_behind_is_not_promoted_nor_rolled_back_to(settings, built):
    rebuilding.verify(settings, built, None)
    change(built, "UPDATE rx_g2.checkpoint SET next_offset = next_offset - 1")
    with pytest.raises(Refused, match="4 events behind"):
        promote(settings, built, max_lag=3)
    promote(settings, built, max_lag=4)
    change(built, "UPDATE rx_g1.checkpoint SET next_offset = next_offset - 1")
    with pytest.raises(Refused, match="4 events behind"):
        rebuilding.roll_back(settings, built, max_lag=3)


def test_waiting_ends_when_time_is_up(settings, staged):
    found = rebuilding.wait(settings, staged, None, max_lag=0, timeout=0, say=print)
    assert not found.ready
    assert found.events > 0


def test_waiting_says_why_nothing_moves(settings, staged, log, monkeypatch):
    monkeypatch.setattr(rebuilding, "STANDS_STILL_AFTER_SECONDS", 0.0)
    said: list[str] = []
    rebuilding.wait(settings, staged, None, max_lag=0, timeout=0.1, say=said.append)
    change(staged, "UPDATE rx_g2.checkpoint SET epoch = 1, hold_until = now() + interval '1 hour'")
    rebuilding.wait(settings, staged, None, max_lag=0, timeout=0.1, say=said.append)
    with worker(settings.database(), schema="rx_g2") as one, staged.begin() as other, ThreadPoolExecutor(1) as pool:
        other.execute(text("LOCK TABLE rx_g2.checkpoint IN EXCLUSIVE MODE"))
        pid = other.execute(text("SELECT pg_backend_pid()")).scalar_one()
        waiting = pool.submit(one.project, log.partitions[0][:3])
        rebuilding.wait(settings, staged, None, max_lag=0, timeout=0.5, say=said.append)
        other.rollback()
        waiting.result()
    assert "no projector" in said[0]
    assert "comparison" in said[1]
    assert f"session {pid} holds" in said[2]


def test_a_reader_who_holds_a_view_for_long_is_waited_for_and_nothing_changes(settings, built, monkeypatch):
    monkeypatch.setattr(rebuilding, "ATTEMPTS", 1)
    rebuilding.verify(settings, built, None)
    with built.begin() as reader:
        reader.execute(text("SELECT count(*) FROM rxstore.issue"))
        with pytest.raises(rebuilding.ServerUnavailable, match="nothing was changed"):
            promote(settings, built)
    assert (states(built), shown(built)) == ({"g1": "live", "g2": "ready"}, "g1")


# as of a time ---------------------------------------------------------------------------------------------------------

# In the made-up log the record at offset n of each partition is stamped n milliseconds after this.
FIRST_STAMP = moment.EPOCH + 1_767_600_000_000 * moment.MILLISECOND
THEN = FIRST_STAMP + 40 * moment.MILLISECOND


@pytest.fixture
def looking_back(engine, log, monkeypatch):
    """The log can be asked where it ended at a time."""
    monkeypatch.setattr(moment, "ends_at", lambda make_consumer: lambda topic, numbers, at: ends_of(log, at))
    return engine


def ends_of(log: Log, at: datetime) -> dict[int, moment.End]:
    whole = {number: moment.End(records[-1].position.offset + 1, None) for number, records in log.partitions.items()}
    return {number: moment.first_later(log.partitions[number], at) or end for number, end in whole.items()}


def feed_until(settings: Settings, engine: Engine, log: Log, name: str, at: datetime) -> None:
    """Project up to a time, as running workers would."""
    ends = {number: end.offset for number, end in ends_of(log, at).items()}
    cut = Log(
        {number: [one for one in log.partitions[number] if one.position.offset < ends[number]] for number in ends}
    )
    with worker(settings.database(), schema=f"rx_{name}") as one:
        for poll in polls(cut, range(PARTITIONS), Random(3), 40):
            one.project(poll)
    for number, end in ends.items():
        change(
            engine,
            f"UPDATE rx_{name}.checkpoint SET next_offset = {end}, caught_up_at = '{at.isoformat()}' "
            f"WHERE partition_number = {number}",
        )


def test_a_generation_as_of_a_time_is_ready_where_the_log_ended_then_and_is_measured_against_that(
    settings, looking_back, log
):
    staged = rebuilding.stage(settings, looking_back, None, until=THEN)
    assert (staged.until, staged.ends) == (THEN, {n: end.offset for n, end in ends_of(log, THEN).items()})
    before = rebuilding.lag(settings, looking_back, "g2")
    assert (before.ready, before.events) == (False, sum(staged.ends.values()))
    feed_until(settings, looking_back, log, "g2", THEN)
    after = rebuilding.lag(settings, looking_back, "g2")
    assert (after.ready, after.events, states(looking_back)["g2"]) == (True, 0, "ready")
    assert not after.generation.is_fed
    assert rebuilding.report(looking_back, "g2")["history"][0]["until"] == "2026-01-05T08:00:00.040000Z"


def test_no_batch_of_a_generation_as_of_a_time_goes_beyond_its_end_whoever_feeds_it(settings, looking_back, log):
    rebuilding.stage(settings, looking_back, None, until=THEN)
    with worker(settings.database(), schema="rx_g2") as one:
        with pytest.raises(checkpoints.Held) as held:
            one.project(log.partitions[1])
        assert held.value.offsets == {1: ends_of(log, THEN)[1].offset}
        one.project([record for record in log.partitions[1] if record.position.offset < held.value.offsets[1]])


def test_generations_as_of_a_time_stand_beside_the_one_candidate_and_each_other(settings, looking_back):
    rebuilding.stage(settings, looking_back, None, until=THEN)
    rebuilding.stage(settings, looking_back, None)
    rebuilding.stage(settings, looking_back, None, until=THEN)
    assert states(looking_back) == {"g1": "live", "g2": "building", "g3": "building", "g4": "building"}
    assert rebuilding.abort(looking_back, None).name == "g3"
    with pytest.raises(Refused, match="g2, g4, as of a time, must be named"):
        rebuilding.abort(looking_back, None)
    assert rebuilding.abort(looking_back, "g2").name == "g2"
    assert not tables_stand(looking_back, "g2")


@pytest.mark.parametrize(
    "command",
    [
        lambda s, e: rebuilding.verify(s, e, "g2"),
        lambda s, e: rebuilding.accept(e, "g2", "0123456789abcdef", why=None),
        lambda s, e: rebuilding.promote(s, e, "g2", max_lag=1_000_000),
    ],
    ids=["verify", "accept", "promote"],
)
def test_a_generation_as_of_a_time_can_never_be_live(settings, looking_back, log, command):
    rebuilding.stage(settings, looking_back, None, until=THEN)
    feed_until(settings, looking_back, log, "g2", THEN)
    rebuilding.lag(settings, looking_back, "g2")
    with pytest.raises(Refused, match=r"g2 is the state as of 2026-01-05T08:00:00.040000Z and can never be live"):
        command(settings, looking_back)


def test_the_register_itself_refuses_to_show_a_generation_as_of_a_time(settings, looking_back):
    rebuilding.stage(settings, looking_back, None, until=THEN)
    with pytest.raises(IntegrityError, match="until_never_live"):
        change(looking_back, "UPDATE rxstore.generation SET state = 'previous' WHERE name = 'g2'")


@pytest.mark.parametrize(
    ("at", "begins", "words"),
    [
        (datetime(2999, 1, 1, tzinfo=UTC), 0, "has not come"),
        (
            FIRST_STAMP - moment.MILLISECOND,
            0,
            "first event of all is events:0:0, of 2026-01-05T08:00:00Z. Name a later time",
        ),
        (
            FIRST_STAMP + 20 * moment.MILLISECOND,
            30,
            "that is left in partition 2 is events:2:30, of 2026-01-05T08:00:00.030000Z.*--archive",
        ),
    ],
    ids=["a time to come", "before every event", "before what retention left"],
)
def test_a_time_of_which_the_log_knows_nothing_is_refused(settings, looking_back, log, monkeypatch, at, begins, words):
    left = Log({n: [one for one in log.partitions[n] if n != 2 or one.position.offset >= begins] for n in range(4)})
    monkeypatch.setattr(moment, "ends_at", lambda _: lambda topic, numbers, when: ends_of(left, when))
    whole = store.describe_log(settings)
    first = {**whole.first_offsets, 2: begins}
    monkeypatch.setattr(store, "describe_log", lambda *_: replace(whole, first_offsets=first))
    with pytest.raises(Refused, match=words):
        rebuilding.stage(settings, looking_back, None, until=at)
    assert states(looking_back) == {"g1": "live"}


def test_of_a_log_that_lost_its_beginning_somebody_is_warned(settings, looking_back, monkeypatch):
    whole = store.describe_log(settings)
    monkeypatch.setattr(store, "describe_log", lambda *_: replace(whole, first_offsets={**whole.first_offsets, 2: 3}))
    said: list[str] = []
    rebuilding.stage(settings, looking_back, None, until=THEN, say=said.append)
    assert "no longer begins at offset 0 in 1 partitions" in said[0]


def decided(engine: Engine, number: int, *, decided_at: datetime, revoked_at: datetime | None = None) -> None:
    revoked = "NULL" if revoked_at is None else f"'{revoked_at.isoformat()}'"
    change(
        engine,
        "INSERT INTO rxstore.decision (action, topic, topic_id, partition_number, record_offset, stream_key, "
        "stream_partition, why, decided_by, number, effect_offset, decided_at, revoked_at) "
        f"VALUES ('skip', '{TOPIC}', 'id-of-{TOPIC}', 1, 2, 'key', 1, 'a test', 'test', {number}, 9, "
        f"'{decided_at.isoformat()}', {revoked})",
    )


def test_the_decisions_that_stood_then_hold_and_no_other(settings, looking_back):
    minute = timedelta(minutes=1)
    decided(looking_back, 1, decided_at=THEN)
    decided(looking_back, 2, decided_at=THEN - minute, revoked_at=THEN + minute)
    decided(looking_back, 3, decided_at=THEN - minute, revoked_at=THEN)
    decided(looking_back, 4, decided_at=THEN + minute)
    rebuilding.stage(settings, looking_back, None, until=THEN)

    def hold(schema: str) -> list[int | None]:
        with connect(settings.database()) as session:
            session.execute(f"UPDATE {schema}.checkpoint SET decisions_applied = 9".encode())
            applied = [one.number for one in decisions.of_stream(session, schema, TOPIC, "key")]
            session.execute(f"UPDATE {schema}.checkpoint SET decisions_applied = 0".encode())
            waiting = [one.number for one in decisions.waiting(session, schema, TOPIC, range(PARTITIONS))]
        assert waiting == applied
        return waiting

    with worker(settings.database()):  # the live one has its checkpoints from here on
        assert hold("rx_g1") == [1, 4]
    assert hold("rx_g2") == [1, 2]


def test_a_generation_as_of_a_time_is_not_ready_before_it_has_applied_what_was_decided(settings, looking_back, log):
    rebuilding.stage(settings, looking_back, None, until=THEN)
    feed_until(settings, looking_back, log, "g2", THEN)
    decided(looking_back, 1, decided_at=THEN)
    decided(looking_back, 2, decided_at=THEN + moment.MILLISECOND)
    assert not rebuilding.lag(settings, looking_back, "g2").ready
    change(looking_back, "UPDATE rx_g2.checkpoint SET decisions_applied = 1 WHERE partition_number = 1")
    change(looking_back, "UPDATE rxstore.decision SET number = NULL, effect_offset = NULL WHERE number = 1")
    assert not rebuilding.lag(settings, looking_back, "g2").ready
    change(looking_back, "UPDATE rxstore.decision SET number = 1, effect_offset = 9 WHERE number IS NULL")
    assert rebuilding.lag(settings, looking_back, "g2").ready


def test_a_decision_that_is_given_its_place_does_not_ask_a_generation_as_of_a_time(settings, looking_back):
    rebuilding.stage(settings, looking_back, None, until=THEN)
    change(looking_back, "UPDATE rx_g2.checkpoint SET next_offset = 1000000, hold_at = NULL")
    with worker(settings.database()) as one:
        change(
            looking_back,
            "INSERT INTO rxstore.decision (action, topic, partition_number, record_offset, stream_key, "
            f"stream_partition, why, decided_by) VALUES ('skip', '{TOPIC}', 1, 2, 'key', 1, 'a test', 'test')",
        )
        new = decisions.waiting(one.runner.connection, "rx_g1", TOPIC, range(PARTITIONS))
        decisions.give_effect(one.runner.connection, new)
        (placed,) = decisions.waiting(one.runner.connection, "rx_g1", TOPIC, range(PARTITIONS))
    assert placed.effect_offset == 0


# retired at a time ----------------------------------------------------------------------------------------------------


@pytest.fixture
def promoted(settings, built):
    rebuilding.verify(settings, built, None)
    promote(settings, built, retire_at=timedelta(days=7))
    return built


def retires(engine: Engine, name: str = "g1") -> datetime | None:
    with engine.connect() as connection:
        found = generations.find(connection, name)
    return found and found.retire_at


def when_due(engine: Engine) -> None:
    change(engine, "UPDATE rxstore.generation SET retire_at = now() - interval '1 second' WHERE name = 'g1'")


def test_a_promotion_can_set_the_time_at_which_the_one_before_is_let_go(promoted):
    left = retires(promoted) - datetime.now(UTC)
    assert timedelta(days=6) < left < timedelta(days=8)
    assert retires(promoted, "g2") is None


def test_a_rollback_takes_the_plan_back(settings, promoted):
    rebuilding.roll_back(settings, promoted, max_lag=0)
    assert (retires(promoted), retires(promoted, "g2")) == (None, None)


def test_a_retirement_is_planned_again_and_taken_back(promoted):
    at = datetime(2999, 1, 1, tzinfo=UTC)
    assert rebuilding.plan_retirement(promoted, None, at).retire_at == at
    assert rebuilding.plan_retirement(promoted, "g1", None).retire_at is None
    assert actions(promoted, "g1")[-2:] == ["retirement_planned", "retirement_cancelled"]
    assert states(promoted)["g1"] == "previous"


@pytest.mark.parametrize(
    ("name", "at", "words"),
    [
        ("g1", datetime(2020, 1, 1, tzinfo=UTC), "has passed: 'rxstore rebuild retire g1'"),
        ("g2", timedelta(days=1), "g2 is live, not previous"),
    ],
)
def test_a_retirement_in_the_past_or_of_the_live_one_is_not_planned(promoted, name, at, words):
    with pytest.raises(Refused, match=words):
        rebuilding.plan_retirement(promoted, name, at)


def test_a_promotion_with_a_time_that_has_passed_is_none(settings, built):
    rebuilding.verify(settings, built, None)
    with pytest.raises(Refused, match="has passed"):
        promote(settings, built, retire_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert (states(built), shown(built)) == ({"g1": "live", "g2": "ready"}, "g1")


def retire_due(engine: Engine) -> str | None:
    with engine.begin() as connection:
        gone = rebuild.retire_due(connection, by="the projector")
    return gone and gone.name


def drop_retired(engine: Engine) -> list[str]:
    with engine.begin() as connection:
        return [one.name for one in rebuild.drop_retired(connection)]


def test_the_previous_one_is_let_go_when_its_time_has_come_in_the_name_of_who_planned_it(promoted):
    assert retire_due(promoted) is None
    when_due(promoted)
    assert retire_due(promoted) == "g1"
    assert (states(promoted), shown(promoted)) == ({"g1": "retired", "g2": "live"}, "g2")
    with promoted.connect() as connection:
        entry = rebuild.last(connection, "g1", "retired")
    assert (entry.done_by, entry.details["carried_out_by"]) == (store.somebody(), "the projector")
    assert drop_retired(promoted) == ["g1"]
    assert not tables_stand(promoted, "g1")
    assert drop_retired(promoted) == []


def test_nothing_is_let_go_or_dropped_while_a_rebuild_command_runs(promoted):
    when_due(promoted)
    with rebuild.alone(promoted):
        assert retire_due(promoted) is None
    assert retire_due(promoted) == "g1"
    with rebuild.alone(promoted):
        assert drop_retired(promoted) == []
    assert tables_stand(promoted, "g1")


def test_the_live_one_is_never_let_go_whatever_the_register_says(promoted):
    change(promoted, "UPDATE rxstore.generation SET retire_at = now() - interval '1 day', retire_by = 'nobody'")
    change(promoted, "UPDATE rxstore.generation SET retire_at = NULL WHERE name = 'g1'")
    assert retire_due(promoted) is None
    assert states(promoted)["g2"] == "live"


def test_what_a_projector_may_not_drop_it_leaves_to_the_next_retire(settings, promoted):
    when_due(promoted)
    change(promoted, "CREATE ROLE rxstore_test_feeder")
    try:
        change(promoted, "GRANT USAGE ON SCHEMA rxstore, rx_g1 TO rxstore_test_feeder")
        change(promoted, "GRANT SELECT, UPDATE ON rxstore.generation TO rxstore_test_feeder")
        change(promoted, "GRANT SELECT, INSERT ON rxstore.generation_history TO rxstore_test_feeder")
        change(promoted, "GRANT SELECT ON rx_g1.checkpoint TO rxstore_test_feeder")
        feeder = Feeder(settings, create_engine(promoted.url, connect_args={"options": "-c role=rxstore_test_feeder"}))
        for _ in range(3):
            feeder._retire()
        feeder.engine.dispose()
        assert (states(promoted)["g1"], tables_stand(promoted, "g1")) == ("retired", True)
        rebuilding.retire(promoted, None)
        assert not tables_stand(promoted, "g1")
    finally:
        change(promoted, "DROP OWNED BY rxstore_test_feeder")
        change(promoted, "DROP ROLE rxstore_test_feeder")
