"""The group commit of audit records: what it puts into one commit, and what it does when a write fails."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psycopg
import pytest

from query_api import trail
from query_api.audit import BEGIN, Record
from query_api.trail import NotWritten, Writer
from tests.unit.test_audit import ENTRY, faults_of


class Database:
    """Keeps what is committed; each write can be held up, or fail before or after it is committed."""

    def __init__(self) -> None:
        self.commits: list[list[Record]] = []
        self.connected = 0
        self.is_free = threading.Event()
        self.is_free.set()
        self.begun = threading.Event()
        self.failures: list[str] = []

    def connect(self) -> SimpleNamespace:
        self.connected += 1
        return SimpleNamespace(broken=False, prepared=False, close=lambda: None)

    def send(self, connection: SimpleNamespace, records: list[Record], until: float, *, is_new: bool = False) -> None:
        connection.prepared = connection.prepared or is_new
        assert connection.prepared
        self.begun.set()
        self.is_free.wait(10)
        failure = self.failures.pop(0) if self.failures else None
        if failure == "slow and lost":
            time.sleep(max(0.0, until - time.monotonic()))
        if failure in {"lost", "slow and lost"}:
            connection.broken = True
            raise psycopg.OperationalError
        if failure == "refused":
            raise psycopg.errors.InsufficientPrivilege
        if any(record in commit for commit in self.commits for record in records):
            raise psycopg.errors.UniqueViolation
        self.commits.append(list(records))
        if failure == "told to end":
            raise SystemExit
        if failure == "lost after commit":
            connection.broken = True
            raise psycopg.OperationalError

    @property
    def records(self) -> list[Record]:
        return [record for commit in self.commits for record in commit]


@pytest.fixture
def database(monkeypatch) -> Database:
    made = Database()
    monkeypatch.setattr(trail, "_send", made.send)
    return made


@pytest.fixture
def anchors(tmp_path):
    return tmp_path / "anchors.ndjson"


@pytest.fixture
def writer(database, anchors):
    made = Writer(database.connect, anchors)
    yield made
    database.is_free.set()
    made.close()


def said(anchors):
    lines = [json.loads(line) for line in anchors.read_text().splitlines()]
    return [(line["kind"], line["sequence"]) for line in lines]


def test_one_request_alone_has_a_commit_of_its_own_at_once(writer, database):
    writer.write(ENTRY)
    writer.write(ENTRY)
    assert [len(commit) for commit in database.commits] == [1, 1]
    assert database.connected == 1


def test_requests_that_come_while_one_is_written_share_the_next_commit(writer, database):
    database.is_free.clear()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(writer.write, ENTRY)
        database.begun.wait(10)
        others = [pool.submit(writer.write, ENTRY) for _ in range(5)]
        while len(writer._waiting) < 5:
            time.sleep(0.001)
        database.is_free.set()
        for written in (first, *others):
            written.result(10)
    assert [len(commit) for commit in database.commits] == [1, 5]
    assert faults_of(database.records) == []


def test_more_than_may_wait_are_refused_at_once(writer, database, monkeypatch):
    monkeypatch.setattr(trail, "MOST_WAITING", 1)
    database.is_free.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(writer.write, ENTRY)
        database.begun.wait(10)
        second = pool.submit(writer.write, ENTRY)
        while len(writer._waiting) < 1:
            time.sleep(0.001)
        with pytest.raises(NotWritten):
            writer.write(ENTRY)
        database.is_free.set()
        first.result(10)
        second.result(10)
    assert len(database.records) == 2


def test_a_lost_connection_is_tried_once_more_on_a_new_one(writer, database):
    writer.write(ENTRY)
    database.failures = ["lost"]
    writer.write(ENTRY)
    assert [record.sequence for record in database.records] == [1, 2]
    assert database.connected == 2


def test_what_was_committed_just_before_the_connection_was_lost_is_not_written_twice(writer, database):
    writer.write(ENTRY)
    database.failures = ["lost after commit"]
    writer.write(ENTRY)
    writer.write(ENTRY)
    assert [record.sequence for record in database.records] == [1, 2, 3]
    assert faults_of(database.records) == []


@pytest.mark.parametrize("failures", [["refused"], ["lost", "lost"]])
def test_after_a_failed_write_another_chain_begins(writer, database, anchors, failures):
    writer.write(ENTRY)
    database.failures = failures
    with pytest.raises(NotWritten):
        writer.write(ENTRY)
    writer.write(ENTRY)
    one, other = database.records
    assert one.chain != other.chain
    assert (other.sequence, other.previous_hash) == (1, BEGIN.hash)
    assert said(anchors) == [("begin", 0), ("head", 1), ("begin", 0)]


def test_who_waited_in_vain_is_told_and_left_out(database, anchors):
    writer = Writer(database.connect, anchors, patience_seconds=0.2)
    database.is_free.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(writer.write, ENTRY)
        database.begun.wait(10)
        with pytest.raises(NotWritten):
            writer.write(ENTRY._replace(asid="200000000999"))
        database.is_free.set()
        first.result(10)
    writer.write(ENTRY)
    assert [record.asid for record in database.records] == [ENTRY.asid, ENTRY.asid]
    writer.close()


def test_who_is_to_lead_at_the_moment_in_which_it_gives_up_leads(writer, database):
    mine, other = (trail._Waiting(ENTRY, time.monotonic()) for _ in range(2))
    writer._waiting.extend([mine, other])
    writer._is_led = mine.is_leader = True  # as one that hands over leaves it, before it wakes anybody
    writer._sleep(mine)
    mine.wakes.release()  # and so it does, to one that is awake already
    writer._lead(mine)
    assert (mine.is_written, other.is_written) == (True, True)
    assert other.wakes.acquire(blocking=False)
    assert not writer._is_led


def test_a_process_that_is_told_to_end_in_the_middle_of_a_commit_leaves_no_false_end(database, anchors):
    writer = Writer(database.connect, anchors)
    writer.write(ENTRY)
    database.failures = ["told to end"]
    with pytest.raises(SystemExit):
        writer.write(ENTRY)
    writer.close()
    assert [record.sequence for record in database.records] == [1, 2]  # what was on its way is committed all the same
    assert said(anchors) == [("begin", 0), ("head", 1)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child does nothing but what is looked at
def test_a_forked_process_does_not_go_on_with_the_chain_and_does_not_end_it(writer, anchors):
    writer.write(ENTRY)
    child = os.fork()
    if child == 0:
        try:
            writer.write(ENTRY)
        except NotWritten:
            writer.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert said(anchors) == [("begin", 0)]
    writer.write(ENTRY)


def test_who_leads_late_has_only_what_is_left_of_its_time(database, anchors):
    writer = Writer(database.connect, anchors, patience_seconds=1.0)
    writer.write(ENTRY)
    database.failures = ["slow and lost"]
    connected = database.connected
    with pytest.raises(NotWritten):
        writer.write(ENTRY)
    assert database.connected == connected  # no second try when the time is over
    writer.close()


def test_all_of_a_commit_that_fails_are_told(writer, database):
    database.is_free.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(writer.write, ENTRY)
        database.begun.wait(10)
        others = [pool.submit(writer.write, ENTRY) for _ in range(3)]
        while len(writer._waiting) < 3:
            time.sleep(0.001)
        database.failures = [None, "refused"]
        database.is_free.set()
        first.result(10)
        for written in others:
            with pytest.raises(NotWritten):
                written.result(10)
    assert len(database.records) == 1


def test_a_chain_is_anchored_when_it_begins_now_and_then_and_at_its_end(database, anchors):
    writer = Writer(database.connect, anchors, anchor_seconds=0.05)
    writer.write(ENTRY)
    until = time.monotonic() + 10
    while len(said(anchors)) < 2:  # also while nobody asks
        assert time.monotonic() < until
        time.sleep(0.01)
    writer.write(ENTRY)
    writer.close()
    assert said(anchors)[:2] == [("begin", 0), ("head", 1)]
    assert said(anchors)[-1] == ("end", 2)


def test_a_writer_that_wrote_nothing_anchors_nothing(database, anchors):
    Writer(database.connect, anchors).close()
    assert not anchors.exists()


def test_what_waits_at_the_end_is_still_written(database, anchors):
    writer = Writer(database.connect, anchors)
    database.is_free.clear()
    with ThreadPoolExecutor(4) as pool:
        written = [pool.submit(writer.write, ENTRY) for _ in range(3)]
        database.begun.wait(10)
        closing = pool.submit(writer.close)
        database.is_free.set()
        closing.result(10)
        done = [one.exception(10) for one in written]
    assert len(database.records) == done.count(None)
    assert said(anchors)[-1] == ("end", len(database.records))
