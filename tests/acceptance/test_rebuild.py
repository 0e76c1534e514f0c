"""A new read model beside the live one: built while the live one is fed, switched to, switched back, let go."""

from __future__ import annotations

import json
from datetime import date

import pytest

from rxstore.generator import lifecycles
from tests.acceptance.conftest import System, eventually, path_with
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
        assert json.loads(system.do("rebuild", "stage", "--json"))["generation"] == "g2"
        system.publish(EVENTS[half:])
        waited = json.loads(system.do("rebuild", "wait", "--max-lag", "0", "--timeout", "50", "--json"))
        assert waited == {"generation": "g2", "state": "ready", "lag_events": 0}
        verified = json.loads(system.do("rebuild", "verify", "--json"))
        assert (verified["clean"], sum(verified["offsets"].values())) == (True, len(EVENTS))

        system.do("rebuild", "promote")
        assert view_reads(system) == "g2"
        more = list(lifecycles(20, 2, date(2026, 3, 5), 28))
        system.publish(more)
        total = len(EVENTS) + len(more)
        eventually(lambda: lag(system, "g1", total) == lag(system, "g2", total) == 0)
        system.do("rebuild", "rollback")
        assert view_reads(system) == "g1"
        assert rows(url(system), "rx_g2") == rows(url(system), "rx_g1")

        system.do("rebuild", "promote", "g2")
        system.do("rebuild", "retire")
        eventually(lambda: system.status()["verdict"] == "following")
    assert [one["name"] for one in system.status()["generations"]] == ["g2"]


def test_a_build_by_the_command_itself_ends_when_it_is_built(system):
    system.publish(EVENTS)
    system.project()
    system.do("rebuild", "stage", "--workers", "1")
    assert state(system, "g2") == "ready"
    system.do("rebuild", "verify")
    system.execute("UPDATE rx_g2.issue SET status = '0099' WHERE status = '0006'")
    done = system.run("rebuild", "verify")
    assert done.returncode == 1
    assert "issue: status 0006 -> 0099" in done.stdout


# As on a machine so slow that workers note seconds later that they came to the end.
NOTED_LATE = """
import time
from projector import checkpoints
from rxstore import feeding
noted, from_now_on = checkpoints.caught_up, time.monotonic() + 8
checkpoints.caught_up = lambda *of: noted(*of) if time.monotonic() > from_now_on else None
feeding.NOTED_WITHIN_SECONDS = 0.0
"""


def test_a_build_by_the_command_itself_does_not_end_before(system, tmp_path):
    system.publish(EVENTS)
    system.project()
    done = system.run("rebuild", "stage", "--workers", "1", PYTHONPATH=path_with(NOTED_LATE, tmp_path))
    assert done.returncode == 0, done.stderr
    assert state(system, "g2") == "ready"


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
    assert system.run("rebuild", "verify").returncode == 4
    system.do("rebuild", "verify", "--another-topic")
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
