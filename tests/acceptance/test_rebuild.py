"""A new read model beside the live one: built while the live one is fed, switched to, switched back, let go."""

from __future__ import annotations

import json
from datetime import date

import pytest

from rxstore.generator import lifecycles
from tests.acceptance.conftest import System, eventually
from tests.integration.projecting import rows

EVENTS = list(lifecycles(60, 1, date(2026, 1, 5), 28))


def url(system: System) -> str:
    return system.environment["RXSTORE_DATABASE_URL"]


def state(system: System, name: str) -> str:
    ((found,),) = system.query("SELECT state FROM rxstore.generation WHERE name = %s", name)
    return str(found)


def view_reads(system: System) -> str:
    ((definition,),) = system.query("SELECT pg_get_viewdef('rxstore.prescription'::regclass)")
    return "g2" if "rx_g2." in definition else "g1"


def refused(system: System, *arguments: str) -> str:
    done = system.run("rebuild", *arguments)
    assert done.returncode == 4, (done.stdout, done.stderr)
    return done.stderr


def lag(system: System, name: str, published: int) -> int:
    if system.query("SELECT to_regclass(%s) IS NULL", f"rx_{name}.checkpoint") == [(True,)]:
        return published
    ((reached,),) = system.query(f"SELECT coalesce(sum(next_offset), 0) FROM rx_{name}.checkpoint")
    return published - int(reached)


def test_a_generation_is_built_beside_live_by_the_running_projector_and_switched_to_and_back(system):
    half = len(EVENTS) // 2
    system.publish(EVENTS[:half])
    with system.running("project", "--workers", "1"):
        eventually(lambda: lag(system, "g1", half) == 0)
        assert "no generation is being built" in refused(system, "promote")
        assert "nothing to go back to" in refused(system, "rollback")
        assert json.loads(system.do("rebuild", "stage", "--json"))["generation"] == "g2"
        assert "g2 is building already" in refused(system, "stage") or state(system, "g2") == "ready"
        system.publish(EVENTS[half:])
        waited = json.loads(system.do("rebuild", "wait", "--max-lag", "0", "--timeout", "50", "--json"))
        assert waited == {"generation": "g2", "state": "ready", "lag_events": 0}
        eventually(lambda: lag(system, "g1", len(EVENTS)) == 0)
        assert rows(url(system), "rx_g2") == rows(url(system), "rx_g1")

        system.do("rebuild", "promote")
        assert (state(system, "g1"), state(system, "g2"), view_reads(system)) == ("previous", "live", "g2")
        more = list(lifecycles(20, 2, date(2026, 3, 5), 28))
        system.publish(more)
        total = len(EVENTS) + len(more)
        eventually(lambda: lag(system, "g1", total) == lag(system, "g2", total) == 0)
        system.do("rebuild", "rollback")
        assert (state(system, "g1"), state(system, "g2"), view_reads(system)) == ("live", "ready", "g1")
        assert rows(url(system), "rx_g2") == rows(url(system), "rx_g1")

        system.do("rebuild", "promote", "g2")
        system.do("rebuild", "retire")
        assert system.query("SELECT to_regnamespace('rx_g1') IS NULL") == [(True,)]
        assert "nothing to go back to" in refused(system, "rollback")
        eventually(lambda: system.status()["verdict"] == "following")
    assert [one["name"] for one in system.status()["generations"]] == ["g2"]


def test_a_generation_that_is_given_up_leaves_nothing_and_the_live_one_alone(system):
    system.publish(EVENTS)
    system.project()
    before = rows(url(system))
    system.do("rebuild", "stage", "--workers", "1")
    assert state(system, "g2") == "ready"
    assert "g2 is ready, not previous" in refused(system, "retire", "g2")
    assert "g1 is live" in refused(system, "abort", "g1")
    system.do("rebuild", "abort")
    assert system.query("SELECT to_regnamespace('rx_g2') IS NULL") == [(True,)]
    assert rows(url(system)) == before
    assert json.loads(system.do("rebuild", "stage", "--json"))["generation"] == "g3"


def test_a_generation_that_is_behind_is_not_promoted_and_waiting_for_it_ends_in_time(system):
    system.publish(EVENTS)
    system.project()
    system.do("rebuild", "stage", "--workers", "1")
    system.publish(EVENTS[:20])
    assert "20 events behind" in refused(system, "promote", "--max-lag", "19")
    assert system.run("rebuild", "wait", "--max-lag", "19", "--timeout", "0").returncode == 1
    assert view_reads(system) == "g1"


def test_a_generation_of_another_definition_is_left_to_the_version_that_made_it(system):
    system.publish(EVENTS)
    system.project()
    system.do("rebuild", "stage")
    system.execute("UPDATE rxstore.generation SET definition = '0.9' WHERE name = 'g1'")
    system.publish(EVENTS[:10])
    done = system.run("project", "--until-caught-up", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "g1 is not fed here" in done.stderr
    assert "0.9" in done.stderr
    assert lag(system, "g2", len(EVENTS) + 10) == 0
    assert lag(system, "g1", len(EVENTS) + 10) == 10


@pytest.mark.kafka
def test_a_live_generation_whose_topic_was_made_again_is_rebuilt_from_the_new_one(system):
    system.publish(EVENTS)
    system.project()
    system.execute("UPDATE rxstore.generation SET topic_id = '00000000-0000-0000-0000-000000000001'")
    system.execute("UPDATE rx_g1.checkpoint SET topic_id = '00000000-0000-0000-0000-000000000001'")
    assert system.run("project", "--until-caught-up").returncode == 4
    system.do("rebuild", "stage")
    done = system.run("project", "--until-caught-up", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "made again" in done.stderr
    assert lag(system, "g2", len(EVENTS)) == 0
    system.do("rebuild", "promote")
    assert view_reads(system) == "g2"


def test_a_generation_keeps_the_settings_that_it_was_made_with(system):
    system.publish(EVENTS[:20])
    system.project()
    done = system.run("rebuild", "stage", RXSTORE_CHECK_CHARACTER="lenient")
    assert done.returncode == 0, done.stderr
    done = system.run("project", "--until-caught-up", "--workers", "1", RXSTORE_CHECK_CHARACTER="lenient")
    assert done.returncode == 0, done.stderr
    assert lag(system, "g1", 20) == lag(system, "g2", 20) == 0
    found = dict(system.query("SELECT name, settings ->> 'RXSTORE_CHECK_CHARACTER' FROM rxstore.generation"))
    assert found == {"g1": "strict", "g2": "lenient"}
