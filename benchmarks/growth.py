"""Whether projecting slows down as the read model grows: ``python -m benchmarks.growth``.

The same number of further events is projected into stores that already hold few and many prescriptions. Half of them
are lifecycles of new prescriptions, half are the next event of prescriptions drawn at random from all that are stored,
so that nothing a worker remembers helps. Then every statement that a batch runs is explained, on the largest store.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

import click
import psycopg
from psycopg import Cursor

from benchmarks import ground, report
from benchmarks.filling import Filling
from benchmarks.ground import SCHEMA, Store
from benchmarks.projecting import Row, project
from ingest.decode import Decoder
from ingest.partitioning import partitioner
from projector import checkpoints
from projector.batch import Position, Record
from projector.read_model import ReadModel
from projector.recent import RecentStreams
from projector.runner import Batch, Runner, connect

EXPLAINED_EVENTS = 2_000
SHOWN = ("events_per_second", "ratio", "worker us", "postgres us", "broker us", "batches", "peak MB")
READS_AND_CHANGES = ("SELECT", "UPDATE", "DELETE")


@click.command()
@click.option("--stored", multiple=True, type=int, default=(10_000, 1_000_000), show_default=True)
@click.option("--events", default=18_000, show_default=True, help="How many further events to project.")
@click.option("--workers", default=1, show_default=True, help="One, so that no rebalance blurs it.")
@click.option("--repeat", default=1, show_default=True, help="Again, where enough are stored that were not drawn yet.")
@click.option(
    "--shared-buffers",
    default=ground.POSTGRES_SETTINGS["shared_buffers"],
    show_default=True,
    help="PostgreSQL's own memory: a store that is larger reads pages.",
)
@click.option("--batch-records", default="5000", show_default=True, help="RXSTORE_BATCH_RECORDS: several batches.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(
    stored: tuple[int, ...],
    events: int,
    workers: int,
    repeat: int,
    shared_buffers: str,
    batch_records: str,
    as_json: bool,
) -> None:
    """Measure whether projecting costs more the more prescriptions are stored."""
    rows: list[Row] = []
    plans: list[Row] = []
    with ground.ground(postgres={**ground.POSTGRES_SETTINGS, "shared_buffers": shared_buffers}) as on:
        surroundings = report.surroundings(on.database_url)
        for size in sorted(stored):
            with ground.store(on, RXSTORE_BATCH_RECORDS=batch_records) as filled:
                filling = Filling(filled, size)
                filling.fill()
                for run in range(min(repeat, size // (events // 2))):
                    further = list(_further(filling, events, seed=100 + run))
                    ground.timed("published", partial(filled.publish, further))
                    before = _disk(filled)
                    row = project(on, filled, workers, events)
                    touched = {name: round((now - before[name]) / events, 2) for name, now in _disk(filled).items()}
                    rows.append({"stored": f"{size:,}", **{name: row[name] for name in SHOWN}, **touched})
                if size == max(stored):
                    plans = explain(filled, filling)
    for row in rows:
        row["ratio"] = round(row["events_per_second"] / rows[0]["events_per_second"], 3)
    document = {"surroundings": surroundings, "events": events, "workers": workers, "runs": rows, "plans": plans}
    text = "\n\n".join(
        [
            report.table(f"{events:,} further events with so many prescriptions stored, {workers} workers", rows),
            report.table("plans on the largest store: what each statement of a batch scans", plans),
        ]
    )
    report.tell(document, text, as_json=as_json)
    whole = [plan for plan in plans if "Seq Scan on" in plan["scans"] and "changed_" not in plan["scans"]]
    if whole:
        raise SystemExit("a statement reads a whole table: see the plans")


def _disk(filled: Store) -> dict[str, float]:
    """Return how many pages PostgreSQL has looked at and how many it had to read for that, and what it has logged."""
    with filled.connect() as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        row = connection.execute(
            "SELECT blks_hit + blks_read, blks_read, wal_bytes / 1000 FROM pg_stat_wal, pg_stat_database "
            "WHERE datname = current_database()"
        ).fetchone()
    if row is None:
        raise AssertionError("a database has its statistics")
    return {"pages touched": float(row[0]), "pages read": float(row[1]), "log kB": float(row[2])}


def _further(filling: Filling, events: int, *, seed: int) -> Iterator[bytes]:
    """Yield events of new prescriptions and of stored ones in turn."""
    new = ground.events(events - events // 2, seed=seed)
    for known in filling.next_events(events // 2, Random(seed)):
        yield known
        yield next(new)
    yield from new


class Recording(Cursor[Any]):
    """Notes what is executed."""

    executed: list[tuple[str, Any]] = []  # noqa: RUF012 - of the one session that explains

    def execute(self, query: Any, params: Any = None, **options: Any) -> Recording:  # noqa: ANN401 - as psycopg has it
        """Execute and note."""
        self.executed.append((str(query), params))
        super().execute(query, params, **options)
        return self


def explain(filled: Store, filling: Filling) -> list[Row]:
    """Project one batch in this process and explain all statements that it ran, each as it was run."""
    decode = Decoder(partition_of=partitioner("murmur2", 1))
    lines = filling.next_events(EXPLAINED_EVENTS, Random(999))
    items = [
        decode(Record(Position("explained", 0, at), 0, ground.stream_key(line), line)) for at, line in enumerate(lines)
    ]
    with connect(filled.database_url) as connection:
        claim = checkpoints.claim(connection, SCHEMA, "explained", 0, owner="benchmark", topic_id=None, first=0)
        connection.cursor_factory = Recording
        Recording.executed.clear()
        runner = Runner(connection, ReadModel(SCHEMA), decode, RecentStreams(0), lambda positions: {})
        counts = runner.project_batch({0: claim}, Batch(items, {0: len(items)}))
        executed = list(Recording.executed)
        connection.cursor_factory = Cursor
        if counts.folded != EXPLAINED_EVENTS:
            raise AssertionError(f"{counts.folded} of {EXPLAINED_EVENTS} events folded")
        plans: dict[str, Row] = {}
        for query, params in executed:
            if query.startswith(READS_AND_CHANGES) and query not in plans:
                plans[query] = {"statement": _short(query), "scans": _scans(connection, query, params)}
    return list(plans.values())


def _scans(connection: psycopg.Connection[Any], query: str, params: Any) -> str:  # noqa: ANN401 - as psycopg has it
    lines = [row[0].strip() for row in connection.execute(f"EXPLAIN (COSTS OFF) {query}", params)]
    return ", ".join(dict.fromkeys(line.removeprefix("->").strip() for line in lines if " Scan " in line))


def _short(query: str) -> str:
    words = query.split()
    table = next((word for word in words if SCHEMA in word), "")
    return f"{words[0]} {table} {'… ' if words[0] == 'SELECT' else ''}{query[query.find('WHERE') :][:60]}"


if __name__ == "__main__":
    main()
