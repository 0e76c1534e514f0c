"""``rxstore selftest``: a few dozen seeds end as the pure fold says, and with a defect put in it says so."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kafka import KafkaAdminClient

from tests.acceptance.conftest import System, eventually, path_with

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

# A worker that tries parked events in the wrong order: what sequences or the log put right is then not put right.
WRONG_ORDER = """
from collections import deque
from projector import stream
def in_order(self):
    return deque(sorted(self.parked.values(), key=lambda parked: -parked.set_aside.stands_at))
stream._Folding.in_order = in_order
"""

# Workers that are given their partitions and never claim them, and a self-test that does not wait long for them.
STANDS_STILL = """
from ingest import consumer
from rxstore.selftest import trial
consumer.Worker._follow = lambda self, *_: None
trial.MOST_PATIENCE = 0.1
"""


def selftest(system: System, *arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Run it with more patience than a command usually needs; return exit code, summary and what it complained of."""
    done = subprocess.run(
        [sys.executable, "-m", "rxstore.cli.main", "selftest", *arguments, "--json"],
        env={**os.environ, **system.environment, **environment},
        cwd=system.directory,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def left_behind(system: System) -> list[str]:
    with psycopg.connect(system.environment["RXSTORE_DATABASE_URL"]) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'rxstore_selftest_%'").fetchall()
    admin = KafkaAdminClient(bootstrap_servers=system.environment["RXSTORE_KAFKA_BOOTSTRAP_SERVERS"])
    try:
        topics = [name for name in admin.list_topics() if name.startswith("rxstore-selftest-")]
    finally:
        admin.close()
    return [row[0] for row in rows] + topics


def test_two_dozen_seeds_end_as_the_pure_fold_says_and_leave_nothing_behind(system):
    code, summary, complaints = selftest(system, "--seeds", "24", "--jobs", "8")
    assert (code, summary.get("failed"), summary.get("lost"), summary.get("doubled")) == (0, [], 0, 0), complaints
    assert summary["seeds"] == 24
    assert summary["delivered"]["kills"] >= 15
    assert summary["answers"] > 1000
    assert left_behind(system) == []


def test_with_a_defect_put_in_it_fails_and_names_the_seed(system, tmp_path: Path):
    path = path_with(WRONG_ORDER, tmp_path)
    code, summary, complaints = selftest(system, "--seeds", "6", "--jobs", "6", PYTHONPATH=path)
    assert (code, bool(summary["failed"])) == (1, True), complaints
    assert f"rxstore selftest --seed {summary['failed'][0]}" in complaints
    assert "is not as if nothing had been wrong" in complaints


def test_where_everybody_is_when_nothing_moves_is_told(system, tmp_path: Path):
    code, _, complaints = selftest(system, "--seed", "1", PYTHONPATH=path_with(STANDS_STILL, tmp_path))
    assert code == 1, complaints
    assert "the log was projected not within" in complaints
    assert re.search(r"worker \d+ \(\d+, alive\) at \S+\.py:\d+ \w+ < ", complaints), complaints
    assert re.search(r"group \w+ \[.*'assigned_partitions': \[\[\d", complaints), complaints


def test_a_database_that_is_given_is_used_and_left_as_empty_as_it_was(system, database_url):
    code, summary, complaints = selftest(system, "--seeds", "3", "--database-url", database_url)
    assert (code, summary.get("seeds"), summary.get("failed")) == (0, 3, []), complaints
    assert schemas(database_url) == {"public"}
    assert left_behind(system) == []


def test_a_database_that_holds_an_installation_is_refused_and_not_touched(system):
    url = system.environment["RXSTORE_DATABASE_URL"]
    before = schemas(url)
    code, summary, complaints = selftest(system, "--seeds", "1", "--database-url", url)
    assert (code, summary) == (4, {}), complaints
    assert "holds an installation of rxstore: name an empty one" in complaints
    assert schemas(url) == before
    assert "rxstore" in before


def test_ctrl_c_ends_it_and_leaves_nothing_behind(system):
    process = subprocess.Popen(
        [sys.executable, "-m", "rxstore.cli.main", "selftest", "--seeds", "200", "--jobs", "2"],
        env={**os.environ, **system.environment},
        cwd=system.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: any(name.startswith("rxstore-selftest-") for name in left_behind(system)))
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130
    finally:
        process.kill()
        process.wait()
    assert left_behind(system) == []


def schemas(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$'")
        return {row[0] for row in rows}
