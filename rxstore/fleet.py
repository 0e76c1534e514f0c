"""The projector's worker processes on this machine: started, watched, stopped.

Each worker is a process of its own with one consumer and one database session; Kafka's group spreads the partitions
over all of them, on this machine and others. A worker that dies is started again; one that must not go on ends all.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from typing import Any

from kafka import KafkaConsumer

from ingest.assignment import Assignor, Member
from ingest.consumer import Worker
from ingest.decode import Decoder
from ingest.lookup import lookup
from ingest.partitioning import partitioner
from ingest.readability import TooManyUnreadable
from projector import garbage
from projector.checkpoints import TopicMismatch
from projector.read_model import ReadModel, RowsMissing
from projector.runner import TooManyFailing, connect
from projector.stream import Counts
from rxstore import logs, tracebacks
from rxstore.errors import Refused
from rxstore.signals import stop_when_asked

log = logging.getLogger(__name__)

HEARTBEAT_MS = 1_000
# How long until a worker notices that partitions were added. One that joined before its client knew the topic, which
# kafka-python lets happen, has no partition until then.
METADATA_MS = 5_000
REMEMBERED_BYTES = 100_000_000  # some 10,700 generated ones that have not run their course
FETCH_BYTES = 4 * 1024 * 1024
READER_BOOTSTRAP_MS = 5_000  # somebody waits for what it reads
STOP_SECONDS = 30.0
RESTARTS_IN_A_ROW = 5
HEALTHY_AFTER_SECONDS = 30.0
CLIENT_PREFIX = "rxstore-projector-"
REFUSED_EXIT = Refused.exit_code


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Everything that a worker process is told; plain data, since it crosses into another process.

    ``kafka`` holds the connection settings of the client, ``instance_id`` makes membership static.
    """

    database_url: str
    kafka: dict[str, Any]
    topic: str
    topic_id: str | None
    partitions: int
    group_id: str
    schema: str
    partitioner: str
    strict_check_character: bool
    max_value_bytes: int
    batch_records: int
    build_bytes: int
    session_timeout_ms: int
    instance_id: str | None
    keep_going: bool
    log_level: str
    log_format: str
    until: datetime | None = None
    ends: dict[int, int] | None = None


@dataclass(slots=True)
class _Member:
    process: BaseProcess
    counts: Pipe
    started_at: float


@dataclass(slots=True)
class Fleet:
    """``workers`` processes with the same options. ``counts`` sums what they report when they end."""

    options: WorkerOptions
    workers: int
    counts: Counts = field(default_factory=Counts)
    _members: dict[int, _Member] = field(default_factory=dict)
    _restarts: int = 0

    def run(self, stopping: threading.Event, finished: Callable[[], bool] = lambda: False) -> None:
        """Keep the workers running until ``stopping`` is set or ``finished()`` says so; then stop them cleanly.

        Raises Refused as ``watch`` does.
        """
        try:
            self.start()
            while not stopping.wait(0.2) and not finished():
                self.watch()
        finally:
            self.stop()

    def start(self) -> None:
        """Start every worker."""
        for index in range(self.workers):
            self._start(index)

    def watch(self) -> None:
        """Start again the workers that ended.

        Raises Refused when a worker must not go on (the topic is not the generation's, rows are missing) or keeps
        dying.
        """
        for index, member in list(self._members.items()):
            if member.process.is_alive():
                continue
            self._gather(member)
            if member.process.exitcode == REFUSED_EXIT:
                raise Refused("a worker stopped to protect the data: its message stands above")
            lived = time.monotonic() - member.started_at
            self._restarts = 0 if lived > HEALTHY_AFTER_SECONDS else self._restarts + 1
            if self._restarts > RESTARTS_IN_A_ROW:
                raise Refused(f"worker {index} ended {self._restarts} times in a row: its messages stand above")
            log.error(
                "worker %d ended with exit code %s and is started again",
                index,
                member.process.exitcode,
                extra={"action": "worker_died"},
            )
            self._start(index)

    def stop(self) -> None:
        """Stop the workers between two batches, and kill those that do not stop in time."""
        for member in self._members.values():
            if member.process.is_alive():
                member.process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for member in self._members.values():
            member.process.join(max(0.0, until - time.monotonic()))
            if member.process.is_alive():
                log.error(
                    "a worker did not stop in %d s and is killed", STOP_SECONDS, extra={"action": "worker_killed"}
                )
                member.process.kill()
                member.process.join()
            self._gather(member)
        self._members.clear()

    def _start(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(self.options, index, sending), name=f"rxstore-worker-{index}")
        process.start()
        sending.close()
        self._members[index] = _Member(process, receiving, time.monotonic())

    def _gather(self, member: _Member) -> None:
        with suppress(EOFError, OSError):
            while member.counts.poll():
                self.counts.add(member.counts.recv())
        member.counts.close()


