"""What a build costs those who ask the API: ``python -m benchmarks.throttling``.

In one run, on the same rows, at the same steady rate of questions over HTTP: nobody builds; a generation is built as
fast as it can; it is built with ``--throttle auto``. Broker, database, workers and API share the machine, so this is
the hard case.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import quantiles
from typing import Any

import click
import psycopg

from benchmarks import ground, report
from benchmarks.asking import serving
from benchmarks.ground import SCHEMA, Store
from benchmarks.switching import Load, paths_of

START_SECONDS = 60.0
LOOK_EVERY_SECONDS = 0.2


@click.command()
@click.option("--events", default=400_000, show_default=True, help="How long the log is that is built from.")
@click.option("--seconds", default=30.0, show_default=True, help="How long is asked in each case, at most.")
@click.option("--per-second", default=50.0, show_default=True, help="Requests a second, over all clients.")
@click.option("--clients", default=8, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes that build.")
@click.option("--p99-ms", default=20, show_default=True, help="RXSTORE_THROTTLE_P99_MS.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(
    events: int, seconds: float, per_second: float, clients: int, workers: int, p99_ms: int, as_json: bool
) -> None:
    """Measure how long answers take while nobody builds, while one is built freely, and while one is throttled."""
    rows: list[dict[str, Any]] = []
    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        with ground.store(on, RXSTORE_THROTTLE_P99_MS=str(p99_ms)) as store:
            ground.timed("published", lambda: store.publish(ground.events(events)))
            store.run("project", "--until-caught-up")
            with store.connect() as connection, serving(store, 2) as address:
                connection.execute("VACUUM ANALYZE")
                paths = paths_of(connection, SCHEMA)
                for case, options in (("nobody builds", None), ("a build", ()), ("throttled", ("--throttle", "auto"))):
                    load = Load(address, paths, clients, per_second)
                    with building(store, connection, workers, options):
                        rows.append({"case": case, **asked(connection, load, seconds, options is not None)})
    for row in rows:
        row["p99 ratio"] = round(row["p99 ms"] / rows[0]["p99 ms"], 1)
    title = f"{per_second:.0f} questions a second, {len(paths):,} prescriptions, {surroundings['cores']} cores"
    report.tell({"surroundings": surroundings, "rows": rows}, report.table(title, rows), as_json=as_json)


@contextmanager
def building(
    store: Store, connection: psycopg.Connection[Any], workers: int, options: tuple[str, ...] | None
) -> Iterator[None]:
    """Build a generation meanwhile, from the moment at which its first partition is claimed; then give it up."""
    if options is None:
        yield
        return
    name = "throttled" if options else "free"  # a name is given once
    build = store.start("rebuild", "stage", "--name", name, "--workers", str(workers), *options)
    until = time.monotonic() + START_SECONDS
    while not _built(connection)[1]:
        if build.poll() is not None or time.monotonic() > until:
            raise SystemExit("the build did not begin")
        time.sleep(LOOK_EVERY_SECONDS)
    try:
        yield
    finally:
        build.send_signal(signal.SIGTERM)
        build.wait()
        store.run("rebuild", "abort", name)


def asked(connection: psycopg.Connection[Any], load: Load, seconds: float, is_building: bool) -> dict[str, Any]:
    """Ask for so long, or until the build is done, and say how long answers took and how fast was built meanwhile."""
    before = _built(connection)[0] if is_building else 0
    with ThreadPoolExecutor(load.clients) as pool:
        began = time.monotonic()
        asking = [pool.submit(load.ask, number) for number in range(load.clients)]
        while time.monotonic() - began < seconds and not (is_building and _is_done(connection)):
            time.sleep(LOOK_EVERY_SECONDS)
        load.stopping.set()
        whole = time.monotonic() - began
        built = _built(connection)[0] - before if is_building else 0
        for one in asking:
            one.result()
    points = quantiles(load.seconds, n=100)
    return {
        "seconds": round(whole, 1),
        "requests": len(load.seconds),
        "wrong": len(load.wrong),
        "p50 ms": round(points[49] * 1000, 2),
        "p99 ms": round(points[98] * 1000, 2),
        "built a second": round(built / whole),
    }


def _built(connection: psycopg.Connection[Any]) -> tuple[int, bool]:
    """Return how many events a build has folded, and whether a worker has begun."""
    row = connection.execute(
        "SELECT coalesce(sum(p.folded_to), 0), count(*) > 0 FROM rxstore.progress p "
        "JOIN rxstore.generation g ON g.name = p.generation WHERE g.state IN ('building', 'ready')"
    ).fetchone()
    return (int(row[0]), bool(row[1])) if row else (0, False)


def _is_done(connection: psycopg.Connection[Any]) -> bool:
    asked = "SELECT NOT EXISTS (SELECT FROM rxstore.generation WHERE state = 'building')"
    return connection.execute(asked).fetchone() == (True,)


if __name__ == "__main__":
    main()
