"""One seed: a log is published while workers project it and things happen to them; then everything is compared."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import orjson
import psycopg
from falcon.testing import TestClient
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from ingest.decode import Decoder
from ingest.lookup import record_of
from ingest.partitioning import partitioner
from projector import tables
from projector.batch import Record
from projector.stream import Counts
from query_api.app import create_app
from query_api.database import read_only_engine
from query_api.settings import ApiSettings
from rxstore import broker, store, topics
from rxstore.decide import desk
from rxstore.feeding import worker_options
from rxstore.fleet import WorkerOptions, make_reader
from rxstore.selftest import proxy, workers
from rxstore.selftest.comparison import LIVE, TRUTH, Comparison, Found, Place
from rxstore.selftest.proxy import Loop
from rxstore.selftest.schedule import (
    COMMITS,
    Act,
    Action,
    CutBroker,
    CutDatabase,
    Decide,
    Freeze,
    Join,
    Leave,
    Schedule,
    Stage,
    Strike,
    Undo,
)
from rxstore.selftest.scratch import BROKER_PREFIX, database_server
from rxstore.selftest.workers import Worker
from rxstore.settings import Settings
from schemas.events import Deleted
from schemas.identifiers import parse_prescription_id
from schemas.incoming import TYPE_OF

LOOK_EVERY_SECONDS = 0.08
DELETED = TYPE_OF[Deleted].encode()
MOST_WORKERS_AT_ONCE = 4
READ_TIMEOUT_MS = 1_000
READ_PATIENCE_SECONDS = 30.0
UNDO_PATIENCE_SECONDS = 60.0
# How many times the patience with standing still a wait may take in all.
MOST_PATIENCE = 5
# How much longer than the session time-out a worker stands still.
BEYOND_TIMEOUT_SECONDS = 0.7
OPERATOR = "rxstore selftest"
MOST_DECISIONS_AT_ONCE = 8
MOST_UNDONE_AT_ONCE = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one seed; ``delivered`` counts what really happened, by kind.

    ``again`` is how often it was begun before, and given up since a server did not answer the self-test itself.
    """

    seed: int
    records: int
    seconds: float
    differences: tuple[str, ...]
    kills: Counter[str]
    delivered: Counter[str]
    counts: Counts
    found: Found
    again: int = 0


class Stuck(Exception):
    """The workers did not come to the end of the log in time, or one ended by itself."""


@dataclass(slots=True)
class Chaos:
    """Lets strikes fall on workers where they are; what really fell is counted, what never came is not."""

    pause_seconds: float
    waiting: dict[Strike, int]
    workers: dict[int, Worker] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)

    def take(self, worker: int, statement: str) -> Falling | None:
        """Count a statement; return what falls on the worker there."""
        self.seen[statement] += 1
        falls = None
        for strike in list(self.waiting):
            if strike.statement != statement:
                continue
            self.waiting[strike] -= 1
            if self.waiting[strike] <= 0 and falls is None:
                falls = strike
        if falls is None or worker not in self.workers:
            return None
        del self.waiting[falls]
        return Falling(self, self.workers[worker], falls)


@dataclass(frozen=True, slots=True)
class Falling:
    """A strike on its way."""

    chaos: Chaos
    worker: Worker
    strike: Strike

    @property
    def before(self) -> bool:
        """Whether it falls before the server has the statement."""
        return self.strike.before

    @property
    def withholds(self) -> bool:
        """Whether the worker never hears the answer."""
        return self.strike.action is not Action.PAUSE

    async def happen(self) -> bool:
        """Strike, and count it."""
        strike, delivered = self.strike, self.chaos.delivered
        if strike.action is Action.PAUSE:
            if self.worker.pause():
                delivered["pauses"] += 1
                await asyncio.sleep(self.chaos.pause_seconds)
                self.worker.resume()
            return True
        if strike.action is Action.KILL:
            if not self.worker.kill():
                return False
            side = "before" if strike.before else "after"
            self.chaos.kills[f"{side} {strike.statement}"] += 1
        else:
            delivered["database cuts"] += 1
            self.worker.database.cut(strike.seconds)
        if not strike.before and strike.statement in COMMITS:
            delivered["lost acknowledgements"] += 1
        # The server may hear of it late: until then what the worker held stays locked.
        await asyncio.sleep(strike.seconds)
        return False


