"""What security costs, and what too many callers do: ``python -m benchmarks.securing``.

In the same run, on the same rows: look-ups over kept connections by plain HTTP and by TLS with client certificates,
each without and with the audit trail, by turns; TLS handshakes with a look-up each; then more callers than the server
has threads and queue, and how it does while they ask and after them. Callers are processes on the same machine and
share its cores with the server, so the server's own CPU time for a request is told beside the rate.
"""

from __future__ import annotations

import http.client
import multiprocessing
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any

import click
import psutil

from benchmarks import ground, report
from benchmarks.asking import ASID, NOW, START_SECONDS, _retrieve
from benchmarks.ground import Store
from benchmarks.usage import MICROSECONDS, Tree
from query_api.certificates import from_pem
from query_api.server import THREADS
from query_api.worker import WAITING_A_THREAD
from rxstore import auditing, embedded, registering, store
from rxstore.authority import Authority, Issued
from rxstore.settings import load

ANCHORS = "anchors.ndjson"
FORKED = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to serve; ``client`` is what a caller shows."""

    name: str
    arguments: tuple[str, ...]
    settings: dict[str, str]
    authority: Authority | None = None
    client: Issued | None = None

    def connection(self, address: str) -> http.client.HTTPConnection:
        """Return a connection that is not open yet."""
        if self.authority is None or self.client is None:
            return http.client.HTTPConnection(address, timeout=30)
        context = ssl.create_default_context(cafile=self.authority.certfile)
        context.load_cert_chain(self.client.certfile, self.client.keyfile)
        return http.client.HTTPSConnection(address, context=context, timeout=30)


@dataclass(slots=True)
class Heard:
    """What callers got: how often which HTTP status, and after how many seconds."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def add(self, other: Heard) -> None:
        """Take in what others got."""
        self.statuses += other.statuses
        self.seconds += other.seconds

    def p99_ms(self) -> float:
        """Return the time within which all but one of a hundred had their answer, in milliseconds."""
        return round(quantiles(self.seconds, n=100)[98] * 1000, 1) if len(self.seconds) > 1 else 0.0


