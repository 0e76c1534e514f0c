"""Whatever happens, no output names a patient but the answers to those who asked, and the payload that was asked for.

One run of the whole system at log level debug: sound and broken events of distinctive patients, every command, a
database that refuses their rows, a worker that crashes. Then everything that came out is searched.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from click.testing import CliRunner
from kafka import KafkaProducer
from sqlalchemy import make_url

from rxstore.cli.main import rxstore
from rxstore.embedded import LOOPBACK
from rxstore.tracebacks import trace
from schemas.identifiers import nhs_number_with_check_digit
from tests import examples
from tests.acceptance.conftest import System, eventually, installed
from tests.acceptance.test_faults import Publisher
from tests.conftest import PARTITIONS, new_database

# The first test waits for the whole run.
pytestmark = pytest.mark.timeout(600)

NUMBERS = [number for nine in range(999_123_450, 999_123_470) if (number := nhs_number_with_check_digit(str(nine)))]
SOUND, BROKEN, REFUSED, LATER, *_ = NUMBERS
SURGERY = {"ods": "Z99977", "name": "ZEBRAFISH SURGERY", "telecom": "0000 777001", "address": "1 QUOKKA LANE, ZZ99 7AA"}
MEDICINE = "Narwhalamol 10mg tablets"
SECRETS = (*NUMBERS, SURGERY["name"], SURGERY["telecom"], "QUOKKA LANE", MEDICINE)
WHY = "a test"


def created(publisher: Publisher, subject: str, number: str, **overrides: Any) -> dict[str, Any]:
    items = [dict(item, description=MEDICINE) for item in examples.created()["data"]["lineItems"]]
    made = publisher.event(examples.created, subject, 1, "1", nhs_number=number, **overrides)
    made["data"] |= {"lineItems": items, "prescribingOrganisation": SURGERY}
    return made


@dataclass
class Run:
    """What came out of the run, by the place where it came out."""

    system: System
    publisher: Publisher
    outputs: dict[str, str] = field(default_factory=dict)
    titles: set[str] = field(default_factory=set)
    cores: set[str] = field(default_factory=set)
    shown: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str, stdin: bytes = b"", as_process: bool = False) -> str:
        """Run a command to its end, whichever that is; keep what it says and return what it printed.

        In this process, which saves a second each time, but where it is to be a process of its own.
        """
        if as_process:
            done = self.system.start_to_end(arguments, stdin)
            stdout, stderr = done.stdout, done.stderr
        else:
            result = CliRunner().invoke(rxstore, arguments, input=stdin, env=self.system.environment)
            stdout, stderr = result.stdout_bytes, result.stderr_bytes
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                stderr += trace(result.exception).encode()  # as main() has it said
        self.keep(f"{' '.join(arguments)} (stderr)", stderr)
        if "--payload" not in arguments and arguments[0] != "query":
            self.keep(f"{' '.join(arguments)} (stdout)", stdout)
        return stdout.decode(errors="replace")

    def keep(self, place: str, said: bytes | str) -> None:
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        self.outputs[place] = self.outputs.get(place, "") + said

    def look_at_processes(self, process: subprocess.Popen[bytes]) -> None:
        parent = psutil.Process(process.pid)
        for one in (parent, *parent.children(recursive=True)):
            self.titles.add(" ".join([one.name(), *one.cmdline()]))
            self.cores.add((Path("/proc") / str(one.pid) / "limits").read_text().split("Max core file size")[1][:30])


@pytest.fixture(scope="module")
def run(postgres_url, migrated_template, broker, admin, tmp_path_factory) -> Iterator[Run]:
    topic = f"rxstore-test-{uuid.uuid4().hex}"
    admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    directory = tmp_path_factory.mktemp("nobody")
    (directory / "tmp").mkdir()
    with new_database(postgres_url, template=migrated_template) as url, _producer(broker) as producer:
        system = installed(url, broker, topic, directory)
        system.environment |= {"RXSTORE_LOG_LEVEL": "debug", "TMPDIR": str(directory / "tmp")}
        made = Run(system, Publisher(system, producer))
        subjects = _published(made)
        made.command("project", "--until-caught-up", "--workers", "1", as_process=True)
        _operated(made, subjects)
        _served(made, subjects)
        _refused_and_crashed(made)
        _rebuilt(made, subjects)
        for log in sorted(directory.glob("*.log")):
            made.keep(f"log {log.name}", log.read_bytes())
        for path in sorted(path for path in (directory / "tmp").rglob("*") if path.is_file()):
            made.keep(f"file {path.name}", path.read_bytes())
        yield made


def _producer(broker: str) -> closing[KafkaProducer]:
    return closing(KafkaProducer(bootstrap_servers=broker, max_request_size=4_000_000))


def _published(run: Run) -> list[str]:
    """Publish sound and broken events, by command and by hand; return the prescriptions."""
    publisher = run.publisher
    sound, broken, unreadable, unknown, misrouted, large, gap, early = (publisher.stream() for _ in range(8))
    lines = [
        created(publisher, sound, SOUND),
        created(publisher, broken, BROKEN, days_supply=0),
        {**created(publisher, broken, BROKEN), "type": "eps.prescription.nonsense.v1"},
    ]
    text = b"\n".join(json.dumps(line).encode() for line in lines)
    run.command("validate", "-", stdin=text + b"\n{" + BROKEN.encode())
    run.command("publish", "-", stdin=text + b"\n{" + BROKEN.encode())
    run.command("publish", "-", "--json", "--no-validate", stdin=text)
    publisher.send(b'{"nhsNumber": "%s", "name": "%s"' % (BROKEN.encode(), MEDICINE.encode()), unreadable)
    publisher.send(b"\xff" + BROKEN.encode(), unreadable)
    publisher.send({**created(publisher, unknown, BROKEN), "type": "eps.prescription.created.v9"}, unknown)
    publisher.send(created(publisher, misrouted, BROKEN), misrouted, shift=1)
    publisher.send({**created(publisher, large, BROKEN), "filler": BROKEN * 30_000}, large)
    publisher.send(created(publisher, gap, BROKEN), gap)
    publisher.send(publisher.event(examples.released, gap, 3, "3"), gap)
    publisher.send(publisher.event(examples.released, early, 2, "2"), early)
    publisher.send({**created(publisher, early, BROKEN), "subject": BROKEN}, early)
    publisher.send({**created(publisher, early, BROKEN), "source": BROKEN, "id": [SURGERY["name"]]}, early)
    return [sound, broken, unreadable, unknown, misrouted, large, gap, early]


def _operated(run: Run, subjects: list[str]) -> None:
    """Run what an operator runs."""
    for subject in subjects[:3]:
        run.command("explain", subject)
    listed = [json.loads(line) for line in run.command("quarantine", "list", "--json").splitlines()]
    by_reason = {one["reason"]: one for one in listed}
    assert by_reason.keys() >= {"contract_violation", "unreadable", "unknown_type", "misrouted", "too_large"}
    run.command("quarantine", "list")
    for one in by_reason.values():
        run.command("quarantine", "show", one["id"])
        run.shown[one["id"]] = run.command("quarantine", "show", one["id"], "--payload", "--by", "a.n.other")
    (violation, *_) = [one["id"] for one in listed if one["reason"] == "contract_violation" and one["stream_key"]]
    for action in (("retry",), ("skip", "--why", WHY)):
        run.command("quarantine", *action, violation, "--dry-run")
        run.command("quarantine", *action, violation, "--yes", "--wait", "0")
    run.command("project", "--until-caught-up", "--workers", "1", as_process=True)
    run.command("quarantine", "viewed")
    run.command("quarantine", "decisions")
    run.command("quarantine", "undo", "1")
    run.command("rebuild", "prescription", subjects[0])
    for command in (("status", "--json"), ("diagnose",), ("settings",)):
        run.command(*command)
    run.command("query", subjects[0])
    run.command("query", "--nhs-number", "-", "--earliest", "20200101", stdin=SOUND.encode())
    run.command("query", "--nhs-number", "-", "--earliest", SURGERY["name"], stdin=SOUND.encode())
    run.command("archive", "export", str(run.system.directory / "archive"))
    run.command("archive", "verify", str(run.system.directory / "archive"))


def _served(run: Run, subjects: list[str]) -> None:
    """Ask the API, rightly and wrongly; keep what is no answer about the patient who was asked for."""
    retrieve, search = f"/mm/prescriptions/{quote(subjects[0])}", f"/mm/prescriptions?nhsNumber={SOUND}"
    with run.system.serving() as ask:
        for path in (retrieve, f"{search}&earliestDate=20200101"):
            assert SOUND in ask(path).raw.decode()
        events = f"/rxstore/events?source={quote(examples.created()['source'])}"
        for path in (
            f"{search}&prescriptionStatus={quote(SURGERY['name'])}",
            f"/mm/prescriptions/{SOUND}",
            f"/nowhere/{SOUND}",
            f"{retrieve}/{SOUND}",
            f"/rxstore/prescriptions/{quote(subjects[0])}/history",
            f"/rxstore/prescriptions/{quote(subjects[1])}/history",
            f"/rxstore/prescriptions/{SOUND}/history?at={SOUND}",
            f"{events}&state=open",
            f"{events}&state={SOUND}",
            f"{events}&id={quote(subjects[0])}-1&subject={SOUND}",
            "/rxstore/status",
            "/health/ready",
        ):
            run.keep(path.replace(SOUND, "…"), ask(path).raw)
        run.keep("an ASID", ask(retrieve, Spine_From_Asid=SOUND).raw)
        run.keep("a method", ask(retrieve, method="POST").raw)
        (server,) = [one for one in psutil.Process().children() if "serve" in one.cmdline()]
        port = server.cmdline()[server.cmdline().index("--bind") + 1].rpartition(":")[2]
        with socket.create_connection((LOOPBACK, int(port)), timeout=10) as connection:
            connection.sendall(f"GET {retrieve}?{SOUND} NONSENSE/9\r\nX: {SOUND}\r\n\r\n".encode())
            run.keep("no HTTP", connection.makefile("rb").read())
        run.system.execute("REVOKE SELECT ON rxstore.prescription FROM rxstore_reader")
        for path in (retrieve, search, "/health/ready", f"{events}&state=open"):
            run.keep(f"{path.replace(SOUND, '…')} while the database refuses", ask(path).raw)
        run.system.execute("GRANT SELECT ON rxstore.prescription TO rxstore_reader")
        for one in (server, *server.children(recursive=True)):
            run.titles.add(" ".join([one.name(), *one.cmdline()]))
        run.keep("/metrics", _raw(int(port), "/metrics"))


def _raw(port: int, path: str) -> bytes:
    with socket.create_connection((LOOPBACK, port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return connection.makefile("rb").read()


def _refused_and_crashed(run: Run) -> None:
    """Let the database refuse the rows of a patient, which it quotes in its message, and let a worker crash."""
    subject, later = run.publisher.stream(), run.publisher.stream()
    run.system.execute(
        f"ALTER TABLE rx_g1.prescription ADD CONSTRAINT refusing CHECK (nhs_number IS DISTINCT FROM '{REFUSED}')"
    )
    run.publisher.send(created(run.publisher, subject, REFUSED), subject)
    with run.system.projecting(RXSTORE_LOG_LEVEL="debug", RXSTORE_METRICS_BIND="off") as projector:
        eventually(lambda: (1,) in run.system.query("SELECT count(*) FROM rx_g1.set_aside WHERE reason='fold_failed'"))
        run.look_at_processes(projector.process)
        (worker,) = [
            one for one in psutil.Process(projector.process.pid).children() if "spawn_main" in " ".join(one.cmdline())
        ]
        os.kill(worker.pid, signal.SIGABRT)
        run.publisher.send(created(run.publisher, later, LATER), later)
        question = "SELECT count(*) FROM rx_g1.prescription WHERE nhs_number = %s"
        eventually(lambda: run.system.query(question, LATER) == [(1,)])
        run.look_at_processes(projector.process)
    run.command("quarantine", "list", "--reason", "fold_failed", "--json")
    run.command("explain", subject)
    run.system.execute(
        "ALTER TABLE rx_g1.prescription DROP CONSTRAINT refusing, "
        f"ADD CONSTRAINT refusing CHECK (nhs_number IS DISTINCT FROM '{LATER}') NOT VALID"
    )
    # A defect: the database refuses what a command writes, and quotes it.
    run.command("rebuild", "prescription", later, as_process=True)
    run.system.execute("ALTER TABLE rx_g1.prescription DROP CONSTRAINT refusing")
    url = run.system.environment["RXSTORE_DATABASE_URL"]
    run.system.environment["RXSTORE_DATABASE_URL"] = url.rpartition("/")[0] + "/none"
    run.command("project", as_process=True)
    run.command("rebuild", "prescription", later)
    run.system.environment["RXSTORE_DATABASE_URL"] = url


def _rebuilt(run: Run, subjects: list[str]) -> None:
    """Build a generation beside, compare, and switch."""
    run.command("rebuild", "plan")
    run.command("rebuild", "stage", "--workers", "1", as_process=True)
    run.command("rebuild", "verify")
    run.command("rebuild", "report", "g2")
    run.command("rebuild", "promote")
    run.command("rebuild", "rollback")
    run.command("rebuild", "abort")


def names(said: str) -> list[str]:
    return [secret for secret in SECRETS if secret in said]


def test_the_run_came_to_what_it_was_to_come_to(run):
    places = " ".join(run.outputs)
    for place in ("rebuild verify", "while the database refuses", "diagnose", "log project", "log serve", "/metrics"):
        assert place in places
    assert "fold_failed" in run.outputs["quarantine list --reason fold_failed --json (stdout)"]
    assert "CheckViolation" in "".join(said for place, said in run.outputs.items() if "rebuild prescription" in place)
    assert any("ended with exit code -6" in said for said in run.outputs.values())


def test_nothing_names_a_patient_but_answers_and_payloads(run):
    assert {place: names(said) for place, said in run.outputs.items() if names(said)} == {}


def test_no_process_title_names_a_patient(run):
    assert len(run.titles) > 2
    assert [title for title in run.titles if names(title)] == []


def test_a_process_that_crashes_leaves_no_core(run):
    assert {core.split()[0] for core in run.cores} == {"0"}


def test_a_payload_is_shown_to_who_asks_for_it(run):
    assert any(BROKEN in payload for payload in run.shown.values())


def test_who_looked_at_a_payload_is_kept(run):
    place = "topic || ':' || partition_number || ':' || record_offset"
    viewed = run.system.query(f"SELECT {place}, viewed_by, login FROM rxstore.payload_view ORDER BY id")
    ((login,),) = run.system.query("SELECT session_user")
    assert viewed == [(id_, "a.n.other", login) for id_, payload in run.shown.items() if payload]


READABLE = "topic, partition_number, record_offset, stream_key, stands_at, state, reason, errors, since, event_source"


@pytest.mark.parametrize("forbidden", ["rx_g1.set_aside", "rxstore.payload_view"])
def test_a_payload_is_not_shown_to_who_may_not_read_it_or_whose_look_cannot_be_kept(run, forbidden):
    (id_, *_) = run.shown
    name = f"looker_{uuid.uuid4().hex[:8]}"
    run.system.execute(
        f"CREATE ROLE {name} LOGIN PASSWORD 'looks'; GRANT USAGE ON SCHEMA rxstore, rx_g1 TO {name}; "
        f"GRANT SELECT ON ALL TABLES IN SCHEMA rxstore, rx_g1 TO {name}; "
        f"GRANT INSERT ON rxstore.payload_view TO {name}; REVOKE ALL ON {forbidden} FROM {name}"
    )
    if forbidden == "rx_g1.set_aside":
        run.system.execute(f"GRANT SELECT ({READABLE}, event_type) ON {forbidden} TO {name}")
    url = make_url(run.system.environment["RXSTORE_DATABASE_URL"]).set(username=name, password="looks")
    looker = {"RXSTORE_DATABASE_URL": url.render_as_string(hide_password=False)}
    try:
        assert run.system.run("quarantine", "show", id_, **looker).returncode == 0
        done = run.system.run("quarantine", "show", id_, "--payload", **looker)
    finally:
        run.system.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    assert (done.returncode, done.stdout) == (3, "")
    assert "permission denied" in done.stderr


def test_nobody_looks_where_nothing_was_set_aside(run):
    done = run.system.run("quarantine", "show", "nothing:0:1", "--payload")
    assert (done.returncode, done.stdout) == (2, "")
    assert run.system.query("SELECT count(*) FROM rxstore.payload_view WHERE topic = 'nothing'") == [(0,)]
