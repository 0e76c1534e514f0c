"""What a person can get wrong: one clear sentence with the next step, the right exit code, nothing changed."""

from __future__ import annotations

import psycopg
import pytest
from kafka import KafkaAdminClient

from rxstore.embedded import free_port
from tests.acceptance.conftest import System


@pytest.fixture
def bare(database_url: str, broker: str, topic: str, tmp_path) -> System:
    """An installation whose database is empty."""
    return System(
        {
            "RXSTORE_DATABASE_URL": database_url,
            "RXSTORE_KAFKA_BOOTSTRAP_SERVERS": broker,
            "RXSTORE_TOPIC": topic,
            "RXSTORE_LOG_LEVEL": "warning",
        },
        tmp_path,
    )


def assert_one_sentence(done, exit_code: int, *words: str) -> None:
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("rxstore: ")
    for word in words:
        assert word in line


NEEDS_DATABASE = ["migrate", "project", "status", "quarantine list"]


@pytest.mark.parametrize("command", [*NEEDS_DATABASE, "serve --insecure"])
def test_a_missing_setting_is_named(tmp_path, command):
    done = System({}, tmp_path).run(*command.split())
    assert_one_sentence(done, 2, "RXSTORE_DATABASE_URL")


@pytest.mark.parametrize("command", NEEDS_DATABASE)
def test_a_database_that_does_not_answer_is_exit_code_three(system, command):
    nobody = f"postgresql://nobody:secret@127.0.0.1:{free_port()}/none"
    done = system.run(*command.split(), RXSTORE_DATABASE_URL=nobody)
    assert_one_sentence(done, 3, "database cannot be reached", "RXSTORE_DATABASE_URL")
    assert "secret" not in done.stderr


@pytest.mark.parametrize("command", ["project", "topics create", "publish -"])
def test_a_broker_that_does_not_answer_is_exit_code_three(system, command):
    done = system.run(*command.split(), RXSTORE_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")
    assert_one_sentence(done, 3, "no Kafka broker answers", "RXSTORE_KAFKA_BOOTSTRAP_SERVERS")


@pytest.mark.parametrize("command", ["project", "status", "quarantine list", "serve --insecure"])
def test_a_database_that_is_not_migrated_says_to_migrate(bare, command):
    assert_one_sentence(bare.run(*command.split()), 4, "rxstore migrate")


def test_a_topic_that_does_not_exist_says_to_create_it(system):
    with psycopg.connect(system.environment["RXSTORE_DATABASE_URL"]) as connection:
        connection.execute("UPDATE rxstore.generation SET topic = 'no-such-topic'")
    assert_one_sentence(system.run("project", RXSTORE_TOPIC="no-such-topic"), 3, "rxstore topics create")


def test_a_setting_that_changes_meaning_is_refused_on_rows_built_without_it(system):
    done = system.run("project", RXSTORE_CHECK_CHARACTER="lenient")
    assert_one_sentence(done, 4, "RXSTORE_CHECK_CHARACTER", "g1", "new generation")
    assert system.query("SELECT count(*) FROM rx_g1.checkpoint") == [(0,)]


def test_another_topic_than_the_generations_is_refused(system):
    with psycopg.connect(system.environment["RXSTORE_DATABASE_URL"]) as connection:
        connection.execute("UPDATE rxstore.generation SET topic = 'another'")
    assert_one_sentence(system.run("project"), 4, "another", "RXSTORE_TOPIC")


@pytest.mark.kafka
def test_a_changed_number_of_partitions_is_refused(system, broker):
    system.project()
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_partitions({system.environment["RXSTORE_TOPIC"]: 9})
    admin.close()
    assert_one_sentence(system.run("project", "--until-caught-up"), 4, "9 partitions", "8")


@pytest.mark.kafka
def test_a_topic_made_again_under_the_same_name_is_refused(system, broker):
    system.project()
    with psycopg.connect(system.environment["RXSTORE_DATABASE_URL"]) as connection:
        connection.execute("UPDATE rxstore.generation SET topic_id = '00000000-0000-0000-0000-000000000001'")
    assert_one_sentence(system.run("project", "--until-caught-up"), 4, "made again")


@pytest.mark.kafka
def test_events_that_retention_took_before_they_were_folded_stop_the_worker(system):
    system.project()
    with psycopg.connect(system.environment["RXSTORE_DATABASE_URL"]) as connection:
        connection.execute("UPDATE rx_g1.checkpoint SET next_offset = 1000 WHERE partition_number = 0")
    done = system.run("project", "--until-caught-up", "--workers", "1")
    assert done.returncode == 4
    assert "truncated" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:8443", "192.0.2.1:8443", "[::]:8443"])
def test_plain_http_is_served_on_loopback_only(system, address):
    assert_one_sentence(system.run("serve", "--insecure", "--bind", address), 2, "loopback")


def test_serving_without_saying_insecure_is_refused(system):
    assert_one_sentence(system.run("serve"), 2, "--insecure")


@pytest.mark.parametrize("id_", ["nonsense", "topic:1", "topic:x:1"])
def test_a_malformed_record_id_is_explained(system, id_):
    assert_one_sentence(system.run("quarantine", "show", id_), 2, "topic:partition:offset")


def test_a_record_that_was_not_set_aside_is_reported(system):
    assert_one_sentence(system.run("quarantine", "show", "events:0:1"), 2, "rxstore quarantine list")


def test_status_without_a_broker_says_what_could_not_be_checked(system):
    done = system.run("status", RXSTORE_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "verdict: unknown (no Kafka broker answers" in done.stdout


def test_status_without_a_projector_is_stopped(system):
    system.project()
    done = system.run("status")
    assert done.returncode == 1
    assert "verdict: stopped" in done.stdout


def test_migrating_again_has_nothing_to_do(system):
    assert "nothing to do" in system.do("migrate")
