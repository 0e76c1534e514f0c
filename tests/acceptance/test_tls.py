"""Only those who may: attacks on the API over TLS and behind a proxy, none of which succeeds."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from query_api.certificates import from_pem
from rxstore.authority import Authority, Issued
from rxstore.embedded import LOOPBACK, free_port
from tests import examples
from tests.acceptance.conftest import ASID, System, eventually, installed
from tests.conftest import PARTITIONS, new_database

OTHER, BY_NAME = "200000000947", "200000000948"
RETRIEVE = f"/mm/prescriptions/{quote(examples.PRESCRIPTION_ID)}?format=trace"
SEARCH = f"/mm/prescriptions?format=trace-summary&nhsNumber={examples.NHS_NUMBER}&earliestDate=20200101"
CHANGE_SECONDS = 10
NGINX = Path(__file__).parents[2] / "docs" / "operators" / "nginx.conf"


@dataclass
class Secured:
    """A running API over TLS, the authority of its clients, and some of these."""

    system: System
    authority: Authority
    port: int
    crlfile: Path
    server: Issued
    clients: dict[str, Issued] = field(default_factory=dict)

    def connect(self, shown: Issued | None, change: Callable[[ssl.SSLContext], None] | None = None) -> Any:
        """Open a connection that shows a certificate."""
        context = ssl.create_default_context(cafile=self.authority.certfile)
        if shown is not None:
            context.load_cert_chain(shown.certfile, shown.keyfile)
        if change is not None:
            change(context)
        connection = http.client.HTTPSConnection(LOOPBACK, self.port, context=context, timeout=10)
        connection.connect()
        return connection

    def ask(self, path: str, shown: Issued | None, asid: str = ASID, **headers: str) -> tuple[int, dict[str, Any], Any]:
        """Ask once on a connection of its own."""
        with closing(self.connect(shown)) as connection:
            return asked(connection, path, asid, **headers)

    def refuses(self, shown: Issued | None) -> bool:
        """Whether a caller gets no answer of any kind."""
        try:
            self.ask("/health/live", shown)
        except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
            return True
        return False


def asked(connection: Any, path: str, asid: str = ASID, **headers: str) -> tuple[int, dict[str, Any], Any]:
    given = {"Spine-From-Asid": asid, "Accept": "application/json"}
    connection.request("GET", path, headers=given | {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    return response.status, json.loads(body) if body else {}, response


def fingerprint(issued: Issued) -> str:
    return from_pem(issued.certfile.read_bytes()).fingerprint


@pytest.fixture(scope="module")
def system(postgres_url, migrated_template, admin, broker, tmp_path_factory) -> Iterator[System]:
    topic = f"rxstore-test-{uuid.uuid4().hex}"
    admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    with new_database(postgres_url, template=migrated_template) as url:
        made = installed(url, broker, topic, tmp_path_factory.mktemp("tls"))
        keys = made.do("audit", "keys", "--directory", str(made.directory))
        made.environment |= dict(line.split("=", 1) for line in keys.splitlines())
        made.environment["RXSTORE_AUDIT_ANCHOR_FILE"] = str(made.directory / "anchors.ndjson")
        made.publish([examples.created()])
        made.project()
        yield made


@pytest.fixture(scope="module")
def authority(system) -> Authority:
    return Authority(system.directory)


@pytest.fixture(scope="module")
def clients(system, authority) -> dict[str, Issued]:
    """Two clients known by their certificates, one by its name; the second may search and no more."""
    found = {name: authority.client(name) for name in ("first", "second", "by-name", "gone")}
    system.do("clients", "add", ASID, "--contact", "x", "--certificate", str(found["first"].certfile))
    searching = ("--interaction", "ExternalPrescriptionSearch_1_0")
    system.do("clients", "add", OTHER, "--contact", "x", "--certificate", fingerprint(found["second"]), *searching)
    named = ("--subject", "CN=by-name", "--issuer", f"CN={authority.name}")
    system.do("clients", "add", BY_NAME, "--contact", "x", *named)
    return found


@pytest.fixture(scope="module")
def secured(system, authority, clients) -> Iterator[Secured]:
    crlfile = authority.revoke([clients["gone"]], system.directory / "revoked.pem")
    server = authority.server("server", [LOOPBACK])
    made = Secured(system, authority, free_port(), crlfile, server, clients)
    environment = {
        "RXSTORE_TLS_CERTFILE": str(server.certfile),
        "RXSTORE_TLS_KEYFILE": str(server.keyfile),
        "RXSTORE_TLS_CLIENT_CAFILE": str(authority.certfile),
        "RXSTORE_TLS_CRLFILE": str(crlfile),
        "RXSTORE_LOG_LEVEL": "error",
    }
    address = f"{LOOPBACK}:{made.port}"
    up = lambda: made.connect(clients["first"]).close()  # noqa: E731
    with system.listening("--bind", address, "--workers", "2", up=up, **environment):
        yield made


@pytest.mark.parametrize("path", [SEARCH, RETRIEVE])
def test_a_client_is_answered_that_shows_a_certificate_of_its_asid(secured, path):
    status, body, response = secured.ask(path, secured.clients["first"])
    assert (status, body["statusCode"]) == (200, "0")
    assert response.getheader("Strict-Transport-Security") == "max-age=31536000"
    assert response.getheader("Cache-Control") == "no-store"
    assert response.getheader("Server") is None


def test_a_client_may_be_known_by_the_subject_and_issuer_of_its_certificate(secured):
    renewed = secured.authority.client("by-name")
    assert secured.ask(SEARCH, renewed, BY_NAME)[1]["statusCode"] == "0"


@pytest.mark.parametrize(
    ("shown", "asid", "path"),
    [
        ("second", ASID, SEARCH),
        ("first", OTHER, SEARCH),
        ("by-name", ASID, SEARCH),
        ("first", BY_NAME, SEARCH),
        ("second", OTHER, RETRIEVE),
        ("first", "200000000999", SEARCH),
    ],
    ids=[
        "the ASID of another",
        "the ASID of another that may less",
        "the ASID of another, known by name",
        "an ASID that is known by name",
        "to look up, registered for searches alone",
        "an ASID that nobody has",
    ],
)
def test_whoever_is_not_registered_for_it_gets_code_52(secured, shown, asid, path):
    status, body, _ = secured.ask(path, secured.clients[shown], asid)
    assert (status, body["statusCode"]) == (200, "52")


def test_a_certificate_of_the_right_name_from_another_authority_gets_no_connection(secured, tmp_path):
    forged = Authority(tmp_path, name=secured.authority.name).client("by-name")
    assert secured.refuses(forged)


def test_a_certificate_of_another_authority_gets_no_connection(secured, tmp_path):
    assert secured.refuses(Authority(tmp_path, name="another").client("first"))


def test_no_certificate_gets_no_connection(secured):
    assert secured.refuses(None)


def test_an_expired_certificate_gets_no_connection(secured):
    assert secured.refuses(secured.authority.client("late", begins=-timedelta(days=2), lasts=timedelta(days=1)))


def test_a_certificate_that_has_not_begun_gets_no_connection(secured):
    assert secured.refuses(secured.authority.client("early", begins=timedelta(days=1)))


def test_a_revoked_certificate_gets_no_connection(secured):
    assert secured.refuses(secured.clients["gone"])


def test_a_certificate_that_is_for_servers_gets_no_connection(secured):
    assert secured.refuses(secured.authority.server("imposter", [LOOPBACK]))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(secured, version):
    def only(context: ssl.SSLContext) -> None:
        context.minimum_version = context.maximum_version = version

    with closing(secured.connect(secured.clients["first"], only)) as connection:
        assert asked(connection, SEARCH)[1]["statusCode"] == "0"


def test_tls_1_1_is_not_spoken(secured):
    def only(context: ssl.SSLContext) -> None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it is one to speak it: that is the attack
        with pytest.raises((ssl.SSLError, ConnectionError)):
            secured.connect(secured.clients["first"], only)


def test_a_session_is_not_taken_up_again_without_looking_at_the_certificate(secured):
    context = ssl.create_default_context(cafile=secured.authority.certfile)
    context.load_cert_chain(secured.clients["first"].certfile, secured.clients["first"].keyfile)
    sessions = []
    for _ in range(2):
        plain = socket.create_connection((LOOPBACK, secured.port), timeout=10)
        earlier = sessions[0] if sessions else None
        with context.wrap_socket(plain, server_hostname=LOOPBACK, session=earlier) as connection:
            connection.sendall(f"GET /health/live HTTP/1.1\r\nHost: {LOOPBACK}\r\n\r\n".encode())
            assert b"200" in connection.recv(64)
            assert not connection.session_reused
            if connection.session is not None:
                sessions.append(connection.session)


@pytest.mark.parametrize(
    "name", ["X-Client-Cert", "X-Forwarded-Client-Cert", "X_Client_Cert", "X-Amzn-Mtls-Clientcert"]
)
def test_the_headers_of_proxies_mean_nothing_without_one(secured, name):
    claimed = quote(secured.clients["first"].certfile.read_text())
    assert secured.ask(SEARCH, secured.clients["second"], ASID, **{name: claimed})[1]["statusCode"] == "52"


def test_plain_http_is_not_answered_where_tls_is_spoken(secured):
    connection = http.client.HTTPConnection(LOOPBACK, secured.port, timeout=10)
    with closing(connection), pytest.raises((http.client.HTTPException, ConnectionError)):
        asked(connection, "/health/live")


def test_what_is_revoked_holds_for_open_connections_within_seconds(secured):
    lost = secured.authority.client("lost")
    secured.system.do("clients", "certificates", ASID, "--add", str(lost.certfile))
    with closing(secured.connect(lost)) as connection, closing(secured.connect(secured.clients["first"])) as other:
        eventually(lambda: asked(connection, SEARCH)[1]["statusCode"] == "0", CHANGE_SECONDS)
        assert asked(other, SEARCH)[1]["statusCode"] == "0"
        secured.authority.revoke([secured.clients["gone"], lost], secured.crlfile)
        eventually(lambda: asked(connection, SEARCH)[1]["statusCode"] == "52", CHANGE_SECONDS)
        assert asked(other, SEARCH)[1]["statusCode"] == "0"
        eventually(lambda: secured.refuses(lost), CHANGE_SECONDS)


def test_a_new_certificate_of_the_server_is_used_without_dropping_connections(secured):
    with closing(secured.connect(secured.clients["first"])) as connection:
        before = connection.sock.getpeercert(binary_form=True)
        renewed = secured.authority.server("server", [LOOPBACK])  # the same files

        def is_renewed() -> bool:
            with closing(secured.connect(secured.clients["first"])) as another:
                return another.sock.getpeercert(binary_form=True) != before

        eventually(is_renewed, CHANGE_SECONDS)
        assert asked(connection, SEARCH)[1]["statusCode"] == "0"
        assert renewed.certfile == secured.server.certfile


def test_files_that_cannot_be_used_leave_those_before_in_use(secured):
    kept = secured.crlfile.read_bytes()
    try:
        secured.crlfile.write_text("no list")
        time.sleep(3)
        assert secured.ask(SEARCH, secured.clients["first"])[1]["statusCode"] == "0"
        assert secured.refuses(secured.clients["gone"])
    finally:
        secured.crlfile.write_bytes(kept)


def test_a_certificate_can_be_rolled_over(secured):
    new = secured.authority.client("new")
    assert secured.ask(SEARCH, new)[1]["statusCode"] == "52"
    secured.system.do("clients", "certificates", ASID, "--add", str(new.certfile))
    eventually(lambda: secured.ask(SEARCH, new)[1]["statusCode"] == "0", CHANGE_SECONDS)
    assert secured.ask(SEARCH, secured.clients["first"])[1]["statusCode"] == "0"
    secured.system.do("clients", "certificates", ASID, "--remove", str(new.certfile))
    eventually(lambda: secured.ask(SEARCH, new)[1]["statusCode"] == "52", CHANGE_SECONDS)


def test_five_hundred_callers_that_send_slowly_do_not_stop_others(secured):
    with ExitStack() as stack:
        for number in range(500):
            slow = stack.enter_context(closing(socket.create_connection((LOOPBACK, secured.port), timeout=10)))
            if number % 2:
                slow.sendall(b"\x16\x03\x01")  # a handshake that goes no further
        half = stack.enter_context(closing(secured.connect(secured.clients["second"])))
        half.sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")  # headers that do not end
        for _ in range(20):
            began = time.monotonic()
            assert secured.ask(SEARCH, secured.clients["first"])[1]["statusCode"] == "0"
            assert time.monotonic() - began < 2


def test_a_caller_that_never_ends_its_headers_is_let_go(secured):
    with closing(secured.connect(secured.clients["first"])) as connection:
        connection.sock.settimeout(30)
        connection.sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
        assert connection.sock.recv(1) == b""


def test_every_request_over_tls_leaves_a_record_with_its_certificate_and_the_rule_that_refused_it(secured):
    caller = secured.authority.client("recorded")
    assert secured.ask(SEARCH, caller)[1]["statusCode"] == "52"
    (row,) = secured.system.query(
        "SELECT asid, interaction, tracker_code, refused_by FROM rxstore.audit WHERE certificate = %s",
        fingerprint(caller),
    )
    assert row == (ASID, "ExternalPrescriptionSearch_1_0", "52", "its certificate is not registered for it")
    secured.system.do("audit", "verify")


# Behind a proxy -------------------------------------------------------------------------------------------------------


class OverSocket(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def over_socket(path: Path, asid: str, **headers: str) -> tuple[int, dict[str, Any], Any]:
    with closing(OverSocket(path)) as connection:
        return asked(connection, SEARCH, asid, **headers)


@pytest.fixture(scope="module")
def behind_socket(system, clients) -> Iterator[Path]:
    path = system.directory / "api.sock"
    arguments = ("--behind-proxy", "--bind", f"unix:{path}", "--workers", "1")
    with system.listening(*arguments, up=lambda: over_socket(path, ASID), RXSTORE_LOG_LEVEL="error"):
        yield path


def escaped(issued: Issued) -> str:
    return quote(issued.certfile.read_text())


def test_a_proxy_hands_on_the_certificate(behind_socket, clients):
    assert over_socket(behind_socket, ASID, X_Client_Cert=escaped(clients["first"]))[1]["statusCode"] == "0"
    assert over_socket(behind_socket, ASID, X_Client_Cert=escaped(clients["second"]))[1]["statusCode"] == "52"


@pytest.mark.parametrize("given", ["", "nonsense", "%00", "-----BEGIN CERTIFICATE-----", None])
def test_without_a_certificate_from_the_proxy_nobody_is_let_in(behind_socket, given):
    headers = {} if given is None else {"X_Client_Cert": given}
    assert over_socket(behind_socket, ASID, **headers)[1]["statusCode"] == "52"


def test_two_certificates_in_one_request_are_none(behind_socket, clients):
    with closing(OverSocket(behind_socket)) as connection:
        connection.putrequest("GET", SEARCH)
        connection.putheader("Spine-From-Asid", ASID)
        for name in ("first", "second"):
            connection.putheader("X-Client-Cert", escaped(clients[name]))
        connection.endheaders()
        assert json.loads(connection.getresponse().read())["statusCode"] == "52"


def test_the_socket_is_open_to_its_owner_and_group_alone(behind_socket):
    assert behind_socket.stat().st_mode & 0o777 == 0o660


def test_only_configured_addresses_are_served_as_proxies(system, clients):
    port = free_port()

    def asked_from(source: str) -> str:
        with closing(http.client.HTTPConnection(LOOPBACK, port, timeout=10, source_address=(source, 0))) as connection:
            return str(asked(connection, SEARCH, X_Client_Cert=escaped(clients["first"]))[1]["statusCode"])

    arguments = ("--behind-proxy", "--bind", f"{LOOPBACK}:{port}", "--workers", "1")
    environment = {"RXSTORE_TRUSTED_PROXIES": "127.0.0.2,192.0.2.0/24", "RXSTORE_LOG_LEVEL": "error"}
    with system.listening(*arguments, up=lambda: asked_from("127.0.0.2"), **environment):
        assert asked_from("127.0.0.2") == "0"
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            asked_from("127.0.0.3")


@contextmanager
def nginx(directory: Path, api: Path, secured: Secured, port: int) -> Iterator[None]:
    """Run a real nginx with the configuration that the documentation shows."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    assert program, "this test needs nginx: apt-get install nginx-light"
    text = NGINX.read_text()
    for shown, ours in {
        "listen 443 ssl": f"listen {LOOPBACK}:{port} ssl",
        "/etc/rxstore/tls/server.pem": str(secured.server.certfile),
        "/etc/rxstore/tls/server.key": str(secured.server.keyfile),
        "/etc/rxstore/tls/clients-ca.pem": str(secured.authority.certfile),
        "/etc/rxstore/tls/clients-crl.pem": str(secured.crlfile),
        "/run/rxstore/api.sock": str(api),
    }.items():
        assert shown in text, f"the configuration no longer says {shown}"
        text = text.replace(shown, ours)
    written = directory / "nginx.conf"
    temporary = " ".join(
        f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    written.write_text(
        f"daemon off; user root; worker_processes 1; pid {directory}/nginx.pid; error_log stderr error;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{text}\n}}\n"
    )
    process = subprocess.Popen([program, "-c", str(written), "-p", str(directory)])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def test_the_nginx_configuration_of_the_documentation_lets_in_who_may_and_nobody_else(
    secured, behind_socket, clients, tmp_path
):
    port = free_port()
    through = Secured(secured.system, secured.authority, port, secured.crlfile, secured.server, clients)
    with nginx(tmp_path, behind_socket, secured, port):

        def is_up() -> bool:
            with suppress(OSError):
                through.connect(clients["first"]).close()
                return True
            return False

        eventually(is_up)
        assert through.ask(SEARCH, clients["first"])[1]["statusCode"] == "0"
        assert through.ask(SEARCH, clients["second"], ASID)[1]["statusCode"] == "52"
        spoofed = {"X-Client-Cert": escaped(clients["first"]), "X_Client_Cert": escaped(clients["first"])}
        assert through.ask(SEARCH, clients["second"], ASID, **spoofed)[1]["statusCode"] == "52"
        for refused in (None, clients["gone"]):
            with closing(through.connect(refused)) as connection:
                connection.request("GET", SEARCH, headers={"Spine-From-Asid": ASID})
                assert connection.getresponse().status == 400  # nginx's own page; the API was not asked


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ((), {"RXSTORE_AUDIT_ANCHOR_FILE": "/nowhere/at/all"}, "RXSTORE_AUDIT_ANCHOR_FILE"),
        ((), {}, "RXSTORE_TLS_CERTFILE, RXSTORE_TLS_KEYFILE, RXSTORE_TLS_CLIENT_CAFILE must be set"),
        ((), {"RXSTORE_CLIENTS": "any"}, "only clients of the register"),
        (("--behind-proxy",), {}, "RXSTORE_TRUSTED_PROXIES"),
        (("--behind-proxy", "--insecure"), {}, "exclude each other"),
        (("--bind", "unix:/tmp/x.sock"), {}, "say --behind-proxy"),
        (("--insecure", "--bind", "0.0.0.0:8443"), {}, "loopback"),
    ],
)
def test_what_would_leave_a_way_round_is_refused_at_the_start(system, arguments, environment, said):
    done = system.run("serve", *arguments, **environment)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_certificate_without_its_key_is_refused_at_the_start(system, authority, clients):
    environment = {
        "RXSTORE_TLS_CERTFILE": str(clients["first"].certfile),
        "RXSTORE_TLS_KEYFILE": str(clients["second"].keyfile),
        "RXSTORE_TLS_CLIENT_CAFILE": str(authority.certfile),
    }
    done = system.run("serve", **environment)
    assert done.returncode == 2
    assert "first.pem" in done.stderr
    assert "Traceback" not in done.stderr
