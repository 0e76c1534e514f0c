"""The audit trail in a real PostgreSQL: who may do what with it, and what a superuser cannot do without it showing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from falcon import testing
from psycopg import sql
from sqlalchemy import create_engine, make_url, text

from projector import audit_months
from query_api import audit, trail, wsgi
from query_api.app import create_app
from query_api.audit import Cover, Entry, Record
from query_api.database import read_only_engine
from query_api.settings import ApiSettings
from query_api.trail import Audit, AuditSettings, NotWritten, Writer
from rxstore import auditing
from rxstore.cli.main import rxstore
from rxstore.embedded import free_port
from tests.unit.test_audit import AT, ENTRY, KEYS

READER = "rxstore_reader"
ASID, OTHER = "200000000946", "200000000947"
NHS = "9912003489"
COVER = Cover(hash_key=KEYS["hash"], public_key=KEYS["public"])
SEARCHED = f"/mm/prescriptions?nhsNumber={NHS}"


class Trail:
    """A database with an audit trail, the files that go with it, and the commands on both."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.anchors = directory / "anchors.ndjson"
        self.files = {kind: directory / f"{kind}.key" for kind in KEYS}
        for kind, path in self.files.items():
            path.write_text(audit.key_text(kind, KEYS[kind]))

    @contextmanager
    def writer(self, **arguments) -> Iterator[Writer]:
        made = Writer(trail.connecting(self.url, role=READER), self.anchors, **arguments)
        try:
            yield made
        finally:
            made.close()

    def wrote(self, *entries: Entry, **arguments) -> list[Record]:
        """Write entries in a chain of their own, and return the records."""
        with self.writer(**arguments) as writer:
            for entry in entries:
                writer.write(entry)
            chain = writer._chain.id
        return [record for record in self.records() if record.chain == chain]

    def records(self) -> list[Record]:
        engine = create_engine(make_url(self.url).set(drivername="postgresql+psycopg"))
        try:
            return list(auditing.search(engine, auditing.Sought()))
        finally:
            engine.dispose()

    def execute(self, statement: str, *parameters: object) -> list[tuple]:
        """Do something as a superuser."""
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def insert(self, record: Record) -> None:
        """Put a record there as a superuser."""
        columns = ", ".join(record._fields)
        self.execute(f"INSERT INTO rxstore.audit ({columns}) VALUES ({', '.join(['%s'] * len(record))})", *record)

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> Result:
        given = {
            "RXSTORE_DATABASE_URL": self.url,
            "RXSTORE_AUDIT_HASH_KEY_FILE": str(self.files["hash"]),
            "RXSTORE_AUDIT_ANCHOR_FILE": str(self.anchors),
        }
        return CliRunner().invoke(rxstore, ["audit", *arguments], input=stdin, env=given | environment)

    def found(self, *arguments: str, **given) -> list[dict]:
        done = self.run("search", "--json", *arguments, **given)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    def verify(self, *, anchors: bool = True) -> Result:
        return self.run("verify", *(["--anchors", str(self.anchors)] if anchors else []))


@pytest.fixture
def kept(migrated_database_url: str, tmp_path: Path) -> Trail:
    return Trail(migrated_database_url, tmp_path)


def entries(count: int) -> list[Entry]:
    return [ENTRY._replace(duration_us=number) for number in range(count)]


# written and found ----------------------------------------------------------------------------------------------------


