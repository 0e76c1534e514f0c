"""Each command as a login that is a member of its role and of nothing else: it does all that it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest

from projector.roles import OPERATE, PROJECT, READER
from tests import examples
from tests.acceptance.conftest import ASID, System, eventually
from tests.acceptance.test_faults import Publisher, publisher  # noqa: F401 - a fixture
from tests.integration.test_roles import NOBODY, login

WHY = "the publisher sent it by mistake"


@contextmanager
def member(system: System, role: str) -> Iterator[System]:
    """The same installation, for somebody who has only this role."""
    with login(system.environment["RXSTORE_DATABASE_URL"], role) as url:
        yield System({**system.environment, "RXSTORE_DATABASE_URL": url}, system.directory)


@pytest.fixture
def blocked(system: System, publisher: Publisher) -> str:  # noqa: F811 - the fixture
    """A prescription with a claim that cannot be and what waits behind it, folded by a projector's login."""
    subject = publisher.stream()
    publisher.create(subject)
    publisher.send(publisher.event(examples.released, subject, 2, "2"), subject)
    publisher.send(publisher.event(examples.claimed, subject, 3, "3"), subject)
    publisher.send(publisher.event(examples.dispensed, subject, 4, "4"), subject)
    with member(system, PROJECT) as projector:
        projector.project()
    return subject


def test_a_projector_folds_sets_aside_and_removes_what_was_deleted(system, blocked, publisher):  # noqa: F811
    assert [record["reason"] for record in system.quarantine() if record["blocks"]] == ["illegal_transition"]
    another = publisher.stream()
    publisher.create(another)
    publisher.send(publisher.event(examples.deleted, another, 2, "2"), another)
    with member(system, PROJECT) as projector:
        projector.project()
    assert sorted(system.query("SELECT kind FROM rx_g1.prescription")) == [("created",), ("deleted",)]


def test_a_projector_builds_a_generation_that_the_owner_stages_and_lets_one_go_at_its_time(system, blocked):
    with member(system, PROJECT) as projector, projector.projecting() as running:
        system.do("rebuild", "stage", "--throttle", "auto")
        waited = json.loads(system.do("rebuild", "wait", "--max-lag", "0", "--timeout", "50", "--json"))
        assert waited["state"] == "ready"
        system.do("rebuild", "verify")
        system.do("rebuild", "promote", "--retire-after", "1s")
        state = "SELECT state FROM rxstore.generation WHERE name = 'g1'"
        eventually(lambda: system.query(state) == [("retired",)])
        eventually(lambda: running.said("may not drop the tables", "retired"))
        assert running.is_running()
    system.do("rebuild", "retire")
    assert system.query("SELECT to_regnamespace('rx_g1')") == [(None,)]


def test_a_server_answers_every_question(system, blocked):
    system.do("clients", "add", ASID, "--contact", "x", *(f"--interaction={name}" for name in ALL_INTERACTIONS))
    with member(system, READER) as reader, reader.serving(RXSTORE_CLIENTS="registered") as ask:
        path = f"/mm/prescriptions/{quote(blocked)}"
        eventually(lambda: ask(path).body["statusCode"] == "4", seconds=10)
        assert ask("/mm/prescriptions?nhsNumber=9990000018").body["statusCode"] in {"0", "1"}
        assert ask(f"/rxstore/prescriptions/{quote(blocked)}/history").status == 200
        assert ask("/rxstore/events?source=x").status in {200, 400}
        assert ask("/rxstore/status").status == 200
        assert ask("/health/ready").status == 200


ALL_INTERACTIONS = (
    "ExternalPrescriptionSearch_1_0",
    "ExternalPrescriptionQuery_1_0",
    "rxstore_history",
    "rxstore_events",
    "rxstore_status",
)


