"""Damaged requests, and what no answer to them may be. ``benchmarks/fuzzing.py`` asks many more of them than the tests.

A request is made as a caller would mean it, for data that is there, and then damaged: in its bytes, its parameters, its
headers or its path. The API is called as a server calls it (WSGI), so a request costs what the API does about it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import cycle
from random import Random
from typing import Any
from unittest.mock import patch
from urllib.parse import quote_from_bytes, unquote_to_bytes

import jsonschema_rs
import orjson
import psycopg

from projector.generations import READER_ROLE
from query_api import waiting
from query_api.app import Api, create_app
from query_api.clients import INTERACTIONS
from query_api.database import read_only_engine
from query_api.settings import ApiSettings, fixed_clock
from schemas.openapi import openapi_document
from tests.conftest import new_database
from tests.integration.projecting import generated_log, project_all

ASID = "200000000946"
SQL = (
    b"' OR '1'='1",
    b"'; DROP TABLE rxstore.client; --",
    b"1) OR 1=1 --",
    b"1; SELECT pg_sleep(10) --",
    b"' UNION SELECT nhs_number FROM rxstore.prescription --",
    b"%s %(nhs_number)s $1 :nhs_number {schema}",
    b"\\'; COPY rxstore.prescription TO PROGRAM 'id' --",
    b"\xbf\x27 OR 1=1 --",
)
STRANGE = (
    b"",
    b"\x00",
    b"%00",
    b"\r\nSpine-From-Asid: 200000000947",
    b"\n",
    b"\t",
    b" ",
    b"\xc0\xaf",  # an overlong slash
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",  # half of a surrogate pair
    b"\xff\xfe",
    "٠١٢٣٤٥٦٧٨٩".encode(),  # digits, to str.isdigit
    "\uff19\uff19".encode(),
    "\u00b2".encode(),
    "\u200b".encode(),
    "\u0131".encode(),  # whose upper case is I
    "\ufb00".encode(),  # whose upper case is two letters
    b"-1",
    b"+1",
    b"1e9",
    b"0x10",
    b"NaN",
    b"99999999999999999999",
    b"00000000",
    b"99999999",
    b"20240230",
    b"0001-01-01T00:00:00+14:00",
    b"9999-12-31T23:59:59-14:00",
    b"None",
    b"null",
    b"[]",
    b"../../etc/passwd",
    b"%2e%2e%2f",
    b"%",
    b"%zz",
    b"<script>alert(1)</script>",
    b"${jndi:ldap://127.0.0.1/a}",
    b"{{7*7}}",
    *SQL,
)
PATHS = (
    b"//",
    b"/./",
    b"/%2e%2e/",
    b"/../",
    b"/%2f",
    b"%5c",
    b";a=b",
    b"/mm/prescriptions/../prescriptions/",
    b"/MM/Prescriptions",
    b"/rxstore/%73tatus",
    b"/mm/prescriptions/%00",
    b"/metrics/../rxstore/status",
)
MORE_HEADERS = (
    "Accept",
    "Accept-Charset",
    "Accept-Encoding",
    "Authorization",
    "Content-Length",
    "Content-Type",
    "Cookie",
    "Eps-TraceId",
    "Expect",
    "Forwarded",
    "Host",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "Range",
    "Spine-From-Asid",
    "Spine-RoleProfileId",
    "Spine-UserId",
    "Transfer-Encoding",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-HTTP-Method-Override",
)
SOUND = {"Spine-From-Asid": ASID, "Accept": "application/json"}
# Whatever says where in the code, or by which statement, something went wrong.
INNER_AFFAIRS = (b"Traceback", b'File "', b"site-packages", b"psycopg", b"sqlalchemy", b"SELECT ", b"line 1")
TEN_DIGITS = re.compile(rb"(?<![0-9])[0-9]{10}(?![0-9])")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it is damaged. ``target`` is what stands in the request line; headers are as WSGI hands them on."""

    target: bytes
    headers: Mapping[str, str]
    method: str = "GET"

    @property
    def path(self) -> bytes:
        """Return the path, decoded."""
        return unquote_to_bytes(self.target.partition(b"?")[0])

    @property
    def query(self) -> bytes:
        """Return the query as it stands."""
        return self.target.partition(b"?")[2]


