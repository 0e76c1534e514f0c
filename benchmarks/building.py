"""How fast a generation is built beside the live one: ``python -m benchmarks.building``.

In the same run, on the same topic and servers: polling alone and polling and decoding (the floor of any build with
this client and this contract), then ``rxstore rebuild stage --workers`` batch by batch (RXSTORE_BUILD_MEMORY_MB=0) and
in memory, each into a new database. A rate is taken from the first claim of a partition to the last event; "whole" is
the command from start to end; "ratio" is to polling and decoding.
"""

from __future__ import annotations

import time
from typing import Any

import click
import psutil
import psycopg

from benchmarks import ground, report, usage
from benchmarks.ground import Ground, Store
from benchmarks.projecting import floor
from benchmarks.usage import Cpu, Tree

LOOK_EVERY_SECONDS = 0.05
SAMPLE_EVERY_SECONDS = 0.5
GENERATION = "built"

Row = dict[str, Any]


@click.command()
@click.option("--events", default=400_000, show_default=True, help="How many to generate and publish.")
@click.option("--partitions", default=8, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--memory-mb", multiple=True, default=(0, 1024), show_default=True, help="Several times: each in turn.")
@click.option("--repeat", default=1, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(
    events: int, partitions: int, workers: int, memory_mb: tuple[int, ...], repeat: int, seed: int, as_json: bool
) -> None:
    """Measure how fast a generation is built, in memory and batch by batch."""
    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        with ground.topic(on, partitions) as topic, ground.database(on, topic, partitions) as log:
            ground.timed("published", lambda: log.publish(ground.events(events, seed=seed)))
            rows: list[Row] = []
            for run in range(1, repeat + 1):
                ground.say(f"run {run} of {repeat}")
                polling, decoding = (floor(on, log, workers, decoded=decoded) for decoded in (False, True))
                measured = [polling, decoding]
                for megabytes in memory_mb:
                    with ground.database(on, topic, partitions, RXSTORE_BUILD_MEMORY_MB=str(megabytes)) as fresh:
                        what = f"built in {megabytes} MB" if megabytes else "built batch by batch"
                        measured.append({"what": what, **build(on, fresh, workers, events)})
                for row in measured:
                    row["ratio"] = round(row["events_per_second"] / decoding["events_per_second"], 3)
                rows += measured
    each = 2 + len(memory_mb)
    medians = [report.middle(rows[place::each]) for place in range(each)]
    document = {"surroundings": surroundings, "events": events, "workers": workers, "runs": rows, "medians": medians}
    title = f"{events:,} events, {partitions} partitions, {workers} workers, {surroundings['cores']} cores"
    tables = [report.table(f"{title}: each run", rows)]
    if repeat > 1:
        tables.append(report.table(f"\nmedians of {repeat} runs", medians))
    report.tell(document, "\n".join(tables), as_json=as_json)


def build(on: Ground, fresh: Store, workers: int, events: int) -> Row:
    """Run ``rxstore rebuild stage --workers`` and watch it."""
    began = time.monotonic()
    command = fresh.start("rebuild", "stage", "--name", GENERATION, "--workers", str(workers))
    tree = Tree(psutil.Process(command.pid))
    cpu = Cpu.of_run(tree, on.database_url, on.bootstrap_servers)
    claimed: float | None = None
    last, peak, sampled_at, reached = began, 0.0, 0.0, 0
    used: dict[str, float] = {}
    with fresh.connect() as connection:
        while command.poll() is None:
            reached, claims = _stands(connection)
            now = time.monotonic()
            if claimed is None and claims:
                claimed = now
                cpu.begin()
            if not used and reached >= events:
                last, used = now, cpu.used()
            if now - sampled_at > SAMPLE_EVERY_SECONDS:
                sampled_at = now
                peak = max([peak, *(usage.resident_megabytes(process) for process in tree.living())])
            time.sleep(LOOK_EVERY_SECONDS)
    whole = time.monotonic() - began
    if command.returncode or claimed is None or not used:
        raise SystemExit(f"rxstore rebuild stage ended with exit code {command.returncode} after {reached:,} events")
    return {
        "events_per_second": round(events / (last - claimed)),
        **usage.per_event(used, events),
        "whole s": round(whole, 1),
        "to claim s": round(claimed - began, 1),
        "peak MB": round(peak),
    }


def _stands(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Return how many records are in the generation, and how often partitions were claimed."""
    if connection.execute("SELECT to_regclass(%s)", (f"rx_{GENERATION}.checkpoint",)).fetchone() == (None,):
        return 0, 0
    row = connection.execute(
        f"SELECT coalesce(sum(next_offset), 0), coalesce(sum(epoch), 0) FROM rx_{GENERATION}.checkpoint"
    ).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


if __name__ == "__main__":
    main()
