"""How fast the API answers: ``python -m benchmarks.asking``.

In the same run, on the same rows: one indexed SELECT alone through psycopg (the floor of the database), an endpoint
that asks nothing (the floor of the server: /health/live), and the tracker's two questions through ``rxstore serve``.
The server's log counts the statements that each question costs.
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from statistics import quantiles
from typing import Any

import click
import psycopg

from benchmarks import ground, report
from benchmarks.ground import Store
from rxstore import embedded

ASID = "200000000946"
NOW = "2026-02-01T12:00:00Z"
START_SECONDS = 30.0
COUNTED_AFTER_SECONDS = 11.0  # PostgreSQL's idle sessions hand their counters in after ten
INDEXED = "SELECT prescription_id FROM rx_g1.prescription WHERE stream_key = %s"

Ask = Callable[[], None]


@click.command()
@click.option("--prescriptions", default=20_000, show_default=True, help="How many are stored.")
@click.option("--requests", default=4_000, show_default=True, help="How many of each kind, over all clients.")
@click.option("--clients", default=4, show_default=True, help="How many ask at the same time.")
@click.option("--workers", default=2, show_default=True, help="Server processes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(prescriptions: int, requests: int, clients: int, workers: int, as_json: bool) -> None:
    """Measure look-ups and searches over HTTP, against floors of the same run."""
    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        with ground.store(on) as store:
            events = int(prescriptions * ground.EVENTS_PER_PRESCRIPTION)
            ground.timed("published", lambda: store.publish(ground.events(events)))
            store.run("project", "--until-caught-up")
            with store.connect() as connection:
                connection.execute("VACUUM ANALYZE")
                known = connection.execute(
                    "SELECT stream_key, prescription_id, nhs_number FROM rxstore.prescription "
                    "WHERE kind = 'created' ORDER BY stream_key"
                ).fetchall()
            with serving(store, workers) as address:
                rows = _measure(store, address, known, requests, clients)
                statements = _statements(store, address, known)
    for row in rows:
        row["ratio"] = round(row["p50 ms"] / rows[0]["p50 ms"], 1)
    document = {"surroundings": surroundings, "rows": rows, "statements": statements}
    title = (
        f"{len(known):,} prescriptions, {clients} clients, {workers} server processes, {surroundings['cores']} cores"
    )
    told = ", ".join(f"{name} {count}" for name, count in statements.items())
    report.tell(
        document,
        "\n".join(
            [report.table(title, rows), "", "ratio: of the medians, to one indexed SELECT", f"statements: {told}"]
        ),
        as_json=as_json,
    )


def _measure(
    store: Store, address: str, known: list[tuple[Any, ...]], requests: int, clients: int
) -> list[dict[str, Any]]:
    def select(random: Random) -> Iterator[Ask]:
        with store.connect() as connection:
            while True:
                key = random.choice(known)[0]
                yield lambda key=key: connection.execute(INDEXED, (key,), prepare=True).fetchone()  # type: ignore[misc]

    def over_http(path_of: Callable[[tuple[Any, ...]], str]) -> Callable[[Random], Iterator[Ask]]:
        def make(random: Random) -> Iterator[Ask]:
            connection = http.client.HTTPConnection(address, timeout=10)
            while True:
                path = path_of(random.choice(known))
                yield lambda path=path: _get(connection, path)  # type: ignore[misc]

        return make

    kinds = {
        "one indexed SELECT": select,
        "HTTP that asks nothing": over_http(lambda _: "/health/live"),
        "retrieve": over_http(_retrieve),
        "search": over_http(_search),
    }
    return [_kind(name, make, requests, clients) for name, make in kinds.items()]


def _retrieve(row: tuple[Any, ...]) -> str:
    return f"/mm/prescriptions/{urllib.parse.quote(row[1], safe='')}?format=trace"


def _search(row: tuple[Any, ...]) -> str:
    return f"/mm/prescriptions?format=trace-summary&nhsNumber={row[2]}"


def _get(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path, headers={"Spine-From-Asid": ASID, "Accept": "application/json"})
    response = connection.getresponse()
    body = response.read()
    if response.status != 200 or (path.startswith("/mm") and b'"statusCode":"5"' in body.replace(b": ", b":")):
        raise SystemExit(f"the API answered {response.status} and no prescription")


def _kind(name: str, make: Callable[[Random], Iterator[Ask]], requests: int, clients: int) -> dict[str, Any]:
    taken: list[float] = []
    start = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        asks = make(Random(number))
        for _ in range(50):
            next(asks)()
        start.wait(START_SECONDS)
        mine = []
        for _ in range(requests // clients):
            ask = next(asks)
            began = time.perf_counter()
            ask()
            mine.append(time.perf_counter() - began)
        taken.extend(mine)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    start.wait(START_SECONDS)
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    cut = quantiles(taken, n=100)
    return {
        "what": name,
        "a second": round(len(taken) / seconds),
        "p50 ms": round(cut[49] * 1000, 3),
        "p95 ms": round(cut[94] * 1000, 3),
        "p99 ms": round(cut[98] * 1000, 3),
    }


def _statements(store: Store, address: str, known: list[tuple[Any, ...]]) -> dict[str, float]:
    """Count the transactions that the database commits for a hundred questions of each kind, each one statement."""
    found = {}
    connection = http.client.HTTPConnection(address, timeout=10)
    for name, path_of in {"retrieve": _retrieve, "search": _search}.items():
        before = _committed(store)
        for row in known[:100]:
            _get(connection, path_of(row))
        found[name] = (_committed(store) - before - 1) / 100  # our own look is one
    return found


def _committed(store: Store) -> int:
    """Return the transactions committed in the database, once every idle session has handed its counters in."""
    time.sleep(COUNTED_AFTER_SECONDS)
    with psycopg.connect(store.database_url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    return int(row[0]) if row else 0


@contextmanager
def serving(store: Store, workers: int) -> Iterator[str]:
    address = f"127.0.0.1:{embedded.free_port()}"
    process = store.start("serve", "--insecure", "--bind", address, "--workers", str(workers), RXSTORE_NOW=NOW)
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                _get(http.client.HTTPConnection(address, timeout=5), "/health/live")
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    raise SystemExit("rxstore serve did not answer") from None
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(15)


if __name__ == "__main__":
    main()
