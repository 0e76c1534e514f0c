"""Where a worker's time goes: ``python -m benchmarks.profile_worker``.

The same records, read from memory, are projected three times by one worker's loop in this process: once timed by
stage, once with PostgreSQL telling the CPU time of each of its statements, once under cProfile. No Kafka takes part,
so what its client costs is not in here (``benchmarks.projecting`` has it). cProfile makes short functions look dear;
believe its order and the stages' numbers.
"""

from __future__ import annotations

import cProfile
import gc
import io
import pstats
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
import psutil
import psycopg
from psycopg import Cursor

from benchmarks import ground, report
from benchmarks.ground import SCHEMA, Store
from benchmarks.usage import MICROSECONDS
from ingest.decode import Decoder
from ingest.partitioning import partitioner
from projector import checkpoints, read_model, runner
from projector.batch import Position, Record
from projector.read_model import ReadModel
from projector.recent import RecentStreams
from projector.runner import Batch, Runner, connect
from rxstore import fleet, publishing, settings
from tests import servers

PARTITIONS = 4
BATCH_RECORDS = next(int(s.default or 0) for s in settings.SETTINGS if s.name == "RXSTORE_BATCH_RECORDS")

Row = dict[str, Any]
Poll = tuple[int, list[Record]]


@click.command()
@click.option("--events", default=100_000, show_default=True)
@click.option("--batch-records", default=BATCH_RECORDS, show_default=True)
@click.option(
    "--remembered", default=fleet.REMEMBERED_BYTES, show_default=True, help="Bytes of streams kept in memory."
)
@click.option("--top", default=40, show_default=True, help="So many functions of cProfile's.")
@click.option("--sort", default="tottime", show_default=True, help="tottime or cumtime.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(events: int, batch_records: int, remembered: int, top: int, sort: str, as_json: bool) -> None:
    """Profile one worker's loop on records in memory."""
    polls = list(_polls(events, batch_records))
    # As a worker process does, so that what is measured is what runs.
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)
    with servers.postgres(ground.POSTGRES_SETTINGS) as url:
        surroundings = report.surroundings(url)
        made = Store({"RXSTORE_DATABASE_URL": url, "RXSTORE_TOPIC": "profiled"}, PARTITIONS)
        made.run("migrate")
        loop = Loop(made, polls, remembered)
        stages = _stages(loop, events)
        statements = _statements(loop, events)
        functions = _functions(loop, top, sort)
    document = {"surroundings": surroundings, "events": events, "stages": stages, "statements": statements}
    title = f"{events:,} events in batches of {batch_records:,}, microseconds for one event"
    text = "\n\n".join(
        [
            report.table(f"{title}: by stage", stages),
            report.table("PostgreSQL's CPU by statement", statements),
            f"cProfile by {sort}\n{functions}",
        ]
    )
    report.tell(document, text, as_json=as_json)


def _polls(events: int, batch_records: int) -> Iterator[Poll]:
    """Yield polls as the client makes them: several in a row of one partition, then of the next."""
    partition_of = partitioner("murmur2", PARTITIONS)
    partitions: dict[int, list[Record]] = defaultdict(list)
    for line in ground.events(events):
        key = ground.stream_key(line)
        log = partitions[partition_of(key)]
        position = Position("profiled", partition_of(key), len(log))
        log.append(Record(position, 0, key, line, (publishing.CONTENT_TYPE,)))
    for number in sorted(partitions):
        for first in range(0, len(partitions[number]), batch_records):
            yield number, partitions[number][first : first + batch_records]


