"""The rebuild commands: what each refuses, and what it leaves behind. The topic is a log without a broker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url

from projector import decisions, generations, rebuild
from projector.runner import connect
from rxstore import rebuilding, store
from rxstore.errors import Refused
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


def promote(settings: Settings, engine: Engine, **options: int) -> tuple[str, str]:
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
