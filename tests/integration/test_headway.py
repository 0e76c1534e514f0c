"""How far a build is and what keeps it: what its workers note and what the one look makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url

from ingest.pacing import Pace
from projector import building, generations, rebuild
from projector.generations import Generation
from projector.pace import FIRST
from projector.read_model import ReadModel
from projector.rebuild import WrongState
from projector.runner import Batch
from rxstore import headway, rebuilding
from rxstore.errors import ServerUnavailable
from rxstore.headway import Headway
from rxstore.rebuilding import Lag
from rxstore.settings import load
from rxstore.store import Log as Topic
from tests.integration.projecting import DECODE, PARTITIONS, TOPIC, FakeWorker, Log, generated_log, worker

MOVED = "UPDATE rx_g2.checkpoint SET moved_at = now()"


@pytest.fixture(scope="module")
def log() -> Log:
    return generated_log(60, seed=4)


@pytest.fixture
def topic(log) -> Topic:
    ends = {number: records[-1].position.offset + 1 for number, records in log.partitions.items()}
    return Topic(TOPIC, None, dict.fromkeys(ends, 0), ends)


@pytest.fixture
def engine(migrated_database_url, topic) -> Iterator[Engine]:
    """A database in which generation g2 is staged, and nobody has begun to build it."""
    made = create_engine(make_url(migrated_database_url).set(drivername="postgresql+psycopg"))
    with made.begin() as connection:
        rebuild.stage(
            connection, "g2", topic=TOPIC, topic_id=None, first_offsets=topic.first_offsets, settings={}, who="test"
        )
    yield made
    made.dispose()


def change(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def generation(engine: Engine, name: str = "g2") -> Generation:
    with engine.connect() as connection:
        found = generations.find(connection, name)
    assert found is not None
    return found


def looked(engine: Engine, topic: Topic | None, unreachable: str | None = None) -> Headway:
    with engine.connect() as connection:
        return headway.look(connection, generation(engine), topic, unreachable)


def causes(engine: Engine, topic: Topic | None, unreachable: str | None = None) -> dict[str, list[int]]:
    return {cause.cause: cause.partitions for cause in looked(engine, topic, unreachable).causes}


def wait_until_gone(engine: Engine, workers: int = 0) -> None:
    """Wait for the server to notice that sessions of workers were closed; so many are still there."""
    question = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'rxstore-projector' AND datname = current_database()"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.execute(text(question)).scalar_one() > workers:
            pass


def throttle(engine: Engine, wanted: str | None, name: str = "g2") -> None:
    with engine.begin() as connection:
        building.set_throttle(connection, name, wanted, who="test")


@dataclass(slots=True)
class Builder:
    """A worker that keeps its pace by a clock of the test's own."""

    worker: FakeWorker
    pace: Pace
    now: float = 0.0

    def look(self, after_seconds: float = 1.0) -> None:
        self.now += after_seconds
        self.pace.look(self.worker.runner.connection, self.worker.claims)

    def project(self, log: Log, partition: int, count: int) -> None:
        """Project the next records of a partition."""
        done = self.worker.claims[partition].next_offset
        records = [one for one in log.partitions[partition] if one.position.offset >= done][:count]
        self.worker.project(records)
        self.pace.passed(Batch([DECODE(one) for one in records], {partition: records[-1].position.offset + 1}))


@contextmanager
def builder(engine: Engine, partitions: Iterator[int] | range = range(PARTITIONS), name: str = "g2"):
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with worker(url, partitions, schema=f"rx_{name}") as one:
        made = Builder(one, Pace(ReadModel(f"rx_{name}")))
        made.pace.clock = lambda: made.now
        change(engine, f"UPDATE rx_{name}.checkpoint SET owner = 'w{min(partitions)}' WHERE owner = 'test'")
        yield made


# how far it is --------------------------------------------------------------------------------------------------------


def test_each_partition_tells_how_much_is_done_of_how_much_and_up_to_which_event(engine, topic, log):
    with builder(engine) as one:
        one.look()
        one.project(log, 2, 10)
        one.look(after_seconds=2.0)
        found = looked(engine, topic)
    partition, reached = found.partitions[2], log.partitions[2][9].position.offset + 1
    assert (partition.done_events, partition.total_events) == (reached, topic.end_offsets[2])
    assert partition.events_per_second == reached / 2
    assert partition.left_seconds == pytest.approx((topic.end_offsets[2] - reached) / (reached / 2), abs=0.1)
    assert partition.event_time == DECODE(log.partitions[2][9]).event.envelope.time
    assert (found.partitions[1].done_events, found.partitions[1].event_time) == (0, None)