def test_an_operator_looks_decides_and_takes_it_back(system, blocked):
    with member(system, OPERATE) as operator, member(system, PROJECT) as projector, projector.projecting():
        eventually(lambda: operator.status()["verdict"] == "attention")
        (record,) = [one for one in operator.quarantine() if one["blocks"]]
        operator.do("quarantine", "show", record["id"])
        operator.do("quarantine", "skip", record["id"], "--why", WHY, "--dry-run")
        operator.do("quarantine", "skip", record["id"], "--why", WHY, "--yes", "--wait", "30")
        assert operator.quarantine() == []
        (decision,) = map(json.loads, operator.do("quarantine", "decisions", "--json").splitlines())
        operator.do("quarantine", "undo", str(decision["decision"]))
        assert [one["id"] for one in operator.quarantine() if one["blocks"]] == [record["id"]]
        assert operator.run("quarantine", "retry", record["id"], "--yes", "--wait", "30").returncode == 1


def test_an_operator_moves_decisions_to_an_installation_without_any(system, blocked):
    with member(system, OPERATE) as operator, member(system, PROJECT) as projector:
        (record,) = [one for one in operator.quarantine() if one["blocks"]]
        with projector.projecting():
            operator.do("quarantine", "skip", record["id"], "--why", WHY, "--yes", "--wait", "50")
        exported = str(system.directory / "decisions.ndjson")
        operator.do("quarantine", "decisions", "--export", exported)
        system.execute("DELETE FROM rxstore.decision")
        operator.run("rebuild", "prescription", blocked)
        operator.do("quarantine", "decisions", "--import", exported)
        assert operator.quarantine() == []


def test_an_operator_asks_and_folds_a_prescription_again(system, blocked):
    with member(system, OPERATE) as operator:
        assert operator.run("diagnose").returncode == 1
        assert "could not be looked at" not in operator.run("diagnose").stdout
        assert "illegal_transition" in operator.do("explain", blocked)
        assert json.loads(operator.run("query", blocked).stdout)["statusCode"] == "4"
        assert operator.run("rebuild", "prescription", blocked).returncode == 0


def test_an_operator_keeps_the_register_of_clients(system):
    with member(system, OPERATE) as operator:
        operator.do("clients", "add", ASID, "--contact", "the EPS team")
        operator.do("clients", "add", ASID, "--contact", "another team", "--replace")
        operator.do("clients", "certificates", ASID, "--add", "ab" * 32)
        listed = operator.do("clients", "list", "--json")
        operator.do("clients", "import", "-", "--replace", stdin=listed.encode())
        operator.do("clients", "revoke", ASID, "--why", "a test")
        assert "revoked" in operator.do("clients", "show", ASID)


def test_an_operator_paces_waits_for_and_compares_a_build_and_plans_when_the_old_one_goes(system, blocked):
    with member(system, OPERATE) as operator, member(system, PROJECT) as projector:
        system.do("rebuild", "stage")
        operator.do("rebuild", "throttle", "50000")
        with projector.projecting():
            operator.do("rebuild", "wait", "--max-lag", "0", "--timeout", "50")
            operator.do("rebuild", "verify")
            system.do("rebuild", "promote")
            operator.do("rebuild", "retire", "--after", "7d")
            operator.do("rebuild", "retire", "--keep")
        assert "promoted" in operator.do("rebuild", "report", "g2")


@pytest.mark.parametrize(
    ("role", "command"),
    [
        *((role, "migrate") for role in (READER, PROJECT, OPERATE, NOBODY)),
        *((role, "rebuild stage") for role in (READER, PROJECT, OPERATE)),
        (READER, "project --until-caught-up"),
        (OPERATE, "project --until-caught-up"),
        (READER, f"clients add {ASID} --contact x"),
        (PROJECT, f"clients add {ASID} --contact x"),
        (PROJECT, "clients list"),
        (READER, "quarantine list"),
        (NOBODY, "status"),
    ],
)
def test_a_command_that_is_not_for_a_role_ends_with_one_sentence(system, role, command):
    before = system.query("SELECT count(*) FROM rxstore.client")
    with member(system, role) as other:
        done = other.run(*command.split())
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (3, 1), done.stderr
    assert "refuses" in done.stderr
    assert system.query("SELECT count(*) FROM rxstore.client") == before
