"""`rxstore topics create` and `rxstore publish` against a broker: what stands in the topic afterwards, and where."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from rxstore import publishing
from rxstore.cli.main import rxstore
from tests import examples

PARTITIONS = 8

# Worked out by the murmur2 of Kafka's Java client for 8 partitions.
PLACE = {examples.PRESCRIPTION_ID: 6, examples.R1_PRESCRIPTION_ID: 0}


@pytest.fixture
def run(broker, topic, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: bytes = b"", **environment: str) -> Result:
        settings = {"RXSTORE_KAFKA_BOOTSTRAP_SERVERS": broker, "RXSTORE_TOPIC": topic, **environment}
        return CliRunner().invoke(rxstore, arguments, input=stdin, env=settings, catch_exceptions=False)

    return run


@pytest.fixture
def records(broker, topic):
    """All records of the topic, in the order of partition and offset."""

    def records():
        consumer = KafkaConsumer(bootstrap_servers=broker, group_id=None, isolation_level="read_committed")
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        missing = sum(consumer.end_offsets(partitions).values())
        found = []
        while len(found) < missing:
            found += [record for batch in consumer.poll(timeout_ms=500).values() for record in batch]
        consumer.close()
        return sorted(found, key=lambda record: (record.partition, record.offset))

    return records


def file_of(*payloads: object) -> bytes:
    return b"\n".join(payload if isinstance(payload, bytes) else json.dumps(payload).encode() for payload in payloads)


def test_each_event_goes_under_the_stream_key_of_its_subject(run, records):
    done = run("publish", "-", stdin=file_of(examples.created(), examples.released()))
    assert done.exit_code == 0
    first, second = records()
    assert first.key == second.key == examples.STREAM_KEY.encode()
    assert json.loads(first.value) == examples.created()
    assert first.headers == [("content-type", b"application/cloudevents+json")]
    assert first.partition == second.partition == PLACE[examples.PRESCRIPTION_ID]


def test_a_topic_that_is_partitioned_by_crc32_gets_its_events_where_librdkafka_puts_them(run, records):
    run("publish", "-", stdin=file_of(examples.created()), RXSTORE_PARTITIONER="crc32")
    (record,) = records()
    assert record.partition == zlib.crc32(examples.STREAM_KEY.encode()) % PARTITIONS


def test_json_tells_each_position_in_the_order_of_the_file(run, topic):
    lines = file_of(
        examples.created(id="a"),
        examples.created(id="b", subject=examples.R1_PRESCRIPTION_ID),
        examples.released(id="c"),
    )
    done = run("publish", "-", "--json", stdin=lines)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    here, there = PLACE[examples.PRESCRIPTION_ID], PLACE[examples.R1_PRESCRIPTION_ID]
    assert [(report["line"], report["id"], report["position"]) for report in reports] == [
        (1, "a", f"{topic}:{here}:0"),
        (2, "b", f"{topic}:{there}:0"),
        (3, "c", f"{topic}:{here}:1"),
    ]


def test_more_events_than_may_be_on_their_way_at_once_are_acknowledged_in_order(run, monkeypatch):
    monkeypatch.setattr(publishing, "MOST_UNACKNOWLEDGED", 10)
    done = run("publish", "-", "--json", stdin=file_of(*(examples.nominated(id=f"n-{number}") for number in range(95))))
    assert [json.loads(line)["offset"] for line in done.stdout.splitlines()] == list(range(95))
    assert "95 events published" in done.stderr


def test_a_bad_line_stops_nothing_before_it_and_is_reported_with_its_number(run, records):
    lines = file_of(examples.created(), b"", examples.released(issue_number=0), examples.expired())
    done = run("publish", "-", stdin=lines)
    assert done.exit_code == 1
    assert "rxstore: line 3: data.issueNumber: " in done.stderr
    assert "1 event published" in done.stderr
    assert [json.loads(record.value)["id"] for record in records()] == [examples.created()["id"]]


def test_without_validation_bad_events_are_sent_under_the_key_that_can_be_read(run, records):
    no_json = b'{"specversion'
    done = run("publish", "-", "--no-validate", stdin=file_of(examples.released(issue_number=0), no_json))
    assert done.exit_code == 0
    keys = {record.value: record.key for record in records()}
    assert keys.pop(no_json) is None
    assert list(keys.values()) == [examples.STREAM_KEY.encode()]


def test_without_validation_an_event_above_the_limit_keeps_its_key(run, records):
    payload = examples.created(extension="x" * 300_000)
    assert run("publish", "-", stdin=file_of(payload)).exit_code == 1
    assert run("publish", "-", "--no-validate", stdin=file_of(payload)).exit_code == 0
    assert [record.key for record in records()] == [examples.STREAM_KEY.encode()]


def test_a_file_is_read_by_its_name(run, records):
    Path("events.ndjson").write_bytes(file_of(examples.created()))
    assert run("publish", "events.ndjson").exit_code == 0
    assert len(records()) == 1


def test_a_missing_topic_is_named_with_the_command_that_creates_it(run):
    done = run("publish", "-", stdin=file_of(examples.created()), RXSTORE_TOPIC="no-such-topic")
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1
    assert "no-such-topic" in done.stderr
    assert "rxstore topics create" in done.stderr


@pytest.mark.parametrize("arguments", [("publish", "-"), ("topics", "create")])
def test_a_broker_that_is_not_there_is_one_sentence(run, arguments):
    done = run(*arguments, RXSTORE_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert done.exit_code == 3
    assert done.stderr.startswith("rxstore: no Kafka broker answers at 127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1


def test_topics_create_makes_a_topic_that_keeps_everything(run, admin, topic):
    name = f"{topic}-new"
    done = run("topics", "create", "--partitions", "3", "--json", RXSTORE_TOPIC=name)
    assert json.loads(done.stdout) == {"name": name, "partitions": 3, "created": True, "differences": []}
    (described,) = admin.describe_topics([name])
    assert len(described["partitions"]) == 3
    values = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    settings = values["topic"][name]
    assert settings["cleanup.policy"]["value"] == "delete"
    assert settings["retention.ms"]["value"] == settings["retention.bytes"]["value"] == "-1"
    assert int(settings["max.message.bytes"]["value"]) > 262_144


def test_topics_create_takes_eight_partitions_when_not_told_otherwise(run, topic):
    assert run("topics", "create", RXSTORE_TOPIC=f"{topic}-new").stdout == f"{topic}-new created with 8 partitions\n"


def test_topics_create_a_second_time_finds_everything_as_it_should_be(run, topic):
    name = f"{topic}-new"
    assert run("topics", "create", RXSTORE_TOPIC=name).exit_code == 0
    again = run("topics", "create", RXSTORE_TOPIC=name)
    assert again.exit_code == 0
    assert again.stdout == f"{name} exists with 8 partitions and everything the contract asks for\n"


def test_topics_create_says_what_an_existing_topic_has_otherwise(run, admin, topic):
    name = f"{topic}-old"
    configs = {"cleanup.policy": "compact", "retention.ms": "1000"}
    admin.create_topics(
        {name: {"num_partitions": 2, "replication_factor": 1, "configs": configs}}, wait_for_metadata=True
    )
    done = run("topics", "create", "--partitions", "4", "--json", RXSTORE_TOPIC=name)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["differences"] == [
        {"setting": "partitions", "value": "2", "expected": "4"},
        {"setting": "cleanup.policy", "value": "compact", "expected": "delete"},
        {"setting": "retention.ms", "value": "1000", "expected": "-1"},
    ]


@pytest.mark.kafka
def test_a_line_that_the_topic_is_too_narrow_for_is_reported_with_its_number(run, topic):
    huge = examples.created(extension="".join(f"{number:x}" for number in range(500_000)))
    done = run("publish", "-", "--no-validate", stdin=file_of(examples.released(), huge))
    assert done.exit_code == 1
    assert "line 2: is larger than the topic's max.message.bytes allows" in done.stderr