@dataclass(slots=True)
class Loop:
    """Decode and project all polls, from an empty read model on."""

    store: Store
    polls: list[Poll]
    remembered: int
    watch: Stopwatch = field(default_factory=lambda: Stopwatch())

    def run(self, prepare: Callable[[psycopg.Connection[Any]], None] = lambda _: None) -> float:
        """Run once; return PostgreSQL's CPU seconds, 0 when its process is not to be seen."""
        with self.store.connect() as connection:
            connection.execute(f"TRUNCATE {', '.join(f'{SCHEMA}.{name}' for name in read_model.TABLES)}")
            connection.execute(f"TRUNCATE {SCHEMA}.set_aside, {SCHEMA}.checkpoint")
        decode = Decoder(partition_of=partitioner("murmur2", PARTITIONS))
        with connect(self.store.database_url) as connection:
            claims = {
                number: checkpoints.claim(connection, SCHEMA, "profiled", number, owner="", topic_id=None, first=0)
                for number in range(PARTITIONS)
            }
            prepare(connection)
            worker = Runner(connection, ReadModel(SCHEMA), decode, RecentStreams(self.remembered), lambda positions: {})
            before = _cpu_of(connection)
            for number, records in self.polls:
                with self.watch.timing("decode"):
                    items = [decode(record) for record in records]
                offset = records[-1].position.offset + 1
                worker.project_batch(claims, Batch(items, {number: offset}))
                claims[number] = claims[number].moved_to(offset)
                with self.watch.timing("free"):
                    del items
            return _cpu_of(connection) - before


def _cpu_of(connection: psycopg.Connection[Any]) -> float:
    try:
        times = psutil.Process(connection.info.backend_pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


# stages ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Stopwatch:
    """CPU of this thread and time on the wall, by stage."""

    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add what happens in the block to a stage."""
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu[stage] += time.thread_time() - cpu
            self.wall[stage] += time.perf_counter() - wall

    @contextmanager
    def around(self, owner: object, name: str, stage: str) -> Iterator[None]:
        """Time every call of a function while the block runs."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the function has it
            with self.timing(stage):
                return function(*args, **kwargs)

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, function)


def _stages(loop: Loop, events: int) -> list[Row]:
    watch = loop.watch
    with (
        watch.around(runner, "by_stream", "group by stream"),
        watch.around(ReadModel, "load", "load"),
        watch.around(runner, "project", "fold"),
        watch.around(ReadModel, "save", "rows and copy"),
        watch.around(read_model, "copy_rows", "  of which copy"),
        watch.around(RecentStreams, "keep", "remember"),
        watch.timing("all"),
    ):
        postgres = loop.run()
    rows = [
        {"stage": stage, "CPU us": _us(cpu, events), "wall us": _us(watch.wall[stage], events)}
        for stage, cpu in watch.cpu.items()
    ]
    return [*rows, {"stage": "PostgreSQL", "CPU us": _us(postgres, events)}]


def _us(seconds: float, events: int) -> float:
    return round(seconds / events * MICROSECONDS, 2)


# statements -----------------------------------------------------------------------------------------------------------

TOLD = re.compile(r"!\s+([\d.]+) s user, ([\d.]+) s system, ([\d.]+) s elapsed")


def _statements(loop: Loop, events: int) -> list[Row]:
    """Let the server tell the CPU of each statement as a notice, and put it with the statement that was on its way."""
    cpu: dict[str, float] = defaultdict(float)
    times: dict[str, int] = defaultdict(int)

    def prepare(connection: psycopg.Connection[Any]) -> None:
        connection.execute("SET client_min_messages = 'log'")
        connection.execute("SET log_statement_stats = on")
        connection.cursor_factory = Naming
        connection.add_notice_handler(note)

    def note(notice: psycopg.errors.Diagnostic) -> None:
        told = TOLD.search(f"{notice.message_primary}{notice.message_detail}")
        if told:
            cpu[Naming.statement] += float(told[1]) + float(told[2])
            times[Naming.statement] += 1

    loop.run(prepare)
    return [
        {"statement": statement, "CPU us": _us(seconds, events), "times": times[statement]}
        for statement, seconds in sorted(cpu.items(), key=lambda item: -item[1])
        if _us(seconds, events) >= 0.01
    ]


class Naming(Cursor[Any]):
    """Knows which statement was sent last."""

    statement = ""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Naming:  # noqa: ANN401 - as psycopg has it
        """Execute, and remember what."""
        Naming.statement = str(query)[:80]
        super().execute(query, *args, **kwargs)
        return self

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as psycopg has it
        """Copy, and remember where to."""
        Naming.statement = str(statement)[:80]
        return super().copy(statement, *args, **kwargs)


# functions ------------------------------------------------------------------------------------------------------------


def _functions(loop: Loop, top: int, sort: str) -> str:
    profile = cProfile.Profile()
    profile.enable()
    loop.run()
    profile.disable()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats(sort).print_stats(top)
    return text.getvalue()


if __name__ == "__main__":
    main()
