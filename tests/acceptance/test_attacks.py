"""Attacks on the API's server by whoever can send it bytes: what is asked for is what was checked, and nothing else.

Two clients are registered. One may search and no more; the other may do everything. The bytes of each attack would show
the patient if they were taken for another request than the one that was checked.
"""

from __future__ import annotations

import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from rxstore.embedded import LOOPBACK, free_port
from tests import examples
from tests.acceptance.conftest import System, installed
from tests.conftest import PARTITIONS, new_database
from tests.fuzzing import INNER_AFFAIRS, SQL

SEARCHER, EVERYTHING, NOBODY = "200000000946", "200000000947", "200000000999"
RETRIEVE = f"/mm/prescriptions/{quote(examples.PRESCRIPTION_ID)}"
SEARCH = f"/mm/prescriptions?nhsNumber={examples.NHS_NUMBER}&earliestDate=20200101"
STATUS = "/rxstore/status"
# What a server says about what is no valid HTTP, or more than it takes.
PROTOCOL = {400, 405, 411, 413, 414, 417, 431, 501, 505}
OURS = {200, 304, 403, 404}
PATIENCE_SECONDS = 10.0
# So long a server that waits for more has said all that it will say.
SILENCE_SECONDS = 1.0

# Shows the patient to whoever gets the answer.
HIDDEN = f"GET {RETRIEVE} HTTP/1.1\r\nHost: x\r\nSpine-From-Asid: {EVERYTHING}\r\nConnection: close\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Received:
    """All that came back, whatever it is."""

    raw: bytes

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", self.raw)]

    @property
    def codes(self) -> list[str]:
        return [code.decode() for code in re.findall(rb'\{"statusCode":"([0-9]+)","reason"', self.raw)]

    @property
    def shows_the_patient(self) -> bool:
        return any(
            one.encode() in self.raw
            for one in (examples.NHS_NUMBER, examples.SURGERY["name"], examples.FIRST_ITEM_ID, '"next_offset"')
        )


@dataclass
class Attacked:
    """A running API, and a way to send it anything."""

    system: System
    port: int

    def send(self, raw: bytes, patience: float = SILENCE_SECONDS) -> Received:
        """Send bytes, and take what comes until the server closes or is silent."""
        received = b""
        connecting = socket.create_connection((LOOPBACK, self.port), timeout=PATIENCE_SECONDS)
        with connecting as connection, suppress(TimeoutError, ConnectionError):
            connection.sendall(raw)
            connection.settimeout(patience)
            while piece := connection.recv(65_536):
                received += piece
        return Received(received)

    def ask(self, target: str, asid: str, *headers: bytes, method: str = "GET") -> Received:
        """Ask once, with these lines among the headers; a server answers that, or refuses it, and closes."""
        head = f"{method} {target} HTTP/1.1\r\nHost: {LOOPBACK}\r\nSpine-From-Asid: {asid}\r\n".encode("latin-1")
        lines = b"".join(line + b"\r\n" for line in headers)
        return self.send(head + lines + b"Connection: close\r\n\r\n", PATIENCE_SECONDS)

    @property
    def is_well(self) -> bool:
        return self.ask(SEARCH, SEARCHER).codes == ["0"]


@pytest.fixture(scope="module")
def attacked(postgres_url, migrated_template, admin, broker, tmp_path_factory) -> Iterator[Attacked]:
    topic = f"rxstore-test-{uuid.uuid4().hex}"
    admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    with new_database(postgres_url, template=migrated_template) as url:
        system = installed(url, broker, topic, tmp_path_factory.mktemp("attacks"))
        system.publish([examples.created()])
        system.project()
        system.do("clients", "add", SEARCHER, "--contact", "x", "--interaction", "ExternalPrescriptionSearch_1_0")
        everything = ("ExternalPrescriptionSearch_1_0", "ExternalPrescriptionQuery_1_0", "rxstore_status")
        named = (word for one in everything for word in ("--interaction", one))
        system.do("clients", "add", EVERYTHING, "--contact", "x", *named)
        made = Attacked(system, free_port())
        arguments = ("--insecure", "--bind", f"{LOOPBACK}:{made.port}", "--workers", "1")
        up = lambda: socket.create_connection((LOOPBACK, made.port), timeout=1).close()  # noqa: E731
        with system.listening(*arguments, up=up, RXSTORE_CLIENTS="registered"):
            yield made