@dataclass(frozen=True, slots=True)
class Got:
    """What was answered; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """What is in the read model: NHS numbers by stream key, and the sources and places of events."""

    patients: Mapping[str, str]
    sources: tuple[str, ...] = ("urn:nhs:asid:200000000946",)
    positions: tuple[str, ...] = ("events:0:1",)
    numbers: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", frozenset(number.encode() for number in self.patients.values()))


@dataclass(frozen=True, slots=True)
class Target:
    """An API over a read model in which some prescriptions are blocked; ``known`` is what stands there."""

    api: Api
    known: Known
    database_url: str


def ask(app: Callable[..., Any], asked: Asked) -> Got:
    """Call the API as a server would. What it raises, a server would answer with 500."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": asked.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": asked.path.decode("latin-1"),
        "QUERY_STRING": asked.query.decode("latin-1"),
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": BytesIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in asked.headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"] = value
    said: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
        said["status"], said["headers"] = int(status.split()[0]), headers

    body = b"".join(app(environ, start_response))
    return Got(said["status"], {name.lower(): value for name, value in said["headers"]}, body)


class Oracle:
    """Says what is wrong with an answer, by the published document and by whose data may be in it."""

    def __init__(self, known: Known, *, more_statuses: tuple[int, ...] = ()) -> None:
        self.known = known
        document = openapi_document()
        self._routes = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", template).encode()).fullmatch, template)
            for template in document["paths"]
        ]
        self._statuses = {
            template: {405, *more_statuses, *map(int, path["get"]["responses"])}
            for template, path in document["paths"].items()
        }
        self._answers = {
            template: jsonschema_rs.validator_for(
                {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            )
            for template, name in (
                ("/mm/prescriptions", "SearchAnswer"),
                ("/mm/prescriptions/{prescription_id}", "RetrieveAnswer"),
            )
        }

    def route(self, asked: Asked) -> str | None:
        """Return the path of the document that a request asks for, None when it asks for none."""
        return next((template for matches, template in self._routes if matches(asked.path)), None)

    def what_is_wrong(self, asked: Asked, got: Got) -> str | None:
        """Return the first thing that is wrong, None for an answer that may be."""
        route = self.route(asked)
        # An empty last segment is none of a prescription's ids, and may be answered as one or as no path.
        is_empty_id = asked.path == b"/mm/prescriptions/"
        statuses = self._statuses[route] if route else {404, *({200, 405} if is_empty_id else ())}
        if got.status not in statuses:
            return f"HTTP status {got.status} is not published for {route or 'a path that there is not'}"
        # A question about an event is told again with its answer.
        sent = unquote_to_bytes(asked.target)
        if route != "/openapi.json" and any(words in got.body and words not in sent for words in INNER_AFFAIRS):
            return "the body tells of inner affairs"
        if got.headers.get("cache-control") != "no-store":
            return "may be stored"
        for name, value in got.headers.items():
            if not (name.isascii() and value.isascii() and value.isprintable()):
                return f"header {name} holds what a header must not"
        if (wrong := self._answer(route, got)) is not None:
            return wrong
        return self._someone_else(route, asked, got)

    def _answer(self, route: str | None, got: Got) -> str | None:
        validator = self._answers.get(route or "")
        if validator is None or got.status != 200:
            return None
        body = orjson.loads(got.body)
        # With code 5 a search or a retrieve says that it waited in vain; alone it says that something broke inside.
        if body.get("statusCode") == "5" and waiting.HEADER.lower() not in got.headers:
            return "code 5 without having waited: something broke inside"
        error = next(iter(validator.iter_errors(body)), None)
        return None if error is None else f"no published answer: statusCode {body.get('statusCode')!r}"

    def _someone_else(self, route: str | None, asked: Asked, got: Got) -> str | None:
        found = set(TEN_DIGITS.findall(got.body)) & self.known.numbers
        if not found:
            return None
        # As the query reads them: what is asked for stands there as it is.
        mine = {number for number in self.known.numbers if number in unquote_to_bytes(asked.target)}
        if route == "/mm/prescriptions/{prescription_id}":
            key = asked.path.rpartition(b"/")[2].decode("latin-1").upper()
            mine |= {self.known.patients.get(one, "").encode() for one in (key, key[:-1])}
        return None if found <= mine else "shows a patient who was not asked for"


@dataclass(slots=True)
class Fuzzer:
    """Makes requests: the same seed makes the same ones."""

    known: Known
    random: Random
    _ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._ids = sorted(self.known.patients)

    def requests(self, count: int) -> Iterator[Asked]:
        """Yield damaged requests, with a sound one now and then."""
        return (self._one() for _ in range(count))

    def _one(self) -> Asked:
        path, parameters = self._sound()
        headers: dict[str, bytes] = {name: value.encode() for name, value in SOUND.items()}
        for _ in range(self.random.choice((0, 1, 1, 1, 2, 2, 3, 5))):
            self.random.choice((self._damage_parameter, self._damage_parameter, self._damage_header))(
                parameters, headers
            )
        if self.random.random() < 0.25:
            path = self._damage_path(path)
        target = self._encoded(path, safe="/") + (b"?" + self._query(parameters) if parameters else b"")
        if self.random.random() < 0.05:
            target = self._damaged(target)
        method = "GET" if self.random.random() < 0.98 else self.random.choice(("POST", "PUT", "HEAD", "OPTIONS", "X"))
        # No byte of these comes through a server's parser into a request line or a header.
        target = re.sub(rb"[\x00\r\n ]", b"", target)
        return Asked(
            target if target.startswith(b"/") else b"/" + target,
            {name: re.sub(rb"[\x00\r\n]", b"", value).decode("latin-1").strip() for name, value in headers.items()},
            method,
        )

    def _sound(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Return a request as a caller would mean it: path and parameters."""
        pick = self.random.choice
        key = pick(self._ids)
        kind = self.random.random()
        wait = [("waitFor", pick(self.known.positions)), ("waitSeconds", "0")] if self.random.random() < 0.1 else []
        if kind < 0.4:
            path, given = (
                "/mm/prescriptions",
                [
                    ("nhsNumber", self.known.patients[key]),
                    ("earliestDate", pick(("20260101", "20260201"))),
                    ("latestDate", pick(("20260301", "20261231"))),
                    ("prescriptionStatus", pick(("0001", "0006", "9005"))),
                    ("prescriptionVersion", pick(("1", "2", "R1", "R2"))),
                    ("format", "trace-summary"),
                    ("version", pick(("1", "1.0"))),
                    *wait,
                ],
            )
            given = given[:1] + [one for one in given[1:] if self.random.random() < 0.4]
        elif kind < 0.75:
            path, given = f"/mm/prescriptions/{key}", [("issueNumber", pick("1234")), ("format", "trace"), *wait]
            given = [one for one in given if self.random.random() < 0.5]
        elif kind < 0.92:
            source = ("source", pick(self.known.sources))
            path, given = (
                "/rxstore/events",
                pick(
                    (
                        [source, ("id", f"{key}-1"), ("subject", f"{key}A"), ("position", pick(self.known.positions))],
                        [source, ("state", pick(("open", "parked"))), ("limit", "10"), ("after", "events:0:0")],
                    )
                ),
            )
        elif kind < 0.97:
            path, given = f"/rxstore/prescriptions/{key}/history", [("at", "2026-03-01T09:00:00Z")]
        else:
            path, given = pick(("/rxstore/status", "/health/live", "/health/ready", "/metrics", "/nowhere")), []
        return path.encode(), [(name.encode(), value.encode()) for name, value in given]

    def _damage_parameter(self, parameters: list[tuple[bytes, bytes]], headers: dict[str, bytes]) -> None:
        if not parameters:
            parameters.append((b"nhsNumber", self._damaged(b"9990000000")))
            return
        at = self.random.randrange(len(parameters))
        name, value = parameters[at]
        kind = self.random.random()
        if kind < 0.75:
            parameters[at] = (name, self._damaged(value))
        elif kind < 0.85:
            parameters.insert(self.random.randrange(len(parameters) + 1), (name, self._damaged(value)))
        elif kind < 0.95:
            parameters[at] = (self._damaged(name), value)
        else:
            del parameters[at]

    def _damage_header(self, parameters: list[tuple[bytes, bytes]], headers: dict[str, bytes]) -> None:
        name = self.random.choice(MORE_HEADERS)
        value = headers.get(name, self.random.choice((b"1", b"*", b'"abc"', ASID.encode(), b"application/xml", b"a=b")))
        kind = self.random.random()
        if kind < 0.1:
            headers.pop(name, None)
        elif kind < 0.25:  # given twice: servers join them
            headers[name] = value + b"," + self._damaged(value)
        else:
            headers[name] = self._damaged(value)

    def _damage_path(self, path: bytes) -> bytes:
        kind = self.random.random()
        if kind < 0.6:
            head, _, last = path.rpartition(b"/")
            return head + b"/" + self._damaged(last)
        if kind < 0.7:
            return path.swapcase()
        if kind < 0.8:
            return self.random.choice(PATHS)
        at = self.random.randrange(len(path) + 1)
        return path[:at] + self.random.choice(PATHS) + path[at:]

    def _damaged(self, value: bytes) -> bytes:
        random = self.random
        at = random.randrange(len(value) + 1)
        kind = random.randrange(10)
        if kind == 0 and value:
            at %= len(value)
            return value[:at] + bytes([value[at] ^ 1 << random.randrange(8)]) + value[at + 1 :]
        if kind == 1:
            return value[:at] + random.randbytes(random.randint(1, 4)) + value[at:]
        if kind == 2:
            return value[:at] + value[at + random.randint(1, 3) :]
        if kind == 3:
            return value[:at] + value[max(0, at - 4) :]
        if kind == 4:
            return value * random.choice((2, 10, 200))
        if kind == 5:
            return random.choice(STRANGE)
        if kind == 6:
            return random.choice(STRANGE) + value
        if kind == 7:
            return value + random.choice(STRANGE)
        if kind == 8:
            return random.choice((*self._ids, *self.known.patients.values())).encode()
        return value.swapcase()

    def _query(self, parameters: list[tuple[bytes, bytes]]) -> bytes:
        between = self.random.choice((b"&", b"&", b"&", b"&", b"&&", b";"))
        return between.join(self._encoded(name) + b"=" + self._encoded(value) for name, value in parameters)

    def _encoded(self, value: bytes, safe: str = "") -> bytes:
        """Percent-encode all that must be, or nearly nothing, or everything."""
        kind = self.random.random()
        if kind < 0.8:
            return quote_from_bytes(value, safe=safe).encode()
        if kind < 0.9:
            return re.sub(rb"[\x00-\x20#?]", lambda found: b"%%%02X" % found[0][0], value)
        return b"".join(b"/" if byte == 47 and safe else b"%%%02x" % byte for byte in value)


@dataclass(slots=True)
class Findings:
    """What a run of requests came to: answers by path, HTTP status and tracker code, and what was wrong."""

    answers: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Return how many were answered."""
        return sum(self.answers.values())

    def note(self, route: str | None, asked: Asked, got: Got, wrong: str | None) -> None:
        """Take in one answer."""
        is_tracker = got.status == 200 and (route or "").startswith("/mm/")
        self.answers[route or "no path", got.status, orjson.loads(got.body)["statusCode"] if is_tracker else ""] += 1
        if wrong is not None:
            self.wrong.append(f"{wrong}: {asked.method} {asked.target!r} {asked.headers}")

    def listen(self, heard: Heard, known: Known) -> None:
        """Look whether a line that was logged meanwhile names a patient, or has a traceback."""
        names = [number.decode() for number in known.numbers]
        for line in heard.lines:
            if "Traceback" in line or "request_failed" in line or any(name in line for name in names):
                self.wrong.append(f"logged: {line}")


def bytes_damaged(app: Callable[..., Any], known: Known, count: int, seed: int) -> Findings:
    """Send requests whose bytes are damaged."""
    oracle, found = Oracle(known, more_statuses=(403,)), Findings()
    with nobody_waits(), listening() as heard:
        for asked in Fuzzer(known, Random(seed)).requests(count):
            try:
                got = ask(app, asked)
            except Exception as error:
                found.wrong.append(f"raised {type(error).__name__}: {asked.method} {asked.target!r} {asked.headers}")
            else:
                found.note(oracle.route(asked), asked, got, oracle.what_is_wrong(asked, got))
    found.listen(heard, known)
    return found


def from_the_document(app: Callable[..., Any], known: Known, count: int, seed: int) -> Findings:
    """Send what schemathesis makes of the published document: requests that keep it and requests that do not.

    Strings of a schema are no patients, so a quarter of the requests get a caller who may, another quarter a question
    about a patient who is there too, and the last nothing but these: they are answered in any case.
    """
    import hypothesis
    import schemathesis
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi import checks as documented

    asked_of_each = [
        checks.not_a_server_error,
        documented.status_code_conformance,
        documented.content_type_conformance,
        documented.response_headers_conformance,
        documented.response_schema_conformance,
    ]
    oracle, found = Oracle(known), Findings()
    operations = [one.ok() for one in schemathesis.openapi.from_wsgi("/openapi.json", app).get_all_operations()]
    having = [one for one in operations if one.query or one.path_parameters]
    each = max(1, count // (2 * len(having)))
    keys, sounds = cycle(sorted(known.patients)), cycle(("nothing", "caller", "question", "all"))

    def send(operation: Any, mode: GenerationMode, examples: int) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            # In turn, not drawn: what Hypothesis draws hangs on more than its seed, and it repeats itself.
            key, sound = next(keys), next(sounds)
            path, query = case.path_parameters or {}, case.query or {}
            if sound == "all":  # nothing that schemathesis made is left in what the answer hangs on
                case.headers, case.query = dict(SOUND), (query := {})
            elif sound != "nothing":
                case.headers["Spine-From-Asid"] = ASID
            asks_a_patient = operation.path == "/mm/prescriptions" if sound == "all" else "nhsNumber" in query
            if sound in {"question", "all"} and "prescription_id" in path:
                path["prescription_id"] = key
            if sound in {"question", "all"} and asks_a_patient:
                query |= {"nhsNumber": known.patients[key], "earliestDate": "20260101"}
                query.pop("latestDate", None)
            response = case.call()
            url = response.request.path_url
            asked = Asked(url.encode(), dict(response.request.headers), case.method)
            headers = {name.lower(): ",".join(values) for name, values in response.headers.items()}
            got = Got(response.status_code, headers, response.content)
            wrong = oracle.what_is_wrong(asked, got)
            try:
                case.validate_response(response, checks=asked_of_each)
            except* Exception as failures:
                wrong = str(failures.exceptions[0])
            found.note(operation.path, asked, got, wrong)

        one()

    with nobody_waits(), listening() as heard:
        for operation in operations:
            if operation not in having:
                send(operation, GenerationMode.POSITIVE, 1)
        for operation in having:
            send(operation, GenerationMode.POSITIVE, each)
            send(operation, GenerationMode.NEGATIVE, each)
    found.listen(heard, known)
    return found


class Heard(logging.Handler):
    """Keeps every log line, at every level, as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line with what came beside it, times to the microsecond: in all their digits anything can be found."""
        beside = {name: _without_tails(value) for name, value in vars(record).items()}
        self.lines.append(f"{record.name} {record.getMessage()} {beside}" + (record.exc_text or ""))


def _without_tails(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_without_tails, value))
    return round(value, 6) if isinstance(value, float) else value


def quoted(value: bytes | str) -> str:
    """Return a value as it stands in a request line."""
    return quote_from_bytes(value if isinstance(value, bytes) else value.encode(), safe="")


@contextmanager
def filled(server_url: str, template: str, prescriptions: int = 120) -> Iterator[Target]:
    """An API over a new database; its one client, ``ASID``, may ask everything, and no history is known."""
    with new_database(server_url, template=template) as url:
        project_all(url, generated_log(prescriptions, dirty_rate=0.1), seed=1, largest=200)
        with psycopg.connect(url) as connection:
            connection.execute(
                "INSERT INTO rxstore.client (asid, contact, interactions, added_by, valid_from) "
                "VALUES (%s, 'a test', %s, 'test', '2020-01-01')",
                (ASID, list(INTERACTIONS)),
            )
            patients = connection.execute(
                "SELECT stream_key, nhs_number FROM rxstore.prescription WHERE kind = 'created' ORDER BY stream_key"
            ).fetchall()
            sources = connection.execute(
                "SELECT DISTINCT event_source FROM rxstore.set_aside WHERE event_source IS NOT NULL ORDER BY 1"
            ).fetchall()
        engine = read_only_engine(url, role=READER_ROLE)
        try:
            settings = ApiSettings(clock=fixed_clock("2026-02-10T11:32:00Z"), only_registered=True)
            known = Known(dict(patients), tuple(source for (source,) in sources), ("events:0:1", "events:1:1"))
            yield Target(create_app(engine, settings=settings, history=lambda key, at: None), known, url)
        finally:
            engine.dispose()


@contextmanager
def listening() -> Iterator[Heard]:
    """Hear what this process logs at debug level inside the block."""
    root, heard = logging.getLogger(), Heard()
    before = root.level
    root.addHandler(heard)
    root.setLevel(logging.DEBUG)
    try:
        yield heard
    finally:
        root.setLevel(before)
        root.removeHandler(heard)


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Let no request wait for a place in the log that never comes: ``waitFor`` is looked at once."""
    with patch.multiple(waiting, DEFAULT_SECONDS=0.0, MOST_SECONDS=0.0):
        yield
