"""A generation is built in memory by real workers from a real topic, dirty events and decisions among them."""

from __future__ import annotations

import json
from datetime import date

import pytest

from rxstore.generator import lifecycles, records
from tests.acceptance.conftest import System, eventually, publish_records
from tests.integration.projecting import rows

# So small that a worker has many batches before it, and writes some times before the end.
BUILT_IN_MEMORY = {"RXSTORE_BATCH_RECORDS": "20", "RXSTORE_BUILD_MEMORY_MB": "2", "RXSTORE_LOG_LEVEL": "info"}


@pytest.fixture
def live(system: System, broker: str, topic: str) -> System:
    """An installation whose live generation has folded a dirty log, with decisions in the middle of it."""
    made = list(records(lifecycles(400, 3, date(2026, 1, 5), 28), dirty_rate=0.05, seed=3))
    half = len(made) // 2
    publish_records(broker, topic, made[:half])
    with system.running("project", "--workers", "2"):
        eventually(lambda: projected(system, "g1") >= half)
        blocking = [record for record in system.quarantine() if record["blocks"]]
        assert len(blocking) > 10
        skipped = [record["id"] for record in blocking[::3]]
        system.do("quarantine", "skip", *skipped, "--why", "a test", "--limit", "100", "--yes", "--wait", "30")
        publish_records(broker, topic, made[half:])
        eventually(lambda: projected(system, "g1") >= len(made))
    return system


def projected(system: System, name: str) -> int:
    ((reached,),) = system.query(f"SELECT coalesce(sum(next_offset), 0) FROM rx_{name}.checkpoint")
    return int(reached)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_build_in_memory_has_the_rows_of_live_byte_for_byte(live, workers):
    done = live.run("rebuild", "stage", "--workers", workers, **BUILT_IN_MEMORY)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("folded in memory") > int(workers)
    url = live.environment["RXSTORE_DATABASE_URL"]
    assert rows(url, "rx_g2") == rows(url, "rx_g1")
    assert json.loads(live.do("rebuild", "verify", "--json"))["clean"]


def test_a_build_in_memory_that_was_stopped_goes_on_where_it_wrote_last(live):
    live.do("rebuild", "stage")
    with live.running("project", "--workers", "1", **BUILT_IN_MEMORY):
        eventually(lambda: projected(live, "g2") > 0)
    live.project()
    url = live.environment["RXSTORE_DATABASE_URL"]
    assert rows(url, "rx_g2") == rows(url, "rx_g1")
