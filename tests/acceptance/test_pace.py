"""A build that is throttled, by a number and for the API's sake, and what people and scripts are told meanwhile."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from rxstore.generator import lifecycles
from tests.acceptance.conftest import System, eventually

EVENTS = list(lifecycles(200, 1, date(2026, 1, 5), 28))
RATE = 5


def folded(system: System) -> int:
    ((count,),) = system.query("SELECT coalesce(sum(next_offset), 0) FROM rx_g2.checkpoint")
    return int(count)


def build(system: System) -> dict[str, Any]:
    (found,) = [one for one in system.status()["generations"] if one["name"] == "g2"]
    document: dict[str, Any] = found["build"]
    return document


def causes(system: System) -> dict[str, list[int]]:
    return {cause["cause"]: cause["partitions"] for cause in build(system)["causes"]}


def seconds_since_it_was_staged(system: System) -> float:
    ((seconds,),) = system.query(
        "SELECT extract(epoch FROM clock_timestamp() - registered_at) FROM rxstore.generation WHERE name = 'g2'"
    )
    return float(seconds)


@pytest.fixture
def published(system) -> System:
    system.publish(EVENTS)
    system.project()
    return system


def test_a_throttled_build_goes_no_faster_until_the_throttle_is_lifted(published):
    published.do("rebuild", "stage", "--throttle", str(RATE))
    with published.running("project", "--workers", "2"):
        for part in (1, 2, 3):
            eventually(lambda part=part: folded(published) >= part * 2 * RATE)
            # Counted before the clock is read: a slow machine can only make this easier to keep.
            count = folded(published)
            assert count <= RATE * seconds_since_it_was_staged(published)
        told = build(published)
        assert (told["throttle"], told["throttle_events_per_second"]) == (str(RATE), RATE)
        assert told["done_events"] < told["total_events"] == len(EVENTS)
        assert "throttled" in causes(published)
        assert f"throttled to {RATE} events a second" in published.run("status").stdout

        published.do("rebuild", "throttle", "off")
        published.do("rebuild", "wait", "--max-lag", "0", "--timeout", "50")
    ((state,),) = published.query("SELECT state FROM rxstore.generation WHERE name = 'g2'")
    assert state == "ready"
    published.do("rebuild", "verify")


def test_the_live_generation_follows_while_another_one_is_throttled(published):
    published.do("rebuild", "stage", "--throttle", "1")
    with published.running("project", "--workers", "1"):
        eventually(lambda: "throttled" in causes(published))
        published.publish(lifecycles(20, 2, date(2026, 3, 5), 28))
        eventually(lambda: published.status()["generations"][0]["lag_events"] == 0)
        assert folded(published) < len(EVENTS)


def test_a_throttled_worker_stops_at_once_and_another_one_takes_over(published):
    published.do("rebuild", "stage", "--throttle", "1")
    with published.projecting() as projector:
        eventually(lambda: "throttled" in causes(published))
        projector.stop()
        assert projector.process.returncode == 0
    before = published.query("SELECT sum(epoch) FROM rx_g2.checkpoint")
    with published.projecting():
        eventually(lambda: published.query("SELECT sum(epoch) FROM rx_g2.checkpoint") > before)


def test_nobody_who_builds_is_named_by_status_and_by_wait_alike(published):
    published.do("rebuild", "stage")
    assert list(causes(published)) == ["unclaimed"]
    done = published.run("rebuild", "wait", "--timeout", "7")
    assert done.returncode == 1
    assert "g2: no projector has taken its partitions" in done.stderr
    assert build(published)["causes"][0]["why"] in done.stderr


def test_an_automatic_throttle_times_the_apis_questions_and_never_stops_a_build(published):
    published.do("rebuild", "stage", "--throttle", "20")
    # No answer comes within a millisecond at the 99th of 100: the rate goes to its floor, and the build goes on.
    with published.running("project", "--workers", "1", RXSTORE_THROTTLE_P99_MS="1"):
        published.do("rebuild", "throttle", "g2", "auto")
        eventually(lambda: (build(published) or {"throttle_p99_ms": 1})["throttle_p99_ms"] is not None)
        ((rate, measured),) = published.query(
            "SELECT throttle_rate, throttle_p99_ms FROM rxstore.generation WHERE name = 'g2'"
        )
        assert (rate, measured > 1) == (100, True)
        waited = json.loads(published.do("rebuild", "wait", "--max-lag", "0", "--timeout", "50", "--json"))
    assert waited == {"generation": "g2", "state": "ready", "lag_events": 0}


def test_a_load_from_an_archive_is_throttled_too(published):
    published.do("archive", "export", "archive")
    stage = ("rebuild", "stage", "--archive", "archive", "--workers", "1", "--throttle", str(RATE))
    with published.running(*stage) as loading:
        eventually(lambda: len(published.query("SELECT FROM rxstore.progress")) > 0)
        eventually(lambda: folded(published) >= 2 * RATE)
        assert folded(published) <= RATE * seconds_since_it_was_staged(published)
        assert list(causes(published)) == ["throttled"]
        published.do("rebuild", "throttle", "off")
        assert loading.wait(60) == 0
    ((state,),) = published.query("SELECT state FROM rxstore.generation WHERE name = 'g2'")
    assert state == "ready"
