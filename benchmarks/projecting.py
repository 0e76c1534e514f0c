"""How fast a backlog is projected: ``python -m benchmarks.projecting``.

In the same run, on the same topic and servers: polling alone (the floor), polling and decoding (every event checked
against the contract), and ``rxstore project`` into a new database. Its rate is taken from the first claim of a
partition to the last event; "whole" is the command from start to end, with its processes, the group and its end.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
import urllib.request
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Barrier
from typing import Any

import click
import psutil
import psycopg
from kafka import KafkaConsumer, TopicPartition

from benchmarks import ground, report, usage
from benchmarks.ground import SCHEMA, Ground, Store
from benchmarks.usage import Cpu, Tree
from ingest.decode import Decoder
from ingest.lookup import record_of
from ingest.partitioning import partitioner
from rxstore import embedded
from rxstore.feeding import worker_options
from rxstore.fleet import WorkerOptions, make_consumer
from rxstore.store import describe_log, engine, generation_to_feed

LOOK_EVERY_SECONDS = 0.05
SAMPLE_EVERY_SECONDS = 0.5
START_SECONDS = 60.0

Row = dict[str, Any]


@click.command()
@click.option("--events", default=400_000, show_default=True, help="How many to generate and publish.")
@click.option("--partitions", default=8, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes, for the floors too.")
@click.option("--repeat", default=1, show_default=True, help="Measure everything so often and tell the medians too.")
@click.option("--seed", default=1, show_default=True)
@click.option("--batch-records", help="RXSTORE_BATCH_RECORDS for the measured command.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(
    events: int, partitions: int, workers: int, repeat: int, seed: int, batch_records: str | None, as_json: bool
) -> None:
    """Measure how fast a backlog of generated events is projected, against floors of the same run."""
    settings = {"RXSTORE_BATCH_RECORDS": batch_records} if batch_records else {}
    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        with ground.store(on, partitions=partitions, **settings) as log:
            ground.timed("published", lambda: log.publish(ground.events(events, seed=seed)))
            rows: list[Row] = []
            for run in range(1, repeat + 1):
                ground.say(f"run {run} of {repeat}")
                polling = floor(on, log, workers, decoded=False)
                decoding = floor(on, log, workers, decoded=True)
                with ground.database(on, log.topic, partitions, **settings) as fresh:
                    projecting = project(on, fresh, workers, events)
                for row in (polling, decoding, projecting):
                    row["ratio"] = round(row["events_per_second"] / polling["events_per_second"], 3)
                rows += [polling, decoding, projecting]
    medians = [report.middle(rows[place::3]) for place in range(3)]
    document = {"surroundings": surroundings, "events": events, "workers": workers, "runs": rows, "medians": medians}
    title = f"{events:,} events, {partitions} partitions, {workers} workers, {surroundings['cores']} cores"
    tables = [report.table(f"{title}: each run", rows)]
    if repeat > 1:
        tables.append(report.table(f"\nmedians of {repeat} runs", medians))
    report.tell(document, "\n".join([*tables, LEGEND]), as_json=as_json)


LEGEND = """
ratio: to polling alone in the same run. us: microseconds of CPU (user and system) for one event. whole: the command
from start to end. in batches: the share of the workers' time that went into transactions (fold, rows, PostgreSQL)."""


# floors ---------------------------------------------------------------------------------------------------------------


def floor(on: Ground, log: Store, workers: int, *, decoded: bool) -> Row:
    """Read the whole topic with as many processes as workers, each its share of the partitions, and do no more."""
    with engine(log.settings) as database:
        description = describe_log(log.settings)
        generation = generation_to_feed(log.settings, database, description)
        options = worker_options(log.settings, generation, description, keep_going=False)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(workers + 1)
    pipes = []
    processes = []
    for index in range(workers):
        receiving, sending = context.Pipe(duplex=False)
        ends = {number: end for number, end in description.end_offsets.items() if number % workers == index}
        process = context.Process(target=_read, args=(options, index, ends, decoded, start, sending))
        process.start()
        pipes.append(receiving)
        processes.append(process)
    cpu = Cpu({"broker": usage.server(on.bootstrap_servers)})
    start.wait(START_SECONDS)
    cpu.begin()
    began = time.monotonic()
    results = [pipe.recv() for pipe in pipes]
    seconds = time.monotonic() - began
    broker = cpu.used()
    for process in processes:
        process.join()
    count = sum(read for read, _ in results)
    used = {"worker us": sum(spent for _, spent in results), **{f"{name} us": spent for name, spent in broker.items()}}
    return {
        "what": "polling and decoding" if decoded else "polling alone",
        "events_per_second": round(count / seconds),
        "ratio": None,
        **usage.per_event(used, count),
    }


