"""The probes of an automatic throttle: what they ask, what counts as slow, and that one machine asks at a time."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import OperationalError

from projector import building, generations, rebuild
from projector.generations import Generation
from query_api.database import Questions, read_only_engine
from rxstore import probing
from rxstore.probing import PROBE_LOCK, Prober
from rxstore.settings import Settings, load
from tests.integration.projecting import PARTITIONS, TOPIC, generated_log, project_all


@pytest.fixture
def settings(migrated_database_url, tmp_path) -> Settings:
    environment = {"RXSTORE_DATABASE_URL": migrated_database_url, "RXSTORE_THROTTLE_P99_MS": "60000"}
    return load(environment, env_file=tmp_path / "none")


@pytest.fixture
def engine(settings) -> Iterator[Engine]:
    made = create_engine(make_url(settings.database()).set(drivername="postgresql+psycopg"))
    yield made
    made.dispose()


@pytest.fixture
def asking(settings) -> Iterator[Engine]:
    made = read_only_engine(settings.database(), pool_size=1)
    yield made
    made.dispose()


@pytest.fixture
def staged(engine, monkeypatch) -> Engine:
    """Generation g2 is to be built with an automatic throttle; a round of probes is short."""
    monkeypatch.setattr(probing, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(probing, "PROBES", 5)
    with engine.begin() as connection:
        begins = dict.fromkeys(range(PARTITIONS), 0)
        rebuild.stage(connection, "g2", topic=TOPIC, topic_id=None, first_offsets=begins, settings={}, who="test")
        building.set_throttle(connection, "g2", "auto", who="test")
    return engine


def generation(engine: Engine) -> Generation:
    with engine.connect() as connection:
        return rebuild.in_state(connection, "g2", *building.BUILDING)


def measured(engine: Engine) -> float | None:
    with engine.connect() as connection:
        throttle = building.throttle(connection, "g2")
    return None if throttle is None else throttle.p99_ms


def wait_until_measured(engine: Engine) -> None:
    while measured(engine) is None:
        pass


class Failing(Questions):
    """Questions to which no answer comes."""

    def prescription(self, *_: object) -> None:
        raise OperationalError("SELECT", {}, TimeoutError())


def test_prescriptions_that_are_there_are_asked_for_with_their_patients(settings, asking):
    project_all(settings.database(), generated_log(40), seed=1, largest=100)
    keys = probing.sample(asking, Random(1))
    with asking.connect() as connection:
        there = connection.execute(text("SELECT stream_key, nhs_number FROM rxstore.prescription")).all()
    assert {(key.stream_key, key.criteria.nhs_number) for key in keys} <= {tuple(row) for row in there}
    questions = Questions(asking)
    for key in keys[:20]:
        assert questions.prescription(key.stream_key, None).as_of is None
        found = questions.prescriptions(key.criteria)
        assert len(found.found) + len(found.blocked_ids) > 0


def test_both_questions_are_timed(settings, asking):
    project_all(settings.database(), generated_log(10), seed=1, largest=100)
    key = probing.sample(asking, Random(1))[0]
    times = probing.ask(Questions(asking), key)
    assert len(times) == 2
    assert min(times) > 0


def test_where_nothing_can_be_asked_for_no_answer_is_late(settings, engine, asking, monkeypatch):
    monkeypatch.setattr(probing, "ROUND_SECONDS", 0.0)
    assert probing.sample(asking, Random(1)) == []
    assert Prober(settings, engine)._round(Questions(asking), Random(1), []) == 0.0


def test_questions_that_fail_leave_nothing_measured(settings, engine, asking, monkeypatch):
    monkeypatch.setattr(probing, "ROUND_SECONDS", 0.0)
    project_all(settings.database(), generated_log(10), seed=1, largest=100)
    keys = probing.sample(asking, Random(1))
    assert Prober(settings, engine)._round(Failing(asking), Random(1), keys) is None


def test_the_rate_is_set_by_what_was_measured_until_another_throttle_is_wanted(settings, staged):
    project_all(settings.database(), generated_log(10), seed=1, largest=100)
    prober = Prober(settings, staged)
    prober.follow([generation(staged)])
    wait_until_measured(staged)
    with staged.begin() as connection:
        building.set_throttle(connection, "g2", "500", who="test")
    prober._thread.join(30)
    assert not prober._thread.is_alive()
    assert measured(staged) is None
    with staged.connect() as connection:
        assert building.throttle(connection, "g2").rate == 500


@pytest.mark.parametrize("change", ["throttle = '500'", "state = 'ready'"])
def test_nobody_probes_without_a_build_that_wants_it(settings, staged, change):
    with staged.begin() as connection:
        connection.execute(text(f"UPDATE rxstore.generation SET {change} WHERE name = 'g2'"))
        every = generations.every(connection)
    prober = Prober(settings, staged)
    prober.follow(every)
    assert prober._thread is None


def test_one_machine_probes_at_a_time_and_another_one_takes_over(settings, staged):
    prober = Prober(settings, staged)
    with staged.connect() as other:
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": PROBE_LOCK})
        prober.follow([generation(staged)])
        question = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^SELECT pg_try'"
        )
        with staged.connect() as asking:
            while not asking.execute(text(question)).scalar_one():
                asking.rollback()
        assert measured(staged) is None
        other.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": PROBE_LOCK})
        wait_until_measured(staged)
    prober.stop()
    with staged.connect() as connection:
        assert connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": PROBE_LOCK}).scalar_one()