def test_what_was_written_can_be_found(kept):
    question = COVER.question(f"GET {SEARCHED}")
    first = ENTRY._replace(patient=COVER.patient(NHS), prescription=None, shown=["A" * 19], question=question)
    (one,) = kept.wrote(first)
    (other,) = kept.wrote(ENTRY._replace(asid=OTHER, shown=[], refused_by="it is revoked", tracker_code="52"))

    def places(*arguments, **given):
        return [(record["chain"], record["sequence"]) for record in kept.found(*arguments, **given)]

    here, there = [(str(one.chain), 1)], [(str(other.chain), 1)]
    assert places() == here + there
    assert places("--limit", "1") == here
    assert places("--asid", OTHER) == there
    assert places("--nhs-number", NHS) == here
    assert places("--nhs-number", "-", stdin=f" {NHS[:3]} {NHS[3:6]} {NHS[6:]}\n") == here
    assert places("--nhs-number", "9990129444") == []
    assert places("--prescription", ENTRY.prescription) == there
    assert places("--since", other.at.isoformat()) == there
    assert places("--until", other.at.isoformat()) == here
    assert places("--asid", OTHER, "--nhs-number", NHS) == []


def test_a_prescription_is_found_where_it_was_shown(kept):
    kept.wrote(ENTRY._replace(prescription=None), ENTRY._replace(prescription=None, shown=[]))
    (record,) = kept.found("--prescription", "3af2cb-c86002-0000b")
    assert (record["prescription"], record["shown"]) == (None, ["3AF2CB-C86002-0000B"])


def test_only_the_private_key_shows_what_was_asked(kept):
    kept.wrote(ENTRY._replace(question=COVER.question(f"GET {SEARCHED}"), patient=COVER.patient(NHS)))
    for form in ((), ("--json",)):
        assert NHS not in kept.run("search", *form).output
        opened = kept.run("search", *form, "--unseal", str(kept.files["private"]))
        assert f"GET {SEARCHED}" in opened.stdout
    (record,) = kept.found("--unseal", str(kept.files["private"]))
    assert record["question"] == f"GET {SEARCHED}"
    refused = kept.run("search", "--unseal", str(kept.files["public"]))
    assert (refused.exit_code, "not a private key" in refused.stderr) == (2, True)


def test_a_question_that_was_sealed_for_another_key_is_said_to_be(kept):
    kept.wrote(ENTRY._replace(question=b"sealed for somebody else, and too short for it"))
    (record,) = kept.found("--unseal", str(kept.files["private"]))
    assert record["question"] is None
    assert "sealed for another key" in kept.run("search", "--unseal", str(kept.files["private"])).stdout


def test_records_that_wait_together_share_a_commit(kept):
    with kept.writer() as writer:
        writer.write(ENTRY)
        with psycopg.connect(kept.url) as blocker, ThreadPoolExecutor(8) as pool:
            blocker.execute("LOCK TABLE rxstore.audit IN SHARE MODE")
            written = [pool.submit(writer.write, ENTRY) for _ in range(8)]
            while not waits_for_lock(kept):
                time.sleep(0.01)
            time.sleep(0.2)  # until the others wait behind it
            blocker.rollback()
            for done in written:
                done.result()
    ((requests, commits),) = kept.execute("SELECT count(*), count(DISTINCT xmin::text) FROM rxstore.audit")
    assert requests == 9
    assert commits < requests
    assert kept.verify().exit_code == 0


def waits_for_lock(kept: Trail) -> bool:
    return bool(kept.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


def test_many_at_once_leave_one_record_each_in_one_chain(kept):
    with kept.writer() as writer, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(writer.write, entry) for entry in entries(200)]:
            done.result()
    records = kept.records()
    assert sorted(record.duration_us for record in records) == list(range(200))
    assert sorted(record.sequence for record in records) == list(range(1, 201))
    assert kept.verify().exit_code == 0


# verifying ------------------------------------------------------------------------------------------------------------


def faults(done: Result) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("chain ")]


def test_a_trail_that_nobody_touched_is_whole(kept):
    kept.wrote(*entries(5))
    kept.wrote(*entries(3))
    done = kept.verify()
    assert (done.exit_code, done.stdout) == (0, "8 records in 2 chains: all as they were written\n")
    assert json.loads(kept.run("verify", "--json").stdout) == {"records": 8, "chains": 2, "faults": []}