@dataclass(slots=True)
class Bench:
    """Where trials are run, one after the other: a scratch database, and clients that are made once."""

    settings: Settings
    run: str
    directory: Path
    admin: KafkaAdminClient
    producer: KafkaProducer
    reader: KafkaConsumer
    connection: psycopg.Connection[Any]
    api: TestClient
    loop: Loop
    server: proxy.Server

    def trial(self, schedule: Schedule) -> Outcome:
        """Run one seed."""
        return Trial(self, schedule).run()


@contextmanager
def bench(settings: Settings, run: str, directory: Path) -> Iterator[Bench]:
    """Make a bench; ``settings`` name its scratch database."""
    with ExitStack() as stack:
        admin = stack.enter_context(broker.admin_client(settings))
        producer = KafkaProducer(
            **settings.kafka(),
            client_id="rxstore-selftest",
            acks="all",
            enable_idempotence=True,
            allow_auto_create_topics=False,
            max_request_size=4 * 1024 * 1024,
            metrics_enabled=False,
        )
        stack.callback(producer.close)
        reader = make_reader(settings.kafka())
        stack.callback(reader.close, autocommit=False)
        connection = stack.enter_context(psycopg.connect(settings.database(), autocommit=True))
        connection.execute("SET timezone = 'UTC'")
        engine = read_only_engine(settings.database())
        stack.callback(engine.dispose)
        loop = Loop()
        stack.callback(loop.close)
        strict = settings.check_character == "strict"
        api = TestClient(create_app(engine, settings=ApiSettings(strict_check_character=strict)))
        yield Bench(
            settings,
            run,
            directory,
            admin,
            producer,
            reader,
            connection,
            api,
            loop,
            database_server(settings.database()),
        )


