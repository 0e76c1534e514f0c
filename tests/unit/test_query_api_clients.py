"""Only registered clients are let in, each for what it may, and nothing is read for anybody else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from falcon import testing

from query_api.app import routes
from query_api.certificates import Certificate
from query_api.clients import EVENTS, FRESH_SECONDS, HISTORY, RETRIEVE, SEARCH, STATUS, Caller, Client, Registered
from query_api.settings import ApiSettings
from tests.unit.test_query_api_answers import ID, NHS, ReadModel

ASID = "200000000946"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
CLIENT = Client(frozenset({SEARCH, RETRIEVE}), NOW - HOUR, None, is_revoked=False)
SEARCHED, RETRIEVED = f"/mm/prescriptions?nhsNumber={NHS}", f"/mm/prescriptions/{ID}"


class Register:
    """A register that can be changed, counted and lost, and a clock to go with it."""

    def __init__(self, **clients: Client) -> None:
        self.clients = {name.removeprefix("asid"): client for name, client in clients.items()}
        self.reads = 0
        self.seconds = 0.0
        self.is_away = False

    def read(self) -> dict[str, Client]:
        self.reads += 1
        if self.is_away:
            raise ConnectionError
        return dict(self.clients)

    def admission(self) -> Registered:
        return Registered(self.read, lambda: NOW, lambda: self.seconds)


class Untouched(ReadModel):
    """A read model of which nothing may be asked."""

    def prescription(self, stream_key, issue_number):
        pytest.fail("a prescription was read")

    def prescriptions(self, criteria):
        pytest.fail("prescriptions were read")


def asked(path: str, register: Register, read_model: ReadModel, **headers: str):
    app = routes(read_model, ApiSettings(), admission=register.admission())
    return testing.TestClient(app).simulate_get(path, headers={"Spine-From-Asid": ASID, **headers})


@pytest.mark.parametrize("path", [SEARCHED, RETRIEVED])
def test_a_registered_client_is_answered(path):
    assert asked(path, Register(asid200000000946=CLIENT), ReadModel()).json["statusCode"] == "0"


@pytest.mark.parametrize("path", [SEARCHED, RETRIEVED])
@pytest.mark.parametrize(
    "client",
    [
        None,
        replace(CLIENT, is_revoked=True),
        replace(CLIENT, valid_from=NOW + timedelta(seconds=1)),
        replace(CLIENT, valid_to=NOW),
        replace(CLIENT, interactions=frozenset({STATUS})),
    ],
    ids=["not registered", "revoked", "not valid yet", "expired", "for something else"],
)
def test_anybody_else_gets_code_52_and_nothing_is_read(path, client):
    register = Register() if client is None else Register(asid200000000946=client)
    result = asked(path, register, Untouched())
    assert (result.status_code, result.json["statusCode"]) == (200, "52")


def test_a_client_for_searches_alone_may_not_retrieve():
    register = Register(asid200000000946=replace(CLIENT, interactions=frozenset({SEARCH})))
    assert asked(SEARCHED, register, ReadModel()).json["statusCode"] == "0"
    assert asked(RETRIEVED, register, Untouched()).json["statusCode"] == "52"


def test_the_rule_stands_in_the_log_and_not_in_the_answer(caplog):
    result = asked(RETRIEVED, Register(asid200000000946=replace(CLIENT, is_revoked=True)), Untouched())
    assert "revoked" in caplog.text
    assert "revoked" not in result.text


@pytest.mark.parametrize(
    ("path", "interaction"),
    [
        (f"/rxstore/prescriptions/{ID}/history", HISTORY),
        ("/rxstore/events?source=urn:x&id=1", EVENTS),
        ("/rxstore/status", STATUS),
    ],
)
def test_our_own_paths_are_refused_with_403_to_whoever_is_not_registered_for_them(path, interaction):
    others = {HISTORY, EVENTS, STATUS, SEARCH, RETRIEVE} - {interaction}
    result = asked(path, Register(asid200000000946=replace(CLIENT, interactions=frozenset(others))), Untouched())
    assert result.status_code == 403
    assert "rxstore clients" in result.json["description"]
    assert result.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/openapi.json"])
def test_health_metrics_and_the_contract_are_told_to_everybody(path):
    assert asked(path, Register(), ReadModel()).status_code == 200


def test_the_register_is_read_again_once_it_is_older_than_its_time():
    register = Register(asid200000000946=CLIENT)
    admission = register.admission()
    assert admission.rule_against(Caller(ASID), SEARCH) is None
    register.clients = {}
    register.seconds = FRESH_SECONDS
    assert admission.rule_against(Caller(ASID), SEARCH) is None
    register.seconds = FRESH_SECONDS + 0.001
    assert admission.rule_against(Caller(ASID), SEARCH) == "it is not registered"
    assert register.reads == 2


def test_nobody_is_let_in_while_the_register_cannot_be_read():
    register = Register(asid200000000946=CLIENT)
    register.is_away = True
    assert asked(RETRIEVED, register, Untouched()).json["statusCode"] == "5"
    assert asked("/rxstore/status", register, Untouched()).status_code == 500


CERTIFICATE = Certificate("ab" * 32, "CN=a", "CN=ca", 1, NOW - HOUR, NOW + HOUR)


@pytest.mark.parametrize(
    ("client", "caller", "rule"),
    [
        (replace(CLIENT, fingerprints=frozenset({"ab" * 32})), Caller(ASID, CERTIFICATE), None),
        (replace(CLIENT, subject="CN=a", issuer="CN=ca"), Caller(ASID, CERTIFICATE), None),
        (CLIENT, Caller(ASID, CERTIFICATE), "its certificate is not registered for it"),
        (
            replace(CLIENT, fingerprints=frozenset({"cd" * 32})),
            Caller(ASID, CERTIFICATE),
            "its certificate is not registered for it",
        ),
        (
            replace(CLIENT, subject="CN=a", issuer="CN=other"),
            Caller(ASID, CERTIFICATE),
            "its certificate is not registered for it",
        ),
        (replace(CLIENT, fingerprints=frozenset({"ab" * 32})), Caller(ASID), "it showed no certificate"),
        (
            replace(CLIENT, fingerprints=frozenset({"ab" * 32})),
            Caller(ASID, CERTIFICATE, "its certificate is revoked"),
            "its certificate is revoked",
        ),
    ],
    ids=["by fingerprint", "by name", "by nothing", "another fingerprint", "another issuer", "none shown", "revoked"],
)
def test_over_tls_the_certificate_must_be_one_that_is_registered_for_the_asid(client, caller, rule):
    admission = Registered(Register(asid200000000946=client).read, lambda: NOW, by_certificate=True)
    assert admission.rule_against(caller, SEARCH) == rule


def test_what_stands_in_the_place_of_an_asid_is_not_logged(caplog):
    asked("/rxstore/status", Register(), Untouched(), **{"Spine-From-Asid": NHS})
    assert "without an ASID" in caplog.text
    assert NHS not in caplog.text