CHANGES = {
    "at": "at + interval '1 microsecond'",
    "duration_us": "duration_us + 1",
    "asid": "'200000000999'",
    "certificate": "NULL",
    "user_id": "'somebody'",
    "role_profile_id": "'something'",
    "trace_id": "''",
    "interaction": "'rxstore_status'",
    "patient": r"'\x00'",
    "prescription": "NULL",
    "question": r"question || '\x00'",
    "http_status": "201",
    "tracker_code": "NULL",
    "shown": "'{}'",
    "refused_by": "'nobody'",
    "previous_hash": r"'\x00'",
    "hash": r"'\x00'",
}


def test_a_record_that_a_superuser_changed_is_named_whatever_of_it_was_changed(kept):
    chains = {column: kept.wrote(*entries(5))[0].chain for column in CHANGES}
    for column, chain in chains.items():
        change = f"UPDATE rxstore.audit SET {column} = {CHANGES[column]} WHERE sequence = 3 AND chain = %s"
        kept.execute(change, chain)
    done = kept.verify(anchors=False)
    assert done.exit_code == 1
    assert [column for column, chain in chains.items() if f"chain {chain}, record 3:" not in done.stdout] == []


def test_every_column_is_tried():
    assert set(CHANGES) == set(Record._fields) - {"chain", "sequence"}


def test_a_record_that_a_superuser_changed_together_with_its_hash_is_found(kept):
    records = kept.wrote(*entries(5))
    changed = records[2]._replace(asid=OTHER)
    kept.execute("UPDATE rxstore.audit SET asid = %s, hash = %s WHERE sequence = 3", OTHER, audit.hash_of(changed))
    (fault,) = faults(kept.verify(anchors=False))
    assert "record 4: does not follow on record 3" in fault


def test_a_chain_that_a_superuser_made_anew_is_found_by_its_anchor(kept):
    records = kept.wrote(*entries(5))
    kept.execute("DELETE FROM rxstore.audit")
    head = audit.BEGIN
    for record in records:
        entry = Entry(**{name: getattr(record, name) for name in Entry._fields} | {"asid": OTHER})
        forged = audit.chained(record.chain, head, record.at, entry)
        head = audit.Head(forged.sequence, forged.hash)
        kept.insert(forged)
    assert kept.verify(anchors=False).exit_code == 0
    done = kept.verify()
    assert done.exit_code == 1
    assert "record 5: is not the one that is anchored" in done.stdout


@pytest.mark.parametrize(("removed", "named"), [("sequence = 1", 1), ("sequence IN (3, 4)", 3)])
def test_a_record_that_a_superuser_removed_is_named(kept, removed, named):
    records = kept.wrote(*entries(6))
    kept.execute(f"DELETE FROM rxstore.audit WHERE {removed}")
    done = kept.verify(anchors=False)
    assert done.exit_code == 1
    assert f"chain {records[0].chain}, record {named}:" in done.stdout
    assert "removed" in done.stdout


@pytest.mark.parametrize("how", ["DELETE FROM rxstore.audit WHERE sequence > 4", "TRUNCATE rxstore.audit"])
def test_an_end_that_a_superuser_cut_off_is_found_by_its_anchor(kept, how):
    records = kept.wrote(*entries(6))
    kept.execute(how)
    done = kept.verify()
    assert done.exit_code == 1
    assert f"chain {records[0].chain}, record {1 if 'TRUNCATE' in how else 5}" in done.stdout


@pytest.mark.parametrize("sequence", [3, 7])
def test_a_record_that_a_superuser_inserted_is_named(kept, sequence):
    records = kept.wrote(*entries(6))
    before = records[sequence - 2]
    forged = audit.chained(
        before.chain, audit.Head(before.sequence, before.hash), before.at + timedelta(microseconds=1), ENTRY
    )
    kept.insert(forged)
    done = kept.verify()
    assert done.exit_code == 1
    assert f"chain {before.chain}, record {sequence}:" in done.stdout


