"""The register of clients, as an operator keeps it and as the API goes by it."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests import examples
from tests.acceptance.conftest import ASID, System, eventually

OTHER = "200000000947"


@pytest.fixture
def subject(system: System) -> str:
    created = examples.created()
    system.publish([created])
    system.project()
    return str(created["subject"])


def test_a_change_of_the_register_holds_on_a_running_server_within_seconds(system, subject):
    path = f"/mm/prescriptions/{quote(subject)}"
    with system.serving(RXSTORE_CLIENTS="registered") as ask:
        assert ask(path).body["statusCode"] == "52"
        system.do("clients", "add", ASID, "--contact", "the EPS team")
        eventually(lambda: ask(path).body["statusCode"] == "0", seconds=10)
        assert ask("/rxstore/status").status == 403
        system.do("clients", "add", ASID, "--contact", "the EPS team", "--interaction", "rxstore_status", "--replace")
        eventually(lambda: ask("/rxstore/status").status == 200, seconds=10)
        assert ask(path).body["statusCode"] == "52"
        system.do("clients", "revoke", ASID, "--why", "a test")
        eventually(lambda: ask("/rxstore/status").status == 403, seconds=10)


def test_without_the_setting_any_asid_is_let_in(system, subject):
    with system.serving() as ask:
        assert ask(f"/mm/prescriptions/{quote(subject)}").body["statusCode"] == "0"


def test_what_is_listed_can_be_imported_and_revoked_clients_stay_revoked(system):
    system.do("clients", "add", ASID, "--contact", "one", "--valid-to", "2099-01-01T00:00:00Z")
    system.do("clients", "add", OTHER, "--contact", "another")
    system.do("clients", "revoke", OTHER, "--why", "a test")
    listed = system.do("clients", "list", "--json")
    system.execute("TRUNCATE rxstore.client")
    assert "1 clients" in system.do("clients", "import", "-", stdin=listed.encode())
    (one,) = map(json.loads, system.do("clients", "list", "--json").splitlines())
    assert (one["asid"], one["contact"], one["valid_to"]) == (ASID, "one", "2099-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("add", "123", "--contact", "x"), 2, "12 digits"),
        (("add", ASID, "--contact", " "), 2, "whom to ask"),
        (("add", ASID, "--contact", "x", "--valid-to", "2020-01-01T00:00:00Z"), 2, "before it begins"),
        (("add", ASID, "--contact", "x", "--interaction", "everything"), 2, "rxstore_history"),
        (("show", ASID), 2, "there is no client"),
        (("revoke", ASID, "--why", "x"), 2, "there is no client"),
    ],
)
def test_what_cannot_be_registered_is_refused_with_the_reason(system, arguments, exit_code, said):
    done = system.run("clients", *arguments)
    assert done.returncode == exit_code
    assert said in done.stderr


def test_a_client_is_not_registered_twice_by_mistake(system):
    system.do("clients", "add", ASID, "--contact", "x")
    done = system.run("clients", "add", ASID, "--contact", "y")
    assert done.returncode == 4
    assert "--replace" in done.stderr


def test_an_import_with_a_fault_registers_nobody_and_names_the_line(system):
    lines = [{"asid": ASID, "contact": "x"}, {"asid": OTHER, "contact": "y", "interactions": ["nothing"]}]
    done = system.run("clients", "import", "-", stdin=b"\n".join(json.dumps(line).encode() for line in lines))
    assert done.returncode == 2
    assert "line 2" in done.stderr
    assert "there is no interaction nothing" in done.stderr
    assert system.do("clients", "list") == ""


def test_the_api_may_read_the_register_and_not_write_it(system):
    ((may_read, may_write),) = system.query(
        "SELECT has_table_privilege('rxstore_reader', 'rxstore.client', 'SELECT'), "
        "has_table_privilege('rxstore_reader', 'rxstore.client', 'INSERT, UPDATE, DELETE, TRUNCATE')"
    )
    assert (may_read, may_write) == (True, False)
