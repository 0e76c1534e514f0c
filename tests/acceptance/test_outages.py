"""Servers restart, fail over, lose what they held or are given another log: never lost, never doubled, or a stop."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewPartitions
from sqlalchemy import make_url

from tests.acceptance import outages
from tests.acceptance.conftest import PATIENCE_SECONDS, System, eventually, installed
from tests.acceptance.test_faults import Publisher, partition_of
from tests.conftest import PARTITIONS, new_database
from tests.servers import Restartable

REFUSED = 4


def publisher_of(system: System) -> Iterator[Publisher]:
    producer = KafkaProducer(bootstrap_servers=system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"])
    yield Publisher(system, producer)
    producer.close()


def new_topic(bootstrap_servers: str) -> str:
    name = f"rxstore-test-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    admin.create_topics({name: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    return name


def created(system: System, count: int) -> bool:
    return system.query("SELECT count(*) FROM rxstore.prescription") == [(count,)]


def create(publisher: Publisher, count: int, partition: int | None = None) -> None:
    """Publish this many new prescriptions, all in one partition if one is named."""
    sent = 0
    while sent < count:
        subject = publisher.stream()
        if partition in (None, partition_of(subject[:-1].encode())):
            publisher.create(subject)
            sent += 1


def moved_on(system: System, count: int) -> None:
    """Everything is folded once: so many prescriptions, each by one event, and nothing set aside."""
    eventually(lambda: created(system, count))
    assert system.query("SELECT DISTINCT version FROM rxstore.prescription") == [(1,)]
    assert system.query("SELECT count(*) FROM rxstore.set_aside") == [(0,)]


def ended_refusing(projector) -> str:
    """Wait until the projector has stopped to protect the data; return what it said."""
    assert projector.process.wait(PATIENCE_SECONDS) == REFUSED
    return projector.log.read_text()


# a database of one's own ----------------------------------------------------------------------------------------------


@pytest.fixture
def own_database(own_postgres: Restartable, broker: str, topic: str, tmp_path: Path) -> Iterator[System]:
    """An installation whose PostgreSQL the test may stop."""
    with new_database(own_postgres.address, "template0") as url:
        System({"RXSTORE_DATABASE_URL": url, "RXSTORE_TOPIC": topic}, tmp_path).do("migrate")
        yield installed(url, broker, topic, tmp_path)


@pytest.fixture
def its_publisher(own_database: System) -> Iterator[Publisher]:
    yield from publisher_of(own_database)


def test_a_projector_goes_on_after_the_database_was_restarted(own_database, own_postgres, its_publisher):
    with own_database.projecting() as projector:
        create(its_publisher, 3)
        eventually(lambda: created(own_database, 3))
        own_postgres.stop()
        create(its_publisher, 3)
        eventually(lambda: projector.said("the database", action="retry"))
        own_postgres.start()
        moved_on(own_database, 6)
        assert projector.is_running()


def test_a_projector_waits_while_the_database_is_in_recovery_and_goes_on_when_it_is_promoted(
    own_database, own_postgres, its_publisher
):
    with own_database.projecting() as projector, own_database.serving() as ask:
        create(its_publisher, 3)
        eventually(lambda: created(own_database, 3))
        own_postgres.stop()
        outages.make_standby(own_postgres.server)
        own_postgres.start()
        create(its_publisher, 3)
        eventually(lambda: projector.said("read only: a standby, or in recovery", action="retry"))
        subject = its_publisher.stream()
        assert ask(f"/mm/prescriptions/{subject}").body["statusCode"] == "1"
        assert created(own_database, 3)
        own_database.query("SELECT pg_promote()")
        moved_on(own_database, 6)
        assert projector.is_running()


def test_a_worker_leaves_a_server_that_turned_read_only_for_the_new_primary(own_database, own_postgres, its_publisher):
    old = make_url(own_database.environment["RXSTORE_DATABASE_URL"])
    with outages.replica_of(own_postgres.server) as replica:
        new = make_url(replica.address).set(database=old.database)
        password = f"{old.username}:{old.password}"
        hosts = f"{old.host}:{old.port},{new.host}:{new.port}"
        both = f"postgresql://{password}@{hosts}/{old.database}?target_session_attrs=read-write"
        own_database.environment["RXSTORE_DATABASE_URL"] = both
        with own_database.projecting() as projector:
            create(its_publisher, 3)
            eventually(lambda: created(own_database, 3))
            with psycopg.connect(replica.address, autocommit=True) as session:
                session.execute("SELECT pg_promote()")
            with psycopg.connect(own_postgres.address, autocommit=True) as session:
                session.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                session.execute("SELECT pg_reload_conf()")
            create(its_publisher, 3)
            moved_on(own_database, 6)  # asked of whichever server takes writes
            assert projector.said("read only", action="retry")
            assert own_database.status()["verdict"] in {"following", "lagging"}
        with psycopg.connect(own_postgres.address, autocommit=True) as session:
            session.execute("SET default_transaction_read_only = off")
            session.execute("ALTER SYSTEM RESET default_transaction_read_only")
            session.execute("SELECT pg_reload_conf()")


# a worker that sleeps -------------------------------------------------------------------------------------------------


def test_a_worker_that_sleeps_past_its_session_and_wakes_up_writes_nothing(system, publisher):
    with system.projecting() as zombie:
        create(publisher, 3)
        eventually(lambda: created(system, 3))
        asleep = psutil.Process(zombie.process.pid).children(recursive=True)
        for process in asleep:
            process.suspend()
        with system.projecting() as successor:
            create(publisher, 3)
            moved_on(system, 6)
            for process in asleep:
                process.resume()
            create(publisher, 3)
            moved_on(system, 9)
            assert successor.is_running()
        create(publisher, 3)
        moved_on(system, 12)  # and is a worker like any other again
        assert zombie.is_running()


# a commit whose answer is lost ----------------------------------------------------------------------------------------


def test_a_connection_that_dies_between_commit_and_its_answer_doubles_nothing(system, publisher):
    with (
        outages.proxy_of(system.environment["RXSTORE_DATABASE_URL"]) as (through, proxy),
        system.projecting(RXSTORE_DATABASE_URL=through) as projector,
    ):
        create(publisher, 3)
        eventually(lambda: created(system, 3))
        proxy.armed.set()
        create(publisher, 3)
        eventually(proxy.swallowed.is_set)
        create(publisher, 3)
        moved_on(system, 9)
        eventually(lambda: projector.said("joining the group again", action="rejoin"))


@pytest.fixture
def publisher(system: System) -> Iterator[Publisher]:
    yield from publisher_of(system)


# checkpoints moved by hand --------------------------------------------------------------------------------------------


def test_a_worker_whose_checkpoint_was_put_back_by_hand_reads_again_and_doubles_nothing(system, publisher):
    with system.projecting() as projector:
        create(publisher, 4, partition=0)
        eventually(lambda: created(system, 4))
        system.execute("TRUNCATE rx_g1.prescription, rx_g1.line_item, rx_g1.issue")
        system.execute("UPDATE rx_g1.checkpoint SET next_offset = 0 WHERE partition_number = 0")
        moved_on(system, 4)  # although nothing new came
        assert projector.said("joining the group again", action="rejoin")
        system.execute("UPDATE rx_g1.checkpoint SET next_offset = 2 WHERE partition_number = 0")
        create(publisher, 2, partition=0)
        moved_on(system, 6)


def test_a_worker_whose_checkpoint_was_put_forward_by_hand_goes_on_there(system, publisher):
    with system.projecting() as projector:
        create(publisher, 4, partition=0)
        eventually(lambda: created(system, 4))
        system.execute("UPDATE rx_g1.checkpoint SET next_offset = 6 WHERE partition_number = 0")
        eventually(lambda: projector.said("joining the group again", action="rejoin"))
        create(publisher, 5, partition=0)
        moved_on(system, 4 + 3)  # what was jumped over is in no row, and nobody is told


# another log under the same name --------------------------------------------------------------------------------------


@pytest.fixture
def topics(kafka: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka)
    yield client
    client.close()


def recreate(topics: KafkaAdminClient, topic: str) -> None:
    topics.delete_topics([topic])
    topics.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)


def test_a_running_projector_waits_for_a_deleted_topic_and_refuses_the_one_made_again(system, topics, publisher):
    topic = system.environment["RXSTORE_TOPIC"]
    with system.projecting() as projector:
        create(publisher, 2)
        eventually(lambda: created(system, 2))
        topics.delete_topics([topic])
        eventually(lambda: projector.said("the topic is not there", action="retry"))
        topics.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
        create(publisher, 8)
        assert "deleted and made again" in ended_refusing(projector)
    assert created(system, 2)


def test_a_stopped_projector_does_not_start_on_a_topic_that_was_made_again(system, topics, publisher):
    create(publisher, 2)
    system.project()
    recreate(topics, system.environment["RXSTORE_TOPIC"])
    done = system.run("project", "--until-caught-up")
    assert done.returncode == REFUSED
    assert "deleted and made again" in done.stderr


@pytest.mark.kafka
def test_a_projector_refuses_a_log_whose_next_events_were_deleted(system, publisher):
    create(publisher, 4, partition=0)
    system.project()
    create(publisher, 4, partition=0)
    partition = TopicPartition(system.environment["RXSTORE_TOPIC"], 0)
    admin = KafkaAdminClient(bootstrap_servers=system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"])
    admin.delete_records({partition: 6})
    admin.close()
    with system.projecting() as projector:
        assert "retention took events away" in ended_refusing(projector)
    assert created(system, 4)


def test_a_projector_does_not_start_on_a_topic_to_which_partitions_were_added(system, topics, publisher):
    create(publisher, 2)
    system.project()
    topics.create_partitions({system.environment["RXSTORE_TOPIC"]: NewPartitions(PARTITIONS + 1)})
    done = system.run("project")
    assert done.returncode == REFUSED
    assert "keys now belong elsewhere" in done.stderr


# a broker of one's own ------------------------------------------------------------------------------------------------


@pytest.fixture
def own_broker(own_kafka: Restartable, migrated_database_url: str, tmp_path: Path) -> System:
    """An installation whose Kafka the test may stop."""
    return installed(migrated_database_url, own_kafka.address, new_topic(own_kafka.address), tmp_path)


def test_a_projector_goes_on_after_the_broker_was_restarted(own_broker, own_kafka):
    with own_broker.projecting() as projector:
        for publisher in publisher_of(own_broker):
            create(publisher, 3)
        eventually(lambda: created(own_broker, 3))
        own_kafka.stop()
        eventually(lambda: projector.said("the brokers do not answer"))
        own_kafka.start()
        for publisher in publisher_of(own_broker):
            publisher.streams = 3
            create(publisher, 3)
        moved_on(own_broker, 6)
        assert projector.is_running()


def test_a_log_that_lost_its_end_and_has_grown_again_is_refused(own_broker, own_kafka):
    for publisher in publisher_of(own_broker):
        create(publisher, 6, partition=0)
    own_broker.project()
    own_kafka.stop()
    outages.cut_log(own_kafka.server, own_broker.environment["RXSTORE_TOPIC"], 0, batches=3)
    own_kafka.start()
    for publisher in publisher_of(own_broker):
        publisher.streams = 10_000
        create(publisher, 5, partition=0)
    with own_broker.projecting() as projector:
        assert "lost records that were folded from it" in ended_refusing(projector)
    assert created(own_broker, 6)