class Trial:
    """One seed on a bench."""

    def __init__(self, bench: Bench, schedule: Schedule) -> None:
        self.bench = bench
        self.schedule = schedule
        self.topic = f"{BROKER_PREFIX}{bench.run}-{schedule.seed}-{time.monotonic_ns()}"
        self.settings = replace(
            bench.settings, topic=self.topic, group_id=self.topic, batch_records=schedule.batch_records
        )
        self.chaos = Chaos(
            pause_seconds=self.settings.session_timeout_ms / 1000 + BEYOND_TIMEOUT_SECONDS,
            waiting={strike: strike.nth for strike in schedule.strikes},
        )
        self.partition_of = partitioner(self.settings.partitioner, schedule.partitions)
        self.ends = dict.fromkeys(range(schedule.partitions), 0)
        self.places: list[Place] = []
        self.counts = Counts()
        self.wanted = schedule.workers
        self.alive: list[Worker] = []
        self.leaving: list[Worker] = []
        self.started = 0
        self.refolded = 0
        self.until = 0.0
        self.frozen_until: dict[int, float] = {}
        self.options: WorkerOptions | None = None

    def run(self) -> Outcome:
        """Run it to its end; nothing of it is left but the rows."""
        began = time.monotonic()
        found = Found()
        try:
            self._prepare()
            for stage in self.schedule.stages:
                self._stage(stage)
            self._until_projected()
            self._stop_all()
            self.chaos.delivered["takeovers"] += self._takeovers()
            comparison = Comparison(self.bench.connection, self.bench.api, self._decoder(), self.topic, self.schedule)
            found = comparison.found(self._log(), self.ends, self.places)
        except Stuck as stuck:
            found.differences.append(str(stuck))
        finally:
            self._end()
        return Outcome(
            seed=self.schedule.seed,
            records=sum(self.ends.values()),
            seconds=time.monotonic() - began,
            differences=tuple(found.differences),
            kills=self.chaos.kills,
            delivered=self.chaos.delivered,
            counts=self.counts,
            found=found,
        )

    # before and after -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        made = topics.create(self.bench.admin, self.topic, self.schedule.partitions, self.settings.max_value_bytes)
        topic_id = store._topic_id(self.bench.admin, made.name)
        with self.bench.connection.transaction():
            names = [f"{schema}.{name}" for schema in (LIVE, TRUTH) for name in tables.READ_MODEL.tables]
            self.bench.connection.execute(f"TRUNCATE {', '.join(names)}, rxstore.decision")
            self.bench.connection.execute(
                "UPDATE rxstore.generation SET topic = %s, topic_id = %s, partitions = %s",
                (self.topic, topic_id, self.schedule.partitions),
            )
        nothing = dict.fromkeys(range(self.schedule.partitions), 0)
        log = store.Log(self.topic, topic_id, nothing, nothing)
        with store.engine(self.settings) as engine:
            generation = store.live_generation(engine)
        self.options = replace(
            worker_options(self.settings, generation, log, keep_going=False),
            build_bytes=self.schedule.build_bytes,
            log_level="error",
            instance_id=None,
        )
        for _ in range(self.wanted):
            self._start()

    def _decoder(self) -> Decoder:
        return Decoder(
            partition_of=self.partition_of,
            max_value_bytes=self.settings.max_value_bytes,
            strict_check_character=self.settings.check_character == "strict",
        )

    def _end(self) -> None:
        for worker in [*self.alive, *self.leaving]:
            worker.resume()
            worker.kill()
        for worker in [*self.alive, *self.leaving]:
            worker.finish()
            self._forget(worker)
        self.bench.admin.delete_topics([self.topic], raise_errors=False)
        self.bench.admin.delete_groups([self.options.group_id if self.options else self.topic])

    # workers ----------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        number, self.started = self.started, self.started + 1
        loop, server = self.bench.loop, self.bench.server
        database = loop.run(proxy.database_wire(number, server, self.chaos))
        to_broker = loop.run(proxy.broker_wire())
        log = self.bench.directory / f"{self.topic}-{number}.log"
        if self.options is None:
            raise AssertionError("the trial was not prepared")
        worker = workers.start(workers.context(), number, self.options, database, to_broker, log)
        self.chaos.workers[number] = worker
        self.alive.append(worker)

    def _forget(self, worker: Worker) -> None:
        self.counts.add(worker.counted())
        self.bench.loop.call(worker.database.close)
        self.bench.loop.call(worker.broker.close)
        self.chaos.workers.pop(worker.number, None)
        worker.close()

    def _watch(self) -> None:
        """Start again what was killed, as the fleet does; let frozen ones go on; Stuck when one ended by itself."""
        now = time.monotonic()
        for number, until in list(self.frozen_until.items()):
            if now >= until:
                del self.frozen_until[number]
                if number in self.chaos.workers:
                    self.chaos.workers[number].resume()
        for group in (self.alive, self.leaving):
            for worker in [worker for worker in group if not worker.is_alive]:
                complaint = worker.complaint()
                if complaint is not None:
                    raise Stuck(complaint)
                group.remove(worker)
                self._forget(worker)
        while len(self.alive) < self.wanted:
            self._start()

    def _stop_all(self) -> None:
        for worker in self.alive:
            worker.stop()
        for worker in [*self.alive, *self.leaving]:
            complaint = worker.finish()
            if complaint is not None:
                raise Stuck(complaint)

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        """Wait as long as something moves now and then: a slow machine is no difference, standing still is one.

        Offsets alone are not enough: while a worker applies many decisions, or takes partitions over, they stand.
        """
        patience = 60.0 + 10 * self.settings.session_timeout_ms / 1000
        began = moved = time.monotonic()
        stood = self._moves()
        while not done():
            self._watch()
            now, moves = time.monotonic(), self._moves()
            if moves != stood:
                moved, stood = now, moves
            if now - moved > patience or now - began > MOST_PATIENCE * patience:
                raise Stuck(
                    f"{what} not within {now - began:.0f} s, nothing moved for {now - moved:.0f} s: next offsets "
                    f"{self._stands()} of {self.ends}, {len(self.alive)} workers, {self._takeovers()} takeovers, "
                    f"partition, offset, decisions and epoch: {moves}; {self._whereabouts()}"
                )
            time.sleep(LOOK_EVERY_SECONDS)

    def _whereabouts(self) -> str:
        """Say who is where: workers, owners of partitions, the group as the brokers see it, database sessions."""
        there = [
            f"worker {worker.number} ({worker.process.pid}, {kind}{', frozen' * (worker.number in self.frozen_until)}) "
            f"at {worker.whereabouts()}"
            for kind, workers in (("alive", self.alive), ("leaving", self.leaving))
            for worker in workers
        ]
        owners = self.bench.connection.execute(
            f"SELECT partition_number, owner FROM {LIVE}.checkpoint ORDER BY 1"
        ).fetchall()
        sessions = self.bench.connection.execute(
            "SELECT state, wait_event, left(query, 60), count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        ).fetchall()
        return f"{there}; owners {owners}; group {self._group()}; sessions {sessions}"

    def _group(self) -> str:
        """Say in which state the group is, and for each member which partitions it announced and was given."""
        group_id = self.options.group_id if self.options else self.topic
        try:
            group = self.bench.admin.describe_groups([group_id])[group_id]
            members = [
                (
                    member["client_id"],
                    {
                        name: [each["partitions"] for each in (member[part] or {}).get(name, ())]
                        for part, name in (
                            ("member_metadata", "owned_partitions"),
                            ("member_assignment", "assigned_partitions"),
                        )
                    },
                )
                for member in group["members"]
            ]
        except (KafkaError, KeyError, AttributeError) as error:  # this only explains what was found already
            return f"not to be learned ({type(error).__name__})"
        return f"{group['group_state']} {members}"

    def _stands(self) -> dict[int, int]:
        return dict(
            self.bench.connection.execute(
                f"SELECT partition_number, next_offset FROM {LIVE}.checkpoint ORDER BY 1"
            ).fetchall()
        )

    def _moves(self) -> list[tuple[Any, ...]]:
        return self.bench.connection.execute(
            f"SELECT partition_number, next_offset, decisions_applied, epoch FROM {LIVE}.checkpoint ORDER BY 1"
        ).fetchall()

    # stages -----------------------------------------------------------------------------------------------------------

    def _stage(self, stage: Stage) -> None:
        if stage.settled:
            self._until_projected()
        self._publish(stage)
        for act in stage.acts:
            self._watch()
            self._act(act)

    def _publish(self, stage: Stage) -> None:
        sent = [
            self.bench.producer.send(
                self.topic,
                record.value,
                key=record.key,
                partition=(self.partition_of(record.key) + record.partition_shift) % self.schedule.partitions,
                headers=list(record.headers),
            )
            for record in stage.records
        ]
        self.bench.producer.flush()
        for future in sent:
            metadata = future.get()
            self.ends[metadata.partition] = max(self.ends[metadata.partition], metadata.offset + 1)

    def _act(self, act: Act) -> None:
        delivered, loop = self.chaos.delivered, self.bench.loop
        if isinstance(act, Decide):
            delivered["decisions"] += self._decide(act)
            return
        if isinstance(act, Undo):
            delivered["decisions undone"] += self._undo(act)
            return
        if isinstance(act, Join):
            if self.wanted < MOST_WORKERS_AT_ONCE:
                self.wanted += 1
                self._start()
                delivered["workers joined"] += 1
            return
        worker = self.alive[act.index % len(self.alive)]
        match act:
            case Leave():
                if len(self.alive) > 1 and worker.is_alive:
                    self.wanted -= 1
                    worker.stop()
                    self.alive.remove(worker)
                    self.leaving.append(worker)
                    delivered["workers left"] += 1
            case Freeze():
                if worker.pause():
                    self.frozen_until[worker.number] = time.monotonic() + self.chaos.pause_seconds
                    delivered["pauses"] += 1
            case CutBroker():
                delivered["broker cuts"] += bool(loop.call(lambda: worker.broker.cut(act.seconds)))
            case CutDatabase():
                delivered["database cuts"] += bool(loop.call(lambda: worker.database.cut(act.seconds)))

    def _takeovers(self) -> int:
        """Count how often a partition went from one worker to another: claims after the first, less the undone."""
        row = self.bench.connection.execute(
            f"SELECT coalesce(sum(epoch) - count(*), 0)::int FROM {LIVE}.checkpoint"
        ).fetchone()
        return max(0, (row[0] if row else 0) - self.refolded)

    def _until_projected(self) -> None:
        self._wait("the log was projected", self._is_projected)

    def _is_projected(self) -> bool:
        stored = self._stands()
        if any(stored.get(partition, 0) < end for partition, end in self.ends.items()):
            return False
        waiting = self.bench.connection.execute(
            f"SELECT 1 FROM rxstore.decision d LEFT JOIN {LIVE}.checkpoint c ON c.topic = d.topic "
            "AND c.partition_number = d.stream_partition WHERE d.revoked_at IS NULL "
            "AND (d.number IS NULL OR c.decisions_applied IS NULL OR d.number > c.decisions_applied) LIMIT 1"
        ).fetchone()
        return waiting is None

    # operators --------------------------------------------------------------------------------------------------------

    def _decide(self, act: Decide) -> int:
        """Decide about a share of what is open; nothing that heals by itself is skipped."""
        random = Random(act.dice)
        with desk(self.settings) as sitting:
            found = sitting.search(act.action, reason=None, stream=None, source=None, older_than=None, limit=1000)
            found.sort(key=lambda candidate: candidate.position)
            random.shuffle(found)
            chosen = [
                candidate
                for candidate in found
                if random.random() < act.share
                and act.stream in {None, candidate.stream_key}
                and not (act.action == "skip" and candidate.stream_key in self.schedule.healed)
            ][:MOST_DECISIONS_AT_ONCE]
            stored = self._stands()
            ids = sitting.decide(act.action, chosen, why="chaos", who=OPERATOR)
        for number, candidate in zip(ids, chosen, strict=True):
            partition = self.partition_of((candidate.stream_key or "").encode())
            self.places.append(Place(number, stored.get(partition, 0)))
        return len(ids)

    def _undo(self, act: Undo) -> int:
        """Undo a share of what stands, of prescriptions that can be folded again to the rows of a whole fold."""
        random = Random(act.dice)
        excepted = not_folded_again(self.schedule)
        rows = self.bench.connection.execute(
            "SELECT id, stream_key FROM rxstore.decision WHERE revoked_at IS NULL ORDER BY id"
        ).fetchall()
        random.shuffle(rows)
        chosen = [
            number
            for number, key in rows
            if random.random() < act.share and key not in excepted and act.stream in {None, key}
        ]
        for number in chosen[:MOST_UNDONE_AT_ONCE]:
            self._undo_one(number)
        return len(chosen[:MOST_UNDONE_AT_ONCE])

    def _undo_one(self, number: int) -> None:
        """Undo a decision, again while a worker that is frozen inside a transaction holds the partition's checkpoint.

        The operator is told then that nothing was changed; meanwhile frozen workers go on when their time has come.
        """
        until = time.monotonic() + UNDO_PATIENCE_SECONDS
        while True:
            try:
                with desk(self.settings) as sitting:
                    self.refolded += sitting.undo(number, who=OPERATOR) is not None
                return
            except psycopg.errors.LockNotAvailable:
                if time.monotonic() > until:
                    raise Stuck(f"decision {number} could not be undone") from None
            self._watch()

    # the log ----------------------------------------------------------------------------------------------------------

    def _log(self) -> list[Record]:
        """Read the whole topic."""
        partitions = [TopicPartition(self.topic, number) for number, end in self.ends.items() if end]
        reader, records = self.bench.reader, []
        reader.assign(partitions)
        reader.seek_to_beginning(*partitions)
        until = time.monotonic() + READ_PATIENCE_SECONDS
        while any(reader.position(partition) < self.ends[partition.partition] for partition in partitions):
            for polled in reader.poll(timeout_ms=READ_TIMEOUT_MS).values():
                records += [record_of(record) for record in polled]
            if time.monotonic() > until:
                raise Stuck("the log could not be read to its end")
        return records


def not_folded_again(schedule: Schedule) -> set[str]:
    """Return the keys of streams that folding again does not bring to the rows of a whole fold (projector.refold).

    Those that the log deletes stay as they are, also where the deletion was misrouted and folds because somebody
    retries it: undoing that brings nothing back. And a copy that counted as a duplicate leaves no trace by which it
    would be read again.
    """
    records = [record for stage in schedule.stages for record in stage.records]
    published = Counter(record.value for record in records)
    found = set()
    for record in records:
        if published[record.value] > 1:
            found.add(record.key.decode())
        elif DELETED in record.value:
            found.add(record.key.decode())
            with suppress(ValueError, KeyError, TypeError):  # a dirty one
                found.add(parse_prescription_id(orjson.loads(record.value)["subject"]).stream_key)
    return found


def be_told_to_end() -> None:
    """End like a command that was interrupted when SIGTERM comes, so that no worker is left behind."""

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
