"""The API as a server of several processes: it starts, shares its metrics, says nothing about patients, and stops."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from rxstore.embedded import LOOPBACK, answers, free_port

NHS = "9912003489"
ID = "3AF2CB-C86002-0000BX"
# A database that nobody serves: the server must start and answer all the same.
PROGRAM = """
import logging, sys
from query_api.server import run
from query_api.wsgi import application
logging.basicConfig(level=logging.DEBUG)
try:
    run(lambda: application({"RXSTORE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/rx"}), sys.argv[1], workers=2)
finally:
    print("the caller goes on")
"""


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen
    port: int
    log: Path
    temporary: Path

    def get(self, path):
        connection = HTTPConnection(LOOPBACK, self.port, timeout=30)
        connection.request("GET", path, headers={"Spine-From-Asid": "200000000946"})
        with closing(connection), connection.getresponse() as response:
            return response.read().decode()

    def headers(self, path):
        connection = HTTPConnection(LOOPBACK, self.port, timeout=30)
        connection.request("GET", path)
        with closing(connection), connection.getresponse() as response:
            return {name.lower(): value for name, value in response.getheaders()}

    def status(self, path, **headers):
        with socket.create_connection((LOOPBACK, self.port), timeout=30) as connection:
            lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *(f"{k}: {v}" for k, v in headers.items())]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            return int(connection.makefile("rb").readline().split()[1])

    def send_what_is_no_http(self):
        with socket.create_connection((LOOPBACK, self.port), timeout=30) as connection:
            connection.sendall(f"GET /mm/prescriptions?nhsNumber={NHS} NONSENSE/9\r\n\r\n".encode())
            return connection.makefile("rb").readline()

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(30)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    port, log = free_port(), tmp_path / "log"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"{LOOPBACK}:{port}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    try:
        while not answers(port):
            assert process.poll() is None, log.read_text()
        yield Served(process, port, log, temporary)
    finally:
        process.kill()
        process.wait(30)


def test_a_server_answers_counts_and_stops(served):
    assert served.get("/health/live") == '{"live": true}'
    for _ in range(4):
        assert '"statusCode":"5"' in served.get(f"/mm/prescriptions?nhsNumber={NHS}")
        assert '"statusCode":"5"' in served.get(f"/mm/prescriptions/{ID}")
    assert b"400" in served.send_what_is_no_http()

    metrics = served.get("/metrics")
    assert 'rxstore_api_requests_total{http_status="200",path="/mm/prescriptions",tracker_code="5"} 4.0' in metrics

    assert served.stop() == 0
    assert list(served.temporary.iterdir()) == []
    log = served.log.read_text()
    assert log.count("/mm/prescriptions/{prescription_id} 200 5") == 4
    assert log.count("the caller goes on") == 1
    assert "a request that is no valid HTTP was refused" in log
    assert NHS not in log
    assert ID not in log


def test_no_answer_says_what_serves_and_none_may_be_stored(served):
    for path in ("/health/live", "/metrics", "/openapi.json", f"/mm/prescriptions?nhsNumber={NHS}", "/nowhere"):
        headers = served.headers(path)
        assert headers["cache-control"] == "no-store", path
        assert "server" not in headers, path


def test_no_header_changes_what_a_request_asks_for(served):
    assert served.status("/health/live", PATH_INFO="/nowhere", SCRIPT_NAME="/health") == 200
    assert served.status("/nowhere", PATH_INFO="/health/live", X_Forwarded_Proto="https") == 404


def test_a_server_stops_on_ctrl_c(served):
    served.get("/health/live")

    assert served.stop(signal.SIGINT) == 0
    assert list(served.temporary.iterdir()) == []


def test_plain_http_is_refused_on_an_address_that_others_reach():
    from query_api.server import run

    before = set(Path(tempfile.gettempdir()).glob("rxstore-metrics-*"))
    with pytest.raises(ValueError, match="loopback"):
        run(lambda: pytest.fail("must not start"), "0.0.0.0:8443")
    assert set(Path(tempfile.gettempdir()).glob("rxstore-metrics-*")) == before