@click.command()
@click.option("--prescriptions", default=5_000, show_default=True, help="How many are stored.")
@click.option("--seconds", default=6.0, show_default=True, help="How long each measurement takes.")
@click.option("--repeat", default=3, show_default=True, help="How often each way is measured, by turns.")
@click.option("--clients", default=8, show_default=True, help="How many ask at the same time.")
@click.option("--workers", default=2, show_default=True, help="Server processes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(prescriptions: int, seconds: float, repeat: int, clients: int, workers: int, as_json: bool) -> None:
    """Measure what TLS and the audit trail cost, and what an overload does."""
    with (
        ground.ground() as on,
        ground.store(on) as stored,
        tempfile.TemporaryDirectory(prefix="rxstore-securing-") as directory,
    ):
        surroundings = report.surroundings(on.database_url)
        events = int(prescriptions * ground.EVENTS_PER_PRESCRIPTION)
        ground.timed("published", lambda: stored.publish(ground.events(events)))
        stored.run("project", "--until-caught-up")
        with stored.connect() as connection:
            connection.execute("VACUUM ANALYZE")
            known = connection.execute(
                "SELECT stream_key, prescription_id FROM rxstore.prescription WHERE kind = 'created'"
            ).fetchall()
        paths = [_retrieve(row) for row in known]
        ways = _ways(stored, Path(directory))
        rows: list[dict[str, Any]] = []
        for _ in range(repeat):
            for way in ways:
                with serving(stored, way, workers) as (address, server):
                    rows.append(_rate(way, address, server, paths, clients, seconds))
                    ground.say(f"{way.name}: {rows[-1]['a second']:,}/s")
        told = [_middle(way.name, rows) for way in ways]
        for row in told:
            row["of plain"] = round(row["a second"] / told[0]["a second"], 2)
        secured = ways[-1]
        with serving(stored, secured, workers) as (address, server):
            shaken = _handshakes(secured, address, paths, clients, seconds)
            overload = _overload(secured, address, paths, clients, seconds, workers)
        trail = _trail(stored, Path(directory))
    document = {"surroundings": surroundings, "ways": told, "all": rows, "handshakes": shaken, "overload": overload}
    document["trail"] = trail
    title = f"{len(paths):,} prescriptions, {clients} callers, {workers} server processes, retrieve"
    report.tell(
        document,
        "\n\n".join(
            [
                report.table(title, told),
                report.table(f"a handshake for each look-up, {secured.name}", [shaken]),
                report.table(f"overload, {secured.name}", overload),
                report.table("the audit trail of all of it, verified", [trail]),
            ]
        ),
        as_json=as_json,
    )


def _ways(stored: Store, directory: Path) -> list[Way]:
    authority = Authority(directory)
    server, client = authority.server("server", ["127.0.0.1"]), authority.client("caller")
    with store.engine(load({"RXSTORE_DATABASE_URL": stored.database_url})) as engine:
        fingerprint = from_pem(client.certfile.read_bytes()).fingerprint
        long_ago = datetime(2026, 1, 1, tzinfo=UTC)  # before the present that the server is told
        registration = registering.Registration(ASID, "the benchmark", valid_from=long_ago, fingerprints=(fingerprint,))
        registering.add(engine, registration, who="benchmarks.securing")
    tls = {
        "RXSTORE_TLS_CERTFILE": str(server.certfile),
        "RXSTORE_TLS_KEYFILE": str(server.keyfile),
        "RXSTORE_TLS_CLIENT_CAFILE": str(authority.certfile),
    }
    audit, none = _audited(directory), {"RXSTORE_AUDIT": "off"}
    return [
        Way("plain HTTP", ("--insecure",), none),
        Way("plain HTTP, audit", ("--insecure",), audit),
        Way("TLS", (), tls | none, authority, client),
        Way("TLS, audit", (), tls | audit, authority, client),
    ]


def _audited(directory: Path) -> dict[str, str]:
    public, _, hash_ = auditing.make_keys(directory)
    return {
        "RXSTORE_AUDIT": "on",
        "RXSTORE_AUDIT_PUBLIC_KEY_FILE": str(public),
        "RXSTORE_AUDIT_HASH_KEY_FILE": str(hash_),
        "RXSTORE_AUDIT_ANCHOR_FILE": str(directory / ANCHORS),
    }


def _trail(stored: Store, directory: Path) -> dict[str, Any]:
    """Verify the trail that all of it left, and say how many records shared a commit and what one takes on disk."""
    stored.run("audit", "verify", "--anchors", str(directory / ANCHORS))
    with stored.connect() as connection:
        count, commits, size = connection.execute(
            "SELECT count(*), count(DISTINCT xmin::text), "
            "(SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('rxstore.audit') WHERE isleaf) "
            "FROM rxstore.audit"
        ).fetchone()
    return {"records": count, "a commit": round(count / commits, 2), "bytes a record": round(size / count)}


@contextmanager
def serving(stored: Store, way: Way, workers: int) -> Iterator[tuple[str, Tree]]:
    """Serve in one way; the block gets the address and the processes."""
    address = f"127.0.0.1:{embedded.free_port()}"
    settings = {**way.settings, "RXSTORE_NOW": NOW, "RXSTORE_RATE_LIMIT": "0", "RXSTORE_LOG_LEVEL": "warning"}
    process = stored.start("serve", *way.arguments, "--bind", address, "--workers", str(workers), **settings)
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                with closing(way.connection(address)) as connection:
                    _ask(connection, "/health/live")
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    raise SystemExit("rxstore serve did not answer") from None
                time.sleep(0.1)
        yield address, Tree(psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(30)


def _ask(connection: http.client.HTTPConnection, path: str) -> str:
    connection.request("GET", path, headers={"Spine-From-Asid": ASID, "Accept": "application/json"})
    response = connection.getresponse()
    body = response.read()
    if response.status == 200 and path.startswith("/mm") and b'"statusCode":"0"' not in body:
        raise SystemExit(f"the API answered no prescription: {body[:80]!r}")
    return str(response.status)


def _rate(way: Way, address: str, server: Tree, paths: Sequence[str], clients: int, seconds: float) -> dict[str, Any]:
    _callers(way, address, paths, clients, 1.0)  # every thread has its connection to the database then
    before = server.cpu_seconds()
    heard = _callers(way, address, paths, clients, seconds)
    used = server.cpu_seconds() - before
    count = heard.statuses["200"]
    if heard.statuses.total() != count:
        raise SystemExit(f"not every look-up was answered: {dict(heard.statuses)}")
    return {
        "what": way.name,
        "a second": round(count / seconds),
        "server us": round(used / count * MICROSECONDS),
        "p99 ms": heard.p99_ms(),
    }


def _middle(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return report.middle([row for row in rows if row["what"] == name])


def _handshakes(way: Way, address: str, paths: Sequence[str], clients: int, seconds: float) -> dict[str, Any]:
    heard = _callers(way, address, paths, clients, seconds, is_kept=False)
    return {"a second": round(heard.statuses["200"] / seconds), "p99 ms": heard.p99_ms()}


def _overload(
    way: Way, address: str, paths: Sequence[str], clients: int, seconds: float, workers: int
) -> list[dict[str, Any]]:
    """Ask with as many callers as there is work for, then with twice as many as may be under way, then as before."""
    most = workers * THREADS * (1 + WAITING_A_THREAD)
    found = []
    for what, count in (("before", clients), ("twice what may wait", 2 * most), ("after", clients)):
        heard = _callers(way, address, paths, count, seconds)
        found.append(
            {
                "what": what,
                "callers": count,
                "answered a second": round(heard.statuses["200"] / seconds),
                "refused a second": round((heard.statuses["503"] + heard.statuses["429"]) / seconds),
                "failed": heard.statuses["failed"],
                "p99 ms": heard.p99_ms(),
            }
        )
    return found


def _callers(
    way: Way, address: str, paths: Sequence[str], count: int, seconds: float, *, is_kept: bool = True
) -> Heard:
    """Let callers ask as fast as they are answered, spread over two processes."""
    pipes, processes = [], []
    for number in range(2):
        mine, its = FORKED.Pipe(duplex=False)
        arguments = (way, address, paths, (count + number) // 2, seconds, is_kept, number, its)
        processes.append(FORKED.Process(target=_process, args=arguments))
        processes[-1].start()
        pipes.append(mine)
    heard = Heard()
    for pipe in pipes:
        heard.add(pipe.recv())
    for process in processes:
        process.join()
    return heard


def _process(
    way: Way, address: str, paths: Sequence[str], count: int, seconds: float, is_kept: bool, seed: int, pipe: Pipe
) -> None:
    heard = [Heard() for _ in range(count)]
    threads = [
        threading.Thread(target=_caller, args=(way, address, paths, seconds, is_kept, Random(f"{seed} {number}"), mine))
        for number, mine in enumerate(heard)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Heard()
    for each in heard:
        total.add(each)
    pipe.send(total)


def _caller(
    way: Way, address: str, paths: Sequence[str], seconds: float, is_kept: bool, random: Random, heard: Heard
) -> None:
    connection = way.connection(address)
    if is_kept:
        connection.connect()
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        try:
            status = _ask(connection, random.choice(paths))
        except (OSError, http.client.HTTPException):
            status = "failed"
            connection.close()
        heard.statuses[status] += 1
        if status == "200":
            heard.seconds.append(time.perf_counter() - began)
        if not is_kept:
            connection.close()
        elif status in {"503", "429"}:
            time.sleep(min(1.0, max(0.0, until - time.perf_counter())))  # as Retry-After asks
    connection.close()


if __name__ == "__main__":
    main()