@pytest.fixture(autouse=True)
def nothing_is_given_away(attacked, monkeypatch) -> Iterator[None]:
    """Looks at everything that a test of this module gets back."""
    received: list[Received] = []
    send = Attacked.send

    def noted(self: Attacked, raw: bytes, patience: float = SILENCE_SECONDS) -> Received:
        received.append(send(self, raw, patience))
        return received[-1]

    monkeypatch.setattr(Attacked, "send", noted)
    yield
    for one in received:
        assert set(one.statuses) <= PROTOCOL | OURS
        assert not any(words in one.raw for words in INNER_AFFAIRS)
        assert not re.search(rb"(?i)^server:|gunicorn", one.raw, re.MULTILINE)


def test_each_client_gets_what_it_is_registered_for(attacked):
    assert attacked.ask(SEARCH, SEARCHER).shows_the_patient
    assert attacked.ask(RETRIEVE, SEARCHER).codes == ["52"]
    assert attacked.ask(RETRIEVE, EVERYTHING).shows_the_patient
    assert attacked.ask(STATUS, SEARCHER).statuses == [403]
    assert attacked.ask(STATUS, EVERYTHING).shows_the_patient
    assert attacked.send(HIDDEN, PATIENCE_SECONDS).shows_the_patient


# one request, or two --------------------------------------------------------------------------------------------------

LENGTH = str(len(HIDDEN)).encode()
CHUNKED = b"0\r\n\r\n"
SMUGGLED = {
    "two lengths, the first is short": (b"Content-Length: 0\r\nContent-Length: " + LENGTH, b""),
    "two lengths, the last is short": (b"Content-Length: " + LENGTH + b"\r\nContent-Length: 0", b""),
    "two lengths in one header": (b"Content-Length: 0, " + LENGTH, b""),
    "two lengths that are equal": (b"Content-Length: 0\r\nContent-Length: 0", b""),
    "a length with a sign": (b"Content-Length: +0", b""),
    "a negative length": (b"Content-Length: -1", b""),
    "a length in hexadecimal": (b"Content-Length: 0x0", b""),
    "a length with an underscore": (b"Content-Length: 0_0", b""),
    "a length in other digits": ("Content-Length: \u0660".encode(), b""),
    "an empty length": (b"Content-Length:", b""),
    "a length and chunks": (b"Content-Length: " + LENGTH + b"\r\nTransfer-Encoding: chunked", CHUNKED),
    "chunks and a length": (b"Transfer-Encoding: chunked\r\nContent-Length: 5", CHUNKED),
    "chunks twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", CHUNKED),
    "chunks and something else": (b"Transfer-Encoding: chunked, identity", CHUNKED),
    "something else and chunks": (b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", CHUNKED),
    "no known coding": (b"Transfer-Encoding: xchunked", CHUNKED),
    "a coding with a vertical tab": (b"Transfer-Encoding: \x0bchunked", CHUNKED),
    "a coding in quotes": (b'Transfer-Encoding: "chunked"', CHUNKED),
    "a space before the colon": (b"Transfer-Encoding : chunked", CHUNKED),
    "a coding on the next line": (b"Transfer-Encoding:\r\n chunked", CHUNKED),
    "a header that begins with a space": (b" Transfer-Encoding: chunked", CHUNKED),
    "a coding behind a bare line feed": (b"X: y\nTransfer-Encoding: chunked", CHUNKED),
    "a coding behind a carriage return": (b"X: y\rTransfer-Encoding: chunked", CHUNKED),
    "a chunk's size with a sign": (b"Transfer-Encoding: chunked", b"+0\r\n\r\n"),
    "a chunk's size with 0x": (b"Transfer-Encoding: chunked", b"0x0\r\n\r\n"),
    "a chunk's size with an underscore": (b"Transfer-Encoding: chunked", b"0_0\r\n\r\n"),
    "a chunk that ends with bare line feeds": (b"Transfer-Encoding: chunked", b"0\n\n"),
    "a chunk without its end": (b"Transfer-Encoding: chunked", b"1\r\nxx0\r\n\r\n"),
    "a chunk of more than there is": (b"Transfer-Encoding: chunked", b"ffff\r\n"),
    "a length that swallows it": (b"Content-Length: " + LENGTH, b""),
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("headers", "body"), SMUGGLED.values(), ids=SMUGGLED)
def test_no_second_request_is_smuggled_behind_an_unclear_first_one(attacked, method, headers, body):
    head = f"{method} /health/live HTTP/1.1\r\nHost: x\r\n".encode()
    received = attacked.send(head + headers + b"\r\n\r\n" + body + HIDDEN)
    assert not received.shows_the_patient
    assert len(received.statuses) <= 2
    assert attacked.is_well


