"""What dirty events cost the clean ones: ``python -m benchmarks.setting_aside``.

Three questions, each answered by a ratio within one run, on the same servers. How fast is a backlog with some dirty
events, compared with the same without a fault? How fast are all other prescriptions while one is blocked with many
events parked behind it, compared with the same events where nothing is blocked? And how long does it take from the
publishing of the repair until all that was parked has folded?
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from itertools import islice
from typing import Any

import click
import orjson
from kafka import KafkaProducer

from benchmarks import ground, report
from benchmarks.ground import SCHEMA, Ground, Store
from benchmarks.projecting import Row, project
from ingest.partitioning import partitioner
from rxstore import publishing
from rxstore.generator import GeneratedRecord, lifecycles, records
from schemas.event_examples import example
from schemas.identifiers import with_check_character

BLOCKED = "FFFFFF-Z90001-0000B"
DAY = date(2026, 1, 5)
LOOK_EVERY_SECONDS = 0.01
PATIENCE_SECONDS = 120.0


@click.command()
@click.option("--events", default=100_000, show_default=True, help="Clean events of a backlog.")
@click.option("--dirty-rate", default=0.01, show_default=True)
@click.option("--parked", default=10_000, show_default=True, help="Events behind the block.")
@click.option("--workers", default=2, show_default=True)
@click.option("--repeat", default=3, show_default=True, help="Measure so often, in turns; the medians are compared.")
@click.option("--partitions", default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(
    events: int, dirty_rate: float, parked: int, workers: int, repeat: int, partitions: int, as_json: bool
) -> None:
    """Measure what dirty events and a blocked prescription cost all others."""
    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        rows: list[Row] = []
        for run in range(1, repeat + 1):
            ground.say(f"run {run} of {repeat}")
            rows += dirt(on, partitions, workers, events, dirty_rate)
            rows += block(on, partitions, workers, events, parked)
    kinds = list(dict.fromkeys(row["what"] for row in rows))
    medians = [report.middle([row for row in rows if row["what"] == kind]) for kind in kinds]
    rates = {row["what"]: row.get("events_per_second") for row in medians}
    for row in medians:
        compared = rates.get({"with dirt": "without a fault", "beside a block": "beside none"}.get(row["what"], ""))
        row["ratio"] = compared and round(row["events_per_second"] / compared, 3)
    title = f"{events:,} events, {dirty_rate:.1%} dirty, {parked:,} parked, {workers} workers, medians of {repeat} runs"
    document = {"surroundings": surroundings, "runs": rows, "medians": medians}
    report.tell(document, report.table(title, medians), as_json=as_json)


def dirt(on: Ground, partitions: int, workers: int, events: int, dirty_rate: float) -> Iterator[Row]:
    """Project the same lifecycles without a fault and with some."""
    for what, rate in (("without a fault", 0.0), ("with dirt", dirty_rate)):
        with ground.store(on, partitions=partitions) as store:
            count = publish(store, made(events, rate))
            row = project(on, store, workers, count)
            with store.connect() as connection:
                aside = connection.execute(f"SELECT count(*) FROM {SCHEMA}.set_aside").fetchone()
        yield _kept(row, what) | {"set aside": aside[0] if aside else None}


def block(on: Ground, partitions: int, workers: int, events: int, parked: int) -> Iterator[Row]:
    """Project the same lifecycles beside a prescription that is blocked, or not there; then release it."""
    for what in ("beside none", "beside a block"):
        with ground.store(on, partitions=partitions) as store:
            if what == "beside a block":
                project(on, store, workers, publish(store, blocked(parked)))
            row = project(on, store, workers, publish(store, made(events, 0.0)))
            yield _kept(row, what)
            if what == "beside a block":
                yield {"what": "release", "seconds": round(release(store, workers), 2)}


def _kept(row: Row, what: str) -> Row:
    return {
        "what": what,
        **{name: row[name] for name in ("events_per_second", "ratio", "worker us", "postgres us", "whole s")},
    }


def made(events: int, dirty_rate: float) -> Iterator[GeneratedRecord]:
    """Return records of the first ``events`` events of synthetic lifecycles."""
    prescriptions = int(events / ground.EVENTS_PER_PRESCRIPTION) + 100
    return records(islice(lifecycles(prescriptions, 1, DAY, 28), events), dirty_rate=dirty_rate, seed=1)


def blocked(parked: int) -> Iterator[GeneratedRecord]:
    """Return a prescription, an event of it that cannot be read, and many that wait behind that."""
    yield _record("created", "created")
    yield _record("released", "bad", data={})
    for number in range(parked):
        yield _record("nominated", f"nominated {number}")


def _record(kind: str, event_id: str, **overrides: Any) -> GeneratedRecord:  # noqa: ANN401 - attributes
    event = {**example(kind), "id": event_id, "subject": with_check_character(BLOCKED), **overrides}
    return GeneratedRecord(BLOCKED.encode(), orjson.dumps(event))


def publish(store: Store, made: Iterable[GeneratedRecord]) -> int:
    """Send records as they are made, wrong places and all."""
    producer = KafkaProducer(
        **store.settings.kafka(),
        acks="all",
        enable_idempotence=True,
        batch_size=publishing.BATCH_BYTES,
        linger_ms=publishing.LINGER_MS,
        compression_type="lz4",
        max_request_size=8 * 1024 * 1024,
        metrics_enabled=False,
    )
    partition_of = partitioner(store.settings.partitioner, store.partitions)
    count = 0
    for record in made:
        partition = (partition_of(record.key) + record.partition_shift) % store.partitions
        headers = list(record.headers)
        producer.send(store.topic, record.value, key=record.key, partition=partition, headers=headers)
        count += 1
    producer.flush()
    producer.close()
    return count


def release(store: Store, workers: int) -> float:
    """Publish the repair while the projector runs; return the seconds until nothing is parked any more."""
    projector = store.start("project", "--workers", str(workers))
    try:
        with store.connect() as connection:
            began = connection.execute("SELECT clock_timestamp()").fetchone()
            at = began[0] if began else None
            asked = f"SELECT count(*) >= {store.partitions} FROM {SCHEMA}.checkpoint WHERE caught_up_at > %s"
            _until(lambda: connection.execute(asked, (at,)).fetchone() == (True,))
            published = time.monotonic()
            publish(store, [_record("released", "bad")])
            left = f"SELECT EXISTS (SELECT 1 FROM {SCHEMA}.set_aside WHERE state IN ('open', 'parked'))"
            _until(lambda: connection.execute(left).fetchone() == (False,))
            return time.monotonic() - published
    finally:
        projector.send_signal(signal.SIGTERM)
        projector.wait()


def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > until:
            raise SystemExit("it did not come about in time")
        time.sleep(LOOK_EVERY_SECONDS)


if __name__ == "__main__":
    main()
