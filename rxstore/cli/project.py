"""``rxstore project``: from the topic to the read models, until stopped."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from projector.generations import Generation
    from rxstore.fleet import WorkerOptions
    from rxstore.progress import Progress
    from rxstore.store import Log

NOTED_WITHIN_SECONDS = 10.0


@click.command(epilog=example("rxstore project --workers 2", "rxstore project --until-caught-up"))
@click.option("--workers", type=click.IntRange(min=1, max=64), help="Processes on this machine; one a core by default.")
@click.option("--until-caught-up", is_flag=True, help="Stop once every event that is there now has been projected.")
@click.option("--keep-going", is_flag=True, help="Set everything aside even when most of it cannot be read.")
@as_json
@with_settings
def command(settings: Settings, workers: int | None, until_caught_up: bool, keep_going: bool, as_json: bool) -> None:
    """Run the projector: from the topic to the read models.

    More machines join by running the same command: Kafka spreads the partitions over all workers. Ctrl-C and SIGTERM
    stop between two batches; nothing is lost or done twice however it stops.
    """
    from rxstore import store
    from rxstore.fleet import Fleet

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with ExitStack() as stack:
        engine = stack.enter_context(store.engine(settings))
        log = store.describe_log(settings)
        generation = store.generation_to_feed(settings, engine, log)
        count = min(workers or os.cpu_count() or 1, log.partitions)
        if settings.metrics_bind is not None:
            from rxstore import exposition

            stack.enter_context(exposition.serving(settings.metrics_bind))
        fleet = Fleet(worker_options(settings, generation, log, keep_going=keep_going), count)
        if until_caught_up:
            from rxstore.progress import Progress

            progress = stack.enter_context(Progress("project", "events"))
            fleet.run(stopping, _caught_up(engine, generation, log, progress))
        else:
            fleet.run(stopping)
    counts = asdict(fleet.counts)
    if as_json:
        click.echo(json.dumps(counts))
    else:
        click.echo(", ".join(f"{name} {number:,}" for name, number in counts.items()))


def worker_options(settings: Settings, generation: Generation, log: Log, *, keep_going: bool) -> WorkerOptions:
    """What each worker process is told."""
    from rxstore import store
    from rxstore.fleet import WorkerOptions

    return WorkerOptions(
        database_url=settings.database(),
        kafka=settings.kafka(),
        topic=log.name,
        topic_id=log.topic_id,
        partitions=log.partitions,
        group_id=store.group_of(settings, generation),
        schema=generation.schema,
        partitioner=settings.partitioner,
        strict_check_character=settings.check_character == "strict",
        max_value_bytes=settings.max_value_bytes,
        batch_records=settings.batch_records,
        session_timeout_ms=settings.session_timeout_ms,
        instance_id=settings.group_instance_id,
        keep_going=keep_going,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def _caught_up(engine: Engine, generation: Generation, log: Log, progress: Progress) -> Callable[[], bool]:
    """Return the question whether every partition has reached the end that it had at the start.

    Once they have, a worker also notes that it saw the end, which is what answers tell as their freshness; we wait a
    moment for that, and no longer, since on a busy topic the end moves on.
    """
    from sqlalchemy import text

    question = text(
        f"SELECT partition_number, next_offset, caught_up_at >= :began FROM {generation.schema}.checkpoint "
        "WHERE topic = :topic"
    )
    with engine.connect() as connection:
        parameters = {"topic": log.name, "began": connection.execute(text("SELECT clock_timestamp()")).scalar_one()}
    first: dict[int, int] = {}
    reached_at: list[float] = []

    def finished() -> bool:
        with engine.connect() as connection:
            rows = connection.execute(question, parameters).all()
        stands = {int(row[0]): int(row[1]) for row in rows}
        at = {partition: stands.get(partition, begin) for partition, begin in log.first_offsets.items()}
        if not first:
            first.update(at)
            progress.total = sum(max(0, end - first[partition]) for partition, end in log.end_offsets.items())
        done = sum(min(offset, log.end_offsets[partition]) - first[partition] for partition, offset in at.items())
        progress.advance(max(0, done - progress.done))
        if any(offset < log.end_offsets[partition] for partition, offset in at.items()):
            return False
        reached_at.append(time.monotonic())
        seen = sum(bool(row[2]) for row in rows) == log.partitions
        return seen or reached_at[-1] - reached_at[0] > NOTED_WITHIN_SECONDS

    return finished