def test_a_second_request_that_everybody_sees_is_one_of_its_own(attacked):
    both = f"GET {RETRIEVE} HTTP/1.1\r\nHost: x\r\nSpine-From-Asid: {SEARCHER}\r\n\r\n".encode() + HIDDEN
    received = attacked.send(both, PATIENCE_SECONDS)
    assert received.codes == ["52", "0"]


# headers --------------------------------------------------------------------------------------------------------------

OTHER = f"Spine-From-Asid: {EVERYTHING}".encode()
HEADERS = {
    "given again": [OTHER],
    "given again, empty": [b"Spine-From-Asid:"],
    "underscores": [f"Spine_From_Asid: {EVERYTHING}".encode()],
    "underscores and a dash": [f"Spine-From_Asid: {EVERYTHING}".encode()],
    "a space before the colon": [f"Spine-From-Asid : {EVERYTHING}".encode()],
    "behind a bare line feed": [b"X: y\n" + OTHER],
    "behind a carriage return": [b"X: y\r" + OTHER],
    "behind a NUL": [b"X: y\x00" + OTHER],
    "behind a form feed": [b"X: y\x0c" + OTHER],
    "folded": [b"X: y", b" " + OTHER],
    "folded by a tab": [b"Spine-From-Asid:", f"\t{EVERYTHING}".encode()],
    "a name with a NUL": [f"Spine-From-Asid\x00: {EVERYTHING}".encode()],
    "a name beyond ASCII": ["Spine-From-As\u0131d: ".encode() + EVERYTHING.encode()],
    "a name that WSGI would make the same": [f"HTTP_SPINE_FROM_ASID: {EVERYTHING}".encode()],
    "without a name": [b": " + EVERYTHING.encode()],
    "without a colon": [EVERYTHING.encode()],
    "hop by hop": [b"Connection: Spine-From-Asid"],
    "as a trailer": [b"Trailer: Spine-From-Asid", b"TE: trailers"],
    "as a proxy would": [b"X-Forwarded-For: 127.0.0.1", b"Forwarded: for=127.0.0.1", b"X-Real-IP: 127.0.0.1"],
    "a certificate": [b"X-Client-Cert: x", b"X-Ssl-Client-Verify: SUCCESS", b"Ssl-Client-Subject-Dn: CN=first"],
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("asid", [SEARCHER, NOBODY, ""])
def test_no_header_makes_a_caller_another_one(attacked, headers, asid):
    received = attacked.ask(RETRIEVE, asid, *headers)
    assert not received.shows_the_patient
    assert set(received.codes) <= {"52"}


def test_an_asid_that_is_given_twice_is_none_in_whatever_order(attacked):
    for first, second in ((EVERYTHING, SEARCHER), (SEARCHER, EVERYTHING), (EVERYTHING, EVERYTHING)):
        assert attacked.ask(RETRIEVE, first, f"Spine-From-Asid: {second}".encode()).codes == ["52"]


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "Script-Name", "Path-Info", "X-Original-URL", "Host"])
@pytest.mark.parametrize("value", ["/mm", STATUS, RETRIEVE, "/nowhere"])
def test_no_header_changes_which_path_is_asked_for(attacked, name, value):
    received = attacked.ask(f"/mm{STATUS}", EVERYTHING, f"{name}: {value}".encode())
    assert not received.shows_the_patient
    assert attacked.ask(SEARCH, SEARCHER, f"{name}: {value}".encode()).statuses in ([200], [400])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "G\x00ET"])