def test_a_chain_that_a_superuser_made_up_is_found(kept):
    kept.wrote(*entries(2))
    forged = audit.chained(audit.UUID(int=1), audit.BEGIN, datetime.now(UTC), ENTRY)
    kept.insert(forged)
    done = kept.verify()
    assert done.exit_code == 1
    assert f"chain {forged.chain}, record 1: is of a chain without an anchor" in done.stdout


def test_verify_may_run_while_servers_write(kept):
    with kept.writer(anchor_seconds=0.01) as writer, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [writer.write(entry) for entry in entries(300)])
        while not writing.done():
            assert kept.verify().exit_code == 0
        writing.result()
    assert kept.anchors.read_bytes().count(b"\n") > 2


# rights ---------------------------------------------------------------------------------------------------------------


@contextmanager
def acting_as(kept: Trail, role: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(kept.url, options=f"-c role={role}", autocommit=True) as connection:
        yield connection


FORBIDDEN = [
    "SELECT count(*) FROM rxstore.audit",
    "SELECT question FROM rxstore.audit",
    "UPDATE rxstore.audit SET asid = NULL",
    "DELETE FROM rxstore.audit",
    "TRUNCATE rxstore.audit",
    "DROP TABLE rxstore.audit",
    "ALTER TABLE rxstore.audit DISABLE TRIGGER ALL",
    "SELECT * FROM rxstore_audit.rest",
    "DELETE FROM rxstore_audit.rest",
    "INSERT INTO rxstore_audit.rest SELECT * FROM rxstore.audit",
    "SELECT * FROM rxstore.audit_retired",
    "DELETE FROM rxstore.audit_retired",
    "INSERT INTO rxstore.audit_retired (chain, sequence, hash) VALUES (gen_random_uuid(), 1, '')",
    "CREATE TABLE rxstore_audit.mine (a int)",
]


def allowed(connection: psycopg.Connection) -> list[str]:
    """Which of them a role may do."""
    done = []
    for statement in FORBIDDEN:
        with suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
            done.append(statement)
    return done


def test_the_role_of_the_api_may_add_records_and_nothing_else(kept):
    kept.wrote(ENTRY)
    with acting_as(kept, READER) as connection:
        assert allowed(connection) == []
    assert len(kept.records()) == 1


def test_the_role_of_auditors_may_read_and_nothing_else(kept):
    kept.wrote(ENTRY)
    with acting_as(kept, "rxstore_audit") as connection:
        reading = [f"SELECT {what} FROM rxstore.audit" for what in ("count(*)", "question")]
        assert allowed(connection) == [*reading, "SELECT * FROM rxstore.audit_retired"]
    assert len(kept.records()) == 1


def test_an_auditor_searches_and_verifies_and_another_is_refused_in_one_sentence(kept):
    kept.wrote(ENTRY)

    # The commands set options of their own, so a login of its own is what an auditor really has.
    name = f"auditor_{time.monotonic_ns()}"
    for role, expected in (("rxstore_audit", 0), (READER, 3)):
        login = sql.Identifier(name)
        with psycopg.connect(kept.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' IN ROLE {}").format(login, sql.Identifier(role))
            )
        try:
            url = make_url(kept.url).set(username=name, password="x").render_as_string(hide_password=False)
            for command in ("search", "verify"):
                done = kept.run(command, RXSTORE_DATABASE_URL=url)
                assert done.exit_code == expected, done.output
                assert done.stderr.count("\n") <= 1
        finally:
            with psycopg.connect(kept.url, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP ROLE {}").format(login))


# the API --------------------------------------------------------------------------------------------------------------


@contextmanager
def api_of(kept: Trail) -> Iterator[tuple[Callable[[str], testing.Result], Writer]]:
    engine = read_only_engine(kept.url, role=READER)
    with kept.writer() as writer:
        app = create_app(engine, settings=ApiSettings(), audit=Audit(writer, COVER))
        client = testing.TestClient(app, headers={"Spine-From-Asid": ASID})
        yield client.simulate_get, writer
    engine.dispose()


def test_every_request_leaves_a_record_before_its_answer(kept):
    with api_of(kept) as (ask, _):
        for number, path in enumerate(
            [SEARCHED, "/mm/prescriptions/x", "/rxstore/status", "/rxstore/nothing"], start=1
        ):
            ask(path)
            assert len(kept.records()) == number
    assert [record.tracker_code for record in kept.records()] == ["1", "51", None, None]
    assert kept.verify().exit_code == 0


def test_the_api_answers_code_5_while_records_cannot_be_written_and_goes_on_afterwards(kept):
    with api_of(kept) as (ask, _):
        assert ask(SEARCHED).json["statusCode"] == "1"
        kept.execute("REVOKE INSERT ON rxstore.audit FROM rxstore_reader")
        assert ask(SEARCHED).json["statusCode"] == "5"
        assert ask("/rxstore/status").status_code == 503
        assert ask("/health/live").status_code == 200
        kept.execute("GRANT INSERT ON rxstore.audit TO rxstore_reader")
        assert ask(SEARCHED).json["statusCode"] == "1"
    assert len(kept.records()) == 2
    assert kept.verify().exit_code == 0


def test_a_record_that_nobody_can_write_in_time_is_given_up(kept):
    with kept.writer(patience_seconds=0.2) as writer:
        writer.write(ENTRY)
        with psycopg.connect(kept.url) as blocker:
            blocker.execute("LOCK TABLE rxstore.audit IN SHARE MODE")
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(NotWritten):
                    writer.write(ENTRY)
                assert time.monotonic() - began < trail.STATEMENT_TIMEOUT_MS / 1000
        writer.write(ENTRY._replace(asid=OTHER))
    assert [record.sequence for record in kept.records() if record.asid == OTHER] == [1]
    assert kept.verify().exit_code == 0


def test_a_commit_larger_than_a_socket_holds_is_written_whole(kept):
    large = ENTRY._replace(shown=[f"{number:06X}-A00000-{number:05X}" for number in range(10_000)])
    with kept.writer() as writer, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(writer.write, large) for _ in range(24)]:
            done.result()
    assert [record.shown for record in kept.records()] == [large.shown] * 24
    assert kept.verify().exit_code == 0


def test_a_restart_of_the_database_costs_no_answer_and_no_chain(kept):
    with kept.writer() as writer:
        writer.write(ENTRY)
        kept.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rxstore-audit'")
        time.sleep(0.1)
        writer.write(ENTRY)
    assert [record.sequence for record in kept.records()] == [1, 2]
    assert kept.verify().exit_code == 0


def test_a_clock_that_is_set_back_does_not_turn_a_chain_back(kept):
    now = datetime.now(UTC)
    times = iter([now, now, now - timedelta(hours=1), now + timedelta(seconds=1), now, now])
    records = kept.wrote(*entries(3), clock=lambda: next(times, now))
    assert [record.at for record in records] == sorted(record.at for record in records)


def test_after_its_end_a_writer_writes_no_more(kept):
    with kept.writer() as writer:
        writer.write(ENTRY)
    with pytest.raises(NotWritten):
        writer.write(ENTRY)


def test_an_anchor_file_that_cannot_be_written_stops_nobody_and_is_logged(kept, caplog):
    kept.anchors.mkdir()
    assert len(kept.wrote(ENTRY)) == 1
    assert any(getattr(line, "action", "") == "audit_anchor_failed" for line in caplog.records)


# servers --------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(kept: Trail) -> Iterator[tuple[subprocess.Popen, str]]:
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "RXSTORE_DATABASE_URL": kept.url,
        "RXSTORE_AUDIT": "on",
        "RXSTORE_AUDIT_ANCHOR_FILE": str(kept.anchors),
        "RXSTORE_AUDIT_HASH_KEY_FILE": str(kept.files["hash"]),
        "RXSTORE_AUDIT_PUBLIC_KEY_FILE": str(kept.files["public"]),
    }
    command = [sys.executable, "-m", "rxstore.cli.main", "serve", "--insecure", "--bind", address, "--workers", "2"]
    process = subprocess.Popen(command, env=environment, cwd=kept.anchors.parent, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://{address}/health/live", timeout=5):
                break
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        yield process, address
    finally:
        process.kill()
        process.wait(30)


def ask_server(address: str, path: str) -> bytes:
    request = urllib.request.Request(f"http://{address}{path}", headers={"Spine-From-Asid": ASID})
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - our own address
        return response.read()


def test_a_server_that_is_stopped_anchors_the_ends_of_its_chains(kept):
    with serving(kept) as (process, address):
        for _ in range(10):
            assert b'"statusCode":"1"' in ask_server(address, SEARCHED)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert len(kept.records()) == 10
    ends = [json.loads(line) for line in kept.anchors.read_text().splitlines()]
    assert sum(one["sequence"] for one in ends if one["kind"] == "end") == 10
    assert kept.verify().exit_code == 0


def test_what_a_server_wrote_before_it_was_killed_is_whole(kept):
    with serving(kept) as (_, address):
        for _ in range(10):
            ask_server(address, SEARCHED)
    assert len(kept.records()) == 10
    assert kept.verify().exit_code == 0


def test_a_server_does_not_start_without_what_the_trail_needs(kept):
    given = {"RXSTORE_DATABASE_URL": kept.url, "RXSTORE_AUDIT": "on"}
    command = ["serve", "--insecure", "--bind", "127.0.0.1:1"]
    without = CliRunner().invoke(rxstore, command, env=given)
    assert (without.exit_code, "RXSTORE_AUDIT_PUBLIC_KEY_FILE is not set" in without.stderr) == (2, True)
    files = {"PUBLIC_KEY": kept.files["private"], "HASH_KEY": kept.files["hash"], "ANCHOR": kept.anchors}
    given |= {f"RXSTORE_AUDIT_{name}_FILE": str(path) for name, path in files.items()}
    wrong = CliRunner().invoke(rxstore, command, env=given)
    assert (wrong.exit_code, "not a public key" in wrong.stderr) == (2, True)


def test_a_wsgi_server_of_ones_own_keeps_the_trail_too(kept, monkeypatch):
    engine, writers = read_only_engine(kept.url, role=READER), []

    def started(settings, url):
        made, writer = start(settings, url)
        writers.append(writer)
        return made, writer

    start = trail.start
    monkeypatch.setattr(trail, "start", started)
    monkeypatch.setattr(wsgi, "read_only_engine", lambda url: engine)
    environment = {"RXSTORE_DATABASE_URL": kept.url, "RXSTORE_AUDIT": "on"}
    with pytest.raises(wsgi.InvalidSetting, match="RXSTORE_AUDIT_PUBLIC_KEY_FILE"):
        wsgi.application(environment)
    files = AuditSettings(kept.files["public"], kept.files["hash"], kept.anchors)
    environment |= {
        "RXSTORE_AUDIT_PUBLIC_KEY_FILE": str(files.public_key_file),
        "RXSTORE_AUDIT_HASH_KEY_FILE": str(files.hash_key_file),
        "RXSTORE_AUDIT_ANCHOR_FILE": str(files.anchor_file),
    }
    testing.TestClient(wsgi.application(environment), headers={"Spine-From-Asid": ASID}).simulate_get(SEARCHED)
    writers[0].close()
    engine.dispose()
    assert len(kept.records()) == 1


# retention ------------------------------------------------------------------------------------------------------------


def from_then_on(*instants: datetime) -> Callable[[], datetime]:
    """A clock that tells these, and then the last one."""
    left = list(instants)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def over_months(kept: Trail) -> list[Record]:
    """A chain with two records in January 2026 and two in March; the first instant is that of the anchor."""
    january, march = datetime(2026, 1, 31, 23, 59, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    return kept.wrote(*entries(4), clock=from_then_on(january, january, january, march, march))


def months(kept: Trail) -> list[str]:
    rows = kept.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'rxstore_audit' ORDER BY tablename")
    return [name for (name,) in rows]


def test_the_coming_months_are_made_ahead(kept):
    now = datetime.now(UTC).date().replace(day=1)
    made = [name for name in months(kept) if name != "rest"]
    assert made[0] == f"m{now:%Y_%m}"
    assert len(made) == audit_months.AHEAD + 1


def test_records_of_a_month_that_nobody_made_are_moved_when_it_is_made(kept):
    over_months(kept)
    assert kept.execute("SELECT count(*) FROM rxstore_audit.rest") == [(4,)]
    engine = create_engine(make_url(kept.url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        made = audit_months.make_ahead(connection, datetime.now(UTC))
        assert made[0] == date(2026, 1, 1)
        assert audit_months.make_ahead(connection, datetime.now(UTC)) == []
        assert connection.execute(text("SELECT count(*) FROM rxstore_audit.m2026_01")).scalar() == 2
    engine.dispose()
    assert kept.execute("SELECT count(*) FROM rxstore_audit.rest") == [(0,)]
    assert kept.verify().exit_code == 0


def test_a_month_that_is_retired_is_gone_and_the_chain_still_holds(kept):
    over_months(kept)
    untouched = kept.run("retire", "--before", "2026-01-31")
    assert (untouched.exit_code, "nothing was retired" in untouched.stdout) == (0, True)
    done = kept.run("retire", "--before", "2026-02-15")
    assert (done.exit_code, done.stdout) == (0, "retired 2026-01\n")
    assert [record.sequence for record in kept.records()] == [3, 4]
    assert "m2026_01" not in months(kept)
    assert kept.verify().exit_code == 0
    assert kept.verify(anchors=False).exit_code == 0
    kept.execute("DELETE FROM rxstore.audit WHERE sequence = 3")
    assert "record 3: is missing" in kept.verify().stdout


def test_months_are_retired_one_after_the_other(kept):
    over_months(kept)
    assert kept.run("retire", "--before", "2026-02-15").exit_code == 0
    done = kept.run("retire", "--before", "2026-04-01")
    assert (done.exit_code, done.stdout.splitlines()) == (0, ["retired 2026-02", "retired 2026-03"])
    assert kept.records() == []
    assert kept.verify().exit_code == 0


def test_a_month_that_was_dropped_by_hand_is_found_even_where_its_last_hashes_were_kept(kept):
    records = over_months(kept)
    last = records[1]
    kept.execute("DELETE FROM rxstore.audit WHERE at < '2026-02-01'")
    assert "record 1" in kept.verify().stdout
    kept.execute("INSERT INTO rxstore.audit_retired VALUES (%s, %s, %s)", last.chain, last.sequence, last.hash)
    assert kept.verify(anchors=False).exit_code == 0
    done = kept.verify()
    assert (done.exit_code, "was not retired by" in done.stdout) == (1, True)


def test_a_month_with_a_fault_is_retired_only_on_demand(kept):
    over_months(kept)
    kept.execute("UPDATE rxstore.audit SET asid = %s WHERE sequence = 2", OTHER)
    refused = kept.run("retire", "--before", "2026-02-01")
    assert refused.exit_code == 4
    assert "record 2: was changed" in refused.stderr
    assert len(kept.records()) == 4
    assert kept.run("retire", "--before", "2026-02-01", "--unverified").exit_code == 0
    assert len(kept.records()) == 2


def test_instants_come_back_as_they_were_hashed(kept):
    (record,) = kept.wrote(ENTRY, clock=from_then_on(AT))
    assert (record.at, audit.hash_of(record)) == (AT, record.hash)