def _work(options: WorkerOptions, index: int, counts: Pipe) -> None:
    """Be one worker process, until told to stop or until the fleet's process is gone."""
    tracebacks.hide_messages()
    logs.configure(options.log_level, options.log_format)
    logs.always(generation=ReadModel(options.schema).generation)
    stopping = threading.Event()
    stop_when_asked(stopping)
    threading.Thread(target=_stop_with_parent, args=(stopping,), daemon=True).start()
    worker = Worker(
        topic=options.topic,
        partitions=options.partitions,
        topic_id=options.topic_id,
        read_model=ReadModel(options.schema),
        decode=Decoder(
            partition_of=partitioner(options.partitioner, options.partitions),
            max_value_bytes=options.max_value_bytes,
            strict_check_character=options.strict_check_character,
        ),
        make_consumer=lambda: make_consumer(options, index),
        lookup=lookup(lambda: make_reader(options.kafka)),
        connect=lambda: connect(options.database_url),
        owner=_owner(),
        batch_records=options.batch_records,
        build_bytes=options.build_bytes,
        remembered_bytes=REMEMBERED_BYTES,
        stopping=stopping,
        keep_going=options.keep_going,
        until=options.until,
        ends=options.ends,
    )
    garbage.collect_rarely()
    try:
        worker.run()
    except (TopicMismatch, RowsMissing, TooManyUnreadable, TooManyFailing) as error:
        print(f"rxstore: {error}", file=sys.stderr, flush=True)
        sys.exit(REFUSED_EXIT)
    except Exception as error:  # the library would print it with its message
        print(tracebacks.trace(error), file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        with suppress(BrokenPipeError):  # nobody counts any more: the fleet's process is gone
            counts.send(worker.counts)


def _stop_with_parent(stopping: threading.Event) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        stopping.set()


def _owner() -> str:
    """This process as checkpoints name it, and as Kafka's tools show it behind CLIENT_PREFIX."""
    return f"{socket.gethostname()}:{os.getpid()}"


def make_consumer(options: WorkerOptions, index: int) -> KafkaConsumer:
    """Return a consumer of the generation's group; offsets are ours to keep, so it resets and commits nothing."""
    instance = {"group_instance_id": f"{options.instance_id}-{index}"} if options.instance_id else {}
    return Member(
        **options.kafka,
        **instance,
        client_id=f"{CLIENT_PREFIX}{_owner()}",
        group_id=options.group_id,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        allow_auto_create_topics=False,
        partition_assignment_strategy=(Assignor(),),
        session_timeout_ms=options.session_timeout_ms,
        metadata_max_age_ms=METADATA_MS,
        heartbeat_interval_ms=min(HEARTBEAT_MS, options.session_timeout_ms // 3),
        max_poll_records=options.batch_records,
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_bytes=4 * FETCH_BYTES,
        metrics_enabled=False,
    )


def make_reader(kafka: Mapping[str, Any]) -> KafkaConsumer:
    """Return a consumer without a group, to read single records by their positions."""
    return KafkaConsumer(
        **kafka,
        client_id="rxstore-reader",
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        allow_auto_create_topics=False,
        max_partition_fetch_bytes=FETCH_BYTES,
        bootstrap_timeout_ms=READER_BOOTSTRAP_MS,
        metrics_enabled=False,
    )