def test_no_other_method_reads_anything(attacked, method):
    override = b"X-HTTP-Method-Override: GET"
    received = attacked.ask(RETRIEVE, EVERYTHING, override, method=method)
    assert not received.shows_the_patient
    assert set(received.statuses) <= {400, 405}


@pytest.mark.parametrize(
    "raw",
    [
        f"GET {RETRIEVE}\r\n",
        f"GET {RETRIEVE} HTTP/0.9\r\nSpine-From-Asid: {EVERYTHING}\r\n\r\n",
        f"GET {RETRIEVE} HTTP/2.0\r\nSpine-From-Asid: {EVERYTHING}\r\n\r\n",
        f"GET {RETRIEVE} HTTP/1.1 HTTP/1.1\r\nSpine-From-Asid: {EVERYTHING}\r\n\r\n",
        f"GET\t{RETRIEVE}\tHTTP/1.1\r\nSpine-From-Asid: {EVERYTHING}\r\n\r\n",
        f"GET {RETRIEVE} HTTP/1.1\nSpine-From-Asid: {EVERYTHING}\n\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        f"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET {RETRIEVE} HTTP/1.1\r\nSpine-From-Asid: {EVERYTHING}\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "\r\n" * 1_000,
        "\x00" * 10_000,
    ],
)
def test_what_is_no_request_of_this_protocol_reads_nothing(attacked, raw):
    received = attacked.send(raw.encode("latin-1"))
    assert not received.shows_the_patient
    assert set(received.statuses) <= {404, *PROTOCOL}
    assert attacked.is_well


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (f"{SEARCH}&format={'x' * 10_000}", []),
        (SEARCH, [b"X: " + b"y" * 20_000]),
        (SEARCH, [b"X%d: y" % number for number in range(500)]),
        (SEARCH, [b"X" * 20_000 + b": y"]),
        (f"{SEARCH}{'&a=b' * 2_000}", []),
    ],
    ids=["a long line", "a long header", "many headers", "a long name", "many parameters"],
)
def test_more_than_a_request_needs_is_refused_before_it_is_read(attacked, target, headers):
    received = attacked.ask(target, SEARCHER, *headers)
    assert set(received.statuses) <= {400, 414, 431}
    assert not received.shows_the_patient


def test_what_is_no_valid_http_is_told_so_without_what_was_sent(attacked):
    received = attacked.send(f"GET {RETRIEVE}?nhsNumber={examples.NHS_NUMBER} NONSENSE/9\r\n\r\n".encode())
    assert received.statuses == [400]
    assert b"no-store" in received.raw
    assert examples.NHS_NUMBER.encode() not in received.raw


# paths ----------------------------------------------------------------------------------------------------------------

