"""Each finding: the trouble made for real, the finding seen, the command that it names run, the finding gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewPartitions
from sqlalchemy import make_url

from rxstore import embedded, store
from rxstore.diagnosis.look import Diagnosis
from rxstore.settings import load
from tests import examples, servers
from tests.acceptance import outages
from tests.acceptance.conftest import System, eventually, installed
from tests.acceptance.test_faults import Publisher, publisher  # noqa: F401 - a fixture
from tests.acceptance.test_outages import create, created, new_topic, publisher_of, recreate
from tests.conftest import PARTITIONS, new_database
from tests.servers import Restartable

pytestmark = pytest.mark.kafka

STANDS_IN = Path(__file__).with_name("kafka_commands.py")


def findings(system: System) -> dict[str, dict[str, Any]]:
    """Look at everything, in this process."""
    found = Diagnosis(load(system.environment, Path(os.devnull))).look()
    return {finding.code: finding.as_json() for finding in found.findings}


def seen(system: System, code: str) -> dict[str, Any]:
    """Return this finding, which must be there."""
    found = findings(system)
    assert code in found, found
    return found[code]


def gone(system: System, code: str) -> bool:
    return code not in findings(system)


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PATH with the commands that findings name: ours, PostgreSQL's and Kafka's."""
    directory = tmp_path_factory.mktemp("tools")
    java = " ".join(f"'{word}'" for word in servers.java_command("kafka.admin.ConfigCommand"))
    _script(directory / "kafka-configs", f'exec {java} "$@"')
    for name in ("kafka-consumer-groups", "kafka-broker-api-versions"):
        _script(directory / name, f'exec {sys.executable} {STANDS_IN} {name} "$@"')
    _script(directory / "rxstore", f'exec {sys.executable} -m rxstore.cli.main "$@"')
    with embedded.temporary_directory("tools") as copy:
        programs = embedded.postgres_programs(copy, readable_for_others=False)
        yield f"{directory}:{programs}:{os.environ['PATH']}"


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.fixture
def run_named(tools: str, tmp_path: Path) -> Callable[..., str]:
    """A shell in which a finding's command is run as it stands; gives what it printed."""

    def run(system: System, command: str, *, then: str = "") -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command}\n{then}"],
            env={**os.environ, **system.environment, "PATH": tools},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if not then:
            assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def built_anew(run_named) -> Callable[[System, str], None]:
    """Runs the command of a finding that a new generation helps against, and sees it through."""

    def build(system: System, command: str) -> None:
        assert command == "rxstore rebuild stage"
        run_named(system, command)
        with system.projecting():
            system.do("rebuild", "wait", "--timeout", "50")
            # The live one's log is gone: they are compared without places in it.
            compared = json.loads(system.run("rebuild", "verify", "--another-topic", "--json").stdout)
            if compared["digest"] is not None:
                system.run("rebuild", "verify", "--accept", compared["digest"], "--why", "what was lost is lost")
            system.do("rebuild", "promote")

    return build


