"""Builds a generation from an archive up to where that ends; from there on the topic is read like any other's.

Each process takes some partitions, one after the other. Nobody else feeds a generation while it is loading; stopped or
killed, a load goes on where its checkpoints stand.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from multiprocessing.process import BaseProcess
from pathlib import Path

import psycopg
from kafka.errors import KafkaError
from sqlalchemy import Engine

from ingest.archive import Archive, ArchiveBroken
from ingest.decode import Decoder
from ingest.lookup import lookup
from ingest.pacing import Pace
from ingest.partitioning import partitioner
from projector import checkpoints, decisions, garbage, generations, rebuild
from projector.batch import Position, Record
from projector.checkpoints import Claim, FencingLost
from projector.decisions import DecisionsDue
from projector.generations import Generation
from projector.read_model import ReadModel
from projector.recent import RecentStreams
from projector.runner import Batch, Lookup, OneByOne, Runner, TooManyFailing, connect
from projector.unwritten import Unwritten
from rxstore import logs
from rxstore.errors import Refused, ServerUnavailable, explained
from rxstore.fleet import REMEMBERED_BYTES, WorkerOptions, make_reader
from rxstore.probing import Prober
from rxstore.progress import Progress
from rxstore.store import Log

LOOK_EVERY_SECONDS = 0.5

log = logging.getLogger(__name__)


def check(archive: Archive, log: Log) -> dict[int, int]:
    """Return where each partition begins in archive and topic together; Refused where they leave a hole."""
    try:
        archive.check_topic(log.name, log.topic_id, log.partitions)
    except ArchiveBroken as error:
        raise Refused(str(error)) from error
    begins = {}
    for partition, first in sorted(log.first_offsets.items()):
        ends = archive.next_offset(partition)
        if (ends is None and first > 0) or (ends is not None and ends < first):
            raise Refused(
                f"the archive of {log.name}[{partition}] ends at offset {ends or 0}, and the topic begins at {first}: "
                "what stood between them is in neither. Nothing was staged"
            )
        if ends is not None and ends > log.end_offsets[partition]:
            raise Refused(
                f"the archive of {log.name}[{partition}] ends at offset {ends}, after the topic's end "
                f"{log.end_offsets[partition]}: the log was truncated, or this is another topic. Nothing was staged"
            )
        archived = archive.first_offset(partition)
        begins[partition] = first if archived is None else min(first, archived)
    return begins


def load(
    engine: Engine,
    generation: Generation,
    options: WorkerOptions,
    archive: Archive,
    workers: int,
    prober: Prober,
) -> None:
    """Fold the archive into a generation by ``workers`` processes; Refused when one of them cannot go on.

    ``prober`` finds the rate of an automatic throttle meanwhile.
    """
    context = multiprocessing.get_context("spawn")
    numbers = [partition for partition in range(archive.partitions) if archive.of_partition(partition)]
    shares = [numbers[start::workers] for start in range(workers)]
    processes = [
        context.Process(target=_load, args=(options, archive.directory, share), daemon=True)
        for share in shares
        if share
    ]
    total = sum(archive.next_offset(number) or 0 for number in numbers)
    with Progress(f"load {generation.name}", "offsets", total) as progress:
        for process in processes:
            process.start()
        try:
            while any(process.is_alive() for process in processes):
                _end_together(processes)
                _show(engine, generation, numbers, archive, progress)
                with engine.connect() as connection:
                    prober.follow(generations.every(connection))
                time.sleep(LOOK_EVERY_SECONDS)
        finally:
            prober.stop()
            for process in processes:
                process.terminate()
                process.join()
    if any(process.exitcode for process in processes):
        raise Refused(
            f"generation {generation.name} was not loaded to the end of the archive: the reason stands above. The same "
            f"command goes on where it was; 'rxstore rebuild abort {generation.name}' gives it up"
        )


def _end_together(processes: Sequence[BaseProcess]) -> None:
    if any(process.exitcode for process in processes):
        for process in processes:
            process.terminate()


def _show(engine: Engine, generation: Generation, numbers: Iterable[int], archive: Archive, progress: Progress) -> None:
    with engine.connect() as connection:
        reached = rebuild.offsets(connection, generation)
    done = sum(min(reached.get(str(number), 0), archive.next_offset(number) or 0) for number in numbers)
    progress.advance(max(0, done - progress.done))


# one process ----------------------------------------------------------------------------------------------------------


def _load(options: WorkerOptions, directory: Path, partitions: Sequence[int]) -> None:
    """Be one process: load these partitions, one after the other."""
    logs.configure(options.log_level, options.log_format)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is told too, and ends this one
    archive = Archive.opened(directory)
    decode = Decoder(
        partition_of=partitioner(options.partitioner, options.partitions),
        max_value_bytes=options.max_value_bytes,
        strict_check_character=options.strict_check_character,
    )
    read_model = ReadModel(options.schema)
    garbage.collect_rarely()
    with connect(options.database_url) as connection:
        look_up = _either(archive, options)
        recent = RecentStreams(REMEMBERED_BYTES)
        runner = Runner(connection, read_model, decode, recent, look_up, options.keep_going)
        pace = Pace(read_model)
        for partition in partitions:
            claim = checkpoints.claim(
                connection,
                options.schema,
                options.topic,
                partition,
                owner=f"{socket.gethostname()}:{os.getpid()}",
                topic_id=options.topic_id,
                first=archive.first_offset(partition) or 0,
            )
            recent.forget()  # nothing that was loaded under a claim outlives it
            try:
                ends = options.ends or {}
                _Loading(runner, claim, pace, Unwritten(options.build_bytes)).load(
                    archive, options.batch_records, ends.get(partition)
                )
            except (ArchiveBroken, FencingLost, TooManyFailing) as error:
                print(f"rxstore: {error}", file=sys.stderr, flush=True)
                sys.exit(Refused.exit_code)
            except (psycopg.Error, KafkaError) as error:
                print(f"rxstore: {explained(error) or type(error).__name__}", file=sys.stderr, flush=True)
                sys.exit(ServerUnavailable.exit_code)


def _either(archive: Archive, options: WorkerOptions) -> Lookup:
    """Return a look-up that reads what the archive has from there, and the rest from the topic."""
    in_topic = lookup(lambda: make_reader(options.kafka))

    def read(positions: Iterable[Position]) -> dict[Position, Record]:
        wanted = set(positions)
        archived = {one for one in wanted if one.offset < (archive.next_offset(one.partition) or 0)}
        found = in_topic(wanted - archived)
        for position in archived:
            record = next(archive.records(position.partition, position.offset), None)
            if record is not None and record.position == position:
                found[position] = record
        return found

    return read


@dataclass(slots=True)
class _Loading:
    """One partition on its way from the archive into the read model."""

    runner: Runner
    claim: Claim
    pace: Pace
    unwritten: Unwritten

    def load(self, archive: Archive, batch_records: int, until: int | None) -> None:
        """Fold what the archive has, up to offset ``until`` if the partition ends there for this generation."""
        end = archive.next_offset(self.claim.partition) or 0
        if until is not None:
            end = min(end, until)
        if self.unwritten.bound:
            try:
                self._build(self._records(archive, end), batch_records)
            except OneByOne as error:
                log.info("reading again, batch by batch: %s", error, extra={"action": "one_by_one"})
                self.unwritten.clear()
        records = self._records(archive, end)
        while batch := list(islice(records, self._room(batch_records))):
            self.pace.took(len(batch))
            self._project(batch, batch[-1].position.offset + 1)
        if end > self.claim.next_offset:
            self._project([], end)
        self._apply_decisions()

    def _records(self, archive: Archive, end: int) -> Iterator[Record]:
        records = archive.records(self.claim.partition, self.claim.next_offset)
        return takewhile(lambda record: record.position.offset < end, records)

    def _build(self, waiting: Iterator[Record], batch_records: int) -> None:
        """Fold in memory, and write when that is full and at the end."""
        number = self.claim.partition
        while records := list(islice(waiting, self._room(batch_records))):
            self.pace.took(len(records))
            batch = self._decoded(records, records[-1].position.offset + 1)
            while batch.next_offsets:
                try:
                    self.runner.take({number: self.claim}, batch, self.unwritten)
                except DecisionsDue as due:
                    reached = self.unwritten.next_offsets.get(number, self.claim.next_offset)
                    before, batch = batch.cut(due.offsets, {number: self.claim.moved_to(reached)})
                    if before.next_offsets:
                        self.runner.take({number: self.claim}, before, self.unwritten)
                    self._write()
                    self._apply_decisions()
                else:
                    self.pace.passed(batch)
                    break
            if self.unwritten.is_full:
                self._write()
        self._write()

    def _write(self) -> None:
        if self.unwritten:
            offset = self.unwritten.next_offsets[self.claim.partition]
            self.runner.write({self.claim.partition: self.claim}, self.unwritten)
            self.claim = self.claim.moved_to(offset)

    def _decoded(self, records: Sequence[Record], next_offset: int) -> Batch:
        return Batch([self.runner.decode(record) for record in records], {self.claim.partition: next_offset})

    def _room(self, most: int) -> int:
        """Return how many events may be taken, once some may."""
        while True:
            if self.pace.is_due():
                reached = self.unwritten.next_offsets.get(self.claim.partition, self.claim.next_offset)
                self.pace.look(self.runner.connection, {self.claim.partition: self.claim.moved_to(reached)})
            if (room := self.pace.room(most)) > 0:
                return room
            time.sleep(self.pace.wait())

    def _project(self, records: Sequence[Record], next_offset: int) -> None:
        """Project a batch, cut where a decision takes effect."""
        number = self.claim.partition
        batch = self._decoded(records, next_offset)
        while batch.next_offsets:
            claims = {number: self.claim}
            try:
                self.runner.project_batch(claims, batch)
            except DecisionsDue as due:
                before, batch = batch.cut(due.offsets, claims)
                if before.next_offsets:
                    self.runner.project_batch(claims, before)
                    self.claim = self.claim.moved_to(before.next_offsets[number])
                self._apply_decisions()
            else:
                self.claim = self.claim.moved_to(next_offset)
                self.pace.passed(batch)
                return

    def _apply_decisions(self) -> None:
        """Apply the decisions whose place has come; giving places to new ones is for those who feed the live one."""
        claims, schema = {self.claim.partition: self.claim}, self.runner.read_model.schema
        for decision in decisions.waiting(self.runner.connection, schema, self.claim.topic, claims):
            if decision.effect_offset == self.claim.next_offset:
                self.runner.apply(claims, decision)
