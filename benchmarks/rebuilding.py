"""Whether a large rebuild has the rows of live, and how long each step takes: ``python -m benchmarks.rebuilding``.

A log of generated lifecycles with some dirty events is published in two halves; the live generation projects the
first, operators decide about many of the records that were set aside, and it projects the second. Then a generation is
built beside it from the same log, verified and promoted by the commands that an operator would type, and every table
of both is compared once more here, column for column.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from random import Random
from typing import Any

import click
import psycopg

from benchmarks import ground, report
from benchmarks.building import GENERATION, build
from benchmarks.ground import SCHEMA, Store
from benchmarks.setting_aside import made, publish
from projector.tables import READ_MODEL
from rxstore.decide import desk

DECIDED_BY = "benchmarks.rebuilding"
PATIENCE_SECONDS = 300.0
# Who has a partition and when it moved: all else must be the same.
BUILT_BY_ITSELF = {
    "checkpoint": {"epoch", "owner", "moved_at", "caught_up_at", "hold_at", "hold_until", "leader_epoch"}
}
WRITTEN_AT = {"set_aside": {"since"}}


@click.command()
@click.option("--events", default=1_000_000, show_default=True, help="Events of the lifecycles.")
@click.option("--dirty-rate", default=0.01, show_default=True)
@click.option("--decisions", default=500, show_default=True, help="How many records are retried or skipped.")
@click.option("--workers", default=2, show_default=True)
@click.option("--partitions", default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(events: int, dirty_rate: float, decisions: int, workers: int, partitions: int, as_json: bool) -> None:
    """Rebuild a large log with dirty events and decisions beside the live generation, and compare every row."""
    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        with ground.store(on, partitions=partitions) as store:
            log = made(events, dirty_rate)
            half = events // 2
            published = ground.timed("published", lambda: publish(store, itertools.islice(log, half)))
            ground.timed("projected", lambda: project(store, workers, published))
            decided = decide(store, decisions)
            published += ground.timed("published", lambda: publish(store, log))
            ground.timed("projected", lambda: project(store, workers, published))
            await_decisions(store, workers)
            steps = [{"step": "stage", **build(on, store, workers, published)}]
            began = time.monotonic()
            verified = command(store, "rebuild", "verify", "--json")
            steps.append({"step": "verify", "whole s": round(time.monotonic() - began, 2)})
            began = time.monotonic()
            command(store, "rebuild", "promote", "--json")
            steps.append({"step": "promote", "whole s": round(time.monotonic() - began, 2)})
            tables = compare(store)
    document = {
        "surroundings": surroundings,
        "records": published,
        "decisions": decided,
        "steps": steps,
        "verified": verified,
        "tables": tables,
    }
    title = f"{published:,} records, {dirty_rate:.1%} dirty, {decided:,} decisions, {workers} workers"
    told = [report.table(title, steps), "", report.table("live and rebuilt, all columns", tables)]
    report.tell(document, "\n".join(told), as_json=as_json)
    if not verified["clean"] or not all(row["equal"] for row in tables):
        raise SystemExit("live and rebuilt differ")


def project(store: Store, workers: int, published: int) -> int:
    """Let the live generation catch up; return how many records the log has."""
    store.run("project", "--until-caught-up", "--workers", str(workers))
    return published


def decide(store: Store, count: int) -> int:
    """Record decisions about some of what is open, half of them retries, half skips."""
    random = Random(1)
    with desk(store.settings) as sitting:
        nothing: dict[str, Any] = dict.fromkeys(("reason", "stream", "source", "older_than"))
        found = sitting.search("skip", **nothing, limit=100_000)
        found.sort(key=lambda candidate: candidate.position)
        chosen = random.sample([one for one in found if one.state == "open"], min(count, len(found)))
        for action, some in (("retry", chosen[::2]), ("skip", chosen[1::2])):
            sitting.decide(action, some, why="a benchmark", who=DECIDED_BY)
    return len(chosen)


def await_decisions(store: Store, workers: int) -> None:
    """Run a projector until every decision has its place and the live generation has applied it."""
    waiting = (
        "SELECT EXISTS (SELECT FROM rxstore.decision d "
        f"LEFT JOIN {SCHEMA}.checkpoint c ON c.topic = d.topic AND c.partition_number = d.stream_partition "
        "WHERE d.number IS NULL OR d.number > c.decisions_applied)"
    )
    projector = store.start("project", "--workers", str(workers))
    until = time.monotonic() + PATIENCE_SECONDS
    try:
        with store.connect() as connection:
            while connection.execute(waiting).fetchone() != (False,):
                if time.monotonic() > until:
                    raise SystemExit("the decisions were not applied in time")
                time.sleep(0.2)
    finally:
        projector.terminate()
        projector.wait()


def command(store: Store, *arguments: str) -> dict[str, Any]:
    """Run a command as an operator would, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "rxstore.cli.main", *arguments],
        env={**os.environ, **store.environment},
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"rxstore {' '.join(arguments)} ended with exit code {done.returncode}: {done.stdout.decode()}"
        )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def compare(store: Store) -> list[dict[str, Any]]:
    """Return per table the rows of both generations, and whether an ordered checksum of them is the same."""
    rows = []
    with store.connect() as connection:
        connection.execute("SET work_mem = '256MB'")
        for name, table in READ_MODEL.tables.items():
            left_out = BUILT_BY_ITSELF.get(name, set()) | WRITTEN_AT.get(name, set())
            columns = ", ".join(column.name for column in table.columns if column.name not in left_out)
            live, built = (_checksum(connection, schema, name, columns) for schema in (SCHEMA, f"rx_{GENERATION}"))
            rows.append({"table": name, "live": live[0], "rebuilt": built[0], "equal": live == built})
    return rows


def _checksum(connection: psycopg.Connection[Any], schema: str, name: str, columns: str) -> tuple[int, str]:
    row = connection.execute(
        f"SELECT count(*), coalesce(md5(string_agg(h, '' ORDER BY h)), '') "
        f"FROM (SELECT md5(ROW({columns})::text) AS h FROM {schema}.{name}) t"
    ).fetchone()
    return (int(row[0]), str(row[1])) if row else (0, "")


if __name__ == "__main__":
    main()