OTHER_WAYS_TO = [
    "/{0}",
    "//{0}",
    "/.{0}",
    "/mm/..{0}",
    "/mm/%2e%2e{0}",
    "/mm/%2E%2E{0}",
    "/mm/.%2e{0}",
    "/mm/prescriptions/..%2f..{0}",
    "/mm/prescriptions/..%5c..{0}",
    "/mm/prescriptions/%c0%ae%c0%ae/..{0}",
    "/mm/prescriptions;{0}",
    "/%2f{0}",
    "/%5c{0}",
    "{0}/",
    "{0}/.",
    "{0}%00",
    "{0}%00.json",
    "{0}%20",
    "{0}%0a",
    "{0};a=b",
    "{0}%3f",
    "{0}%23",
    "{0}.json",
    "http://127.0.0.1{0}",
    "http://user@127.0.0.1{0}",
    "https://another.example{0}",
    "http://127.0.0.1/mm{0}",
    "//127.0.0.1{0}",
    "*{0}",
    "{0}#{0}",
    "/mm/prescriptions?a=b#{0}",
    "/mm/prescriptions?x=/../..{0}",
]


@pytest.mark.parametrize("way", OTHER_WAYS_TO)
@pytest.mark.parametrize("path", [RETRIEVE, STATUS])
def test_no_other_way_to_write_a_path_goes_round_what_a_client_may(attacked, way, path):
    received = attacked.ask(way.format(path), SEARCHER)
    assert not received.shows_the_patient
    assert set(received.codes) <= {"50", "51", "52", "61"}


@pytest.mark.parametrize("way", ["/{0}", "//{0}", "/mm/%2e%2e{0}", "/mm/..{0}", "/.{0}", "{0}/.", "{0};a=b"])
def test_a_path_has_one_way_to_be_written(attacked, way):
    assert attacked.ask(way.format(STATUS), EVERYTHING).statuses == [404]


@pytest.mark.parametrize("path", ["/MM/Prescriptions", "/mm/PRESCRIPTIONS", "/RXSTORE/status", "/Metrics"])
def test_paths_are_told_apart_by_letter_case(attacked, path):
    assert attacked.ask(path, EVERYTHING).statuses == [404]


@pytest.mark.parametrize(
    "id_", ["%00", "..", "%2e%2e", "%c0%af", "%ed%a0%80", "%ff", "%e0%80%af", "%25%30%30", "%", "%zz", "%u0041", "'"]
)
def test_strange_bytes_in_an_id_are_no_id(attacked, id_):
    received = attacked.ask(f"/mm/prescriptions/{id_}", EVERYTHING)
    assert received.codes in (["51"], [])
    assert set(received.statuses) <= {200, 400, 404}
    assert attacked.ask(f"{RETRIEVE}{id_}", EVERYTHING).codes in (["51"], [])


# parameters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", SQL, ids=range(len(SQL)))
def test_sql_finds_nothing_and_changes_nothing(attacked, value):
    written = quote(value, safe="")
    before = attacked.system.query("SELECT count(*) FROM rxstore.prescription")
    for name in ("nhsNumber", "earliestDate", "latestDate", "prescriptionStatus", "prescriptionVersion", "version"):
        target = f"{SEARCH}&{name}={written}" if name != "nhsNumber" else f"/mm/prescriptions?nhsNumber={written}"
        received = attacked.ask(target, SEARCHER)
        assert not received.shows_the_patient
        assert set(received.codes) <= {"53", "57", "59", "60", "61"}
    assert attacked.ask(f"/mm/prescriptions/{written}", EVERYTHING).codes in (["51"], [])
    assert attacked.system.query("SELECT count(*) FROM rxstore.prescription") == before
    assert attacked.system.query("SELECT count(*) FROM rxstore.client") == [(2,)]


@pytest.mark.parametrize("name", ["nhsNumber", "earliestDate", "latestDate", "prescriptionStatus", "version"])
def test_a_parameter_that_is_given_twice_is_wrong(attacked, name):
    received = attacked.ask(f"{SEARCH}&{name}=1&{name}={examples.OTHER_NHS_NUMBER}", SEARCHER)
    assert set(received.codes) <= {"53", "57", "59", "61"}
