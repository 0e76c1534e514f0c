"""How long two generations take to compare: ``python -m benchmarks.verifying``.

A read model is filled with many prescriptions (``benchmarks.filling``), copied into a second generation, and one
status of a hundred is changed there; then what ``rxstore rebuild verify`` asks of PostgreSQL is timed, clean and with
these differences.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click

from benchmarks import ground, report
from benchmarks.filling import Filling
from projector import generations, verify
from rxstore import store

NEW = "g2"


@click.command()
@click.option("--prescriptions", default=1_000_000, show_default=True, help="How many are stored.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(prescriptions: int, as_json: bool) -> None:
    """Time the comparison of two generations."""
    with ground.ground() as on, ground.store(on) as stored, store.engine(stored.settings) as engine:
        surroundings = report.surroundings(on.database_url)
        Filling(stored, prescriptions).fill()
        live = store.live_generation(engine)
        with engine.begin() as connection:
            generations.build(connection, NEW)
        with stored.connect() as session:
            for table in verify.COMPARED:
                session.execute(f"INSERT INTO rx_{NEW}.{table} SELECT * FROM {live.schema}.{table}")  # type: ignore[arg-type]
            session.execute("VACUUM ANALYZE")
        new = replace(live, name=NEW)
        rows: list[dict[str, Any]] = []
        for what in ("equal", "one issue of 10,000 differs"):
            began = time.monotonic()
            with engine.connect().execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            ) as snapshot:
                found = verify.compare(snapshot, live, new, {})
            rows.append(
                {
                    "what": what,
                    "rows": sum(counts.live for counts in found.tables.values()),
                    "differing": sum(counts.differing for counts in found.tables.values()),
                    "seconds": round(time.monotonic() - began, 1),
                }
            )
            with stored.connect() as session:
                session.execute(
                    f"UPDATE rx_{NEW}.issue SET status = '0006' "  # type: ignore[arg-type]
                    "WHERE status <> '0006' AND hashtext(stream_key) % 10000 = 0"
                )
    report.tell(
        {"surroundings": surroundings, "prescriptions": prescriptions, "rows": rows},
        report.table(f"{prescriptions:,} prescriptions", rows),
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