def _read(
    options: WorkerOptions, index: int, ends: dict[int, int], decoded: bool, start: Barrier, result: Pipe
) -> None:
    """Be a worker that only reads: same client, same settings, no group."""
    decode: Callable[[Any], Any] = lambda record: record  # noqa: E731 - what a worker does, or nothing
    if decoded:
        decoder = Decoder(partition_of=partitioner(options.partitioner, options.partitions))
        decode = lambda record: decoder(record_of(record))  # noqa: E731
    consumer: KafkaConsumer = make_consumer(options, index)
    partitions = [TopicPartition(options.topic, number) for number in ends]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)
    gc.disable()  # a worker collects rarely, and this is a floor
    start.wait(START_SECONDS)
    began = time.process_time()
    left, read = dict(ends), 0
    while left:
        polled = consumer.poll(timeout_ms=500, max_records=options.batch_records)
        for partition, records in polled.items():
            items = [decode(record) for record in records]
            read += len(items)
            if records[-1].offset + 1 >= left.get(partition.partition, 0):
                left.pop(partition.partition, None)
    result.send((read, time.process_time() - began))
    consumer.close()


# the real thing -------------------------------------------------------------------------------------------------------


def project(
    on: Ground, fresh: Store, workers: int, events: int, seen: Callable[[int, list[float]], None] = lambda *_: None
) -> Row:
    """Run ``rxstore project --until-caught-up`` and watch it.

    ``seen`` is told now and then how many events are projected and how many megabytes each process holds.
    """
    metrics = f"127.0.0.1:{embedded.free_port()}"
    began = time.monotonic()
    command = fresh.start("project", "--until-caught-up", "--workers", str(workers), RXSTORE_METRICS_BIND=metrics)
    tree = Tree(psutil.Process(command.pid))
    cpu = Cpu.of_run(tree, on.database_url, on.bootstrap_servers)
    claimed: float | None = None
    done, peak, sampled_at = 0, 0.0, 0.0
    used: dict[str, float] = {}
    last = began
    with fresh.connect() as connection:
        before, claims = _stands(connection)
        while command.poll() is None:
            reached, claims_now = _stands(connection)
            reached -= before
            now = time.monotonic()
            if claimed is None and claims_now > claims:
                claimed = now
                cpu.begin()
            if done < events <= reached:
                last, used, batches = now, cpu.used(), _batches(metrics)
            done = reached
            if now - sampled_at > SAMPLE_EVERY_SECONDS:
                sampled_at = now
                held = [usage.resident_megabytes(process) for process in tree.living()]
                peak = max([peak, *held])
                seen(reached, held)
            time.sleep(LOOK_EVERY_SECONDS)
    whole = time.monotonic() - began
    if command.returncode or claimed is None or not used:
        raise SystemExit(f"rxstore project ended with exit code {command.returncode} after {done:,} events")
    seconds = last - claimed
    return {
        "what": "rxstore project",
        "events_per_second": round(events / seconds),
        "ratio": None,
        **usage.per_event(used, events),
        "whole s": round(whole, 1),
        "to claim s": round(claimed - began, 1),
        "peak MB": round(peak),
        "batches": batches[0],
        "events a batch": round(events / max(batches[0], 1)),
        "in batches": round(batches[1] / seconds / workers, 2),
    }


def _stands(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Return how many records of the topic are projected, and how often partitions were claimed."""
    row = connection.execute(
        f"SELECT coalesce(sum(next_offset), 0), coalesce(sum(epoch), 0) FROM {SCHEMA}.checkpoint"
    ).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def _batches(address: str) -> tuple[int, float]:
    """Return how many batches all workers have projected, and the seconds that they took."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        lines = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#"))
    name = "rxstore_projector_batch_seconds"
    return int(float(lines.get(f"{name}_count", 0))), float(lines.get(f"{name}_sum", 0))


if __name__ == "__main__":
    main()