def test_the_whole_is_the_sum_of_its_partitions(engine, topic, log):
    with builder(engine) as one:
        one.look()
        for number in range(PARTITIONS):
            one.project(log, number, 5)
        one.look()
        found = looked(engine, topic)
    assert found.done_events == sum(partition.done_events for partition in found.partitions)
    assert found.total_events == sum(topic.end_offsets.values())
    assert found.events_per_second == sum(partition.events_per_second for partition in found.partitions)
    assert found.event_time == max(partition.event_time for partition in found.partitions)


def test_what_is_done_counts_from_where_the_generation_begins(engine, topic, log):
    change(engine, "UPDATE rx_g2.checkpoint SET next_offset = 7")
    change(
        engine,
        "UPDATE rxstore.generation_history SET details = jsonb_set(details, '{from_offsets,1}', '5') "
        "WHERE action = 'staged'",
    )
    found = looked(engine, topic).partitions[1]
    assert (found.done_events, found.total_events) == (2, topic.end_offsets[1] - 5)


def test_a_rate_that_nobody_has_noted_lately_is_none(engine, topic, log):
    with builder(engine) as one:
        one.look()
        one.project(log, 0, 10)
        one.look()
        assert looked(engine, topic).events_per_second > 0
        change(engine, "UPDATE rxstore.progress SET noted_at = now() - interval '1 minute'")
        assert looked(engine, topic).events_per_second == 0
        assert looked(engine, topic).left_seconds is None


def test_the_time_that_was_reached_stays_when_another_worker_takes_over(engine, topic, log):
    with builder(engine) as one:
        one.look()
        one.project(log, 0, 10)
        one.look()
    reached = looked(engine, topic).event_time
    with builder(engine) as another:
        another.look()
        assert looked(engine, topic).event_time == reached


def test_nothing_is_noted_of_a_generation_that_is_not_being_built(engine, topic, log):
    change(engine, "UPDATE rxstore.generation SET state = 'ready' WHERE name = 'g2'")
    with builder(engine) as one:
        one.look()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM rxstore.progress")).scalar_one() == 0


