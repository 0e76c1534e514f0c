"""What a rebuild would come to is told before anything is done, and telling it changes nothing."""

from __future__ import annotations

from datetime import date

import pytest
from kafka import KafkaAdminClient, TopicPartition

from rxstore import planning, store
from rxstore.generator import lifecycles
from rxstore.planning import Plan
from rxstore.settings import load
from tests.acceptance.conftest import System

EVENTS = list(lifecycles(40, 1, date(2026, 1, 5), 28))


def plan(system: System, **environment: str) -> Plan:
    settings = load({**system.environment, **environment}, env_file=system.directory / "none")
    with store.engine(settings) as engine:
        return planning.plan(settings, engine, 2)


def everything(system: System) -> list[tuple]:
    return system.query("SELECT relnamespace::regnamespace::text, relname FROM pg_class ORDER BY 1, 2")


@pytest.mark.kafka
def test_a_plan_counts_what_there_is_to_read_and_changes_nothing(system):
    system.publish(EVENTS)
    before = everything(system)
    found = plan(system)
    assert found.events == len(EVENTS) == sum(one.end_offset for one in found.partitions)
    assert found.bytes is not None
    assert found.bytes > len(EVENTS) * 100
    assert all(one.oldest is not None for one in found.partitions if one.events)
    assert found.seconds is not None
    assert found.space_bytes is not None
    assert (found.needed, found.changes, found.warnings) == (False, (), ())
    assert everything(system) == before


def test_a_plan_says_what_changes_and_whether_that_asks_for_a_rebuild(system):
    system.publish(EVENTS[:5])
    system.execute("UPDATE rxstore.generation SET definition = '1.99', hashes = hashes || '{\"contract\": \"other\"}'")
    found = plan(system)
    assert not found.needed
    assert [change.partition(" ")[0] for change in found.changes] == ["definition", "contract"]
    found = plan(system, RXSTORE_CHECK_CHARACTER="lenient")
    assert found.needed
    assert "RXSTORE_CHECK_CHARACTER strict -> lenient" in found.changes
    system.execute("UPDATE rxstore.generation SET definition = '0.1'")
    assert plan(system).needed


@pytest.mark.kafka
def test_a_plan_warns_of_events_that_are_no_longer_there(system):
    system.publish(EVENTS)
    partition = max(plan(system).partitions, key=lambda one: one.events)
    admin = KafkaAdminClient(bootstrap_servers=system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"])
    admin.delete_records({TopicPartition(system.environment["RXSTORE_TOPIC"], partition.partition): 3})
    admin.close()
    found = plan(system)
    (warning,) = found.warnings
    assert "3 events" in warning
    assert found.events == len(EVENTS) - 3