@contextmanager
def cluster(bootstrap_servers: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        yield client
    finally:
        client.close()


# the command ----------------------------------------------------------------------------------------------------------


def test_a_healthy_system_has_no_findings_once_the_topic_is_as_the_contract_wants_it(system, run_named):
    with system.projecting():
        eventually(lambda: not (findings(system).keys() - {"topic_settings_differ"}))
        told = system.run("diagnose")
        assert told.returncode == 1
        assert told.stdout.startswith("warning topic_settings_differ\n")
        assert "next: kafka-configs" in told.stdout
        assert "page: docs/operators/runbook/topic.md#topic_settings_differ" in told.stdout
        run_named(system, seen(system, "topic_settings_differ")["command"])
        assert system.do("diagnose") == "no findings\n"
        assert json.loads(system.do("diagnose", "--json")) == {"findings": []}


# the database ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_own_database(own_postgres: Restartable, kafka: str, topic: str, tmp_path: Path) -> Iterator[System]:
    with new_database(own_postgres.address, "template0") as url:
        System({"RXSTORE_DATABASE_URL": url, "RXSTORE_TOPIC": topic}, tmp_path).do("migrate")
        yield installed(url, kafka, topic, tmp_path)


def test_database_unreachable(on_own_database, own_postgres, run_named):
    own_postgres.stop()
    done = on_own_database.run("diagnose", "--json")
    assert done.returncode == 3
    (found,) = [f for f in json.loads(done.stdout)["findings"] if f["code"] == "database_unreachable"]
    assert "no response" in run_named(on_own_database, found["command"], then=":")
    own_postgres.start()
    assert "accepting connections" in run_named(on_own_database, found["command"])
    assert gone(on_own_database, "database_unreachable")


def test_database_read_only_in_recovery(on_own_database, own_postgres, run_named):
    own_postgres.stop()
    outages.make_standby(own_postgres.server)
    own_postgres.start()
    found = seen(on_own_database, "database_read_only")
    assert "in recovery" in found["message"]
    run_named(on_own_database, found["command"])
    eventually(lambda: gone(on_own_database, "database_read_only"))


def test_database_read_only_by_a_setting(on_own_database, own_postgres, run_named):
    with psycopg.connect(own_postgres.address, autocommit=True) as session:
        session.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        session.execute("SELECT pg_reload_conf()")
    eventually(lambda: not gone(on_own_database, "database_read_only"))
    run_named(on_own_database, seen(on_own_database, "database_read_only")["command"])
    eventually(lambda: gone(on_own_database, "database_read_only"))


def test_not_migrated(database_url, kafka, topic, tmp_path, run_named):
    system = System(
        {
            "RXSTORE_DATABASE_URL": database_url,
            "RXSTORE_KAFKA_BOOTSTRAP_SERVERS": kafka,
            "RXSTORE_TOPIC": topic,
        },
        tmp_path,
    )
    run_named(system, seen(system, "not_migrated")["command"])
    assert gone(system, "not_migrated")


def test_migrated_by_later_version(system, run_named):
    ((revision,),) = system.query("SELECT version_num FROM rxstore.alembic_version")
    system.execute("UPDATE rxstore.alembic_version SET version_num = 'c9999'")
    found = seen(system, "migrated_by_later_version")
    assert "version" in run_named(system, found["command"])
    system.execute(f"UPDATE rxstore.alembic_version SET version_num = '{revision}'")  # as the later version knows it
    assert gone(system, "migrated_by_later_version")


@contextmanager
def somebodys_session(system: System, name: str) -> Iterator[psycopg.Connection[Any]]:
    """A session that the test may have terminated."""
    session = psycopg.connect(system.environment["RXSTORE_DATABASE_URL"], application_name=name)
    try:
        yield session
    finally:
        session.close()


def test_idle_in_transaction(system, run_named):
    with somebodys_session(system, "a report") as session:
        session.execute("SELECT count(*) FROM rx_g1.issue")
        eventually(lambda: not gone(system, "idle_in_transaction"))
        found = seen(system, "idle_in_transaction")
        assert "a report" in found["message"]
        run_named(system, found["command"])
        eventually(lambda: gone(system, "idle_in_transaction"))


def test_clock_differs(system, run_named):
    system.environment["RXSTORE_NOW"] = "2026-03-10T12:00:00Z"
    found = seen(system, "clock_differs")
    after = json.loads(run_named(system, found["command"], then="rxstore diagnose --json"))
    assert "clock_differs" not in {finding["code"] for finding in after["findings"]}


# the topic ------------------------------------------------------------------------------------------------------------


def test_topic_missing(system, run_named):
    system.environment["RXSTORE_TOPIC"] = f"{system.environment['RXSTORE_TOPIC']}-of-tomorrow"
    system.execute(f"UPDATE rxstore.generation SET topic = '{system.environment['RXSTORE_TOPIC']}'")
    run_named(system, seen(system, "topic_missing")["command"])
    assert gone(system, "topic_missing")


def test_topic_recreated(system, publisher: Publisher, kafka, built_anew):  # noqa: F811 - the fixture
    create(publisher, 2)
    system.project()
    with cluster(kafka) as admin:
        recreate(admin, system.environment["RXSTORE_TOPIC"])
    create(publisher, 2)
    built_anew(system, seen(system, "topic_recreated")["command"])
    assert gone(system, "topic_recreated")


def test_topic_lost_events(system, publisher, kafka, built_anew):  # noqa: F811 - the fixture
    create(publisher, 2, partition=0)
    system.project()
    create(publisher, 4, partition=0)
    with cluster(kafka) as admin:
        admin.delete_records({TopicPartition(system.environment["RXSTORE_TOPIC"], 0): 4})
    found = seen(system, "topic_lost_events")
    assert "2 offsets" in found["message"]
    assert "archive or mirror" in found["message"]
    built_anew(system, found["command"])
    assert gone(system, "topic_lost_events")
    assert created(system, 2)  # what is gone is gone


def test_partitions_added(system, publisher, kafka, built_anew):  # noqa: F811 - the fixture
    create(publisher, 2)
    system.project()
    with cluster(kafka) as admin:
        admin.create_partitions({system.environment["RXSTORE_TOPIC"]: NewPartitions(PARTITIONS + 1)})
    eventually(lambda: not gone(system, "partitions_added"))
    built_anew(system, seen(system, "partitions_added")["command"])
    assert gone(system, "partitions_added")


def test_brokers_unreachable_and_log_truncated(own_kafka, migrated_database_url, tmp_path, run_named, built_anew):
    system = installed(migrated_database_url, own_kafka.address, new_topic(own_kafka.address), tmp_path)
    for publisher in publisher_of(system):  # noqa: F402 - not the fixture
        create(publisher, 3, partition=0)
        create(publisher, 3, partition=1)
    system.project()
    own_kafka.stop()
    found = seen(system, "brokers_unreachable")
    for partition in (0, 1):
        outages.cut_log(own_kafka.server, system.environment["RXSTORE_TOPIC"], partition, batches=1)
    own_kafka.start()
    run_named(system, found["command"])
    assert gone(system, "brokers_unreachable")
    for publisher in publisher_of(system):
        publisher.streams = 10_000
        create(publisher, 4, partition=1)
    diagnosis = Diagnosis(load(system.environment, Path(os.devnull))).look()
    told = [finding.message for finding in diagnosis.findings if finding.code == "log_truncated"]
    assert len(told) == 2
    assert "[0] ends at offset 1" in told[0]
    assert "[1] has other events than those that were folded, from offset 1 on" in told[1]
    built_anew(system, "rxstore rebuild stage")
    assert gone(system, "log_truncated")


# the projector --------------------------------------------------------------------------------------------------------


def test_settings_differ(system, run_named):
    system.environment["RXSTORE_CHECK_CHARACTER"] = "lenient"
    found = seen(system, "settings_differ")
    after = json.loads(run_named(system, found["command"], then="rxstore diagnose --json"))
    assert "settings_differ" not in {finding["code"] for finding in after["findings"]}


def test_definition_differs(system, built_anew):
    system.execute("UPDATE rxstore.generation SET definition = '0.9'")
    built_anew(system, seen(system, "definition_differs")["command"])
    assert gone(system, "definition_differs")


def test_no_projector(system):
    assert seen(system, "no_projector")["command"] == "rxstore project"
    with system.projecting():
        eventually(lambda: gone(system, "no_projector"))


def test_partition_unclaimed(system, run_named):
    settings = load(system.environment, Path(os.devnull))
    with store.engine(settings) as engine:
        group = store.group_of(settings, store.live_generation(engine))
    with somebody_else_in(group, system):
        found = seen(system, "partition_unclaimed")
        assert "the member a-tool holds it" in found["message"]
        assert "a-tool" in run_named(system, found["command"])
    with system.projecting():
        eventually(lambda: gone(system, "partition_unclaimed"))


@contextmanager
def somebody_else_in(group: str, system: System) -> Iterator[None]:
    """A program that reads the topic in our group, and is no projector."""
    consumer = KafkaConsumer(
        system.environment["RXSTORE_TOPIC"],
        bootstrap_servers=system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"],
        group_id=group,
        client_id="a-tool",
        session_timeout_ms=6_000,
        enable_auto_commit=False,
        metadata_max_age_ms=1_000,  # a client that joined before it knew the topic has nothing until it asks again
    )
    stop, has_partitions = threading.Event(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            consumer.poll(timeout_ms=100)
            if consumer.assignment():
                has_partitions.set()
        consumer.close(autocommit=False)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert has_partitions.wait(30)
        yield
    finally:
        stop.set()
        reader.join()


def test_projector_stalled_names_the_session_that_holds_the_lock(system, publisher, run_named):  # noqa: F811
    with system.projecting(), somebodys_session(system, "a vacuum") as session:
        create(publisher, 1, partition=0)
        eventually(lambda: created(system, 1))
        session.execute("LOCK TABLE rx_g1.prescription IN EXCLUSIVE MODE")
        create(publisher, 1, partition=0)
        # As if it had been so for a minute.
        system.execute("UPDATE rx_g1.checkpoint SET moved_at = moved_at - interval '1 minute', caught_up_at = NULL")
        eventually(lambda: not gone(system, "projector_stalled"))
        found = seen(system, "projector_stalled")
        assert "a vacuum" in found["message"]
        run_named(system, found["command"])
        eventually(lambda: gone(system, "projector_stalled"))


def test_lagging(system, publisher):  # noqa: F811 - the fixture
    create(publisher, 1)
    system.project()
    create(publisher, 600)
    system.execute("UPDATE rx_g1.checkpoint SET caught_up_at = caught_up_at - interval '1 minute'")
    with system.projecting(RXSTORE_BATCH_RECORDS="1"):
        eventually(lambda: not gone(system, "lagging"))
    with system.projecting():
        eventually(lambda: gone(system, "lagging"))


def test_checkpoint_behind_group(system, publisher):  # noqa: F811 - the fixture
    create(publisher, 3, partition=0)
    with system.projecting():
        eventually(lambda: created(system, 3))
        eventually(lambda: committed(system, 0) == 3)
    system.execute("UPDATE rx_g1.checkpoint SET next_offset = 1 WHERE partition_number = 0")
    found = seen(system, "checkpoint_behind_group")
    assert "2 offsets" in found["message"]
    with system.projecting():
        eventually(lambda: gone(system, "checkpoint_behind_group"))
    assert system.query("SELECT DISTINCT version FROM rxstore.prescription") == [(1,)]


def committed(system: System, partition: int) -> int | None:
    """Return what the projector has told Kafka."""
    settings = load(system.environment, Path(os.devnull))
    with store.engine(settings) as engine:
        group = store.group_of(settings, store.live_generation(engine))
    with cluster(system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"]) as admin:
        offsets = admin.list_group_offsets({group: None})[group]
    found = offsets.get(TopicPartition(system.environment["RXSTORE_TOPIC"], partition))
    return None if found is None else found.offset


def test_mostly_unreadable(system, publisher, run_named):  # noqa: F811 - the fixture
    for _ in range(120):
        publisher.send(b"{not json", publisher.stream())
    refused = system.run("project", "--until-caught-up", "--workers", "1")
    assert refused.returncode == 4
    found = seen(system, "mostly_unreadable")
    assert "unreadable" in found["message"]
    run_named(system, f"{found['command']} --until-caught-up")
    assert gone(system, "mostly_unreadable")


# what waits for people ------------------------------------------------------------------------------------------------


@pytest.fixture
def blocked(system, publisher) -> str:  # noqa: F811 - the fixture
    subject = publisher.stream()
    publisher.create(subject)
    publisher.send(publisher.event(examples.claimed, subject, 2, "2"), subject)
    system.project()
    return subject


def test_prescriptions_blocked_and_decision_waiting(system, blocked, run_named):
    found = seen(system, "prescriptions_blocked")
    assert "1 prescription is blocked by illegal_transition" in found["message"]
    assert found["page"] == "docs/operators/runbook/reasons.md#illegal_transition"
    id_ = run_named(system, found["command"]).split()[0]
    system.run("quarantine", "skip", id_, "--why", "sent by mistake", "--yes", "--wait", "0")
    system.execute("UPDATE rxstore.decision SET decided_at = decided_at - interval '1 minute'")
    assert seen(system, "decision_waiting")["command"] == "rxstore project"
    system.project()
    left = findings(system)
    assert "decision_waiting" not in left
    assert "prescriptions_blocked" not in left


def test_decision_void(system, blocked, run_named):
    (record,) = system.quarantine()
    system.run("quarantine", "skip", record["id"], "--why", "sent by mistake", "--yes", "--wait", "0")
    system.execute("UPDATE rxstore.decision SET topic = 'the-old-topic'")  # as imported into another installation
    run_named(system, seen(system, "decision_void")["command"])
    assert gone(system, "decision_void")


def test_events_without_prescription(system, publisher, run_named):  # noqa: F811 - the fixture
    publisher.send(b"{}", publisher.stream(), key="no stream key")
    system.project()
    found = seen(system, "events_without_prescription")
    assert "no prescription" in run_named(system, found["command"])
    system.execute("UPDATE rx_g1.set_aside SET since = since - interval '25 hours'")  # it is told for a day
    assert gone(system, "events_without_prescription")


def test_parked_too_long(system, publisher, run_named):  # noqa: F811 - the fixture
    subject = publisher.stream()
    publisher.send(publisher.event(examples.released, subject, 2), subject)
    system.project()
    assert gone(system, "parked_too_long")
    system.execute("UPDATE rx_g1.set_aside SET since = since - interval '2 hours'")
    assert subject[:-1] in run_named(system, seen(system, "parked_too_long")["command"])
    publisher.create(subject, None)
    system.project()
    assert gone(system, "parked_too_long")


# what cannot be looked at ---------------------------------------------------------------------------------------------


def test_could_not_check(system, run_named):
    url = make_url(system.environment["RXSTORE_DATABASE_URL"])
    system.execute("DROP ROLE IF EXISTS rxstore_test_looker")
    system.execute("CREATE ROLE rxstore_test_looker LOGIN PASSWORD 'looks'")
    system.execute("GRANT USAGE ON SCHEMA rxstore, rx_g1 TO rxstore_test_looker")
    system.execute("GRANT SELECT ON ALL TABLES IN SCHEMA rxstore TO rxstore_test_looker")
    system.execute("GRANT SELECT ON rx_g1.checkpoint, rx_g1.prescription TO rxstore_test_looker")
    looker = url.set(username="rxstore_test_looker", password=quote("looks")).render_as_string(hide_password=False)
    as_looker = System({**system.environment, "RXSTORE_DATABASE_URL": looker}, system.directory)
    found = seen(as_looker, "could_not_check")
    told = [one.message for one in Diagnosis(load(as_looker.environment, Path(os.devnull))).look().findings]
    assert [
        message for message in told if message.startswith("what waits could not be looked at: the database refuses")
    ]
    system.execute("GRANT SELECT ON rx_g1.set_aside TO rxstore_test_looker")
    assert "could_not_check" not in run_named(as_looker, found["command"], then=":")
    assert gone(as_looker, "could_not_check")
    system.execute("DROP OWNED BY rxstore_test_looker")
    system.execute("DROP ROLE rxstore_test_looker")