def test_what_was_noted_goes_with_the_tables(engine):
    with builder(engine) as one:
        one.look()
    with engine.begin() as connection:
        rebuild.drop(connection, rebuild.give_up(connection, "g2", who="test"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM rxstore.progress")).scalar_one() == 0


# what keeps it --------------------------------------------------------------------------------------------------------


def test_without_a_projector_all_partitions_are_unclaimed(engine, topic):
    assert causes(engine, topic) == {"unclaimed": [0, 1, 2, 3]}
    assert "no projector has taken its partitions" in looked(engine, topic).why


def test_one_unclaimed_partition_is_named_while_the_others_go_on(engine, topic, log):
    with builder(engine, range(3)) as one:
        one.look()
        one.project(log, 0, 5)
        found = looked(engine, topic)
    assert {cause.cause: cause.partitions for cause in found.causes} == {"unclaimed": [3]}
    assert "no worker has taken partition 3 of events" in found.why


def test_an_unclaimed_partition_without_events_keeps_nothing(engine, topic, log):
    empty = Topic(TOPIC, None, topic.first_offsets, {**topic.end_offsets, 3: 0})
    with builder(engine, range(3)) as one:
        one.project(log, 0, 5)
        assert causes(engine, empty) == {}


def test_a_partition_that_waits_for_its_turn_does_not_stand_still(engine, topic, log):
    with builder(engine) as one:
        one.look()
        one.project(log, 0, 5)
        assert causes(engine, topic) == {}


def test_workers_that_are_gone_have_stopped(engine, topic):
    with builder(engine) as one:
        one.look()
    wait_until_gone(engine)
    assert causes(engine, topic) == {"stopped": [0, 1, 2, 3]}


def test_only_the_partitions_of_the_worker_that_is_gone_have_stopped(engine, topic, log):
    with builder(engine, range(2)) as one:
        one.look()
        with builder(engine, range(2, 4)) as another:
            another.look()
        wait_until_gone(engine, workers=1)
        one.project(log, 0, 5)
        assert causes(engine, topic) == {"stopped": [2, 3]}


def test_a_lock_is_named_with_the_session_that_holds_it(engine, topic, log):
    with builder(engine) as one, ThreadPoolExecutor(1) as pool:
        one.look()
        with engine.begin() as other:
            other.execute(text("LOCK TABLE rx_g2.issue IN ACCESS EXCLUSIVE MODE"))
            holder = other.execute(text("SELECT pg_backend_pid()")).scalar_one()
            waiting = pool.submit(one.project, log, 0, 5)
            while "lock" not in causes(engine, topic):
                assert not waiting.done()
            assert f"that session {holder} holds" in looked(engine, topic).why
        waiting.result()
        assert causes(engine, topic) == {}


def test_a_lock_that_keeps_another_generation_keeps_this_one_not(engine, topic, log):
    with builder(engine) as one, builder(engine, name="g1") as live, ThreadPoolExecutor(1) as pool:
        one.look()
        change(engine, MOVED)
        with engine.begin() as other:
            other.execute(text("LOCK TABLE rx_g1.issue IN ACCESS EXCLUSIVE MODE"))
            waiting = pool.submit(live.project, log, 0, 5)
            question = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'rx_g1.issue'::regclass"
            with engine.connect() as asking:
                while not asking.execute(text(question)).scalar_one():
                    assert not waiting.done()
            assert causes(engine, topic) == {}
        waiting.result()


def test_what_is_held_for_a_comparison_says_so(engine, topic):
    with builder(engine) as one:
        one.look()
        change(engine, "UPDATE rx_g2.checkpoint SET hold_until = now() + interval '1 hour' WHERE partition_number = 1")
        change(engine, f"{MOVED} WHERE partition_number <> 1")
        change(engine, "UPDATE rx_g2.checkpoint SET owner = 'another' WHERE partition_number = 1")
        assert causes(engine, topic) == {"held": [1]}


def test_what_a_worker_waits_for_is_told_in_its_words(engine, topic):
    with builder(engine) as one:
        one.look()
        one.pace.waits(one.worker.runner.connection, one.worker.claims, "the brokers do not answer or refuse (Error)")
        assert causes(engine, topic) == {"trouble": [0, 1, 2, 3]}
        assert "the brokers do not answer" in looked(engine, topic).why


def test_what_a_worker_waited_for_is_over_with_its_next_batch(engine, topic, log):
    with builder(engine) as one:
        one.look()
        one.pace.waits(one.worker.runner.connection, one.worker.claims, "the brokers do not answer or refuse (Error)")
        one.project(log, 0, 5)
        one.look()
        change(engine, "UPDATE rx_g2.checkpoint SET moved_at = NULL")
        change(engine, "UPDATE rxstore.progress SET events_per_second = 0")
        assert causes(engine, topic) == {"unknown": [0, 1, 2, 3]}


def test_brokers_that_cannot_be_asked_are_named_and_nobody_guesses_how_much_is_left(engine):
    with builder(engine) as one:
        one.look()
        change(engine, MOVED)
        found = looked(engine, None, "no Kafka broker answers at kafka:9092")
    assert {cause.cause for cause in found.causes} == {"no_broker"}
    assert "kafka:9092" in found.why
    assert (found.total_events, found.left_seconds) == (None, None)


def test_a_load_takes_its_partitions_one_after_the_other_and_says_when_nobody_loads(engine, topic, log):
    change(engine, "UPDATE rxstore.generation SET state = 'loading' WHERE name = 'g2'")
    assert causes(engine, topic) == {"stopped": [0, 1, 2, 3]}
    with builder(engine, range(1)) as one:
        one.look()
        one.project(log, 0, 5)
        assert causes(engine, topic) == {}
    wait_until_gone(engine)
    assert "--archive" in looked(engine, topic).why


def test_what_is_built_waits_for_nothing(engine, topic, log):
    with builder(engine) as one:
        for number in range(PARTITIONS):
            one.project(log, number, 10_000)
    assert causes(engine, topic) == {}


def test_waiting_outlasts_brokers_that_go_away_and_names_them(engine, topic, tmp_path, monkeypatch):
    settings = load({"RXSTORE_DATABASE_URL": "postgresql://none"}, env_file=tmp_path / "none")
    behind, done = (Lag(generation(engine), events, events == 0, topic) for events in (9, 0))
    answers = iter([behind, ServerUnavailable("no Kafka broker answers at kafka:9092"), done])

    def lag(*_: object) -> Lag:
        answer = next(answers)
        if isinstance(answer, ServerUnavailable):
            raise answer
        return answer

    monkeypatch.setattr(rebuilding, "lag", lag)
    monkeypatch.setattr(rebuilding, "STANDS_STILL_AFTER_SECONDS", 0.0)
    said: list[str] = []
    assert rebuilding.wait(settings, engine, None, max_lag=0, timeout=None, say=said.append) == done
    assert "kafka:9092" in said[0]


# the throttle ---------------------------------------------------------------------------------------------------------


def room(one: Builder) -> int:
    """Return how many events may pass in the second after a look."""
    one.look()
    one.pace.took(one.pace.room(1_000_000))
    one.now += 1.0
    return one.pace.room(1_000_000)


def test_a_throttle_is_shared_by_the_workers_that_have_something_to_build(engine, topic):
    throttle(engine, "600")
    with builder(engine, range(2)) as one, builder(engine, range(2, 4)) as another:
        assert (room(one), room(another)) == (300, 300)
        change(engine, "UPDATE rx_g2.checkpoint SET caught_up_at = now() WHERE partition_number < 2")
        assert room(another) == 600


def test_a_throttled_build_is_told_so_while_it_goes_on(engine, topic, log):
    throttle(engine, "600")
    with builder(engine) as one:
        one.look()
        one.project(log, 0, 5)
        assert causes(engine, topic) == {"throttled": [0, 1, 2, 3]}
        assert "throttled to 600 events a second" in looked(engine, topic).why


def test_a_throttle_is_changed_and_lifted_while_workers_run(engine):
    with builder(engine) as one:
        assert room(one) == 1_000_000
        throttle(engine, "50")
        assert room(one) == 50
        throttle(engine, "70")
        assert room(one) == 70
        throttle(engine, None)
        assert room(one) == 1_000_000


def test_there_is_no_room_before_a_worker_has_looked(engine):
    throttle(engine, "50")
    with builder(engine) as one:
        assert one.pace.room(1_000) == 0


@pytest.mark.parametrize("state", ["ready", "live", "previous"])
def test_whoever_follows_the_topic_is_never_throttled(engine, state):
    throttle(engine, "50")
    change(engine, "UPDATE rxstore.generation SET state = 'retired' WHERE name = 'g1'")
    change(engine, f"UPDATE rxstore.generation SET state = '{state}' WHERE name = 'g2'")
    with builder(engine) as one:
        assert room(one) == 1_000_000
    with engine.connect() as connection:
        assert building.throttle(connection, "g2") is None


@pytest.mark.parametrize("name", ["g1", "g9"])
def test_only_what_is_being_built_can_be_throttled(engine, name):
    with pytest.raises(WrongState, match=name):
        throttle(engine, "50", name)


def test_who_set_a_throttle_is_kept(engine):
    throttle(engine, "50")
    throttle(engine, None)
    with engine.connect() as connection:
        kept = [one.details for one in rebuild.history(connection, "g2") if one.action == "throttled"]
    assert kept == [{"throttle": "50"}, {"throttle": "off"}]


def test_an_automatic_throttle_begins_where_another_one_was(engine):
    throttle(engine, "auto")
    with engine.connect() as connection:
        assert building.throttle(connection, "g2").rate == FIRST
    throttle(engine, "50")
    throttle(engine, "auto")
    with engine.connect() as connection:
        assert building.throttle(connection, "g2").rate == 50


def test_what_was_measured_for_an_automatic_throttle_does_not_undo_what_somebody_has_set(engine):
    throttle(engine, "auto")
    with engine.begin() as connection:
        building.adapt(connection, "g2", 1_234, 12.5)
        assert building.throttle(connection, "g2").rate == 1_234
    throttle(engine, "50")
    with engine.begin() as connection:
        building.adapt(connection, "g2", 1_234, 12.5)
        assert building.throttle(connection, "g2").rate == 50


def test_a_worker_looks_once_a_second(engine):
    pace = Pace(ReadModel("rx_g2"), clock=iter([1.0, 1.9, 2.0, 2.1]).__next__)
    assert [pace.is_due() for _ in range(4)] == [True, False, True, False]
